#include "util/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "util/error.h"

namespace hw {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd_ >= 0, path + ": cannot open: " + strerror(errno));
  struct stat st;
  const bool regular = fstat(fd_, &st) == 0 && S_ISREG(st.st_mode);
  if (!regular || st.st_size == 0) {
    close(fd_);
    throw Error(path + (regular ? ": the file is empty" : ": not a regular file"));
  }
  size_ = size_t(st.st_size);
  void* p = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd_, 0);
  if (p == MAP_FAILED) {
    const int why = errno;
    close(fd_);
    throw Error(path + ": cannot map " + std::to_string(size_) + " bytes: " + strerror(why));
  }
  data_ = static_cast<uint8_t*>(p);
}

MappedFile::~MappedFile() {
  munmap(data_, size_);
  close(fd_);
}

void MappedFile::read(size_t offset, size_t bytes, uint8_t* to) const {
  while (bytes) {
    const ssize_t n = pread(fd_, to, bytes, off_t(offset));
    if (n < 0 && errno == EINTR) continue;
    check(n > 0, path_ + ": cannot read at byte " + std::to_string(offset) + ": " + (n < 0 ? strerror(errno) : "the file got shorter"));
    offset += size_t(n), to += n, bytes -= size_t(n);
  }
}

void MappedFile::read_ahead(size_t offset, size_t bytes) const {
  const size_t from = offset / 4096 * 4096;
  madvise(data_ + from, offset + bytes - from, MADV_WILLNEED);
}

}  // namespace hw
