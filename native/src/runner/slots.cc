#include "runner/slots.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "util/error.h"

namespace hw {

Slots::Slots(const StateSpec& spec) : spec_(spec) {
  check(spec.capacity >= 1 && spec.capacity <= (size_t(1) << 24), "capacity: " + std::to_string(spec.capacity) + " positions; allowed: 1 to 2^24");
  check(spec.max_slots >= 1 && spec.max_slots <= 4096, "slots: " + std::to_string(spec.max_slots) + "; allowed: 1 to 4096");
  capacity16_ = round_up(spec.capacity, 16);
  for (const auto& a : spec.attention) {
    check(a.kv_heads >= 1 && a.head_dim >= 16 && a.head_dim % 16 == 0,
          "head_dim: " + std::to_string(a.head_dim) + "; the native kernels need a multiple of 16");
    key_offset_.push_back(total_);
    total_ += round_up(2 * a.kv_heads * a.head_dim * capacity16_ * 2, 4096);
  }
  for (const auto& c : spec.convolution) {
    check(c.width >= 1 && spec.ring >= c.width, "ring: " + std::to_string(spec.ring) + " inputs for a convolution of width " + std::to_string(c.width));
    ring_offset_.push_back(total_);
    total_ += round_up(spec.ring * c.d * 4, 64);
  }
  slots_.resize(spec.max_slots);
}

int Slots::open() {
  for (size_t i = 0; i < slots_.size(); i++)
    if (!slots_[i].open) {
      slots_[i].memory = Arena(std::max<size_t>(total_, 64), false);
      slots_[i].open = true, slots_[i].length = slots_[i].reached = 0;
      return int(i);
    }
  throw Error("slots: all " + std::to_string(slots_.size()) + " are in use; close one or build the engine with more");
}

void Slots::check_open(int slot) const {
  check(slot >= 0 && size_t(slot) < slots_.size() && slots_[size_t(slot)].open, "slot " + std::to_string(slot) + " is not open");
}

void Slots::close(int slot) {
  check_open(slot);
  slots_[size_t(slot)] = Slot();
}

void Slots::copy(int from, int to) {
  check_open(from), check_open(to);
  if (from == to) return;
  const Slot& a = slots_[size_t(from)];
  Slot& b = slots_[size_t(to)];
  const size_t blocks = round_up(size_t(a.length), 16);
  for (size_t l = 0; l < spec_.attention.size(); l++)
    for (size_t h = 0; h < spec_.attention[l].kv_heads; h++) {
      const size_t bytes = blocks * spec_.attention[l].head_dim * 2;
      memcpy(keys(to, l, h), keys(from, l, h), bytes);
      memcpy(values(to, l, h), values(from, l, h), bytes);
    }
  for (size_t l = 0; l < spec_.convolution.size(); l++)
    memcpy(ring(to, l), ring(from, l), spec_.ring * spec_.convolution[l].d * 4);
  b.length = a.length, b.reached = a.reached;
}

void Slots::rewind(int slot, int64_t length) {
  check_open(slot);
  Slot& s = slots_[size_t(slot)];
  check(length >= 0 && length <= s.length, "rewind: to " + std::to_string(length) + " tokens, but the sequence has " + std::to_string(s.length));
  size_t past = 0;
  for (const auto& c : spec_.convolution) past = std::max(past, c.width - 1);
  const int64_t oldest = s.reached - int64_t(spec_.ring);  // positions from here on are still in the ring
  check(length == s.length || past == 0 || std::max<int64_t>(0, length - int64_t(past)) >= oldest || length == 0,
        "rewind: to " + std::to_string(length) + " tokens, but the convolution ring reaches back to " +
            std::to_string(oldest + int64_t(past)) + "; keep a copy of the slot for longer jumps");
  s.length = length;
  if (length == 0) s.reached = 0;
}

void Slots::advance(int slot, int64_t tokens) {
  Slot& s = slots_[size_t(slot)];
  s.length += tokens;
  s.reached = std::max(s.reached, s.length);
}

int64_t Slots::length(int slot) const {
  check_open(slot);
  return slots_[size_t(slot)].length;
}

size_t Slots::bytes_per_token() const {
  size_t n = 0;
  for (const auto& a : spec_.attention) n += 4 * a.kv_heads * a.head_dim;
  return n;
}

size_t Slots::bytes_fixed() const {
  size_t n = 0;
  for (const auto& c : spec_.convolution) n += spec_.ring * c.d * 4;
  return n;
}

uint16_t* Slots::keys(int slot, size_t layer, size_t head) const {
  const auto& a = spec_.attention[layer];
  return reinterpret_cast<uint16_t*>(slots_[size_t(slot)].memory.data() + key_offset_[layer]) + 2 * head * capacity16_ * a.head_dim;
}

uint16_t* Slots::values(int slot, size_t layer, size_t head) const {
  return keys(slot, layer, head) + capacity16_ * spec_.attention[layer].head_dim;
}

float* Slots::ring(int slot, size_t layer) const {
  return reinterpret_cast<float*>(slots_[size_t(slot)].memory.data() + ring_offset_[layer]);
}

}  // namespace hw
