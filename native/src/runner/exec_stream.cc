// Few tokens: matrices stream from memory, kStreams groups of rows at once. A chunk is a piece: two groups of a matrix, or two of the gate and
// the same two of the up matrix. A set is what one call of the kernel reads: pieces that follow each other, until the streams are used up.
#include <algorithm>

#include "runner/exec.h"

namespace hw {

namespace {

constexpr size_t kPiece = 2;          // groups: their 32 results are one block of activations
constexpr size_t kSetsAtOnce = 4;     // taken by a worker: locked instructions stop what is under way, so there should be few
constexpr size_t kWarmBytes = 16384;  // of a stream, fetched while waiting

size_t pieces_a_set(const Op& op) { return kStreams / kPiece / (op.epilogue == Epilogue::gated ? 2 : 1); }

size_t pieces_of(size_t groups) { return (groups + kPiece - 1) / kPiece; }

}  // namespace

// copies: matrices (active experts) that are walked.
void Exec::plan_few(Step& s, size_t copies) const {
  const bool gated = s.op.epilogue == Epilogue::gated, whole = gated || s.parts.empty();
  s.pieces = whole ? pieces_of(groups_of(matrix(s, 0).rows)) : 0;
  for (size_t i = 0; !whole && i < s.parts.size(); i++) s.pieces += pieces_of(s.parts[i].groups);
  s.least = uint32_t(pieces_a_set(s.op)), s.most = uint32_t(s.least * kSetsAtOnce);
  s.chunks = uint32_t(s.pieces * copies);
}

// `groups` groups from `first` on of the step's matrix (pair), the rows of which stand `offset` bytes into it.
void Exec::point(const Step& s, size_t which, size_t offset, size_t first, size_t groups, Set& set) const {
  const Matrix& w = matrix(s, which);
  const size_t gb = s.group[which];
  const bool gated = s.op.epilogue == Epilogue::gated;
  set.format = w.format, set.groups = groups, set.valid = std::min(groups * kRows, w.rows - first * kRows);
  set.io.count = gated ? 2 * groups : groups;
  for (size_t j = 0; j < groups; j++) {
    set.io.at[j] = w.data + offset + (first + j) * gb;
    if (gated) set.io.at[groups + j] = matrix(s, 1).data + offset + (first + j) * gb;
  }
}

// The set that starts at a piece: its pieces, at most `most`; 0: there is no such piece.
size_t Exec::find_set(const Step& s, size_t piece, size_t most, Set& set) const {
  size_t groups = groups_of(matrix(s, 0).rows), which = 0, offset = 0;
  set.column = 0, set.row = 0, set.tokens = rows_of(buffer(s.op.in));
  if (s.parts.empty()) {
    if (piece / s.pieces >= run.active.size()) return 0;
    const size_t e = run.active[piece / s.pieces];
    piece %= s.pieces, offset = e * groups * s.group[0];
    set.row = run.begin[e], set.tokens = run.begin[e + 1] - run.begin[e];
  } else if (s.op.epilogue != Epilogue::gated) {
    const Part* part = s.parts.data();
    for (size_t n; part != s.parts.data() + s.parts.size() && piece >= (n = pieces_of(part->groups)); part++) piece -= n;
    if (part == s.parts.data() + s.parts.size()) return 0;
    groups = part->groups, which = part->matrix, set.column = part->column;
  }
  const size_t first = piece * kPiece;
  if (first >= groups) return 0;
  const size_t n = std::min(groups - first, std::min(most, pieces_a_set(s.op)) * kPiece);
  point(s, which, offset, first, n, set);
  set.column += first * kRows;
  return pieces_of(n);
}

// The first set of this worker's share of the next matrices. Experts are known once the step before theirs is over.
bool Exec::next_set(const Step& s, Set& set) const {
  if (s.next_stream == SIZE_MAX) return false;
  const Step& n = p.steps_[s.next_stream];
  if (!n.few || (n.op.kind == OpKind::moe_up && s.op.kind != OpKind::gather)) return false;
  return find_set(n, p.stages_->own_begin(s.next_stream, worker), n.most, set) > 0;
}

// A set of `count` chunks of a bite (or nullptr). False: another worker does them, and nothing was written.
bool Exec::stream(const Step& s, Set& set, const Set* next, float* scratch, Stages::Bite* bite, uint32_t count) const {
  constexpr size_t wide = kStreams * kRows;
  for (size_t j = 0; j < set.io.count; j++) set.io.next[j] = next ? next->io.at[std::min(j, next->io.count - 1)] : set.io.at[j];
  const Acts& in = buffer(s.op.in).acts;
  const size_t turns = (set.tokens + kTokensAtOnce - 1) / kTokensAtOnce;
  if (bite && turns > 1 && !p.stages_->keep(*bite, count)) return false;  // the first turn writes before the last is known
  for (size_t i = 0; i < turns; i++) {
    const size_t t = set.tokens * i / turns, nt = set.tokens * (i + 1) / turns - t;
    kn.matvec(set.format, set.io, in, set.row + t, int(nt), scratch, wide);
    if (s.op.epilogue == Epilogue::gated) kn.gate(s.op.gate, scratch, scratch + set.groups * kRows, wide, nt, set.valid);
    if (bite && turns == 1 && !p.stages_->keep(*bite, count)) return false;
    store(s, set.row + t, nt, set.column, scratch, wide, set.valid);
  }
  return true;
}

void Exec::fetch_state(const Step& s) const {
  const auto fetch = [](const void* at, size_t bytes) {
    for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const char*>(at) + b, 0, 2);
  };
  const Op& op = s.op;
  const size_t begin = p.stages_->own_begin(s.index, worker), end = p.stages_->own_begin(s.index, worker + 1);
  if (op.kind == OpKind::norm && op.vec >= 0) fetch(vec(op.vec), buffer(op.in).spec.width * 4);
  if (op.kind == OpKind::attention && run.rows == 1) {
    const size_t hd = op.head_dim;
    for (size_t h = begin; h < end; h++) {
      fetch(p.slots_->keys(run.slot[0], op.layer, h) + size_t(run.pos[0]) / 16 * 16 * hd, 32 * hd);
      fetch(p.slots_->values(run.slot[0], op.layer, h) + size_t(run.pos[0]) * hd, 2 * hd);
    }
  }
  if (op.kind == OpKind::short_conv && run.rows == 1) {
    const auto& state = p.spec_.state.convolution[op.layer];
    const size_t c0 = begin * s.unit, n = std::min(state.d, end * s.unit) - c0;
    for (size_t j = 0; j < state.width; j++) {
      fetch(vec(op.vec) + j * state.d + c0, n * 4);
      const size_t row = size_t(run.pos[0] + int64_t(p.spec_.state.ring) - int64_t(j)) % p.spec_.state.ring;
      fetch(p.slots_->ring(run.slot[0], op.layer) + row * state.d + c0, n * 4);
    }
  }
}

void Exec::pieces(const Step& s, uint32_t first, uint32_t count, float* scratch) const {
  Set set, next;
  const uint32_t end = first + count;
  const bool ours = end < p.stages_->own_begin(s.index, worker + 1);  // what comes behind them
  Stages::Bite bite{};
  Stages::Bite* const shown = takes_over(s) ? &(bite = p.stages_->show(s.index, worker, epoch, first, count)) : nullptr;
  size_t c = first;
  for (size_t n; c < end && (n = find_set(s, c, end - c, set)) > 0; c += n) {
    if (c + n >= end && !ours)
      for (size_t i = s.index + 1; i < std::min(s.next_stream, p.steps_.size()); i++) fetch_state(p.steps_[i]);
    const bool more = c + n < end || ours, known = more ? find_set(s, c + n, s.most, next) > 0 : next_set(s, next);
    if (!stream(s, set, known ? &next : nullptr, scratch, shown, uint32_t(n))) return;
    p.stages_->done(s.index, uint32_t(n));
  }
  if (c < end) p.stages_->done(s.index, uint32_t(end - c));  // of experts that no token has chosen
}

bool Exec::warm(const Step& s, Warm& w) const {
  if (w.step != s.next_stream) {
    w.at = next_set(s, w.set) ? 0 : kWarmBytes;
    w.step = s.next_stream;
  }
  if (w.at >= kWarmBytes) return false;
  for (size_t j = 0; j < w.set.io.count; j++) __builtin_prefetch(w.set.io.at[j] + w.at, 0, 2);
  w.at += 64;
  return true;
}

}  // namespace hw
