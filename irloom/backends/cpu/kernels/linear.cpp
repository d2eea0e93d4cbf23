// y[T, N] = x[T, K] @ W[N, K]^T (+ bias) (+ residual), for every kind of packed weight; or with an activation, a number
// and a softcap in between.
//
// Work is a grid of (slab of panels) x (run of row tiles); a row's sum runs over k in order, one accumulator per
// output, whatever the tile it is in: that is what makes rows independent of the batch.
#include "linear.h"

namespace irl {
namespace {

struct Call {
  const Weight& w;
  const float* x;
  int64_t ldx, T;
  float* y;
  int64_t ldy;
  const float* residual;
  int64_t ldr;
  int64_t act = 0;  // as in elementwise.cpp
  float scale = 1, cap = 0;  // no cap: 0
  const bool shaped = act != 0 || scale != 1 || cap != 0;

  vf shape(vf v) const {
    switch (act) {
      case 1: v = silu(v); break;
      case 2: v = gelu_tanh(v); break;
      case 3: v = gelu_erf(v); break;
      case 4: v = relu(v); break;
      case 5: v = relu2(v); break;
      case 6: v = sigmoid(v); break;
      case 7: v = tanh(v); break;
      case 8: v = quick_gelu(v); break;
      case 9: v = mish(v); break;
      case 10: v = softplus(v); break;
    }
    v = v * scale;
    return cap != 0 ? cap * tanh(v / cap) : v;
  }
};

// Rows in tiles of nearly equal height, at most `most` rows each.
struct Tiles {
  int64_t T, count;
  Tiles(int64_t rows, int64_t most) : T(rows), count((rows + most - 1) / most) {}
  int64_t row(int64_t tile) const { return T * tile / count; }
  int64_t height(int64_t tile) const { return row(tile + 1) - row(tile); }
};

// Adds bias, epilogue and residual to a finished tile [mr][np * 16] and writes the columns that exist.
void finish(const Call& c, const float* tile, int64_t row, int64_t mr, int64_t panel, int64_t np) {
  const int64_t n0 = panel * 16, n1 = n0 + np * 16 < c.w.N ? n0 + np * 16 : c.w.N;
  for (int64_t r = 0; r < mr; r++, tile += np * 16) {
    float* y = c.y + (row + r) * c.ldy;
    const float* add = c.residual ? c.residual + (row + r) * c.ldr : nullptr;
    for (int64_t n = n0; n < n1; n += W) {
      const int64_t left = n1 - n;
      vf v = load(tile + (n - n0));
      if (left >= W) {
        if (c.w.bias) v = v + load(c.w.bias + n);
        if (c.shaped) v = c.shape(v);
        if (add) v = v + load(add + n);
        store(y + n, v);
      } else {
        if (c.w.bias) v = v + load_part(c.w.bias + n, left);
        if (c.shaped) v = c.shape(v);
        if (add) v = v + load_part(add + n, left);
        store_part(y + n, v, left);
      }
    }
  }
}

static thread_local Scratch values_scratch, tile_scratch, packed_scratch, scale_scratch, sum_scratch;

// ---- fp32 arithmetic: fp32 panels directly, every other kind through an fp32 copy of one block of k

struct FloatSlabs {
  const Call& c;
  const float* packed;
  const Tiles& tiles;
  int64_t t0, t1;
  const bool direct = c.w.kind == KIND_F32;
  const int64_t depth = c.w.K, block = 1024;
  float* values = direct ? nullptr : values_scratch.get<float>(block * FLOAT_PANELS * 16);
  float* sums = tile_scratch.get<float>((tiles.row(t1) - tiles.row(t0)) * FLOAT_PANELS * 16);

  void run(int64_t p0, int64_t np) const;
};

void FloatSlabs::run(int64_t p0, int64_t np) const {
  const Weight& w = c.w;
  const int64_t wide = np * 16;
  for (int64_t k0 = 0; k0 < depth; k0 += block) {
    const int64_t k1 = k0 + block < depth ? k0 + block : depth;
    const int64_t padded = low_bit(w) ? (k1 + 31) / 32 * 32 : k1;
    const float* b = direct ? (const float*)(w.data + p0 * w.panel) + k0 * 16 : values;
    const int64_t stride = direct ? w.panel / 4 : block * 16;
    if (!direct)
      for (int64_t p = 0; p < np; p++) dequantize_panel(w, p0 + p, k0, padded, values + p * stride);
    for (int64_t t = t0; t < t1; t++) {
      const int64_t mr = tiles.height(t), row = tiles.row(t);
      float* sum = sums + (row - tiles.row(t0)) * wide;
      float_tile(mr, np)(k1 - k0, packed + row * depth + k0 * mr, b, stride, sum, k0 > 0);
      if (k1 >= depth) finish(c, sum, row, mr, p0, np);
    }
  }
}

// [tile][k][mr]; a single row is its own packing.
const float* pack_float(const Call& c, const Tiles& tiles) {
  if (c.T == 1) return c.x;
  const int64_t K = c.w.K;
  float* out = packed_scratch.get<float>(c.T * K);
  parallel_range(tiles.count, 1 + 16384 / (K * FLOAT_ROWS + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++) {
      const int64_t mr = tiles.height(t), row = tiles.row(t);
      for (int64_t r = 0; r < mr; r++) {
        const float* from = c.x + (row + r) * c.ldx;
        float* to = out + row * K + r;
        for (int64_t k = 0; k < K; k++) to[k * mr] = from[k];
      }
    }
  });
  return out;
}

// ---- integer arithmetic: activations rounded once to int8 per 32 values

struct IntegerSlabs {
  const Call& c;
  const Activations& a;
  const Tiles& tiles;
  int64_t t0, t1;
  // Many tiles share one widening of the nibbles.
  const bool nibbles = c.w.kind == KIND_I4 && t1 - t0 <= 8, widen = c.w.kind == KIND_I4 && !nibbles;
  const int64_t blocks = c.w.depth / 32, step = widen ? 32 : tiles.count == 1 ? blocks : 64;
  uint8_t* values = widen ? values_scratch.get<uint8_t>(step * 512 * INTEGER_PANELS) : nullptr;
  float* sums = tile_scratch.get<float>((tiles.row(t1) - tiles.row(t0)) * INTEGER_PANELS * 16);

  void run(int64_t p0, int64_t np) const;
};

void IntegerSlabs::run(int64_t p0, int64_t np) const {
  const Weight& w = c.w;
  const int64_t wide = np * 16;
  for (int64_t b0 = 0; b0 < blocks; b0 += step) {
    const int64_t b1 = b0 + step < blocks ? b0 + step : blocks;
    const uint8_t* q = w.data + p0 * w.panel + b0 * (w.kind == KIND_I4 ? 256 : 512);
    if (widen)
      for (int64_t p = 0; p < np; p++) widen_nibbles(q + p * w.panel, values + p * step * 512, (b1 - b0) * 4);
    for (int64_t t = t0; t < t1; t++) {
      const int64_t mr = tiles.height(t), row = tiles.row(t);
      float* sum = sums + (row - tiles.row(t0)) * wide;
      IntegerTile job{w, a.values + row * w.depth + b0 * 32 * mr, a.scales + row * blocks, a.sums + row * blocks,
                      widen ? values : q, widen ? step * 512 : w.panel, w.data + p0 * w.panel, b0, b1};
      integer_tile(mr, np, w.kind, nibbles)(job, sum);
      if (b1 == blocks) finish(c, sum, row, mr, p0, np);
    }
  }
}

Activations pack_integer(const Call& c, const Tiles& tiles) {
  const int64_t depth = c.w.depth, blocks = depth / 32;
  Activations a{packed_scratch.get<int8_t>(c.T * depth), scale_scratch.get<float>(c.T * blocks), sum_scratch.get<int32_t>(c.T * blocks)};
  const int32_t less = c.w.has_zeros ? 1 : c.w.kind == KIND_I8 ? -128 : -8;
  parallel_range(tiles.count, 1 + 32768 / (depth * INTEGER_ROWS + 1), [&](int64_t t0, int64_t t1) {
    for (int64_t t = t0; t < t1; t++) {
      const int64_t mr = tiles.height(t), row = tiles.row(t);
      for (int64_t r = 0; r < mr; r++)
        quantize_row(c.x + (row + r) * c.ldx, c.w.K, mr, less, a.values + row * depth + r * 4, a.scales + row * blocks + r,
                     a.sums + row * blocks + r);
    }
  });
  return a;
}

// ---- the grid

// Chunks of slabs of `np` panels, and of tiles too when there are few slabs; make(t0, t1).run(panel, panels).
template <class F> void over_grid(const Weight& w, const Tiles& tiles, int64_t np, int64_t bytes_per_chunk, F&& make) {
  const int64_t count = panels(w), slabs = (count + np - 1) / np, most = threads() == 1 ? 1 : threads() * 8;
  const int64_t want = count * w.panel / bytes_per_chunk * tiles.count;
  const int64_t chunks = want < 1 ? 1 : want > most ? most : want;
  const int64_t across = chunks < slabs ? chunks : slabs;
  const int64_t spare = chunks / across, down = spare < 1 ? 1 : spare < tiles.count ? spare : tiles.count;
  parallel_for(across * down, [&](int64_t i) {
    const int64_t d = i / across, a = i % across;
    const auto slab = make(tiles.count * d / down, tiles.count * (d + 1) / down);
    for (int64_t s = slabs * a / across; s < slabs * (a + 1) / across; s++) slab.run(s * np, (s + 1) * np <= count ? np : count - s * np);
  });
}

struct Stream {
  const Call& c;
  const float* packed;
  float* sum = tile_scratch.get<float>(STREAM_ROWS * 32);

  void run(int64_t p0, int64_t np) const {
    stream_tile(c.T, np, c.w.kind)(c.w, c.w.data + p0 * c.w.panel, packed, sum);
    finish(c, sum, 0, c.T, p0, np);
  }
};

void linear(const Call& c) {
  const Weight& w = c.w;
  if (low_bit(w) && w.int8_activations) {
    const Tiles tiles(c.T, INTEGER_ROWS);
    const Activations a = pack_integer(c, tiles);
    over_grid(w, tiles, INTEGER_PANELS, 32 << 10, [&](int64_t t0, int64_t t1) { return IntegerSlabs{c, a, tiles, t0, t1}; });
  } else {
    const Tiles tiles(c.T, FLOAT_ROWS);
    const float* packed = pack_float(c, tiles);
    // Low bits take long to widen: two panels then hide the latency of each other's sums.
    if (c.T <= STREAM_ROWS && tiles.count == 1)
      return over_grid(w, tiles, c.T == 1 && low_bit(w) ? 2 : 1, 64 << 10, [&](int64_t, int64_t) { return Stream{c, packed}; });
    over_grid(w, tiles, FLOAT_PANELS, 64 << 10, [&](int64_t t0, int64_t t1) { return FloatSlabs{c, packed, tiles, t0, t1}; });
  }
}

}  // namespace
}  // namespace irl

extern "C" {

// y = residual + cap * tanh(z / cap), z = scale * act(x @ W^T + bias); no cap: 0.
void irl_linear_act(const irl::Weight* w, const float* x, int64_t ldx, float* y, int64_t ldy, const float* residual, int64_t ldr,
                    int64_t T, int64_t act, double scale, double cap) {
  // Many rows go in runs whose packed activations stay in the outer cache.
  const int64_t run = w->K > 0 && (4 << 20) / w->K > 64 ? (4 << 20) / w->K / 48 * 48 : 48;
  for (int64_t t = 0; t < T; t += run)
    irl::linear({*w, x + t * ldx, ldx, T - t < run ? T - t : run, y + t * ldy, ldy, residual ? residual + t * ldr : nullptr, ldr,
                 act, (float)scale, (float)cap});
}

void irl_linear(const irl::Weight* w, const float* x, int64_t ldx, float* y, int64_t ldy, const float* residual, int64_t ldr, int64_t T) {
  irl_linear_act(w, x, ldx, y, ldy, residual, ldr, T, 0, 1, 0);
}

}
