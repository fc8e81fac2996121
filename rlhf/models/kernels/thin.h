// A frozen linear layer with one adapter, for a handful of tokens; all numbers are floats, or all BFloat16.
#pragma once

#include "bfloat16.h"

// weight (out, in); bias (out,) or null; the adapter's down (rank, in) and up (out, rank), rank 0 without one. panels:
// null, or weight, down and up once more as pack_thin (thin_panels.cpp) orders them.
template <class T>
struct Thin {
    const T *weight, *bias, *down, *up;
    int64_t in, out, rank;
    float scaling;
    const T* panels;
};

// result = x weight^T + scaling * x down^T up^T + bias + onto; x (rows, in), onto (or null) and result (rows, out).
void thin_product(const Thin<float>& layer, const float* x, const float* onto, float* result, int64_t rows,
                  int threads);
void thin_product(const Thin<BFloat16>& layer, const BFloat16* x, const BFloat16* onto, BFloat16* result, int64_t rows,
                  int threads);

// The same by a layer's panels.
void panel_product(const Thin<float>& layer, const float* x, const float* onto, float* result, int64_t rows,
                   int threads);
