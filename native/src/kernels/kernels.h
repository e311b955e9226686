// The table of kernels of one instruction set. Shapes: t tokens, k inputs; a matrix is groups of 16 rows (formats/formats.h).
// Nothing here allocates or throws; the runner has checked every size.
#pragma once
#include <cstddef>
#include <cstdint>

#include "formats/formats.h"

namespace hw {

// The inputs of a matmul: t rows of k values, as floats, as int8 blocks of 32, or (for tiles) as bfloat16.
struct Acts {
  size_t k = 0;
  float* f = nullptr;          // [t][k]
  int8_t* q = nullptr;         // [t][k], in -127..127
  float* scale = nullptr;      // [t][k/32]
  int32_t* sum32 = nullptr;    // [t][k/32]: -128 * sum of q over the block
  int32_t* sum16 = nullptr;    // [t][k/16]: the same over 16
  uint16_t* wide = nullptr;    // [t rounded up to kWideTokens][wide_stride]: bfloat16
  size_t wide_stride = 0;
};

constexpr size_t kTokensAtOnce = 16;  // of one call of matvec, at most

// Groups of 16 rows that are read at once, each from its own place, and the places whose first bytes will be wanted after them.
constexpr size_t kStreams = 8;
struct Streams {
  size_t count = 0;  // 1 to kStreams
  const uint8_t *at[kStreams], *next[kStreams];  // next: only fetched, so any address will do
};

struct ConvArgs {
  const float* bcx;  // [t][3 d]: gate in, gate out, value
  size_t d, width, tokens;
  const float* taps;  // [width][d]
  const float* bias;  // [d] or nullptr
  float* ring;        // [ring_size][d]: input at position p stands in row p % ring_size
  size_t ring_size;
  int64_t pos;  // of the first token
};

struct AttentionArgs {
  const float* q;  // first token's first query head of this key-value head: [tokens][q_stride], `group` heads of hd values
  size_t q_stride, group, hd, tokens;
  const uint16_t* k;  // half [positions/16][hd][16]
  const uint16_t* v;  // half [positions][hd]
  int64_t pos;        // of the first token
  int64_t window;     // keys a query sees, itself included; 0 = all
  float scale;
  const float* gate;  // nullptr, or one gate before its sigmoid per head: [tokens][gate_stride]
  size_t gate_stride;
  float* out;  // [tokens][out_stride]
  size_t out_stride;
  const uint16_t *next_k, *next_v;  // what will be read after these, only fetched; any address will do
  bool exact;  // never on tiles, which round; then at most kAttentionRows rows
};
constexpr size_t kAttentionRows = 24;   // tokens * group of one call; with tiles more (Kernels::attention_rows)
constexpr size_t kAttentionKeys = 128;  // keys per step
// Floats that a call of `rows` rows needs (with tiles: results, scores of 32 rows, a step of keys and values, queries, weights).
inline size_t attention_scratch(size_t hd, size_t rows) {
  if (rows <= kAttentionRows) return kAttentionRows * (2 * hd + kAttentionKeys + 2) + 64;
  const size_t deep = (hd + 31) / 32 * 32;
  return rows * (hd + deep / 2 + 2) + kAttentionKeys * (48 + deep) + 64;
}

enum class Gate : int { silu = 0, gelu_tanh = 1 };

constexpr size_t kPanelRows = 64;
constexpr size_t kWideTokens = 32;  // tokens that tiles work on at a time: buffers of bfloat16 and results have room for a multiple
inline size_t wide_stride(size_t k) { return k + 32; }  // a line more than the row: rows a power of two apart would share cache sets
inline size_t conv_scratch(size_t width, size_t tokens) { return 16 * (width + tokens); }

struct Kernels {
  const char* name;
  int tile_tokens;
  size_t attention_rows;  // tokens * group of one call, at most
  bool wide;  // panel meets Acts::wide instead of the int8 form

  // Rows of k values (a multiple of 32) at stride ldx into rows of an activation buffer `width` wide (pointers at the first value to write).
  void (*quantize)(const float* x, size_t ldx, size_t rows, size_t k, int8_t* q, float* scale, int32_t* sum32, int32_t* sum16, size_t width);
  // Rows of k values at stride ldx to bfloat16 at stride ldo (nearest, ties to even).
  void (*widen)(const float* x, size_t ldx, size_t rows, size_t k, uint16_t* out, size_t ldo);
  // y[t * ldy + 16 s + r] for nt in 1..kTokensAtOnce tokens from t0 and every stream s. The bits of a token do not depend on nt.
  void (*matvec)(Format f, const Streams& io, const Acts& a, size_t t0, int nt, float* y, size_t ldy);
  // c[t][64] for any number of tokens; four groups (a missing one is nullptr and gives zeros).
  void (*panel)(Format f, const uint8_t* const w[4], const Acts& a, size_t t0, size_t nt, float* c);

  void (*rms_norm)(const float* x, const float* w, float eps, size_t k, float* y);
  // Sum of e^(x - top) over n values, none of them above `top`.
  double (*sum_exp)(const float* x, size_t n, float top);
  void (*add)(float* x, const float* y, size_t k);                      // x += y
  void (*add_scaled)(float* x, const float* y, float s, size_t k);      // x += s y
  void (*gate)(Gate g, float* a, const float* b, size_t ld, size_t rows, size_t k);  // a = act(a) * b, rows at stride ld
  // Turn `pairs` pairs (i, i + offset) of one head by cos/sin.
  void (*rotate)(float* x, const float* cos, const float* sin, size_t pairs, size_t offset);
  void (*store_key)(const float* x, size_t hd, int64_t pos, uint16_t* k);
  void (*store_value)(const float* x, size_t hd, int64_t pos, uint16_t* v);
  void (*attention)(const AttentionArgs& a, float* scratch);
  // Channels [c0, c1), c0 a multiple of 16: out[t][c - c0] = gate_out * conv(gate_in * value); then the ring is brought up to date.
  void (*short_conv)(const ConvArgs& a, size_t c0, size_t c1, float* out, size_t out_stride, float* scratch);
  void (*fgemm)(Format f, const float* a, size_t lda, size_t m, size_t k, const void* b, size_t vec_stride, size_t row_stride,
                size_t vecs, float* c, size_t ldc, bool accumulate);
  // Whole groups of 16 rows as a GGUF file has them into the packed layout; false: only pack_rows_plain can do it.
  PackGroups pack;
};

const Kernels* kernels_portable();
const Kernels* kernels_avx2();    // nullptr where not built
const Kernels* kernels_avx512();  // nullptr where not built
const Kernels* kernels_amx();     // nullptr where not built

// The best set this processor can run, or the one named ("" = best). Throws Error: unknown name, not built, processor cannot.
const Kernels& select_kernels(const char* name);
// The same, with the name from the environment variable HEADWATER_ISA when it is set.
const Kernels& default_kernels();

}  // namespace hw
