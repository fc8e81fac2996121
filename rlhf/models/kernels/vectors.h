// What the kernels share: vectors of 16 floats, an exponential that vectorizes, rotary positions, tiles of a product.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
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

static inline int64_t rounded(int64_t count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

static inline float sum(Floats v) {
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return v[0] + v[1];
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
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4B400000 + 127) * (1 << 23);
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : result * power;
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

// c[M, 16 * N] (+)= a[M, depth] b[depth, 16 * N]; every sum runs along depth in order, whatever the tile.
template <int M, int N>
static inline void tile(Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t depth, bool add) {
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

template <int M>
static inline void stripe(Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t columns,
                          int64_t depth, bool add) {
    int64_t at = 0;
    for (; at + 2 * WIDTH <= columns; at += 2 * WIDTH) tile<M, 2>(a, b + at, b_row, c + at, c_row, depth, add);
    if (at < columns) tile<M, 1>(a, b + at, b_row, c + at, c_row, depth, add);
}

// c[rows, columns] (+)= a[rows, depth] b[depth, columns]; columns is a multiple of 16.
static inline void multiply(Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t rows,
                            int64_t columns, int64_t depth, bool add) {
    int64_t at = 0;
    const auto run = [&](auto kernel, int64_t count) {
        kernel({a.data + at * a.row, a.row, a.column}, b, b_row, c + at * c_row, c_row, columns, depth, add);
        at += count;
    };
    while (at + 8 <= rows) run(stripe<8>, 8);
    if (at + 4 <= rows) run(stripe<4>, 4);
    if (at + 2 <= rows) run(stripe<2>, 2);
    if (at < rows) run(stripe<1>, 1);
}
