// What a sequence leaves behind: keys and values in f16 per attention layer, a ring of the last inputs per convolution layer, one length.
// Memory is touched only as far as a sequence grows.
#pragma once
#include <cstdint>
#include <vector>

#include "util/aligned.h"

namespace hw {

struct StateSpec {
  struct Attention {
    size_t kv_heads, head_dim;
  };
  struct Convolution {
    size_t d, width;
  };
  std::vector<Attention> attention;
  std::vector<Convolution> convolution;
  size_t ring = 16;      // inputs kept per convolution layer: width - 1 + the furthest rewind
  size_t capacity = 0;   // positions a slot can hold
  size_t max_slots = 1;
};

class Slots {
 public:
  explicit Slots(const StateSpec& spec);
  int open();            // a fresh, empty slot; throws Error when all are in use
  void close(int slot);  // gives its memory back
  void copy(int from, int to);  // `to` becomes what `from` is
  void rewind(int slot, int64_t length);  // throws Error when the ring no longer holds what is needed
  void advance(int slot, int64_t tokens);

  // A sequence as bytes. Keys and values of positions [from, to), both multiples of 16 (what lies behind the length is zeros); and the tail: the
  // last inputs of every convolution at a length that a rewind could reach. restore() takes the tail and makes `length` the length; the keys and values below
  // it are the caller's to load. All check every size and throw Error.
  size_t keys_bytes(int64_t from, int64_t to) const;
  size_t tail_bytes() const;
  void save_keys(int slot, int64_t from, int64_t to, uint8_t* out) const;
  void load_keys(int slot, int64_t from, int64_t to, const uint8_t* in);
  void save_tail(int slot, int64_t length, uint8_t* out) const;
  void restore(int slot, int64_t length, const uint8_t* tail);
  int64_t length(int slot) const;
  int64_t capacity() const { return int64_t(spec_.capacity); }
  size_t bytes_per_token() const;
  size_t bytes_fixed() const;  // the rings of one slot
  const StateSpec& spec() const { return spec_; }

  uint16_t* keys(int slot, size_t layer, size_t head) const;    // [capacity/16][hd][16]
  uint16_t* values(int slot, size_t layer, size_t head) const;  // [capacity][hd]
  float* ring(int slot, size_t layer) const;                    // [ring][d]
  void check_open(int slot) const;

 private:
  struct Slot {
    bool open = false;
    int64_t length = 0, reached = 0;  // reached: furthest length that the ring has seen
    int64_t oldest = 0;               // the ring was empty before this position (a restored sequence has its tail alone)
    Arena memory;
  };
  void check_reach(int slot, int64_t length) const;  // throws Error when the ring no longer holds what goes before `length`
  size_t past() const;  // inputs that the widest convolution looks back
  void check_stretch(int64_t from, int64_t to) const;
  template <class F>
  void each_stretch(int slot, int64_t from, int64_t to, F f) const;
  StateSpec spec_;
  size_t capacity16_ = 0, total_ = 0;
  std::vector<size_t> key_offset_, ring_offset_;  // bytes inside a slot's memory
  std::vector<Slot> slots_;
};

}  // namespace hw
