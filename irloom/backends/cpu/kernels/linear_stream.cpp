// A few rows: the weight is read once, as one stream, and widened in registers.
#include "linear.h"

namespace irl {
namespace {

constexpr int64_t AHEAD = 12288;  // bytes; see linear_integer.cpp

template <int MR, int NP> struct Sums {
  F16 acc[MR][NP];
  inline __attribute__((always_inline)) void add(const float* a, const F16* w) {
    for (int r = 0; r < MR; r++) {
      const F16 x = splat16(a[r]);
      for (int p = 0; p < NP; p++) acc[r][p] = fma(w[p], x, acc[r][p]);
    }
  }
};

template <int MR, int NP, int KIND> void floats(const Weight& w, const uint8_t* panel, const float* a, Sums<MR, NP>& s) {
  constexpr int64_t bytes = KIND == KIND_F32 ? 4 : 2;
  for (int64_t k = 0; k < w.K; k++, a += MR) {
    F16 v[NP];
    for (int p = 0; p < NP; p++) {
      v[p] = load16_as(KIND, panel + p * w.panel, k * 16);
      if (bytes == 4 || k % 2 == 0) __builtin_prefetch(panel + p * w.panel + k * 16 * bytes + AHEAD, 0, 2);
    }
    s.add(a, v);
  }
}

// The same (q - zero) * scale as weight.cpp.
template <int MR, int NP, int KIND> void integers(const Weight& w, const uint8_t* panel, const float* a, Sums<MR, NP>& s) {
  constexpr int per = KIND == KIND_I8 ? 4 : 8;
  const int64_t per_group = w.group / 32;
  int64_t group = 0, left = per_group;
  F16 scale[NP], zero[NP];
  for (int64_t b = 0; b < w.depth / 32; b++) {
    if (left == per_group)
      for (int p = 0; p < NP; p++) scale[p] = group_scales(w, panel + p * w.panel, group), zero[p] = group_zeros(w, panel + p * w.panel, group);
    for (int64_t k = b * 32; k < b * 32 + 32 && k < w.K; k += per) {
      vi x[NP][V];
      for (int p = 0; p < NP; p++) {
        const uint8_t* from = panel + p * w.panel + k / per * 64;
        for (int i = 0; i < V; i++) memcpy(&x[p][i], from + i * sizeof(vi), sizeof(vi));
        __builtin_prefetch(from + AHEAD, 0, 2);
      }
      const int64_t count = w.K - k < per ? w.K - k : per;
      for (int j = 0; j < count; j++, a += MR) {
        F16 v[NP];
        for (int p = 0; p < NP; p++)
          for (int i = 0; i < V; i++) {
            const vi q = per == 4 ? (x[p][i] >> (8 * j)) & 255 : (x[p][i] >> (8 * (j & 3) + 4 * (j >> 2))) & 15;
            v[p].v[i] = (__builtin_convertvector(q, vf) - zero[p].v[i]) * scale[p].v[i];
          }
        s.add(a, v);
      }
    }
    if (--left == 0) group++, left = per_group;
  }
}

template <int MR, int NP, int KIND> void stream(const Weight& w, const uint8_t* panel, const float* a, float* sum) {
  Sums<MR, NP> s;
  for (int r = 0; r < MR; r++)
    for (int p = 0; p < NP; p++) s.acc[r][p] = zero16();
  if (KIND >= KIND_I8) integers<MR, NP, KIND>(w, panel, a, s);
  else floats<MR, NP, KIND>(w, panel, a, s);
  for (int r = 0; r < MR; r++)
    for (int p = 0; p < NP; p++) store16(sum + (r * NP + p) * 16, s.acc[r][p]);
}

template <int KIND> StreamTile of_height(int64_t mr, int64_t np) {
  switch (mr) {
    case 1: return np == 2 ? stream<1, 2, KIND> : stream<1, 1, KIND>;
    case 2: return stream<2, 1, KIND>;
    case 3: return stream<3, 1, KIND>;
    case 4: return stream<4, 1, KIND>;
  }
  return nullptr;
}

}  // namespace

StreamTile stream_tile(int64_t mr, int64_t np, int64_t kind) {
  switch (kind) {
    case KIND_F32: return of_height<KIND_F32>(mr, np);
    case KIND_BF16: return of_height<KIND_BF16>(mr, np);
    case KIND_F16: return of_height<KIND_F16>(mr, np);
    case KIND_I8: return of_height<KIND_I8>(mr, np);
    case KIND_I4: return of_height<KIND_I4>(mr, np);
  }
  return nullptr;
}

}  // namespace irl
