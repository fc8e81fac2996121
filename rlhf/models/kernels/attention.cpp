// Causal attention within each sequence of a packed row, rotary positions included; short sequences, fp32.
//
// Shapes: query, its gradient and the result (tokens, heads, size); key and value (tokens, groups, size); cos and sin
// (tokens, size); normalizer (heads, tokens): the log of each softmax's denominator. Sequence s has tokens starts[s] to
// starts[s + 1]. Heads of a group share its key and value. size is a multiple of 16.
#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 64;  // queries whose scores are alive at a time

struct Shape {
    int64_t heads, groups, size;
    float scale;
};

struct Span {
    int64_t start, length;
};

// (length, size) of one head, rows filled with zeros up to a multiple of 16, turned or as they are.
void gather(float* to, const float* from, Span span, int64_t row, int64_t size, const float* cos, const float* sin,
            float scale) {
    for (int64_t t = 0; t < span.length; t++) {
        const float* in = from + (span.start + t) * row;
        const int64_t at = (span.start + t) * size;
        if (cos)
            rotate(to + t * size, in, cos + at, sin + at, size, 1.0f, scale);
        else
            std::copy(in, in + size, to + t * size);
    }
    std::fill(to + span.length * size, to + rounded(span.length) * size, 0.0f);
}

// (length, size) -> (size, rounded length)
void transpose(float* to, const float* from, int64_t length, int64_t size) {
    const int64_t width = rounded(length);
    for (int64_t first = 0; first < width; first += WIDTH)
        for (int64_t i = 0; i < size; i++)
            for (int64_t t = first; t < first + WIDTH; t++) to[i * width + t] = from[t * size + i];
}

// Scores of one row become probabilities; keys behind the query get 0. Returns the normalizer.
float softmax(float* row, int64_t seen, int64_t width) {
    float top = row[0], total = 0;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < seen; j++) top = std::max(top, row[j]);
#pragma omp simd
    for (int64_t j = 0; j < width; j++) row[j] = j < seen ? exponential(row[j] - top) : 0.0f;
    for (int64_t j = 0; j < width; j += WIDTH) total += sum(load(row + j));
    const float share = 1.0f / total;
#pragma omp simd
    for (int64_t j = 0; j < width; j++) row[j] *= share;
    return top + std::log(total);
}

void forward_group(const float* query, const float* key, const float* value, const float* cos, const float* sin,
                   float* result, float* normalizer, Span span, int64_t group, int64_t tokens, Shape shape) {
    const int64_t size = shape.size, length = span.length, width = rounded(length), shared = shape.heads / shape.groups;
    std::vector<float> keys(width * size), turned(width * size), queries(width * size), scores(WIDTH * width);
    gather(keys.data(), key + group * size, span, shape.groups * size, size, cos, sin, 1.0f);
    transpose(turned.data(), keys.data(), length, size);
    const float* values = value + (span.start * shape.groups + group) * size;
    for (int64_t head = group * shared; head < (group + 1) * shared; head++) {
        gather(queries.data(), query + head * size, span, shape.heads * size, size, cos, sin, shape.scale);
        for (int64_t first = 0; first < length; first += WIDTH) {
            const int64_t rows = std::min(WIDTH, length - first), seen = first + rows, near = rounded(seen);
            multiply({queries.data() + first * size, size, 1}, turned.data(), width, scores.data(), width, rows, near,
                     size, false);
            for (int64_t i = 0; i < rows; i++)
                normalizer[head * tokens + span.start + first + i] =
                    softmax(scores.data() + i * width, first + i + 1, near);
            multiply({scores.data(), width, 1}, values, shape.groups * size,
                     result + ((span.start + first) * shape.heads + head) * size, shape.heads * size, rows, size, seen,
                     false);
        }
    }
}

struct Gradients {
    float *query, *key, *value;
};

// Probabilities and the gradients of scores, for rows first to first + rows; both (rows, width).
void differentiate(float* weights, float* slopes, const float* normalizer, const float* given, const float* result,
                   int64_t first, int64_t rows, int64_t near, int64_t width, int64_t row, int64_t size) {
    for (int64_t i = 0; i < rows; i++) {
        float *weight = weights + i * width, *slope = slopes + i * width, along = 0;
        const float *g = given + i * row, *r = result + i * row, level = normalizer[i];
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < size; j++) along += g[j] * r[j];
        const int64_t seen = first + i + 1;
#pragma omp simd
        for (int64_t j = 0; j < near; j++) {
            weight[j] = j < seen ? exponential(weight[j] - level) : 0.0f;
            slope[j] = weight[j] * (slope[j] - along);
        }
    }
}

void backward_group(const float* gradient, const float* query, const float* key, const float* value, const float* cos,
                    const float* sin, const float* result, const float* normalizer, Gradients back, Span span,
                    int64_t group, int64_t tokens, Shape shape) {
    const int64_t size = shape.size, length = span.length, width = rounded(length), shared = shape.heads / shape.groups;
    const int64_t row = shape.heads * size, narrow = shape.groups * size, plane = width * size;
    std::vector<float> space(6 * plane), scores(2 * BLOCK * width), to_keys(plane), to_values(plane);
    float *keys = space.data(), *turned = keys + plane, *values = turned + plane, *values_turned = values + plane;
    float *queries = values_turned + plane, *to_query = queries + plane;
    float *weights = scores.data(), *slopes = weights + BLOCK * width;
    gather(keys, key + group * size, span, narrow, size, cos, sin, 1.0f);
    transpose(turned, keys, length, size);
    gather(values, value + group * size, span, narrow, size, nullptr, nullptr, 1.0f);
    transpose(values_turned, values, length, size);
    for (int64_t head = group * shared; head < (group + 1) * shared; head++) {
        gather(queries, query + head * size, span, row, size, cos, sin, shape.scale);
        for (int64_t first = 0; first < length; first += BLOCK) {
            const int64_t rows = std::min(BLOCK, length - first), seen = first + rows, near = rounded(seen);
            const int64_t at = ((span.start + first) * shape.heads + head) * size;
            const float* given = gradient + at;
            multiply({queries + first * size, size, 1}, turned, width, weights, width, rows, near, size, false);
            multiply({given, row, 1}, values_turned, width, slopes, width, rows, near, size, false);
            differentiate(weights, slopes, normalizer + head * tokens + span.start + first, given, result + at, first,
                          rows, near, width, row, size);
            multiply({weights, 1, width}, given, row, to_values.data(), size, seen, size, rows, true);
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

}  // namespace

extern "C" void attention(const float* query, const float* key, const float* value, const float* cos, const float* sin,
                          float* result, float* normalizer, const int64_t* starts, int64_t sequences, int64_t heads,
                          int64_t groups, int64_t size, float scale, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (int64_t task = 0; task < sequences * groups; task++) {
        const int64_t s = task / groups;
        forward_group(query, key, value, cos, sin, result, normalizer, {starts[s], starts[s + 1] - starts[s]},
                      task % groups, starts[sequences], {heads, groups, size, scale});
    }
}

extern "C" void attention_backward(const float* gradient, const float* query, const float* key, const float* value,
                                   const float* cos, const float* sin, const float* result, const float* normalizer,
                                   float* to_query, float* to_key, float* to_value, const int64_t* starts,
                                   int64_t sequences, int64_t heads, int64_t groups, int64_t size, float scale,
                                   int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (int64_t task = 0; task < sequences * groups; task++) {
        const int64_t s = task / groups;
        backward_group(gradient, query, key, value, cos, sin, result, normalizer, {to_query, to_key, to_value},
                       {starts[s], starts[s + 1] - starts[s]}, task % groups, starts[sequences],
                       {heads, groups, size, scale});
    }
}
