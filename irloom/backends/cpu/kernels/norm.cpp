// Norms over rows of [T, N]. A row's sums run over sixteen lanes in order, so they do not depend on the batch.
#include "norm.h"

#include "pool.h"

namespace irl {
namespace {

IRL_INLINE F16 load_lanes(const float* p, int64_t left) {
  if (left >= 16) return load16(p);
  float t[16] = {};
  memcpy(t, p, (size_t)left * 4);
  return load16(t);
}

float mean(const float* x, int64_t N) {
  F16 s = zero16();
  for (int64_t n = 0; n < N; n += 16) s = s + load_lanes(x + n, N - n);
  return sum(s) / (float)N;
}

float variance(const float* x, int64_t N, float center) {
  F16 s = zero16();
  for (int64_t n = 0; n < N; n += 16) {
    F16 d = load_lanes(x + n, N - n) - splat16(center);
    if (N - n < 16) {
      float t[16];
      store16(t, d);
      memset(t + (N - n), 0, (size_t)(16 - (N - n)) * 4);
      d = load16(t);
    }
    s = fma(d, d, s);
  }
  return sum(s) / (float)N;
}

// f(vector, column) over one row, in native vectors; the last one is padded with zeros.
template <class F> IRL_INLINE void map_row(const float* x, float* y, int64_t N, F&& f) {
  int64_t n = 0;
  for (; n + W <= N; n += W) store(y + n, f(load(x + n), n, (int64_t)W));
  if (n < N) store_part(y + n, f(load_part(x + n, N - n), n, N - n), N - n);
}
IRL_INLINE vf at(const float* p, int64_t n, int64_t count) { return count == W ? load(p + n) : load_part(p + n, count); }

}  // namespace

static float squares(const float* x, int64_t N) {
  F16 s = zero16();
  for (int64_t n = 0; n < N; n += 16) {
    const F16 v = load_lanes(x + n, N - n);
    s = fma(v, v, s);
  }
  return sum(s);
}

void rms_norm_row(const float* x, const float* w, float* y, int64_t N, float eps) {
  const vf r = splat(1.0f / sqrtf(squares(x, N) / (float)N + eps));
  if (w) map_row(x, y, N, [&](vf v, int64_t n, int64_t c) { return v * r * at(w, n, c); });
  else map_row(x, y, N, [&](vf v, int64_t, int64_t) { return v * r; });
}

}  // namespace irl

using namespace irl;

extern "C" {

void irl_rms_norm(const float* x, int64_t ldx, const float* w, float* y, int64_t ldy, int64_t T, int64_t N, double eps) {
  parallel_range(T, 1 + 16384 / (N + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++) rms_norm_row(x + t * ldx, w, y + t * ldy, N, (float)eps);
  });
}

void irl_l2_norm(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t T, int64_t N, double eps) {
  parallel_range(T, 1 + 16384 / (N + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++) {
      const vf r = splat(1.0f / sqrtf(squares(x + t * ldx, N) + (float)eps));
      map_row(x + t * ldx, y + t * ldy, N, [&](vf v, int64_t, int64_t) { return v * r; });
    }
  });
}

// r = x + a, or x + rms_norm(a, wa) when wa or eps_a is given; then y = rms_norm(r, w) when y is given. r may be x.
void irl_add_rms_norm(const float* x, const float* a, const float* wa, float* r, const float* w, float* y, int64_t T, int64_t N,
                      double eps, double eps_a) {
  parallel_range(T, 1 + 8192 / (N + 1), [&](int64_t t0, int64_t t1) {
    static thread_local Scratch scratch;
    for (int64_t t = t0; t < t1; t++) {
      const float *xt = x + t * N, *at_ = a + t * N;
      float* rt = r + t * N;
      if (wa || eps_a > 0) {
        float* normed = scratch.get<float>((size_t)N);
        rms_norm_row(at_, wa, normed, N, (float)eps_a);
        at_ = normed;
      }
      map_row(xt, rt, N, [&](vf v, int64_t n, int64_t c) { return v + at(at_, n, c); });
      if (y) rms_norm_row(rt, w, y + t * N, N, (float)eps);
    }
  });
}

void irl_layer_norm(const float* x, int64_t ldx, const float* w, const float* b, float* y, int64_t ldy, int64_t T, int64_t N, double eps) {
  parallel_range(T, 1 + 8192 / (N + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++) {
      const float* xt = x + t * ldx;
      const float m = mean(xt, N);
      const vf center = splat(m), r = splat(1.0f / sqrtf(variance(xt, N, m) + (float)eps));
      map_row(xt, y + t * ldy, N, [&](vf v, int64_t n, int64_t c) {
        v = (v - center) * r;
        if (w) v = v * at(w, n, c);
        return b ? v + at(b, n, c) : v;
      });
    }
  });
}

}
