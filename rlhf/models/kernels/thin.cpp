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
            const Floats found = sums_of(&sums[0][0]);
            for (int64_t i = 0; i < std::min<int64_t>(SIDE, rows - row); i++) {
                const int64_t at = (row + i) * out + column;
                for (int64_t j = 0; j < width; j++)
                    result[at + j] = found[i * SIDE + j] + (layer.bias ? layer.bias[column + j] : 0.0f) +
                                     (onto ? onto[at + j] : 0.0f);
            }
        }
    }
}
