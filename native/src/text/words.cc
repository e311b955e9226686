#include <algorithm>

#include "text/text.h"

namespace hw::text {

namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15u;  // words.py: _BASE

template <typename Point>
void append(const Alphabet& alphabet, const Point* points, size_t length, std::vector<uint64_t>& hashes, std::vector<uint8_t>& alone) {
  const uint32_t last = alphabet.size - 1;
  uint64_t sum = 0, power = 1;
  bool inside = false;
  for (size_t i = 0; i < length; ++i) {
    const uint32_t point = std::min<uint32_t>(points[i], last);
    const uint8_t kind = alphabet.kinds[point];
    if (kind == 1) {
      sum += alphabet.values[point] * power;
      power *= kBase;
      inside = true;
      continue;
    }
    if (inside) {
      hashes.push_back(mix(sum));
      sum = 0, power = 1, inside = false;
    }
    if (kind != 2) continue;
    alone.resize(hashes.size());
    hashes.push_back(mix(alphabet.values[point]));
    alone.push_back(1);
  }
  if (inside) hashes.push_back(mix(sum));
  alone.resize(hashes.size());
}

template <typename Point>
bool any(const uint8_t* marks, uint32_t size, const Point* points, size_t length) {
  for (size_t i = 0; i < length; ++i)
    if (marks[std::min<uint32_t>(points[i], size - 1)]) return true;
  return false;
}

template <typename Point>
void count(const Point* points, size_t length, int64_t* counts) {
  int64_t bytes = 0, spaces = 0, lines = 0, tabs = 0, letters = 0, digits = 0, hashes = 0, dots = 0, run = 0;
  for (size_t i = 0; i < length; ++i) {
    const uint32_t c = points[i];
    const int64_t size = 1 + (c > 0x7F) + (c > 0x7FF) + (c > 0xFFFF);
    bytes += size;
    letters += c > 0x7F ? size : int64_t((c | 32) - 'a' < 26);
    digits += c - '0' < 10;
    spaces += c == ' ';
    lines += c == '\n';
    tabs += c == '\t';
    hashes += c == '#';
    run = c == '.' ? run + 1 : 0;
    if (run == 3) run = 0, ++dots;
    dots += c == 0x2026;
  }
  const int64_t found[kCounts] = {bytes, spaces, lines, tabs, letters, digits, hashes, dots};
  std::copy_n(found, kCounts, counts);
}

}  // namespace

bool any_marked(const uint8_t* marks, uint32_t size, const void* points, int width, size_t length) {
  if (width == 1) return any(marks, size, static_cast<const uint8_t*>(points), length);
  if (width == 2) return any(marks, size, static_cast<const uint16_t*>(points), length);
  return any(marks, size, static_cast<const uint32_t*>(points), length);
}

void count_characters(const void* points, int width, size_t length, int64_t* counts) {
  if (width == 1) count(static_cast<const uint8_t*>(points), length, counts);
  if (width == 2) count(static_cast<const uint16_t*>(points), length, counts);
  if (width == 4) count(static_cast<const uint32_t*>(points), length, counts);
}

void append_words(const Alphabet& alphabet, const void* points, int width, size_t length, std::vector<uint64_t>& hashes, std::vector<uint8_t>& alone) {
  if (width == 1) append(alphabet, static_cast<const uint8_t*>(points), length, hashes, alone);
  if (width == 2) append(alphabet, static_cast<const uint16_t*>(points), length, hashes, alone);
  if (width == 4) append(alphabet, static_cast<const uint32_t*>(points), length, hashes, alone);
}

}  // namespace hw::text
