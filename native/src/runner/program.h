// The flat program: fused ops over named buffers, walked in one parallel region. It knows shapes and formats, no model names.
//
// A run takes segments (slot, tokens): each continues its own sequence. What a row becomes depends on its own sequence and on the kind of run
// (prompt or decode), bit for bit, and not on the other rows: users share runs. tests/test_engine_batches.py holds it.
// Buffers hold one row per token of the run; after `select`, one row per token whose logits were asked for. Those that are never alive together
// share their memory; what `select` reads and the logits outlive the run. One Program is used by one caller at a time.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "runner/slots.h"
#include "util/aligned.h"
#include "util/pool.h"

namespace hw {

class Loading;  // formats/load.h

struct Matrix {  // experts > 1: that many matrices of the same shape, one after the other
  Format format = Format::F32;
  size_t rows = 0, k = 0, experts = 1;
  const uint8_t* data = nullptr;
  std::shared_ptr<const void> owner;
  std::shared_ptr<Loading> loading = nullptr;  // set: `data` is there after ready()
  size_t part = 0;                             // of the loading: the matrix, or its first expert
  void ready() const;                          // waits, takes part in the work, and throws what went wrong with it
  size_t bytes_per_expert() const { return packed_bytes(info(format), rows, k); }
};

struct BufferSpec {
  std::string name;
  size_t width = 0;
  bool floats = true, act8 = false;
  bool selected = false;  // rows of the selection, not of the run
  size_t copies = 1;      // rows per token: the experts of a token stand in rows of their own, sorted by expert
};

enum class OpKind { embed, angles, norm, matmul, bias, rope, attention, short_conv, select, route, gather, moe_up, moe_down, combine };
enum class Epilogue { store, add, gated };

struct Op {
  OpKind kind{};
  int in = -1, in2 = -1, out = -1;  // buffers; in2: angles (rope), gates (attention), router logits (route)
  std::vector<int> matrices;
  int vec = -1, vec2 = -1;  // vectors: weight | bias | q norm, k norm | taps, bias | inverse frequencies | expert bias
  Epilogue epilogue = Epilogue::store;
  Gate gate = Gate::silu;
  float eps = 0, scale = 1;
  size_t heads = 0, kv_heads = 0, head_dim = 0, pairs = 0, pair_offset = 0;
  size_t layer = 0;      // which attention or convolution state
  size_t width = 0;      // of the convolution
  int64_t window = 0;    // 0: all keys
  size_t top_k = 0;      // experts a token
  bool normalize = false;
};

struct ProgramSpec {
  std::vector<BufferSpec> buffers;
  std::vector<Op> ops;
  std::vector<Matrix> matrices;
  std::vector<std::vector<float>> vectors;
  StateSpec state;
  size_t max_tokens = 512;  // of one run
  size_t max_selected = 64;
  int logits = -1;  // buffer
  int threads = 1;
  std::vector<int> cpus;
};

enum class Want { none, last, all };

struct Segment {
  int slot;
  std::vector<int32_t> tokens;
  Want want = Want::last;
};

struct Buffer;  // runner/exec.h
struct Step;
struct Run;

class Program {
 public:
  Program(ProgramSpec spec, const Kernels& kernels);  // throws Error on anything that does not fit together
  ~Program();
  Slots& slots() { return *slots_; }
  const ProgramSpec& spec() const { return spec_; }
  const Kernels& kernels() const { return kn_; }
  int threads() const { return pool_->threads(); }
  size_t memory() const;  // bytes of buffers and scratch

  // Runs the tokens, moves every slot forward; returns the number of selected rows (their logits stand in `logits`).
  size_t run(const std::vector<Segment>& segments, bool decode = false);
  const float* logits(size_t row) const;
  size_t vocabulary() const;
  bool one_arithmetic() const;  // do prompts and decode runs give the same bits?
  const float* buffer(const std::string& name, size_t row) const;  // for embeddings; floats that outlive the run only

 private:
  friend struct Exec;
  void place_buffers();
  void plan(uint32_t epoch);
  void work(int worker, uint32_t epoch);

  ProgramSpec spec_;
  const Kernels& kn_;
  std::unique_ptr<Slots> slots_;
  std::vector<Buffer> buffers_;
  std::vector<Step> steps_;
  std::unique_ptr<Run> run_;
  std::unique_ptr<Stages> stages_;
  Arena memory_, scratch_;
  size_t scratch_floats_ = 0;
  std::unique_ptr<Pool> pool_;  // last: its threads must be gone before the rest
};

}  // namespace hw
