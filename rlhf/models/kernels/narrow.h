// Products of long rows with few columns, such as an adapter's ranks.
#pragma once

#include "thin.h"
#include "tiles.h"

// (rows, depth) -> (rows, width). Few columns are summed along the rows, more fill registers.
struct Narrow {
    int64_t columns, depth, width;
    bool few;
    Buffer matrix;  // (columns, depth) where columns are few; otherwise (depth, columns filled up to a multiple of 16)

    Narrow(int64_t columns, int64_t depth)
        : columns(columns), depth(depth), width(columns), few(columns < 3 * WIDTH / 4) {
        if (!few) width = rounded(columns);
        matrix.resize(width * depth);
    }

    // Columns from `first` on, (count, depth).
    template <class T>
    void take(const T* from, int64_t count, int64_t first) {
        if (few)
            std::copy_n(from, count * depth, matrix.data() + first * depth);
        else
            turn(from, count, depth, 1.0f, matrix.data() + first, width);
    }

    // All columns times a factor, (depth, columns).
    template <class T>
    void take_turned(const T* from, float scaling) {
        if (few) return turn(from, depth, columns, scaling, matrix.data(), depth);
        for (int64_t i = 0; i < depth; i++)
            for (int64_t j = 0; j < columns; j++) matrix[i * width + j] = scaling * from[i * columns + j];
    }

    void product(const float* x, int64_t rows, float* result) const {
        if (few)
            return thin_product({matrix.data(), nullptr, nullptr, nullptr, depth, columns, 0, 1.0f}, x, nullptr, result,
                                rows, 1);
        for (int64_t at = 0, taken; at < rows; at += taken) {
            taken = tile_rows(rows - at);
            for (int64_t column = 0; column < width; column += PANEL) {
                const Factor factor{x + at * depth, depth, matrix.data() + column, width, depth};
                sum_products<false>(taken, std::min(PANEL, width - column), &factor, 1, nullptr, 0,
                                    result + at * width + column, width);
            }
        }
    }
};
