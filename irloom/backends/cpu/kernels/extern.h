// What the kernel of an op that is not irloom's own sees: rows, the vector math of vec.h in namespace irl.
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
