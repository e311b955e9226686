// The matmul ops of the runner: which rows of which matrix a chunk is, and where its results go.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "formats/load.h"
#include "runner/exec.h"

namespace hw {

void Exec::store(const Step& s, size_t row, size_t rows, size_t column, const float* x, size_t ldx, size_t n) const {
  const Buffer& out = buffer(s.op.out);
  if (s.op.epilogue != Epilogue::add) return emit(out, row, rows, column, x, ldx, n);
  for (size_t r = 0; r < rows; r++) kn.add(out.row(row + r) + column, x + r * ldx, n);
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
  constexpr float least = std::numeric_limits<float>::lowest();  // of who can be chosen: no expert twice, even where scores are no numbers
  for (size_t t = 0; t < run.rows; t++) {
    const float* x = logits.row(t);
    for (size_t e = 0; e < experts; e++) {
      p[e] = 1.0f / (1.0f + std::exp(-x[e]));
      const float with = p[e] + (bias ? bias[e] : 0.0f);
      score[e] = with > least ? with : least;
    }
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
  need_experts(s);
}

// The chosen experts' weights are there from here on, or the run will count for nothing.
void Exec::need_experts(const Step& s) const {
  std::vector<size_t> parts;
  Loading* loading = nullptr;
  for (size_t i = s.index + 1; i < p.steps_.size() && p.steps_[i].op.kind != OpKind::route; i++) {
    const Step& next = p.steps_[i];
    if (next.op.kind != OpKind::moe_up && next.op.kind != OpKind::moe_down) continue;
    for (size_t m = 0; m < next.op.matrices.size(); m++) {
      const Matrix& w = matrix(next, m);
      if (!w.loading) continue;
      loading = w.loading.get();
      for (size_t e : run.active) parts.push_back(w.part + e);
    }
  }
  if (loading) loading->need(parts);
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

// A panel chunk of moe_up (gated) or moe_down (store) of one active expert; rows are the sorted list.
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
  if (few(s, n)) {
    const size_t first = up ? 2 * u0 : u0, last = std::min(groups, up ? 2 * u1 : u1), per = up ? kStreams / 2 : kStreams;
    Set set;
    set.row = row0, set.tokens = n;
    for (size_t g = first; g < last; g += per) {
      point(s, 0, e * w.bytes_per_expert(), g, std::min(per, last - g), set);
      set.column = g * kRows;
      stream(s, set, nullptr, scratch, nullptr, 0);
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
