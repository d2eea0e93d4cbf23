// Products with the experts that tokens choose: rows are grouped by expert, so that the weight of each expert in
// use is read once, by the kernel of an ordinary linear.
//
// A stack of experts is packed expert by expert: the descriptor is that of the first, the others follow `stride`
// bytes apart, their biases N apart. An index outside of 0 to E - 1 chooses no expert.
#include "pool.h"
#include "weight.h"

using namespace irl;

extern "C" {
void irl_linear(const Weight* w, const float* x, int64_t ldx, float* y, int64_t ldy, const float* residual, int64_t ldr, int64_t T);
void irl_act_mul(int64_t kind, const float* g, int64_t ldg, const float* u, int64_t ldu, float* y, int64_t ldy, int64_t T, int64_t N);
}

namespace irl {
namespace {

static thread_local Scratch order_scratch, rows_scratch, inner_scratch, out_scratch;

// Choices sorted by expert, in the order of tokens within one: pairs[begin[e] .. begin[e + 1]) are t * k + j.
struct Groups {
  int64_t E, *begin, *pairs;

  Groups(const int32_t* index, int64_t ldi, int64_t T, int64_t k, int64_t experts) : E(experts) {
    begin = order_scratch.get<int64_t>((size_t)(E + 2 + T * k));
    pairs = begin + E + 2;
    // Counted two places on, so that filling a group moves its start to where it belongs.
    memset(begin, 0, (size_t)(E + 2) * sizeof(int64_t));
    each(index, ldi, T, k, [&](int64_t e, int64_t) { begin[e + 2]++; });
    for (int64_t e = 0; e < E; e++) begin[e + 2] += begin[e + 1];
    each(index, ldi, T, k, [&](int64_t e, int64_t pair) { pairs[begin[e + 1]++] = pair; });
  }
  int64_t count(int64_t e) const { return begin[e + 1] - begin[e]; }
  int64_t most() const {
    int64_t n = 0;
    for (int64_t e = 0; e < E; e++) n = count(e) > n ? count(e) : n;
    return n;
  }

 private:
  template <class F> void each(const int32_t* index, int64_t ldi, int64_t T, int64_t k, F f) const {
    for (int64_t t = 0; t < T; t++)
      for (int64_t j = 0; j < k; j++)
        if (const int64_t e = index[t * ldi + j]; e >= 0 && e < E) f(e, t * k + j);
  }
};

Weight expert(const Weight& stack, int64_t stride, int64_t e) {
  Weight w = stack;
  w.data += e * stride;
  if (w.bias) w.bias += e * w.N;
  return w;
}

// Rows of few numbers are not worth a second thread.
template <class F> void over_rows(int64_t count, int64_t width, F f) {
  parallel_range(count, 1 + 16384 / (width + 1), [&](int64_t a, int64_t b) {
    for (int64_t i = a; i < b; i++) f(i);
  });
}

}  // namespace
}  // namespace irl

extern "C" {

// y[t, j] = x[t] @ W[index[t, j]].T + bias; with `wide`, x has a row per choice: x[t, j]. y is [T, k, N], x [T(, k), K].
void irl_expert_linear(const Weight* w, int64_t E, int64_t stride, const float* x, int64_t ldx, int64_t wide, const int32_t* index,
                       int64_t ldi, int64_t k, float* y, int64_t ldy, int64_t T) {
  const int64_t K = w->K, N = w->N;
  const Groups g(index, ldi, T, k, E);
  const auto from = [&](int64_t pair) { return x + pair / k * ldx + (wide ? pair % k * K : 0); };
  const auto to = [&](int64_t pair) { return y + pair / k * ldy + pair % k * N; };
  over_rows(T * k, N, [&](int64_t pair) {
    const int32_t e = index[pair / k * ldi + pair % k];
    if (e < 0 || e >= E) memset(to(pair), 0, (size_t)N * 4);
  });
  const int64_t most = g.most();
  float* rows = most > 1 ? rows_scratch.get<float>((size_t)(most * K)) : nullptr;
  float* out = most > 1 ? out_scratch.get<float>((size_t)(most * N)) : nullptr;
  for (int64_t e = 0; e < E; e++) {
    const int64_t n = g.count(e), *pairs = g.pairs + g.begin[e];
    if (n == 0) continue;
    const Weight one = expert(*w, stride, e);
    if (n == 1) {
      irl_linear(&one, from(pairs[0]), K, to(pairs[0]), N, nullptr, 0, 1);
      continue;
    }
    over_rows(n, K, [&](int64_t i) { memcpy(rows + i * K, from(pairs[i]), (size_t)K * 4); });
    irl_linear(&one, rows, K, out, N, nullptr, 0, n);
    over_rows(n, N, [&](int64_t i) { memcpy(to(pairs[i]), out + i * N, (size_t)N * 4); });
  }
}

// y[t, h] = x[t, h] @ W[h].T: every head has a matrix. x is [T, H, K], y [T, H, N].
void irl_head_linear(const Weight* w, int64_t H, int64_t stride, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t T) {
  for (int64_t h = 0; h < H; h++) {
    const Weight one = expert(*w, stride, h);
    irl_linear(&one, x + h * w->K, ldx, y + h * w->N, ldy, nullptr, 0, T);
  }
}

// y[t] = sum over j of weights[t, j] * (W_down (act(gate) * up)), where gate and up are the halves of W_up x[t], each
// of expert index[t, j]. A token's sum runs over its experts in their order, whatever else is in the batch.
void irl_moe(int64_t act, const Weight* up, int64_t up_stride, const Weight* down, int64_t down_stride, int64_t E, const float* x,
             int64_t ldx, const int32_t* index, int64_t ldi, const float* weights, int64_t ldw, int64_t k, float* y, int64_t ldy,
             int64_t T) {
  const int64_t K = up->K, M = up->N, N = down->N;
  const Groups g(index, ldi, T, k, E);
  const int64_t most = g.most();
  float* rows = most > 1 ? rows_scratch.get<float>((size_t)(most * K)) : nullptr;
  float* inner = inner_scratch.get<float>((size_t)(most * M));
  float* out = out_scratch.get<float>((size_t)(most * N));
  over_rows(T, N, [&](int64_t t) { memset(y + t * ldy, 0, (size_t)N * 4); });
  for (int64_t e = 0; e < E; e++) {
    const int64_t n = g.count(e), *pairs = g.pairs + g.begin[e];
    if (n == 0) continue;
    const Weight first = expert(*up, up_stride, e), second = expert(*down, down_stride, e);
    const float* in = n == 1 ? x + pairs[0] / k * ldx : rows;
    if (n > 1) over_rows(n, K, [&](int64_t i) { memcpy(rows + i * K, x + pairs[i] / k * ldx, (size_t)K * 4); });
    irl_linear(&first, in, K, inner, M, nullptr, 0, n);
    irl_act_mul(act, inner, M, inner + M / 2, M, inner, M, n, M / 2);
    irl_linear(&second, inner, M, out, N, nullptr, 0, n);
    // Cut by columns: a token may have chosen an expert twice.
    parallel_range(N, 1 + 16384 / (n + 1), [&](int64_t c0, int64_t c1) {
      for (int64_t i = 0; i < n; i++) {
        const float by = weights[pairs[i] / k * ldw + pairs[i] % k];
        float* to = y + pairs[i] / k * ldy;
        for (int64_t c = c0; c < c1; c++) to[c] += by * out[i * N + c];
      }
    });
  }
}

}  // extern "C"
