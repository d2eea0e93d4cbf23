// A pool of persistent threads that take numbered chunks. An idle thread spins briefly, so that the next kernel of
// a step finds it awake, and then sleeps, so that an idle engine costs nothing.
#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace irl {
namespace {

#if defined(__x86_64__)
inline void relax() { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
inline void relax() { asm volatile("yield"); }
#else
inline void relax() {}
#endif

constexpr auto SPIN = std::chrono::microseconds(150);
// A ticket is epoch << 40 | chunks << 20 | next chunk. One fetch_add both takes a chunk and says which job it is of.
constexpr uint64_t MASK = (1u << 20) - 1;
inline bool open(uint64_t ticket) { return (ticket & MASK) < ((ticket >> 20) & MASK); }

struct Pool {
  alignas(64) std::atomic<uint64_t> ticket{0};
  alignas(64) std::atomic<int64_t> done{0};
  alignas(64) std::atomic<int> sleepers{0};
  Chunk fn = nullptr;
  void* context = nullptr;
  std::mutex busy, sleep;
  std::condition_variable wake;
  int workers = 0;
  std::atomic<int> generation{0};  // workers of an older one leave

  // Takes chunks until none is left. The job's fields stay valid while a taken chunk is not done.
  void take() {
    while (open(ticket.load(std::memory_order_acquire))) {
      uint64_t mine = ticket.fetch_add(1, std::memory_order_acq_rel);
      if (!open(mine)) return;
      fn(context, (int64_t)(mine & MASK));
      done.fetch_add(1, std::memory_order_acq_rel);
    }
  }

  void work(int born) {
    while (born == generation.load(std::memory_order_relaxed)) {
      take();
      auto until = std::chrono::steady_clock::now() + SPIN;
      bool found = false;
      while (!found && std::chrono::steady_clock::now() < until)
        for (int i = 0; i < 64 && !found; i++) {
          relax();
          found = open(ticket.load(std::memory_order_relaxed));
        }
      if (found) continue;
      std::unique_lock<std::mutex> lock(sleep);
      sleepers.fetch_add(1);
      wake.wait(lock, [&] { return open(ticket.load()) || born != generation.load(); });
      sleepers.fetch_sub(1);
    }
  }

  void resize(int threads) {
    std::lock_guard<std::mutex> held(busy);
    if (workers == threads - 1) return;
    {
      std::lock_guard<std::mutex> lock(sleep);
      workers = threads - 1;
      generation++;
    }
    wake.notify_all();
    for (int i = 0; i < workers; i++) std::thread(&Pool::work, this, generation.load()).detach();
  }

  void run(int64_t chunks, Chunk f, void* c) {
    fn = f;
    context = c;
    done.store(0, std::memory_order_relaxed);
    uint64_t epoch = (ticket.load(std::memory_order_relaxed) >> 40) + 1;
    ticket.store(epoch << 40 | (uint64_t)chunks << 20);
    if (sleepers.load() > 0) {
      { std::lock_guard<std::mutex> lock(sleep); }
      wake.notify_all();
    }
    take();
    for (int spins = 0; done.load(std::memory_order_acquire) < chunks;)
      if (++spins < 20000) relax(); else sched_yield();
  }
};

// Never destroyed: threads may still sleep in it when the process ends. A forked child starts a pool of its own.
std::atomic<Pool*> pool{nullptr};
std::atomic<int> count{1};
void forget_pool() { pool = nullptr; }

Pool& the_pool() {
  Pool* p = pool.load(std::memory_order_acquire);
  if (p) return *p;
  static std::mutex once;
  std::lock_guard<std::mutex> lock(once);
  if (!pool.load()) {
    static bool registered = false;
    if (!registered) registered = pthread_atfork(nullptr, nullptr, forget_pool) == 0;
    Pool* fresh = new Pool;
    fresh->resize(count);
    pool = fresh;
  }
  return *pool.load();
}

}  // namespace

int64_t threads() { return count.load(std::memory_order_relaxed); }

void parallel(int64_t chunks, Chunk fn, void* context) {
  if (threads() > 1 && chunks > 1 && chunks < (int64_t)MASK / 2) {
    Pool& p = the_pool();
    std::unique_lock<std::mutex> mine(p.busy, std::try_to_lock);  // held by another caller: run alone
    if (mine.owns_lock()) return p.run(chunks, fn, context);
  }
  for (int64_t i = 0; i < chunks; i++) fn(context, i);
}

}  // namespace irl

extern "C" {
void irl_set_threads(int64_t n) {
  irl::count = n < 1 ? 1 : (int)n;
  irl::the_pool().resize(irl::count);
}
int64_t irl_threads() { return irl::threads(); }
void irl_parallel(int64_t chunks, irl::Chunk fn, void* context) { irl::parallel(chunks, fn, context); }
}
