// Elementwise work of a training step, one pass over memory an operator: norms, gates, short convolutions, softmax, and their gradients.
// Values are floats or bfloat16, sums and everything between a load and a store are floats. Rows [a, b) of a call belong to one thread.
// What each computes is said in Python (headwater/ops), by plain twins that the tests hold it against.
#pragma once
#include <cstddef>
#include <cstdint>

namespace hw::train {

enum class Type : int { f32 = 0, bf16 = 1 };
constexpr size_t kMostTaps = 64, kMostPlaces = 512;  // of a convolution, of a row of logits

struct ConvShape {
  size_t steps, d, width;   // of one of the rows; columns of `mixed` are gate in, gate out, value
  const float* taps;        // [width][d]
  const float* bias;        // [d] or nullptr
  const int64_t* segments;  // [rows * steps] or nullptr: a tap counts only inside one segment
};

constexpr size_t kQueryBlock = 32, kKeyBlock = 64;
// Static, for the units of all instruction sets use it.
static inline size_t padded_steps(size_t steps) { return (steps + kKeyBlock - 1) / kKeyBlock * kKeyBlock; }

struct AttentionShape {
  size_t heads, key_heads, steps, n;  // n: values of a head, a multiple of 16; each key head serves heads / key_heads query heads
  float scale;
  const int32_t* from;  // [rows][steps]: the first key that a query sees, at most its own; the last is its own
};
struct Heads {
  void* data;
  size_t row, head, step;  // values from one to the next; those of one head lie side by side
};
static inline size_t attention_scratch(const AttentionShape& s) { return 9 * padded_steps(s.steps) * s.n + 2 * kQueryBlock * (kKeyBlock + s.n) + 2 * padded_steps(s.steps) + 256; }

struct Kernels {
  const char* name;
  // y = (x * inverse) * w, inverse = 1 / sqrt(mean(x^2) + eps); the first product is rounded to x's type.
  void (*norm)(Type tx, Type ty, const void* x, const float* w, float eps, size_t n, size_t a, size_t b, void* y, float* inverse);
  // dx of x's type; dw [n] is added to. Either may be nullptr.
  void (*norm_back)(Type tx, Type tg, const void* grad, const void* x, const float* w, const float* inverse, size_t n, size_t a, size_t b, void* dx, float* dw);
  // Values [a, b): y = silu(gate) * up, silu rounded first.
  void (*swiglu)(Type t, const void* gate, const void* up, size_t a, size_t b, void* y);
  void (*swiglu_back)(Type t, Type tg, const void* grad, const void* gate, const void* up, size_t a, size_t b, void* d_gate, void* d_up);
  // Tokens [a, b) of all rows: y = gate out * conv(gate in * value), the last product rounded first.
  void (*conv)(Type t, const ConvShape& s, const void* mixed, size_t a, size_t b, void* y);
  // d_mixed like mixed; d_taps [width][d] and d_bias [d] are added to.
  void (*conv_back)(Type t, Type tg, const ConvShape& s, const void* grad, const void* mixed, size_t a, size_t b, void* d_mixed, float* d_taps, float* d_bias);
  // log-sum-exp of each row of v logits.
  void (*partition)(Type t, const void* logits, size_t v, size_t a, size_t b, float* out);
  // Logits become factor * exp(logit - partition), with `add` added at the k places `ids` of each row (the same place may come twice).
  void (*slope)(Type t, void* logits, size_t v, const float* partition, const float* factor, const int64_t* ids, const float* add, size_t k, size_t a, size_t b);
  // Task `at` of rows * key_heads: o, and the log-sum-exp of each query's scores, lse [rows][heads][steps]. scratch: attention_scratch floats.
  void (*attention)(Type t, const AttentionShape& s, const Heads& q, const Heads& k, const Heads& v, const Heads& o, float* lse, size_t at, float* scratch);
  void (*attention_back)(Type t, Type tg, const AttentionShape& s, const Heads& q, const Heads& k, const Heads& v, const Heads& o, const Heads& grad, const float* lse,
                         const Heads& dq, const Heads& dk, const Heads& dv, size_t at, float* scratch);
};

// The best set this processor can run, or the one named ("" = best; "amx" has none of its own and means avx512). Throws Error.
const Kernels& select(const char* name);
// The same, with the name from HEADWATER_ISA when it is set.
const Kernels& best();

}  // namespace hw::train
