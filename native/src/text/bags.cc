#include <algorithm>
#include <array>
#include <cmath>

#include "text/targets.h"
#include "text/text.h"

namespace hw::text {

namespace {

// meaning.py has the same numbers under the same names.
constexpr size_t kShared = 4, kChunk = 512, kStride = 384, kSteps = 16;
// To have kShared of its keys a text must have kLeast of any kProbes of them: the rarest, whose lists are short. Of 6 a text of 120 different
// words meets 430, and 14 items twice; of 5 it meets 290, and each would have to be looked at.
constexpr size_t kProbes = 6, kLeast = kProbes - (Bags::kKeys - kShared);
constexpr size_t kRows = size_t(1) << Bags::kRowBits;

// Of each byte the eight masks that turn a weight w into w (0) or -w (all bits): (w ^ mask) - mask. The highest bit first.
using Masks = std::array<std::array<int32_t, 8>, 256>;
constexpr Masks kMasks = [] {
  Masks masks{};
  for (size_t byte = 0; byte < 256; ++byte)
    for (size_t bit = 0; bit < 8; ++bit) masks[byte][bit] = byte >> (7 - bit) & 1 ? 0 : -1;
  return masks;
}();

struct Window {
  int32_t dot;
  int64_t square;
};

// sums[i + 1] = sums[i] + the vector of word i: its weight times a random direction, which is made of the number of its row.
[[gnu::always_inline]] inline void add_up(const uint16_t* rows, size_t count, const uint8_t* weights, int32_t* sums) {
  std::fill_n(sums, Bags::kDims, 0);
  for (size_t i = 0; i < count; ++i, sums += Bags::kDims) {
    const int32_t weight = weights[rows[i]];
    for (size_t half = 0; half < 2; ++half) {
      const uint64_t bits = mix(2 * uint64_t(rows[i]) + half + 1);
      for (size_t byte = 0; byte < 8; ++byte) {
        const auto& masks = kMasks[bits >> (8 * byte) & 255];
        const int32_t* before = sums + half * 64 + byte * 8;
        for (size_t d = 0; d < 8; ++d) sums[Bags::kDims + half * 64 + byte * 8 + d] = before[d] + ((weight ^ masks[d]) - masks[d]);
      }
    }
  }
}

[[gnu::always_inline]] inline Window compare(const int32_t* from, const int32_t* to, const int8_t* vector) {
  Window found{0, 0};
  for (size_t d = 0; d < Bags::kDims; ++d) {
    const int32_t value = to[d] - from[d];
    found.dot += value * int32_t(vector[d]);
    found.square += int64_t(value) * value;
  }
  return found;
}

using AddUp = void (*)(const uint16_t*, size_t, const uint8_t*, int32_t*);
using Compare = Window (*)(const int32_t*, const int32_t*, const int8_t*);
struct Loops {
  AddUp add_up;
  Compare compare;
};

void add_up_plain(const uint16_t* r, size_t n, const uint8_t* w, int32_t* s) { add_up(r, n, w, s); }
Window compare_plain(const int32_t* f, const int32_t* t, const int8_t* v) { return compare(f, t, v); }
#ifdef HW_TEXT_X86
HW_TEXT_AVX2 void add_up_avx2(const uint16_t* r, size_t n, const uint8_t* w, int32_t* s) { add_up(r, n, w, s); }
HW_TEXT_AVX2 Window compare_avx2(const int32_t* f, const int32_t* t, const int8_t* v) { return compare(f, t, v); }
HW_TEXT_AVX512 void add_up_avx512(const uint16_t* r, size_t n, const uint8_t* w, int32_t* s) { add_up(r, n, w, s); }
HW_TEXT_AVX512 Window compare_avx512(const int32_t* f, const int32_t* t, const int8_t* v) { return compare(f, t, v); }
#endif

const Loops& loops() {
  static const Loops chosen = [] {
#ifdef HW_TEXT_X86
    if (has_avx512()) return Loops{add_up_avx512, compare_avx512};
    if (has_avx2()) return Loops{add_up_avx2, compare_avx2};
#endif
    return Loops{add_up_plain, compare_plain};
  }();
  return chosen;
}

}  // namespace

// What a search holds; each call has its own, so that several threads may search.
struct Bags::Search {
  std::vector<uint32_t> seen = std::vector<uint32_t>(kRows, 0);    // the last chunk that had a row
  std::vector<uint32_t> marked = std::vector<uint32_t>(kRows, 0);  // the last item that a row was a key of
  std::vector<uint8_t> hits;                                       // of each item: its probes that the chunk has
  std::vector<int32_t> touched, candidates;
  std::vector<uint16_t> rows;  // of the chunk
  std::vector<int32_t> sums;   // (rows + 1, kDims) and maybe more
  bool summed = false;         // once a candidate asks for them
  uint32_t chunks = 0, items = 0;
};

Bags::Bags(const uint16_t* keys, const uint8_t* shares, const int8_t* vectors, const uint16_t* lengths, size_t items, const uint8_t* weights)
    : keys_(keys, keys + items * kKeys),
      lengths_(lengths, lengths + items),
      shares_(shares, shares + items * kKeys),
      weights_(weights, weights + kRows),
      vectors_(vectors, vectors + items * kDims),
      starts_(kRows + 1, 0) {
  squares_.reserve(items);
  std::vector<std::array<uint16_t, kProbes>> probes(items);
  for (size_t item = 0; item < items; ++item) {
    int64_t square = 0;
    for (size_t d = 0; d < kDims; ++d) square += int64_t(vectors[item * kDims + d]) * vectors[item * kDims + d];
    squares_.push_back(square);
    std::array<uint16_t, kKeys> order;
    std::copy_n(keys + item * kKeys, kKeys, order.begin());
    std::stable_sort(order.begin(), order.end(), [&](uint16_t a, uint16_t b) { return weights[a] > weights[b]; });
    std::copy_n(order.begin(), kProbes, probes[item].begin());
    for (const uint16_t row : probes[item]) ++starts_[row + size_t(1)];
  }
  for (size_t row = 0; row < kRows; ++row) starts_[row + 1] += starts_[row];
  postings_.resize(items * kProbes);
  std::vector<uint32_t> next(starts_.begin(), starts_.end() - 1);
  for (size_t item = 0; item < items; ++item)
    for (const uint16_t row : probes[item]) postings_[next[row]++] = int32_t(item);
}

// The items of whose keys the chunk has enough: kShared, and as much of their squared weight as each needs. In order.
void Bags::take_candidates(Search& search, const int32_t* needed) const {
  ++search.chunks;
  search.touched.clear();
  search.candidates.clear();
  for (const uint16_t row : search.rows) {
    if (search.seen[row] == search.chunks) continue;
    search.seen[row] = search.chunks;
    for (uint32_t p = starts_[row]; p < starts_[row + size_t(1)]; ++p) {
      const int32_t item = postings_[p];
      if (search.hits[size_t(item)]++ == 0) search.touched.push_back(item);
    }
  }
  for (const int32_t item : search.touched) {
    const bool enough = search.hits[size_t(item)] >= kLeast;
    search.hits[size_t(item)] = 0;
    if (!enough) continue;
    const size_t at = size_t(item) * kKeys;
    size_t shared = 0;
    int32_t share = 0;
    for (size_t k = 0; k < kKeys; ++k) {
      if (search.seen[keys_[at + k]] != search.chunks) continue;
      ++shared;
      share += shares_[at + k];
    }
    if (shared >= kShared && share >= needed[item]) search.candidates.push_back(item);
  }
  std::sort(search.candidates.begin(), search.candidates.end());
}

// Whether a quarter more words in a row than `length` hold as many keys as a text must have.
bool Bags::together(Search& search, size_t item, size_t length) const {
  const size_t count = search.rows.size();
  if (4 * count <= 5 * length) return true;
  ++search.items;
  for (size_t k = 0; k < kKeys; ++k) search.marked[keys_[item * kKeys + k]] = search.items;
  std::array<size_t, kShared> last{};  // places of the last keys, a ring
  size_t found = 0;
  for (size_t at = 0; at < count; ++at) {
    if (search.marked[search.rows[at]] != search.items) continue;
    last[found++ % kShared] = at;
    if (found >= kShared && 4 * (at - last[found % kShared]) <= 5 * length) return true;
  }
  return false;
}

// The window of `length` words that is most like an item, of those that begin at every sixteenth of it and at the end.
Bags::Match Bags::best_window(Search& search, size_t item, size_t length) const {
  const size_t count = search.rows.size(), last = count - length, step = std::max<size_t>(1, length / kSteps);
  if (!search.summed) {
    if (search.sums.size() < (count + 1) * kDims) search.sums.resize((count + 1) * kDims);
    search.summed = true;
    loops().add_up(search.rows.data(), count, weights_.data(), search.sums.data());
  }
  Match best{0, int32_t(item), -2.0, 0, 0};
  const double square = double(squares_[item]);
  for (size_t at = 0;; at = std::min(at + step, last)) {
    const int32_t* from = search.sums.data() + at * kDims;
    const Window window = loops().compare(from, from + length * kDims, vectors_.data() + item * kDims);
    const double cosine = double(window.dot) / std::sqrt(std::max(double(window.square) * square, 1.0));
    if (cosine > best.cosine) best.cosine = cosine, best.first = int64_t(at);
    if (at == last) break;
  }
  best.end = best.first + int64_t(length);
  return best;
}

std::vector<Bags::Match> Bags::find(const Words& words, const int32_t* needed, double threshold) const {
  std::vector<Match> found;
  Search search;
  search.hits.assign(lengths_.size(), 0);
  for (size_t text = 0; text < words.texts; ++text) {
    Match best{int64_t(text), -1, 0.0, 0, 0};
    for (int64_t begin = words.starts[text], end = words.starts[text + 1];; begin += int64_t(kStride)) {
      const int64_t stop = std::min(begin + int64_t(kChunk), end);
      search.rows.clear();
      for (int64_t at = begin; at < stop; ++at) search.rows.push_back(uint16_t(words.hashes[at] >> (64 - kRowBits)));
      search.summed = false;
      take_candidates(search, needed);
      for (const int32_t item : search.candidates) {
        const size_t length = std::min<size_t>(lengths_[size_t(item)], search.rows.size());
        if (!together(search, size_t(item), length)) continue;
        Match match = best_window(search, size_t(item), length);
        if (match.cosine < threshold || match.cosine <= best.cosine) continue;
        match.text = int64_t(text);
        match.first += begin - words.starts[text];
        match.end += begin - words.starts[text];
        best = match;
      }
      if (stop == end) break;
    }
    if (best.item >= 0) found.push_back(best);
  }
  return found;
}

}  // namespace hw::text
