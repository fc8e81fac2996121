// One token per slot through a whole decoder layer: what takes a model forty operations, each for a few numbers.
#include "rows.h"
#include "thin.h"

// A decoder layer's weights and form; query, key and value read the first norm, gate and up the second.
template <class T>
struct Layer {
    const T *first_norm, *second_norm;
    float first_eps, second_eps, scale;
    int64_t hidden, heads, groups, size;
    Thin<T> query, key, value, out, gate, up, down;
};

// What stands in the slots: keys and values (slots, groups, columns, size); row r in slot r, its token at column[r].
template <class T>
struct Slots {
    T *keys, *values;
    const int64_t* column;
    int64_t columns;
};

namespace {

// Products of one row with a matrix's rows, (rows, size): rows filled up to a multiple of 16, the last one again.
template <class T>
void row_products(const float* row, const T* matrix, int64_t rows, int64_t size, float* result) {
    for (int64_t first = 0; first < rows; first += WIDTH) {
        Floats found[WIDTH];
        for (int64_t t = 0; t < WIDTH; t++) {
            const T* other = matrix + std::min(first + t, rows - 1) * size;
            found[t] = load(row) * load(other);
            for (int64_t i = WIDTH; i < size; i += WIDTH) found[t] += load(row + i) * load(other + i);
        }
        store(result + first, sums_of(found));
    }
}

// The sum of a matrix's rows, each times its weight; 16 columns of it. Four sums, as each waits for its last addition.
template <class T>
Floats weighted(const float* weights, const T* matrix, int64_t rows, int64_t size) {
    Floats sums[4] = {};
    int64_t j = 0;
    for (; j + 4 <= rows; j += 4)
        for (int64_t t = 0; t < 4; t++) sums[t] += weights[j + t] * load(matrix + (j + t) * size);
    for (; j < rows; j++) sums[0] += weights[j] * load(matrix + j * size);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// One group of heads of one row: writes its key and value, then looks at all up to its own.
template <class T>
void attend(const Layer<T>& layer, const Slots<T>& slots, const T* query, const T* key, const T* value, const T* cos,
            const T* sin, T* result, int64_t task) {
    const int64_t size = layer.size, r = task / layer.groups, own = slots.column[r], seen = own + 1;
    const int64_t shared = layer.heads / layer.groups, angle = r * size;
    T *keys = slots.keys + task * slots.columns * size, *values = slots.values + task * slots.columns * size;
    rotate(keys + own * size, key + task * size, cos + angle, sin + angle, size, 1.0f, 1.0f);
    std::copy_n(value + task * size, size, values + own * size);
    Space turned(size), weights(rounded(seen));
    for (int64_t head = task * shared; head < (task + 1) * shared; head++) {
        rotate(turned.data(), query + head * size, cos + angle, sin + angle, size, 1.0f, layer.scale);
        row_products(turned.data(), keys, seen, size, weights.data());
        Floats tops = load(weights.data()), totals{};
        for (int64_t j = WIDTH; j < seen; j += WIDTH) tops = larger(load(weights.data() + j), tops);
        const float top = largest(tops);
        for (int64_t j = 0; j < seen; j += WIDTH) {
            const Floats found = first_lanes(exponential(load(weights.data() + j) - top), seen - j, Floats{});
            totals += found;
            store(weights.data() + j, found);
        }
        const float total = sum(totals);
        for (int64_t i = 0; i < size; i += WIDTH)
            store(result + head * size + i, weighted(weights.data(), values + i, seen, size) / total);
    }
}

template <class T>
void norm(const T* x, const T* weight, T* y, int64_t rows, int64_t size, float eps) {
    for (int64_t row = 0; row < rows; row++) norm_row(x + row * size, weight, y + row * size, size, eps);
}

template <class T>
void step(const Layer<T>& layer, const Slots<T>& slots, const T* x, const T* cos, const T* sin, T* result, int64_t rows,
          int threads) {
    const int64_t wide = layer.heads * layer.size, narrow = layer.groups * layer.size, inner = layer.gate.out;
    std::vector<T, Unset<T>> space(rows * (2 * layer.hidden + 2 * wide + 2 * narrow + 2 * inner));
    T *read = space.data(), *middle = read + rows * layer.hidden;
    T *query = middle + rows * layer.hidden, *key = query + rows * wide, *value = key + rows * narrow;
    T *attended = value + rows * narrow, *gate = attended + rows * wide, *up = gate + rows * inner;
    norm(x, layer.first_norm, read, rows, layer.hidden, layer.first_eps);
    thin_product(layer.query, read, nullptr, query, rows, threads);
    thin_product(layer.key, read, nullptr, key, rows, threads);
    thin_product(layer.value, read, nullptr, value, rows, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t task = 0; task < rows * layer.groups; task++)
        attend<T>(layer, slots, query, key, value, cos, sin, attended, task);
    thin_product(layer.out, attended, x, middle, rows, threads);
    norm<T>(middle, layer.second_norm, read, rows, layer.hidden, layer.second_eps);
    thin_product(layer.gate, read, nullptr, gate, rows, threads);
    thin_product(layer.up, read, nullptr, up, rows, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++)
        gate_row<T>(gate + row * inner, up + row * inner, gate + row * inner, inner);
    thin_product(layer.down, gate, middle, result, rows, threads);
}

}  // namespace

// x and result: (rows, hidden), not the same; cos and sin: (rows, size).
extern "C" void decode(const Layer<float>* layer, const Slots<float>* slots, const float* x, const float* cos,
                       const float* sin, float* result, int64_t rows, int threads) {
    step(*layer, *slots, x, cos, sin, result, rows, threads);
}

extern "C" void decode_bfloat16(const Layer<BFloat16>* layer, const Slots<BFloat16>* slots, const BFloat16* x,
                                const BFloat16* cos, const BFloat16* sin, BFloat16* result, int64_t rows, int threads) {
    step(*layer, *slots, x, cos, sin, result, rows, threads);
}
