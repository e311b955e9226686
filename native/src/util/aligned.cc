#include "util/aligned.h"

#include <sys/mman.h>

#include <utility>

#include "util/error.h"

namespace hw {

namespace {
constexpr size_t kTail = 4096;  // prefetching and full-vector loads may look past the end
}

Arena::Arena(size_t bytes, bool huge) {
  if (!bytes) return;
  check(bytes < (size_t(1) << 46), "memory: " + std::to_string(bytes) + " bytes asked for, more than any machine has");
  const size_t total = round_up(bytes + kTail, 4096);
  void* p = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    throw OutOfMemory("memory: cannot get " + std::to_string(bytes >> 20) +
                      " MiB; use a smaller model, a shorter context or fewer sequences");
  if (huge && bytes >= (size_t(4) << 20)) madvise(p, total, MADV_HUGEPAGE);
  data_ = static_cast<uint8_t*>(p), bytes_ = bytes;
}

Arena::~Arena() {
  if (data_) munmap(data_, round_up(bytes_ + kTail, 4096));
}

Arena& Arena::operator=(Arena&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(bytes_, o.bytes_);
  return *this;
}

}  // namespace hw
