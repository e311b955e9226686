#include "runner/exec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace hw {

size_t scratch_floats(const ProgramSpec& spec, const Kernels& kn) {
  const size_t t = round_up(spec.max_tokens, kWideTokens);
  size_t n = t * kPanelRows + t * 32;
  size_t widest = 0;
  for (const BufferSpec& b : spec.buffers) widest = std::max(widest, b.width);
  n = std::max(n, widest + 64);
  n = std::max(n, size_t(12 * 1024) + 8 * 512);
  for (const auto& a : spec.state.attention) n = std::max(n, attention_scratch(a.head_dim, kn.attention_rows) + kn.attention_rows * a.head_dim);
  for (const auto& c : spec.state.convolution) n = std::max(n, conv_scratch(c.width, t) + std::max(32 * t, 256 * kFewTokens));
  return round_up(n, 64);
}

// Rows of n values at stride ldx, to rows `row`.. of a buffer, from `column` on: as floats, as int8, or both.
void Exec::emit(const Buffer& out, size_t row, size_t rows, size_t column, const float* x, size_t ldx, size_t n) const {
  const Acts& a = out.acts;
  const size_t w = out.spec.width, at = row * w + column;
  if (out.spec.floats && a.f + at != x)
    for (size_t r = 0; r < rows; r++) memcpy(a.f + at + r * w, x + r * ldx, n * 4);
  if (!out.spec.act8) return;
  if (wide(out)) return kn.widen(x, ldx, rows, n, a.wide + row * a.wide_stride + column, a.wide_stride);
  kn.quantize(x, ldx, rows, n, a.q + at, a.scale + at / 32, a.sum32 + at / 32, a.sum16 + at / 16, w);
}

// Tiles round to bfloat16: only where the result will be rounded anyway, and for prompts alone, however few their rows.
bool Exec::attention_exact(const Op& op) const { return run.decode || !buffer(op.out).spec.act8 || !kn.wide; }

// Tokens of one call.
size_t Exec::attention_tokens(const Op& op) const {
  return (attention_exact(op) ? kAttentionRows : kn.attention_rows) / (op.heads / op.kv_heads);
}

void Exec::plan(Step& s) const {
  const Op& op = s.op;
  const size_t rows = op.out >= 0 ? rows_of(buffer(op.out)) : run.rows, threads = size_t(p.threads());
  s.unit = 1, s.least = s.most = 1, s.few = false;
  switch (op.kind) {
    case OpKind::matmul: {
      size_t units = 0;
      for (const Part& part : s.parts) units += part.groups;
      s.few = few(s, rows), s.chunks = 0;
      if (rows && s.few) plan_few(s, 1);
      if (rows && !s.few) plan_panel(s, units, rows, 1);
      break;
    }
    case OpKind::moe_up:
    case OpKind::moe_down: {
      const Matrix& w = matrix(s, 0);
      const size_t groups = groups_of(w.rows), copies = std::min(w.experts, rows);
      s.few = few(s, run.rows);
      if (s.few)
        plan_few(s, copies);
      else
        plan_panel(s, op.kind == OpKind::moe_up ? (groups + 1) / 2 : groups, run.rows, copies);
      break;
    }
    case OpKind::attention: {
      size_t n = 0;
      const size_t per = attention_tokens(op);
      for (const Placed& seg : run.segments) n += (seg.count + per - 1) / per * op.kv_heads;
      s.chunks = uint32_t(n);
      break;
    }
    case OpKind::short_conv:
      s.unit = run.rows <= kFewTokens || run.single ? 256 : 32;  // channels
      s.chunks = uint32_t((p.spec_.state.convolution[op.layer].d + s.unit - 1) / s.unit * run.segments.size());
      break;
    case OpKind::select:
    case OpKind::route: s.chunks = 1; break;
    case OpKind::rope:
      if (run.single && s.partner != SIZE_MAX) {  // attention does it, head by head
        s.chunks = 0;
        break;
      }
      [[fallthrough]];
    default:  // by rows
      s.unit = rows <= 2 ? 2 : std::max<size_t>(1, std::min<size_t>(16, rows / (threads * 4)));
      s.chunks = uint32_t((rows + s.unit - 1) / s.unit);
  }
}

// Does a product of so many rows stream the weights (matvec), or expand them (panel)? Speed decides only where the bits are the same.
bool Exec::few(const Step& s, size_t rows) const {
  if (one_arithmetic(kn, matrix(s, 0).format)) return rows <= kFewTokens;
  return run.decode || buffer(s.op.in).spec.selected;
}

// copies: how many times the whole matrix is walked (experts).
void Exec::plan_panel(Step& s, size_t units, size_t rows, size_t copies) const {
  const size_t threads = size_t(p.threads());
  s.blocks = 1, s.token_block = rows;
  s.unit = s.op.epilogue == Epilogue::gated ? 1 : 4;
  const size_t panels = (units + s.unit - 1) / s.unit;
  while (panels * copies * s.blocks < threads * 6 && rows / (s.blocks + 1) >= 48) s.blocks++;
  s.token_block = (rows + s.blocks - 1) / s.blocks;
  if (copies == 1) s.token_block = round_up(s.token_block, size_t(kn.tile_tokens)), s.blocks = (rows + s.token_block - 1) / s.token_block;
  size_t chunks = 0;
  if (s.parts.empty()) {
    chunks = (units + s.unit - 1) / s.unit;
  } else {
    for (const Part& part : s.parts) chunks += (part.groups + s.unit - 1) / s.unit;
  }
  s.chunks = uint32_t(chunks * s.blocks * copies);
}

void Exec::chunk(const Step& s, uint32_t c, float* scratch) const {
  const auto each_row = [&](auto&& f) {
    const size_t rows = rows_of(buffer(s.op.out >= 0 ? s.op.out : s.op.in));
    for (size_t r = c * s.unit; r < std::min(rows, (c + 1) * s.unit); r++) f(r);
  };
  switch (s.op.kind) {
    case OpKind::embed: return each_row([&](size_t r) { embed(s, r); });
    case OpKind::angles: return each_row([&](size_t r) { angles(s, r); });
    case OpKind::norm: return each_row([&](size_t r) { norm(s, r, scratch); });
    case OpKind::bias: return each_row([&](size_t r) { kn.add(buffer(s.op.out).row(r), vec(s.op.vec), buffer(s.op.out).spec.width); });
    case OpKind::rope:
      return each_row([&](size_t r) {
        for (size_t h = 0; h < s.op.kv_heads; h++) rope(s, r, h);
      });
    case OpKind::gather: return each_row([&](size_t r) { gather(s, r); });
    case OpKind::combine: return each_row([&](size_t r) { combine(s, r); });
    case OpKind::matmul: return matmul_panel(s, c, scratch);
    case OpKind::attention: return attention(s, c, scratch);
    case OpKind::short_conv: return short_conv(s, c, scratch);
    case OpKind::select: return select(s);
    case OpKind::route: return route(s);
    case OpKind::moe_up:
    case OpKind::moe_down: return expert(s, c, scratch);
  }
}

void Exec::embed(const Step& s, size_t row) const {
  const Matrix& w = matrix(s, 0);
  float* x = buffer(s.op.out).row(row);
  unpack_row(w.format, w.data, size_t(run.tokens[row]), w.k, x);
  if (s.op.scale != 1)
    for (size_t i = 0; i < w.k; i++) x[i] *= s.op.scale;
}

void Exec::angles(const Step& s, size_t row) const {
  float* out = buffer(s.op.out).row(row);
  const float* inv = vec(s.op.vec);
  for (size_t i = 0; i < s.op.pairs; i++) {
    const float a = float(run.pos[row]) * inv[i];
    out[i] = std::cos(a) * s.op.scale, out[s.op.pairs + i] = std::sin(a) * s.op.scale;
  }
}

void Exec::norm(const Step& s, size_t row, float* scratch) const {
  const Buffer &in = buffer(s.op.in), &out = buffer(s.op.out);
  const size_t k = in.spec.width;
  if (s.op.epilogue == Epilogue::add) {
    kn.rms_norm(in.row(row), vec(s.op.vec), s.op.eps, k, scratch);
    return kn.add(out.row(row), scratch, k);
  }
  float* y = out.spec.floats ? out.row(row) : scratch;
  kn.rms_norm(in.row(row), vec(s.op.vec), s.op.eps, k, y);
  emit(out, row, 1, 0, y, k, k);
}

// One key-value head of a row, with the query heads that share it.
void Exec::rope(const Step& s, size_t row, size_t kv_head) const {
  const Op& op = s.op;
  float* x = buffer(op.in).row(row);
  const float* turn = op.pairs ? buffer(op.in2).row(row) : nullptr;
  const size_t hd = op.head_dim, group = op.heads / op.kv_heads;
  const int64_t pos = run.pos[row];
  const auto ready = [&](float* h, const float* w) {
    if (w) kn.rms_norm(h, w, op.eps, hd, h);
    if (op.pairs) kn.rotate(h, turn, turn + op.pairs, op.pairs, op.pair_offset);
  };
  for (size_t h = kv_head * group; h < (kv_head + 1) * group; h++) ready(x + h * hd, vec(op.vec));
  float *key = x + (op.heads + kv_head) * hd, *value = x + (op.heads + op.kv_heads + kv_head) * hd;
  ready(key, vec(op.vec2));
  kn.store_key(key, hd, pos, p.slots_->keys(run.slot[row], op.layer, kv_head));
  kn.store_value(value, hd, pos, p.slots_->values(run.slot[row], op.layer, kv_head));
}

void Exec::attention(const Step& s, uint32_t c, float* scratch) const {
  const Op& op = s.op;
  const Buffer &in = buffer(op.in), &out = buffer(op.out);
  const size_t group = op.heads / op.kv_heads, per = attention_tokens(op), hd = op.head_dim;
  size_t i = c;
  const Placed* seg = run.segments.data();
  while (i >= (seg->count + per - 1) / per * op.kv_heads) i -= (seg->count + per - 1) / per * op.kv_heads, seg++;
  const size_t head = i % op.kv_heads, t0 = i / op.kv_heads * per, n = std::min(per, seg->count - t0), row0 = seg->first + t0;
  float* result = scratch + attention_scratch(hd, kn.attention_rows);
  if (run.single && s.partner != SIZE_MAX) rope(p.steps_[s.partner], row0, head);
  AttentionArgs a{};
  a.q = in.row(row0) + head * group * hd, a.q_stride = in.spec.width, a.group = group, a.hd = hd, a.tokens = n;
  a.k = p.slots_->keys(seg->slot, op.layer, head), a.v = p.slots_->values(seg->slot, op.layer, head);
  a.pos = seg->pos + int64_t(t0), a.window = op.window, a.scale = op.scale;
  if (op.in2 >= 0) a.gate = buffer(op.in2).row(row0) + head * group, a.gate_stride = buffer(op.in2).spec.width;
  a.out = result, a.out_stride = group * hd;
  const size_t after = (head + 1) % op.kv_heads;
  a.next_k = p.slots_->keys(seg->slot, op.layer, after), a.next_v = p.slots_->values(seg->slot, op.layer, after);
  a.exact = attention_exact(op);
  kn.attention(a, scratch);
  emit(out, row0, n, head * group * hd, result, group * hd, group * hd);
}

void Exec::short_conv(const Step& s, uint32_t c, float* scratch) const {
  const Op& op = s.op;
  const auto& state = p.spec_.state.convolution[op.layer];
  const size_t blocks = (state.d + s.unit - 1) / s.unit, c0 = c % blocks * s.unit, c1 = std::min(state.d, c0 + s.unit);
  const Placed& seg = run.segments[c / blocks];
  const Buffer &in = buffer(op.in), &out = buffer(op.out);
  float* result = scratch + conv_scratch(state.width, seg.count);
  const ConvArgs a{in.row(seg.first), state.d, state.width, seg.count, vec(op.vec), vec(op.vec2), p.slots_->ring(seg.slot, op.layer),
                   p.spec_.state.ring, seg.pos};
  kn.short_conv(a, c0, c1, result, c1 - c0, scratch);
  emit(out, seg.first, seg.count, c0, result, c1 - c0, c1 - c0);
}

void Exec::select(const Step& s) const {
  const Buffer &in = buffer(s.op.in), &out = buffer(s.op.out);
  for (size_t i = 0; i < run.selected.size(); i++) emit(out, i, 1, 0, in.row(run.selected[i]), in.spec.width, in.spec.width);
}

}  // namespace hw
