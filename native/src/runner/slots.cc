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
      slots_[i].open = true, slots_[i].length = slots_[i].reached = slots_[i].oldest = 0;
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
  b.length = a.length, b.reached = a.reached, b.oldest = a.oldest;
}

void Slots::check_reach(int slot, int64_t length) const {
  check_open(slot);
  const Slot& s = slots_[size_t(slot)];
  check(length >= 0 && length <= s.length, "rewind: to " + std::to_string(length) + " tokens, but the sequence has " + std::to_string(s.length));
  const int64_t back = int64_t(past()), oldest = std::max(s.oldest, s.reached - int64_t(spec_.ring));  // in the ring from here on
  check(length == s.length || back == 0 || std::max<int64_t>(0, length - back) >= oldest || length == 0,
        "rewind: to " + std::to_string(length) + " tokens, but the convolution ring reaches back to " + std::to_string(oldest + back) +
            "; keep a copy of the slot for longer jumps");
}

void Slots::rewind(int slot, int64_t length) {
  check_reach(slot, length);
  Slot& s = slots_[size_t(slot)];
  s.length = length;
  if (length == 0) s.reached = s.oldest = 0;
}

void Slots::advance(int slot, int64_t tokens) {
  Slot& s = slots_[size_t(slot)];
  s.length += tokens;
  s.reached = std::max(s.reached, s.length);
}

size_t Slots::past() const {
  size_t n = 0;
  for (const auto& c : spec_.convolution) n = std::max(n, c.width - 1);
  return n;
}

void Slots::check_stretch(int64_t from, int64_t to) const {
  check(from >= 0 && from <= to && from % 16 == 0 && to % 16 == 0 && size_t(to) <= capacity16_,
        "state: positions " + std::to_string(from) + " to " + std::to_string(to) + "; allowed: multiples of 16 from 0 to " + std::to_string(capacity16_));
}

size_t Slots::keys_bytes(int64_t from, int64_t to) const {
  check_stretch(from, to);
  return size_t(to - from) * bytes_per_token();
}

size_t Slots::tail_bytes() const {
  size_t n = 0;
  for (const auto& c : spec_.convolution) n += (c.width - 1) * c.d * 4;
  return n;
}

// f(pointer to keys, pointer to values, bytes of each, values of one position), layer by layer, head by head.
template <class F>
void Slots::each_stretch(int slot, int64_t from, int64_t to, F f) const {
  check_open(slot), check_stretch(from, to);
  for (size_t l = 0; l < spec_.attention.size(); l++)
    for (size_t h = 0; h < spec_.attention[l].kv_heads; h++) {
      const size_t hd = spec_.attention[l].head_dim;
      f(keys(slot, l, h) + size_t(from) * hd, values(slot, l, h) + size_t(from) * hd, size_t(to - from) * hd * 2, hd);
    }
}

void Slots::save_keys(int slot, int64_t from, int64_t to, uint8_t* out) const {
  check_open(slot);
  const int64_t length = slots_[size_t(slot)].length;
  each_stretch(slot, from, to, [&](const uint16_t* k, const uint16_t* v, size_t bytes, size_t hd) {
    memcpy(out, k, bytes), memcpy(out + bytes, v, bytes);
    auto *ks = reinterpret_cast<uint16_t*>(out), *vs = reinterpret_cast<uint16_t*>(out + bytes);
    for (int64_t p = std::max(from, length); p < to; p++) {  // never a former sequence's keys
      const size_t at = size_t(p - from);
      for (size_t i = 0; i < hd; i++) ks[(at / 16 * hd + i) * 16 + at % 16] = 0, vs[at * hd + i] = 0;
    }
    out += 2 * bytes;
  });
}

void Slots::load_keys(int slot, int64_t from, int64_t to, const uint8_t* in) {
  each_stretch(slot, from, to, [&](uint16_t* k, uint16_t* v, size_t bytes, size_t) {
    memcpy(k, in, bytes), memcpy(v, in + bytes, bytes);
    in += 2 * bytes;
  });
}

void Slots::save_tail(int slot, int64_t length, uint8_t* out) const {
  check_reach(slot, length);
  for (size_t l = 0; l < spec_.convolution.size(); l++) {
    const auto& c = spec_.convolution[l];
    for (int64_t p = length - int64_t(c.width) + 1; p < length; p++, out += c.d * 4) {
      if (p < 0)
        memset(out, 0, c.d * 4);
      else
        memcpy(out, ring(slot, l) + size_t(p) % spec_.ring * c.d, c.d * 4);
    }
  }
}

void Slots::restore(int slot, int64_t length, const uint8_t* tail) {
  check_open(slot);
  check(length >= 0 && length <= capacity(), "restore: " + std::to_string(length) + " tokens; the context is " + std::to_string(capacity()));
  for (size_t l = 0; l < spec_.convolution.size(); l++) {
    const auto& c = spec_.convolution[l];
    for (int64_t p = length - int64_t(c.width) + 1; p < length; p++, tail += c.d * 4)
      if (p >= 0) memcpy(ring(slot, l) + size_t(p) % spec_.ring * c.d, tail, c.d * 4);
  }
  Slot& s = slots_[size_t(slot)];
  s.length = s.reached = length;
  s.oldest = std::max<int64_t>(0, length - int64_t(past()));
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
