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

namespace {

// Which runs of n words each chosen text holds, and how often: calls visit(text, first word of the run, times so far, this one included).
template <typename Visit>
void each_time(const Words& words, size_t n, const bool* chosen, Visit visit) {
  struct Seen {
    uint64_t hash;
    uint32_t times, text;
  };
  std::vector<Seen> table;
  for (size_t text = 0; text < words.texts; ++text) {
    const size_t count = size_t(words.starts[text + 1] - words.starts[text]);
    if (!chosen[text] || count < n) continue;
    // Entries of an earlier text are told by its number, so the table is emptied only when it grows.
    if (table.size() < 2 * count) table.assign(std::bit_ceil(2 * count), Seen{0, 0, 0});
    const size_t mask = table.size() - 1;
    const uint32_t me = uint32_t(text) + 1;
    each_run(words.hashes + words.starts[text], count, n, [&](size_t first, uint64_t hash) {
      size_t at = hash & mask;
      while (table[at].text == me && table[at].hash != hash) at = (at + 1) & mask;
      if (table[at].text != me) table[at] = {hash, 0, me};
      visit(text, int64_t(first), ++table[at].times);
    });
  }
}

}  // namespace

void count_repeats(const Words& words, size_t n, const bool* chosen, int64_t* most, int64_t* again) {
  std::fill_n(most, words.texts, 0);
  std::fill_n(again, words.texts, 0);
  each_time(words, n, chosen, [&](size_t text, int64_t, uint32_t times) {
    most[text] = std::max<int64_t>(most[text], times);
    again[text] += times > 1;
  });
}

void count_covered(const Words& words, size_t n, const bool* chosen, int64_t* covered) {
  std::fill_n(covered, words.texts, 0);
  size_t last = 0;
  int64_t end = 0;  // of the words counted so far in the text `last`
  each_time(words, n, chosen, [&](size_t text, int64_t first, uint32_t times) {
    if (text != last) last = text, end = 0;
    if (times == 1) return;
    covered[text] += first + int64_t(n) - std::max(end, first);
    end = first + int64_t(n);
  });
}

Found find_runs(const Words& words, const std::vector<size_t>& lengths, const BitMap& begins, const BitMap& known) {
  Found found;
  std::vector<uint64_t> places;
  for (size_t text = 0; text < words.texts; ++text) {
    const uint64_t* here = words.hashes + words.starts[text];
    const size_t count = size_t(words.starts[text + 1] - words.starts[text]);
    places.clear();
    each_run(here, count, lengths[0], [&](size_t, uint64_t hash) {
      places.push_back(hash >> (64 - begins.bits));
      __builtin_prefetch(begins.bytes + (places.back() >> 3));  // the map is more than a cache holds
    });
    for (size_t at = 0; at < places.size(); ++at) {
      if (!begins.has(places[at])) continue;
      uint64_t sum = 0, power = 1;
      size_t done = 0;
      for (const size_t n : lengths) {
        if (at + n > count) break;
        for (; done < n; ++done) {
          sum += here[at + done] * power;
          power *= kStep;
        }
        const uint64_t hash = mix(sum + n);
        if (!known.has(hash >> (64 - known.bits))) continue;
        found.first.push_back(words.starts[text] + int64_t(at));
        found.hashes.push_back(hash);
      }
    }
  }
  return found;
}

}  // namespace hw::text
