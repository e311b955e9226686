// Inside the runner: what a run looks like while it is walked, and the work of one chunk of one op.
#pragma once
#include <cstdint>
#include <vector>

#include "runner/program.h"

namespace hw {

struct Buffer {
  BufferSpec spec;
  Acts acts;  // base pointers; k = width
  bool kept = false;  // outlives the run
  float* row(size_t r) const { return acts.f + r * spec.width; }
};

struct Placed {  // a segment inside the run
  int slot;
  size_t first, count;  // rows
  int64_t pos;          // of the first token
};

struct Run {
  size_t rows = 0;
  bool decode = false;  // of answers, not of prompts: all products take the path for few tokens, or one that gives the same bits
  bool single = false;  // one token a segment: no head sees another token's new keys
  std::vector<Placed> segments;
  std::vector<int32_t> tokens;  // per row
  std::vector<int64_t> pos;     // per row
  std::vector<int> slot;        // per row
  std::vector<size_t> selected;
  // Experts: entry i of the sorted list is one (token, expert) pair. A late worker may look here, for what to fetch ahead, while a route writes:
  // what it finds is old or new, and their memory never moves (Program::Program).
  std::vector<size_t> active, begin;   // active experts; begin[e] .. begin[e + 1] in the sorted list
  std::vector<uint32_t> place, token;  // place[token * top_k + j] = i; token[i]
  std::vector<float> share;            // [token * top_k + j]
};

struct Part {  // consecutive units of one matrix (or pair of matrices) inside a matmul
  size_t matrix, groups, column;
};

struct Step {
  Op op;
  std::vector<Part> parts;
  std::vector<size_t> group;  // bytes of a group of rows, of each matrix
  size_t index = 0, next_stream = SIZE_MAX;  // the step whose weights come next
  size_t partner = SIZE_MAX;      // rope and attention: each other, where one can do the other's work
  // Chosen per run:
  bool few = false;               // matmuls: every weight used for a few tokens: stream; else expand panels
  uint32_t least = 1, most = 1;   // chunks taken at once
  size_t pieces = 1;              // few tokens: chunks of the matrices (of an expert)
  size_t unit = 1;                // groups (gated: pairs of groups), or rows a chunk
  size_t token_block = 0, blocks = 1;
  uint32_t chunks = 0;
};

constexpr size_t kFewTokens = 8;

// Do matvec and panel give the same bits? The k-quants are summed per super-block by one and per block by the other, and tiles meet bfloat16. A
// panel with other arithmetic than matvec's must say no here: then every prompt takes panels and every answer matvec, however many share the run.
inline bool one_arithmetic(const Kernels& kn, Format f) {
  return !(kn.wide && info(f).act8) && f != Format::Q4_K && f != Format::Q5_K && f != Format::Q6_K;
}

struct Set {  // what one call of the streaming kernel reads, and where its results go
  Streams io;
  Format format{};
  size_t groups = 0, valid = 0;                // groups of 16 results, and how many results there are
  size_t column = 0, row = 0, tokens = 0;      // of the output; rows of the input and the output
};

struct Warm {  // how far a waiting worker has fetched what it will read next
  size_t step = SIZE_MAX, at = 0;
  Set set;
};

struct Exec {
  Program& p;
  const Kernels& kn;
  Run& run;
  int worker = 0;
  uint32_t epoch = 0;

  // Prompts are kept as bfloat16 where the kernels have tiles; answers, and what the head meets, never are.
  bool wide(const Buffer& b) const { return kn.wide && !run.decode && !b.spec.selected; }
  size_t rows_of(const Buffer& b) const { return (b.spec.selected ? run.selected.size() : run.rows) * b.spec.copies; }
  const Buffer& buffer(int i) const { return p.buffers_[size_t(i)]; }
  const float* vec(int i) const { return i < 0 ? nullptr : p.spec_.vectors[size_t(i)].data(); }
  const Matrix& matrix(const Step& s, size_t i) const { return p.spec_.matrices[size_t(s.op.matrices[i])]; }

  void plan(Step& s) const;
  bool attention_exact(const Op& op) const;
  size_t attention_tokens(const Op& op) const;
  void chunk(const Step& s, uint32_t c, float* scratch) const;
  void pieces(const Step& s, uint32_t first, uint32_t count, float* scratch) const;  // chunks of a matmul of few tokens; they are reported as done
  // Can a worker do what another has begun? Where experts stand is written anew by every layer: a late worker must not look there.
  bool takes_over(const Step& s) const { return s.few && !s.parts.empty() && p.threads() > 1; }
  void fetch_state(const Step& s) const;  // what this worker's chunks of s read beside buffers: it left the caches a token ago
  bool warm(const Step& s, Warm& w) const;  // fetch a little of what this worker reads next; false: enough

 private:
  void emit(const Buffer& out, size_t row, size_t rows, size_t column, const float* x, size_t ldx, size_t n) const;
  void embed(const Step& s, size_t row) const;
  void angles(const Step& s, size_t row) const;
  void norm(const Step& s, size_t row, float* scratch) const;
  void rope(const Step& s, size_t row, size_t kv_head) const;
  void attention(const Step& s, uint32_t c, float* scratch) const;
  void short_conv(const Step& s, uint32_t c, float* scratch) const;
  void select(const Step& s) const;
  void matmul_panel(const Step& s, uint32_t c, float* scratch) const;
  void route(const Step& s) const;
  void need_experts(const Step& s) const;
  void gather(const Step& s, size_t row) const;
  void expert(const Step& s, uint32_t c, float* scratch) const;
  void combine(const Step& s, size_t row) const;
  bool few(const Step& s, size_t rows) const;
  void plan_panel(Step& s, size_t units, size_t rows, size_t copies) const;
  void plan_few(Step& s, size_t copies) const;
  void point(const Step& s, size_t which, size_t offset, size_t first, size_t groups, Set& set) const;
  size_t find_set(const Step& s, size_t piece, size_t most, Set& set) const;
  bool next_set(const Step& s, Set& set) const;
  bool stream(const Step& s, Set& set, const Set* next, float* scratch, Stages::Bite* bite, uint32_t count) const;
  void store(const Step& s, size_t row, size_t rows, size_t column, const float* x, size_t ldx, size_t n) const;
};

size_t scratch_floats(const ProgramSpec& spec, const Kernels& kn);

}  // namespace hw
