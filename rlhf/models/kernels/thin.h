// A frozen linear layer with one adapter, for a handful of tokens.
#pragma once

#include <cstdint>

// weight (out, in); bias (out,) or null; the adapter's down (rank, in) and up (out, rank), rank 0 without one.
struct Thin {
    const float *weight, *bias, *down, *up;
    int64_t in, out, rank;
    float scaling;
};

// result = x weight^T + scaling * x down^T up^T + bias + onto; x (rows, in), onto (or null) and result (rows, out).
void thin_product(const Thin& layer, const float* x, const float* onto, float* result, int64_t rows, int threads);
