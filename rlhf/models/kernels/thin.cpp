// A linear layer with its adapter for a handful of tokens, as in decoding: weights are read once, where they lie.
// Libraries copy the weights into an order of their own first, which costs more than such a product.
#include "thin.h"

#include "vectors.h"

namespace {

constexpr int SIDE = 4;

// sums[i][j] += a[i] . b[j], lane by lane. The copies keep all sums in registers; next is what will be read after these.
static inline void accumulate(Floats sums[SIDE][SIDE], const float* const a[SIDE], const float* const b[SIDE],
                              int64_t size, const float* next) {
    Floats own[SIDE][SIDE];
#pragma GCC unroll 16
    for (int i = 0; i < SIDE * SIDE; i++) own[i / SIDE][i % SIDE] = sums[i / SIDE][i % SIDE];
    const float *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3], *b0 = b[0], *b1 = b[1], *b2 = b[2], *b3 = b[3];
    const auto add = [&](const Floats(&left)[SIDE], const Floats(&right)[SIDE]) {
#pragma GCC unroll 4
        for (int i = 0; i < SIDE; i++)
#pragma GCC unroll 4
            for (int j = 0; j < SIDE; j++) own[i][j] += left[i] * right[j];
    };
    int64_t k = 0;
    for (; k + WIDTH <= size; k += WIDTH) {
        __builtin_prefetch(next + k);
        add({load(a0 + k), load(a1 + k), load(a2 + k), load(a3 + k)},
            {load(b0 + k), load(b1 + k), load(b2 + k), load(b3 + k)});
    }
    if (const int64_t left = size - k; left > 0)
        add({load_some(a0 + k, left), load_some(a1 + k, left), load_some(a2 + k, left), load_some(a3 + k, left)},
            {load_some(b0 + k, left), load_some(b1 + k, left), load_some(b2 + k, left), load_some(b3 + k, left)});
#pragma GCC unroll 16
    for (int i = 0; i < SIDE * SIDE; i++) sums[i / SIDE][i % SIDE] = own[i / SIDE][i % SIDE];
}

// Sixteen vectors to the vector of their sums: each step adds halves and joins neighbours.
#define JOIN(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
Floats reduce(const Floats* v) {
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

// The first SIDE rows of a matrix from `first` on; the last one again where there are no more.
void rows_of(const float* found[SIDE], const float* matrix, int64_t first, int64_t rows, int64_t size) {
    for (int i = 0; i < SIDE; i++) found[i] = matrix + std::min(first + i, rows - 1) * size;
}

}  // namespace

void thin_product(const Thin<float>& layer, const float* x, const float* onto, float* result, int64_t rows,
                  int threads) {
    if (layer.panels) return panel_product(layer, x, onto, result, rows, threads);
    const int64_t in = layer.in, out = layer.out, rank = layer.rank;
    std::vector<float> low(rows * rank);
    if (rank) {
        thin_product({layer.down, nullptr, nullptr, nullptr, in, rank, 0, 1.0f}, x, nullptr, low.data(), rows, 1);
        for (float& value : low) value *= layer.scaling;
    }
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t column = 0; column < out; column += SIDE) {
        const float *left[SIDE], *right[SIDE];
        const int64_t width = std::min<int64_t>(SIDE, out - column);
        for (int64_t row = 0; row < rows; row += SIDE) {
            Floats sums[SIDE][SIDE] = {};
            rows_of(left, x, row, rows, in);
            rows_of(right, layer.weight, column, out, in);
            accumulate(sums, left, right, in, layer.weight + std::min(column + SIDE + row / SIDE, out - 1) * in);
            if (rank) {
                rows_of(left, low.data(), row, rows, rank);
                rows_of(right, layer.up, column, out, rank);
                accumulate(sums, left, right, rank, layer.up);
            }
            const Floats found = reduce(&sums[0][0]);
            for (int64_t i = 0; i < std::min<int64_t>(SIDE, rows - row); i++) {
                const int64_t at = (row + i) * out + column;
                for (int64_t j = 0; j < width; j++)
                    result[at + j] = found[i * SIDE + j] + (layer.bias ? layer.bias[column + j] : 0.0f) +
                                     (onto ? onto[at + j] : 0.0f);
            }
        }
    }
}
