#include "formats/texts.h"

#include <functional>
#include <string>
#include <utility>

#include "util/error.h"

namespace hw {

Texts::Texts(std::shared_ptr<const MappedFile> file, std::vector<std::string_view> texts) : file_(std::move(file)), texts_(std::move(texts)) {
  check(texts_.size() < (size_t(1) << 30), file_->path() + ": a list of " + std::to_string(texts_.size()) + " texts");
  size_t room = 16;
  while (room < 2 * texts_.size()) room *= 2;
  slots_.resize(room);
  for (size_t i = 0; i < texts_.size(); i++) slot(texts_[i]) = uint32_t(i + 1);
}

uint32_t& Texts::slot(std::string_view text) const {
  const size_t mask = slots_.size() - 1;
  size_t at = std::hash<std::string_view>()(text) & mask;
  while (slots_[at] && texts_[slots_[at] - 1] != text) at = (at + 1) & mask;
  return slots_[at];
}

int64_t Texts::find(std::string_view text) const { return int64_t(slot(text)) - 1; }

}  // namespace hw
