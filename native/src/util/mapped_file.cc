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
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, path + ": cannot open: " + strerror(errno));
  struct stat st;
  const bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
  if (!regular || st.st_size == 0) {
    close(fd);
    throw Error(path + (regular ? ": the file is empty" : ": not a regular file"));
  }
  size_ = size_t(st.st_size);
  void* p = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  check(p != MAP_FAILED, path + ": cannot map " + std::to_string(size_) + " bytes: " + strerror(errno));
  data_ = static_cast<uint8_t*>(p);
}

MappedFile::~MappedFile() { munmap(data_, size_); }

void MappedFile::drop(size_t offset, size_t bytes) const {
  const size_t page = 4096, from = (offset + page - 1) / page * page, to = (offset + bytes) / page * page;
  if (to > from) madvise(data_ + from, to - from, MADV_DONTNEED);
}

void MappedFile::read_ahead(size_t offset, size_t bytes) const {
  const size_t from = offset / 4096 * 4096;
  madvise(data_ + from, offset + bytes - from, MADV_WILLNEED);
}

}  // namespace hw
