// Few tokens: matrices stream from memory, kStreams groups of rows at once. A set is what one call of the kernel reads: eight groups of one
// matrix, or four of the gate and the same four of the up matrix. A chunk is `unit` sets; a worker's chunks follow each other in memory.
#include <algorithm>

#include "runner/exec.h"

namespace hw {

namespace {

constexpr size_t kChunkBytes = 65536;  // chunks of fewer bytes are not worth taking one by one
constexpr size_t kWarmBytes = 16384;   // of a stream, fetched while waiting

size_t groups_a_set(const Op& op) { return op.epilogue == Epilogue::gated ? kStreams / 2 : kStreams; }

}  // namespace

// copies: matrices (active experts) that are walked.
void Exec::plan_few(Step& s, size_t copies) const {
  const Matrix& w = matrix(s, 0);
  const size_t per = groups_a_set(s.op), threads = size_t(p.threads());
  const bool whole = s.parts.empty() || s.op.epilogue == Epilogue::gated;
  s.sets = whole ? (groups_of(w.rows) + per - 1) / per : 0;
  for (size_t i = 0; !whole && i < s.parts.size(); i++) s.sets += (s.parts[i].groups + per - 1) / per;
  const size_t sets = s.sets * copies, bytes = kStreams * group_bytes(info(w.format), w.k);
  s.unit = std::min((kChunkBytes + bytes - 1) / bytes, std::max<size_t>(1, sets / (threads * 8)));
  s.chunks = uint32_t((sets + s.unit - 1) / s.unit);
}

// `groups` groups from `first` on of the step's matrix (pair), the rows of which stand `offset` bytes into it.
void Exec::point(const Step& s, size_t which, size_t offset, size_t first, size_t groups, Set& set) const {
  const Matrix& w = matrix(s, which);
  const size_t gb = group_bytes(info(w.format), w.k);
  const bool gated = s.op.epilogue == Epilogue::gated;
  set.format = w.format, set.groups = groups, set.valid = std::min(groups * kRows, w.rows - first * kRows);
  set.io.count = gated ? 2 * groups : groups;
  for (size_t j = 0; j < groups; j++) {
    set.io.at[j] = w.data + offset + (first + j) * gb;
    if (gated) set.io.at[groups + j] = matrix(s, 1).data + offset + (first + j) * gb;
  }
}

bool Exec::find_set(const Step& s, size_t i, Set& set) const {
  const size_t per = groups_a_set(s.op);
  size_t groups = groups_of(matrix(s, 0).rows), which = 0, offset = 0;
  set.column = 0, set.row = 0, set.tokens = rows_of(buffer(s.op.in));
  if (s.parts.empty()) {
    if (i / s.sets >= run.active.size()) return false;
    const size_t e = run.active[i / s.sets];
    i %= s.sets, offset = e * matrix(s, 0).bytes_per_expert();
    set.row = run.begin[e], set.tokens = run.begin[e + 1] - run.begin[e];
  } else if (s.op.epilogue != Epilogue::gated) {
    const Part* part = s.parts.data();
    for (size_t n; i >= (n = (part->groups + per - 1) / per); i -= n)
      if (++part == s.parts.data() + s.parts.size()) return false;
    groups = part->groups, which = part->matrix, set.column = part->column;
  }
  if (i >= (groups + per - 1) / per) return false;
  point(s, which, offset, i * per, std::min(per, groups - i * per), set);
  set.column += i * per * kRows;
  return true;
}

// The first set of this worker's share of the next matrices. Experts are known once the step before theirs is over.
bool Exec::next_set(const Step& s, Set& set) const {
  if (s.next_stream == SIZE_MAX) return false;
  const Step& n = p.steps_[s.next_stream];
  if (!n.few || (n.op.kind == OpKind::moe_up && s.op.kind != OpKind::gather)) return false;
  return find_set(n, p.stages_->own_begin(s.next_stream, worker) * n.unit, set);
}

void Exec::stream(const Step& s, Set& set, const Set* next, float* scratch) const {
  constexpr size_t wide = kStreams * kRows;
  for (size_t j = 0; j < set.io.count; j++) set.io.next[j] = next ? next->io.at[std::min(j, next->io.count - 1)] : set.io.at[j];
  const Acts& in = buffer(s.op.in).acts;
  for (size_t t = 0; t < set.tokens; t += 4) {
    const size_t nt = std::min<size_t>(4, set.tokens - t);
    kn.matvec(set.format, set.io, in, set.row + t, int(nt), scratch, wide);
    if (s.op.epilogue == Epilogue::gated) kn.gate(s.op.gate, scratch, scratch + set.groups * kRows, wide, nt, set.valid);
    store(s, set.row + t, nt, set.column, scratch, wide, set.valid);
  }
}

void Exec::matmul_few(const Step& s, uint32_t c, float* scratch) const {
  Set set, next;
  const size_t end = (c + 1) * s.unit;
  const bool last = c + 1 >= p.stages_->own_begin(s.index, worker + 1);  // of our share
  bool more = find_set(s, c * s.unit, set);
  for (size_t i = c * s.unit + 1; more; i++) {
    more = find_set(s, i, next) && i < end;
    const bool known = more || (last ? next_set(s, next) : find_set(s, i, next));
    stream(s, set, known ? &next : nullptr, scratch);
    set = next;
  }
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
