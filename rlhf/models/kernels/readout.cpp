// What a row of logits says of one token: its log-probability, the entropy, and the way back of the former.
#include "vectors.h"

namespace {

constexpr float NEVER = -INFINITY;

// Numbers of a row, scaled; the lanes behind its end can never be drawn.
template <class T>
Floats scaled(const T* row, int64_t at, int64_t size, float scale) {
    const Floats found = scale * load_some(row + at, size - at);
    return at + WIDTH <= size ? found : first_lanes(found, size - at, Floats{} + NEVER);
}

// Tokens that are never drawn stand at minus infinity while a row is read; logits are as before afterwards.
template <class T>
class Without {
  public:
    Without(T* row, const int64_t* tokens, int64_t count) : row_(row), tokens_(tokens), were_(count) {
        for (int64_t i = 0; i < count; i++) were_[i] = row[tokens[i]];
        for (int64_t i = 0; i < count; i++) row[tokens[i]] = NEVER;
    }
    ~Without() {
        for (size_t i = 0; i < were_.size(); i++) row_[tokens_[i]] = were_[i];
    }

  private:
    T* row_;
    const int64_t* tokens_;
    std::vector<T> were_;
};

template <class T>
void tell(T* logits, const int64_t* ids, const int64_t* never, float* logprobs, float* entropies, float* normalizers,
          int64_t rows, int64_t size, int64_t num_never, float scale, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t at = 0; at < rows; at++) {
        T* row = logits + at * size;
        const Without<T> without(row, never, num_never);
        Floats most = Floats{} + NEVER;
        for (int64_t i = 0; i < size; i += WIDTH) most = larger(most, scaled(row, i, size, scale));
        const float top = largest(most);
        Floats total{}, weighted{};
        for (int64_t i = 0; i < size; i += WIDTH) {
            const Floats below = scaled(row, i, size, scale) - top, share = exponential(below);
            total += share;
            weighted += share * larger(below, Floats{} - 88.0f);  // 0 and not 0 times infinity
        }
        const float all = sum(total), normalizer = top + std::log(all);
        logprobs[at] = scale * (float)row[ids[at]] - normalizer;
        entropies[at] = std::log(all) - sum(weighted) / all;
        normalizers[at] = normalizer;
    }
}

// Of the log-probabilities' gradients; in probabilities, a token's own is raised and all are lowered.
template <class T>
void tell_backward(const float* gradients, T* logits, const int64_t* ids, const int64_t* never,
                   const float* normalizers, T* back, int64_t rows, int64_t size, int64_t num_never, float scale,
                   int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t at = 0; at < rows; at++) {
        T *row = logits + at * size, *to = back + at * size;
        const Without<T> without(row, never, num_never);
        const float gradient = gradients[at] * scale;
        for (int64_t i = 0; i < size; i += WIDTH) {
            const Floats share = exponential(scaled(row, i, size, scale) - normalizers[at]);
            store_some(to + i, -gradient * share, size - i);
        }
        const float own = std::exp(scale * (float)row[ids[at]] - normalizers[at]);
        to[ids[at]] = gradient * (1.0f - own);
    }
}

}  // namespace

// logits: (rows, size), changed meanwhile and put back; ids: (rows,); never: (num_never,), tokens that are not drawn;
// scale: of the logits. Results: (rows,), normalizers for the way back.
extern "C" void tell(float* logits, const int64_t* ids, const int64_t* never, float* logprobs, float* entropies,
                     float* normalizers, int64_t rows, int64_t size, int64_t num_never, float scale, int threads) {
    tell<float>(logits, ids, never, logprobs, entropies, normalizers, rows, size, num_never, scale, threads);
}

extern "C" void tell_bfloat16(BFloat16* logits, const int64_t* ids, const int64_t* never, float* logprobs,
                              float* entropies, float* normalizers, int64_t rows, int64_t size, int64_t num_never,
                              float scale, int threads) {
    tell<BFloat16>(logits, ids, never, logprobs, entropies, normalizers, rows, size, num_never, scale, threads);
}

extern "C" void tell_backward(const float* gradients, float* logits, const int64_t* ids, const int64_t* never,
                              const float* normalizers, float* back, int64_t rows, int64_t size, int64_t num_never,
                              float scale, int threads) {
    tell_backward<float>(gradients, logits, ids, never, normalizers, back, rows, size, num_never, scale, threads);
}

extern "C" void tell_backward_bfloat16(const float* gradients, BFloat16* logits, const int64_t* ids,
                                       const int64_t* never, const float* normalizers, BFloat16* back, int64_t rows,
                                       int64_t size, int64_t num_never, float scale, int threads) {
    tell_backward<BFloat16>(gradients, logits, ids, never, normalizers, back, rows, size, num_never, scale, threads);
}
