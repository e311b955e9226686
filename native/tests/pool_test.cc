// The pool: every chunk of every stage is done exactly once and stages do not overlap, with more threads than processors, with late and
// sleepy workers, over many regions.
#include <chrono>

#include "testing.h"
#include "util/error.h"
#include "util/pool.h"

using namespace hw;
using namespace hwt;

namespace {

void regions(int threads, size_t stages, uint32_t most, int rounds, bool sleepy) {
  Stages plan(threads, stages);
  std::vector<std::vector<std::atomic<uint32_t>>> count(stages);
  for (auto& c : count) c = std::vector<std::atomic<uint32_t>>(most);
  std::vector<uint32_t> chunks(stages);
  std::atomic<uint32_t> finished{0};  // chunks of the stages so far
  Pool pool(threads, {}, [&](int worker, uint32_t epoch) {
    uint32_t before = 0;
    for (size_t s = 0; s < stages; s++) {
      uint32_t first;
      const uint32_t at_once = uint32_t(1 + s % 4);
      while (const uint32_t n = plan.take(s, worker, epoch, at_once, first)) {
        expect(n <= at_once, "more chunks at once than asked for");
        expect(finished.load() >= before, "a stage began before the one before it was over");
        for (uint32_t c = first; c < first + n; c++) {
          count[s][c].fetch_add(1);
          if (sleepy && (c + s) % 97 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
        }
        finished.fetch_add(n);
        plan.done(s, n);
      }
      if (!plan.wait(s, epoch)) return;
      before += chunks[s];
    }
  });
  Random r(7);
  for (int round = 1; round <= rounds; round++) {
    const uint32_t epoch = pool.next_epoch();
    plan.set_epoch(epoch);
    finished = 0;
    for (size_t s = 0; s < stages; s++) {
      chunks[s] = uint32_t(r.below(4) ? r.below(most + 1) : r.below(3));
      for (auto& c : count[s]) c = 0;
      plan.plan(s, chunks[s], epoch);
    }
    pool.run();
    for (size_t s = 0; s < stages; s++)
      for (uint32_t c = 0; c < most; c++)
        expect(count[s][c] == (c < chunks[s] ? 1u : 0u), "chunk " + std::to_string(c) + " of stage " + std::to_string(s) + " ran " + std::to_string(count[s][c]) + " times");
  }
}

void refuses(int threads, const std::vector<int>& cpus) {
  try {
    Pool pool(threads, cpus, [](int, uint32_t) {});
  } catch (const Error&) {
    return;
  }
  fail("a wrong pool was built");
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8}) {
    regions(threads, 13, 40, 300, false);
    regions(threads, 5, 7, 30, true);
  }
  refuses(0, {}), refuses(2, {0}), refuses(1, {100000});
  puts("ok");
  return 0;
}
