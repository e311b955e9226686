// Program (with its slots) and Sampler.
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <map>

#include "python/bindings.h"
#include "runner/program.h"
#include "runner/sampler.h"
#include "util/error.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hw {

namespace {

template <class T>
T named(const std::map<std::string, T>& table, const std::string& name, const char* what) {
  const auto it = table.find(name);
  if (it != table.end()) return it->second;
  std::string all;
  for (const auto& [k, v] : table) all += (all.empty() ? "" : ", ") + k;
  throw Error(std::string(what) + " '" + name + "' is unknown; allowed: " + all);
}

const std::map<std::string, OpKind> kKinds = {
    {"embed", OpKind::embed}, {"angles", OpKind::angles}, {"norm", OpKind::norm}, {"bias", OpKind::bias}, {"matmul", OpKind::matmul}, {"rope", OpKind::rope},
    {"attention", OpKind::attention}, {"short_conv", OpKind::short_conv}, {"select", OpKind::select}, {"route", OpKind::route},
    {"gather", OpKind::gather}, {"moe_up", OpKind::moe_up}, {"moe_down", OpKind::moe_down}, {"combine", OpKind::combine}};
const std::map<std::string, Epilogue> kEpilogues = {{"store", Epilogue::store}, {"add", Epilogue::add}, {"gated", Epilogue::gated}};
const std::map<std::string, Gate> kGates = {{"silu", Gate::silu}, {"gelu_tanh", Gate::gelu_tanh}};
const std::map<std::string, Want> kWants = {{"none", Want::none}, {"last", Want::last}, {"all", Want::all}};

Op op_of(const nb::dict& d) {
  Op op;
  for (auto [key, value] : d) {
    const std::string k = nb::cast<std::string>(key);
    const auto count = [&] { return nb::cast<size_t>(value); };
    if (k == "kind") op.kind = named(kKinds, nb::cast<std::string>(value), "op");
    else if (k == "in") op.in = nb::cast<int>(value);
    else if (k == "in2") op.in2 = nb::cast<int>(value);
    else if (k == "out") op.out = nb::cast<int>(value);
    else if (k == "matrices") op.matrices = nb::cast<std::vector<int>>(value);
    else if (k == "vec") op.vec = nb::cast<int>(value);
    else if (k == "vec2") op.vec2 = nb::cast<int>(value);
    else if (k == "epilogue") op.epilogue = named(kEpilogues, nb::cast<std::string>(value), "epilogue");
    else if (k == "gate") op.gate = named(kGates, nb::cast<std::string>(value), "gate");
    else if (k == "eps") op.eps = nb::cast<float>(value);
    else if (k == "scale") op.scale = nb::cast<float>(value);
    else if (k == "heads") op.heads = count();
    else if (k == "kv_heads") op.kv_heads = count();
    else if (k == "head_dim") op.head_dim = count();
    else if (k == "pairs") op.pairs = count();
    else if (k == "pair_offset") op.pair_offset = count();
    else if (k == "layer") op.layer = count();
    else if (k == "window") op.window = nb::cast<int64_t>(value);
    else if (k == "top_k") op.top_k = count();
    else if (k == "normalize") op.normalize = nb::cast<bool>(value);
    else throw Error("op: the field '" + k + "' is unknown");
  }
  if (op.kind == OpKind::moe_up) op.epilogue = Epilogue::gated;
  return op;
}

BufferSpec buffer_of(const nb::dict& d) {
  BufferSpec b;
  for (auto [key, value] : d) {
    const std::string k = nb::cast<std::string>(key);
    if (k == "name") b.name = nb::cast<std::string>(value);
    else if (k == "width") b.width = nb::cast<size_t>(value);
    else if (k == "floats") b.floats = nb::cast<bool>(value);
    else if (k == "int8") b.act8 = nb::cast<bool>(value);
    else if (k == "selected") b.selected = nb::cast<bool>(value);
    else if (k == "copies") b.copies = nb::cast<size_t>(value);
    else throw Error("buffer: the field '" + k + "' is unknown");
  }
  return b;
}

using Vector = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Pairs = std::vector<std::pair<size_t, size_t>>;

std::unique_ptr<Program> make_program(const std::vector<nb::dict>& buffers, const std::vector<nb::dict>& ops, const std::vector<Matrix>& matrices,
                                      const std::vector<Vector>& vectors, const Pairs& attention, const Pairs& convolution, size_t ring,
                                      size_t capacity, size_t max_slots, size_t max_tokens, size_t max_selected, int logits, int threads,
                                      const std::vector<int>& cpus) {
  ProgramSpec s;
  for (const nb::dict& b : buffers) s.buffers.push_back(buffer_of(b));
  for (const nb::dict& o : ops) s.ops.push_back(op_of(o));
  s.matrices = matrices;
  for (const Vector& v : vectors) s.vectors.emplace_back(v.data(), v.data() + v.size());
  for (auto [heads, hd] : attention) s.state.attention.push_back({heads, hd});
  for (auto [d, width] : convolution) s.state.convolution.push_back({d, width});
  s.state.ring = ring, s.state.capacity = capacity, s.state.max_slots = max_slots;
  s.max_tokens = max_tokens, s.max_selected = max_selected, s.logits = logits, s.threads = threads, s.cpus = cpus;
  return std::make_unique<Program>(std::move(s), default_kernels());
}

using Work = std::vector<std::tuple<int, std::vector<int32_t>, std::string>>;

std::vector<Segment> segments_of(const Work& work) {
  std::vector<Segment> out;
  for (const auto& [slot, tokens, want] : work) out.push_back({slot, tokens, named(kWants, want, "logits")});
  return out;
}

nb::object rows_to_numpy(const float* rows, size_t n, size_t width) {
  auto* copy = new std::vector<float>(rows, rows + n * width);
  nb::capsule owner(copy, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(copy->data(), {n, width}, owner));
}

nb::tuple picked_to_python(const Picked& p) { return nb::make_tuple(p.token, p.logprob, nb::cast(p.likely)); }

// One token after another in C++ until a stop token, `count` tokens or a full slot: no Python between tokens.
std::vector<int32_t> decode(Program& program, int slot, int32_t token, size_t count, Sampler& sampler, const std::vector<int32_t>& stop) {
  std::vector<int32_t> out;
  nb::gil_scoped_release free;
  while (out.size() < count && program.slots().length(slot) < program.slots().capacity()) {
    program.run({{slot, {token}, Want::last}});
    token = sampler.pick(program.logits(0), program.vocabulary()).token;
    sampler.saw(token);
    out.push_back(token);
    if (std::find(stop.begin(), stop.end(), token) != stop.end()) break;
  }
  return out;
}

}  // namespace

void bind_program(nb::module_& m) {
  nb::class_<Sampler>(m, "Sampler", "Picks tokens: penalty, temperature, top-k, top-p, min-p")
      .def("__init__", [](Sampler* self, float temperature, int top_k, float top_p, float min_p, float repetition_penalty, int logprobs, uint64_t seed) {
        SamplingOptions o;
        o.temperature = temperature, o.top_k = top_k, o.top_p = top_p, o.min_p = min_p, o.repetition_penalty = repetition_penalty, o.logprobs = logprobs;
        new (self) Sampler(o, seed);
      }, nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "repetition_penalty"_a, "logprobs"_a, "seed"_a)
      .def("saw", [](Sampler& s, const std::vector<int32_t>& tokens) {
        for (int32_t t : tokens) s.saw(t);
      }, "tokens"_a)
      .def("pick", [](Sampler& s, const Program& p, size_t row) {
        Picked r;
        {
          nb::gil_scoped_release free;
          r = s.pick(p.logits(row), p.vocabulary());
        }
        return picked_to_python(r);
      }, "program"_a, "row"_a, "(token, logprob, [(token, logprob), ...]) from a row of the last run's logits")
      .def("pick_from", [](Sampler& s, const Vector& logits) { return picked_to_python(s.pick(logits.data(), logits.size())); }, "logits"_a);

  nb::class_<Program>(m, "Program", "Fused ops over buffers, with sequence slots")
      .def(nb::new_(&make_program), nb::kw_only(), "buffers"_a, "ops"_a, "matrices"_a, "vectors"_a, "attention"_a, "convolution"_a, "ring"_a,
           "capacity"_a, "max_slots"_a, "max_tokens"_a, "max_selected"_a, "logits"_a, "threads"_a, "cpus"_a)
      .def("run", [](Program& p, const Work& work) {
        const auto segments = segments_of(work);
        nb::gil_scoped_release free;
        return p.run(segments);
      }, "segments"_a, "[(slot, tokens, 'none' | 'last' | 'all')] -> rows of logits")
      .def("logits", [](const Program& p, size_t n) { return rows_to_numpy(n ? p.logits(0) : nullptr, (n ? p.logits(n - 1) : nullptr, n), p.vocabulary()); }, "rows"_a)
      .def("buffer", [](const Program& p, const std::string& name, size_t row, size_t width) { return rows_to_numpy(p.buffer(name, row), 1, width); })
      .def("decode", &decode, "slot"_a, "token"_a, "count"_a, "sampler"_a, "stop"_a)
      .def("open", [](Program& p) { return p.slots().open(); })
      .def("close", [](Program& p, int slot) { p.slots().close(slot); }, "slot"_a)
      .def("copy", [](Program& p, int from, int to) { p.slots().copy(from, to); }, "source"_a, "target"_a)
      .def("rewind", [](Program& p, int slot, int64_t length) { p.slots().rewind(slot, length); }, "slot"_a, "length"_a)
      .def("length", [](const Program& p, int slot) { return const_cast<Program&>(p).slots().length(slot); }, "slot"_a)
      .def_prop_ro("capacity", [](Program& p) { return p.slots().capacity(); })
      .def_prop_ro("bytes_per_token", [](Program& p) { return p.slots().bytes_per_token(); })
      .def_prop_ro("max_slots", [](const Program& p) { return p.spec().state.max_slots; })
      .def_prop_ro("max_tokens", [](const Program& p) { return p.spec().max_tokens; })
      .def_prop_ro("memory", &Program::memory)
      .def_prop_ro("threads", &Program::threads)
      .def_prop_ro("vocabulary", &Program::vocabulary)
      .def_prop_ro("isa", [](const Program& p) { return std::string(p.kernels().name); });
}

}  // namespace hw
