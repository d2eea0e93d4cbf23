#include "attention.h"

namespace irl {
namespace {

// Several products are summed across their lanes at once, each in the order of vec.h `sum`, so that a score's bits do not
// depend on its place in a tile.
#if IRL_W == 4
IRL_INLINE void sums4(const F16* a, float* to) {
  for (int i = 0; i < 4; i++) to[i] = sum(a[i]);
}
#else
IRL_INLINE void sums4(const F16* a, float* to) {
  __m256 e[4];
  for (int i = 0; i < 4; i++) e[i] = eight(a[i], true);
  const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(e[0], e[1], 0x20), _mm256_permute2f128_ps(e[0], e[1], 0x31));
  const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(e[2], e[3], 0x20), _mm256_permute2f128_ps(e[2], e[3], 0x31));
  const __m256 u = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));  // a a c c, b b d d
  const __m256 s = _mm256_add_ps(_mm256_shuffle_ps(u, u, 0x88), _mm256_shuffle_ps(u, u, 0xdd));      // a c a c, b d b d
  _mm_storeu_ps(to, _mm_unpacklo_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
#endif
#if IRL_W == 16
IRL_INLINE void sums16(const F16* a, float* to) {
  __m512 v[16], h[8], f[4], t[2];
  for (int i = 0; i < 16; i++) v[i] = (__m512)a[i].v[0];
  for (int i = 0; i < 8; i++)  // halves: vectors 2i, 2i + 1
    h[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44), _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
  for (int i = 0; i < 4; i++)  // quarters: vectors 4i .. 4i + 3
    f[i] = _mm512_add_ps(_mm512_shuffle_f32x4(h[2 * i], h[2 * i + 1], 0x88), _mm512_shuffle_f32x4(h[2 * i], h[2 * i + 1], 0xdd));
  for (int i = 0; i < 2; i++)  // quarter q: two lanes of vector 8i + q, two of 8i + 4 + q
    t[i] = _mm512_add_ps(_mm512_shuffle_ps(f[2 * i], f[2 * i + 1], 0x44), _mm512_shuffle_ps(f[2 * i], f[2 * i + 1], 0xee));
  const __m512 s = _mm512_add_ps(_mm512_shuffle_ps(t[0], t[1], 0x88), _mm512_shuffle_ps(t[0], t[1], 0xdd));
  _mm512_storeu_ps(to, _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), s));
}
#else
IRL_INLINE void sums16(const F16*, float*) {}  // no tile has sixteen
#endif

// R rows by C keys at once: four products, or sixteen for four rows.
template <int R, int C> void scores_of(const float* const* q, const float* const* keys, int64_t count, int64_t D, float* scores) {
  for (int64_t j = 0; j < count; j += C) {
    F16 acc[R * C];
    for (int i = 0; i < R * C; i++) acc[i] = zero16();
    for (int64_t d = 0; d < D; d += 16) {
      F16 k[C];
      for (int c = 0; c < C; c++) k[c] = load16(keys[j + c] + d);
      for (int r = 0; r < R; r++) {
        const F16 x = load16(q[r] + d);
        for (int c = 0; c < C; c++) acc[r * C + c] = fma(x, k[c], acc[r * C + c]);
      }
    }
    float t[R * C];
    if (R * C == 16) sums16(acc, t);
    else sums4(acc, t);
    for (int r = 0; r < R; r++) memcpy(scores + r * BLOCK + j, t + r * C, C * 4);
  }
}

template <int R, int N> IRL_INLINE void columns(float* const* acc, const float* keep, const float* const* p, const float* const* v,
                                                int64_t j0, int64_t j1, int64_t d) {
  F16 a[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) a[r][n] = load16(acc[r] + d + n * 16) * splat16(keep[r]);
  for (int64_t j = j0; j < j1; j++) {
    F16 x[N];
    for (int n = 0; n < N; n++) x[n] = load16(v[j] + d + n * 16);
    for (int r = 0; r < R; r++) {
      const F16 w = splat16(p[r][j]);
      for (int n = 0; n < N; n++) a[r][n] = fma(w, x[n], a[r][n]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store16(acc[r] + d + n * 16, a[r][n]);
}

template <int R> void values_of(float* const* acc, const float* keep, const float* const* p, const float* const* v, int64_t j0, int64_t j1, int64_t D) {
  constexpr int wide = IRL_W == 16 ? (R == 4 ? 4 : 8) : R == 1 ? 4 : 2;
  int64_t d = 0;
  for (; d + wide * 16 <= D; d += wide * 16) columns<R, wide>(acc, keep, p, v, j0, j1, d);
  for (; d + wide * 8 <= D; d += wide * 8) columns<R, wide / 2>(acc, keep, p, v, j0, j1, d);
  for (; d < D; d += 16) columns<R, 1>(acc, keep, p, v, j0, j1, d);
}

}  // namespace

void score_tile(int64_t rows, const float* const* q, const float* const* keys, int64_t count, int64_t D, float* scores) {
  if (rows == 1) scores_of<1, 4>(q, keys, count, D, scores);
  else if (rows == 2) scores_of<2, 2>(q, keys, count, D, scores);
#if IRL_W == 16
  else scores_of<4, 4>(q, keys, count, D, scores);
#endif
}

void value_tile(int64_t rows, float* const* acc, const float* keep, const float* const* p, const float* const* v, int64_t j0, int64_t j1, int64_t D) {
  if (rows == 1) values_of<1>(acc, keep, p, v, j0, j1, D);
  else if (rows == 2) values_of<2>(acc, keep, p, v, j0, j1, D);
#if IRL_W == 16
  else values_of<4>(acc, keep, p, v, j0, j1, D);
#endif
}

}  // namespace irl
