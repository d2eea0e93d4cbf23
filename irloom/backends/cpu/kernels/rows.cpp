// Whole rows: embedding look-up (from a packed weight too), gather, copy, argmax; and the read-bandwidth probe.
#include <cmath>

#include "pool.h"
#include "weight.h"

using namespace irl;

extern "C" {

// y[t] = W[ids[t]] * scale; an id outside [0, N) gives a row of NaN.
void irl_embedding(const Weight* w, const int32_t* ids, float* y, int64_t ldy, int64_t T, double scale) {
  const float by = (float)scale;
  parallel_range(T, 4, [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++) {
      float* to = y + t * ldy;
      if (ids[t] >= 0 && ids[t] < w->N) dequantize_row(*w, ids[t], to);
      else for (int64_t k = 0; k < w->K; k++) to[k] = NAN;
      if (by != 1.0f) for (int64_t k = 0; k < w->K; k++) to[k] *= by;
    }
  });
}

void irl_gather_rows(const float* x, int64_t ldx, const int32_t* index, float* y, int64_t ldy, int64_t T, int64_t N) {
  for (int64_t t = 0; t < T; t++) memcpy(y + t * ldy, x + (int64_t)index[t] * ldx, (size_t)N * 4);
}

void irl_copy(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t T, int64_t N) {
  if (ldx == N && ldy == N) N *= T, T = 1;
  parallel_range(T, 1 + 16384 / (N + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++) memmove(y + t * ldy, x + t * ldx, (size_t)N * 4);
  });
}

// y[t, a, b, c] = x[t, a, b, c] for four-byte entries, where the dims of a row have steps of their own in each.
void irl_move(const int32_t* x, int64_t ldx, int64_t xa, int64_t xb, int64_t xc, int32_t* y, int64_t ldy, int64_t ya, int64_t yb,
              int64_t yc, int64_t T, int64_t A, int64_t B, int64_t C) {
  parallel_range(T, 1 + 8192 / (A * B * C + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++)
      for (int64_t a = 0; a < A; a++)
        for (int64_t b = 0; b < B; b++) {
          const int32_t* from = x + t * ldx + a * xa + b * xb;
          int32_t* to = y + t * ldy + a * ya + b * yb;
          if (xc == 1 && yc == 1) memcpy(to, from, (size_t)C * 4);
          else for (int64_t c = 0; c < C; c++) to[c * yc] = from[c * xc];
        }
  });
}

// out[t] = the first index of the largest of row t; a NaN counts as the largest, as in torch.
void irl_argmax(const float* x, int64_t ldx, int64_t T, int64_t N, int64_t* out) {
  const int64_t cuts = N > 65536 ? threads() * 2 : 1;
  static thread_local Scratch values, places;
  float* best = values.get<float>((size_t)(T * cuts));
  int64_t* place = places.get<int64_t>((size_t)(T * cuts));
  const auto cut = [&](int64_t i) {
    const float* row = x + i / cuts * ldx;
    const int64_t n0 = N * (i % cuts) / cuts, n1 = N * (i % cuts + 1) / cuts;
    vf m = splat(-INFINITY), m2 = m;
    vi nan = {};
    int64_t n = n0;
    for (; n + 2 * W <= n1; n += 2 * W) {
      const vf a = load(row + n), b = load(row + n + W);
      m = a > m ? a : m;
      m2 = b > m2 ? b : m2;
      nan |= (a != a) | (b != b);
    }
    m = max(m, m2);
    float most = -INFINITY;
    bool poisoned = false;
    for (int j = 0; j < W; j++) most = m[j] > most ? m[j] : most, poisoned |= nan[j] != 0;
    for (; n < n1; n++) most = row[n] > most ? row[n] : most, poisoned |= row[n] != row[n];
    int64_t at = n0;
    if (poisoned) { while (row[at] == row[at]) at++; most = NAN; }
    else while (at < n1 - 1 && row[at] != most) at++;
    best[i] = most;
    place[i] = at;
  };
  if (T * cuts == 1 || T * N < 65536) for (int64_t i = 0; i < T * cuts; i++) cut(i);
  else parallel_for(T * cuts, cut);
  for (int64_t t = 0; t < T; t++) {
    int64_t b = t * cuts;
    for (int64_t i = b + 1; i < (t + 1) * cuts && best[b] == best[b]; i++)
      if (best[i] > best[b] || best[i] != best[i]) b = i;
    out[t] = place[b];
  }
}

// Reads `bytes` with every thread; the result only keeps the reads alive.
double irl_read(const uint8_t* data, int64_t bytes) {
  static thread_local Scratch partial;
  const int64_t cuts = threads() * 16, step = bytes / cuts / 1024 * 1024;
  float* sums = partial.get<float>((size_t)cuts);
  parallel_for(cuts, [&](int64_t i) {
    const uint8_t* p = data + i * step;
    F16 a = zero16(), b = a, c = a, d = a;
    for (int64_t n = 0; n < step; n += 256, p += 256) {
      const float* f = (const float*)p;
      a = a + load16(f), b = b + load16(f + 16), c = c + load16(f + 32), d = d + load16(f + 48);
      for (int j = 0; j < 4; j++) __builtin_prefetch(p + 12288 + j * 64, 0, 2);
    }
    sums[i] = sum((a + b) + (c + d));
  });
  double s = 0;
  for (int64_t i = 0; i < cuts; i++) s += sums[i];
  return s;
}

}
