// What the kernels share: vectors of 16 floats, an exponential that vectorizes, rotary positions, tiles of a product.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "bfloat16.h"

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));  // compilers split it where it is too wide
constexpr int64_t WIDTH = 16;

static inline Floats load(const float* at) { return *reinterpret_cast<const Floats*>(at); }
static inline void store(float* at, Floats value) { *reinterpret_cast<Floats*>(at) = value; }

typedef uint32_t Words __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));
static inline Floats load(const BFloat16* at) {
    return (Floats)(__builtin_convertvector(*reinterpret_cast<const Halves*>(at), Words) << 16);
}
static inline void store(BFloat16* at, Floats value) {
    const Words found = value == value ? nearest((Words)value) : Words{} + NOT_A_NUMBER;
    *reinterpret_cast<Halves*>(at) = __builtin_convertvector(found, Halves);
}

// The first numbers of a vector; zeros, or what was there, behind them.
template <class T>
static inline Floats load_some(const T* at, int64_t count) {
    if (count >= WIDTH) return load(at);
    T found[WIDTH] = {};
    std::copy_n(at, count, found);
    return load(found);
}

template <class T>
static inline void store_some(T* at, Floats value, int64_t count) {
    if (count >= WIDTH) return store(at, value);
    T found[WIDTH];
    store(found, value);
    std::copy_n(found, count, at);
}

// Lanes with bit S of a change places with those without it of b.
template <int S>
static inline void exchange(Floats& a, Floats& b) {
#define ALL(of) \
    of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8), of(9), of(10), of(11), of(12), of(13), of(14), of(15)
#define FIRST(lane) ((lane) & S ? 16 + (lane) - S : (lane))
#define SECOND(lane) ((lane) & S ? 16 + (lane) : (lane) + S)
    const Floats first = __builtin_shufflevector(a, b, ALL(FIRST));
    b = __builtin_shufflevector(a, b, ALL(SECOND));
    a = first;
}

#undef ALL
#undef FIRST
#undef SECOND

template <int S>
static inline void exchange_all(Floats (&square)[WIDTH]) {
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; i++)
        if (!(i & S)) exchange<S>(square[i], square[i + S]);
}

static inline void transpose(Floats (&square)[WIDTH]) {
    exchange_all<8>(square);
    exchange_all<4>(square);
    exchange_all<2>(square);
    exchange_all<1>(square);
}

// scaling * from (rows, columns) as (columns, rows); to_row numbers from one row of the result to the next.
template <class T>
static inline void turn(const T* from, int64_t rows, int64_t columns, float scaling, float* to, int64_t to_row) {
    for (int64_t row = 0; row < rows; row += WIDTH)
        for (int64_t column = 0; column < columns; column += WIDTH) {
            const int64_t height = std::min(WIDTH, rows - row), width = std::min(WIDTH, columns - column);
            Floats square[WIDTH] = {};
            for (int64_t i = 0; i < height; i++)
                square[i] = scaling * load_some(from + (row + i) * columns + column, width);
            transpose(square);
            for (int64_t j = 0; j < width; j++) store_some(to + (column + j) * to_row + row, square[j], height);
        }
}

// Numbers where a vector's worth of them never crosses a cache line, which would cost a second access.
template <class T>
struct Aligned {
    using value_type = T;
    static constexpr std::align_val_t LINE{64};
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), LINE)); }
    void deallocate(T* at, size_t) { ::operator delete(at, LINE); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};
typedef std::vector<float, Aligned<float>> Buffer;

// The same without a number in it, for what is written before it is read.
template <class T>
struct Unset : Aligned<T> {
    template <class U>
    struct rebind {
        using other = Unset<U>;
    };
    template <class U>
    void construct(U*) const {}
};
typedef std::vector<float, Unset<float>> Space;

static inline int64_t rounded(int64_t count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

// The first lanes of a vector, others' in the rest.
static inline Floats first_lanes(Floats v, int64_t count, Floats others) {
    const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lanes < (uint32_t)std::max<int64_t>(0, std::min(count, WIDTH)) ? v : others;
}

// Across lanes: all lanes' sum, and the largest of them.
static inline float sum(Floats v) {
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return v[0] + v[1];
}

// Sixteen vectors to the vector of their sums: each step adds halves and joins neighbours.
#define JOIN(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
static inline Floats sums_of(const Floats* v) {
    Floats half[8], quarter[4], eighth[2];
    for (int i = 0; i < 8; i++)
        half[i] = JOIN(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                  JOIN(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        quarter[i] = JOIN(half[2 * i], half[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                     JOIN(half[2 * i], half[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        eighth[i] = JOIN(quarter[2 * i], quarter[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
                    JOIN(quarter[2 * i], quarter[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return JOIN(eighth[0], eighth[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           JOIN(eighth[0], eighth[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#undef JOIN

static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
static inline float largest(Floats v) {
    v = larger(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = larger(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    return v[0] > v[1] ? v[0] : v[1];
}

// e^x to about one unit in the last place, without a branch; 0 below -87, no more than e^88. NaN stays NaN.
static inline float exponential(float x) {
    const float bounded = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
    const float shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the last bits are the nearest integer
    const float whole = shifted - 12582912.0f;
    const float rest = (bounded - whole * 0.693145752f) - whole * 1.42860677e-6f;  // ln 2 in two parts
    float result = 1.3888889e-3f;  // 1 / 6!
    result = result * rest + 8.3333333e-3f;
    result = result * rest + 4.1666668e-2f;
    result = result * rest + 1.6666667e-1f;
    result = result * rest + 0.5f;
    result = result * rest + 1.0f;
    result = result * rest + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4B400000 + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : result * power;
}

static inline Floats exponential(Floats x) {
    const Floats above = x > 88.0f ? Floats{} + 88.0f : x, bounded = above < -87.0f ? Floats{} - 87.0f : above;
    const Floats shifted = bounded * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
    const Floats rest = (bounded - whole * 0.693145752f) - whole * 1.42860677e-6f;
    Floats result = Floats{} + 1.3888889e-3f;
    for (float next : {8.3333333e-3f, 4.1666668e-2f, 1.6666667e-1f, 0.5f, 1.0f, 1.0f}) result = result * rest + next;
    const Words power = ((Words)shifted - 0x4B400000u + 127u) << 23;
    return x < -87.0f ? Floats{} : result * (Floats)power;
}

// Rotary positions of one head, the halves side by side (arXiv:2104.09864); turn = -1 turns back (gradients).
// cos and sin hold each angle twice. to and from may be the same.
template <class To, class From, class Angle>
static inline void rotate(To* to, const From* from, const Angle* cos, const Angle* sin, int64_t size, float turn,
                          float scale) {
    const int64_t half = size / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float first = from[i], second = from[i + half], c = cos[i] * scale, s = sin[i] * turn * scale;
        to[i] = first * c - second * s;
        to[i + half] = second * c + first * s;
    }
}

// A matrix read by its strides; the columns of a right factor and of a result lie side by side.
struct Matrix {
    const float* data;
    int64_t row, column;
};

// c[M, 16 * N] (+)= a[M, depth] b[depth, 16 * N]; every sum runs along depth in order, whatever the tile. b and c hold
// floats or BFloat16.
template <int M, int N, class B, class C>
static inline void tile(Matrix a, const B* b, int64_t b_row, C* c, int64_t c_row, int64_t depth, bool add) {
    Floats sums[M][N];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) sums[i][j] = add ? load(c + i * c_row + j * WIDTH) : Floats{};
    for (int64_t k = 0; k < depth; k++) {
        Floats right[N];
        for (int j = 0; j < N; j++) right[j] = load(b + k * b_row + j * WIDTH);
        for (int i = 0; i < M; i++) {
            const float left = a.data[i * a.row + k * a.column];
            for (int j = 0; j < N; j++) sums[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) store(c + i * c_row + j * WIDTH, sums[i][j]);
}

template <int M, class B, class C>
static inline void stripe(Matrix a, const B* b, int64_t b_row, C* c, int64_t c_row, int64_t columns, int64_t depth,
                          bool add) {
    int64_t at = 0;
    for (; at + 2 * WIDTH <= columns; at += 2 * WIDTH) tile<M, 2>(a, b + at, b_row, c + at, c_row, depth, add);
    if (at < columns) tile<M, 1>(a, b + at, b_row, c + at, c_row, depth, add);
}

// c[rows, columns] (+)= a[rows, depth] b[depth, columns]; columns is a multiple of 16.
template <class B, class C>
static inline void multiply(Matrix a, const B* b, int64_t b_row, C* c, int64_t c_row, int64_t rows, int64_t columns,
                            int64_t depth, bool add) {
    int64_t at = 0;
    const auto run = [&](auto kernel, int64_t count) {
        kernel({a.data + at * a.row, a.row, a.column}, b, b_row, c + at * c_row, c_row, columns, depth, add);
        at += count;
    };
    while (at + 8 <= rows) run(stripe<8, B, C>, 8);
    if (at + 4 <= rows) run(stripe<4, B, C>, 4);
    if (at + 2 <= rows) run(stripe<2, B, C>, 2);
    if (at < rows) run(stripe<1, B, C>, 1);
}
