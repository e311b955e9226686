// Threads that stay, and the counters that hand work to them.
//
// A region (`run`) is a row of stages. A worker takes chunks of its own share of a stage first, then of the others'; a stage is over when all
// its chunks are done, not when all workers have arrived, and a region is over when its last stage is. So a worker that was pushed off its
// core between chunks delays nobody: when it comes back it finds counters of a later epoch and takes nothing. Chunks that it had taken can be
// taken over where they can be done twice (Stages::Bite).
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace hw {

class Stages {
 public:
  Stages(int threads, size_t most);
  void plan(size_t stage, uint32_t chunks, uint32_t epoch);  // before the region; at most 2^20 - 1 chunks
  // Chunks [first, first + returned), 0: none are left. Of its own share a worker gets up to `most` at once, but (where there are others) no
  // more than half of what is left, so that the last ones are small; of the others' shares `least`, from the end. Never fewer than `least`
  // where there are as many.
  uint32_t take(size_t stage, int worker, uint32_t epoch, uint32_t least, uint32_t most, uint32_t& first);

  // Chunks that a worker has taken and shows to the others: while it is off its core they can be taken over. It computes on its own, asks `keep`,
  // and writes only after a yes. A worker that lost its chunks may still read what others write meanwhile; it throws away what came of it.
  struct Bite {
    size_t stage;
    int worker;
    uint32_t epoch, at, end;
  };
  Bite show(size_t stage, int worker, uint32_t epoch, uint32_t first, uint32_t count);
  bool keep(Bite& bite, uint32_t count);  // the next `count` chunks are this worker's to write; false: they and all behind them are another's now
  uint32_t take_over(size_t stage, int worker, uint32_t epoch, uint32_t& first);  // what a late worker shows; 0: nothing is shown
  bool soon(size_t stage) const;          // waits for about as long as a bite takes when nobody is late; true: the stage is over
  void settle();                          // after a region: until every worker that lost chunks has noticed
  void done(size_t stage, uint32_t count);
  bool over(size_t stage) const { return stages_[stage].left.load(std::memory_order_acquire) == 0; }
  bool wait(size_t stage, uint32_t epoch);  // until all chunks are done: spins, then sleeps; false: the region is over
  uint32_t own_begin(size_t stage, int worker) const;  // first chunk of this worker's share
  void set_epoch(uint32_t epoch) { epoch_.store(epoch, std::memory_order_release); }

 private:
  struct alignas(64) Share {
    std::atomic<uint64_t> range{0};  // epoch << 40 | end << 20 | next
  };
  struct alignas(64) Stage {
    std::atomic<uint32_t> left{0}, sleepers{0}, chunks{0};
  };
  struct alignas(64) Shown {
    std::atomic<uint64_t> bite{0};  // epoch (8 bits) << 56 | stage << 40 | end << 20 | at; at == end: nothing
  };
  static uint64_t packed(const Bite& b) { return uint64_t(b.epoch & 255) << 56 | uint64_t(b.stage) << 40 | uint64_t(b.end) << 20 | b.at; }
  void noticed();
  int threads_;
  std::atomic<uint32_t> epoch_{0};
  std::atomic<uint32_t> lost_{0};  // workers that lost chunks and do not know it yet
  std::vector<Share> shares_;
  std::vector<Shown> shown_;
  std::vector<Stage> stages_;
};

class Pool {
 public:
  // body(worker, epoch) is one worker's way through a region; the caller of `run` is worker 0. cpus: empty = wherever the process may run, else
  // thread i is pinned to cpus[i]. Throws Error on a bad count or processor, or where the system starts fewer threads.
  Pool(int threads, const std::vector<int>& cpus, std::function<void(int, uint32_t)> body);
  ~Pool();
  int threads() const { return int(workers_.size()) + 1; }
  uint32_t next_epoch() const { return (round_.load(std::memory_order_relaxed) + 1) & kEpochMask; }
  void run();  // returns when worker 0 is through, which by then has waited for every stage

  static constexpr uint32_t kEpochMask = (1u << 24) - 1;

 private:
  void loop(int worker);
  void end();
  std::function<void(int, uint32_t)> body_;
  int caller_cpu_ = -1;
  std::atomic<uint32_t> round_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace hw
