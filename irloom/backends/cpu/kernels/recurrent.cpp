// Recurrences over the tokens of each sequence, with the state in its slot of the cache.
//
// A sequence goes token by token, so the bits of a result do not depend on how its prompt was chunked; heads and
// channels are independent of each other, and shared among threads.
#include "pool.h"
#include "vec.h"

namespace irl {
namespace {

// The states [slots, size] of one layer, and the tokens of this step.
struct States {
  float* slots;
  const int32_t *starts, *context, *table;
  int64_t S, max_slots, every, size;

  // Entries [at, at + n) of the state of sequence `s`, in the slot where this step leaves it.
  float* open(int64_t s, int64_t at, int64_t n) const {
    const int64_t end = context[s], first = end - (starts[s + 1] - starts[s]);
    const int32_t* row = table + s * max_slots;
    float* now = slots + row[(end - 1) / every] * size + at;
    const float* before = first ? slots + row[(first - 1) / every] * size + at : nullptr;
    if (!before) memset(now, 0, (size_t)n * 4);
    else if (before != now) memcpy(now, before, (size_t)n * 4);
    return now;
  }

  // f(s, i) for every sequence and each of `parts` parts of its state; `work` is what a token costs of one.
  template <class F> void each(int64_t parts, int64_t work, F&& f) const {
    const int64_t tokens = starts[S] / S, grain = 1 + 16384 / (tokens * work + 1);
    parallel_range(S * parts, grain, [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; i++) f(i / parts, i % parts);
    });
  }
};

constexpr int64_t BLOCK = 64;  // channels
int64_t blocks(int64_t C) { return (C + BLOCK - 1) / BLOCK; }
int64_t block_size(int64_t C, int64_t i) { return C - i * BLOCK < BLOCK ? C - i * BLOCK : BLOCK; }

IRL_INLINE F16 load_lanes(const float* p, int64_t left) {
  if (left >= 16) return load16(p);
  float t[16] = {};
  memcpy(t, p, (size_t)left * 4);
  return load16(t);
}
IRL_INLINE void store_lanes(float* p, F16 v, int64_t left) {
  if (left >= 16) return store16(p, v);
  float t[16];
  store16(t, v);
  memcpy(p, t, (size_t)left * 4);
}
float exp_of(float x) { return exp(splat(x))[0]; }

}  // namespace
}  // namespace irl

using namespace irl;

#define IRL_STATES float *slots, const int32_t *starts, const int32_t *context, const int32_t *table, int64_t S, int64_t max_slots, int64_t every
#define IRL_OPEN(size) const States states = {slots, starts, context, table, S, max_slots, every, size}

extern "C" {

// y[t] = bias + sum_i w[i] * x[t - K + 1 + i]; the state [C, K - 1] is the last inputs. w [C, K], bias may be 0.
void irl_causal_conv(const float* x, int64_t ldx, const float* w, const float* bias, float* y, int64_t ldy, int64_t C, int64_t K, IRL_STATES) {
  IRL_OPEN(C * (K - 1));
  states.each(blocks(C), BLOCK * K, [&](int64_t s, int64_t i) {
    static thread_local Scratch scratch;
    const int64_t c0 = i * BLOCK, n = block_size(C, i);
    float* kept = states.open(s, c0 * (K - 1), n * (K - 1));
    float *taps = scratch.get<float>((size_t)(2 * K * BLOCK)), *seen = taps + K * BLOCK;  // both [K, BLOCK]
    for (int64_t k = 0; k < K; k++)
      for (int64_t c = 0; c < n; c++) {
        taps[k * BLOCK + c] = w[(c0 + c) * K + k];
        if (k < K - 1) seen[k * BLOCK + c] = kept[c * (K - 1) + k];
      }
    int64_t oldest = 0;  // `seen` is a ring
    for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
      float sum[BLOCK] = {};
      memcpy(seen + (oldest + K - 1) % K * BLOCK, x + t * ldx + c0, (size_t)n * 4);
      for (int64_t k = 0; k < K; k++) {
        const float *row = seen + (oldest + k) % K * BLOCK, *tap = taps + k * BLOCK;
        for (int64_t c = 0; c < n; c++) sum[c] = fma(tap[c], row[c], sum[c]);
      }
      float* out = y + t * ldy + c0;
      for (int64_t c = 0; c < n; c++) out[c] = bias ? sum[c] + bias[c0 + c] : sum[c];
      oldest = (oldest + 1) % K;
    }
    for (int64_t k = 0; k < K - 1; k++)
      for (int64_t c = 0; c < n; c++) kept[c * (K - 1) + k] = seen[(oldest + k) % K * BLOCK + c];
  });
}

// y[t] = x[t - 1]; the state is the last token.
void irl_token_shift(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t C, IRL_STATES) {
  IRL_OPEN(C);
  states.each(blocks(C), BLOCK, [&](int64_t s, int64_t i) {
    const int64_t c0 = i * BLOCK, n = block_size(C, i);
    float* kept = states.open(s, c0, n);
    for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
      memcpy(y + t * ldy + c0, t == starts[s] ? kept : x + (t - 1) * ldx + c0, (size_t)n * 4);
    }
    memcpy(kept, x + (starts[s + 1] - 1) * ldx + c0, (size_t)n * 4);
  });
}

// h[t] = decay[t] * h[t - 1] + x[t]; y is h.
void irl_linear_scan(const float* x, int64_t ldx, const float* decay, int64_t ldd, float* y, int64_t ldy, int64_t C, IRL_STATES) {
  IRL_OPEN(C);
  states.each(blocks(C), BLOCK, [&](int64_t s, int64_t i) {
    const int64_t c0 = i * BLOCK, n = block_size(C, i);
    float* h = states.open(s, c0, n);
    for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
      const float *in = x + t * ldx + c0, *keep = decay + t * ldd + c0;
      for (int64_t c = 0; c < n; c++) h[c] = fma(keep[c], h[c], in[c]);
      memcpy(y + t * ldy + c0, h, (size_t)n * 4);
    }
  });
}

// Mamba: h = exp(dt * a) * h + dt * x * b, y = h . c; a and the state are [C, N], b and c [T, N].
void irl_selective_scan(const float* x, int64_t ldx, const float* dt, int64_t lddt, const float* a, const float* b, int64_t ldb, const float* c,
                        int64_t ldc, float* y, int64_t ldy, int64_t C, int64_t N, IRL_STATES) {
  IRL_OPEN(C * N);
  states.each(C, 4 * N, [&](int64_t s, int64_t i) {
    float* h = states.open(s, i * N, N);
    for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
      const float step = dt[t * lddt + i];
      const F16 rate = splat16(step), in = splat16(step * x[t * ldx + i]);
      F16 out = zero16();
      for (int64_t n = 0; n < N; n += 16) {
        const F16 keep = exp(rate * load_lanes(a + i * N + n, N - n));
        const F16 now = fma(keep, load_lanes(h + n, N - n), in * load_lanes(b + t * ldb + n, N - n));
        store_lanes(h + n, now, N - n);
        out = fma(now, load_lanes(c + t * ldc + n, N - n), out);
      }
      y[t * ldy + i] = sum(out);
    }
  });
}

// Mamba-2: h = exp(dt * a) * h + dt * outer(x, b), y = h . c; x [T, H, P], b and c [T, G, N], the state [H, P, N].
void irl_ssd_scan(const float* x, int64_t ldx, const float* dt, int64_t lddt, const float* a, const float* b, int64_t ldb, const float* c,
                  int64_t ldc, float* y, int64_t ldy, int64_t H, int64_t P, int64_t G, int64_t N, IRL_STATES) {
  IRL_OPEN(H * P * N);
  states.each(H, P * N, [&](int64_t s, int64_t i) {
    float* h = states.open(s, i * P * N, P * N);
    const int64_t group = i / (H / G) * N;
    for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
      const float step = dt[t * lddt + i];
      const F16 keep = splat16(exp_of(step * a[i]));
      const float *write = b + t * ldb + group, *read = c + t * ldc + group, *in = x + t * ldx + i * P;
      for (int64_t p = 0; p < P; p++) {
        const F16 add = splat16(step * in[p]);
        F16 out = zero16();
        for (int64_t n = 0; n < N; n += 16) {
          float* at = h + p * N + n;
          const F16 now = fma(keep, load_lanes(at, N - n), add * load_lanes(write + n, N - n));
          store_lanes(at, now, N - n);
          out = fma(now, load_lanes(read + n, N - n), out);
        }
        y[t * ldy + i * P + p] = sum(out);
      }
    }
  });
}

// The gated delta rule: h = exp(decay) * h, then h += outer(k, beta * (v - h . k)), y = h . q; without beta
// h += outer(k, v). q and k [T, H, K], v [T, H, V], decay [T, H, D] with D 1 or K, beta [T, H], the state [H, K, V].
void irl_gated_delta(const float* q, int64_t ldq, const float* k, int64_t ldk, const float* v, int64_t ldv, const float* decay, int64_t ldd,
                     const float* beta, int64_t ldb, float* y, int64_t ldy, int64_t H, int64_t K, int64_t V, int64_t D, IRL_STATES) {
  IRL_OPEN(H * K * V);
  states.each(H, 2 * K * V, [&](int64_t s, int64_t i) {
    static thread_local Scratch scratch;
    float* h = states.open(s, i * K * V, K * V);
    float* add = scratch.get<float>((size_t)V);
    for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
      const float *query = q + t * ldq + i * K, *key = k + t * ldk + i * K, *value = v + t * ldv + i * V, *log = decay + t * ldd + i * D;
      float *out = y + t * ldy + i * V, keep = exp_of(log[0]);
      memset(add, 0, (size_t)V * 4);
      for (int64_t r = 0; r < K; r++) {
        if (D > 1) keep = exp_of(log[r]);
        float* row = h + r * V;
        for (int64_t n = 0; n < V; n++) row[n] *= keep;
        if (beta) for (int64_t n = 0; n < V; n++) add[n] = fma(row[n], key[r], add[n]);
      }
      for (int64_t n = 0; n < V; n++) add[n] = beta ? beta[t * ldb + i] * (value[n] - add[n]) : value[n], out[n] = 0;
      for (int64_t r = 0; r < K; r++) {
        float* row = h + r * V;
        for (int64_t n = 0; n < V; n++) row[n] = fma(key[r], add[n], row[n]), out[n] = fma(row[n], query[r], out[n]);
      }
    }
  });
}

// RWKV-4: the average of v weighted by exp(k), falling by exp(decay) a token, the token's own times exp(first).
// The state [3, C] is numerator and denominator over exp(m), and m, the running maximum.
void irl_wkv(const float* k, int64_t ldk, const float* v, int64_t ldv, const float* decay, const float* first, float* y, int64_t ldy, int64_t C,
             IRL_STATES) {
  IRL_OPEN(3 * C);
  states.each(blocks(C), 16 * BLOCK, [&](int64_t s, int64_t i) {
    const int64_t c0 = i * BLOCK, count = block_size(C, i);
    float* kept[3];
    for (int64_t j = 0; j < 3; j++) kept[j] = states.open(s, j * C + c0, count);
    for (int64_t c = 0; c < count; c += 16) {
      const int64_t left = count - c;
      F16 num = load_lanes(kept[0] + c, left), den = load_lanes(kept[1] + c, left), most = load_lanes(kept[2] + c, left);
      for (int j = 0; j < V; j++) most.v[j] = den.v[j] > 0 ? most.v[j] : splat(-1e38f);  // nothing seen yet: below all
      const F16 fall = load_lanes(decay + c0 + c, left), own = load_lanes(first + c0 + c, left);
      for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
        const F16 key = load_lanes(k + t * ldk + c0 + c, left), value = load_lanes(v + t * ldv + c0 + c, left);
        F16 top = max(most, key + own), old = exp(most - top), now = exp(key + own - top), out;
        const F16 over = fma(now, value, old * num), under = fma(old, den, now);
        for (int j = 0; j < V; j++) out.v[j] = over.v[j] / under.v[j];
        store_lanes(y + t * ldy + c0 + c, out, left);
        top = max(most + fall, key), old = exp(most + fall - top), now = exp(key - top);
        num = fma(now, value, old * num), den = fma(old, den, now), most = top;
      }
      store_lanes(kept[0] + c, num, left), store_lanes(kept[1] + c, den, left), store_lanes(kept[2] + c, most, left);
    }
  });
}

}
