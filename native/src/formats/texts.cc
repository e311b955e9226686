#include "formats/texts.h"

#include <cstring>
#include <string>
#include <utility>

#include "util/error.h"

namespace hw {

namespace {

uint64_t mixed(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return uint64_t(product) ^ uint64_t(product >> 64);
}

// Eight bytes at a time: a start makes one of every text of a vocabulary.
uint64_t hash_of(std::string_view text) {
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
  uint64_t h = text.size() * kOdd;
  const char* p = text.data();
  size_t n = text.size();
  for (uint64_t x; n >= 8; p += 8, n -= 8) memcpy(&x, p, 8), h = mixed(h ^ x, kOdd);
  uint64_t x = 0;
  if (n) memcpy(&x, p, n);
  return mixed(h ^ x, kOdd);
}

}  // namespace

Texts::Texts(std::shared_ptr<const MappedFile> file, std::vector<std::string_view> texts) : file_(std::move(file)), texts_(std::move(texts)) {
  check(texts_.size() < (size_t(1) << 30), file_->path() + ": a list of " + std::to_string(texts_.size()) + " texts");
  while ((size_t(1) << bits_) < 2 * texts_.size()) bits_++;
  slots_.resize(size_t(1) << bits_);
  for (size_t i = 0; i < texts_.size(); i++) {
    const uint64_t hash = hash_of(texts_[i]);
    slot(texts_[i], hash) = tag(hash) | uint32_t(i + 1);
  }
}

uint32_t& Texts::slot(std::string_view text, uint64_t hash) const {
  const uint32_t mask = uint32_t(slots_.size() - 1), wanted = tag(hash);
  const auto other = [&](uint32_t x) { return x && ((x & ~mask) != wanted || texts_[(x & mask) - 1] != text); };
  size_t at = hash & mask;
  while (other(slots_[at])) at = (at + 1) & mask;
  return slots_[at];
}

int64_t Texts::find(std::string_view text) const {
  const uint32_t x = slot(text, hash_of(text));
  return int64_t(x & uint32_t(slots_.size() - 1)) - 1;
}

}  // namespace hw
