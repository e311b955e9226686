#include "formats/formats.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "util/error.h"
#include "util/half.h"

namespace hw {

namespace {
constexpr FormatInfo kFormats[] = {
    {Format::F32, "F32", 1, 4, 64, false},        {Format::F16, "F16", 1, 2, 32, false},
    {Format::BF16, "BF16", 1, 2, 32, false},      {Format::Q4_0, "Q4_0", 32, 18, 288, true},
    {Format::Q8_0, "Q8_0", 32, 34, 544, true},    {Format::Q4_K, "Q4_K", 256, 144, 2368, true},
    {Format::Q4_1, "Q4_1", 32, 20, 320, true},    {Format::Q5_0, "Q5_0", 32, 22, 352, true},
    {Format::Q5_1, "Q5_1", 32, 24, 384, true},    {Format::Q5_K, "Q5_K", 256, 176, 2880, true},
    {Format::Q6_K, "Q6_K", 256, 210, 3360, true},
};
}  // namespace

const FormatInfo* find_format(uint32_t id) {
  for (const FormatInfo& f : kFormats)
    if (uint32_t(f.format) == id) return &f;
  return nullptr;
}

const FormatInfo& info(Format f) {
  const FormatInfo* p = find_format(uint32_t(f));
  check(p != nullptr, "format " + std::to_string(uint32_t(f)) + " is not one of ours");
  return *p;
}

std::string format_names() {
  std::string all;
  for (const FormatInfo& f : kFormats) all += std::string(all.empty() ? "" : ", ") + f.name;
  return all;
}

const FormatInfo& format_named(const std::string& name) {
  for (const FormatInfo& f : kFormats)
    if (name == f.name) return f;
  throw Error("number format '" + name + "' is unknown; allowed: " + format_names());
}

namespace {

uint16_t load16(const uint8_t* p) {
  uint16_t x;
  memcpy(&x, p, 2);
  return x;
}
void store16(uint8_t* p, uint16_t x) { memcpy(p, &x, 2); }

// The value (0..15) of input i stands in nibble vector i / 8, byte 4 row + i % 4, upper half when i % 8 >= 4.
uint8_t get_nibble(const uint8_t* block, size_t row, size_t i) {
  const uint8_t x = block[64 * (i / 8) + 4 * row + i % 4];
  return i % 8 >= 4 ? x >> 4 : x & 15;
}

// Packing works on words of four values: word i of a block of nibbles (values 4i .. 4i+3, each 0..15) goes to vector i / 2.
uint32_t load32(const uint8_t* p) {
  uint32_t x;
  memcpy(&x, p, 4);
  return x;
}
void store32(uint8_t* p, uint32_t x) { memcpy(p, &x, 4); }
void put_words(uint8_t* block, size_t row, size_t vector, uint32_t low, uint32_t high) { store32(block + 64 * vector + 4 * row, low | high << 4); }
constexpr uint32_t kLow4 = 0x0f0f0f0f;

void pack_q4_0(const uint8_t* s, size_t row, uint8_t* d) {
  uint32_t w[4];
  for (size_t i = 0; i < 4; i++) w[i] = load32(s + 2 + 4 * i);
  for (size_t v = 0; v < 2; v++) {
    put_words(d, row, v, w[2 * v] & kLow4, w[2 * v + 1] & kLow4);
    put_words(d, row, v + 2, w[2 * v] >> 4 & kLow4, w[2 * v + 1] >> 4 & kLow4);
  }
  memcpy(d + 256 + 2 * row, s, 2);
}

// Q4_1, Q5_0, Q5_1. Source: d, [m,] [32 high bits,] 16 bytes of nibbles; packed: nibbles, [64 high bits x 8,] d, [m].
template <bool five, bool minimum>
void pack_32(const uint8_t* s, size_t row, uint8_t* d) {
  const size_t head = minimum ? 4 : 2, tail = five ? 320 : 256;
  uint32_t w[8], bits = 0;
  for (size_t i = 0; i < 4; i++) {
    const uint32_t x = load32(s + head + (five ? 4 : 0) + 4 * i);
    w[i] = x & kLow4, w[i + 4] = x >> 4 & kLow4;
  }
  for (size_t v = 0; v < 4; v++) put_words(d, row, v, w[2 * v], w[2 * v + 1]);
  if (five) {  // bit i of byte j belongs to value 4 i + j
    const uint32_t high = load32(s + head);
    for (size_t i = 0; i < 32; i++) bits |= (high >> i & 1) << (8 * (i % 4) + i / 4);
    store32(d + 256 + 4 * row, bits);
  }
  memcpy(d + tail + 2 * row, s, 2);
  if (minimum) memcpy(d + tail + 32 + 2 * row, s + 2, 2);
}

void pack_q8_0(const uint8_t* s, size_t row, uint8_t* d) {
  for (size_t i = 0; i < 8; i++) store32(d + 64 * i + 4 * row, load32(s + 2 + 4 * i) ^ 0x80808080u);
  memcpy(d + 512 + 2 * row, s, 2);
}

void pack_q6_k(const uint8_t* s, size_t row, uint8_t* d) {  // source: ql[128], qh[64], scales[16], d
  for (size_t b = 0; b < 8; b++) {                          // 32 values: part b % 4 of half b / 4
    const size_t half = b / 4, part = b % 4;
    const uint8_t *low = s + 64 * half + (part & 1) * 32, *high = s + 128 + 32 * half;
    uint8_t* block = d + 384 * b;
    uint32_t lo[8], pairs[2] = {0, 0};
    for (size_t i = 0; i < 8; i++) {
      lo[i] = load32(low + 4 * i) >> (part >= 2 ? 4 : 0) & kLow4;
      pairs[i / 4] |= (load32(high + 4 * i) >> (2 * part) & 0x03030303u) << (2 * (i % 4));
    }
    for (size_t v = 0; v < 4; v++) put_words(block, row, v, lo[2 * v], lo[2 * v + 1]);
    for (size_t h = 0; h < 2; h++) store32(block + 256 + 64 * h + 4 * row, pairs[h]);
  }
  for (size_t b = 0; b < 16; b++) d[3072 + 16 * b + row] = s[192 + b];
  memcpy(d + 3328 + 2 * row, s + 208, 2);
}

void scale_min_k(const uint8_t* s, size_t b, uint8_t& scale, uint8_t& low) {  // 8 pairs of 6 bits in 12 bytes
  if (b < 4) {
    scale = s[b] & 63, low = s[b + 4] & 63;
  } else {
    scale = uint8_t((s[b + 4] & 15) | (s[b - 4] >> 6 << 4));
    low = uint8_t((s[b + 4] >> 4) | (s[b] >> 6 << 4));
  }
}

template <bool five>
void pack_k(const uint8_t* s, size_t row, uint8_t* d) {  // source: d, dmin, scales[12], [qh[32],] qs[128]
  const size_t tail = five ? 2560 : 2048;
  const uint8_t *high = s + 16, *qs = s + (five ? 48 : 16);
  for (size_t b = 0; b < 8; b++) {
    uint32_t w[8], bits = 0;
    for (size_t i = 0; i < 8; i++) {
      w[i] = load32(qs + 32 * (b / 2) + 4 * i) >> (b & 1 ? 4 : 0) & kLow4;
      if (five) bits |= (load32(high + 4 * i) >> b & 0x01010101u) << i;
    }
    for (size_t v = 0; v < 4; v++) put_words(d + 256 * b, row, v, w[2 * v], w[2 * v + 1]);
    if (five) store32(d + 2048 + 64 * b + 4 * row, bits);
  }
  put_k_scales(s, row, d + tail);
}

void pack_block(Format f, const uint8_t* s, size_t row, uint8_t* d) {
  switch (f) {
    case Format::Q4_0: return pack_q4_0(s, row, d);
    case Format::Q4_1: return pack_32<false, true>(s, row, d);
    case Format::Q5_0: return pack_32<true, false>(s, row, d);
    case Format::Q5_1: return pack_32<true, true>(s, row, d);
    case Format::Q8_0: return pack_q8_0(s, row, d);
    case Format::Q6_K: return pack_q6_k(s, row, d);
    case Format::Q4_K: return pack_k<false>(s, row, d);
    case Format::Q5_K: return pack_k<true>(s, row, d);
    case Format::F32: memcpy(d + 4 * row, s, 4); return;
    default: memcpy(d + 2 * row, s, 2);
  }
}

void unpack_q4_0(const uint8_t* d, size_t row, float* out) {
  const float scale = half_to_float(load16(d + 256 + 2 * row));
  for (size_t i = 0; i < 32; i++) out[i] = scale * float(int(get_nibble(d, row, i)) - 8);
}

template <bool five, bool minimum>
void unpack_32(const uint8_t* d, size_t row, float* out) {
  const size_t tail = five ? 320 : 256;
  const float scale = half_to_float(load16(d + tail + 2 * row)), low = minimum ? half_to_float(load16(d + tail + 32 + 2 * row)) : 0.0f;
  for (size_t i = 0; i < 32; i++) {
    const int q = get_nibble(d, row, i) | (five ? (d[256 + 4 * row + i % 4] >> (i / 4) & 1) << 4 : 0);
    out[i] = scale * float(minimum ? q : q - 16) + low;
  }
}

void unpack_q8_0(const uint8_t* d, size_t row, float* out) {
  const float scale = half_to_float(load16(d + 512 + 2 * row));
  for (size_t i = 0; i < 32; i++) out[i] = scale * float(int(d[64 * (i / 4) + 4 * row + i % 4]) - 128);
}

void unpack_q6_k(const uint8_t* d, size_t row, float* out) {
  const float scale = half_to_float(load16(d + 3328 + 2 * row));
  for (size_t i = 0; i < 256; i++) {
    const uint8_t* block = d + 384 * (i / 32);
    const int hi = block[256 + 64 * (i % 32 / 16) + 4 * row + i % 4] >> (2 * (i % 16 / 4)) & 3;
    out[i] = scale * float(int8_t(d[3072 + 16 * (i / 16) + row])) * float((get_nibble(block, row, i % 32) | hi << 4) - 32);
  }
}

template <bool five>
void unpack_k(const uint8_t* d, size_t row, float* out) {
  const size_t tail = five ? 2560 : 2048;
  const float scale = half_to_float(load16(d + tail + 256 + 2 * row)), dmin = half_to_float(load16(d + tail + 288 + 2 * row));
  for (size_t i = 0; i < 256; i++) {
    const size_t b = i / 32, l = i % 32;
    int q = get_nibble(d + 256 * b, row, l);
    if (five) q |= (d[2048 + 64 * b + 4 * row + l % 4] >> (l / 4) & 1) << 4;
    out[i] = scale * float(d[tail + 16 * b + row]) * float(q) - dmin * float(d[tail + 128 + 16 * b + row]);
  }
}

void unpack_block(Format f, const uint8_t* d, size_t row, float* out) {
  switch (f) {
    case Format::Q4_0: return unpack_q4_0(d, row, out);
    case Format::Q4_1: return unpack_32<false, true>(d, row, out);
    case Format::Q5_0: return unpack_32<true, false>(d, row, out);
    case Format::Q5_1: return unpack_32<true, true>(d, row, out);
    case Format::Q8_0: return unpack_q8_0(d, row, out);
    case Format::Q6_K: return unpack_q6_k(d, row, out);
    case Format::Q4_K: return unpack_k<false>(d, row, out);
    case Format::Q5_K: return unpack_k<true>(d, row, out);
    case Format::F32: memcpy(out, d + 4 * row, 4); return;
    case Format::F16: *out = half_to_float(load16(d + 2 * row)); return;
    case Format::BF16: *out = bf16_to_float(load16(d + 2 * row)); return;
  }
}

// The largest magnitude of 32 values; no number where one is none: its bits are above those of infinity.
float largest_of(const float* x) {
  uint32_t top = 0;
  for (int i = 0; i < 32; i++) top = std::max(top, float_to_bits(x[i]) & 0x7fffffffu);
  return bits_to_float(top);
}

// The scale of a block as it is stored.
uint16_t scale_of(Format f, float d, float largest) {
  const uint16_t stored = float_to_half(d);
  if (!std::isfinite(largest)) throw Error(std::string("a value is NaN or infinite, which ") + info(f).name + " cannot hold; the weights are damaged");
  if ((stored & 0x7c00) == 0x7c00) throw Error(std::string("values are so large that the scale of a block is beyond 65504, the largest that ") + info(f).name + " holds; use BF16 or F32");
  return stored;
}

uint16_t half_of(float x) {
  const uint16_t h = float_to_half(x);
  if ((h & 0x7fff) == 0x7c00 && std::isfinite(x)) throw Error("a value is beyond 65504, the largest that F16 holds; use BF16 or F32");
  return h;
}

void quantize_q4_0(const float* x, uint8_t* out) {  // the extreme value, with its sign, becomes -8
  float extreme = 0;
  for (int i = 0; i < 32; i++)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  const float d = extreme / -8.0f, inv = d != 0 ? 1.0f / d : 0.0f;
  store16(out, scale_of(Format::Q4_0, d, largest_of(x)));
  for (int i = 0; i < 16; i++) {
    const int lo = int(x[i] * inv + 8.5f), hi = int(x[i + 16] * inv + 8.5f);
    out[2 + i] = uint8_t((lo > 15 ? 15 : lo) | (hi > 15 ? 15 : hi) << 4);
  }
}

void quantize_q8_0(const float* x, uint8_t* out) {
  const float amax = largest_of(x), d = amax / 127.0f, inv = d != 0 ? 1.0f / d : 0.0f;
  store16(out, scale_of(Format::Q8_0, d, amax));
  for (int i = 0; i < 32; i++) out[2 + i] = uint8_t(int8_t(std::round(x[i] * inv)));
}

}  // namespace

void put_k_scales(const uint8_t* s, size_t row, uint8_t* tail) {
  for (size_t b = 0; b < 8; b++) scale_min_k(s + 4, b, tail[16 * b + row], tail[128 + 16 * b + row]);
  memcpy(tail + 256 + 2 * row, s, 2);
  memcpy(tail + 288 + 2 * row, s + 2, 2);
}

void pack_rows(Format f, const uint8_t* source, size_t rows, size_t k, uint8_t* packed, PackGroups fast) {
  const FormatInfo& fi = info(f);
  const size_t whole = rows / kRows;
  if (fast(f, source, whole, k, packed)) {
    source += whole * kRows * (k / fi.block) * fi.source_bytes, packed += whole * group_bytes(fi, k);
    rows -= whole * kRows;
  }
  pack_rows_plain(f, source, rows, k, packed);
}

void pack_rows_plain(Format f, const uint8_t* source, size_t rows, size_t k, uint8_t* packed) {
  const FormatInfo& fi = info(f);
  const size_t blocks = k / fi.block, row_bytes = blocks * fi.source_bytes, gb = group_bytes(fi, k);
  memset(packed, 0, packed_bytes(fi, rows, k));
  for (size_t g = 0; g < groups_of(rows); g++)
    for (size_t r = 0; r < kRows && g * kRows + r < rows; r++) {
      const uint8_t* s = source + (g * kRows + r) * row_bytes;
      for (size_t b = 0; b < blocks; b++) pack_block(f, s + b * fi.source_bytes, r, packed + g * gb + b * fi.packed_bytes);
    }
}

void unpack_row(Format f, const uint8_t* packed, size_t row, size_t k, float* out) {
  const FormatInfo& fi = info(f);
  const uint8_t* d = packed + row / kRows * group_bytes(fi, k);
  for (size_t b = 0; b < k / fi.block; b++) unpack_block(f, d + b * fi.packed_bytes, row % kRows, out + b * fi.block);
}

bool can_quantize(Format f) {
  return f == Format::F32 || f == Format::F16 || f == Format::BF16 || f == Format::Q4_0 || f == Format::Q8_0;
}

void quantize_row(Format f, const float* x, size_t k, uint8_t* out) {
  check(can_quantize(f), std::string("cannot quantize to ") + info(f).name + "; allowed: F32, F16, BF16, Q4_0, Q8_0");
  const FormatInfo& fi = info(f);
  for (size_t b = 0; b < k / fi.block; b++, x += fi.block, out += fi.source_bytes) switch (f) {
      case Format::Q4_0: quantize_q4_0(x, out); break;
      case Format::Q8_0: quantize_q8_0(x, out); break;
      case Format::F16: store16(out, half_of(*x)); break;
      case Format::BF16: store16(out, float_to_bf16(*x)); break;
      default: memcpy(out, x, 4);
    }
}

}  // namespace hw
