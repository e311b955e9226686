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
  size_t room = 16;
  while (room < 2 * texts_.size()) room *= 2;
  slots_.resize(room);
  for (size_t i = 0; i < texts_.size(); i++) {
    const uint64_t hash = hash_of(texts_[i]);
    slot(texts_[i], hash) = {uint32_t(hash >> 32), uint32_t(i + 1)};
  }
}

Texts::Slot& Texts::slot(std::string_view text, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  while (slots_[at].place && (slots_[at].hash != uint32_t(hash >> 32) || texts_[slots_[at].place - 1] != text)) at = (at + 1) & mask;
  return slots_[at];
}

int64_t Texts::find(std::string_view text) const { return int64_t(slot(text, hash_of(text)).place) - 1; }

}  // namespace hw
