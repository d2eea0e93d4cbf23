// A packed weight: panels of sixteen output rows, interleaved so that one vector holds the same k of sixteen rows.
//
// One panel, for `depth` = K (padded to a multiple of 32 when low-bit):
//   f32, bf16, f16   [k][16]                                    values as stored
//   i8               [k / 4][16][4]   u8 = q + 128              then scales, then zeros
//   i4               [k / 8][16][4]   (q + 8) of k 0..3 in the low nibbles, of k 4..7 in the high ones
//   scales           [group][16]      f32, bf16 or f16;  zeros  [group][16] u8, in the same unsigned domain
// Scales and zeros start at multiples of 64 bytes. Rows past N are zero.
#pragma once
#include "vec.h"

namespace irl {

enum Kind { KIND_F32 = 0, KIND_BF16 = 1, KIND_F16 = 2, KIND_I8 = 3, KIND_I4 = 4 };

// Mirrored by `Descriptor` in native.py.
struct Weight {
  const uint8_t* data;
  const float* bias;  // [N], or null
  int64_t N, K;
  int64_t kind;
  int64_t depth;       // K, padded when low-bit
  int64_t group;       // values of k per scale
  int64_t scale_elem;  // Elem of the scales
  int64_t has_zeros;   // else the zero point is 128 (i8) or 8 (i4)
  int64_t int8_activations;
  int64_t panel, scales, zeros;  // bytes: of one panel, and of the tables' starts within it
};

IRL_INLINE int64_t panels(const Weight& w) { return (w.N + 15) / 16; }
IRL_INLINE bool low_bit(const Weight& w) { return w.kind >= KIND_I8; }

// The sixteen scales, or zero points, of group `g` of a panel.
IRL_INLINE F16 group_scales(const Weight& w, const uint8_t* panel, int64_t g) {
  return load16_as((int)w.scale_elem, panel + w.scales, g * 16);
}
IRL_INLINE F16 group_zeros(const Weight& w, const uint8_t* panel, int64_t g) {
  if (!w.has_zeros) return splat16(w.kind == KIND_I8 ? 128.0f : 8.0f);
  F16 r;
  for (int i = 0; i < V; i++) r.v[i] = from_u8(panel + w.zeros + g * 16 + i * W);
  return r;
}

// fp32 values [k1 - k0][16] of one panel; k0 and k1 multiples of 32 when low-bit.
void dequantize_panel(const Weight& w, int64_t panel, int64_t k0, int64_t k1, float* out);
// One output row as fp32 [K].
void dequantize_row(const Weight& w, int64_t row, float* out);

}  // namespace irl
