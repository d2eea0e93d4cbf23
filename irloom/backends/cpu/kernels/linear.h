// What linear.cpp asks of the files of inner tiles.
#pragma once
#include "pool.h"
#include "weight.h"

namespace irl {

// Rows and panels of the register tile.
#if IRL_W == 16
constexpr int FLOAT_ROWS = 8, FLOAT_PANELS = 3, INTEGER_ROWS = 6, INTEGER_PANELS = 2;
#elif IRL_W == 8
constexpr int FLOAT_ROWS = 6, FLOAT_PANELS = 1, INTEGER_ROWS = 4, INTEGER_PANELS = 1;
#else
constexpr int FLOAT_ROWS = 3, FLOAT_PANELS = 1, INTEGER_ROWS = 2, INTEGER_PANELS = 1;
#endif

// sum[mr][np * 16] (+)= a[depth][mr] x panels b[depth][16], `stride` floats apart; `more` continues an earlier block of k.
typedef void (*FloatTile)(int64_t depth, const float* a, const float* b, int64_t stride, float* sum, bool more);
FloatTile float_tile(int64_t mr, int64_t np);

// sum[mr][np * 16] = a[K][mr] x the panels from `panel`; mr <= STREAM_ROWS, np is 1, or 2 with one row.
constexpr int STREAM_ROWS = 4;
typedef void (*StreamTile)(const Weight& w, const uint8_t* panel, const float* a, float* sum);
StreamTile stream_tile(int64_t mr, int64_t np, int64_t kind);

// Rows rounded to int8 in blocks of 32: values [tile][k / 4][mr][4], scales and sums [tile][block][mr].
// `sums` is the block's sum times minus the zero point, or the plain sum when the weight has zero points.
struct Activations { int8_t* values; float* scales; int32_t* sums; };
void quantize_row(const float* x, int64_t K, int64_t mr, int32_t less, int8_t* values, float* scales, int32_t* sums);

struct IntegerTile {
  const Weight& w;
  const int8_t* a;  // from block b0
  const float* scales;  // of the whole row
  const int32_t* sums;
  const uint8_t* q;  // weights from block b0, panels `stride` bytes apart
  int64_t stride;
  const uint8_t* panel;  // where the tables of scales and zeros are found, panels w.panel apart
  int64_t b0, b1;
};
typedef void (*IntegerTileFn)(const IntegerTile&, float* sum);
IntegerTileFn integer_tile(int64_t mr, int64_t np, int64_t kind, bool nibbles);
// [n] vectors of packed nibbles to [2n] vectors of bytes.
void widen_nibbles(const uint8_t* from, uint8_t* to, int64_t n);

}  // namespace irl
