#include <algorithm>
#include <bit>

#include "text/text.h"

namespace hw::text {

namespace {

constexpr uint64_t kStep = 0xC2B2AE3D27D4EB4Fu;  // ngrams.py: _STEP

constexpr uint64_t inverse(uint64_t odd) {
  uint64_t x = odd;
  for (int i = 0; i < 6; ++i) x *= 2 - odd * x;  // Newton's iteration doubles the right bits: 3, 6, ... 192
  return x;
}

// Calls visit(first word of the run within the text, hash of the run) for every run of n of `count` words.
template <typename Visit>
void each_run(const uint64_t* words, size_t count, size_t n, Visit visit) {
  constexpr uint64_t back = inverse(kStep);
  if (count < n) return;
  uint64_t sum = 0, power = 1;
  for (size_t i = 0; i + 1 < n; ++i) {
    sum += words[i] * power;
    power *= kStep;
  }
  for (size_t at = 0; at + n <= count; ++at) {
    sum += words[at + n - 1] * power;
    visit(at, mix(sum + n));
    sum = (sum - words[at]) * back;
  }
}

}  // namespace

void count_repeats(const Words& words, size_t n, const bool* chosen, int64_t* most, int64_t* again) {
  struct Seen {
    uint64_t hash;
    uint32_t times, text;
  };
  std::vector<Seen> table;
  for (size_t text = 0; text < words.texts; ++text) {
    const size_t count = size_t(words.starts[text + 1] - words.starts[text]);
    most[text] = again[text] = 0;
    if (!chosen[text] || count < n) continue;
    const size_t size = std::bit_ceil(2 * count);
    // Entries of an earlier text are told by its number, so the table is emptied only when it grows.
    if (table.size() < size) table.assign(size, Seen{0, 0, 0});
    const size_t mask = table.size() - 1;
    const uint32_t me = uint32_t(text) + 1;
    uint32_t top = 0;
    int64_t repeats = 0;
    each_run(words.hashes + words.starts[text], count, n, [&](size_t, uint64_t hash) {
      size_t at = hash & mask;
      while (table[at].text == me && table[at].hash != hash) at = (at + 1) & mask;
      Seen& seen = table[at];
      if (seen.text != me) {
        seen = {hash, 1, me};
      } else {
        ++seen.times;
        ++repeats;
      }
      top = std::max(top, seen.times);
    });
    most[text] = top;
    again[text] = repeats;
  }
}

std::vector<int64_t> runs_in_map(const Words& words, size_t n, const uint8_t* map, int bits) {
  std::vector<int64_t> found;
  for (size_t text = 0; text < words.texts; ++text) {
    const int64_t first = words.starts[text];
    each_run(words.hashes + first, size_t(words.starts[text + 1] - first), n, [&](size_t at, uint64_t hash) {
      const uint64_t place = hash >> (64 - bits);
      if (map[place >> 3] >> (7 - (place & 7)) & 1) found.push_back(first + int64_t(at));
    });
  }
  return found;
}

}  // namespace hw::text
