// What routers compute on rows of scores [T, N]: softmax, sums, the largest with their places, entries at places.
#include "pool.h"
#include "vec.h"

namespace irl {
namespace {

// The first `left` of sixteen lanes, `other` in the rest.
IRL_INLINE F16 lanes(const float* p, int64_t left, float other) {
  if (left >= 16) return load16(p);
  float t[16];
  for (int i = 0; i < 16; i++) t[i] = i < left ? p[i] : other;
  return load16(t);
}

template <class F> void over_rows(int64_t T, int64_t N, F f) {
  parallel_range(T, 1 + 16384 / (N + 1), [&](int64_t a, int64_t b) {
    for (int64_t t = a; t < b; t++) f(t);
  });
}

// The place of the largest of n numbers that is not taken yet, the first of equals; it is taken then.
int64_t take_best(const float* x, int64_t n, char* taken) {
  int64_t at = -1;
  for (int64_t i = 0; i < n; i++)
    if (!taken[i] && (at < 0 || x[i] > x[at])) at = i;
  taken[at] = 1;
  return at;
}

enum Score : int64_t { SOFTMAX, SIGMOID, SQRT_SOFTPLUS };

void score_row(const float* x, float* s, int64_t E, int64_t how) {
  if (how == SOFTMAX) {
    float top = x[0], total = 0.0f;
    for (int64_t e = 1; e < E; e++) top = x[e] > top ? x[e] : top;
    for (int64_t e = 0; e < E; e++) total += s[e] = expf(x[e] - top);
    for (int64_t e = 0; e < E; e++) s[e] /= total;
  } else if (how == SIGMOID) {
    for (int64_t e = 0; e < E; e++) s[e] = 1.0f / (1.0f + expf(-x[e]));
  } else {
    for (int64_t e = 0; e < E; e++) s[e] = sqrtf((x[e] > 0 ? x[e] : 0.0f) + log1pf(expf(-fabsf(x[e]))));
  }
}

// Experts of all groups but the `top` whose `best` first have the largest sum get -inf.
void keep_groups(float* by, int64_t E, int64_t groups, int64_t top, int64_t best, char* taken, float* sums) {
  const int64_t size = E / groups;
  for (int64_t g = 0; g < groups; g++) {
    memset(taken, 0, (size_t)size);
    sums[g] = 0.0f;
    for (int64_t j = 0; j < best; j++) sums[g] += by[g * size + take_best(by + g * size, size, taken)];
  }
  memset(taken, 0, (size_t)groups);
  for (int64_t j = 0; j < top; j++) take_best(sums, groups, taken);
  for (int64_t g = 0; g < groups; g++)
    for (int64_t e = 0; e < size && !taken[g]; e++) by[g * size + e] = -INFINITY;
}

}  // namespace
}  // namespace irl

using namespace irl;

extern "C" {

// y may be x.
void irl_softmax(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t T, int64_t N) {
  over_rows(T, N, [&](int64_t t) {
    const float* from = x + t * ldx;
    float* to = y + t * ldy;
    F16 most = splat16(-INFINITY), total = zero16();
    for (int64_t n = 0; n < N; n += 16) most = max(most, lanes(from + n, N - n, -INFINITY));
    const F16 top = splat16(max_of(most));
    for (int64_t n = 0; n < N; n += 16) {
      const F16 e = exp(lanes(from + n, N - n, -INFINITY) - top);
      float kept[16];
      store16(kept, e);
      memcpy(to + n, kept, (size_t)(N - n < 16 ? N - n : 16) * 4);
      total = total + e;
    }
    const float by = 1.0f / sum(total);
    for (int64_t n = 0; n < N; n++) to[n] *= by;
  });
}

// y[t, a, b] = scale * the sum over k of x[t, a, k, b], times w[t, k] where w is given.
void irl_sums(const float* x, int64_t ldx, const float* w, int64_t ldw, float* y, int64_t ldy, int64_t T, int64_t A, int64_t K,
              int64_t B, double scale) {
  const float by = (float)scale;
  over_rows(T, A * K * B, [&](int64_t t) {
    for (int64_t a = 0; a < A; a++) {
      const float* from = x + t * ldx + a * K * B;
      float* to = y + t * ldy + a * B;
      if (B == 1 && !w) {
        F16 total = zero16();
        for (int64_t k = 0; k < K; k += 16) total = total + lanes(from + k, K - k, 0.0f);
        *to = by * sum(total);
        continue;
      }
      for (int64_t b = 0; b < B; b++) to[b] = 0.0f;
      for (int64_t k = 0; k < K; k++) {
        const float share = w ? by * w[t * ldw + k] : by;
        for (int64_t b = 0; b < B; b++) to[b] += share * from[k * B + b];
      }
    }
  });
}

// y[t, a, k] = x[t, a, index[t, a, k]], each row of parts of N entries.
void irl_gather(const float* x, int64_t ldx, const int32_t* index, int64_t ldi, float* y, int64_t ldy, int64_t T, int64_t A, int64_t N,
                int64_t K) {
  over_rows(T, A * K, [&](int64_t t) {
    for (int64_t a = 0; a < A; a++)
      for (int64_t k = 0; k < K; k++) y[t * ldy + a * K + k] = x[t * ldx + a * N + index[t * ldi + a * K + k]];
  });
}

// values and index [T, k]: the largest of each row, largest first, of equals the first; a NaN counts as the largest.
void irl_topk(const float* x, int64_t ldx, float* values, int64_t ldv, int32_t* index, int64_t ldi, int64_t T, int64_t N, int64_t k) {
  const auto above = [](float a, float b) { return a > b || (a != a && b == b); };
  over_rows(T, N, [&](int64_t t) {
    const float* row = x + t * ldx;
    float* best = values + t * ldv;
    int32_t* at = index + t * ldi;
    for (int64_t n = 0, kept = 0; n < N; n++) {
      if (kept == k && !above(row[n], best[k - 1])) continue;
      int64_t p = kept < k ? kept++ : k - 1;
      for (; p > 0 && above(row[n], best[p - 1]); p--) best[p] = best[p - 1], at[p] = at[p - 1];
      best[p] = row[n];
      at[p] = (int32_t)n;
    }
  });
}

// weights and index [T, k] of the experts that each token chooses by its logits [T, E]; see the op.
void irl_route(const float* x, int64_t ldx, const float* bias, float* weights, int64_t ldw, int32_t* index, int64_t ldi, int64_t T,
               int64_t E, int64_t k, int64_t score, int64_t by_logits, int64_t groups, int64_t top, int64_t best, int64_t normalize,
               double scale) {
  over_rows(T, E, [&](int64_t t) {
    static thread_local Scratch scratch;
    float* s = scratch.get<float>((size_t)(4 * E));
    float *by = s + E, *sums = s + 2 * E, *row = weights + t * ldw;
    char* taken = (char*)(s + 3 * E);
    score_row(x + t * ldx, s, E, score);
    for (int64_t e = 0; e < E; e++) by[e] = (by_logits ? x[t * ldx + e] : s[e]) + (bias ? bias[e] : 0.0f);
    if (groups > 1) keep_groups(by, E, groups, top, best, taken, sums);
    memset(taken, 0, (size_t)E);
    float total = 0.0f;
    for (int64_t j = 0; j < k; j++) {
      const int64_t e = take_best(by, E, taken);
      index[t * ldi + j] = (int32_t)e;
      total += row[j] = s[e];
    }
    const float times = (float)scale / (normalize ? (total > 1e-20f ? total : 1e-20f) : 1.0f);
    for (int64_t j = 0; j < k; j++) row[j] *= times;
  });
}

}  // extern "C"
