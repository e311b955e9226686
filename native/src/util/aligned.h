// Anonymous page-aligned memory, on request in huge pages; says clearly when there is too little.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

namespace hw {

// Throws OutOfMemory where the system could not give so many bytes now.
void expect_memory(size_t bytes);

class Arena {
 public:
  Arena() = default;
  // Zeroed. Huge pages: faster to stream, but touching one byte takes 2 MiB. Throws OutOfMemory.
  explicit Arena(size_t bytes, bool huge = true);
  ~Arena();
  Arena(Arena&& o) noexcept : data_(o.data_), bytes_(o.bytes_) { o.data_ = nullptr, o.bytes_ = 0; }
  Arena& operator=(Arena&& o) noexcept;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

// Pieces of larger arenas, for many allocations that live about as long: most are too small for huge pages of their own, and filling
// memory in small pages costs as much as computing what goes there. From any thread.
class Slabs {
 public:
  // An arena and a place in it, a multiple of 64, that nobody else gets; readable for a page behind its end.
  struct Piece {
    std::shared_ptr<Arena> owner;
    uint8_t* data;
  };
  Piece take(size_t bytes);

 private:
  std::mutex guard_;
  std::shared_ptr<Arena> slab_;
  size_t used_ = 0;
};

inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace hw
