#include "weight.h"

namespace irl {
namespace {

// One dword per row holds four (i8) or eight (i4) values of k; a shift brings each down in turn.
void dequantize_block(const Weight& w, const uint8_t* panel, int64_t k0, float* out) {
  const bool wide = w.kind == KIND_I8;
  const int per = wide ? 4 : 8;
  const F16 scale = group_scales(w, panel, k0 / w.group), zero = group_zeros(w, panel, k0 / w.group);
  for (int s = 0; s < 32 / per; s++) {
    const uint8_t* p = panel + (k0 / per + s) * 64;
    for (int i = 0; i < V; i++) {
      vi x;
      memcpy(&x, p + i * W * 4, sizeof x);
      for (int j = 0; j < per; j++) {
        vi q = wide ? (x >> (8 * j)) & 255 : (x >> (8 * (j & 3) + 4 * (j >> 2))) & 15;
        store(out + (s * per + j) * 16 + i * W, (__builtin_convertvector(q, vf) - zero.v[i]) * scale.v[i]);
      }
    }
  }
}

}  // namespace

void dequantize_panel(const Weight& w, int64_t index, int64_t k0, int64_t k1, float* out) {
  const uint8_t* panel = w.data + index * w.panel;
  if (low_bit(w))
    for (int64_t k = k0; k < k1; k += 32) dequantize_block(w, panel, k, out + (k - k0) * 16);
  else
    for (int64_t k = k0; k < k1; k++) store16(out + (k - k0) * 16, load16_as((int)w.kind, panel, k * 16));
}

void dequantize_row(const Weight& w, int64_t row, float* out) {
  const uint8_t* panel = w.data + row / 16 * w.panel;
  const int lane = (int)(row % 16);
  if (!low_bit(w)) {
    for (int64_t k = 0; k < w.K; k++) {
      if (w.kind == KIND_F32) out[k] = ((const float*)panel)[k * 16 + lane];
      else if (w.kind == KIND_BF16) out[k] = bits<float>((uint32_t)((const uint16_t*)panel)[k * 16 + lane] << 16);
      else out[k] = from_f16((const uint16_t*)panel + k * 16 + lane / W * W)[lane % W];
    }
    return;
  }
  const bool wide = w.kind == KIND_I8;
  for (int64_t k0 = 0; k0 < w.K; k0 += 32) {
    float scale[16], zero[16];
    store16(scale, group_scales(w, panel, k0 / w.group));
    store16(zero, group_zeros(w, panel, k0 / w.group));
    for (int64_t k = k0; k < k0 + 32 && k < w.K; k++) {
      int q = wide ? panel[k / 4 * 64 + lane * 4 + k % 4] : panel[k / 8 * 64 + lane * 4 + k % 4] >> (k % 8 >= 4 ? 4 : 0) & 15;
      out[k] = ((float)q - zero[lane]) * scale[lane];
    }
  }
}

}  // namespace irl
