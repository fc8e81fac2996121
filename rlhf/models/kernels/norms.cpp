// RMS norms (arXiv:1910.07467) with frozen weights, a row at a time; all numbers are floats, or BFloat16 but for inverse.
#include "rows.h"

namespace {

template <class T>
void norm(const T* x, const T* weight, T* y, float* inverse, int64_t rows, int64_t size, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++)
        inverse[row] = norm_row(x + row * size, weight, y + row * size, size, eps);
}

template <class T>
void norm_backward(const T* gradient, const T* x, const T* weight, const float* inverse, const T* beside, T* back,
                   int64_t rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = row * size;
        norm_row_backward(gradient + at, x + at, weight, inverse[row], beside + at, back + at, size);
    }
}

}  // namespace

// y = x * inverse * weight with inverse = 1 / sqrt(mean(x^2) + eps). x, y: (rows, size); inverse: (rows,).
extern "C" void rms_norm(const float* x, const float* weight, float* y, float* inverse, int64_t rows, int64_t size,
                         float eps, int threads) {
    norm(x, weight, y, inverse, rows, size, eps, threads);
}

extern "C" void rms_norm_bfloat16(const BFloat16* x, const BFloat16* weight, BFloat16* y, float* inverse, int64_t rows,
                                  int64_t size, float eps, int threads) {
    norm(x, weight, y, inverse, rows, size, eps, threads);
}

// back = beside + the gradient of x, given the gradient of y; back may be gradient or beside.
extern "C" void rms_norm_backward(const float* gradient, const float* x, const float* weight, const float* inverse,
                                  const float* beside, float* back, int64_t rows, int64_t size, int threads) {
    norm_backward(gradient, x, weight, inverse, beside, back, rows, size, threads);
}

extern "C" void rms_norm_backward_bfloat16(const BFloat16* gradient, const BFloat16* x, const BFloat16* weight,
                                           const float* inverse, const BFloat16* beside, BFloat16* back, int64_t rows,
                                           int64_t size, int threads) {
    norm_backward(gradient, x, weight, inverse, beside, back, rows, size, threads);
}
