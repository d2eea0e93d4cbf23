// What generated source includes: vector math, and the thread pool of the library that loads it.
#pragma once
#include "pool.h"
#include "vec.h"

namespace irl {
static void (*pool_parallel)(int64_t, Chunk, void*);
static int64_t (*pool_threads)();
void parallel(int64_t chunks, Chunk fn, void* context) { pool_parallel(chunks, fn, context); }
int64_t threads() { return pool_threads(); }
}  // namespace irl

extern "C" void irl_extra_init(void* parallel, void* threads) {
  irl::pool_parallel = (decltype(irl::pool_parallel))parallel;
  irl::pool_threads = (decltype(irl::pool_threads))threads;
}
