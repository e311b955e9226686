// A file mapped read-only, for what stays in place; `read` copies what is only passed through, so that its pages never count as ours.
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
  void read(size_t offset, size_t bytes, uint8_t* to) const;  // throws Error: the file got shorter, or cannot be read
  void read_ahead(size_t offset, size_t bytes) const;  // a hint

 private:
  std::string path_;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  int fd_ = -1;
};

}  // namespace hw
