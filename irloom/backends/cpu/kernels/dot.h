// Integer dot products of sixteen outputs: unsigned weights, signed activations, four values of k a step. Every
// instruction set gives the same integers.
#pragma once
#include "vec.h"

namespace irl {

struct I16 { vi v[V]; };
struct B64 { vi v[V]; };  // sixteen dwords of four bytes

// Vector by vector: a copy of 64 bytes at once would go through memory in smaller pieces.
IRL_INLINE B64 load_bytes(const uint8_t* p) { B64 r; for (int i = 0; i < V; i++) memcpy(&r.v[i], p + i * sizeof(vi), sizeof(vi)); return r; }
IRL_INLINE void store_bytes(uint8_t* p, B64 x) { for (int i = 0; i < V; i++) memcpy(p + i * sizeof(vi), &x.v[i], sizeof(vi)); }
IRL_INLINE F16 to_float(I16 a) { F16 r; for (int i = 0; i < V; i++) r.v[i] = __builtin_convertvector(a.v[i], vf); return r; }
IRL_INLINE vi splat_i(int32_t x) { return x - (vi){}; }
IRL_INLINE B64 low_nibbles(B64 x) { for (int i = 0; i < V; i++) x.v[i] = x.v[i] & 0x0f0f0f0f; return x; }
IRL_INLINE B64 high_nibbles(B64 x) { for (int i = 0; i < V; i++) x.v[i] = (x.v[i] >> 4) & 0x0f0f0f0f; return x; }

#if IRL_W == 16 && defined(__AVX512VNNI__)
IRL_INLINE vi dpbusd(vi acc, vi u, vi s) { return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)u, (__m512i)s); }
#define IRL_VNNI 1
#elif IRL_W == 8 && defined(__AVXVNNI__)
IRL_INLINE vi dpbusd(vi acc, vi u, vi s) { return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)u, (__m256i)s); }
#define IRL_VNNI 1
#endif

#if defined(IRL_VNNI)

// Dot products of weights 0..255, or 0..15 when NIBBLE, plus `less`; of weights less `lifted` where that is not 0, and
// then without `less`, which is what a symmetric weight takes off.
template <bool NIBBLE> struct Dot {
  static constexpr float lifted = 0;
  I16 acc;
  IRL_INLINE Dot start(int32_t less) { Dot d; for (int i = 0; i < V; i++) d.acc.v[i] = splat_i(less); return d; }
  inline __attribute__((always_inline)) void step(B64 w, vi x) { for (int i = 0; i < V; i++) acc.v[i] = dpbusd(acc.v[i], w.v[i], x); }
  inline __attribute__((always_inline)) I16 end(int32_t) const { return acc; }
};

#elif IRL_W == 8

IRL_INLINE __m256i maddubs(vi u, vi s) { return _mm256_maddubs_epi16((__m256i)u, (__m256i)s); }
IRL_INLINE vi pairs(__m256i x) { return (vi)_mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

template <bool NIBBLE> struct Dot;
// Products of 0..15 by -127..127 stay below 2^15 for the sixteen of a block that a lane adds: one widening at the end.
template <> struct Dot<true> {
  static constexpr float lifted = 0;
  __m256i acc[V];
  IRL_INLINE Dot start(int32_t) { Dot d; for (int i = 0; i < V; i++) d.acc[i] = _mm256_setzero_si256(); return d; }
  inline __attribute__((always_inline)) void step(B64 w, vi x) {
    for (int i = 0; i < V; i++) acc[i] = _mm256_add_epi16(acc[i], maddubs(w.v[i], x));
  }
  inline __attribute__((always_inline)) I16 end(int32_t less) const {
    I16 r;
    for (int i = 0; i < V; i++) r.v[i] = pairs(acc[i]) + less;
    return r;
  }
};
// Two products of 0..255 would saturate; |w - 128| times x with the sign of w - 128 stays within 2 * 128 * 127, and
// has the 128 taken off already.
template <> struct Dot<false> {
  static constexpr float lifted = 128;
  I16 acc;
  IRL_INLINE Dot start(int32_t) { Dot d; for (int i = 0; i < V; i++) d.acc.v[i] = (vi){}; return d; }
  inline __attribute__((always_inline)) void step(B64 w, vi x) {
    for (int i = 0; i < V; i++) {
      const vi q = w.v[i] ^ (int32_t)0x80808080;
      acc.v[i] = acc.v[i] + pairs(maddubs((vi)_mm256_abs_epi8((__m256i)q), (vi)_mm256_sign_epi8((__m256i)x, (__m256i)q)));
    }
  }
  inline __attribute__((always_inline)) I16 end(int32_t) const { return acc; }
};

#else

template <bool NIBBLE> struct Dot {
  static constexpr float lifted = 0;
  I16 acc;
  IRL_INLINE Dot start(int32_t less) { Dot d; for (int i = 0; i < V; i++) d.acc.v[i] = splat_i(less); return d; }
  inline __attribute__((always_inline)) void step(B64 w, vi x) {
    uint8_t u[64];
    int8_t s[4];
    int32_t a[16];
    memcpy(u, &w, 64);
    memcpy(s, &x, 4);
    memcpy(a, &acc, 64);
    for (int i = 0; i < 16; i++)
      for (int j = 0; j < 4; j++) a[i] += (int32_t)u[i * 4 + j] * s[j];
    memcpy(&acc, a, 64);
  }
  inline __attribute__((always_inline)) I16 end(int32_t) const { return acc; }
};

#endif

}  // namespace irl
