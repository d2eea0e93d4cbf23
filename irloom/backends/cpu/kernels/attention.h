// What attention.cpp asks of its inner tiles.
#pragma once
#include "vec.h"

namespace irl {

constexpr int BLOCK = 64;  // keys of one online-softmax step, aligned to absolute positions
constexpr int ROWS = IRL_W == 16 ? 4 : 2;  // rows of the largest register tile
constexpr int KEYS = 4;                    // scores are made for whole multiples of this

// Rows that a register tile takes of `left`, its height a power of two: past half of ROWS the missing rows are padding.
IRL_INLINE int64_t tile_rows(int64_t left) { return left > ROWS / 2 ? ROWS : left; }

// scores[row][BLOCK] = q[row] . key[j] for `rows` rows and `count` keys, D a multiple of 16.
void score_tile(int64_t rows, const float* const* q, const float* const* keys, int64_t count, int64_t D, float* scores);
// acc[row][D] = acc[row][D] * keep[row] + sum over keys j0..j1 of p[row][j] * values[j], in order of j.
void value_tile(int64_t rows, float* const* acc, const float* keep, const float* const* p, const float* const* values, int64_t j0,
                int64_t j1, int64_t D);

}  // namespace irl
