#include "util/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <string>
#include <utility>

#include "util/cpu.h"
#include "util/error.h"
#include "util/threads.h"

namespace hw {

namespace {

void futex_wait(std::atomic<uint32_t>& a, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&a), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
void futex_wake(std::atomic<uint32_t>& a) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&a), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spin for about `us` microseconds, looking at the clock rarely. True: the condition came.
template <class Ready>
bool spin(int us, Ready ready) {
  for (int i = 0; i < 64; i++) {
    if (ready()) return true;
    relax();
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(us);
  do {
    for (int i = 0; i < 32; i++) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < until);
  return false;
}

constexpr int kSpinRegion = 200;  // between regions: the next token is on its way
constexpr int kSpinStage = 50;    // inside: then the late thread may need this core
constexpr int kPatience = 40;     // with a bite of another worker: longer than any that is worked on takes

constexpr uint64_t kField = (uint64_t(1) << 20) - 1;

void pin(int cpu) {  // that the processor is allowed was checked; losing it later only costs speed
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

// The caller's thread is not ours: it is pinned for the length of a region only.
struct Pinned {
  cpu_set_t before;
  bool active;
  explicit Pinned(int cpu) : active(cpu >= 0 && pthread_getaffinity_np(pthread_self(), sizeof before, &before) == 0) {
    if (active) pin(cpu);
  }
  ~Pinned() {
    if (active) pthread_setaffinity_np(pthread_self(), sizeof before, &before);
  }
};

}  // namespace

Pool::Pool(int threads, const std::vector<int>& cpus, std::function<void(int, uint32_t)> body) : body_(std::move(body)) {
  check(threads >= 1 && threads <= 256, "threads: " + std::to_string(threads) + " given; allowed: 1 to 256");
  check(cpus.empty() || int(cpus.size()) == threads,
        "affinity: " + std::to_string(cpus.size()) + " processors for " + std::to_string(threads) + " threads; give one each");
  const std::vector<int> allowed = allowed_cpus();
  for (int c : cpus)
    check(std::find(allowed.begin(), allowed.end(), c) != allowed.end(),
          "affinity: this process may not use processor " + std::to_string(c));
  if (!cpus.empty()) caller_cpu_ = cpus[0];
  for (int i = 1; i < threads; i++) {
    const auto work = [this, i, cpus] {
      if (!cpus.empty()) pin(cpus[size_t(i)]);
      loop(i);
    };
    if (another(workers_, work)) continue;
    end();
    throw Error("threads: " + std::to_string(threads) + " asked for, but the system starts no more than " + std::to_string(i) + "; ask for fewer");
  }
}

Pool::~Pool() { end(); }

void Pool::end() {
  stop_.store(true);
  round_.fetch_add(1);
  futex_wake(round_);
  for (std::thread& t : workers_) t.join();
}

void Pool::loop(int worker) {
  uint32_t seen = 0;
  for (;;) {
    const auto ready = [&] { return round_.load(std::memory_order_acquire) != seen; };
    if (!spin(kSpinRegion, ready)) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      while (round_.load(std::memory_order_seq_cst) == seen) futex_wait(round_, seen);
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }
    seen = round_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    body_(worker, seen & kEpochMask);
  }
}

void Pool::run() {
  const uint32_t epoch = (round_.fetch_add(1, std::memory_order_seq_cst) + 1) & kEpochMask;
  if (sleepers_.load(std::memory_order_seq_cst)) futex_wake(round_);
  const Pinned pinned(caller_cpu_);
  body_(0, epoch);
}

Stages::Stages(int threads, size_t most) : threads_(threads), shares_(most * size_t(threads)), shown_(size_t(threads)), stages_(most) {
  check(most < (size_t(1) << 16), "program: " + std::to_string(most) + " ops; at most 65535");
}

void Stages::plan(size_t stage, uint32_t chunks, uint32_t epoch) {
  Stage& s = stages_[stage];
  s.chunks.store(chunks, std::memory_order_relaxed);
  s.left.store(chunks, std::memory_order_relaxed);
  const uint64_t n = uint64_t(threads_);
  for (uint64_t i = 0; i < n; i++)
    shares_[stage * n + i].range.store(uint64_t(epoch) << 40 | (chunks * (i + 1) / n) << 20 | chunks * i / n, std::memory_order_relaxed);
}

uint32_t Stages::own_begin(size_t stage, int worker) const {
  return uint32_t(uint64_t(stages_[stage].chunks.load(std::memory_order_relaxed)) * uint64_t(worker) / uint64_t(threads_));
}

uint32_t Stages::take(size_t stage, int worker, uint32_t epoch, uint32_t least, uint32_t most, uint32_t& first) {
  for (int i = 0; i < threads_; i++) {
    const bool own = i == 0;
    Share& s = shares_[stage * size_t(threads_) + size_t((worker + i) % threads_)];
    uint64_t r = s.range.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t from = r & kField, to = r >> 20 & kField;
      if (r >> 40 != epoch || from >= to) break;
      const uint64_t left = to - from, half = std::max<uint64_t>(least, (left + 1) / 2 / least * least);
      const uint64_t count = !own ? std::min<uint64_t>(left, least) : std::min<uint64_t>({threads_ == 1 ? left : half, left, most});
      if (s.range.compare_exchange_weak(r, own ? r + count : r - (count << 20), std::memory_order_acq_rel)) {
        first = uint32_t(own ? from : to - count);
        return uint32_t(count);
      }
    }
  }
  return 0;
}

Stages::Bite Stages::show(size_t stage, int worker, uint32_t epoch, uint32_t first, uint32_t count) {
  const Bite bite{stage, worker, epoch, first, first + count};
  shown_[size_t(worker)].bite.store(packed(bite), std::memory_order_release);
  return bite;
}

bool Stages::keep(Bite& bite, uint32_t count) {
  uint64_t before = packed(bite);
  bite.at += count;
  if (shown_[size_t(bite.worker)].bite.compare_exchange_strong(before, packed(bite), std::memory_order_acq_rel)) return true;
  noticed();
  return false;
}

void Stages::noticed() {
  if (lost_.fetch_sub(1, std::memory_order_seq_cst) == 1) futex_wake(lost_);
}

uint32_t Stages::take_over(size_t stage, int worker, uint32_t epoch, uint32_t& first) {
  const uint64_t here = packed({stage, worker, epoch, 0, 0}) >> 40;
  for (int i = 1; i < threads_; i++) {
    std::atomic<uint64_t>& shown = shown_[size_t((worker + i) % threads_)].bite;
    uint64_t b = shown.load(std::memory_order_acquire);
    const uint64_t at = b & kField, end = b >> 20 & kField;
    if (b >> 40 != here || at >= end) continue;
    lost_.fetch_add(1, std::memory_order_seq_cst);  // before its worker can know
    if (shown.compare_exchange_strong(b, (b & ~kField) | end, std::memory_order_acq_rel)) {
      first = uint32_t(at);
      return uint32_t(end - at);
    }
    noticed();
  }
  return 0;
}

bool Stages::soon(size_t stage) const {
  return spin(kPatience, [&] { return over(stage); });
}

void Stages::settle() {
  if (spin(kSpinStage, [&] { return lost_.load(std::memory_order_acquire) == 0; })) return;
  for (uint32_t n; (n = lost_.load(std::memory_order_seq_cst)) != 0;) futex_wait(lost_, n);
}

void Stages::done(size_t stage, uint32_t count) {
  Stage& s = stages_[stage];
  if (s.left.fetch_sub(count, std::memory_order_seq_cst) == count && s.sleepers.load(std::memory_order_seq_cst)) futex_wake(s.left);
}

bool Stages::wait(size_t stage, uint32_t epoch) {
  Stage& s = stages_[stage];
  const auto ready = [&] { return s.left.load(std::memory_order_acquire) == 0; };
  if (!spin(kSpinStage, ready)) {
    s.sleepers.fetch_add(1, std::memory_order_seq_cst);
    for (uint32_t n; (n = s.left.load(std::memory_order_seq_cst)) != 0 && epoch_.load(std::memory_order_acquire) == epoch;)
      futex_wait(s.left, n);
    s.sleepers.fetch_sub(1, std::memory_order_seq_cst);
  }
  return epoch_.load(std::memory_order_acquire) == epoch;
}

}  // namespace hw
