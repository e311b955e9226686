// A list of texts that lie in a mapped file, found by their bytes: a vocabulary or its merges, without an object for each.
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "util/mapped_file.h"

namespace hw {

class Texts {
 public:
  // `texts` point into `file`. Equal ones: the last counts.
  Texts(std::shared_ptr<const MappedFile> file, std::vector<std::string_view> texts);
  // Its place, or -1.
  int64_t find(std::string_view text) const;
  std::string_view at(size_t i) const { return texts_[i]; }
  size_t size() const { return texts_.size(); }

 private:
  // A text's hash and its place + 1; 0: empty. Most that are not the one that is looked for show it without being read.
  struct Slot {
    uint32_t hash, place;
  };
  Slot& slot(std::string_view text, uint64_t hash) const;  // where it stands, or the empty one where it would
  std::shared_ptr<const MappedFile> file_;
  std::vector<std::string_view> texts_;
  mutable std::vector<Slot> slots_;  // a power of two of them, at most half full
};

}  // namespace hw
