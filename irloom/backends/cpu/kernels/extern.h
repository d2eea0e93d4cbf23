// What the kernel of an op that is not irloom's own sees: rows, and the vector math of vec.h in namespace irl.
#pragma once
#include <cmath>
#include <optional>

#include "extra.h"

// Rows `stride` entries apart: x[t][i]. False where an optional operand is absent.
template <class T> struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t row) const { return data + row * stride; }
  explicit operator bool() const { return data != nullptr; }
  Rows from(int64_t row, int64_t entry) const { return {data ? data + row * stride + entry : data, stride}; }
};

namespace irl {

// The first `count` of W entries; the others are read as 0, and not written.
IRL_INLINE vf load(const float* p, int64_t count) { return count == W ? load(p) : load_part(p, count); }
IRL_INLINE void store(float* p, vf v, int64_t count) { count == W ? store(p, v) : store_part(p, v, count); }

// f(i, count) for the entries 0 to n - 1, `count` of them from i on: W, and fewer only at the end.
template <class F> IRL_INLINE void vectors(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, (int64_t)W);
  if (i < n) f(i, n - i);
}

// The sum of the vectors that f(i, count) gives, in one order for each n.
template <class F> IRL_INLINE float total(int64_t n, F&& f) {
  vf sums = {};
  vectors(n, [&](int64_t i, int64_t count) {
    vf v = f(i, count);
    for (int64_t k = count; k < W; k++) v[k] = 0.0f;
    sums += v;
  });
  float all = 0.0f;
  for (int k = 0; k < W; k++) all += sums[k];
  return all;
}

}  // namespace irl
