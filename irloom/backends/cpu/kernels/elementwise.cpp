// The tails of gated MLPs: y = f(gate) * up, or f(gate) alone.
#include "pool.h"
#include "vec.h"

namespace irl {
namespace {

template <class F> void map(const float* g, int64_t ldg, const float* u, int64_t ldu, float* y, int64_t ldy, int64_t T, int64_t N, F f) {
  // Long rows are cut as well, so that one token's row still uses every thread.
  const int64_t width = 4096, cuts = (N + width - 1) / width;
  parallel_range(T * cuts, 1 + 8192 / (N < width ? N + 1 : width), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++) {
      const int64_t t = i / cuts, n0 = i % cuts * width, n1 = n0 + width < N ? n0 + width : N;
      const float *gt = g + t * ldg, *ut = u ? u + t * ldu : nullptr;
      float* yt = y + t * ldy;
      int64_t n = n0;
      for (; n + W <= n1; n += W) {
        const vf v = f(load(gt + n));
        store(yt + n, ut ? v * load(ut + n) : v);
      }
      if (n < n1) {
        const vf v = f(load_part(gt + n, n1 - n));
        store_part(yt + n, ut ? v * load_part(ut + n, n1 - n) : v, n1 - n);
      }
    }
  });
}

}  // namespace
}  // namespace irl

using namespace irl;

// kind: 0 identity, 1 silu, 2 gelu (tanh), 3 gelu (erf), 4 relu, 5 relu squared, 6 sigmoid, 7 tanh, 8 quick gelu, 9 mish,
// 10 softplus. y may be an operand.
extern "C" void irl_act_mul(int64_t kind, const float* g, int64_t ldg, const float* u, int64_t ldu, float* y, int64_t ldy, int64_t T, int64_t N) {
  switch (kind) {
    case 0: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return x; });
    case 1: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return silu(x); });
    case 2: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return gelu_tanh(x); });
    case 3: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return gelu_erf(x); });
    case 4: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return relu(x); });
    case 5: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return relu2(x); });
    case 6: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return sigmoid(x); });
    case 7: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return tanh(x); });
    case 8: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return quick_gelu(x); });
    case 9: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return mish(x); });
    case 10: return map(g, ldg, u, ldu, y, ldy, T, N, [](vf x) { return softplus(x); });
  }
}
