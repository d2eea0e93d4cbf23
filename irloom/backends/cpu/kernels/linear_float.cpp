#include "linear.h"

namespace irl {
namespace {

template <int MR, int NP> void tile(int64_t depth, const float* a, const float* b, int64_t stride, float* sum, bool more) {
  F16 acc[MR][NP];
  for (int r = 0; r < MR; r++)
    for (int p = 0; p < NP; p++) acc[r][p] = more ? load16(sum + (r * NP + p) * 16) : zero16();
  for (int64_t k = 0; k < depth; k++, a += MR, b += 16) {
    F16 w[NP];
    for (int p = 0; p < NP; p++) w[p] = load16(b + p * stride);
    for (int r = 0; r < MR; r++) {
      const F16 x = splat16(a[r]);
      for (int p = 0; p < NP; p++) acc[r][p] = fma(w[p], x, acc[r][p]);
    }
  }
  for (int r = 0; r < MR; r++)
    for (int p = 0; p < NP; p++) store16(sum + (r * NP + p) * 16, acc[r][p]);
}

template <int NP> FloatTile of_height(int64_t mr) {
  switch (mr) {
    case 1: return tile<1, NP>;
    case 2: return tile<2, NP>;
    case 3: return tile<3, NP>;
#if IRL_W > 4
    case 4: return tile<4, NP>;
    case 5: return tile<5, NP>;
    case 6: return tile<6, NP>;
#endif
#if IRL_W == 16
    case 7: return tile<7, NP>;
    case 8: return tile<8, NP>;
#endif
  }
  return nullptr;
}

}  // namespace

FloatTile float_tile(int64_t mr, int64_t np) {
#if IRL_W == 16
  if (np == 2) return of_height<2>(mr);
  if (np == 3) return of_height<3>(mr);
#endif
  return of_height<1>(mr);
}

}  // namespace irl
