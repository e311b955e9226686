#include "runner/layout.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "runner/exec.h"
#include "util/error.h"

namespace hw {

namespace {

size_t rows_of(const ProgramSpec& spec, const BufferSpec& b) { return (b.selected ? spec.max_selected : spec.max_tokens) * b.copies; }

size_t float_bytes(const BufferSpec& b, size_t rows) { return b.floats ? round_up(rows * b.width * 4, 64) : 0; }
size_t narrow_bytes(const BufferSpec& b, size_t rows) {
  return round_up(rows * b.width, 64) + 2 * round_up(rows * b.width / 8, 64) + round_up(rows * b.width / 4, 64);
}
// Tiles take kWideTokens rows at once, from the first of an expert on, whichever that is.
size_t wide_bytes(const BufferSpec& b, size_t rows) {
  return round_up(round_up(b.copies > 1 ? rows - 1 + kWideTokens : rows, kWideTokens) * wide_stride(b.width) * 2, 64);
}

// A run uses the int8 or the bfloat16 form of a buffer, never both: they share their memory. What is selected is never bfloat16.
size_t bytes_of(const BufferSpec& b, size_t rows, bool wide) {
  return float_bytes(b, rows) + (b.act8 ? std::max(narrow_bytes(b, rows), wide && !b.selected ? wide_bytes(b, rows) : 0) : 0);
}

// When a buffer is alive, and how many bytes it has where.
struct Life {
  std::vector<bool> steps;    // between which it holds what will be read
  size_t touched = SIZE_MAX;  // the last step that had it
  size_t bytes = 0, at = 0;
  bool meets(const Life& o) const {
    for (size_t i = 0; i < steps.size(); i++)
      if (steps[i] && o.steps[i]) return true;
    return false;
  }
  // fresh: all that it held is written anew.
  void touch(size_t step, bool fresh) {
    for (size_t i = fresh || touched == SIZE_MAX ? step : touched; i <= step; i++) steps[i] = true;
    touched = step;
  }
};

// Does the op write all of `out` without looking at it?
bool overwrites(const Op& op) { return op.kind != OpKind::bias && op.kind != OpKind::combine && op.epilogue != Epilogue::add && op.in != op.out; }

// Largest first, each at the lowest place that is free while it lives; the bytes of all.
size_t arrange(std::vector<Life>& lives) {
  std::vector<size_t> order(lives.size()), placed;
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return lives[a].bytes > lives[b].bytes; });
  size_t total = 0;
  for (size_t i : order) {
    Life& life = lives[i];
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t j : placed) {
        const Life& o = lives[j];
        if (life.meets(o) && life.at < o.at + o.bytes && o.at < life.at + life.bytes) life.at = o.at + o.bytes, moved = true;
      }
    }
    placed.push_back(i);
    total = std::max(total, life.at + life.bytes);
  }
  return total;
}

}  // namespace

std::vector<size_t> partners(const std::vector<Op>& ops) {
  std::vector<size_t> found(ops.size(), SIZE_MAX);
  for (size_t at = 0; at < ops.size(); at++) {
    const Op& a = ops[at];
    if (a.kind != OpKind::attention) continue;
    for (size_t i = at; i-- > 0;) {
      const Op& op = ops[i];
      if (op.in != a.in && op.in2 != a.in && op.out != a.in) continue;
      const bool same = op.heads == a.heads && op.kv_heads == a.kv_heads && op.head_dim == a.head_dim && op.layer == a.layer;
      if (op.kind == OpKind::rope && same) found[at] = i, found[i] = at;
      break;
    }
  }
  return found;
}

Layout lay_out(const ProgramSpec& spec, bool wide) {
  const size_t n = spec.buffers.size(), steps = spec.ops.size();
  Layout layout;
  layout.kept.resize(n);
  std::vector<Life> lives(n);
  for (size_t i = 0; i < n; i++) lives[i].steps.resize(steps), lives[i].bytes = bytes_of(spec.buffers[i], rows_of(spec, spec.buffers[i]), wide);
  const std::vector<size_t> partner = partners(spec.ops);
  for (size_t i = 0; i < steps; i++) {
    const Op& op = spec.ops[i];
    for (int b : {op.in, op.in2, op.out, spec.logits}) check(b < 0 || size_t(b) < n, "program: op " + std::to_string(i) + ": no buffer " + std::to_string(b));
    for (int b : {op.in, op.in2})
      if (b >= 0) lives[size_t(b)].touch(partner[i] == SIZE_MAX ? i : std::max(i, partner[i]), false);
    if (op.out >= 0) lives[size_t(op.out)].touch(i, overwrites(op));
    if (op.kind == OpKind::select && op.in >= 0) layout.kept[size_t(op.in)] = true;  // what a run made of its tokens can be asked for
  }
  if (spec.logits >= 0) layout.kept[size_t(spec.logits)] = true;
  for (size_t i = 0; i < n; i++)
    if (layout.kept[i]) lives[i].touch(steps - 1, false);
  layout.bytes = arrange(lives) + 64;
  for (const Life& life : lives) layout.at.push_back(life.at);
  return layout;
}

Acts place(const ProgramSpec& spec, const BufferSpec& b, bool wide, uint8_t* at) {
  const size_t rows = rows_of(spec, b);
  Acts a;
  a.k = b.width;
  if (b.floats) a.f = reinterpret_cast<float*>(at), at += float_bytes(b, rows);
  if (!b.act8) return a;
  if (wide && !b.selected) a.wide = reinterpret_cast<uint16_t*>(at), a.wide_stride = wide_stride(b.width);
  const auto take = [&](size_t bytes) {
    uint8_t* const p = at;
    at += round_up(bytes, 64);
    return p;
  };
  a.q = reinterpret_cast<int8_t*>(take(rows * b.width));
  a.scale = reinterpret_cast<float*>(take(rows * b.width / 8));
  a.sum32 = reinterpret_cast<int32_t*>(take(rows * b.width / 8));
  a.sum16 = reinterpret_cast<int32_t*>(take(rows * b.width / 4));
  return a;
}

size_t planned_memory(const ProgramSpec& spec, const Kernels& kn) {
  constexpr size_t most = size_t(1) << 32;  // more than runs, so that it can be said how much too much it is
  check(spec.max_tokens >= 1 && spec.max_tokens <= most && spec.max_selected >= 1 && spec.max_selected <= most && spec.threads >= 1,
        "planned_memory: max_tokens, max_selected and threads must be 1 or more");
  check(!spec.ops.empty(), "planned_memory: no ops");
  return lay_out(spec, kn.wide).bytes + scratch_floats(spec, kn) * 4 * size_t(spec.threads);
}

}  // namespace hw
