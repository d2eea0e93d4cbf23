// What routers compute on rows of scores [T, N]: softmax, sums, and the largest with their places.
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

// y[t] = the sum of row t.
void irl_row_sum(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t T, int64_t N) {
  over_rows(T, N, [&](int64_t t) {
    F16 total = zero16();
    for (int64_t n = 0; n < N; n += 16) total = total + lanes(x + t * ldx + n, N - n, 0.0f);
    y[t * ldy] = sum(total);
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

}  // extern "C"
