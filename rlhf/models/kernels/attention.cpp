// Causal attention within each sequence of a packed row, rotary positions included; short sequences. All numbers are
// floats, or BFloat16 but for the normalizer; it computes with floats.
//
// Shapes: query, its gradient and the result (tokens, heads, size); key and value (tokens, groups, size); cos and sin
// (tokens, size); normalizer (heads, tokens): the log of each softmax's denominator. Sequence s has tokens starts[s] to
// starts[s + 1]. Heads of a group share its key and value. size is a multiple of 16.
#include <type_traits>

#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 16;  // queries whose scores are alive at a time

struct Shape {
    int64_t heads, groups, size;
    float scale;
};

struct Span {
    int64_t start, length;
};

// (length, size) of one head, rows filled with zeros up to a multiple of 16, turned or as they are.
template <class T>
void gather(float* to, const T* from, Span span, int64_t row, int64_t size, const T* cos, const T* sin, float scale) {
    for (int64_t t = 0; t < span.length; t++) {
        const T* in = from + (span.start + t) * row;
        const int64_t at = (span.start + t) * size;
        if (cos)
            rotate(to + t * size, in, cos + at, sin + at, size, 1.0f, scale);
        else
            std::copy(in, in + size, to + t * size);
    }
    std::fill(to + span.length * size, to + rounded(span.length) * size, 0.0f);
}

// Rows of one head as floats: where they are, or copied to space; row becomes the distance from one to the next.
inline const float* widened(const float* from, int64_t, int64_t, int64_t&, float*) { return from; }
inline const float* widened(const BFloat16* from, int64_t rows, int64_t size, int64_t& row, float* space) {
    for (int64_t i = 0; i < rows; i++) std::copy_n(from + i * row, size, space + i * size);
    row = size;
    return space;
}

// Where a product of rows is to go: to its place, or to space, from where rounded_to takes it.
inline float* goal(float* result, int64_t, int64_t&, float*) { return result; }
inline float* goal(BFloat16*, int64_t size, int64_t& row, float* space) {
    row = size;
    return space;
}
inline void rounded_to(float*, const float*, int64_t, int64_t, int64_t) {}
inline void rounded_to(BFloat16* result, const float* space, int64_t rows, int64_t size, int64_t row) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < size; j += WIDTH) store(result + i * row + j, load(space + i * size + j));
}

// Scores of one row become the numerators of their softmax; keys behind the query get 0. Returns the denominator, and
// the largest score.
float softmax(float* row, int64_t seen, int64_t width, float& top) {
    const Floats nothing = Floats{} - INFINITY;
    Floats tops = nothing, totals{};
    for (int64_t j = 0; j < width; j += WIDTH) tops = larger(first_lanes(load(row + j), seen - j, nothing), tops);
    top = largest(tops);
    for (int64_t j = 0; j < width; j += WIDTH) {
        const Floats found = first_lanes(exponential(load(row + j) - top), seen - j, Floats{});
        totals += found;
        store(row + j, found);
    }
    return sum(totals);
}

template <class T>
void forward_group(const T* query, const T* key, const T* value, const T* cos, const T* sin, T* result,
                   float* normalizer, Span span, int64_t group, int64_t tokens, Shape shape) {
    const int64_t size = shape.size, length = span.length, width = rounded(length), shared = shape.heads / shape.groups;
    Space keys(width * size), turned(width * size), queries(width * size), scores(WIDTH * width);
    Space wide(std::is_same_v<T, float> ? 0 : width * size), drawn(WIDTH * size);
    gather(keys.data(), key + group * size, span, shape.groups * size, size, cos, sin, 1.0f);
    turn(keys.data(), width, size, 1.0f, turned.data(), width);
    int64_t narrow = shape.groups * size;
    const float* values = widened(value + (span.start * shape.groups + group) * size, length, size, narrow, wide.data());
    for (int64_t head = group * shared; head < (group + 1) * shared; head++) {
        gather(queries.data(), query + head * size, span, shape.heads * size, size, cos, sin, shape.scale);
        for (int64_t first = 0; first < length; first += WIDTH) {
            const int64_t rows = std::min(WIDTH, length - first), seen = first + rows, near = rounded(seen);
            multiply({queries.data() + first * size, size, 1}, turned.data(), width, scores.data(), width, rows, near,
                     size, false);
            float shares[WIDTH];
            for (int64_t i = 0; i < rows; i++) {
                float top;
                const float total = softmax(scores.data() + i * width, first + i + 1, near, top);
                shares[i] = 1.0f / total;
                normalizer[head * tokens + span.start + first + i] = top + std::log(total);
            }
            T* own = result + ((span.start + first) * shape.heads + head) * size;
            int64_t row = shape.heads * size;
            float* to = goal(own, size, row, drawn.data());
            multiply({scores.data(), width, 1}, values, narrow, to, row, rows, size, seen, false);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < size; j += WIDTH) store(to + i * row + j, shares[i] * load(to + i * row + j));
            rounded_to(own, drawn.data(), rows, size, shape.heads * size);
        }
    }
}

template <class T>
struct Gradients {
    T *query, *key, *value;
};

// Probabilities and the gradients of scores, for rows first to first + rows; both (rows, width).
template <class T>
void differentiate(float* weights, float* slopes, const float* normalizer, const T* given, const T* result,
                   int64_t first, int64_t rows, int64_t near, int64_t width, int64_t row, int64_t size) {
    for (int64_t i = 0; i < rows; i++) {
        float *weight = weights + i * width, *slope = slopes + i * width;
        Floats products{};
        for (int64_t j = 0; j < size; j += WIDTH) products += load(given + i * row + j) * load(result + i * row + j);
        const float level = normalizer[i], along = sum(products);
        const int64_t seen = first + i + 1;
        for (int64_t j = 0; j < near; j += WIDTH) {
            const Floats found = first_lanes(exponential(load(weight + j) - level), seen - j, Floats{});
            store(weight + j, found);
            store(slope + j, found * (load(slope + j) - along));
        }
    }
}

template <class T>
void backward_group(const T* gradient, const T* query, const T* key, const T* value, const T* cos, const T* sin,
                    const T* result, const float* normalizer, Gradients<T> back, Span span, int64_t group,
                    int64_t tokens, Shape shape) {
    const int64_t size = shape.size, length = span.length, width = rounded(length), shared = shape.heads / shape.groups;
    const int64_t row = shape.heads * size, narrow = shape.groups * size, plane = width * size;
    Space space(6 * plane), scores(2 * BLOCK * width);
    Buffer to_keys(plane), to_values(plane);
    Space wide(std::is_same_v<T, float> ? 0 : BLOCK * size);
    const T* plain = nullptr;
    float *keys = space.data(), *turned = keys + plane, *values = turned + plane, *values_turned = values + plane;
    float *queries = values_turned + plane, *to_query = queries + plane;
    float *weights = scores.data(), *slopes = weights + BLOCK * width;
    gather(keys, key + group * size, span, narrow, size, cos, sin, 1.0f);
    turn(keys, width, size, 1.0f, turned, width);
    gather(values, value + group * size, span, narrow, size, plain, plain, 1.0f);
    turn(values, width, size, 1.0f, values_turned, width);
    for (int64_t head = group * shared; head < (group + 1) * shared; head++) {
        gather(queries, query + head * size, span, row, size, cos, sin, shape.scale);
        for (int64_t first = 0; first < length; first += BLOCK) {
            const int64_t rows = std::min(BLOCK, length - first), seen = first + rows, near = rounded(seen);
            const int64_t at = ((span.start + first) * shape.heads + head) * size;
            int64_t step = row;
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < size; j += 64 / (int64_t)sizeof(T)) __builtin_prefetch(result + at + i * row + j);
            const float* given = widened(gradient + at, rows, size, step, wide.data());
            multiply({queries + first * size, size, 1}, turned, width, weights, width, rows, near, size, false);
            multiply({given, step, 1}, values_turned, width, slopes, width, rows, near, size, false);
            differentiate(weights, slopes, normalizer + head * tokens + span.start + first, gradient + at, result + at,
                          first, rows, near, width, row, size);
            multiply({weights, 1, width}, given, step, to_values.data(), size, seen, size, rows, true);
            multiply({slopes, 1, width}, queries + first * size, size, to_keys.data(), size, seen, size, rows, true);
            multiply({slopes, width, 1}, keys, size, to_query, size, rows, size, seen, false);
            for (int64_t i = 0; i < rows; i++) {
                const int64_t angle = (span.start + first + i) * size;
                rotate(back.query + at + i * row, to_query + i * size, cos + angle, sin + angle, size, -1.0f,
                       shape.scale);
            }
        }
    }
    for (int64_t t = 0; t < length; t++) {
        const int64_t at = (span.start + t) * narrow + group * size, angle = (span.start + t) * size;
        rotate(back.key + at, to_keys.data() + t * size, cos + angle, sin + angle, size, -1.0f, 1.0f);
        std::copy_n(to_values.data() + t * size, size, back.value + at);
    }
}

template <class T>
void attend(const T* query, const T* key, const T* value, const T* cos, const T* sin, T* result, float* normalizer,
            const int64_t* starts, int64_t sequences, Shape shape, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (int64_t task = 0; task < sequences * shape.groups; task++) {
        const int64_t s = task / shape.groups;
        forward_group(query, key, value, cos, sin, result, normalizer, {starts[s], starts[s + 1] - starts[s]},
                      task % shape.groups, starts[sequences], shape);
    }
}

template <class T>
void attend_backward(const T* gradient, const T* query, const T* key, const T* value, const T* cos, const T* sin,
                     const T* result, const float* normalizer, Gradients<T> back, const int64_t* starts,
                     int64_t sequences, Shape shape, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (int64_t task = 0; task < sequences * shape.groups; task++) {
        const int64_t s = task / shape.groups;
        backward_group(gradient, query, key, value, cos, sin, result, normalizer, back,
                       {starts[s], starts[s + 1] - starts[s]}, task % shape.groups, starts[sequences], shape);
    }
}

}  // namespace

extern "C" void attention(const float* query, const float* key, const float* value, const float* cos, const float* sin,
                          float* result, float* normalizer, const int64_t* starts, int64_t sequences, int64_t heads,
                          int64_t groups, int64_t size, float scale, int threads) {
    attend(query, key, value, cos, sin, result, normalizer, starts, sequences, {heads, groups, size, scale}, threads);
}

extern "C" void attention_bfloat16(const BFloat16* query, const BFloat16* key, const BFloat16* value,
                                   const BFloat16* cos, const BFloat16* sin, BFloat16* result, float* normalizer,
                                   const int64_t* starts, int64_t sequences, int64_t heads, int64_t groups,
                                   int64_t size, float scale, int threads) {
    attend(query, key, value, cos, sin, result, normalizer, starts, sequences, {heads, groups, size, scale}, threads);
}

extern "C" void attention_backward(const float* gradient, const float* query, const float* key, const float* value,
                                   const float* cos, const float* sin, const float* result, const float* normalizer,
                                   float* to_query, float* to_key, float* to_value, const int64_t* starts,
                                   int64_t sequences, int64_t heads, int64_t groups, int64_t size, float scale,
                                   int threads) {
    attend_backward(gradient, query, key, value, cos, sin, result, normalizer, {to_query, to_key, to_value}, starts,
                    sequences, {heads, groups, size, scale}, threads);
}

extern "C" void attention_backward_bfloat16(const BFloat16* gradient, const BFloat16* query, const BFloat16* key,
                                            const BFloat16* value, const BFloat16* cos, const BFloat16* sin,
                                            const BFloat16* result, const float* normalizer, BFloat16* to_query,
                                            BFloat16* to_key, BFloat16* to_value, const int64_t* starts,
                                            int64_t sequences, int64_t heads, int64_t groups, int64_t size,
                                            float scale, int threads) {
    attend_backward(gradient, query, key, value, cos, sin, result, normalizer, {to_query, to_key, to_value}, starts,
                    sequences, {heads, groups, size, scale}, threads);
}
