// GGUF files (versions 2 and 3, little-endian), read through a mapping with every count, offset, length and alignment checked.
// Format: ggml's docs/gguf.md. The file is foreign input: whatever it holds, reading ends in a value or in Error.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "util/aligned.h"
#include "util/mapped_file.h"

namespace hw {

struct GgufValue;
using GgufArray = std::vector<GgufValue>;
struct GgufValue {
  std::variant<uint64_t, int64_t, double, bool, std::string, GgufArray> v;
};

struct GgufTensor {
  std::string name;
  uint32_t type = 0;         // ggml's number
  std::vector<size_t> dims;  // innermost first, as in the file
  size_t offset = 0, bytes = 0;
  size_t k() const { return dims[0]; }
  size_t rows() const { return dims.size() > 1 ? dims[1] : 1; }
  size_t experts() const { return dims.size() > 2 ? dims[2] : 1; }
};

class Loading;  // formats/load.h

class Gguf {
 public:
  explicit Gguf(const std::string& path);
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find(const std::string& name) const;
  const std::vector<std::string>& keys() const { return keys_; }
  bool has(const std::string& key) const { return at_.count(key) != 0; }
  GgufValue value(const std::string& key) const;  // decoded when asked (vocabularies are long)
  // The same for an array of texts or of 32-bit integers, without a value for each item; false: it is something else.
  bool texts(const std::string& key, std::vector<std::string_view>& out) const;
  bool integers(const std::string& key, std::vector<int32_t>& out) const;
  const MappedFile& file() const { return *file_; }
  std::shared_ptr<const MappedFile> share() const { return file_; }
  Slabs& slabs() const { return *slabs_; }  // where its matrices are repacked to
  std::shared_ptr<Loading> loading;         // matrices that were begun before anybody asked for them

 private:
  void read_values(uint64_t count);
  void read_tensors(uint64_t count);
  std::shared_ptr<MappedFile> file_;
  std::unique_ptr<Slabs> slabs_ = std::make_unique<Slabs>();
  std::vector<std::string> keys_;
  std::unordered_map<std::string, size_t> at_;  // key -> offset of its type
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
  size_t end_ = 0;  // of what has been read
};

}  // namespace hw
