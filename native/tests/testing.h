// What every test needs: random numbers that repeat, the instruction sets of this machine, a failure that says what and where.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "formats/formats.h"
#include "kernels/kernels.h"
#include "util/cpu.h"
#include "util/half.h"

namespace hwt {

struct Random {  // xorshift64*
  uint64_t s;
  explicit Random(uint64_t seed) : s(seed * 2654435769u + 88172645463325252ull) {}
  uint64_t bits() {
    s ^= s >> 12, s ^= s << 25, s ^= s >> 27;
    return s * 2685821657736338717ull;
  }
  float uniform() { return float(bits() >> 40) / float(1 << 24); }
  float normal() { return (uniform() + uniform() + uniform() + uniform() - 2.0f) * 1.732f; }
  size_t below(size_t n) { return size_t(bits() % n); }
};

inline std::vector<const hw::Kernels*> machine_sets() {
  std::vector<const hw::Kernels*> v{hw::kernels_portable()};
  if (hw::cpu_facts().avx2 && hw::kernels_avx2()) v.push_back(hw::kernels_avx2());
  if (hw::cpu_facts().avx512 && hw::kernels_avx512()) v.push_back(hw::kernels_avx512());
  if (hw::cpu_facts().amx && hw::kernels_amx()) v.push_back(hw::kernels_amx());
  return v;
}

inline void fail(const std::string& what) {
  fprintf(stderr, "FAILED: %s\n", what.c_str());
  exit(1);
}
inline void expect(bool ok, const std::string& what) {
  if (!ok) fail(what);
}

// |a - b| <= tolerance * (the largest |b|)
inline void expect_close(const float* a, const float* b, size_t n, float tolerance, const std::string& what) {
  float top = 0;
  for (size_t i = 0; i < n; i++) top = std::fmax(top, std::fabs(b[i]));
  for (size_t i = 0; i < n; i++)
    if (!(std::fabs(a[i] - b[i]) <= tolerance * top))
      fail(what + ": at " + std::to_string(i) + " got " + std::to_string(a[i]) + ", want " + std::to_string(b[i]) + " (largest " +
           std::to_string(top) + ")");
}

// GGUF bytes of `rows` random rows: random quants, scales of a sane size.
inline std::vector<uint8_t> random_rows(hw::Format f, size_t rows, size_t k, Random& r) {
  const hw::FormatInfo& fi = hw::info(f);
  std::vector<uint8_t> v(rows * (k / fi.block) * fi.source_bytes);
  if (!fi.act8) {
    std::vector<float> x(k);
    for (size_t i = 0; i < rows; i++) {
      for (float& e : x) e = r.normal();
      hw::quantize_row(f, x.data(), k, v.data() + i * k * fi.source_bytes);
    }
    return v;
  }
  for (uint8_t& b : v) b = uint8_t(r.bits() >> 33);
  for (size_t b = 0; b < v.size(); b += fi.source_bytes) {
    const uint16_t d = hw::float_to_half(0.01f + 0.02f * r.uniform()), m = hw::float_to_half(0.05f * r.uniform());
    const bool k45 = f == hw::Format::Q4_K || f == hw::Format::Q5_K;
    memcpy(v.data() + b + (f == hw::Format::Q6_K ? 208 : 0), &d, 2);
    if (k45) memcpy(v.data() + b + 2, &m, 2);
  }
  return v;
}

}  // namespace hwt
