// What one adapter adds to frozen matrices that read the same input, and its gradients (arXiv:2106.09685). All numbers
// are floats, or BFloat16; it computes with floats. Widths are multiples of 16, ranks are free.
//
// Libraries meet such products with a call each, for a few rows of which most is preparation. Here a block of rows
// stays in the cache while all matrices of the adapter go over it.
#include <type_traits>

#include "narrow.h"

// A frozen matrix's adapter: down (rank, in), up (out, rank). beside (rows, out): the matrix's results, which are added
// to, or their gradients. to_down and to_up: where gradients go, null for none.
template <class T>
struct Member {
    const T *down, *up;
    T *beside, *to_down, *to_up;
    int64_t rank, out;
    float scaling;
};

namespace {

constexpr int64_t ROWS = 32;     // that stay in the cache together
constexpr int64_t COLUMNS = 64;  // of a gradient that is summed over all rows
constexpr int64_t DEPTH = 128;   // rows of such a sum that are met in one stretch

// The whole adapter: its members' ranks stand side by side in low and below, from offset[m] on.
template <class T>
struct Adapter {
    const Member<T>* members;
    int64_t count, in, rows;
    int threads;
    std::vector<int64_t> offset;

    Adapter(const Member<T>* members, int64_t count, int64_t in, int64_t rows, int threads)
        : members(members), count(count), in(in), rows(rows), threads(threads), offset(count + 1) {
        for (int64_t m = 0; m < count; m++) offset[m + 1] = offset[m] + members[m].rank;
    }

    int64_t ranks() const { return offset[count]; }
};

// Rows as floats: where they are, or copied to space.
inline const float* widened(const float* from, int64_t, float*) { return from; }
inline const float* widened(const BFloat16* from, int64_t numbers, float* space) {
    for (int64_t i = 0; i < numbers; i += WIDTH) store(space + i, load(from + i));
    return space;
}

template <class T>
void forward(const Adapter<T>& adapter, const T* x, T* low) {
    const int64_t ranks = adapter.ranks(), in = adapter.in;
    Narrow downs(ranks, in);
    std::vector<Buffer> ups;
    for (int64_t m = 0; m < adapter.count; m++) {
        const Member<T>& member = adapter.members[m];
        downs.take(member.down, member.rank, adapter.offset[m]);
        ups.emplace_back(member.rank * member.out);
        turn(member.up, member.out, member.rank, member.scaling, ups[m].data(), member.out);
    }
#pragma omp parallel for num_threads(adapter.threads) if (adapter.threads > 1)
    for (int64_t first = 0; first < adapter.rows; first += ROWS) {
        const int64_t rows = std::min(ROWS, adapter.rows - first), width = downs.width;
        Buffer space(std::is_same_v<T, float> ? 0 : rows * in), inner(rows * width);
        downs.product(widened(x + first * in, rows * in, space.data()), rows, inner.data());
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < ranks; j++)  // as it is kept, rounded where that is shorter
                inner[i * width + j] = low[(first + i) * ranks + j] = inner[i * width + j];
        for (int64_t m = 0; m < adapter.count; m++) {
            const Member<T>& member = adapter.members[m];
            multiply({inner.data() + adapter.offset[m], width, 1}, ups[m].data(), member.out,
                     member.beside + first * member.out, member.out, rows, member.out, member.rank, true);
        }
    }
}

// below = scaling * gradients up, (rows, ranks); back (rows, in), unless null, += below down.
template <class T>
void to_input(const Adapter<T>& adapter, float* below, T* back) {
    const int64_t ranks = adapter.ranks(), in = adapter.in;
    std::vector<T> downs;
    std::vector<Narrow> ups;
    for (int64_t m = 0; m < adapter.count; m++) {
        const Member<T>& member = adapter.members[m];
        downs.insert(downs.end(), member.down, member.down + member.rank * in);
        ups.emplace_back(member.rank, member.out);
        ups[m].take_turned(member.up, member.scaling);
    }
#pragma omp parallel for num_threads(adapter.threads) if (adapter.threads > 1)
    for (int64_t first = 0; first < adapter.rows; first += ROWS) {
        const int64_t rows = std::min(ROWS, adapter.rows - first);
        for (int64_t m = 0; m < adapter.count; m++) {
            const Member<T>& member = adapter.members[m];
            const int64_t width = ups[m].width;
            Buffer space(std::is_same_v<T, float> ? 0 : rows * member.out), own(rows * width);
            ups[m].product(widened(member.beside + first * member.out, rows * member.out, space.data()), rows, own.data());
            for (int64_t i = 0; i < rows; i++)
                std::copy_n(own.data() + i * width, member.rank, below + (first + i) * ranks + adapter.offset[m]);
        }
        if (back)
            multiply({below + first * ranks, ranks, 1}, downs.data(), in, back + first * in, in, rows, in, ranks, true);
    }
}

// left^T right, left (rows, rank) with ranks from row to row, right (rows, size): (rank, size), or turned.
template <class T>
void sum_over_rows(const float* left, int64_t ranks, int64_t rank, const T* right, int64_t rows, int64_t size, T* result,
                   bool turned, float scaling, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t column = 0; column < size; column += COLUMNS) {
        const int64_t width = std::min(COLUMNS, size - column);
        Buffer found(rank * width);
        for (int64_t first = 0; first < rows; first += DEPTH)
            multiply({left + first * ranks, 1, ranks}, right + first * size + column, size, found.data(), width, rank,
                     width, std::min(DEPTH, rows - first), true);
        for (int64_t i = 0; i < rank; i++)
            for (int64_t j = 0; j < width; j++)
                result[turned ? (column + j) * rank + i : i * size + column + j] = scaling * found[i * width + j];
    }
}

template <class T>
void backward(const Adapter<T>& adapter, const T* x, const T* low, T* back) {
    const int64_t ranks = adapter.ranks();
    Buffer below(adapter.rows * ranks), space(std::is_same_v<T, float> ? 0 : adapter.rows * ranks);
    to_input(adapter, below.data(), back);
    for (size_t i = 0; i < space.size(); i++) space[i] = low[i];
    const float* inner;
    if constexpr (std::is_same_v<T, float>)
        inner = low;
    else
        inner = space.data();
    for (int64_t m = 0; m < adapter.count; m++) {
        const Member<T>& member = adapter.members[m];
        const int64_t offset = adapter.offset[m];
        if (member.to_up)
            sum_over_rows(inner + offset, ranks, member.rank, member.beside, adapter.rows, member.out, member.to_up,
                          true, member.scaling, adapter.threads);
        if (member.to_down)
            sum_over_rows(below.data() + offset, ranks, member.rank, x, adapter.rows, adapter.in, member.to_down, false,
                          1.0f, adapter.threads);
    }
}

}  // namespace

// x (rows, in); low (rows, sum of ranks) is filled: x down^T of each member side by side.
extern "C" void adapt(const Member<float>* members, const float* x, float* low, int64_t count, int64_t in, int64_t rows,
                      int threads) {
    forward({members, count, in, rows, threads}, x, low);
}

extern "C" void adapt_bfloat16(const Member<BFloat16>* members, const BFloat16* x, BFloat16* low, int64_t count,
                               int64_t in, int64_t rows, int threads) {
    forward({members, count, in, rows, threads}, x, low);
}

// back (rows, in), or null, is added to.
extern "C" void adapt_backward(const Member<float>* members, const float* x, const float* low, float* back,
                               int64_t count, int64_t in, int64_t rows, int threads) {
    backward({members, count, in, rows, threads}, x, low, back);
}

extern "C" void adapt_backward_bfloat16(const Member<BFloat16>* members, const BFloat16* x, const BFloat16* low,
                                        BFloat16* back, int64_t count, int64_t in, int64_t rows, int threads) {
    backward({members, count, in, rows, threads}, x, low, back);
}
