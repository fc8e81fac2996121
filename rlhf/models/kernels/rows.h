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

// back = beside + the gradient of x, given that of y; back may be gradient or beside.
template <class T>
static inline void norm_row_backward(const T* gradient, const T* x, const T* weight, float factor, const T* beside, T* back,
                                     int64_t size) {
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t i = 0; i < size; i++) along += gradient[i] * weight[i] * x[i];
    const float pull = along * factor * factor / size;
#pragma omp simd
    for (int64_t i = 0; i < size; i++) back[i] = beside[i] + factor * (gradient[i] * weight[i] - x[i] * pull);
}

// silu(gate) * up (arXiv:2002.05202); result may be gate.
template <class T>
static inline void gate_row(const T* gate, const T* up, T* result, int64_t size) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) result[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

// Given the gradient of the result: the gradients of gate and up; to_up may be gradient itself. result, unless null: it again.
template <class T>
static inline void gate_row_backward(const T* gradient, const T* gate, const T* up, T* to_gate, T* to_up, T* result,
                                     int64_t size) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
        const float opened = gate[i], opening = 1.0f / (1.0f + exponential(-opened)), silu = opened * opening;
        const float back = gradient[i], beside = up[i];
        to_gate[i] = back * beside * (opening + silu * (1.0f - opening));
        to_up[i] = back * silu;
        if (result) result[i] = silu * beside;
    }
}
