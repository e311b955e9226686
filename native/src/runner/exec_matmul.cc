// The matmul ops of the runner: which rows of which matrix a chunk is, and where its results go.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "runner/exec.h"

namespace hw {

void Exec::store(const Step& s, size_t row, size_t rows, size_t column, const float* x, size_t ldx, size_t n) const {
  const Buffer& out = buffer(s.op.out);
  if (s.op.epilogue != Epilogue::add) return emit(out, row, rows, column, x, ldx, n);
  for (size_t r = 0; r < rows; r++) kn.add(out.row(row + r) + column, x + r * ldx, n);
}

void Exec::matmul(const Step& s, uint32_t c, float* scratch) const {
  if (s.few)
    matmul_few(s, c, scratch);
  else
    matmul_panel(s, c, scratch);
}

// Units [g0, g1) are pairs of groups: 32 rows of the gate and of the up matrix make 32 outputs, one activation block.
void Exec::gated_few(const Step& s, const Matrix* w, const uint8_t* w0, const uint8_t* w1, size_t g0, size_t g1, const Acts& in, size_t row0,
                     size_t rows, float* scratch) const {
  const size_t gb = group_bytes(info(w->format), w->k), first = 2 * g0, last = std::min(2 * g1, groups_of(w->rows)), n = last - first;
  float *a = scratch, *b = scratch + 4 * n * 16;
  for (size_t t = 0; t < rows; t += 4) {
    const int nt = int(std::min<size_t>(4, rows - t));
    kn.matvec(w->format, w0 + first * gb, n, in, row0 + t, nt, a, n * 16);
    kn.matvec(w->format, w1 + first * gb, n, in, row0 + t, nt, b, n * 16);
    const size_t valid = std::min(n * 16, w->rows - first * 16);
    kn.gate(s.op.gate, a, b, n * 16, size_t(nt), valid);
    store(s, row0 + t, size_t(nt), first * 16, a, n * 16, valid);
  }
}

void Exec::matmul_few(const Step& s, uint32_t c, float* scratch) const {
  const Acts& in = buffer(s.op.in).acts;
  const size_t rows = rows_of(buffer(s.op.in));
  size_t i = c;
  const Part* part = s.parts.data();
  while (i >= (part->groups + s.unit - 1) / s.unit) i -= (part->groups + s.unit - 1) / s.unit, part++;
  const size_t g0 = i * s.unit, g1 = std::min(part->groups, g0 + s.unit);
  const Matrix& w = matrix(s, part->matrix);
  if (s.op.epilogue == Epilogue::gated) return gated_few(s, &w, w.data, matrix(s, 1).data, g0, g1, in, 0, rows, scratch);
  const size_t gb = group_bytes(info(w.format), w.k), n = (g1 - g0) * 16, valid = std::min(n, w.rows - g0 * 16);
  for (size_t t = 0; t < rows; t += 4) {
    const int nt = int(std::min<size_t>(4, rows - t));
    kn.matvec(w.format, w.data + g0 * gb, g1 - g0, in, t, nt, scratch, n);
    store(s, t, size_t(nt), part->column + g0 * 16, scratch, n, valid);
  }
}

void Exec::matmul_panel(const Step& s, uint32_t c, float* scratch) const {
  const Acts& in = buffer(s.op.in).acts;
  const size_t rows = rows_of(buffer(s.op.in)), t0 = c % s.blocks * s.token_block, n = std::min(s.token_block, rows - t0);
  size_t i = c / s.blocks;
  const Part* part = s.parts.data();
  while (i >= (part->groups + s.unit - 1) / s.unit) i -= (part->groups + s.unit - 1) / s.unit, part++;
  const Matrix& w = matrix(s, part->matrix);
  const size_t gb = group_bytes(info(w.format), w.k), groups = groups_of(w.rows);
  const uint8_t* four[4];
  if (s.op.epilogue == Epilogue::gated) {
    for (size_t j = 0; j < 4; j++) {
      const size_t g = 2 * i + (j & 1);
      four[j] = g < groups ? (j < 2 ? w : matrix(s, 1)).data + g * gb : nullptr;
    }
    kn.panel(w.format, four, in, t0, n, scratch);
    const size_t valid = std::min<size_t>(32, w.rows - 32 * i);
    kn.gate(s.op.gate, scratch, scratch + 32, kPanelRows, n, valid);
    return store(s, t0, n, 32 * i, scratch, kPanelRows, valid);
  }
  for (size_t j = 0; j < 4; j++) four[j] = 4 * i + j < groups ? w.data + (4 * i + j) * gb : nullptr;
  kn.panel(w.format, four, in, t0, n, scratch);
  const size_t valid = std::min<size_t>(64, w.rows - 64 * i);
  store(s, t0, n, part->column + 64 * i, scratch, kPanelRows, valid);
}

void Exec::warm(const Step& s, uint32_t own) const {
  if (!s.few || s.op.kind != OpKind::matmul || s.parts.empty()) return;
  size_t i = own;
  const Part* part = s.parts.data();
  for (;; part++) {
    if (part == s.parts.data() + s.parts.size()) return;
    const size_t n = (part->groups + s.unit - 1) / s.unit;
    if (i < n) break;
    i -= n;
  }
  const Matrix& w = matrix(s, part->matrix);
  const uint8_t* from = w.data + i * s.unit * (s.op.epilogue == Epilogue::gated ? 2 : 1) * group_bytes(info(w.format), w.k);
  for (size_t b = 0; b < 8192; b += 64) __builtin_prefetch(from + b, 0, 2);
}

// Each token's experts: the top_k largest of sigmoid(logit) + bias (ties: the lower number), shares from the sigmoid alone.
void Exec::route(const Step& s) const {
  const Op& op = s.op;
  const Buffer& logits = buffer(op.in2);
  const size_t experts = logits.spec.width, n = run.rows * op.top_k;
  const float* bias = vec(op.vec);
  run.place.resize(n), run.token.resize(n), run.share.resize(n);
  run.begin.assign(experts + 1, 0);
  std::vector<uint32_t> chosen(n);
  std::vector<float> p(experts), score(experts);
  for (size_t t = 0; t < run.rows; t++) {
    const float* x = logits.row(t);
    for (size_t e = 0; e < experts; e++) p[e] = 1.0f / (1.0f + std::exp(-x[e])), score[e] = p[e] + (bias ? bias[e] : 0.0f);
    float sum = 0;
    for (size_t j = 0; j < op.top_k; j++) {
      const size_t best = size_t(std::max_element(score.begin(), score.end()) - score.begin());
      score[best] = -INFINITY;
      chosen[t * op.top_k + j] = uint32_t(best), run.share[t * op.top_k + j] = p[best], sum += p[best];
      run.begin[best + 1]++;
    }
    for (size_t j = 0; j < op.top_k; j++) run.share[t * op.top_k + j] *= op.scale / (op.normalize ? sum + 1e-6f : 1.0f);
  }
  run.active.clear();
  for (size_t e = 0; e < experts; e++) {
    if (run.begin[e + 1]) run.active.push_back(e);
    run.begin[e + 1] += run.begin[e];
  }
  std::vector<size_t> next(run.begin.begin(), run.begin.end() - 1);
  for (size_t i = 0; i < n; i++) {
    const size_t at = next[chosen[i]]++;
    run.place[i] = uint32_t(at), run.token[at] = uint32_t(i / op.top_k);
  }
}

void Exec::gather(const Step& s, size_t row) const {
  const Buffer &in = buffer(s.op.in), &out = buffer(s.op.out);
  const size_t w = in.spec.width, from = run.token[row] * w, to = row * w;
  if (out.spec.floats) memcpy(out.acts.f + to, in.acts.f + from, w * 4);
  if (!out.spec.act8) return;
  const size_t stride = in.acts.wide_stride;
  if (wide(out)) {
    memcpy(out.acts.wide + row * stride, in.acts.wide + run.token[row] * stride, w * 2);
    return;
  }
  memcpy(out.acts.q + to, in.acts.q + from, w);
  memcpy(out.acts.scale + to / 32, in.acts.scale + from / 32, w / 8);
  memcpy(out.acts.sum32 + to / 32, in.acts.sum32 + from / 32, w / 8);
  memcpy(out.acts.sum16 + to / 16, in.acts.sum16 + from / 16, w / 4);
}

// One chunk of moe_up (gated) or moe_down (store) of one active expert; rows are the sorted list.
void Exec::expert(const Step& s, uint32_t c, float* scratch) const {
  const Matrix& w = matrix(s, 0);
  const bool up = s.op.kind == OpKind::moe_up;
  const size_t groups = groups_of(w.rows), units = up ? (groups + 1) / 2 : groups, parts = (units + s.unit - 1) / s.unit;
  const size_t which = c / (parts * s.blocks), part = c / s.blocks % parts;
  if (which >= run.active.size()) return;
  const size_t e = run.active[which], begin = run.begin[e], total = run.begin[e + 1] - begin;
  const size_t block = round_up((total + s.blocks - 1) / s.blocks, size_t(kn.tile_tokens)), t0 = c % s.blocks * block;
  if (t0 >= total) return;
  const size_t n = std::min(block, total - t0), row0 = begin + t0, gb = group_bytes(info(w.format), w.k);
  const Acts& in = buffer(s.op.in).acts;
  const uint8_t *w0 = w.data + e * w.bytes_per_expert(), *w1 = up ? matrix(s, 1).data + e * w.bytes_per_expert() : nullptr;
  const size_t u0 = part * s.unit, u1 = std::min(units, u0 + s.unit);
  if (n <= kFewTokens && !wide(buffer(s.op.in))) {
    if (up) return gated_few(s, &w, w0, w1, u0, u1, in, row0, n, scratch);
    const size_t wide = (u1 - u0) * 16, valid = std::min(wide, w.rows - u0 * 16);
    for (size_t t = 0; t < n; t += 4) {
      const int nt = int(std::min<size_t>(4, n - t));
      kn.matvec(w.format, w0 + u0 * gb, u1 - u0, in, row0 + t, nt, scratch, wide);
      store(s, row0 + t, size_t(nt), u0 * 16, scratch, wide, valid);
    }
    return;
  }
  for (size_t u = u0; u < u1; u += up ? 1 : 4) {
    const uint8_t* four[4];
    for (size_t j = 0; j < 4; j++) {
      const size_t g = up ? 2 * u + (j & 1) : u + j;
      four[j] = g < (up ? groups : u1) ? (up && j >= 2 ? w1 : w0) + g * gb : nullptr;
    }
    kn.panel(w.format, four, in, row0, n, scratch);
    const size_t valid = up ? std::min<size_t>(32, w.rows - 32 * u) : std::min<size_t>(std::min<size_t>(64, (u1 - u) * 16), w.rows - 16 * u);
    if (up) kn.gate(s.op.gate, scratch, scratch + 32, kPanelRows, n, valid);
    store(s, row0, n, (up ? 32 : 16) * u, scratch, kPanelRows, valid);
  }
}

void Exec::combine(const Step& s, size_t row) const {
  const Buffer &in = buffer(s.op.in), &out = buffer(s.op.out);
  for (size_t j = 0; j < s.op.top_k; j++) {
    const size_t i = row * s.op.top_k + j;
    kn.add_scaled(out.row(row), in.row(run.place[i]), run.share[i], in.spec.width);
  }
}

}  // namespace hw
