#pragma once
#include "vec.h"

namespace irl {

// y = x / sqrt(mean(x^2) + eps) (* w when given); y may be x.
void rms_norm_row(const float* x, const float* w, float* y, int64_t N, float eps);

}  // namespace irl
