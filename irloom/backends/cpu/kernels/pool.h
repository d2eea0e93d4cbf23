// The thread pool's one entry, and scratch memory that belongs to the calling thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <type_traits>

namespace irl {

typedef void (*Chunk)(void* context, int64_t index);

// Runs fn(context, 0..chunks-1) on the pool and returns when all are done. The calling thread takes part; which
// thread runs a chunk is not defined, so a chunk's result must not depend on it.
void parallel(int64_t chunks, Chunk fn, void* context);
int64_t threads();

template <class F> void parallel_for(int64_t chunks, F&& f) {
  if (chunks == 1) return f((int64_t)0);
  if (chunks <= 0) return;
  typedef typename std::remove_reference<F>::type Body;
  parallel(chunks, [](void* c, int64_t i) { (*(Body*)c)(i); }, (void*)&f);
}

// Splits [0, n) into chunks of at least `grain` items, a few per thread; f(begin, end).
template <class F> void parallel_range(int64_t n, int64_t grain, F&& f) {
  int64_t most = threads() == 1 ? 1 : threads() * 4, chunks = grain > 0 ? n / grain : n;
  chunks = chunks < 1 ? 1 : chunks > most ? most : chunks;
  parallel_for(chunks, [&](int64_t c) { f(n * c / chunks, n * (c + 1) / chunks); });
}

// Grows, never shrinks; 64-byte aligned; contents are not kept. One per purpose and thread (`static thread_local`).
struct Scratch {
  void* data = nullptr;
  size_t size = 0;
  ~Scratch() { free(data); }
  template <class T> T* get(size_t count) {
    size_t need = (count * sizeof(T) + 63) & ~(size_t)63;
    if (need > size) {
      free(data);
      data = aligned_alloc(64, need);
      size = data ? need : 0;
      if (!data) abort();
    }
    return (T*)data;
  }
};

}  // namespace irl
