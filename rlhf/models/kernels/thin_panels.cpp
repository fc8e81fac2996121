// A frozen linear layer with one adapter whose matrices were put in order before, once for many steps of decoding: 32
// columns side by side along the depth, as tiles of rows read them. Costs a second copy of the weights.
#include "thin.h"

#include "tiles.h"

namespace {

// Where a layer's down matrices begin, (in, rank filled up to a multiple of 16), and its up matrices, (rank, out).
int64_t downs_at(const Thin<float>& layer) { return layer.in * layer.out; }
int64_t ups_at(const Thin<float>& layer) { return downs_at(layer) + layer.in * rounded(layer.rank); }

// Tiles of all rows.
template <class Run>
void each_tile(int64_t rows, const Run& run) {
    for (int64_t row = 0, taken; row < rows; row += taken) run(row, taken = tile_rows(rows - row));
}

}  // namespace

void panel_product(const Thin<float>& layer, const float* x, const float* onto, float* result, int64_t rows,
                   int threads) {
    const int64_t in = layer.in, out = layer.out, ranks = rounded(layer.rank);
    Space low(rows * ranks);
    const float *downs = layer.panels + downs_at(layer), *ups = layer.panels + ups_at(layer);
    for (int64_t column = 0; column < ranks; column += WIDTH)
        each_tile(rows, [&](int64_t row, int64_t taken) {
            const Factor factor{x + row * in, in, downs + column, ranks, in};
            sum_products<false>(taken, WIDTH, &factor, 1, nullptr, 0, low.data() + row * ranks + column, ranks);
        });
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t column = 0; column < out; column += PANEL) {
        const int64_t width = std::min(PANEL, out - column);
        each_tile(rows, [&](int64_t row, int64_t taken) {
            Factor factors[3] = {{x + row * in, in, layer.panels + column * in, width, in}};
            int64_t count = 1;
            if (layer.rank) factors[count++] = {low.data() + row * ranks, ranks, ups + column, out, layer.rank};
            if (layer.bias) factors[count++] = bias_factor(layer.bias + column);
            const int64_t at = row * out + column;
            sum_products<false>(taken, width, factors, count, onto ? onto + at : nullptr, out, result + at, out);
        });
    }
}

// panels: out * in numbers for the weight, in * (rank filled up to a multiple of 16) for down, rank * out for up. in and
// out are multiples of 16.
extern "C" void pack_thin(const Thin<float>* layer, float* panels) {
    const int64_t in = layer->in, out = layer->out, ranks = rounded(layer->rank);
    for (int64_t column = 0; column < out; column += PANEL)
        pack_panel({layer->weight, 1, in}, in, column, std::min(PANEL, out - column), panels + column * in);
    float* downs = panels + downs_at(*layer);
    std::fill_n(downs, in * ranks, 0.0f);
    turn(layer->down, layer->rank, in, 1.0f, downs, ranks);
    turn(layer->up, out, layer->rank, layer->scaling, panels + ups_at(*layer), out);
}
