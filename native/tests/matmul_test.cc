// Matrix times tokens: every instruction set x format x odd size against a double-precision product of the same int8 activations
// (float formats: the same floats), the few-token path and the panel path alike. Where panels work in bfloat16, against the product of
// activations and weights rounded to it.
#include <cstring>
#include <memory>

#include "testing.h"

using namespace hw;
using namespace hwt;

namespace {

struct Inputs {
  std::vector<float> f, scale;
  std::vector<int8_t> q;
  std::vector<int32_t> sum32, sum16;
  std::vector<uint16_t> wide;
  Acts acts;
  Inputs(const Kernels& kn, size_t t, size_t k, uint64_t seed) {
    Random r(seed);
    f.resize(t * k), q.resize(t * k), scale.resize(t * (k / 32) + 1), sum32.resize(t * (k / 32) + 1), sum16.resize(t * (k / 16) + 1);
    for (float& x : f) x = r.normal() * (r.below(50) ? 1.0f : 20.0f);
    for (size_t i = 0; i < t; i++)
      kn.quantize(&f[i * k], k, 1, k / 32 * 32, &q[i * k], &scale[i * (k / 32)], &sum32[i * (k / 32)], &sum16[i * (k / 16)], k);
    const size_t stride = wide_stride(k);
    wide.assign((t + kWideTokens) * stride, 0x7fc0);  // NaN where nothing was written
    kn.widen(f.data(), k, t, k / 16 * 16, wide.data(), stride);
    acts = {k, f.data(), q.data(), scale.data(), sum32.data(), sum16.data(), wide.data(), stride};
  }
};

struct Matrix {
  std::vector<uint8_t> memory;
  uint8_t* data;
  std::vector<float> values;
  Matrix(Format f, size_t rows, size_t k, size_t shift, uint64_t seed) {
    Random r(seed);
    const auto source = random_rows(f, rows, k, r);
    memory.resize(packed_bytes(info(f), rows, k) + 8192);
    data = memory.data() + shift;
    pack_rows(f, source.data(), rows, k, data);
    values.resize(groups_of(rows) * kRows * k);
    for (size_t i = 0; i < rows; i++) unpack_row(f, data, i, k, &values[i * k]);
  }
};

float rounded(float x) { return bf16_to_float(float_to_bf16(x)); }
float rounded_away(float x) { return bits_to_float((float_to_bits(x) + 0x8000) & 0xffff0000u); }  // of two nearest ones the larger

// The same with activations and weights in bfloat16.
std::vector<float> wide_product(const Matrix& w, const Inputs& x, size_t t, size_t rows, size_t k) {
  std::vector<float> y(t * rows);
  for (size_t i = 0; i < t; i++)
    for (size_t r = 0; r < rows; r++) {
      double s = 0;
      for (size_t j = 0; j < k; j++) s += double(rounded_away(w.values[r * k + j])) * double(rounded(x.f[i * k + j]));
      y[i * rows + r] = float(s);
    }
  return y;
}

std::vector<float> product(const Matrix& w, const Inputs& x, bool act8, size_t t, size_t rows, size_t k) {
  std::vector<float> y(t * rows);
  for (size_t i = 0; i < t; i++)
    for (size_t r = 0; r < rows; r++) {
      double s = 0;
      for (size_t j = 0; j < k; j++)
        s += double(w.values[r * k + j]) * (act8 ? double(x.q[i * k + j]) * double(x.scale[i * (k / 32) + j / 32]) : double(x.f[i * k + j]));
      y[i * rows + r] = float(s);
    }
  return y;
}

void one(const Kernels& kn, Format f, size_t rows, size_t k, size_t t, size_t shift) {
  const std::string what = std::string(kn.name) + " " + info(f).name + " " + std::to_string(rows) + "x" + std::to_string(k) + " T" +
                           std::to_string(t) + " +" + std::to_string(shift);
  const Matrix w(f, rows, k, shift, rows + k);
  const Inputs x(kn, t, k, t + 7);
  const size_t groups = groups_of(rows), wide = groups * kRows, gb = group_bytes(info(f), k);
  const auto want = product(w, x, info(f).act8, t, wide, k);
  std::vector<float> y(t * wide, NAN), c((t + kWideTokens) * 64, NAN);
  const auto matvec = [&](size_t most, float* out) {
    for (size_t i = 0; i < t; i += most)
      for (size_t g = 0; g < groups; g += kStreams) {
        Streams io;
        io.count = groups - g < kStreams ? groups - g : kStreams;
        for (size_t s = 0; s < io.count; s++) io.at[s] = w.data + (g + s) * gb, io.next[s] = w.data;
        kn.matvec(f, io, x.acts, i, int(t - i < most ? t - i : most), out + i * wide + g * kRows, wide);
      }
  };
  matvec(1, y.data());
  expect_close(y.data(), want.data(), y.size(), 2e-5f, "matvec " + what);
  for (size_t most : {4, 7, 16}) {  // who shares a call changes no bit
    std::vector<float> z(t * wide, NAN);
    matvec(most, z.data());
    expect(memcmp(z.data(), y.data(), y.size() * 4) == 0, "matvec of up to " + std::to_string(most) + " at once " + what);
  }
  for (size_t g = 0; g < groups; g += 4) {
    const uint8_t* four[4];
    for (size_t j = 0; j < 4; j++) four[j] = g + j < groups ? w.data + (g + j) * gb : nullptr;
    kn.panel(f, four, x.acts, 0, t, c.data());
    if (kn.wide)  // few tokens go another way on tiles; the bits of a prompt must not depend on how it is cut
      for (size_t i = 0; i < t; i += 5) {
        std::vector<float> part(kPanelRows * kWideTokens, NAN);
        const size_t n = std::min<size_t>(5, t - i);
        kn.panel(f, four, x.acts, i, n, part.data());
        expect(memcmp(part.data(), c.data() + i * kPanelRows, n * kPanelRows * 4) == 0, "panel of five tokens " + what);
      }
    for (size_t i = 0; i < t; i++)
      for (size_t r = 0; r < 64; r++) {
        const size_t row = g * kRows + r;
        y[i * wide + (row < wide ? row : 0)] = row < wide ? c[i * 64 + r] : y[i * wide];
        if (row >= wide) expect(c[i * 64 + r] == 0, "panel padding " + what);
      }
  }
  if (!kn.wide || !info(f).act8) return expect_close(y.data(), want.data(), y.size(), 2e-5f, "panel " + what);
  expect_close(y.data(), wide_product(w, x, t, wide, k).data(), y.size(), 2e-5f, "panel " + what);

}

}  // namespace

int main() {
  for (const Kernels* kn : machine_sets()) {
    for (Format f : {Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::Q6_K, Format::Q4_K, Format::Q5_K, Format::F16, Format::BF16, Format::F32}) {
      const size_t block = info(f).block;
      for (size_t blocks : {1, 3, 9})
        for (size_t t : {1, 2, 3, 5, 6, 7, 8, 13, 16, 33}) one(*kn, f, 16 * (1 + t % 10) - (t & 1), blocks * block * (block == 1 ? 7 : 1), t, (t * 32) % 64);
    }
    for (Format f : {Format::Q4_0, Format::Q5_1, Format::Q8_0}) one(*kn, f, 72, 2080, 70, 32);  // more inputs than a slab of panels has, more tokens than two tiles
    printf("%s ok\n", kn->name);
  }
  return 0;
}
