#include "util/aligned.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

#include "util/error.h"

namespace hw {

namespace {
constexpr size_t kTail = 4096;  // prefetching and full-vector loads may look past the end
constexpr size_t kSlab = size_t(32) << 20;
constexpr size_t kLarge = size_t(64) << 20;

// What the system could still give, or SIZE_MAX when it does not say. It overcommits: without asking, a model too large is killed
// while it loads instead of being refused.
size_t available_memory() {
  FILE* f = fopen("/proc/meminfo", "r");
  if (!f) return SIZE_MAX;
  char line[256];
  size_t kib = SIZE_MAX >> 10;
  while (fgets(line, sizeof line, f))
    if (sscanf(line, "MemAvailable: %zu kB", &kib) == 1) break;
  fclose(f);
  return kib << 10;
}

[[noreturn]] void too_little(size_t bytes) {
  throw OutOfMemory("memory: cannot get " + std::to_string(bytes >> 20) + " MiB, " + std::to_string(available_memory() >> 20) +
                    " MiB are available; use a smaller model, a smaller number format, a shorter context or fewer sequences");
}
}  // namespace

void expect_memory(size_t bytes) {
  if (bytes >= kLarge && bytes > available_memory()) too_little(bytes);
}

Arena::Arena(size_t bytes, bool huge) {
  if (!bytes) return;
  check(bytes < (size_t(1) << 46), "memory: " + std::to_string(bytes) + " bytes asked for, more than any machine has");
  if (huge) expect_memory(bytes);
  const size_t total = round_up(bytes + kTail, 4096);
  void* p = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) too_little(bytes);
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

Slabs::Piece Slabs::take(size_t bytes) {
  if (bytes >= kSlab / 2) {
    auto own = std::make_shared<Arena>(bytes);
    return {own, own->data()};
  }
  const std::lock_guard<std::mutex> held(guard_);
  if (!slab_ || slab_->size() - used_ < bytes) slab_ = std::make_shared<Arena>(kSlab), used_ = 0;
  const Piece piece{slab_, slab_->data() + used_};
  used_ += round_up(bytes, 64);
  return piece;
}

}  // namespace hw
