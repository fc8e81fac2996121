// One token per slot through a whole decoder layer: what takes a model forty operations, each for a few numbers.
#include "thin.h"
#include "vectors.h"

extern "C" void rms_norm(const float* x, const float* weight, float* y, float* inverse, int64_t rows, int64_t size,
                         float eps, int threads);
extern "C" void gated(const float* gate, const float* up, float* result, int64_t rows, int64_t size, int threads);

// A decoder layer's weights and form; query, key and value read the first norm, gate and up the second.
struct Layer {
    const float *first_norm, *second_norm;
    float first_eps, second_eps, scale;
    int64_t hidden, heads, groups, size;
    Thin query, key, value, out, gate, up, down;
};

// What stands in the slots: keys and values (slots, groups, columns, size); row r in slot r, its token at column[r].
struct Slots {
    float *keys, *values;
    const int64_t* column;
    int64_t columns;
};

namespace {

float dot(const float* a, const float* b, int64_t size) {
    Floats total{};
    for (int64_t i = 0; i < size; i += WIDTH) total += load(a + i) * load(b + i);
    return sum(total);
}

// One group of heads of one row: writes its key and value, then looks at all up to its own.
void attend(const Layer& layer, const Slots& slots, const float* query, const float* key, const float* value,
            const float* cos, const float* sin, float* result, int64_t task) {
    const int64_t size = layer.size, r = task / layer.groups, own = slots.column[r], seen = own + 1;
    const int64_t shared = layer.heads / layer.groups, angle = r * size;
    float *keys = slots.keys + task * slots.columns * size, *values = slots.values + task * slots.columns * size;
    rotate(keys + own * size, key + task * size, cos + angle, sin + angle, size, 1.0f, 1.0f);
    std::copy_n(value + task * size, size, values + own * size);
    std::vector<float> turned(size), weights(seen);
    for (int64_t head = task * shared; head < (task + 1) * shared; head++) {
        rotate(turned.data(), query + head * size, cos + angle, sin + angle, size, 1.0f, layer.scale);
        float top = -INFINITY, total = 0;
        for (int64_t j = 0; j < seen; j++) weights[j] = dot(turned.data(), keys + j * size, size);
        for (int64_t j = 0; j < seen; j++) top = std::max(top, weights[j]);
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < seen; j++) total += weights[j] = exponential(weights[j] - top);
        for (int64_t i = 0; i < size; i += WIDTH) {
            Floats mean{};
            for (int64_t j = 0; j < seen; j++) mean += weights[j] * load(values + j * size + i);
            store(result + head * size + i, mean / total);
        }
    }
}

}  // namespace

// x and result: (rows, hidden), not the same; cos and sin: (rows, size).
extern "C" void decode(const Layer* layer, const Slots* slots, const float* x, const float* cos, const float* sin,
                       float* result, int64_t rows, int threads) {
    const int64_t wide = layer->heads * layer->size, narrow = layer->groups * layer->size, inner = layer->gate.out;
    std::vector<float> space(rows * (2 * layer->hidden + 2 * wide + 2 * narrow + 2 * inner + 1));
    float *inverse = space.data(), *read = inverse + rows, *middle = read + rows * layer->hidden;
    float *query = middle + rows * layer->hidden, *key = query + rows * wide, *value = key + rows * narrow;
    float *attended = value + rows * narrow, *gate = attended + rows * wide, *up = gate + rows * inner;
    rms_norm(x, layer->first_norm, read, inverse, rows, layer->hidden, layer->first_eps, 1);
    thin_product(layer->query, read, nullptr, query, rows, threads);
    thin_product(layer->key, read, nullptr, key, rows, threads);
    thin_product(layer->value, read, nullptr, value, rows, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t task = 0; task < rows * layer->groups; task++)
        attend(*layer, *slots, query, key, value, cos, sin, attended, task);
    thin_product(layer->out, attended, x, middle, rows, threads);
    rms_norm(middle, layer->second_norm, read, inverse, rows, layer->hidden, layer->second_eps, 1);
    thin_product(layer->gate, read, nullptr, gate, rows, threads);
    thin_product(layer->up, read, nullptr, up, rows, threads);
    gated(gate, up, gate, rows, inner, threads);
    thin_product(layer->down, gate, middle, result, rows, threads);
}
