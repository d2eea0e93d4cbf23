#include "dot.h"
#include "linear.h"

namespace irl {
namespace {

// Far enough ahead to hide a loaded memory, into the second-level cache: a panel runs on into the next.
constexpr int64_t AHEAD = 12288;

// One block of 32: integer sums, then one rounding into the float sum: sum += dot * (weight scale * activation scale).
template <int MR, int NP, bool SMALL, bool NIBBLES> void tile(const IntegerTile& j, float* sum) {
  const Weight& w = j.w;
  const int64_t per_group = w.group / 32;
  F16 total[MR][NP];
  for (int r = 0; r < MR; r++)
    for (int p = 0; p < NP; p++) total[r][p] = j.b0 ? load16(sum + (r * NP + p) * 16) : zero16();
  const int8_t* a = j.a;
  const uint8_t* q = j.q;
  int64_t group = j.b0 ? j.b0 / per_group : 0, left = per_group - (j.b0 - group * per_group);
  for (int64_t b = j.b0; b < j.b1; b++) {
    Dot<SMALL> dot[MR][NP];
    const int32_t* sums = j.sums + b * MR;
    for (int r = 0; r < MR; r++)
      for (int p = 0; p < NP; p++) dot[r][p] = Dot<SMALL>::start(w.has_zeros ? 0 : sums[r]);
    for (int s = 0; s < (NIBBLES ? 4 : 8); s++, q += 64) {
      B64 v[NP];
      for (int p = 0; p < NP; p++) {
        v[p] = load_bytes(q + p * j.stride);
        __builtin_prefetch(q + p * j.stride + AHEAD, 0, 2);
      }
      for (int half = 0; half < (NIBBLES ? 2 : 1); half++, a += MR * 4)
        for (int r = 0; r < MR; r++) {
          int32_t four;
          memcpy(&four, a + r * 4, 4);
          const vi x = splat_i(four);
          for (int p = 0; p < NP; p++) dot[r][p].step(!NIBBLES ? v[p] : half ? high_nibbles(v[p]) : low_nibbles(v[p]), x);
        }
    }
    for (int p = 0; p < NP; p++) {
      const F16 scale = group_scales(w, j.panel + p * w.panel, group);
      const F16 zero = w.has_zeros ? group_zeros(w, j.panel + p * w.panel, group) - splat16(Dot<SMALL>::lifted) : zero16();
      for (int r = 0; r < MR; r++) {
        F16 d = to_float(dot[r][p].end(w.has_zeros ? 0 : sums[r]));
        if (w.has_zeros) d = fma(zero, splat16(-(float)sums[r]), d);
        total[r][p] = fma(d, scale * splat16(j.scales[b * MR + r]), total[r][p]);
      }
    }
    if (--left == 0) group++, left = per_group;
  }
  for (int r = 0; r < MR; r++)
    for (int p = 0; p < NP; p++) store16(sum + (r * NP + p) * 16, total[r][p]);
}

template <int NP, bool SMALL, bool NIBBLES> IntegerTileFn of_height(int64_t mr) {
  switch (mr) {
    case 1: return tile<1, NP, SMALL, NIBBLES>;
    case 2: return tile<2, NP, SMALL, NIBBLES>;
#if IRL_W > 4
    case 3: return tile<3, NP, SMALL, NIBBLES>;
    case 4: return tile<4, NP, SMALL, NIBBLES>;
#endif
#if IRL_W == 16
    case 5: return tile<5, NP, SMALL, NIBBLES>;
    case 6: return tile<6, NP, SMALL, NIBBLES>;
#endif
  }
  return nullptr;
}

template <int NP> IntegerTileFn of_kind(int64_t mr, int64_t kind, bool nibbles) {
  if (kind == KIND_I8) return of_height<NP, false, false>(mr);
  return nibbles ? of_height<NP, true, true>(mr) : of_height<NP, true, false>(mr);
}

}  // namespace

IntegerTileFn integer_tile(int64_t mr, int64_t np, int64_t kind, bool nibbles) {
#if IRL_W == 16
  if (np == 2) return of_kind<2>(mr, kind, nibbles);
#endif
  return of_kind<1>(mr, kind, nibbles);
}

void widen_nibbles(const uint8_t* from, uint8_t* to, int64_t n) {
  for (int64_t i = 0; i < n; i++, from += 64, to += 128) {
    const B64 x = load_bytes(from);
    store_bytes(to, low_nibbles(x));
    store_bytes(to + 64, high_nibbles(x));
  }
}

namespace {

// 32 integers of -128..127 to bytes.
IRL_INLINE void narrow(const vi* from, int8_t* to) {
#if IRL_W == 16
  for (int i = 0; i < 2; i++) _mm_storeu_si128((__m128i*)to + i, _mm512_cvtepi32_epi8((__m512i)from[i]));
#elif IRL_W == 8
  const __m256i a = _mm256_packs_epi32((__m256i)from[0], (__m256i)from[1]), b = _mm256_packs_epi32((__m256i)from[2], (__m256i)from[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i*)to, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order));
#else
  for (int i = 0; i < 32; i++) to[i] = (int8_t)from[i / W][i % W];
#endif
}

}  // namespace

// Symmetric, scale = largest / 127, ties to even. A NaN or an infinity in a block makes its scale NaN, and so shows.
void quantize_row(const float* x, int64_t K, int64_t mr, int32_t less, int8_t* values, float* scales, int32_t* sums) {
  const vf magic = splat(12582912.0f);
  for (int64_t k0 = 0; k0 < K; k0 += 32, values += mr * 32, scales += mr, sums += mr) {
    float v[32];
    const int64_t n = K - k0 < 32 ? K - k0 : 32;
    memcpy(v, x + k0, n * 4);
    memset(v + n, 0, (32 - n) * 4);
    F16 lo = load16(v), hi = load16(v + 16);
    const float most = max_of(max(abs(lo), abs(hi))), poison = sum((lo - lo) + (hi - hi));
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    *scales = most / 127.0f + poison;
    vi r[32 / W];
    for (int i = 0; i < 32 / W; i++) r[i] = bits<vi>(fma(load(v + i * W), splat(inverse), magic)) - bits<vi>(magic);
    int8_t q[32];
    narrow(r, q);
    int32_t total = 0;
    for (int i = 0; i < 32; i++) total += q[i];
    *sums = total * less;
    for (int s = 0; s < 8; s++) memcpy(values + s * mr * 4, q + s * 4, 4);
  }
}

}  // namespace irl
