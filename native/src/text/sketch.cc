#include <algorithm>

#include "text/targets.h"
#include "text/text.h"

namespace hw::text {

namespace {

constexpr uint64_t kStride = 0xD6E8FEB86659FD93u;  // words.py: _STRIDE
constexpr size_t kAhead = 12;
constexpr size_t kLanes = 32;                      // slots worked on at once: they stay in registers

// least[k] = min(least[k], mix(base[i] - k)) for all i: one source, compiled for several instruction sets. Integers, so each gives the same.
[[gnu::always_inline]] inline void take_least(const uint64_t* base, size_t count, uint64_t* least, size_t slots) {
  for (size_t from = 0; from < slots; from += kLanes) {
    const size_t lanes = std::min(kLanes, slots - from);
    uint64_t best[kLanes];
    for (size_t k = 0; k < kLanes; ++k) best[k] = ~uint64_t(0);
    for (size_t i = 0; i < count; ++i) {
      const uint64_t first = base[i] - from;
      for (size_t k = 0; k < kLanes; ++k) {
        const uint64_t value = mix(first - k);
        best[k] = value < best[k] ? value : best[k];
      }
    }
    std::copy_n(best, lanes, least + from);
  }
}

[[gnu::always_inline]] inline void add_rows(const int32_t* rows, size_t count, const float* vectors, size_t dims, float* sum) {
  for (size_t i = 0; i < count; ++i) {
    // The vectors are more than a cache holds, so each is asked for some words ahead.
    if (i + kAhead < count)
      for (size_t d = 0; d < dims; d += 16) __builtin_prefetch(vectors + size_t(rows[i + kAhead]) * dims + d);
    const float* row = vectors + size_t(rows[i]) * dims;
    for (size_t d = 0; d < dims; ++d) sum[d] += row[d];
  }
}

using TakeLeast = void (*)(const uint64_t*, size_t, uint64_t*, size_t);
using AddRows = void (*)(const int32_t*, size_t, const float*, size_t, float*);
struct Loops {
  TakeLeast take_least;
  AddRows add_rows;
};

void take_least_plain(const uint64_t* base, size_t count, uint64_t* least, size_t slots) { take_least(base, count, least, slots); }
void add_rows_plain(const int32_t* r, size_t n, const float* v, size_t d, float* s) { add_rows(r, n, v, d, s); }

#ifdef HW_TEXT_X86
HW_TEXT_AVX2 void take_least_avx2(const uint64_t* base, size_t count, uint64_t* least, size_t slots) { take_least(base, count, least, slots); }
HW_TEXT_AVX2 void add_rows_avx2(const int32_t* r, size_t n, const float* v, size_t d, float* s) { add_rows(r, n, v, d, s); }
HW_TEXT_AVX512 void take_least_avx512(const uint64_t* base, size_t count, uint64_t* least, size_t slots) {
  take_least(base, count, least, slots);
}
HW_TEXT_AVX512 void add_rows_avx512(const int32_t* r, size_t n, const float* v, size_t d, float* s) { add_rows(r, n, v, d, s); }
#endif

const Loops& loops() {
  static const Loops chosen = [] {
#ifdef HW_TEXT_X86
    if (has_avx512()) return Loops{take_least_avx512, add_rows_avx512};
    if (has_avx2()) return Loops{take_least_avx2, add_rows_avx2};
#endif
    return Loops{take_least_plain, add_rows_plain};
  }();
  return chosen;
}

}  // namespace

void c_minhash(const Words& words, size_t width, size_t slots, uint64_t sigma_key, uint64_t pi_key, uint64_t* signatures) {
  std::vector<uint64_t> base;
  for (size_t text = 0; text < words.texts; ++text) {
    const uint64_t* here = words.hashes + words.starts[text];
    const size_t count = size_t(words.starts[text + 1] - words.starts[text]);
    const size_t shingles = count ? std::max<size_t>(count, width) - width + 1 : 0;
    base.resize(shingles);
    for (size_t at = 0; at < shingles; ++at) {
      uint64_t rolled = 0;
      // A short text counts as if words of hash 0 followed.
      for (size_t offset = 0; offset < width; ++offset) rolled = rolled * kStride + (at + offset < count ? here[at + offset] : 0);
      base[at] = mix(mix(rolled) + sigma_key) + pi_key - 1;
    }
    uint64_t* out = signatures + text * slots;
    loops().take_least(base.data(), shingles, out, slots);
    for (size_t k = 0; k < slots; ++k) out[k] = mix(out[k]);
  }
}

void sum_vectors(const Words& words, const int32_t* row_of, int bits, const float* vectors, size_t dims, float* sums, bool* filled) {
  std::vector<int32_t> known;
  for (size_t text = 0; text < words.texts; ++text) {
    known.clear();
    for (int64_t i = words.starts[text]; i < words.starts[text + 1]; ++i) {
      const int32_t row = row_of[words.hashes[i] >> (64 - bits)];
      if (row >= 0) known.push_back(row);
    }
    float* sum = sums + text * dims;
    std::fill_n(sum, dims, 0.0f);
    filled[text] = !known.empty();
    loops().add_rows(known.data(), known.size(), vectors, dims, sum);
  }
}

}  // namespace hw::text
