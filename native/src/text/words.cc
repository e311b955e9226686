#include <algorithm>

#include "text/text.h"

namespace hw::text {

namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15u;  // words.py: _BASE

template <typename Point>
void append(const Alphabet& alphabet, const Point* points, size_t length, std::vector<uint64_t>& hashes) {
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
    if (kind == 2) hashes.push_back(mix(alphabet.values[point]));
  }
  if (inside) hashes.push_back(mix(sum));
}

}  // namespace

void append_words(const Alphabet& alphabet, const void* points, int width, size_t length, std::vector<uint64_t>& hashes) {
  if (width == 1) append(alphabet, static_cast<const uint8_t*>(points), length, hashes);
  if (width == 2) append(alphabet, static_cast<const uint16_t*>(points), length, hashes);
  if (width == 4) append(alphabet, static_cast<const uint32_t*>(points), length, hashes);
}

}  // namespace hw::text
