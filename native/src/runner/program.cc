#include "runner/program.h"

#include <algorithm>
#include <string>
#include <utility>

#include "formats/load.h"
#include "runner/exec.h"
#include "runner/layout.h"
#include "util/error.h"

namespace hw {

void check_program(const ProgramSpec& spec);  // runner/check.cc

namespace {

std::vector<Part> parts_of(const Op& op, const std::vector<Matrix>& matrices) {
  std::vector<Part> parts;
  size_t column = 0;
  for (size_t i = 0; i < op.matrices.size(); i++) {
    const Matrix& m = matrices[size_t(op.matrices[i])];
    const size_t groups = groups_of(m.rows);
    parts.push_back({i, op.epilogue == Epilogue::gated ? (groups + 1) / 2 : groups, column});
    column += m.rows;
    if (op.epilogue == Epilogue::gated) break;
  }
  return parts;
}

bool streams_weights(OpKind kind) { return kind == OpKind::matmul || kind == OpKind::moe_up || kind == OpKind::moe_down; }

}  // namespace

Program::Program(ProgramSpec spec, const Kernels& kernels) : spec_(std::move(spec)), kn_(kernels) {
  check_program(spec_);
  slots_ = std::make_unique<Slots>(spec_.state);
  run_ = std::make_unique<Run>();
  for (const Op& op : spec_.ops) {
    Step s;
    s.op = op;
    for (int m : op.matrices) s.group.push_back(group_bytes(info(spec_.matrices[size_t(m)].format), spec_.matrices[size_t(m)].k));
    if (op.kind == OpKind::matmul) s.parts = parts_of(op, spec_.matrices);
    steps_.push_back(std::move(s));
  }
  for (size_t i = steps_.size(), next = SIZE_MAX; i-- > 0;) {
    steps_[i].index = i, steps_[i].next_stream = next;
    if (streams_weights(steps_[i].op.kind)) next = i;
  }
  const std::vector<size_t> partner = partners(spec_.ops);
  for (size_t i = 0; i < steps_.size(); i++) steps_[i].partner = partner[i];
  size_t experts = 0;
  for (const Matrix& m : spec_.matrices) experts = std::max(experts, m.experts);
  run_->active.resize(experts), run_->begin.resize(experts + 1), run_->active.clear();
  place_buffers();
  scratch_floats_ = scratch_floats(spec_, kn_);
  scratch_ = Arena(scratch_floats_ * 4 * size_t(spec_.threads), false);
  stages_ = std::make_unique<Stages>(spec_.threads, steps_.size());
  pool_ = std::make_unique<Pool>(spec_.threads, spec_.cpus, [this](int worker, uint32_t epoch) { work(worker, epoch); });
}

void Program::place_buffers() {
  const Layout layout = lay_out(spec_, kn_.wide);
  memory_ = Arena(layout.bytes, false);
  for (size_t i = 0; i < spec_.buffers.size(); i++) {
    const BufferSpec& b = spec_.buffers[i];
    buffers_.push_back({b, place(spec_, b, kn_.wide, memory_.data() + layout.at[i]), layout.kept[i]});
  }
}

Program::~Program() = default;

size_t Program::memory() const { return memory_.size() + scratch_.size(); }
size_t Program::vocabulary() const { return spec_.logits < 0 ? 0 : buffers_[size_t(spec_.logits)].spec.width; }

bool Program::one_arithmetic() const {
  for (const Op& op : spec_.ops)
    for (int m : op.kind == OpKind::embed ? std::vector<int>() : op.matrices)
      if (!buffers_[size_t(op.in)].spec.selected && !hw::one_arithmetic(kn_, spec_.matrices[size_t(m)].format)) return false;
  return true;
}

const float* Program::logits(size_t row) const {
  check(spec_.logits >= 0 && row < run_->selected.size(), "logits: row " + std::to_string(row) + " was not asked for");
  return buffers_[size_t(spec_.logits)].row(row);
}

const float* Program::buffer(const std::string& name, size_t row) const {
  for (const Buffer& b : buffers_)
    if (b.spec.name == name && b.spec.floats && b.kept) {
      check(row < (b.spec.selected ? run_->selected.size() : run_->rows) * b.spec.copies, "buffer " + name + ": no row " + std::to_string(row));
      return b.row(row);
    }
  throw Error("buffer '" + name + "' does not exist, holds no floats or does not outlive the run");
}

size_t Program::run(const std::vector<Segment>& segments, bool decode) {
  Run& r = *run_;
  r.decode = decode;
  size_t total = 0, wanted = 0;
  std::vector<bool> seen(spec_.state.max_slots);
  const Matrix& table = spec_.matrices[size_t(spec_.ops[0].matrices[0])];
  for (const Segment& s : segments) {
    slots_->check_open(s.slot);
    check(!seen[size_t(s.slot)], "segments: slot " + std::to_string(s.slot) + " appears twice in one run");
    seen[size_t(s.slot)] = true;
    check(!s.tokens.empty(), "segments: no tokens for slot " + std::to_string(s.slot));
    check(slots_->length(s.slot) + int64_t(s.tokens.size()) <= slots_->capacity(),
          "context: slot " + std::to_string(s.slot) + " holds " + std::to_string(slots_->length(s.slot)) + " tokens and gets " +
              std::to_string(s.tokens.size()) + ", but its capacity is " + std::to_string(slots_->capacity()) + "; build the engine with a longer context");
    for (int32_t t : s.tokens)
      check(t >= 0 && size_t(t) < table.rows, "tokens: id " + std::to_string(t) + " is outside 0 to " + std::to_string(table.rows - 1));
    total += s.tokens.size();
    wanted += s.want == Want::all ? s.tokens.size() : s.want == Want::last ? 1 : 0;
  }
  check(total <= spec_.max_tokens, "run: " + std::to_string(total) + " tokens, at most " + std::to_string(spec_.max_tokens) + " at once");
  check(wanted <= spec_.max_selected, "run: logits of " + std::to_string(wanted) + " tokens, at most " + std::to_string(spec_.max_selected) + " at once");
  if (!total) return 0;
  for (Matrix& m : spec_.matrices) {  // experts are waited for when tokens are sent to them
    if (m.loading && m.experts == 1) m.ready(), m.loading.reset();
    if (m.loading && m.loading->over()) m.loading.reset();
  }
  r.rows = 0, r.segments.clear(), r.tokens.clear(), r.pos.clear(), r.slot.clear(), r.selected.clear();
  for (const Segment& s : segments) {
    const int64_t pos = slots_->length(s.slot);
    r.segments.push_back({s.slot, r.rows, s.tokens.size(), pos});
    for (size_t i = 0; i < s.tokens.size(); i++) {
      r.tokens.push_back(s.tokens[i]), r.pos.push_back(pos + int64_t(i)), r.slot.push_back(s.slot);
      if (s.want == Want::all || (s.want == Want::last && i + 1 == s.tokens.size())) r.selected.push_back(r.rows);
      r.rows++;
    }
  }
  r.single = r.rows == r.segments.size();
  plan(pool_->next_epoch());
  pool_->run();
  stages_->settle();
  for (const Matrix& m : spec_.matrices)
    if (m.loading) m.loading->over();  // a run over weights that could not be read counts for nothing
  for (const Segment& s : segments) slots_->advance(s.slot, int64_t(s.tokens.size()));
  return r.selected.size();
}

void Program::plan(uint32_t epoch) {
  stages_->set_epoch(epoch);
  const Exec exec{*this, kn_, *run_, 0};
  for (size_t i = 0; i < steps_.size(); i++) {
    exec.plan(steps_[i]);
    stages_->plan(i, steps_[i].chunks, epoch);
  }
}

void Program::work(int worker, uint32_t epoch) {
  const Exec exec{*this, kn_, *run_, worker, epoch};
  Warm next;
  float* scratch = scratch_.as<float>() + scratch_floats_ * size_t(worker);
  for (size_t i = 0; i < steps_.size(); i++) {
    const Step& s = steps_[i];
    uint32_t c;
    while (const uint32_t n = stages_->take(i, worker, epoch, s.least, s.most, c)) {
      if (s.few) exec.pieces(s, c, n, scratch);
      else exec.chunk(s, c, scratch), stages_->done(i, n);
    }
    while (!stages_->over(i) && exec.warm(s, next)) {
    }
    if (exec.takes_over(s) && !stages_->soon(i))
      while (const uint32_t n = stages_->take_over(i, worker, epoch, c)) exec.pieces(s, c, n, scratch);
    if (!stages_->wait(i, epoch)) return;
  }
}

}  // namespace hw
