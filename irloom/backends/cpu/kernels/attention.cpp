// Attention of packed queries over a paged cache, for any mix of prefill and decode.
//
// A query's keys are cut at absolute positions: into splits, each an online softmax of its own over blocks of 64, and
// the splits' results are merged in order. Nothing of that depends on which queries share a tile, on which thread runs
// a split, or on how the prompt was chunked, so neither do a row's bits.
#include "attention.h"

#include <cmath>
#include <vector>

#include "pool.h"

namespace irl {
namespace {

constexpr int64_t SPLIT = 256;    // keys
constexpr int64_t TILE_ROWS = 32; // rows = queries x heads of one KV head

struct Attention {
  const float* q;
  int64_t ldq;
  const void *kcache, *vcache;
  int64_t elem, page, KV;
  const int32_t *starts, *context, *table;
  int64_t S, max_pages, H, D, Dv, window, chunk;
  const float *sinks, *slopes;
  float* out;
  int64_t ldo;
  float scale, softcap;

  int64_t group() const { return H / KV; }
  int64_t Dp() const { return (D + 15) / 16 * 16; }
  int64_t Dvp() const { return (Dv + 15) / 16 * 16; }
  int64_t value_width() const { return vcache == kcache ? D : Dv; }  // one cache: values are the first features of keys
  bool direct() const { return elem == ELEM_F32 && D % 16 == 0 && Dv % 16 == 0; }
};

// Queries [t0, t1) of sequence s for one KV head, and the keys [lo, hi) that any of them sees.
struct Item { int64_t s, kv, t0, t1, lo, hi; };

int64_t position(const Attention& a, int64_t s, int64_t t) { return a.context[s] - (a.starts[s + 1] - t); }
int64_t first_key(const Attention& a, int64_t pos) {
  const int64_t near = a.window > 0 && pos >= a.window ? pos - a.window + 1 : 0, own = a.chunk > 0 ? pos / a.chunk * a.chunk : 0;
  return near > own ? near : own;
}

// Running softmax of the rows of a tile: largest score, sum of weights, weighted values [Dvp].
struct State {
  float *m, *l, *acc;
  static size_t floats(int64_t rows, int64_t width) { return (size_t)(rows * (width + 2) + 32); }
  State(float* base, int64_t rows, int64_t width) : m(base), l(base + rows), acc(base + (2 * rows + 15) / 16 * 16) {
    for (int64_t r = 0; r < rows; r++) m[r] = -INFINITY, l[r] = 0;
    memset(acc, 0, (size_t)(rows * width) * 4);
  }
  State(float* base, int64_t rows) : m(base), l(base + rows), acc(base + (2 * rows + 15) / 16 * 16) {}
};

// exp(a - b) where a may be -inf, and b too when a is.
float weight_of(float a, float b) { return a == -INFINITY ? 0.0f : exp(splat(a - b))[0]; }

// total = total (+) part, of one row.
void merge(const State& total, const State& part, int64_t r, int64_t width) {
  if (part.m[r] == -INFINITY) return;
  const float m = part.m[r] > total.m[r] ? part.m[r] : total.m[r];
  const float a = weight_of(total.m[r], m), b = weight_of(part.m[r], m);
  total.l[r] = fma(part.l[r], b, total.l[r] * a);
  total.m[r] = m;
  float *x = total.acc + r * width, *y = part.acc + r * width;
  for (int64_t d = 0; d < width; d += 16) store16(x + d, fma(load16(y + d), splat16(b), load16(x + d) * splat16(a)));
}

// Where the keys and values of one block lie; entries outside [j0, j1) repeat a valid one.
struct Block {
  const float *k[BLOCK], *v[BLOCK];
  int64_t j0, j1;
};

static thread_local Scratch key_scratch, value_scratch, query_scratch, state_scratch, score_scratch;

const float* widened(const void* cache, int elem, int64_t at, int64_t D, float* to, int64_t Dp) {
  int64_t d = 0;
  for (; d + 16 <= D; d += 16) store16(to + d, load16_as(elem, cache, at + d));
  for (; d < D; d++) {
    if (elem == ELEM_F32) to[d] = ((const float*)cache)[at + d];
    else {
      uint16_t lane[W] = {((const uint16_t*)cache)[at + d]};
      to[d] = elem == ELEM_BF16 ? from_bf16(lane)[0] : from_f16(lane)[0];
    }
  }
  for (; d < Dp; d++) to[d] = 0;
  return to;
}

void locate(const Attention& a, const Item& it, int64_t start, Block& b) {
  b.j0 = it.lo > start ? it.lo - start : 0;
  b.j1 = it.hi - start < BLOCK ? it.hi - start : BLOCK;
  const bool direct = a.direct();
  float* ks = direct ? nullptr : key_scratch.get<float>((size_t)(BLOCK * a.Dp()));
  float* vs = direct ? nullptr : value_scratch.get<float>((size_t)(BLOCK * a.Dvp()));
  const int32_t* table = a.table + it.s * a.max_pages;
  for (int64_t j = b.j0; j < b.j1; j++) {
    const int64_t key = start + j, slot = table[key / a.page] * a.page + key % a.page;
    const int64_t ka = (slot * a.KV + it.kv) * a.D, va = (slot * a.KV + it.kv) * a.value_width();
    b.k[j] = direct ? (const float*)a.kcache + ka : widened(a.kcache, (int)a.elem, ka, a.D, ks + j * a.Dp(), a.Dp());
    b.v[j] = direct ? (const float*)a.vcache + va : widened(a.vcache, (int)a.elem, va, a.Dv, vs + j * a.Dvp(), a.Dvp());
  }
  for (int64_t j = 0; j < BLOCK; j++)
    if (j < b.j0 || j >= b.j1) b.k[j] = b.k[b.j0], b.v[j] = b.v[b.j0];
}

// Scores of one row to weights, in place; columns outside [j0, j1) get 0. Column j is `away + j` positions from the query,
// each of which adds `slope`. Returns the factor that the row's earlier sum keeps.
float soften(const Attention& a, float* s, int64_t j0, int64_t j1, float slope, int64_t away, float& m, float& l) {
  F16 v[BLOCK / 16], most = splat16(-INFINITY);
  if (j1 <= j0) {
    memset(s, 0, BLOCK * 4);
    return 1.0f;
  }
  for (int64_t j = 0; j < BLOCK; j++)
    if (j < j0 || j >= j1) s[j] = -INFINITY;
  for (int i = 0; i < BLOCK / 16; i++) {
    v[i] = load16(s + i * 16) * splat16(a.scale);
    if (a.softcap > 0) v[i] = tanh(v[i] * splat16(1.0f / a.softcap)) * splat16(a.softcap);
    if (a.softcap > 0 || a.scale <= 0) {  // what bounds a score must not bound the mask
      float t[16];
      store16(t, v[i]);
      for (int64_t j = 0; j < 16; j++)
        if (i * 16 + j < j0 || i * 16 + j >= j1) t[j] = -INFINITY;
      v[i] = load16(t);
    }
    if (a.slopes) {
      float t[16];
      for (int64_t j = 0; j < 16; j++) t[j] = (float)(away + i * 16 + j);
      v[i] = fma(splat16(slope), load16(t), v[i]);
    }
    most = max(v[i], most);
  }
  float top = max_of(most);
  top = top > m ? top : m;
  const float keep = weight_of(m, top);
  F16 total = zero16();
  for (int i = 0; i < BLOCK / 16; i++) {
    const F16 p = exp(v[i] - splat16(top));
    store16(s + i * 16, p);
    total = total + p;
  }
  m = top;
  l = fma(l, keep, sum(total));
  return keep;
}

// Adds the keys of one split to the state of every row. `q` is [padded rows][Dp].
void run_split(const Attention& a, const Item& it, int64_t split, const float* q, const State& state, int64_t rows) {
  const int64_t G = a.group(), Dp = a.Dp(), Dvp = a.Dvp();
  float* scores = score_scratch.get<float>(ROWS * BLOCK);
  const int64_t from = split * SPLIT > it.lo ? split * SPLIT : it.lo / BLOCK * BLOCK;
  for (int64_t start = from; start < (split + 1) * SPLIT && start < it.hi; start += BLOCK) {
    if (start + BLOCK <= it.lo) continue;
    Block b;
    locate(a, it, start, b);
    const int64_t c0 = b.j0 / KEYS * KEYS, c1 = (b.j1 + KEYS - 1) / KEYS * KEYS;
    for (int64_t r0 = 0, height; r0 < rows; r0 += height) {
      height = tile_rows(rows - r0);
      const float *qs[ROWS], *ps[ROWS];
      float *accs[ROWS], keep[ROWS];
      for (int64_t i = 0; i < height; i++) {
        const int64_t r = r0 + i;
        qs[i] = q + r * Dp;
        ps[i] = scores + i * BLOCK;
        accs[i] = state.acc + r * Dvp;
      }
      score_tile(height, qs, b.k + c0, c1 - c0, Dp, scores + c0);
      for (int64_t i = 0; i < height; i++) {
        const int64_t r = r0 + i, last = it.t1 - 1, t = it.t0 + r / G < it.t1 ? it.t0 + r / G : last;
        const int64_t pos = position(a, it.s, t), low = first_key(a, pos);
        const int64_t j0 = low - start > 0 ? low - start : 0, j1 = pos + 1 - start < BLOCK ? pos + 1 - start : BLOCK;
        const float slope = a.slopes ? a.slopes[it.kv * G + r % G] : 0.0f;
        keep[i] = soften(a, scores + i * BLOCK, j0, j1, slope, start - pos, state.m[r], state.l[r]);
      }
      value_tile(height, accs, keep, ps, b.v, b.j0, b.j1, Dvp);
    }
  }
}

// The queries of a tile, row by row, padded to whole register tiles with copies of the last.
float* gather_queries(const Attention& a, const Item& it, int64_t rows) {
  const int64_t G = a.group(), real = (it.t1 - it.t0) * G, Dp = a.Dp();
  float* q = query_scratch.get<float>((size_t)(rows * Dp));
  for (int64_t r = 0; r < rows; r++) {
    const int64_t i = r < real ? r : real - 1;
    memcpy(q + r * Dp, a.q + (it.t0 + i / G) * a.ldq + (it.kv * G + i % G) * a.D, (size_t)a.D * 4);
    memset(q + r * Dp + a.D, 0, (size_t)(Dp - a.D) * 4);
  }
  return q;
}

void write_out(const Attention& a, const Item& it, const State& total) {
  const int64_t G = a.group(), Dvp = a.Dvp();
  for (int64_t r = 0; r < (it.t1 - it.t0) * G; r++) {
    const int64_t head = it.kv * G + r % G;
    float by = 1.0f, l = total.l[r];
    if (a.sinks) {
      const float top = total.m[r] > a.sinks[head] ? total.m[r] : a.sinks[head];
      by = weight_of(total.m[r], top);
      l = fma(l, by, weight_of(a.sinks[head], top));
    }
    float* o = a.out + (it.t0 + r / G) * a.ldo + head * a.Dv;
    const float* acc = total.acc + r * Dvp;
    for (int64_t d = 0; d < a.Dv; d++) o[d] = acc[d] * by / l;
  }
}

int64_t padded_rows(const Attention& a, const Item& it) {
  const int64_t rows = (it.t1 - it.t0) * a.group(), left = rows % ROWS;
  return rows - left + (left ? tile_rows(left) : 0);
}
int64_t first_split(const Item& it) { return it.lo / SPLIT; }
int64_t end_split(const Item& it) { return (it.hi + SPLIT - 1) / SPLIT; }

void run_item(const Attention& a, const Item& it) {
  const int64_t rows = padded_rows(a, it), width = a.Dvp();
  const size_t size = State::floats(rows, width);
  float* memory = state_scratch.get<float>(2 * size);
  const State total(memory, rows, width);
  const float* q = gather_queries(a, it, rows);
  for (int64_t s = first_split(it); s < end_split(it); s++) {
    const State part(memory + size, rows, width);
    run_split(a, it, s, q, part, rows);
    for (int64_t r = 0; r < rows; r++) merge(total, part, r, width);
  }
  write_out(a, it, total);
}

// Few items: every split is work of its own, and a second region merges.
void run_by_splits(const Attention& a, const std::vector<Item>& items) {
  static thread_local Scratch partial;
  struct Unit { int64_t item, split; };
  std::vector<Unit> units;
  std::vector<int64_t> first;
  int64_t most = 0;
  for (size_t i = 0; i < items.size(); i++) {
    first.push_back((int64_t)units.size());
    for (int64_t s = first_split(items[i]); s < end_split(items[i]); s++) units.push_back({(int64_t)i, s});
    most = padded_rows(a, items[i]) > most ? padded_rows(a, items[i]) : most;
  }
  first.push_back((int64_t)units.size());
  const int64_t width = a.Dvp();
  const size_t size = State::floats(most, width);
  float* memory = partial.get<float>(size * (units.size() + items.size()));
  parallel_for((int64_t)units.size(), [&](int64_t u) {
    const Item& it = items[units[u].item];
    const int64_t rows = padded_rows(a, it);
    run_split(a, it, units[u].split, gather_queries(a, it, rows), State(memory + size * u, rows, width), rows);
  });
  parallel_for((int64_t)items.size(), [&](int64_t i) {
    const int64_t rows = padded_rows(a, items[i]);
    const State total(memory + size * (units.size() + i), rows, width);
    for (int64_t u = first[i]; u < first[i + 1]; u++)
      for (int64_t r = 0; r < rows; r++) merge(total, State(memory + size * u, rows), r, width);
    write_out(a, items[i], total);
  });
}

void attention(const Attention& a) {
  static thread_local std::vector<Item> items;
  items.clear();
  const int64_t G = a.group(), queries = TILE_ROWS / G > 1 ? TILE_ROWS / G : 1;
  int64_t splits = 0;
  double work = 0;
  for (int64_t s = 0; s < a.S; s++)
    for (int64_t t1 = a.starts[s + 1]; t1 > a.starts[s]; t1 -= queries)  // the longest first
      for (int64_t kv = 0; kv < a.KV; kv++) {
        const int64_t t0 = t1 - queries > a.starts[s] ? t1 - queries : a.starts[s];
        items.push_back({s, kv, t0, t1, first_key(a, position(a, s, t0)), position(a, s, t1 - 1) + 1});
        splits += end_split(items.back()) - first_split(items.back());
        work += (double)((t1 - t0) * G * (items.back().hi - items.back().lo) * (a.D + a.Dv));
      }
  const int64_t n = (int64_t)items.size();
  const Item* list = items.data();
  if (threads() == 1 || work < 2e5 || splits < 2)
    for (int64_t i = 0; i < n; i++) run_item(a, list[i]);
  else if (n >= 4 * threads() || n == splits)
    parallel_for(n, [&](int64_t i) { run_item(a, list[i]); });
  else
    run_by_splits(a, items);
}

}  // namespace
}  // namespace irl

// q [T, H, D] rows ldq apart; caches [P, page, KV, D] and [P, page, KV, Dv] of `elem`, or one: its first Dv features are values; starts [S + 1], context [S],
// table [S, max_pages]; window, chunk or softcap 0: none; sinks [H] or null; slopes [H] or null; out [T, H, Dv] rows ldo apart.
extern "C" void irl_paged_attention(const float* q, int64_t ldq, const void* kcache, const void* vcache, int64_t elem, int64_t page,
                                    int64_t KV, const int32_t* starts, const int32_t* context, const int32_t* table, int64_t S,
                                    int64_t max_pages, int64_t H, int64_t D, int64_t Dv, int64_t window, int64_t chunk,
                                    const float* sinks, const float* slopes, float* out, int64_t ldo, double scale, double softcap) {
  irl::attention({q, ldq, kcache, vcache, elem, page, KV, starts, context, table, S, max_pages, H, D, Dv, window, chunk, sinks, slopes,
                  out, ldo, (float)scale, (float)softcap});
}
