#include "attention.h"

namespace irl {
namespace {

// Sums of KEYS * ROWS sixteen-lane products share one horizontal reduction order (vec.h `sum`), so that a score's bits
// do not depend on its place in the tile.
#if IRL_W == 16
IRL_INLINE __m512 pair(__m512 a, __m512 b, int) { return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee)); }
// Sixteen vectors to one vector of their sums: lanes i and i+8, then i+4, i+2, i+1.
IRL_INLINE __m512 sums16(const vf* v) {
  __m512 h[8], f[4], t[2];
  for (int i = 0; i < 8; i++) h[i] = pair((__m512)v[2 * i], (__m512)v[2 * i + 1], 0);  // [a 0..7, b 0..7] of i + (i+8)
  for (int i = 0; i < 4; i++)  // quarters: a, b, c, d
    f[i] = _mm512_add_ps(_mm512_shuffle_f32x4(h[2 * i], h[2 * i + 1], 0x88), _mm512_shuffle_f32x4(h[2 * i], h[2 * i + 1], 0xdd));
  for (int i = 0; i < 2; i++)
    t[i] = _mm512_add_ps(_mm512_shuffle_ps(f[2 * i], f[2 * i + 1], 0x44), _mm512_shuffle_ps(f[2 * i], f[2 * i + 1], 0xee));
  // quarter q of t[i] holds 2 lanes of vector 8i + q and 2 lanes of vector 8i + 4 + q
  __m512 s = _mm512_add_ps(_mm512_shuffle_ps(t[0], t[1], 0x88), _mm512_shuffle_ps(t[0], t[1], 0xdd));
  // quarter q: vectors q, 4 + q, 8 + q, 12 + q
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_ps(order, s);
}
#endif

}  // namespace

void score_tile(const float* const* q, const float* const* keys, int64_t count, int64_t D, float* scores) {
  for (int64_t j = 0; j < count; j += KEYS) {
    F16 acc[ROWS][KEYS];
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < KEYS; c++) acc[r][c] = zero16();
    for (int64_t d = 0; d < D; d += 16) {
      F16 k[KEYS];
      for (int c = 0; c < KEYS; c++) k[c] = load16(keys[j + c] + d);
      for (int r = 0; r < ROWS; r++) {
        const F16 x = load16(q[r] + d);
        for (int c = 0; c < KEYS; c++) acc[r][c] = fma(x, k[c], acc[r][c]);
      }
    }
#if IRL_W == 16
    vf all[16];
    for (int i = 0; i < 16; i++) all[i] = acc[i / 4][i % 4].v[0];
    float t[16];
    _mm512_storeu_ps(t, sums16(all));
    for (int r = 0; r < ROWS; r++) memcpy(scores + r * BLOCK + j, t + r * 4, 16);
#else
    for (int r = 0; r < ROWS; r++)
      for (int c = 0; c < KEYS; c++) scores[r * BLOCK + j + c] = sum(acc[r][c]);
#endif
  }
}

namespace {

template <int N> IRL_INLINE void values(float* const* acc, const float* keep, const float* const* p, const float* const* v, int64_t j0, int64_t j1, int64_t d) {
  F16 a[ROWS][N];
  for (int r = 0; r < ROWS; r++)
    for (int n = 0; n < N; n++) a[r][n] = load16(acc[r] + d + n * 16) * splat16(keep[r]);
  for (int64_t j = j0; j < j1; j++) {
    F16 x[N];
    for (int n = 0; n < N; n++) x[n] = load16(v[j] + d + n * 16);
    for (int r = 0; r < ROWS; r++) {
      const F16 w = splat16(p[r][j]);
      for (int n = 0; n < N; n++) a[r][n] = fma(w, x[n], a[r][n]);
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int n = 0; n < N; n++) store16(acc[r] + d + n * 16, a[r][n]);
}

}  // namespace

void value_tile(float* const* acc, const float* keep, const float* const* p, const float* const* v, int64_t j0, int64_t j1, int64_t D) {
  int64_t d = 0;
  for (; d + WIDE * 16 <= D; d += WIDE * 16) values<WIDE>(acc, keep, p, v, j0, j1, d);
  for (; d < D; d += 16) values<1>(acc, keep, p, v, j0, j1, d);
}

}  // namespace irl
