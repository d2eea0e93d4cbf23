// Integer dot products of sixteen outputs: unsigned weights, signed activations, four values of k a step. Every
// instruction set gives the same integers.
#pragma once
#include "vec.h"

namespace irl {

struct I16 { vi v[V]; };
struct B64 { vi v[V]; };  // sixteen dwords of four bytes

IRL_INLINE B64 load_bytes(const uint8_t* p) { B64 r; memcpy(&r, p, 64); return r; }
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

// Weights 0..255 less 128, or 0..15 less 8 when NIBBLE; start from `less * sum of the activations`.
template <bool NIBBLE> struct Dot {
  I16 acc;
  IRL_INLINE Dot start(int32_t less) { Dot d; for (int i = 0; i < V; i++) d.acc.v[i] = splat_i(less); return d; }
  inline __attribute__((always_inline)) void step(B64 w, vi x) { for (int i = 0; i < V; i++) acc.v[i] = dpbusd(acc.v[i], w.v[i], x); }
  inline __attribute__((always_inline)) I16 end(int32_t) const { return acc; }
};

#elif IRL_W >= 8

#if IRL_W == 16
#define M(name) _mm512_##name
typedef __m512i mi;
#else
#define M(name) _mm256_##name
typedef __m256i mi;
#endif

template <bool NIBBLE> struct Dot;
// Products of 0..15 by -127..127 stay below 2^15 for the sixteen of a block that a lane adds: one widening at the end.
template <> struct Dot<true> {
  mi acc[V];
  IRL_INLINE Dot start(int32_t) { Dot d; for (int i = 0; i < V; i++) d.acc[i] = (mi)(vi){}; return d; }
  inline __attribute__((always_inline)) void step(B64 w, vi x) {
    for (int i = 0; i < V; i++) acc[i] = M(add_epi16)(acc[i], M(maddubs_epi16)((mi)w.v[i], (mi)x));
  }
  inline __attribute__((always_inline)) I16 end(int32_t less) const {
    I16 r;
    for (int i = 0; i < V; i++) r.v[i] = (vi)M(madd_epi16)(acc[i], M(set1_epi16)(1)) + less;
    return r;
  }
};
// Two products of 0..255 would saturate, so the bytes are halved into nibbles: high * 16 + low.
template <> struct Dot<false> {
  mi low[V], high[V];
  IRL_INLINE Dot start(int32_t) { Dot d; for (int i = 0; i < V; i++) d.low[i] = d.high[i] = (mi)(vi){}; return d; }
  inline __attribute__((always_inline)) void step(B64 w, vi x) {
    for (int i = 0; i < V; i++) {
      vi l = w.v[i] & 0x0f0f0f0f, h = (w.v[i] >> 4) & 0x0f0f0f0f;
      low[i] = M(add_epi16)(low[i], M(maddubs_epi16)((mi)l, (mi)x));
      high[i] = M(add_epi16)(high[i], M(maddubs_epi16)((mi)h, (mi)x));
    }
  }
  inline __attribute__((always_inline)) I16 end(int32_t less) const {
    I16 r;
    const mi one = M(set1_epi16)(1), sixteen = M(set1_epi16)(16);
    for (int i = 0; i < V; i++)
      r.v[i] = (vi)M(add_epi32)(M(madd_epi16)(low[i], one), M(madd_epi16)(high[i], sixteen)) + less;
    return r;
  }
};
#undef M

#else

template <bool NIBBLE> struct Dot {
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
