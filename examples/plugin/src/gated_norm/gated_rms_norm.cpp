// What is normalized waits where the result goes, in the nearest cache, until its mean square is known.
using namespace irl;

extern "C" void gated_rms_norm(Rows<const float> x, Rows<const float> gate, const float* weight, Rows<float> out,
                               int64_t rows, int64_t d, float eps, int64_t groups, bool norm_first) {
  const int64_t n = d / groups;
  for (int64_t t = 0; t < rows; t++)
    for (int64_t at = 0; at < d; at += n) {
      const float *a = x[t] + at, *g = gate[t] + at;
      float* y = out[t] + at;
      const float squares = total(n, [&](int64_t i, int64_t count) {
        const vf v = norm_first ? load(a + i, count) : load(a + i, count) * silu(load(g + i, count));
        store(y + i, v, count);
        return v * v;
      });
      const float scale = 1.0f / std::sqrt(squares / (float)n + eps);
      vectors(n, [&](int64_t i, int64_t count) {
        vf v = load(y + i, count) * scale;
        if (weight) v *= load(weight + at + i, count);
        if (norm_first) v *= silu(load(g + i, count));
        store(y + i, v, count);
      });
    }
}
