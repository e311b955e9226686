// Packing: what comes back from a packed matrix is what the GGUF blocks mean, value by value (block layouts as ggml documents them);
// quantizing errs by half a step at most; half and bfloat16 round as IEEE says.
#include <cstring>

#include "testing.h"
#include "util/error.h"

using namespace hw;
using namespace hwt;

namespace {

float half_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return half_to_float(h);
}

// The plain reading of one block, one value at a time.
float meaning(Format f, const uint8_t* s, size_t i) {
  const auto scale_min = [](const uint8_t* q, size_t j, int& d, int& m) {
    if (j < 4)
      d = q[j] & 63, m = q[j + 4] & 63;
    else
      d = (q[j + 4] & 0xf) | ((q[j - 4] >> 6) << 4), m = (q[j + 4] >> 4) | ((q[j] >> 6) << 4);
  };
  int d = 0, m = 0;
  switch (f) {
    case Format::Q4_0: return half_at(s) * float((i < 16 ? s[2 + i] & 15 : s[2 + i - 16] >> 4) - 8);
    case Format::Q4_1: return half_at(s) * float(i < 16 ? s[4 + i] & 15 : s[4 + i - 16] >> 4) + half_at(s + 2);
    case Format::Q5_0:
    case Format::Q5_1: {
      const size_t head = f == Format::Q5_1 ? 4 : 2;
      const int high = s[head + i / 8] >> (i % 8) & 1;
      const int q = (i < 16 ? s[head + 4 + i] & 15 : s[head + 4 + i - 16] >> 4) | high << 4;
      return f == Format::Q5_1 ? half_at(s) * float(q) + half_at(s + 2) : half_at(s) * float(q - 16);
    }
    case Format::Q8_0: return half_at(s) * float(int8_t(s[2 + i]));
    case Format::Q4_K: {
      scale_min(s + 4, i / 32, d, m);
      const int q = s[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
      return half_at(s) * float(d) * float(q) - half_at(s + 2) * float(m);
    }
    case Format::Q5_K: {
      scale_min(s + 4, i / 32, d, m);
      const int q = (s[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15) | (s[16 + i % 32] >> (i / 32) & 1) << 4;
      return half_at(s) * float(d) * float(q) - half_at(s + 2) * float(m);
    }
    case Format::Q6_K: {
      const size_t h = i / 128, j = i % 128, l = j % 32, part = j / 32;
      const int lo = s[64 * h + l + (part % 2) * 32] >> (part / 2 * 4) & 15, hi = s[128 + 32 * h + l] >> (2 * part) & 3;
      return half_at(s + 208) * float(int8_t(s[192 + 8 * h + l / 16 + 2 * part])) * float((lo | hi << 4) - 32);
    }
    case Format::F32: {
      float x;
      memcpy(&x, s, 4);
      return x;
    }
    case Format::F16: return half_at(s);
    default: {
      uint16_t h;
      memcpy(&h, s, 2);
      return bf16_to_float(h);
    }
  }
}

void packing(Format f, size_t rows, size_t k, PackGroups fast) {
  Random r(rows * k);
  const FormatInfo& fi = info(f);
  const auto source = random_rows(f, rows, k, r);
  std::vector<uint8_t> packed(packed_bytes(fi, rows, k), 0xaa);
  pack_rows(f, source.data(), rows, k, packed.data(), fast);
  std::vector<uint8_t> plain(packed.size(), 0x55);
  pack_rows_plain(f, source.data(), rows, k, plain.data());
  expect(packed == plain, std::string(fi.name) + ": the fast packing differs from the plain one");
  std::vector<float> got(k);
  for (size_t row = 0; row < rows; row++) {
    unpack_row(f, packed.data(), row, k, got.data());
    for (size_t i = 0; i < k; i++) {
      const float want = meaning(f, source.data() + (row * (k / fi.block) + i / fi.block) * fi.source_bytes, i % fi.block);
      expect(got[i] == want, std::string(fi.name) + " row " + std::to_string(row) + " value " + std::to_string(i));
    }
  }
}

void quantizing(Format f, float step) {
  Random r(9);
  const size_t k = 96;
  std::vector<float> x(k), y(k);
  std::vector<uint8_t> q(k * 4), packed(packed_bytes(info(f), 1, k));
  for (int rep = 0; rep < 200; rep++) {
    for (float& e : x) e = r.normal();
    quantize_row(f, x.data(), k, q.data());
    pack_rows(f, q.data(), 1, k, packed.data());
    unpack_row(f, packed.data(), 0, k, y.data());
    for (size_t b = 0; b < k; b += 32) {
      float top = 0;
      for (size_t i = b; i < b + 32; i++) top = std::fmax(top, std::fabs(x[i]));
      for (size_t i = b; i < b + 32; i++) expect(std::fabs(x[i] - y[i]) <= step * top, std::string(info(f).name) + " rounds too far");
    }
  }
}

// What a format cannot hold is refused; what it can hold is not.
void beyond(Format f, float value, const std::string& says) {
  for (size_t at : {0, 5, 31}) {
    std::vector<float> x(32, 0.5f);
    std::vector<uint8_t> out(32 * 4);
    x[at] = value;
    std::string said;
    try {
      quantize_row(f, x.data(), x.size(), out.data());
    } catch (const Error& e) {
      said = e.what();
    }
    expect(says.empty() ? said.empty() : said.find(says) != std::string::npos, std::string(info(f).name) + " of " + std::to_string(value) + ": '" + said + "'");
  }
}

void halves() {
  for (uint32_t h = 0; h < 65536; h++) {
    const float f = half_to_float(uint16_t(h));
    if (std::isnan(f))
      expect(std::isnan(half_to_float(float_to_half(f))), "half NaN");
    else
      expect(float_to_half(f) == h, "half " + std::to_string(h));
    const float b = bf16_to_float(uint16_t(h));
    if (!std::isnan(b)) expect(float_to_bf16(b) == h, "bf16 " + std::to_string(h));
  }
  expect(float_to_half(65519.0f) == 0x7bff && float_to_half(65520.0f) == 0x7c00, "half rounds to infinity where it should");
  expect(float_to_half(2.98e-8f) == 0 && float_to_half(2.99e-8f) == 1, "half rounds its smallest number");
  expect(float_to_half(1.0f + 0x1p-11f) == 0x3c00 && float_to_half(1.0f + 0x1.8p-10f) == 0x3c02, "half ties to even");
}

}  // namespace

int main() {
  halves();
  for (const Kernels* kn : machine_sets())
  for (Format f : {Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::Q6_K, Format::Q4_K, Format::Q5_K, Format::F16, Format::BF16, Format::F32})
    for (size_t rows : {1, 15, 16, 17, 40}) packing(f, rows, 512, kn->pack), packing(f, rows, info(f).block, kn->pack);
  quantizing(Format::F32, 0), quantizing(Format::F16, 0x1p-11f), quantizing(Format::BF16, 0x1p-8f);
  quantizing(Format::Q8_0, 0.51f / 127 + 0x1p-10f), quantizing(Format::Q4_0, 0.51f / 4);
  for (Format f : {Format::Q4_0, Format::Q8_0}) {
    for (float sick : {float(NAN), -float(NAN), float(INFINITY), -float(INFINITY)}) beyond(f, sick, "damaged");
    beyond(f, -1e9f, "so large"), beyond(f, 5e5f, ""), beyond(f, 1e-42f, "");
  }
  beyond(Format::F16, -1e5f, "beyond 65504"), beyond(Format::F16, 65504, ""), beyond(Format::F16, INFINITY, ""), beyond(Format::BF16, 1e30f, "");
  puts("ok");
  return 0;
}
