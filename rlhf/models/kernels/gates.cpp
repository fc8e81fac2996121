// silu(gate) * up, the middle of a gated feed-forward layer (arXiv:2002.05202). All matrices: (rows, size).
#include "rows.h"

namespace {

template <class T>
void gate_rows(const T* gate, const T* up, T* result, int64_t rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++)
        gate_row(gate + row * size, up + row * size, result + row * size, size);
}

template <class T>
void gate_rows_backward(const T* gradient, const T* gate, const T* up, T* to_gate, T* to_up, int64_t rows, int64_t size,
                        int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = row * size;
        gate_row_backward<T>(gradient + at, gate + at, up + at, to_gate + at, to_up + at, nullptr, size);
    }
}

}  // namespace

extern "C" void gated(const float* gate, const float* up, float* result, int64_t rows, int64_t size, int threads) {
    gate_rows(gate, up, result, rows, size, threads);
}

extern "C" void gated_bfloat16(const BFloat16* gate, const BFloat16* up, BFloat16* result, int64_t rows, int64_t size,
                               int threads) {
    gate_rows(gate, up, result, rows, size, threads);
}

// Given the gradient of the result: the gradients of gate and up; to_up may be gradient itself.
extern "C" void gated_backward(const float* gradient, const float* gate, const float* up, float* to_gate, float* to_up,
                               int64_t rows, int64_t size, int threads) {
    gate_rows_backward(gradient, gate, up, to_gate, to_up, rows, size, threads);
}

extern "C" void gated_backward_bfloat16(const BFloat16* gradient, const BFloat16* gate, const BFloat16* up,
                                        BFloat16* to_gate, BFloat16* to_up, int64_t rows, int64_t size, int threads) {
    gate_rows_backward(gradient, gate, up, to_gate, to_up, rows, size, threads);
}
