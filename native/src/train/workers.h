// Threads that share the rows of one call after the other. From one thread at a time.
#pragma once
#include <algorithm>
#include <functional>

#include "util/pool.h"

namespace hw::train {

class Workers {
 public:
  explicit Workers(int threads)
      : stages_(threads, 1), pool_(threads, {}, [this](int worker, uint32_t epoch) { work(worker, epoch); }) {}
  int threads() const { return pool_.threads(); }

  // body(number, begin, end) for every piece of [0, n): the pieces do not depend on the threads.
  void run(size_t n, size_t piece, const std::function<void(size_t, size_t, size_t)>& body) {
    const size_t most = size_t(1) << 19;
    body_ = &body, n_ = n, piece_ = std::max(piece, (n + most - 1) / most);
    const uint32_t pieces = uint32_t((n + piece_ - 1) / piece_);
    if (pieces <= 1) {
      if (pieces) body(0, 0, n);
      return;
    }
    const uint32_t epoch = pool_.next_epoch();
    stages_.set_epoch(epoch);
    stages_.plan(0, pieces, epoch);
    pool_.run();
    stages_.settle();
  }

 private:
  void work(int worker, uint32_t epoch) {
    uint32_t first;
    while (const uint32_t count = stages_.take(0, worker, epoch, 1, 4, first)) {
      for (size_t i = first; i < first + count; i++) (*body_)(i, i * piece_, std::min(n_, (i + 1) * piece_));
      stages_.done(0, count);
    }
    stages_.wait(0, epoch);
  }

  const std::function<void(size_t, size_t, size_t)>* body_ = nullptr;
  size_t n_ = 0, piece_ = 1;
  Stages stages_;
  Pool pool_;  // last: its threads must be gone before the rest
};

}  // namespace hw::train
