// Thin products in bfloat16, sums in fp32: a register's lanes are the rows, and a pair of numbers of each row meets the
// same pair of a weight, for which processors have an instruction. So nothing is summed across lanes. Eight rows or
// fewer have two lanes each, which take turns at the pairs.
#include "thin.h"
#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t BLOCK = 2 * WIDTH;  // numbers in a register

typedef uint32_t Pair;

// Lane by lane: both products of a pair are added to the sum.
inline Floats multiply(Floats sum, Words a, Words b) {
#ifdef __AVX512BF16__
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (Floats)(a << 16) * (Floats)(b << 16);
    return sum + (Floats)(a & 0xFFFF0000) * (Floats)(b & 0xFFFF0000);
#endif
}

// The next pair of a weight in every lane, or the next two in turn.
template <int LANES>
inline Words spread(const Pair* pairs) {
    typedef uint64_t Twos __attribute__((vector_size(64)));
    if constexpr (LANES == 1) return Words{} + pairs[0];
    return (Words)(Twos{} + (pairs[0] | static_cast<uint64_t>(pairs[1]) << 32));
}

// A block of a row in pairs, zeros behind the row's end.
inline void copy_block(Pair* to, const BFloat16* from, int64_t left) {
    if (left < BLOCK) {
        std::memset(to, 0, BLOCK * sizeof(BFloat16));
        std::memcpy(to, from, left * sizeof(BFloat16));
    } else {
        std::memcpy(to, from, BLOCK * sizeof(BFloat16));
    }
}

inline int64_t blocks(int64_t size) { return (size + BLOCK - 1) / BLOCK; }

// Up to 16 / LANES rows as registers: the lanes of row i hold its next pairs.
template <int LANES>
std::vector<Pair> panel(const BFloat16* x, int64_t rows, int64_t size) {
    std::vector<Pair> found(blocks(size) * WIDTH / LANES * WIDTH);
    Pair pairs[WIDTH];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t at = 0; at < size; at += BLOCK) {
            copy_block(pairs, x + i * size + at, size - at);
            Pair* to = &found[at / 2 / LANES * WIDTH + i * LANES];
            for (int64_t p = 0; p < WIDTH; p += LANES) std::copy_n(pairs + p, LANES, to + p / LANES * WIDTH);
        }
    return found;
}

// sums[j] += rows . weight[j]; next is what will be read after these.
template <int LANES>
inline void accumulate(Floats (&sums)[WIDTH], const std::vector<Pair>& rows, const BFloat16* const weight[WIDTH],
                       int64_t size, const BFloat16* next) {
    Floats own[WIDTH];
#pragma GCC unroll 16
    for (int j = 0; j < WIDTH; j++) own[j] = sums[j];
    const Pair* left = rows.data();
    for (int64_t at = 0; at < size; at += BLOCK) {
        Pair pairs[WIDTH][WIDTH];
#pragma GCC unroll 16
        for (int j = 0; j < WIDTH; j++) {
            __builtin_prefetch(next + j * size + at);
            copy_block(pairs[j], weight[j] + at, size - at);
        }
        const int64_t count = std::min(WIDTH, (size - at + 1) / 2);
        for (int64_t p = 0; p < count; p += LANES, left += WIDTH) {
            const Words row = *reinterpret_cast<const Words*>(left);
#pragma GCC unroll 16
            for (int j = 0; j < WIDTH; j++) own[j] = multiply(own[j], row, spread<LANES>(&pairs[j][p]));
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < WIDTH; j++) sums[j] = own[j];
}

// 16 rows of a matrix from `first` on; the last one again where there are no more.
void rows_of(const BFloat16* found[WIDTH], const BFloat16* matrix, int64_t first, int64_t rows, int64_t size) {
    for (int i = 0; i < WIDTH; i++) found[i] = matrix + std::min(first + i, rows - 1) * size;
}

// The whole of it for up to 16 / LANES rows.
template <int LANES>
void product(const Thin<BFloat16>& layer, const BFloat16* x, const BFloat16* onto, BFloat16* result, int64_t rows,
             int threads) {
    const int64_t in = layer.in, out = layer.out, rank = layer.rank;
    std::vector<BFloat16> inner(rows * rank);
    if (rank)
        product<LANES>({layer.down, nullptr, nullptr, nullptr, in, rank, 0, 1.0f}, x, nullptr, inner.data(), rows, 1);
    const std::vector<Pair> read = panel<LANES>(x, rows, in), low = panel<LANES>(inner.data(), rows, rank);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t column = 0; column < out; column += WIDTH) {
        const int64_t next = column + 2 * WIDTH <= out ? column + WIDTH : 0;
        const BFloat16* weight[WIDTH];
        Floats sums[WIDTH] = {};
        if (rank) {
            rows_of(weight, layer.up, column, out, rank);
            accumulate<LANES>(sums, low, weight, rank, layer.up);
            for (Floats& sum : sums) sum *= layer.scaling;
        }
        rows_of(weight, layer.weight, column, out, in);
        accumulate<LANES>(sums, read, weight, in, layer.weight + next * in);
        transpose(sums);  // from a register per column to one per lane
        for (int64_t i = 0; i < rows; i++) {
            const int64_t at = i * out + column, left = out - column;
            Floats value = sums[i * LANES];
            if (LANES == 2) value += sums[i * LANES + 1];
            if (layer.bias) value += load_some(layer.bias + column, left);
            if (onto) value += load_some(onto + at, left);
            store_some(result + at, value, left);
        }
    }
}

}  // namespace

void thin_product(const Thin<BFloat16>& layer, const BFloat16* x, const BFloat16* onto, BFloat16* result, int64_t rows,
                  int threads) {
    for (int64_t row = 0; row < rows; row += WIDTH) {
        const int64_t left = std::min(WIDTH, rows - row);
        const auto run = left > WIDTH / 2 ? product<1> : product<2>;
        const BFloat16* beside = onto ? onto + row * layer.out : nullptr;
        run(layer, x + row * layer.in, beside, result + row * layer.out, left, threads);
    }
}
