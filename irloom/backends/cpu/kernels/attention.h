// What attention.cpp asks of its inner tiles.
#pragma once
#include "vec.h"

namespace irl {

constexpr int BLOCK = 64;  // keys of one online-softmax step, aligned to absolute positions

#if IRL_W == 16
constexpr int ROWS = 4, KEYS = 4, WIDE = 4;  // register tiles: rows x keys of scores, rows x 16 * WIDE of values
#else
constexpr int ROWS = 2, KEYS = 2, WIDE = 1;
#endif

// scores[row][BLOCK] = q[row] . key[j] for ROWS rows and `count` keys (a multiple of KEYS), D a multiple of 16.
void score_tile(const float* const* q, const float* const* keys, int64_t count, int64_t D, float* scores);
// acc[row][D] = acc[row][D] * keep[row] + sum over keys j0..j1 of p[row][j] * values[j], in order of j.
void value_tile(float* const* acc, const float* keep, const float* const* p, const float* const* values, int64_t j0, int64_t j1, int64_t D);

}  // namespace irl
