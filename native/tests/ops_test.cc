// Every op on every instruction set against the portable one, at odd sizes and unaligned addresses: integers bit for bit, floats bounded.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "runner/likeliest.h"
#include "testing.h"

using namespace hw;
using namespace hwt;

namespace {

const Kernels& kPlain = *kernels_portable();

// A vector of random floats that begins `shift` floats off alignment, with a guard of NaNs behind it that must survive.
struct Floats {
  std::vector<float> memory;
  size_t shift, n;
  Floats(size_t n_, size_t shift_, Random& r, float scale = 1) : memory(n_ + shift_ + 32, NAN), shift(shift_), n(n_) {
    for (size_t i = 0; i < n; i++) memory[shift + i] = r.normal() * scale;
  }
  float* data() { return memory.data() + shift; }
  bool guarded() const {
    for (size_t i = shift + n; i < memory.size(); i++)
      if (!std::isnan(memory[i])) return false;
    return true;
  }
};

void widen_case(const Kernels& kn, size_t k, size_t rows, size_t shift) {
  Random r(k);
  Floats x(rows * k, shift, r);
  std::vector<uint16_t> got(rows * (k + 32), 0xabcd);
  kn.widen(x.data(), k, rows, k, got.data(), k + 32);
  for (size_t i = 0; i < rows; i++)
    for (size_t j = 0; j < k + 32; j++)
      expect(got[i * (k + 32) + j] == (j < k ? float_to_bf16(x.data()[i * k + j]) : 0xabcd), std::string(kn.name) + " widen " + std::to_string(k));
}

void quantize_case(const Kernels& kn, size_t k, size_t rows, size_t shift) {
  Random r(k + rows);
  Floats x(rows * k, shift, r, 3);
  if (k >= 64) memset(x.data() + 32, 0, 128);  // a block of zeros
  struct Out {
    std::vector<int8_t> q;
    std::vector<float> s;
    std::vector<int32_t> a, b;
    explicit Out(size_t n) : q(n, 77), s(n / 32, NAN), a(n / 32, 77), b(n / 16, 77) {}
  } want(rows * k), got(rows * k);
  kPlain.quantize(x.data(), k, rows, k, want.q.data(), want.s.data(), want.a.data(), want.b.data(), k);
  kn.quantize(x.data(), k, rows, k, got.q.data(), got.s.data(), got.a.data(), got.b.data(), k);
  const std::string what = std::string(kn.name) + " quantize " + std::to_string(k);
  expect(want.q == got.q && want.s == got.s && want.a == got.a && want.b == got.b, what + " differs");
  for (size_t i = 0; i < rows * k; i++)
    expect(std::fabs(float(got.q[i]) * got.s[i / 32] - x.data()[i]) <= 0.501f * got.s[i / 32] + 1e-30f, what + " is off");
}

// One value that is no number, or infinite, wherever it stands in a block: the block's scale says it.
void sick_quantize_case(const Kernels& kn) {
  Random r(5);
  for (const float sick : {float(NAN), -float(NAN), float(INFINITY), -float(INFINITY)})
    for (size_t at : {0, 9, 15, 16, 31}) {
      Floats x(64, 1, r);
      x.data()[32 + at] = sick;
      std::vector<int8_t> q(64);
      std::vector<float> scale(2);
      std::vector<int32_t> sums(6);
      kn.quantize(x.data(), 64, 1, 64, q.data(), scale.data(), sums.data(), sums.data() + 2, 64);
      const std::string what = std::string(kn.name) + " quantize of what is no number at " + std::to_string(at);
      expect(std::isnan(sick) ? std::isnan(scale[1]) : std::isinf(scale[1]), what);
      expect(std::isfinite(scale[0]), what + ": the block before it");
    }
}

// The k largest, against a sort of all: ties, infinities, NaNs, fewer blocks than k and more.
void largest_case(size_t n, size_t k, int kind) {
  Random r(n + k + size_t(kind));
  std::vector<float> x(n);
  for (float& v : x) v = kind == 1 ? float(int(r.normal() * 2)) : r.normal();
  if (kind == 2)
    for (size_t i = 0; i < n; i++) x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? -INFINITY : x[i];
  std::vector<int32_t> want(n);
  for (size_t i = 0; i < n; i++) want[i] = int32_t(i);
  const auto value = [&](int32_t i) { return std::isnan(x[size_t(i)]) ? -INFINITY : x[size_t(i)]; };
  std::stable_sort(want.begin(), want.end(), [&](int32_t a, int32_t b) { return value(a) > value(b); });
  want.resize(k);
  expect(largest(x.data(), n, k) == want, "largest " + std::to_string(k) + " of " + std::to_string(n) + ", kind " + std::to_string(kind));
}

void elementwise_case(const Kernels& kn, size_t k, size_t shift) {
  const std::string what = std::string(kn.name) + " k" + std::to_string(k) + " +" + std::to_string(shift) + " ";
  Random r(k * 31 + shift);
  Floats x(k, shift, r, 4), w(k, shift, r), y(k, shift, r), z(k, shift, r);
  kPlain.rms_norm(x.data(), w.data(), 1e-5f, k, y.data());
  kn.rms_norm(x.data(), w.data(), 1e-5f, k, z.data());
  expect_close(z.data(), y.data(), k, 1e-6f, what + "rms_norm");
  const float top = *std::max_element(x.data(), x.data() + k);
  double sum = 0;
  for (size_t i = 0; i < k; i++) sum += std::exp(double(x.data()[i]) - double(top));
  expect(std::fabs(kn.sum_exp(x.data(), k, top) - sum) <= 1e-6 * sum, what + "sum_exp");
  const float was = x.data()[k / 2];
  x.data()[k / 2] = NAN;
  expect(std::isnan(kn.sum_exp(x.data(), k, top)), what + "sum_exp of what is no number");
  x.data()[k / 2] = was;
  kPlain.rms_norm(x.data(), nullptr, 1e-5f, k, y.data());
  kn.rms_norm(x.data(), nullptr, 1e-5f, k, z.data());
  expect_close(z.data(), y.data(), k, 1e-6f, what + "rms_norm without weight");
  kPlain.add(y.data(), x.data(), k), kn.add(z.data(), x.data(), k);
  kPlain.add_scaled(y.data(), w.data(), -1.7f, k), kn.add_scaled(z.data(), w.data(), -1.7f, k);
  expect_close(z.data(), y.data(), k, 2e-6f, what + "add");
  for (Gate g : {Gate::silu, Gate::gelu_tanh}) {
    Floats a(k, shift, r, 6), b(k, shift, r);
    std::vector<float> plain(a.data(), a.data() + k), exact(k);
    for (size_t i = 0; i < k; i++) {
      const double v = a.data()[i];
      const double act = g == Gate::silu ? v / (1 + std::exp(-v)) : 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
      exact[i] = float(act * double(b.data()[i]));
    }
    kPlain.gate(g, plain.data(), b.data(), k, 1, k);
    kn.gate(g, a.data(), b.data(), k, 1, k);
    expect_close(a.data(), exact.data(), k, 1e-6f, what + "gate");
    expect_close(a.data(), plain.data(), k, 1e-6f, what + "gate against portable");
    expect(a.guarded(), what + "gate wrote past the end");
  }
  const size_t pairs = k / 2;
  Floats c(pairs, shift, r), s(pairs, shift, r), p(k, shift, r), q(k, shift, r);
  memcpy(q.data(), p.data(), k * 4);
  kPlain.rotate(p.data(), c.data(), s.data(), pairs, k - pairs), kn.rotate(q.data(), c.data(), s.data(), pairs, k - pairs);
  expect_close(q.data(), p.data(), k, 1e-6f, what + "rotate");
  expect(y.guarded() && z.guarded() && q.guarded(), what + "wrote past the end");
}

void conv_case(const Kernels& kn, size_t d, size_t width, size_t tokens, int64_t pos) {
  const std::string what = std::string(kn.name) + " short_conv d" + std::to_string(d) + " w" + std::to_string(width) + " T" + std::to_string(tokens);
  Random r(d + width + tokens);
  const size_t ring_size = width + 3;
  Floats bcx(tokens * 3 * d, 1, r), taps(width * d, 3, r), bias(d, 0, r), ring(ring_size * d, 5, r);
  std::vector<float> ring2(ring.data(), ring.data() + ring_size * d), scratch(conv_scratch(width, tokens));
  std::vector<float> got(tokens * d, NAN), want(tokens * d);
  for (size_t t = 0; t < tokens; t++)
    for (size_t c = 0; c < d; c++) {
      double s = bias.data()[c];
      for (size_t j = 0; j < width; j++) {
        const int64_t at = int64_t(t) - int64_t(width - 1) + int64_t(j), p = pos + at;
        const float* b = bcx.data() + (at < 0 ? 0 : size_t(at)) * 3 * d;
        const double u = at >= 0 ? double(b[c]) * double(b[2 * d + c]) : p < 0 ? 0.0 : double(ring.data()[size_t(p) % ring_size * d + c]);
        s += double(taps.data()[j * d + c]) * u;
      }
      want[t * d + c] = float(s * double(bcx.data()[t * 3 * d + d + c]));
    }
  for (size_t c0 = 0; c0 < d; c0 += 32) {
    const ConvArgs a{bcx.data(), d, width, tokens, taps.data(), bias.data(), ring2.data(), ring_size, pos};
    kn.short_conv(a, c0, std::min(d, c0 + 32), got.data() + c0, d, scratch.data());
  }
  expect_close(got.data(), want.data(), got.size(), 2e-6f, what);
  for (size_t t = tokens - std::min(tokens, ring_size); t < tokens; t++)
    for (size_t c = 0; c < d; c++) {
      const float u = bcx.data()[t * 3 * d + c] * bcx.data()[t * 3 * d + 2 * d + c];
      expect(ring2[size_t(pos + int64_t(t)) % ring_size * d + c] == u, what + ": the ring is wrong");
    }
}

// What tiles make of a value: half precision in the cache, then bfloat16 (of two nearest ones the larger).
float cached(float x, bool tiles) {
  const float h = half_to_float(float_to_half(x));
  return tiles ? bits_to_float((float_to_bits(h) + 0x8000) & 0xffff0000u) : h;
}

// tiles: queries, keys, values and weights are bfloat16.
void attention_case(const Kernels& kn, size_t hd, size_t group, size_t tokens, int64_t pos, int64_t window, bool gated, bool tiles) {
  const std::string what = std::string(kn.name) + " attention hd" + std::to_string(hd) + " g" + std::to_string(group) + " T" + std::to_string(tokens) +
                           " pos" + std::to_string(pos) + " w" + std::to_string(window);
  Random r(hd + group + size_t(pos));
  const size_t keys = size_t(pos) + tokens, cap = (keys + 31) / 16 * 16, stride = group * hd + 5;
  std::vector<uint16_t> k(cap * hd, 0x7e00), v(cap * hd, 0x7e00);  // NaN where nothing was written
  Floats kf(keys * hd, 0, r), vf(keys * hd, 0, r), q(tokens * stride, 3, r), gate(tokens * (group + 1), 0, r);
  for (size_t p = 0; p < keys; p++) kn.store_key(kf.data() + p * hd, hd, int64_t(p), k.data()), kn.store_value(vf.data() + p * hd, hd, int64_t(p), v.data());
  std::vector<float> scratch(attention_scratch(hd, kn.attention_rows), NAN), got(tokens * group * hd, NAN), want(got.size());
  const float scale = 0.3f, log2e = 1.44269504f;
  const auto query = [&](float x) { return tiles ? bf16_to_float(float_to_bf16(x * (scale * log2e))) / log2e : x * scale; };
  for (size_t t = 0; t < tokens; t++)
    for (size_t h = 0; h < group; h++) {
      const int64_t last = pos + int64_t(t), from = window ? std::max<int64_t>(0, last + 1 - window) : 0;
      std::vector<double> s;
      double top = -1e300, sum = 0;
      for (int64_t p = from; p <= last; p++) {
        double dot = 0;
        for (size_t i = 0; i < hd; i++)
          dot += double(query(q.data()[t * stride + h * hd + i])) * double(cached(kf.data()[size_t(p) * hd + i], tiles));
        s.push_back(dot), top = std::max(top, s.back());
      }
      for (double& e : s) e = std::exp(e - top), sum += e;
      const double factor = gated ? 1 / (1 + std::exp(-double(gate.data()[t * (group + 1) + h]))) : 1;
      for (size_t i = 0; i < hd; i++) {
        double o = 0;
        for (size_t j = 0; j < s.size(); j++) o += s[j] * double(cached(vf.data()[(size_t(from) + j) * hd + i], tiles));
        want[(t * group + h) * hd + i] = float(o / sum * factor);
      }
    }
  AttentionArgs a{q.data(), stride, group, hd, tokens, k.data(), v.data(), pos, window, scale, gated ? gate.data() : nullptr, group + 1, got.data(), group * hd, k.data(), v.data(), !tiles};
  kn.attention(a, scratch.data());
  expect_close(got.data(), want.data(), got.size(), tiles ? 4e-3f : 1e-5f, what);
}

// A query that is no number: neither is what its head makes of it, and the others are as they were.
void sick_attention_case(const Kernels& kn, bool exact) {
  const std::string what = std::string(kn.name) + (exact ? " attention" : " attention on tiles") + " of what is no number";
  const size_t hd = 32, group = 2, tokens = 3, pos = 130, cap = 144;
  Random r(3);
  std::vector<uint16_t> k(cap * hd), v(cap * hd);
  Floats one(hd, 0, r), q(tokens * group * hd, 1, r);
  for (size_t p = 0; p < pos + tokens; p++) kn.store_key(one.data(), hd, int64_t(p), k.data()), kn.store_value(one.data(), hd, int64_t(p), v.data());
  q.data()[3 * hd + 7] = NAN;
  std::vector<float> scratch(attention_scratch(hd, kn.attention_rows)), got(tokens * group * hd);
  const AttentionArgs a{q.data(), group * hd, group, hd, tokens, k.data(), v.data(), int64_t(pos), 0, 0.3f, nullptr, 0, got.data(), group * hd, k.data(), v.data(), exact};
  kn.attention(a, scratch.data());
  for (size_t i = 0; i < got.size(); i++) expect(std::isnan(got[i]) == (i / hd == 3), what + ": value " + std::to_string(i));
}

}  // namespace

int main() {
  for (size_t n : {1, 5, 255, 256, 257, 5000})
    for (size_t k : {1, 2, 19, 20, 64})
      for (int kind = 0; kind < 3 && k <= n; kind++) largest_case(n, k, kind);
  for (const Kernels* kn : machine_sets()) {
    for (size_t k : {32, 64, 96, 160, 1024, 1056}) quantize_case(*kn, k, 3, k % 3), widen_case(*kn, k, 3, k % 3);
    for (size_t k : {2, 5, 16, 17, 31, 48, 63, 64, 100, 1000})
      for (size_t shift : {0, 1, 7}) elementwise_case(*kn, k, shift);
    for (size_t d : {5, 16, 33, 64, 100})
      for (size_t width : {1, 2, 3, 7, 9})
        for (size_t tokens : {1, 2, 5, 40}) conv_case(*kn, d, width, tokens, int64_t(tokens % 3)), conv_case(*kn, d, width, tokens, 50 + int64_t(tokens));
    for (size_t hd : {16, 48, 64, 128, 256})
      for (size_t group : {1, 2, 3, 4, 8, 24})
        for (int64_t pos : {0, 1, 15, 16, 127, 240, 300}) {
          const size_t few = 1 + size_t(pos) % (kAttentionRows / group), many = kn->attention_rows / group - size_t(pos) % 3 % (kn->attention_rows / group);
          attention_case(*kn, hd, group, few, pos, pos % 2 ? 9 : 0, pos % 3 == 0, false);
          if (kn->wide) attention_case(*kn, hd, group, few, pos, pos % 2 ? 9 : 0, pos % 3 == 0, true);
          attention_case(*kn, hd, group, many, pos, pos % 2 ? 40 : 0, pos % 3 == 0, kn->wide);
        }
    for (int64_t window : {int64_t(1), int64_t(1) << 31, (int64_t(1) << 32) - 1, int64_t(1) << 40})  // one key, and more than there will ever be
      attention_case(*kn, 32, 2, kn->attention_rows / 2, 70, window, false, kn->wide);
    sick_quantize_case(*kn), sick_attention_case(*kn, true);
    if (kn->wide) sick_attention_case(*kn, false);
    printf("%s ok\n", kn->name);
  }
  return 0;
}
