// Buffers that share memory: over random programs, what an op reads must still be what was written for it.
#include "runner/layout.h"

#include <string>

#include "testing.h"
#include "util/error.h"

using namespace hw;
using namespace hwt;

namespace {

// An op over buffers of which those that it reads have been written. Kinds differ in what they do with `out`.
Op random_op(Random& r, const std::vector<bool>& written) {
  const auto known = [&] {
    size_t i = r.below(written.size());
    while (!written[i]) i = (i + 1) % written.size();
    return int(i);
  };
  Op op;
  const OpKind kinds[] = {OpKind::norm, OpKind::matmul, OpKind::bias, OpKind::combine, OpKind::rope, OpKind::attention, OpKind::gather};
  op.kind = kinds[r.below(7)];
  op.heads = op.kv_heads = op.head_dim = 1;
  if (op.kind != OpKind::bias) op.in = known();
  if (op.kind == OpKind::rope) {
    op.in2 = known();
    return op;
  }
  if (op.kind == OpKind::attention && r.below(2)) op.in2 = known();
  const bool adds = op.kind == OpKind::bias || op.kind == OpKind::combine || r.below(3) == 0;
  if (adds && op.kind != OpKind::attention && op.kind != OpKind::gather) op.epilogue = Epilogue::add;
  op.out = op.epilogue == Epilogue::add ? known() : int(r.below(written.size()));
  return op;
}

ProgramSpec random_program(Random& r) {
  ProgramSpec s;
  s.max_tokens = 1 + r.below(40), s.max_selected = 1 + r.below(9);
  const size_t n = 3 + r.below(8);
  for (size_t i = 0; i < n; i++) {
    BufferSpec b;
    b.name = std::to_string(i), b.width = 32 * (1 + r.below(6)), b.act8 = r.below(2), b.floats = !b.act8 || r.below(2);
    b.selected = r.below(4) == 0, b.copies = 1 + r.below(2);
    s.buffers.push_back(b);
  }
  std::vector<bool> written(n);
  Op first;
  first.kind = OpKind::embed, first.out = int(r.below(n)), written[size_t(first.out)] = true;
  s.ops.push_back(first);
  for (size_t i = 1 + r.below(24); i-- > 0;) {
    s.ops.push_back(random_op(r, written));
    if (s.ops.back().out >= 0) written[size_t(s.ops.back().out)] = true;
  }
  Op select;
  select.kind = OpKind::select, select.in = first.out, select.out = int(r.below(n));
  s.ops.push_back(select);
  s.logits = select.out;
  return s;
}

// Who wrote each byte last. A rope may be done when its attention is.
struct Bytes {
  const ProgramSpec& spec;
  const Layout layout;
  const std::vector<size_t> partner;
  std::vector<int> owner;
  std::vector<size_t> sizes;
  bool wide;

  Bytes(const ProgramSpec& s, bool wide_) : spec(s), layout(lay_out(s, wide_)), partner(partners(s.ops)), owner(layout.bytes, -1), wide(wide_) {
    for (const BufferSpec& b : s.buffers) {
      ProgramSpec alone;
      alone.max_tokens = s.max_tokens, alone.max_selected = s.max_selected;
      alone.buffers = {b}, alone.ops.resize(1), alone.ops[0].out = 0;
      sizes.push_back(lay_out(alone, wide).bytes - 64);
    }
  }
  bool owns(int b) const {
    for (size_t i = 0; i < sizes[size_t(b)]; i++)
      if (owner[layout.at[size_t(b)] + i] != b) return false;
    return true;
  }
  void read(int b, size_t step) const { expect(b < 0 || owns(b), "buffer " + std::to_string(b) + " was overwritten before op " + std::to_string(step)); }
  void write(int b) {
    if (b >= 0) std::fill_n(owner.begin() + long(layout.at[size_t(b)]), sizes[size_t(b)], b);
  }
  void walk() {
    for (size_t i = 0; i < spec.ops.size(); i++) {
      const Op& op = spec.ops[i];
      read(op.in, i), read(op.in2, i);
      if (op.epilogue == Epilogue::add || op.kind == OpKind::bias || op.kind == OpKind::combine) read(op.out, i);
      if (op.kind == OpKind::attention && partner[i] != SIZE_MAX) read(spec.ops[partner[i]].in, i), read(spec.ops[partner[i]].in2, i);
      // What is written may not lie where something lies that the same op reads, unless it is the same buffer.
      write(op.out);
      if (op.in != op.out) read(op.in, i);
      if (op.in2 != op.out) read(op.in2, i);
    }
    for (size_t b = 0; b < sizes.size(); b++)
      if (layout.kept[b]) read(int(b), spec.ops.size());
  }
};

void random_programs() {
  Random r(7);
  size_t shared = 0, apart = 0;
  for (int i = 0; i < 400; i++) {
    const ProgramSpec s = random_program(r);
    Bytes bytes(s, i % 2 == 1);
    bytes.walk();
    shared += bytes.layout.bytes - 64;
    for (size_t n : bytes.sizes) apart += n;
  }
  expect(shared * 10 < apart * 9, "sharing saves nothing: " + std::to_string(shared) + " of " + std::to_string(apart));
}

void pointers() {
  Random r(8);
  for (int i = 0; i < 100; i++) {
    const ProgramSpec s = random_program(r);
    const Bytes bytes(s, i % 2 == 1);
    std::vector<uint8_t> memory(bytes.layout.bytes);
    for (size_t b = 0; b < s.buffers.size(); b++) {
      const BufferSpec& spec = s.buffers[b];
      const size_t rows = (spec.selected ? s.max_selected : s.max_tokens) * spec.copies;
      uint8_t* const at = memory.data() + bytes.layout.at[b];
      const Acts a = place(s, spec, bytes.wide, at);
      const auto inside = [&](const void* p, size_t n) {
        const auto* q = static_cast<const uint8_t*>(p);
        return !p || (q >= at && q + n <= at + bytes.sizes[b]);
      };
      expect(inside(a.f, rows * spec.width * 4) && inside(a.q, rows * spec.width) && inside(a.scale, rows * spec.width / 8), "a pointer outside its buffer");
      expect(inside(a.sum32, rows * spec.width / 8) && inside(a.sum16, rows * spec.width / 4), "sums outside their buffer");
      expect(inside(a.wide, round_up(rows, kWideTokens) * a.wide_stride * 2), "bfloat16 outside its buffer");
      if (spec.copies > 1) expect(inside(a.wide, (rows - 1 + kWideTokens) * a.wide_stride * 2), "no room for the tiles of an expert that begins at the last row");
      expect((a.f != nullptr) == spec.floats && (a.q != nullptr) == spec.act8, "forms that were not asked for");
    }
  }
}

void no_such_buffer(const ProgramSpec& s) {
  try {
    lay_out(s, false);
  } catch (const Error&) {
    return;
  }
  fail("a buffer that is not there was accepted");
}

void hostile() {
  ProgramSpec s;
  s.buffers.resize(1), s.buffers[0].width = 32;
  s.ops.resize(1), s.ops[0].in = 3;
  no_such_buffer(s);
  s.ops[0].in = -1, s.logits = 1;
  no_such_buffer(s);
}

}  // namespace

int main() {
  random_programs();
  pointers();
  hostile();
  puts("layout: what is read is what was written");
}
