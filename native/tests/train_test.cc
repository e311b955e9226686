// The kernels of training: every instruction set gives what the portable one gives, at odd sizes, from buffers that end where the last value
// does (sanitizers see a read behind them), in pieces as in one; the pool of the pieces does each once. What they compute is checked in
// tests/test_fused.py, against torch.
#include <atomic>

#include "testing.h"
#include "train/train.h"
#include "train/workers.h"
#include "util/error.h"

using namespace hwt;
using namespace hw::train;

namespace {

struct Values {  // n random values of a type, in memory of exactly that size
  Type type;
  std::vector<float> f;
  std::vector<uint16_t> h;
  Values(Type t, size_t n, uint64_t seed) : type(t) {
    Random r(seed);
    for (size_t i = 0; i < n; i++) {
      const float x = r.normal();
      if (t == Type::f32) f.push_back(x);
      else h.push_back(hw::float_to_bf16(x));
    }
  }
  void* data() { return type == Type::f32 ? static_cast<void*>(f.data()) : static_cast<void*>(h.data()); }
  std::vector<float> floats() const {
    std::vector<float> v = f;
    for (uint16_t x : h) v.push_back(hw::bf16_to_float(x));
    return v;
  }
};

using Results = std::vector<std::vector<float>>;

// Everything, over [0, n) in pieces of `step`.
Results all(const Kernels& k, Type t, size_t rows, size_t n, size_t width, bool packed, size_t step) {
  const auto pieces = [&](size_t total, const auto& body) {
    for (size_t a = 0; a < total; a += step) body(a, std::min(total, a + step));
  };
  Results out;
  Values x(t, rows * n, 1), grad(t, rows * n, 2), up(t, rows * n, 3), y(t, rows * n, 4), z(t, rows * n, 5);
  const std::vector<float> w = Values(Type::f32, n, 6).f;
  std::vector<float> inverse(rows), sums(n);
  pieces(rows, [&](size_t a, size_t b) { k.norm(t, t, x.data(), w.data(), 1e-5f, n, a, b, y.data(), inverse.data()); });
  out.push_back(y.floats()), out.push_back(inverse);
  pieces(rows, [&](size_t a, size_t b) { k.norm_back(t, t, grad.data(), x.data(), w.data(), inverse.data(), n, a, b, y.data(), sums.data()); });
  out.push_back(y.floats()), out.push_back(sums);
  pieces(rows * n, [&](size_t a, size_t b) { k.swiglu(t, x.data(), up.data(), a, b, y.data()); });
  out.push_back(y.floats());
  pieces(rows * n, [&](size_t a, size_t b) { k.swiglu_back(t, t, grad.data(), x.data(), up.data(), a, b, y.data(), z.data()); });
  out.push_back(y.floats()), out.push_back(z.floats());

  Values mixed(t, 2 * rows * 3 * n, 7), wanted(t, 2 * rows * n, 8), made(t, 2 * rows * n, 9), d_mixed(t, 2 * rows * 3 * n, 10);
  const std::vector<float> taps = Values(Type::f32, width * n, 11).f;
  std::vector<int64_t> segments(2 * rows);
  for (size_t i = 0; i < segments.size(); i++) segments[i] = int64_t(i / 3);
  const ConvShape s{rows, n, width, taps.data(), packed ? w.data() : nullptr, packed ? segments.data() : nullptr};
  std::vector<float> d_taps(width * n), d_bias(n);
  pieces(2 * rows, [&](size_t a, size_t b) { k.conv(t, s, mixed.data(), a, b, made.data()); });
  pieces(2 * rows, [&](size_t a, size_t b) { k.conv_back(t, t, s, wanted.data(), mixed.data(), a, b, d_mixed.data(), d_taps.data(), packed ? d_bias.data() : nullptr); });
  out.push_back(made.floats()), out.push_back(d_mixed.floats()), out.push_back(d_taps), out.push_back(d_bias);

  Values logits(t, rows * n, 12);
  std::vector<float> partition(rows), factor(rows, 0.5f), add(rows * 3, 0.25f);
  std::vector<int64_t> ids(rows * 3);
  for (size_t i = 0; i < ids.size(); i++) ids[i] = int64_t(i * i % n);
  pieces(rows, [&](size_t a, size_t b) { k.partition(t, logits.data(), n, a, b, partition.data()); });
  pieces(rows, [&](size_t a, size_t b) { k.slope(t, logits.data(), n, partition.data(), factor.data(), ids.data(), add.data(), 3, a, b); });
  out.push_back(partition), out.push_back(logits.floats());
  return out;
}

// Attention and its gradients: rows of 70 tokens, of which every second has a document that begins at 37.
Results attention_of(const Kernels& k, Type t, size_t n) {
  const size_t rows = 2, steps = 70, heads = 4, key_heads = 2;
  std::vector<int32_t> from(rows * steps);
  for (size_t i = 0; i < from.size(); i++) from[i] = i >= steps && i % steps >= 37 ? 37 : 0;
  const AttentionShape s{heads, key_heads, steps, n, 0.25f, from.data()};
  uint64_t seed = 20;
  const auto values = [&](size_t count) { return Values(t, rows * steps * count * n, seed++); };
  Values q = values(heads), key = values(key_heads), v = values(key_heads), o = values(heads), grad = values(heads);
  Values dq = values(heads), dk = values(key_heads), dv = values(key_heads);
  const auto as = [&](Values& x, size_t count) { return Heads{x.data(), steps * count * n, n, count * n}; };
  std::vector<float> lse(rows * heads * steps), scratch(attention_scratch(s));
  for (size_t task = 0; task < rows * key_heads; task++)
    k.attention(t, s, as(q, heads), as(key, key_heads), as(v, key_heads), as(o, heads), lse.data(), task, scratch.data());
  for (size_t task = 0; task < rows * key_heads; task++)
    k.attention_back(t, t, s, as(q, heads), as(key, key_heads), as(v, key_heads), as(o, heads), as(grad, heads), lse.data(), as(dq, heads), as(dk, key_heads),
                     as(dv, key_heads), task, scratch.data());
  return {o.floats(), lse, dq.floats(), dk.floats(), dv.floats()};
}

// A logit or a key that is no number is seen in all that depends on it, and in nothing else.
void sick_values(const Kernels& k, Type t) {
  const std::string what = std::string(k.name) + ", what is no number: ";
  const auto spoil = [](Values& x, size_t i) {
    if (x.type == Type::f32) x.f[i] = NAN;
    else x.h[i] = 0x7fc0;
  };
  const size_t v = 51;
  for (size_t at : {size_t(0), size_t(17), size_t(50)}) {
    Values logits(t, 2 * v, 1);
    spoil(logits, at);
    std::vector<float> partition(2);
    k.partition(t, logits.data(), v, 0, 2, partition.data());
    expect(std::isnan(partition[0]) && std::isfinite(partition[1]), what + "logit " + std::to_string(at));
  }
  const size_t steps = 140, n = 16;
  const std::vector<int32_t> from(steps);
  const AttentionShape s{1, 1, steps, n, 0.25f, from.data()};
  for (size_t at : {size_t(3), size_t(63), size_t(64), size_t(139)}) {
    Values q(t, steps * n, 1), key(t, steps * n, 2), value(t, steps * n, 3), o(t, steps * n, 4);
    spoil(key, at * n + 5);
    const auto as = [&](Values& x) { return Heads{x.data(), steps * n, n, n}; };
    std::vector<float> lse(steps), scratch(attention_scratch(s));
    k.attention(t, s, as(q), as(key), as(value), as(o), lse.data(), 0, scratch.data());
    const std::vector<float> got = o.floats();
    for (size_t i = 0; i < got.size(); i++) expect(std::isnan(got[i]) == (i / n >= at), what + "key " + std::to_string(at) + ", value " + std::to_string(i));
  }
}

void pieces_are_done_once() {
  for (int threads : {1, 2, 5}) {
    Workers workers(threads);
    for (size_t n : {size_t(0), size_t(1), size_t(7), size_t(1000), size_t(3000001)})
      for (size_t piece : {size_t(1), size_t(64)}) {
        std::vector<std::atomic<uint8_t>> seen(n);
        workers.run(n, piece, [&](size_t, size_t a, size_t b) {
          for (size_t i = a; i < b; i++) seen[i]++;
        });
        for (size_t i = 0; i < n; i++) expect(seen[i] == 1, "value " + std::to_string(i) + " of " + std::to_string(n) + " was done " + std::to_string(seen[i]) + " times");
      }
  }
}

}  // namespace

int main() {
  pieces_are_done_once();
  const Kernels& plain = select("portable");
  std::vector<const char*> sets{"portable"};
  if (hw::cpu_facts().avx2) sets.push_back("avx2");
  if (hw::cpu_facts().avx512) sets.push_back("avx512");
  for (const char* set : sets)
    for (Type t : {Type::f32, Type::bf16})
      for (size_t n : {size_t(1), size_t(15), size_t(16), size_t(33), size_t(130)})
        for (size_t width : {size_t(1), size_t(3), size_t(7)})
          for (size_t step : {size_t(1), size_t(4), size_t(1000)}) {
            const Results want = all(plain, t, 5, n, width, width == 3, 1000), got = all(select(set), t, 5, n, width, width == 3, step);
            for (size_t i = 0; i < want.size(); i++)
              expect_close(got[i].data(), want[i].data(), want[i].size(), t == Type::f32 ? 1e-5f : 2e-2f,
                           std::string(set) + ", result " + std::to_string(i) + ", " + std::to_string(n) + " values, width " + std::to_string(width));
          }
  for (const char* set : sets)
    for (Type t : {Type::f32, Type::bf16}) sick_values(select(set), t);
  for (const char* set : sets)
    for (Type t : {Type::f32, Type::bf16})
      for (size_t n : {size_t(16), size_t(64), size_t(80)}) {
        const Results want = attention_of(plain, t, n), got = attention_of(select(set), t, n);
        for (size_t i = 0; i < want.size(); i++)
          expect_close(got[i].data(), want[i].data(), want[i].size(), t == Type::f32 ? 1e-5f : 2e-2f,
                       std::string(set) + ", attention, result " + std::to_string(i) + ", " + std::to_string(n) + " values");
      }
  bool refused = false;
  try {
    select("nothing");
  } catch (const hw::Error&) {
    refused = true;
  }
  expect(refused, "an unknown instruction set was taken");
  return 0;
}
