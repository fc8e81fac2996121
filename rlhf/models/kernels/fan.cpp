// Frozen matrices that read the same input, each with the adapters of several parts of its rows (arXiv:2106.09685),
// forward and back in one call each; what makes the input, a norm or a gate, is part of it. All numbers are floats.
//
// A tile's sum runs over the frozen product and the adapter's before it leaves the registers: nothing is read again
// to be added to. Norm, gate and the ranks of a few rows are computed where those rows are about to be read.
// Widths are multiples of 16, ranks and rows are free. No row's result depends on the rows beside it or on threads.
#include "narrow.h"
#include "rows.h"

// The caller writes the structures below as words: every field takes 8 bytes.
// weight (in, out) by its strides, of which one is 1; bias (out,) or null; beside (rows, out): results, or gradients.
struct Frozen {
    const float* weight;
    int64_t row, column;
    const float* bias;
    float* beside;
    int64_t out;
};

// An adapter of matrix `frozen`: down (rank, in), up (out, rank); to_down and to_up: for gradients, or null.
struct Tuner {
    const float *down, *up;
    float *to_down, *to_up;
    int64_t frozen, rank;
    double scaling;
};

// Rows first to first + rows under one adapter; low (rows, sum of its ranks): x down^T, one beside the other.
struct Part {
    int64_t first, rows;
    const Tuner* tuners;
    int64_t count;
    float* low;
};

struct Fan {
    const Frozen* frozen;
    int64_t matrices;
    const Part* parts;  // one behind the other, all rows
    int64_t num_parts, in, rows;
    int64_t threads;
    const float* panels;  // all matrices as pack_forth or pack_back leaves them, or null
};

enum Kind : int64_t { PLAIN, NORM, GATE };

// What makes the input: x itself; x normed with weights `other`; or silu(x) * other. x and a gate's other: (rows, in).
struct Front {
    Kind kind;
    const float *x, *other;
    double eps;
};

// Where gradients go: of x, and of a gate's other; added to `beside` where there is a norm. to_x may be null, but for a
// gate.
struct Back {
    const float* beside;
    float *to_x, *to_other;
};

static_assert(sizeof(Frozen) == 6 * 8 && sizeof(Tuner) == 7 * 8 && sizeof(Part) == 5 * 8);
static_assert(sizeof(Fan) == 8 * 8 && sizeof(Front) == 4 * 8 && sizeof(Back) == 3 * 8);

namespace {

struct Block {
    int64_t part, first, rows;
};

// Offsets of an adapter's ranks, and their sum.
std::vector<int64_t> offsets(const Part& part) {
    std::vector<int64_t> found(part.count + 1);
    for (int64_t t = 0; t < part.count; t++) found[t + 1] = found[t] + part.tuners[t].rank;
    return found;
}

std::vector<Block> blocks_of(const Fan& fan) {
    std::vector<Block> found;
    for (int64_t p = 0; p < fan.num_parts; p++) {
        const int64_t end = fan.parts[p].first + fan.parts[p].rows;
        for (int64_t at = fan.parts[p].first; at < end; at += found.back().rows)
            found.push_back({p, at, tile_rows(end - at)});
    }
    return found;
}

// Columns whose panels of this depth are met together.
int64_t columns_at_once(int64_t depth) { return std::max(PANEL, PACKED / depth / PANEL * PANEL); }

// Panels of 32 columns, the last one perhaps 16, first of the others.
template <class Run>
void each_panel(int64_t columns, const Run& run) {
    for (int64_t at = 0; at < columns; at += PANEL) run(at, std::min(PANEL, columns - at));
}

// The input's rows: where they are, or made from what stands before.
void make_rows(const Front& front, int64_t in, int64_t first, int64_t rows, float* read) {
    for (int64_t row = first; row < first + rows; row++) {
        const int64_t at = row * in;
        if (front.kind == NORM)
            norm_row(front.x + at, front.other, read + at, in, (float)front.eps);
        else
            gate_row(front.x + at, front.other + at, read + at, in);
    }
}

// A part's matrices as its rows meet them on the way there: A^T side by side, and B^T of each times its scaling.
struct Forth {
    std::vector<int64_t> offset;
    Narrow downs;
    std::vector<Space> ups;  // (rank, out)

    Forth(const Part& part, const Fan& fan) : offset(offsets(part)), downs(offset.back(), fan.in) {
        for (int64_t t = 0; t < part.count; t++) {
            const Tuner& tuner = part.tuners[t];
            const int64_t out = fan.frozen[tuner.frozen].out;
            downs.take(tuner.down, tuner.rank, offset[t]);
            ups.emplace_back(tuner.rank * out);
            turn(tuner.up, out, tuner.rank, (float)tuner.scaling, ups[t].data(), out);
        }
    }
};

// And on the way back: B of each times its scaling, and A one above the other.
struct Return {
    std::vector<int64_t> offset;
    std::vector<Narrow> ups;
    Space downs;  // (ranks, in)

    Return(const Part& part, const Fan& fan) : offset(offsets(part)), downs(offset.back() * fan.in) {
        for (int64_t t = 0; t < part.count; t++) {
            const Tuner& tuner = part.tuners[t];
            ups.emplace_back(tuner.rank, fan.frozen[tuner.frozen].out);
            ups[t].take_turned(tuner.up, (float)tuner.scaling);
            std::copy_n(tuner.down, tuner.rank * fan.in, downs.data() + offset[t] * fan.in);
        }
    }
};

// Columns of a thin product's rows to their place.
void place(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) std::copy_n(from + i * from_row, columns, to + i * to_row);
}

// A part's thin products, (its rows, ranks), at a block's rows.
float* at_block(float* of_part, const Part& part, const Block& block, int64_t ranks) {
    return of_part + (block.first - part.first) * ranks;
}

void forward(const Fan& fan, const Front& front, const float* onto) {
    const int64_t in = fan.in;
    Space space(front.kind == PLAIN ? 0 : fan.rows * in), here(fan.panels ? 0 : columns_at_once(in) * in);
    const float* read = front.kind == PLAIN ? front.x : space.data();
    const std::vector<Block> blocks = blocks_of(fan);
    std::vector<Forth> parts;
    for (int64_t p = 0; p < fan.num_parts; p++) parts.emplace_back(fan.parts[p], fan);
    int64_t widest = 0;
    for (const Forth& forth : parts) widest = std::max(widest, forth.downs.width);
#pragma omp parallel num_threads(fan.threads) if (fan.threads > 1)
    for (int64_t m = 0; m < fan.matrices; m++) {
        const Frozen& frozen = fan.frozen[m];
        const int64_t step = columns_at_once(in);
        const float* kept = fan.panels;
        for (int64_t before = 0; kept && before < m; before++) kept += fan.frozen[before].out * in;
        Space found(m == 0 ? TALL * widest : 0);
        for (int64_t column = 0; column < frozen.out; column += step) {
            const int64_t columns = std::min(step, frozen.out - column);
            const float* packed = kept ? kept + column * in : here.data();
            if (!kept) {
#pragma omp for
                for (int64_t at = 0; at < columns; at += PANEL)
                    pack_panel({frozen.weight, frozen.row, frozen.column}, in, column + at,
                               std::min(PANEL, columns - at), here.data() + at * in);
            }
#pragma omp for
            for (size_t b = 0; b < blocks.size(); b++) {
                const Block& block = blocks[b];
                const Part& part = fan.parts[block.part];
                const Forth& forth = parts[block.part];
                const int64_t ranks = forth.offset.back();
                float* low = at_block(part.low, part, block, ranks);
                if (m == 0 && column == 0) {
                    if (front.kind != PLAIN) make_rows(front, in, block.first, block.rows, space.data());
                    if (ranks) {
                        forth.downs.product(read + block.first * in, block.rows, found.data());
                        place(found.data(), forth.downs.width, low, ranks, block.rows, ranks);
                    }
                }
                Factor factors[3] = {{read + block.first * in, in, nullptr, 0, in}};
                int64_t count = 1, tuner = 0;
                while (tuner < part.count && part.tuners[tuner].frozen != m) tuner++;
                const float* up = tuner < part.count ? forth.ups[tuner].data() + column : nullptr;
                if (up) factors[count++] = {low + forth.offset[tuner], ranks, nullptr, frozen.out, part.tuners[tuner].rank};
                if (frozen.bias) count++;
                each_panel(columns, [&](int64_t at, int64_t width) {
                    factors[0].right = packed + at * in;
                    factors[0].right_row = width;
                    if (up) factors[1].right = up + at;
                    if (frozen.bias) factors[count - 1] = bias_factor(frozen.bias + column + at);
                    const int64_t to = block.first * frozen.out + column + at;
                    sum_products<false>(block.rows, width, factors, count, onto ? onto + to : nullptr, frozen.out,
                                        frozen.beside + to, frozen.out);
                });
            }
        }
    }
}

// The gradient of the input becomes that of what stands before; a gate's result is made for `read` on the way.
void leave_rows(const Front& front, const Back& back, int64_t in, int64_t first, int64_t rows, const float* gradient,
                const float* inverse, float* read) {
    for (int64_t row = first; row < first + rows; row++) {
        const int64_t at = row * in;
        if (front.kind == NORM)
            norm_row_backward(gradient + at, front.x + at, front.other, inverse[row], back.beside + at, back.to_x + at, in);
        else
            gate_row_backward(gradient + at, front.x + at, front.other + at, back.to_x + at, back.to_other + at, read + at,
                              in);
    }
}

// left^T right, left (rows, columns) with left_row numbers from row to row, right (rows, width of a panel) likewise.
void sum_over_rows(const float* left, int64_t left_row, int64_t columns, const float* right, int64_t right_row,
                   int64_t width, int64_t rows, float* result) {
    for (int64_t at = 0, taken; at < columns; at += taken) {
        taken = tile_rows(columns - at);
        const Factor factor{left + at, left_row, right, right_row, rows};
        sum_products<true>(taken, width, &factor, 1, nullptr, 0, result + at * width, width);
    }
}

// Gradients of one part's adapter, by panels of their long side.
void to_adapter(const Fan& fan, const Part& part, const std::vector<int64_t>& offset, const float* below,
                const float* read) {
    const int64_t ranks = offset.back(), in = fan.in;
    const auto wants_down = [&](const Tuner& tuner) { return tuner.to_down != nullptr; };
    if (std::any_of(part.tuners, part.tuners + part.count, wants_down)) {
#pragma omp for nowait
        for (int64_t column = 0; column < in; column += PANEL) {
            const int64_t width = std::min(PANEL, in - column);
            Space found(ranks * width);
            sum_over_rows(below, ranks, ranks, read + part.first * in + column, in, width, part.rows, found.data());
            for (int64_t t = 0; t < part.count; t++)
                if (part.tuners[t].to_down)
                    place(found.data() + offset[t] * width, width, part.tuners[t].to_down + column, in,
                          part.tuners[t].rank, width);
        }
    }
    for (int64_t t = 0; t < part.count; t++) {
        const Tuner& tuner = part.tuners[t];
        const Frozen& frozen = fan.frozen[tuner.frozen];
        if (!tuner.to_up) continue;
#pragma omp for nowait
        for (int64_t column = 0; column < frozen.out; column += PANEL) {
            const int64_t width = std::min(PANEL, frozen.out - column);
            Space found(tuner.rank * width);
            sum_over_rows(part.low + offset[t], ranks, tuner.rank, frozen.beside + part.first * frozen.out + column,
                          frozen.out, width, part.rows, found.data());
            turn(found.data(), tuner.rank, width, (float)tuner.scaling, tuner.to_up + column * tuner.rank, tuner.rank);
        }
    }
}

// Of the way back: columns of the input from one matrix after the other, (sum of outs, width).
void pack_below(const Fan& fan, int64_t column, int64_t width, float* to) {
    for (int64_t m = 0; m < fan.matrices; to += fan.frozen[m++].out * width)
        pack_panel({fan.frozen[m].weight, fan.frozen[m].column, fan.frozen[m].row}, fan.frozen[m].out, column, width, to);
}

void backward(const Fan& fan, const Front& front, const Back& back) {
    const int64_t in = fan.in;
    int64_t depth = 0;
    for (int64_t m = 0; m < fan.matrices; m++) depth += fan.frozen[m].out;
    const bool wants_x = back.to_x != nullptr;
    const int64_t step = columns_at_once(depth);
    Space space(front.kind == PLAIN ? 0 : fan.rows * in), here(wants_x && !fan.panels ? step * depth : 0);
    Space gradient(front.kind == PLAIN || !wants_x ? 0 : fan.rows * in), inverse(fan.rows);
    const float* read = front.kind == PLAIN ? front.x : space.data();
    float* target = front.kind == PLAIN ? back.to_x : gradient.data();
    const std::vector<Block> blocks = blocks_of(fan);
    std::vector<Return> parts;
    std::vector<Space> belows;
    int64_t widest = 0;
    for (int64_t p = 0; p < fan.num_parts; p++) {
        parts.emplace_back(fan.parts[p], fan);
        belows.emplace_back(fan.parts[p].rows * parts[p].offset.back());
        for (const Narrow& up : parts[p].ups) widest = std::max(widest, up.width);
    }
#pragma omp parallel num_threads(fan.threads) if (fan.threads > 1)
    {
        Space found(TALL * widest);
        std::vector<Factor> factors(fan.matrices + 1);
        for (int64_t column = 0; column < (wants_x ? in : 1); column += step) {
            const int64_t columns = std::min(step, in - column);
            const float* packed = fan.panels ? fan.panels + column * depth : here.data();
            if (wants_x && !fan.panels) {
#pragma omp for
                for (int64_t at = 0; at < columns; at += PANEL)
                    pack_below(fan, column + at, std::min(PANEL, columns - at), here.data() + at * depth);
            }
#pragma omp for
            for (size_t b = 0; b < blocks.size(); b++) {
                const Block& block = blocks[b];
                const Part& part = fan.parts[block.part];
                const Return& own = parts[block.part];
                const int64_t ranks = own.offset.back();
                float* below = at_block(belows[block.part].data(), part, block, ranks);
                if (column == 0) {
                    for (int64_t t = 0; t < part.count; t++) {
                        const Frozen& frozen = fan.frozen[part.tuners[t].frozen];
                        own.ups[t].product(frozen.beside + block.first * frozen.out, block.rows, found.data());
                        place(found.data(), own.ups[t].width, below + own.offset[t], ranks, block.rows,
                              part.tuners[t].rank);
                    }
                    if (front.kind == NORM)
                        for (int64_t row = block.first; row < block.first + block.rows; row++)
                            inverse[row] = norm_row(front.x + row * in, front.other, space.data() + row * in, in, (float)front.eps);
                }
                if (!wants_x) continue;
                for (int64_t m = 0; m < fan.matrices; m++) {
                    const int64_t out = fan.frozen[m].out;
                    factors[m] = {fan.frozen[m].beside + block.first * out, out, nullptr, 0, out};
                }
                factors[fan.matrices] = {below, ranks, nullptr, in, ranks};
                each_panel(columns, [&](int64_t at, int64_t width) {
                    const float* from = packed + at * depth;
                    for (int64_t m = 0; m < fan.matrices; from += fan.frozen[m++].out * width) {
                        factors[m].right = from;
                        factors[m].right_row = width;
                    }
                    factors[fan.matrices].right = own.downs.data() + column + at;
                    sum_products<false>(block.rows, width, factors.data(), fan.matrices + (ranks > 0), nullptr, 0,
                                        target + block.first * in + column + at, in);
                });
                if (column + step >= in && front.kind != PLAIN)
                    leave_rows(front, back, in, block.first, block.rows, gradient.data(), inverse.data(), space.data());
            }
        }
        for (int64_t p = 0; p < fan.num_parts; p++)
            to_adapter(fan, fan.parts[p], parts[p].offset, belows[p].data(), read);
    }
}

}  // namespace

// Fills beside of every matrix (added to onto, (rows, out), where there is a single one and onto is not null), and low.
extern "C" void fan_forward(const Fan* fan, const Front* front, const float* onto) { forward(*fan, *front, onto); }

// Given the gradients of the results and low: gradients of the input and of the adapters.
extern "C" void fan_backward(const Fan* fan, const Front* front, const Back* back) { backward(*fan, *front, *back); }

// All matrices' panels, as large as the matrices, for the way there and for the way back; parts are not looked at.
extern "C" void pack_forth(const Fan* fan, float* to) {
    for (int64_t m = 0; m < fan->matrices; to += fan->frozen[m++].out * fan->in)
        each_panel(fan->frozen[m].out, [&](int64_t at, int64_t width) {
            pack_panel({fan->frozen[m].weight, fan->frozen[m].row, fan->frozen[m].column}, fan->in, at, width,
                       to + at * fan->in);
        });
}

extern "C" void pack_back(const Fan* fan, float* to) {
    int64_t depth = 0;
    for (int64_t m = 0; m < fan->matrices; m++) depth += fan->frozen[m].out;
    each_panel(fan->in, [&](int64_t at, int64_t width) { pack_below(*fan, at, width, to + at * depth); });
}
