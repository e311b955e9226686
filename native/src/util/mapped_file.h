// A file mapped read-only. `drop` gives pages back after they have been repacked.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace hw {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws Error: missing, empty, not a regular file
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }
  void drop(size_t offset, size_t bytes) const;        // whole pages inside the range leave our resident set
  void read_ahead(size_t offset, size_t bytes) const;  // a hint

 private:
  std::string path_;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace hw
