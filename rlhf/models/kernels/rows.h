// The norm and the gate of one row, its numbers floats or wider when computed with (bfloat16).
#pragma once

#include "vectors.h"

// y = x * factor * weight with factor = 1 / sqrt(mean(x^2) + eps), which is returned (arXiv:1910.07467).
template <class T>
static inline float norm_row(const T* x, const T* weight, T* y, int64_t size, float eps) {
    Floats squares{};
    for (int64_t i = 0; i < size; i += WIDTH) {
        const Floats some = load_some(x + i, size - i);
        squares += some * some;
    }
    const float factor = 1.0f / std::sqrt(sum(squares) / size + eps);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) y[i] = x[i] * factor * weight[i];
    return factor;
}

// silu(gate) * up (arXiv:2002.05202); result may be gate.
template <class T>
static inline void gate_row(const T* gate, const T* up, T* result, int64_t size) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) result[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}
