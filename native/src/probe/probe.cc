// The loops are written in assembly: they must do exactly what they say, and a compiler would fold them away or spill. Twelve independent
// accumulators hide a latency of 4 at two instructions a cycle. No compiler flag is needed; cpu_facts says what may run.
#include "probe/probe.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "util/aligned.h"
#include "util/cpu.h"
#include "util/error.h"

namespace hw {
namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kTurns = 20000;  // of a peak loop between two looks at the clock
constexpr size_t kPiece = size_t(1) << 20;  // bytes read between two looks at the clock

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(size_t(cpu), &set);
  check(pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0, "cpus: processor " + std::to_string(cpu) + " is not allowed here");
}

// Runs work(worker), which returns how much it did, over and over on every thread until `seconds` are over; amount per second of all.
template <class Work>
double rate(int threads, double seconds, const std::vector<int>& cpus, Work work) {
  check(threads >= 1 && threads <= 1024, "threads is " + std::to_string(threads) + "; allowed: 1 to 1024");
  check(seconds > 0 && seconds <= 60, "seconds is " + std::to_string(seconds) + "; allowed: above 0, up to 60");
  check(cpus.empty() || cpus.size() == size_t(threads), "cpus: give one processor number per thread, or none");
  const std::vector<int> allowed = allowed_cpus();
  for (int cpu : cpus)
    check(std::find(allowed.begin(), allowed.end(), cpu) != allowed.end(), "cpus: processor " + std::to_string(cpu) + " is not allowed here");
  std::atomic<int> ready{0};
  std::vector<double> rates(size_t(threads), 0.0);
  const auto body = [&](int worker) {
    if (!cpus.empty()) pin(cpus[size_t(worker)]);
    work(worker);  // warm: pages, clock, caches
    ready++;
    while (ready < threads) std::this_thread::yield();
    const auto begin = Clock::now();
    double done = 0, passed = 0;
    while (passed < seconds) {
      done += work(worker);
      passed = std::chrono::duration<double>(Clock::now() - begin).count();
    }
    rates[size_t(worker)] = done / passed;
  };
  std::vector<std::thread> others;
  for (int i = 0; i < threads; i++) others.emplace_back(body, i);
  double sum = 0;
  for (int i = 0; i < threads; i++) others[size_t(i)].join(), sum += rates[size_t(i)];
  return sum;
}

// A piece of memory read in two ways: from one end to the other, and in eight streams at once with fetching ahead. Which is faster depends on
// how far the processor's own prefetchers look; the limit is the better one.
constexpr size_t kTurn = 256;  // bytes of a stream before the next one's turn
constexpr size_t kSide = 8, kAhead = 2048;

template <class Turn>
void read_along(const uint8_t* p, size_t bytes, Turn turn) {
  for (size_t i = 0; i < bytes; i += kTurn) turn(p + i);
}

template <class Turn>
void read_side_by_side(const uint8_t* p, size_t bytes, Turn turn) {
  const size_t part = bytes / kSide;
  for (size_t i = 0; i < part; i += kTurn)
    for (size_t s = 0; s < kSide; s++) {
      const uint8_t* q = p + s * part + i;
      for (size_t b = 0; b < kTurn; b += 64) __builtin_prefetch(q + kAhead + b);
      turn(q);
    }
}

struct PortableTurn {
  uint64_t* sums;
  void operator()(const uint8_t* p) const {
    const uint64_t* q = reinterpret_cast<const uint64_t*>(p);
    for (size_t i = 0; i < kTurn / 8; i++) sums[i % 8] += q[i];
  }
};

void read_portable(const uint8_t* p, size_t bytes, bool streams) {
  uint64_t sums[8] = {};
  if (streams)
    read_side_by_side(p, bytes, PortableTurn{sums});
  else
    read_along(p, bytes, PortableTurn{sums});
  asm volatile("" ::"r"(sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7]));
}

#if defined(__x86_64__)
#define HW_VECTORS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13"

void read_avx512(const uint8_t* p, size_t bytes, bool streams) {
  const auto turn = [](const uint8_t* q) {
    asm volatile("vmovdqa64 (%0), %%zmm0\n vmovdqa64 64(%0), %%zmm1\n vmovdqa64 128(%0), %%zmm2\n vmovdqa64 192(%0), %%zmm3\n"
                 : : "r"(q) : "memory", HW_VECTORS);
  };
  streams ? read_side_by_side(p, bytes, turn) : read_along(p, bytes, turn);
  asm volatile("vzeroupper" ::: HW_VECTORS);
}

void read_avx2(const uint8_t* p, size_t bytes, bool streams) {
  const auto turn = [](const uint8_t* q) {
    asm volatile(
        "vmovdqa (%0), %%ymm0\n vmovdqa 32(%0), %%ymm1\n vmovdqa 64(%0), %%ymm2\n vmovdqa 96(%0), %%ymm3\n"
        "vmovdqa 128(%0), %%ymm4\n vmovdqa 160(%0), %%ymm5\n vmovdqa 192(%0), %%ymm6\n vmovdqa 224(%0), %%ymm7\n"
        : : "r"(q) : "memory", HW_VECTORS);
  };
  streams ? read_side_by_side(p, bytes, turn) : read_along(p, bytes, turn);
  asm volatile("vzeroupper" ::: HW_VECTORS);
}

// Twelve times one instruction on registers of width R; the operands are zero, which no processor computes faster.
#define HW_ONE(OP, R, N) OP " %%" R "12, %%" R "13, %%" R #N "\n"
#define HW_TWELVE(OP, R)                                                                                               \
  HW_ONE(OP, R, 0) HW_ONE(OP, R, 1) HW_ONE(OP, R, 2) HW_ONE(OP, R, 3) HW_ONE(OP, R, 4) HW_ONE(OP, R, 5)                \
  HW_ONE(OP, R, 6) HW_ONE(OP, R, 7) HW_ONE(OP, R, 8) HW_ONE(OP, R, 9) HW_ONE(OP, R, 10) HW_ONE(OP, R, 11)
#define HW_PEAK(NAME, OP, R)                                                                                           \
  void NAME(uint64_t turns) {                                                                                          \
    asm volatile("vzeroall\n 1:\n" HW_TWELVE(OP, R) "dec %0\n jnz 1b\n vzeroupper\n" : "+r"(turns) : : "cc", HW_VECTORS); \
  }
HW_PEAK(int8_zmm, "vpdpbusd", "zmm")
HW_PEAK(bf16_zmm, "vdpbf16ps", "zmm")
HW_PEAK(fp32_zmm, "vfmadd231ps", "zmm")
HW_PEAK(fp32_ymm, "vfmadd231ps", "ymm")

// AVX2 has no such instruction: two make sums of 16 bits and then of 32, a third adds. Four chains.
void int8_ymm(uint64_t turns) {
  asm volatile(
      "vzeroall\n 1:\n"
      "vpmaddubsw %%ymm12, %%ymm13, %%ymm4\n vpmaddubsw %%ymm12, %%ymm13, %%ymm5\n vpmaddubsw %%ymm12, %%ymm13, %%ymm6\n vpmaddubsw %%ymm12, %%ymm13, %%ymm7\n"
      "vpmaddwd %%ymm11, %%ymm4, %%ymm4\n vpmaddwd %%ymm11, %%ymm5, %%ymm5\n vpmaddwd %%ymm11, %%ymm6, %%ymm6\n vpmaddwd %%ymm11, %%ymm7, %%ymm7\n"
      "vpaddd %%ymm4, %%ymm0, %%ymm0\n vpaddd %%ymm5, %%ymm1, %%ymm1\n vpaddd %%ymm6, %%ymm2, %%ymm2\n vpaddd %%ymm7, %%ymm3, %%ymm3\n"
      "dec %0\n jnz 1b\n vzeroupper\n"
      : "+r"(turns) : : "cc", HW_VECTORS);
}

// Six tiles of sums, each 16 x 16 of 32 bits; the operands are 16 rows of 64 bytes. The tiles are this thread's own.
#define HW_TILES(NAME, OP)                                                                                                        \
  void NAME(uint64_t turns) {                                                                                                     \
    alignas(64) static const TileShape shape = all_full();                                                                        \
    asm volatile("ldtilecfg (%1)\n tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n tilezero %%tmm4\n"       \
                 "tilezero %%tmm5\n tilezero %%tmm6\n tilezero %%tmm7\n 1:\n"                                                     \
                 OP " %%tmm7, %%tmm6, %%tmm0\n" OP " %%tmm7, %%tmm6, %%tmm1\n" OP " %%tmm7, %%tmm6, %%tmm2\n"                     \
                 OP " %%tmm7, %%tmm6, %%tmm3\n" OP " %%tmm7, %%tmm6, %%tmm4\n" OP " %%tmm7, %%tmm6, %%tmm5\n"                     \
                 "dec %0\n jnz 1b\n tilerelease\n"                                                                               \
                 : "+r"(turns) : "r"(&shape) : "memory", "cc");                                                                   \
  }

struct TileShape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShape) == 64);

TileShape all_full() {
  TileShape s;
  for (int i = 0; i < 8; i++) s.row_bytes[i] = 64, s.rows[i] = 16;
  return s;
}
HW_TILES(int8_tiles, "tdpbusd")
HW_TILES(bf16_tiles, "tdpbf16ps")

bool has_bf16() {
  uint32_t a, b, c, d;
  return cpu_facts().avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// The processor has tiles of that kind (a bit of leaf 7's edx) and the system lets this process use them.
bool has_tiles(int bit) {
  uint32_t a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> bit & 1)) return false;
#if defined(__linux__)
  constexpr long kAskPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

constexpr const char* kKinds = "int8, bf16, fp32, amx_int8, amx_bf16";

struct Loop {
  void (*run)(uint64_t turns) = nullptr;
  double macs = 0;  // of one turn
};

Loop loop_of(const std::string& kind) {
  const bool known = kind == "int8" || kind == "bf16" || kind == "fp32" || kind == "amx_int8" || kind == "amx_bf16";
  check(known, "peak: the kind '" + kind + "' is unknown; allowed: " + kKinds);
#if defined(__x86_64__)
  const CpuFacts& cpu = cpu_facts();
  if (kind == "int8" && cpu.avx512) return {int8_zmm, 12 * 64};
  if (kind == "int8" && cpu.avx2) return {int8_ymm, 4 * 32};
  if (kind == "bf16" && has_bf16()) return {bf16_zmm, 12 * 32};
  if (kind == "fp32" && cpu.avx512) return {fp32_zmm, 12 * 16};
  if (kind == "fp32" && cpu.avx2) return {fp32_ymm, 12 * 8};
  if (kind == "amx_int8" && has_tiles(25)) return {int8_tiles, 6 * 16 * 16 * 64};
  if (kind == "amx_bf16" && has_tiles(22)) return {bf16_tiles, 6 * 16 * 16 * 32};
#endif
  return {};
}

}  // namespace

double read_bandwidth(size_t bytes, int threads, double seconds, const std::vector<int>& cpus) {
  check(threads >= 1 && threads <= 1024, "threads is " + std::to_string(threads) + "; allowed: 1 to 1024");
  const size_t share = bytes / size_t(threads) / kPiece * kPiece;
  check(share > 0, "bytes is " + std::to_string(bytes) + "; allowed: at least " + std::to_string(kPiece) + " per thread");
  void (*read)(const uint8_t*, size_t, bool) = read_portable;
#if defined(__x86_64__)
  read = cpu_facts().avx512 ? read_avx512 : cpu_facts().avx2 ? read_avx2 : read_portable;
#endif
  const Arena buffer(share * size_t(threads));
  double best = 0;
  for (const bool streams : {false, true}) {
    std::vector<size_t> at(size_t(threads) * 64, share);  // a line apart
    best = std::max(best, rate(threads, seconds / 2, cpus, [&](int worker) {
      uint8_t* mine = buffer.data() + size_t(worker) * share;
      size_t& next = at[size_t(worker) * 64];
      if (next == share) {  // the first call: untouched pages would all be the one page of zeros
        for (size_t i = 0; !streams && i < share; i += 64) mine[i] = uint8_t(i);
        next = 0;
      }
      read(mine + next, kPiece, streams);
      next = next + kPiece == share ? 0 : next + kPiece;
      return double(kPiece);
    }));
  }
  return best;
}

double peak(const std::string& kind, int threads, double seconds, const std::vector<int>& cpus) {
  const Loop loop = loop_of(kind);
  if (!loop.run) return 0;
  return rate(threads, seconds, cpus, [&](int) {
    loop.run(kTurns);
    return loop.macs * double(kTurns);
  });
}

}  // namespace hw
