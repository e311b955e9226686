// Repacking of whole groups of 16 rows, four rows at a time, 16 bytes an instruction: what loading a model waits for.
// The plain twin is pack_block in formats.cc; formats_test compares the two. Generic vectors, so that no instruction set is named.
#include <cstring>

#include "formats/formats.h"

namespace hw {

namespace {

typedef uint32_t V __attribute__((vector_size(16)));  // four words of four values

V load(const uint8_t* p) {
  V x;
  memcpy(&x, p, 16);
  return x;
}
void store(uint8_t* p, V x) { memcpy(p, &x, 16); }

struct Four {  // one vector from each of four rows
  V r[4];
};

// Word v of every row, as vector v.
Four turned(const Four& a) {
  const V x0 = __builtin_shufflevector(a.r[0], a.r[1], 0, 4, 1, 5), x1 = __builtin_shufflevector(a.r[2], a.r[3], 0, 4, 1, 5);
  const V y0 = __builtin_shufflevector(a.r[0], a.r[1], 2, 6, 3, 7), y1 = __builtin_shufflevector(a.r[2], a.r[3], 2, 6, 3, 7);
  return {{__builtin_shufflevector(x0, x1, 0, 1, 4, 5), __builtin_shufflevector(x0, x1, 2, 3, 6, 7),
           __builtin_shufflevector(y0, y1, 0, 1, 4, 5), __builtin_shufflevector(y0, y1, 2, 3, 6, 7)}};
}

// 32 values as two vectors of bytes below 16 -> the words of the block's four nibble vectors.
V nibbles(V first, V second) {
  const V low = __builtin_shufflevector(first, second, 0, 2, 4, 6), high = __builtin_shufflevector(first, second, 1, 3, 5, 7);
  return low | high << 4;
}

void put_nibbles(uint8_t* block, size_t row, const Four& rows) {
  const Four t = turned(rows);
  for (size_t v = 0; v < 4; v++) store(block + 64 * v + 4 * row, t.r[v]);
}

constexpr uint32_t kNibble = 0x0f0f0f0f, kPair = 0x03030303, kBit = 0x01010101, kSign = 0x80808080;

// s: the first of four rows, each `stride` bytes behind the other; row: its place in the group.
void q4_0(const uint8_t* s, size_t stride, size_t row, uint8_t* d) {
  Four a;
  for (size_t r = 0; r < 4; r++) {
    const V x = load(s + r * stride + 2);
    a.r[r] = nibbles(x & kNibble, x >> 4 & kNibble);
    memcpy(d + 256 + 2 * (row + r), s + r * stride, 2);
  }
  put_nibbles(d, row, a);
}

void q8_0(const uint8_t* s, size_t stride, size_t row, uint8_t* d) {
  for (size_t half = 0; half < 2; half++) {
    Four a;
    for (size_t r = 0; r < 4; r++) a.r[r] = load(s + r * stride + 2 + 16 * half) ^ kSign;
    const Four t = turned(a);
    for (size_t v = 0; v < 4; v++) store(d + 256 * half + 64 * v + 4 * row, t.r[v]);
  }
  for (size_t r = 0; r < 4; r++) memcpy(d + 512 + 2 * (row + r), s + r * stride, 2);
}

void q6_k(const uint8_t* s, size_t stride, size_t row, uint8_t* d) {
  for (size_t b = 0; b < 8; b++) {
    const size_t low = 64 * (b / 4) + 32 * (b & 1), high = 128 + 32 * (b / 4);
    const uint32_t shift = b % 4 >= 2 ? 4 : 0, turn = uint32_t(b % 4) * 2;
    Four a, h[2];
    for (size_t r = 0; r < 4; r++) {
      const uint8_t* p = s + r * stride;
      a.r[r] = nibbles(load(p + low) >> shift & kNibble, load(p + low + 16) >> shift & kNibble);
      for (size_t i = 0; i < 2; i++) h[i].r[r] = load(p + high + 16 * i) >> turn & kPair;
    }
    put_nibbles(d + 384 * b, row, a);
    for (size_t i = 0; i < 2; i++) {
      const Four t = turned(h[i]);
      store(d + 384 * b + 256 + 64 * i + 4 * row, t.r[0] | t.r[1] << 2 | t.r[2] << 4 | t.r[3] << 6);
    }
  }
  for (size_t r = 0; r < 4; r++) {
    for (size_t b = 0; b < 16; b++) d[3072 + 16 * b + row + r] = s[r * stride + 192 + b];
    memcpy(d + 3328 + 2 * (row + r), s + r * stride + 208, 2);
  }
}

template <bool five>
void k_quant(const uint8_t* s, size_t stride, size_t row, uint8_t* d) {
  for (size_t b = 0; b < 8; b++) {
    const uint32_t shift = b & 1 ? 4 : 0;
    Four a, h[2];
    for (size_t r = 0; r < 4; r++) {
      const uint8_t *p = s + r * stride, *low = p + (five ? 48 : 16) + 32 * (b / 2);
      a.r[r] = nibbles(load(low) >> shift & kNibble, load(low + 16) >> shift & kNibble);
      for (size_t i = 0; five && i < 2; i++) h[i].r[r] = load(p + 16 + 16 * i) >> uint32_t(b) & kBit;
    }
    put_nibbles(d + 256 * b, row, a);
    if (!five) continue;
    const Four t = turned(h[0]), u = turned(h[1]);
    store(d + 2048 + 64 * b + 4 * row,
          t.r[0] | t.r[1] << 1 | t.r[2] << 2 | t.r[3] << 3 | u.r[0] << 4 | u.r[1] << 5 | u.r[2] << 6 | u.r[3] << 7);
  }
  for (size_t r = 0; r < 4; r++) put_k_scales(s + r * stride, row + r, d + (five ? 2560 : 2048));
}

using Pack = void (*)(const uint8_t*, size_t, size_t, uint8_t*);

Pack pack_of(Format f) {
  switch (f) {
    case Format::Q4_0: return q4_0;
    case Format::Q8_0: return q8_0;
    case Format::Q6_K: return q6_k;
    case Format::Q4_K: return k_quant<false>;
    case Format::Q5_K: return k_quant<true>;
    default: return nullptr;
  }
}

}  // namespace

bool pack_groups(Format f, const uint8_t* source, size_t groups, size_t k, uint8_t* packed) {
  const Pack pack = pack_of(f);
  if (!pack) return false;
  const FormatInfo& fi = info(f);
  const size_t blocks = k / fi.block, stride = blocks * fi.source_bytes;
  for (size_t g = 0; g < groups; g++, source += kRows * stride)
    for (size_t b = 0; b < blocks; b++, packed += fi.packed_bytes)
      for (size_t row = 0; row < kRows; row += 4) pack(source + row * stride + b * fi.source_bytes, stride, row, packed);
  return true;
}

}  // namespace hw
