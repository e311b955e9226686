#include "util/cpu.h"

#include <sched.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <cstdint>
#include <cstring>

namespace hw {

#if defined(__x86_64__)
static uint64_t xcr0() {
  uint32_t lo, hi;
  asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (uint64_t(hi) << 32) | lo;
}

// Tiles have 8 KB of registers, so Linux saves them only for processes that ask; it may refuse.
static bool tiles_granted() {
#if defined(__linux__)
  constexpr long kAskPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
#else
  return false;
#endif
}

static CpuFacts ask() {
  CpuFacts f;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool fma = c >> 12 & 1, f16c = c >> 29 & 1, osxsave = c >> 27 & 1;
  const uint64_t saved = osxsave ? xcr0() : 0;
  uint32_t b7 = 0, c7 = 0, d7 = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) b7 = b, c7 = c, d7 = d;
  f.avx2 = fma && f16c && (b7 >> 5 & 1) && (saved & 6) == 6;
  const bool f512 = b7 >> 16 & 1, dq = b7 >> 17 & 1, bw = b7 >> 30 & 1, vl = b7 >> 31 & 1, vnni = c7 >> 11 & 1;
  f.avx512 = f.avx2 && f512 && dq && bw && vl && vnni && (saved & 0xe6) == 0xe6;
  const bool tile = d7 >> 24 & 1, tile_bf16 = d7 >> 22 & 1, tile_int8 = d7 >> 25 & 1, gfni = c7 >> 8 & 1;
  f.amx = f.avx512 && tile && tile_bf16 && tile_int8 && gfni && (saved & 0x60000) == 0x60000 && tiles_granted();
  uint32_t name[13] = {};
  for (uint32_t i = 0; i < 3; i++)
    __get_cpuid(0x80000002u + i, &name[4 * i], &name[4 * i + 1], &name[4 * i + 2], &name[4 * i + 3]);
  f.brand = reinterpret_cast<const char*>(name);
  return f;
}
#else
static CpuFacts ask() { return {}; }
#endif

const CpuFacts& cpu_facts() {
  static const CpuFacts facts = ask();
  return facts;
}

std::vector<int> allowed_cpus() {
  std::vector<int> out;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int i = 0; i < CPU_SETSIZE; i++)
      if (CPU_ISSET(i, &set)) out.push_back(i);
  if (out.empty()) out.push_back(0);
  return out;
}

}  // namespace hw
