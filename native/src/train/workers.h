// Threads that share the rows of one call after the other. From one thread at a time.
#pragma once
#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>

#include "util/pool.h"

namespace hw::train {

// What runs a function on several threads of a program that has some already: GOMP_parallel of its OpenMP library. Two pools on the same cores
// wait for each other, for the threads of both go on looking for work after the last.
using Team = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

class Workers {
 public:
  explicit Workers(int threads, Team team = nullptr) : threads_(threads), team_(team) {
    if (!team_) own_ = std::make_unique<Own>(threads);
  }
  int threads() const { return threads_; }
  Team team() const { return team_; }

  // body(number, begin, end) for every piece of [0, n): the pieces do not depend on the threads.
  void run(size_t n, size_t piece, const std::function<void(size_t, size_t, size_t)>& body) {
    const size_t most = size_t(1) << 19;
    piece = std::max(piece, (n + most - 1) / most);
    Pieces all{&body, n, piece, (n + piece - 1) / piece};
    if (all.count <= 1 || threads_ == 1) {
      for (size_t i = 0; i < all.count; i++) all.one(i);
    } else if (team_) {
      team_([](void* p) { static_cast<Pieces*>(p)->rest(); }, &all, unsigned(threads_), 0);
    } else {
      own_->run(all);
    }
  }

 private:
  struct Pieces {
    const std::function<void(size_t, size_t, size_t)>* body;
    size_t n, piece, count;
    std::atomic<size_t> next{0};
    void one(size_t i) const { (*body)(i, i * piece, std::min(n, (i + 1) * piece)); }
    void rest() {
      for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) one(i);
    }
  };

  // Threads of this process' own.
  struct Own {
    explicit Own(int threads) : stages(threads, 1), pool(threads, {}, [this](int worker, uint32_t epoch) { work(worker, epoch); }) {}
    void run(const Pieces& all) {
      pieces = &all;
      const uint32_t epoch = pool.next_epoch();
      stages.set_epoch(epoch);
      stages.plan(0, uint32_t(all.count), epoch);
      pool.run();
      stages.settle();
    }
    void work(int worker, uint32_t epoch) {
      uint32_t first;
      while (const uint32_t count = stages.take(0, worker, epoch, 1, 4, first)) {
        for (size_t i = first; i < first + count; i++) pieces->one(i);
        stages.done(0, count);
      }
      stages.wait(0, epoch);
    }
    const Pieces* pieces = nullptr;
    Stages stages;
    Pool pool;  // last: its threads must be gone before the rest
  };

  int threads_;
  Team team_;
  std::unique_ptr<Own> own_;
};

}  // namespace hw::train
