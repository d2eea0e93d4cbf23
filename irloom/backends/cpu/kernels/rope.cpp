// Rotary embedding, fused with the per-head norm some models put before it, and with the append to a paged cache.
#include "norm.h"
#include "pool.h"

namespace irl {
namespace {

// Rotates the first `half` pairs of one head; pairs are (i, i + half), or (2i, 2i + 1) when interleaved.
void rotate(const float* x, const float* c, const float* s, float* y, int64_t half, bool interleaved) {
  int64_t i = 0;
  if (!interleaved)
    for (; i + W <= half; i += W) {
      const vf a = load(x + i), b = load(x + i + half), cs = load(c + i), sn = load(s + i);
      store(y + i, fma(a, cs, -(b * sn)));
      store(y + i + half, fma(b, cs, a * sn));
    }
  for (; i < half; i++) {
    const int64_t p = interleaved ? 2 * i : i, q = interleaved ? 2 * i + 1 : i + half;
    const float a = x[p], b = x[q];
    y[p] = fma(a, c[i], -(b * s[i]));
    y[q] = fma(b, c[i], a * s[i]);
  }
}

struct Turn {
  const float *c, *s;
  int64_t D, rotary;
  bool interleaved;

  // One head of token t from x to y, which may be x.
  void head(const float* x, float* y, int64_t t) const {
    rotate(x, c + t * (rotary / 2), s + t * (rotary / 2), y, rotary / 2, interleaved);
    if (x != y && D > rotary) memcpy(y + rotary, x + rotary, (size_t)(D - rotary) * 4);
  }
};

void write(void* base, int elem, int64_t at, const float* x, int64_t n) {
  if (elem == ELEM_F32) memcpy((float*)base + at, x, (size_t)n * 4);
  else if (elem == ELEM_BF16)
    for (int64_t i = 0; i < n; i++) ((uint16_t*)base)[at + i] = to_bf16(x[i]);
  else
    for (int64_t i = 0; i < n; i++) ((uint16_t*)base)[at + i] = to_f16(x[i]);
}

}  // namespace
}  // namespace irl

using namespace irl;

extern "C" {

// cos and sin [T, half] of float(position) * inv_freq, both times `scale`.
void irl_rope_table(const int32_t* positions, const float* inv_freq, float* c, float* s, int64_t T, int64_t half, double scale) {
  parallel_range(T, 1 + 1024 / (half + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++)
      for (int64_t i = 0; i < half; i++) {
        const float angle = (float)positions[t] * inv_freq[i];
        float sn, cs;
        sincosf(angle, &sn, &cs);
        c[t * half + i] = cs * (float)scale;
        s[t * half + i] = sn * (float)scale;
      }
  });
}

// y[T, heads, D] = rope(rms_norm(x, w)); no norm when w is null. Dims past `rotary` pass through. y may be x.
void irl_rope(const float* x, int64_t ldx, const float* w, const float* c, const float* s, float* y, int64_t ldy, int64_t T,
              int64_t heads, int64_t D, int64_t rotary, int64_t interleaved, double eps) {
  const Turn turn{c, s, D, rotary, interleaved != 0};
  parallel_range(T, 1 + 8192 / (heads * D + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++)
      for (int64_t h = 0; h < heads; h++) {
        const float* from = x + t * ldx + h * D;
        float* to = y + t * ldy + h * D;
        if (w) {
          rms_norm_row(from, w, to, D, (float)eps);
          from = to;
        }
        turn.head(from, to, t);
      }
  });
}

// slots[t] = page * page size + offset of each token's place in a pool (-1: its page is not held), positions[t] its
// absolute position. Once per step and pool; `positions` may be null.
void irl_slots(const int32_t* starts, const int32_t* context, const int32_t* table, int64_t S, int64_t max_pages, int64_t page,
               int64_t* slots, int32_t* positions) {
  for (int64_t q = 0; q < S; q++)
    for (int32_t t = starts[q]; t < starts[q + 1]; t++) {
      const int64_t position = context[q] - (starts[q + 1] - t), index = position / page;
      const int32_t held = index < max_pages ? table[q * max_pages + index] : -1;
      slots[t] = held < 0 ? -1 : held * page + position % page;
      if (positions) positions[t] = (int32_t)position;
    }
}

// k [T, KV, D] and v [T, KV, Dv], rows ldk and ldv apart, into caches [P, page, KV, D] of `elem`.
void irl_kv_append(const float* k, int64_t ldk, const float* v, int64_t ldv, void* kcache, void* vcache, int64_t elem,
                   const int64_t* slots, int64_t T, int64_t KV, int64_t D, int64_t Dv) {
  parallel_range(T, 1 + 8192 / (KV * D + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++) {
      if (slots[t] < 0) continue;
      write(kcache, (int)elem, slots[t] * KV * D, k + t * ldk, KV * D);
      write(vcache, (int)elem, slots[t] * KV * Dv, v + t * ldv, KV * Dv);
    }
  });
}

// What comes between the projections and attention: heads of q [T, H, D] and k [T, KV, D] normed when `norm` (times qw
// and kw where given) and turned, q to y, k and v [T, KV, Dv] to their places in the caches.
void irl_rope_append(const float* q, int64_t ldq, const float* k, int64_t ldk, const float* v, int64_t ldv, int64_t norm,
                     const float* qw, const float* kw, const float* c, const float* s, float* y, int64_t ldy, void* kcache,
                     void* vcache, int64_t elem, const int64_t* slots, int64_t T, int64_t H, int64_t KV, int64_t D, int64_t Dv,
                     int64_t rotary, int64_t interleaved, double eps) {
  const Turn turn{c, s, D, rotary, interleaved != 0};
  const auto place = [&](const float* x, const float* w, float* to, int64_t t) {
    if (norm) rms_norm_row(x, w, to, D, (float)eps), x = to;
    turn.head(x, to, t);
  };
  parallel_range(T, 1 + 8192 / ((H + KV) * D + 1), [&](int64_t t0, int64_t t1) {
    static thread_local Scratch scratch;
    float* turned = scratch.get<float>((size_t)(KV * D));
    for (int64_t t = t0; t < t1; t++) {
      for (int64_t h = 0; h < H; h++) place(q + t * ldq + h * D, qw, y + t * ldy + h * D, t);
      if (slots[t] < 0) continue;
      for (int64_t h = 0; h < KV; h++) place(k + t * ldk + h * D, kw, turned + h * D, t);
      write(kcache, (int)elem, slots[t] * KV * D, turned, KV * D);
      write(vcache, (int)elem, slots[t] * KV * Dv, v + t * ldv, KV * Dv);
    }
  });
}

}
