// Vectors of the widest native width, the math functions on them, and sixteen-lane values that mean the same on
// every instruction set. Sums are written with a fixed order and explicit fma (built with -ffp-contract=off), so
// the bits of a result never depend on how the compiler vectorises.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define IRL_W 16
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define IRL_W 8
#else
#define IRL_W 4
#endif
#if IRL_W > 4
#include <immintrin.h>
#endif

#define IRL_INLINE static inline __attribute__((always_inline))

namespace irl {

constexpr int W = IRL_W;
typedef float vf __attribute__((vector_size(IRL_W * 4)));
typedef int32_t vi __attribute__((vector_size(IRL_W * 4)));
typedef uint32_t vu __attribute__((vector_size(IRL_W * 4)));
typedef uint16_t vh __attribute__((vector_size(IRL_W * 2)));

// ---- loads, stores, the fused multiply-add

IRL_INLINE vf load(const float* p) { vf v; memcpy(&v, p, sizeof v); return v; }
IRL_INLINE void store(float* p, vf v) { memcpy(p, &v, sizeof v); }
IRL_INLINE vf load_part(const float* p, int64_t n) { vf v = {}; memcpy(&v, p, (size_t)n * 4); return v; }
IRL_INLINE void store_part(float* p, vf v, int64_t n) { memcpy(p, &v, (size_t)n * 4); }
IRL_INLINE vf splat(float x) { return x - (vf){}; }  // x - 0 is x for every x, -0 included
template <class To, class From> IRL_INLINE To bits(From x) { To y; static_assert(sizeof x == sizeof y); memcpy(&y, &x, sizeof y); return y; }

IRL_INLINE vf fma(vf a, vf b, vf c) {
#if IRL_W == 16
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif IRL_W == 8
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
IRL_INLINE float fma(float a, float b, float c) {
#if IRL_W > 4
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
// A NaN in either comes through; the second test folds away where `b` is a constant.
IRL_INLINE vf max(vf a, vf b) { return (b > a) | (b != b) ? b : a; }
IRL_INLINE vf min(vf a, vf b) { return (b < a) | (b != b) ? b : a; }
IRL_INLINE vf pick(vf test, vf above, vf other) { return test > 0.0f ? above : other; }
IRL_INLINE vf abs(vf a) { return bits<vf>(bits<vi>(a) & 0x7fffffff); }
IRL_INLINE vf sqrt(vf a) {
#if IRL_W == 16
  return (vf)_mm512_sqrt_ps((__m512)a);
#elif IRL_W == 8
  return (vf)_mm256_sqrt_ps((__m256)a);
#else
  for (int i = 0; i < W; i++) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

// ---- math, to a few units in the last place

// e^x (Cephes polynomial); 0 below -105, inf above 88.7, NaN stays NaN, exp(0) is exactly 1.
IRL_INLINE vf exp(vf x) {
  x = min(max(x, splat(-105.0f)), splat(89.0f));
  const vf magic = splat(12582912.0f);
  vf t = fma(x, splat(1.44269504088896341f), magic);
  vf n = t - magic;
  vf r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  vf p = fma(r, splat(1.9875691500e-4f), splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  vf y = fma(p, r * r, r) + 1.0f;
#if IRL_W == 16
  return (vf)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
  vi i = bits<vi>(t) - bits<vi>(magic);
  vi h = i >> 1;
  return y * bits<vf>((h + 127) << 23) * bits<vf>((i - h + 127) << 23);
#endif
}
IRL_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }
IRL_INLINE vf silu(vf x) { return x / (1.0f + exp(-x)); }

// Rational approximations, coefficients as in Eigen's generic packet math.
IRL_INLINE vf tanh(vf v) {
  vf x = min(max(v, splat(-7.90531110763549805f)), splat(7.90531110763549805f)), s = x * x;
  vf p = fma(s, splat(-2.76076847742355e-16f), splat(2.00018790482477e-13f));
  p = fma(p, s, splat(-8.60467152213735e-11f));
  p = fma(p, s, splat(5.12229709037114e-08f));
  p = fma(p, s, splat(1.48572235717979e-05f));
  p = fma(p, s, splat(6.37261928875436e-04f));
  p = fma(p, s, splat(4.89352455891786e-03f));
  vf q = fma(s, splat(1.19825839466702e-06f), splat(1.18534705686654e-04f));
  q = fma(q, s, splat(2.26843463243900e-03f));
  q = fma(q, s, splat(4.89352518554385e-03f));
  return abs(v) < 4e-4f ? v : x * p / q;
}
IRL_INLINE vf erf(vf v) {
  vf x = min(max(v, splat(-3.8325066f)), splat(3.8325066f)), s = x * x;
  vf p = fma(s, splat(-2.72614225801306e-10f), splat(2.77068142495902e-08f));
  p = fma(p, s, splat(-2.10102402082508e-06f));
  p = fma(p, s, splat(-5.69250639462346e-05f));
  p = fma(p, s, splat(-7.34990630326855e-04f));
  p = fma(p, s, splat(-2.95459980854025e-03f));
  p = fma(p, s, splat(-1.60960333262415e-02f));
  vf q = fma(s, splat(-1.45660718464996e-05f), splat(-2.13374055278905e-04f));
  q = fma(q, s, splat(-1.68282697438203e-03f));
  q = fma(q, s, splat(-7.37332916720468e-03f));
  q = fma(q, s, splat(-1.42647390514189e-02f));
  return abs(v) >= 3.8325066f ? bits<vf>((bits<vi>(v) & (int32_t)0x80000000) | 0x3f800000) : x * p / q;
}
IRL_INLINE vf gelu_erf(vf x) { return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f)); }
// x/2 (1 + tanh u) = x sigmoid(2u), which keeps its digits where tanh is near -1.
IRL_INLINE vf gelu_tanh(vf x) { return x * sigmoid(1.5957691216057308f * fma(0.044715f * x * x, x, x)); }
IRL_INLINE vf relu(vf x) { return max(x, splat(0.0f)); }
IRL_INLINE vf relu2(vf x) { vf r = relu(x); return r * r; }
IRL_INLINE vf rsqrt(vf x) { return 1.0f / sqrt(x); }
IRL_INLINE vf cos(vf x) { for (int i = 0; i < W; i++) x[i] = cosf(x[i]); return x; }
IRL_INLINE vf sin(vf x) { for (int i = 0; i < W; i++) x[i] = sinf(x[i]); return x; }
IRL_INLINE vf log(vf x) { for (int i = 0; i < W; i++) x[i] = logf(x[i]); return x; }
IRL_INLINE vf log1p(vf x) { for (int i = 0; i < W; i++) x[i] = log1pf(x[i]); return x; }
IRL_INLINE vf expm1(vf x) { for (int i = 0; i < W; i++) x[i] = expm1f(x[i]); return x; }
IRL_INLINE vf floor(vf x) { for (int i = 0; i < W; i++) x[i] = floorf(x[i]); return x; }
IRL_INLINE vf softplus(vf x) { for (int i = 0; i < W; i++) x[i] = (x[i] > 0 ? x[i] : 0) + log1pf(expf(-fabsf(x[i]))); return x; }
IRL_INLINE vf quick_gelu(vf x) { return x * sigmoid(1.702f * x); }
IRL_INLINE vf mish(vf x) { return x * tanh(softplus(x)); }
IRL_INLINE vf pow(vf x, vf y) { for (int i = 0; i < W; i++) x[i] = powf(x[i], y[i]); return x; }

// ---- sixteen lanes, in 16 / W native vectors

constexpr int V = 16 / W;
struct F16 { vf v[V]; };

IRL_INLINE F16 zero16() { F16 r; for (int i = 0; i < V; i++) r.v[i] = (vf){}; return r; }
IRL_INLINE F16 splat16(float x) { F16 r; for (int i = 0; i < V; i++) r.v[i] = splat(x); return r; }
IRL_INLINE F16 load16(const float* p) { F16 r; for (int i = 0; i < V; i++) r.v[i] = load(p + i * W); return r; }
IRL_INLINE void store16(float* p, F16 a) { for (int i = 0; i < V; i++) store(p + i * W, a.v[i]); }
IRL_INLINE F16 fma(F16 a, F16 b, F16 c) { F16 r; for (int i = 0; i < V; i++) r.v[i] = fma(a.v[i], b.v[i], c.v[i]); return r; }
IRL_INLINE F16 operator+(F16 a, F16 b) { F16 r; for (int i = 0; i < V; i++) r.v[i] = a.v[i] + b.v[i]; return r; }
IRL_INLINE F16 operator-(F16 a, F16 b) { F16 r; for (int i = 0; i < V; i++) r.v[i] = a.v[i] - b.v[i]; return r; }
IRL_INLINE F16 operator*(F16 a, F16 b) { F16 r; for (int i = 0; i < V; i++) r.v[i] = a.v[i] * b.v[i]; return r; }
IRL_INLINE F16 max(F16 a, F16 b) { F16 r; for (int i = 0; i < V; i++) r.v[i] = max(a.v[i], b.v[i]); return r; }
IRL_INLINE F16 exp(F16 a) { F16 r; for (int i = 0; i < V; i++) r.v[i] = exp(a.v[i]); return r; }
IRL_INLINE F16 tanh(F16 a) { F16 r; for (int i = 0; i < V; i++) r.v[i] = tanh(a.v[i]); return r; }
IRL_INLINE F16 abs(F16 a) { F16 r; for (int i = 0; i < V; i++) r.v[i] = abs(a.v[i]); return r; }

// Lanes i and i+8, then i+4, i+2, i+1: the one order of every horizontal sum.
#if IRL_W > 4
IRL_INLINE __m256 eight(F16 a, bool add) {
#if IRL_W == 16
  const __m256 lo = _mm512_castps512_ps256((__m512)a.v[0]), hi = _mm512_extractf32x8_ps((__m512)a.v[0], 1);
#else
  const __m256 lo = (__m256)a.v[0], hi = (__m256)a.v[1];
#endif
  return add ? _mm256_add_ps(lo, hi) : _mm256_max_ps(lo, hi);
}
IRL_INLINE float sum(F16 a) {
  const __m256 e = eight(a, true);
  const __m128 f = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1)), t = _mm_add_ps(f, _mm_movehl_ps(f, f));
  return _mm_cvtss_f32(t) + _mm_cvtss_f32(_mm_movehdup_ps(t));
}
IRL_INLINE float max_of(F16 a) {
  const __m256 e = eight(a, false);
  const __m128 f = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1)), t = _mm_max_ps(f, _mm_movehl_ps(f, f));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}
#else
IRL_INLINE float sum(F16 a) {
  float t[16];
  store16(t, a);
  for (int h = 8; h > 0; h >>= 1)
    for (int i = 0; i < h; i++) t[i] = t[i] + t[i + h];
  return t[0];
}
IRL_INLINE float max_of(F16 a) {
  float t[16];
  store16(t, a);
  for (int h = 8; h > 0; h >>= 1)
    for (int i = 0; i < h; i++) t[i] = t[i + h] > t[i] ? t[i + h] : t[i];
  return t[0];
}
#endif

// ---- element types narrower than f32

enum Elem { ELEM_F32 = 0, ELEM_BF16 = 1, ELEM_F16 = 2 };

IRL_INLINE vf from_bf16(const uint16_t* p) {
#if IRL_W == 16
  return (vf)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
#elif IRL_W == 8
  return (vf)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
#else
  vh h;
  memcpy(&h, p, sizeof h);
  return bits<vf>(__builtin_convertvector(h, vu) << 16);
#endif
}
IRL_INLINE vf from_f16(const uint16_t* p) {
#if IRL_W == 16
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif IRL_W == 8
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vh h;
  memcpy(&h, p, sizeof h);
  vu x = __builtin_convertvector(h, vu), sign = (x & 0x8000) << 16, mag = (x & 0x7fff) << 13;
  vf scaled = bits<vf>(mag) * 5.192296858534828e+33f;  // 2^112 moves the exponent bias; subnormals come out right
  vu special = (vu)((x & 0x7c00) == 0x7c00);
  return bits<vf>(((special & (mag | 0x7f800000)) | (~special & bits<vu>(scaled))) | sign);
#endif
}
IRL_INLINE vf from_u8(const uint8_t* p) {
#if IRL_W == 16
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif IRL_W == 8
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  return (vf){(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
#endif
}
IRL_INLINE uint16_t to_bf16(float x) {
  uint32_t u = bits<uint32_t>(x);
  if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)((u >> 16) | 0x40);
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
IRL_INLINE uint16_t to_f16(float x) {
#if IRL_W > 4
  return _cvtss_sh(x, 0);
#else
  uint32_t u = bits<uint32_t>(x), sign = (u >> 16) & 0x8000, mag = u & 0x7fffffff;
  if (mag > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (mag >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (mag < 0x38800000) {  // subnormal half: adding 0.5 aligns the mantissa and rounds to nearest even
    float f = bits<float>(mag) + 0.5f;
    return (uint16_t)(sign | (bits<uint32_t>(f) - 0x3f000000));
  }
  mag += 0xc8000fff + ((mag >> 13) & 1);
  return (uint16_t)(sign | (mag >> 13));
#endif
}
// Sixteen values of any element type; `p` counts elements of that type.
IRL_INLINE F16 load16_as(int elem, const void* base, int64_t p) {
  F16 r;
  for (int i = 0; i < V; i++) {
    int64_t at = p + i * W;
    r.v[i] = elem == ELEM_F32 ? load((const float*)base + at)
           : elem == ELEM_BF16 ? from_bf16((const uint16_t*)base + at)
                               : from_f16((const uint16_t*)base + at);
  }
  return r;
}

}  // namespace irl
