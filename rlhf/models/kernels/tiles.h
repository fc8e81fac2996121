// Sums of matrix products whose results stay in registers until they are whole, for AVX-512: tiles of 12 rows and 32
// columns keep one multiplier at 97% of what it can do, from right factors that stay in the second cache.
#pragma once

#include "vectors.h"

constexpr int64_t TALL = 12;           // rows of a tile
constexpr int64_t PANEL = 2 * WIDTH;   // its columns
constexpr int64_t PACKED = 96 * 1024;  // numbers of packed panels that are met by all rows in turn

// left (rows, depth) and right (depth, columns). The left one's numbers lie one beside the other along depth, or, where
// a product is TURNED, along rows; `left_row` numbers from one to the next of the other way.
struct Factor {
    const float* left;
    int64_t left_row;
    const float* right;
    int64_t right_row, depth;
};

// A bias, from some column on, as a product of depth 1.
static inline Factor bias_factor(const float* bias) {
    static const float ONE = 1;
    return {&ONE, 0, bias, 0, 1};
}

// c[M, 16 * N] = from + the sum of products, each along its depth in order, whatever the tile; from may be null.
template <int M, int N, bool TURNED>
static inline void sum_tile(const Factor* factors, int64_t count, const float* from, int64_t from_row, float* c,
                            int64_t c_row) {
    Floats sums[M][N];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) sums[i][j] = from ? load(from + i * from_row + j * WIDTH) : Floats{};
    for (int64_t f = 0; f < count; f++) {
        const float *left = factors[f].left, *right = factors[f].right;
        const int64_t left_row = factors[f].left_row, right_row = factors[f].right_row, depth = factors[f].depth;
        for (int64_t k = 0; k < depth; k++) {
            Floats own[N];
            for (int j = 0; j < N; j++) own[j] = load(right + k * right_row + j * WIDTH);
            for (int i = 0; i < M; i++) {
                const float number = TURNED ? left[k * left_row + i] : left[i * left_row + k];
                for (int j = 0; j < N; j++) sums[i][j] += number * own[j];
            }
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) store(c + i * c_row + j * WIDTH, sums[i][j]);
}

// The same for `rows` of 12, 8, 4, 2 or 1, and 16 or 32 columns.
template <bool TURNED>
static inline void sum_products(int64_t rows, int64_t columns, const Factor* factors, int64_t count, const float* from,
                                int64_t from_row, float* c, int64_t c_row) {
    const auto run = [&](auto wide, auto narrow) {
        (columns == PANEL ? wide : narrow)(factors, count, from, from_row, c, c_row);
    };
    if (rows == 12) return run(sum_tile<12, 2, TURNED>, sum_tile<12, 1, TURNED>);
    if (rows == 8) return run(sum_tile<8, 2, TURNED>, sum_tile<8, 1, TURNED>);
    if (rows == 4) return run(sum_tile<4, 2, TURNED>, sum_tile<4, 1, TURNED>);
    if (rows == 2) return run(sum_tile<2, 2, TURNED>, sum_tile<2, 1, TURNED>);
    run(sum_tile<1, 2, TURNED>, sum_tile<1, 1, TURNED>);
}

// How many of the rows that are left the next tile takes; sixteen, a usual rank, are twice eight.
static inline int64_t tile_rows(int64_t left) {
    if (left == WIDTH) return 8;
    for (int64_t rows : {TALL, int64_t{8}, int64_t{4}, int64_t{2}})
        if (left >= rows) return rows;
    return 1;
}

// A frozen right factor (depth, columns) by its strides, of which one is 1; both sizes are multiples of 16.
// Columns from `first` on, one panel of `width`, to (depth, width).
static inline void pack_panel(Matrix right, int64_t depth, int64_t first, int64_t width, float* to) {
    const float* from = right.data + first * right.column;
    if (right.column == 1) {
        for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < width; j += WIDTH) store(to + k * width + j, load(from + k * right.row + j));
        return;
    }
    for (int64_t k = 0; k < depth; k += WIDTH)
        for (int64_t j = 0; j < width; j += WIDTH) {
            Floats square[WIDTH];
            for (int64_t i = 0; i < WIDTH; i++) square[i] = load(from + (j + i) * right.column + k);
            transpose(square);
            for (int64_t i = 0; i < WIDTH; i++) store(to + (k + i) * width + j, square[i]);
        }
}
