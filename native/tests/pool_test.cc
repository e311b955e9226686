// The pool: every chunk of every stage is done exactly once and stages do not overlap, with more threads than processors, with late and
// sleepy workers, over many regions.
#include <sys/resource.h>
#include <unistd.h>

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
      const uint32_t at_once = uint32_t(2 + s % 4);
      while (const uint32_t n = plan.take(s, worker, epoch, uint32_t(1 + s % 2), at_once, first)) {
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

// Workers that fall asleep over chunks they hold: others take them over, every chunk is written once, and a sleeper notices before the region ends.
void bites(int threads, uint32_t chunks, int rounds) {
  constexpr size_t stages = 6;
  Stages plan(threads, stages);
  std::vector<std::vector<std::atomic<uint32_t>>> written(stages);
  for (auto& w : written) w = std::vector<std::atomic<uint32_t>>(chunks);
  std::atomic<uint32_t> taken_over{0}, lost{0}, asleep{0};
  const auto work = [&](size_t s, int worker, uint32_t epoch, uint32_t first, uint32_t n) {
    Stages::Bite bite = plan.show(s, worker, epoch, first, n);
    for (uint32_t c = first; c < first + n; c++) {
      if (worker && (c * 7 + s * 3 + epoch) % 31 == 0) {
        asleep.fetch_add(1);
        std::this_thread::sleep_for(std::chrono::microseconds(400));
        asleep.fetch_sub(1);
      }
      const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(5);  // or one worker would do it all before the others wake
      while (std::chrono::steady_clock::now() < until) {
      }
      if (!plan.keep(bite, 1)) {
        lost.fetch_add(1);
        return;
      }
      written[s][c].fetch_add(1);
      plan.done(s, 1);
    }
  };
  {
    Pool pool(threads, {}, [&](int worker, uint32_t epoch) {
      for (size_t s = 0; s < stages; s++) {
        uint32_t first;
        while (const uint32_t n = plan.take(s, worker, epoch, 2, 8, first)) work(s, worker, epoch, first, n);
        if (!plan.soon(s))
          while (const uint32_t n = plan.take_over(s, worker, epoch, first)) taken_over.fetch_add(1), work(s, worker, epoch, first, n);
        if (!plan.wait(s, epoch)) return;
      }
    });
    for (int round = 1; round <= rounds; round++) {
      const uint32_t epoch = pool.next_epoch();
      plan.set_epoch(epoch);
      for (size_t s = 0; s < stages; s++) {
        for (auto& w : written[s]) w = 0;
        plan.plan(s, chunks, epoch);
      }
      pool.run();
      plan.settle();
      expect(asleep == 0, "a worker is still busy with a region that has settled");
      for (size_t s = 0; s < stages; s++)
        for (uint32_t c = 0; c < chunks; c++) expect(written[s][c] == 1, "a chunk was written " + std::to_string(written[s][c]) + " times");
    }
  }  // the pool's threads have ended: a late one may still be counting after its region has settled
  expect(threads == 1 || taken_over > 0, "nothing was taken over from sleepers");
  expect(taken_over == lost, std::to_string(taken_over) + " bites were taken over, " + std::to_string(lost) + " workers noticed");
}

void refuses(int threads, const std::vector<int>& cpus) {
  try {
    Pool pool(threads, cpus, [](int, uint32_t) {});
  } catch (const Error&) {
    return;
  }
  fail("a wrong pool was built");
}

#ifndef HW_SANITIZED  // which need more address space than there is
// A system that starts no more threads is an error with the number that there are, and those are ended.
void too_few() {
  long pages = 0;
  FILE* f = fopen("/proc/self/statm", "r");
  expect(f && fscanf(f, "%ld", &pages) == 1, "/proc/self/statm");
  fclose(f);
  rlimit before;
  expect(getrlimit(RLIMIT_AS, &before) == 0, "getrlimit");
  rlimit few = before;
  few.rlim_cur = rlim_t(pages) * rlim_t(sysconf(_SC_PAGESIZE)) + (rlim_t(64) << 20);  // stacks have megabytes each
  expect(setrlimit(RLIMIT_AS, &few) == 0, "setrlimit");
  bool refused = false;
  try {
    Pool pool(256, {}, [](int, uint32_t) {});
  } catch (const Error& e) {
    refused = std::string(e.what()).find("ask for fewer") != std::string::npos;
  }
  setrlimit(RLIMIT_AS, &before);
  expect(refused, "a pool of threads that did not start was built");
  regions(2, 3, 7, 3, false);
}
#endif

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8}) {
    regions(threads, 13, 40, 300, false);
    regions(threads, 5, 7, 30, true);
    bites(threads, 40, 100);
  }
  refuses(0, {}), refuses(2, {0}), refuses(1, {100000});
#ifndef HW_SANITIZED
  too_few();
#endif
  puts("ok");
  return 0;
}
