// Program (with its slots) and Sampler.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "python/bindings.h"
#include "runner/layout.h"
#include "runner/likeliest.h"
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

// All of a program but its weights.
ProgramSpec spec_of(const std::vector<nb::dict>& buffers, const std::vector<nb::dict>& ops, const Pairs& attention, const Pairs& convolution, int logits,
                    size_t max_tokens, size_t max_selected, int threads) {
  ProgramSpec s;
  for (const nb::dict& b : buffers) s.buffers.push_back(buffer_of(b));
  for (const nb::dict& o : ops) s.ops.push_back(op_of(o));
  for (auto [heads, hd] : attention) s.state.attention.push_back({heads, hd});
  for (auto [d, width] : convolution) s.state.convolution.push_back({d, width});
  s.max_tokens = max_tokens, s.max_selected = max_selected, s.logits = logits, s.threads = threads;
  return s;
}

std::unique_ptr<Program> make_program(const std::vector<nb::dict>& buffers, const std::vector<nb::dict>& ops, const std::vector<Matrix>& matrices,
                                      const std::vector<Vector>& vectors, const Pairs& attention, const Pairs& convolution, size_t ring,
                                      size_t capacity, size_t max_slots, size_t max_tokens, size_t max_selected, int logits, int threads,
                                      const std::vector<int>& cpus) {
  ProgramSpec s = spec_of(buffers, ops, attention, convolution, logits, max_tokens, max_selected, threads);
  s.matrices = matrices;
  for (const Vector& v : vectors) s.vectors.emplace_back(v.data(), v.data() + v.size());
  s.state.ring = ring, s.state.capacity = capacity, s.state.max_slots = max_slots, s.cpus = cpus;
  return std::make_unique<Program>(std::move(s), default_kernels());
}

using Work = std::vector<std::tuple<int, std::vector<int32_t>, std::string>>;

std::vector<Segment> segments_of(const Work& work) {
  std::vector<Segment> out;
  for (const auto& [slot, tokens, want] : work) out.push_back({slot, tokens, named(kWants, want, "logits")});
  return out;
}

// An array of numpy's, and where its values go.
template <class T>
std::pair<nb::object, T*> new_array(std::initializer_list<size_t> shape) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  T* const values = new T[n];
  nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return {nb::cast(nb::ndarray<nb::numpy, T>(values, shape, owner)), values};
}

nb::object rows_to_numpy(const float* rows, size_t n, size_t width) {
  auto* copy = new std::vector<float>(rows, rows + n * width);
  nb::capsule owner(copy, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<2>>(copy->data(), {n, width}, owner));
}

// (ids (n, k), log-probabilities (n, k), mass (n)) of the rows of logits of the last run.
nb::tuple likeliest_of(const Program& p, size_t n, size_t k) {
  check(n >= 1 && k >= 1 && k <= p.vocabulary(), "likeliest: " + std::to_string(k) + " tokens of " + std::to_string(n) + " rows; allowed: 1 to " +
                                                     std::to_string(p.vocabulary()) + ", of 1 row and more");
  const float* logits = (p.logits(n - 1), p.logits(0));
  const auto [ids, to_ids] = new_array<int32_t>({n, k});
  const auto [logprobs, to_logprobs] = new_array<float>({n, k});
  const auto [mass, to_mass] = new_array<double>({n});
  {
    nb::gil_scoped_release free;
    likeliest(p.kernels(), logits, n, p.vocabulary(), k, p.threads(), to_ids, to_logprobs, to_mass);
  }
  return nb::make_tuple(ids, logprobs, mass);
}

using Mask = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::tuple pick(Sampler& s, const float* logits, size_t n, const std::optional<Mask>& allowed, const std::vector<int32_t>& forbidden, int32_t forced) {
  Choice choice;
  if (allowed) choice.allowed = allowed->data(), choice.words = allowed->size();
  choice.forbidden = &forbidden, choice.forced = forced;
  Picked r;
  {
    nb::gil_scoped_release free;
    r = s.pick(logits, n, choice);
  }
  return nb::make_tuple(r.token, r.logprob, nb::cast(r.likely));
}

// A bytes object of so many bytes, to be filled through the pointer before anybody else sees it.
std::pair<nb::bytes, uint8_t*> new_bytes(size_t n) {
  PyObject* o = PyBytes_FromStringAndSize(nullptr, Py_ssize_t(n));
  if (!o) throw OutOfMemory("memory: cannot get " + std::to_string(n) + " bytes for a state");
  return {nb::steal<nb::bytes>(o), reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(o))};
}
const uint8_t* data_of(const nb::bytes& b) { return reinterpret_cast<const uint8_t*>(b.c_str()); }

void expect(size_t came, size_t needed, const char* what) {
  check(came == needed, std::string("state: ") + std::to_string(came) + " bytes of " + what + " came, " + std::to_string(needed) + " are needed");
}

// Sum over rows of the last run of weight * row / rms(row): what a mean-pooled embedding adds up, in double.
nb::object sum_normed(const Program& p, const std::string& name, size_t first, size_t count, size_t width, const Vector& weight, float eps) {
  check(weight.size() == width, "sum_normed: a weight of " + std::to_string(weight.size()) + " values for rows of " + std::to_string(width));
  std::vector<double> sum(width);
  std::vector<float> row(width);
  for (size_t r = first; r < first + count; r++) {
    p.kernels().rms_norm(p.buffer(name, r), weight.data(), eps, width, row.data());
    for (size_t i = 0; i < width; i++) sum[i] += double(row[i]);
  }
  std::vector<float> out(sum.begin(), sum.end());
  return rows_to_numpy(out.data(), 1, width);
}

// One token after another in C++ until a stop token, `count` tokens or a full slot: no Python between tokens.
std::vector<int32_t> decode(Program& program, int slot, int32_t token, size_t count, Sampler& sampler, const std::vector<int32_t>& stop) {
  std::vector<int32_t> out;
  nb::gil_scoped_release free;
  while (out.size() < count && program.slots().length(slot) < program.slots().capacity()) {
    program.run({{slot, {token}, Want::last}}, true);
    token = sampler.pick(program.logits(0), program.vocabulary()).token;
    sampler.wrote(token);
    out.push_back(token);
    if (std::find(stop.begin(), stop.end(), token) != stop.end()) break;
  }
  return out;
}

}  // namespace

void bind_program(nb::module_& m) {
  m.def("planned_memory", [](const std::vector<nb::dict>& buffers, const std::vector<nb::dict>& ops, const Pairs& attention, const Pairs& convolution,
                             int logits, size_t max_tokens, size_t max_selected, int threads) {
    return planned_memory(spec_of(buffers, ops, attention, convolution, logits, max_tokens, max_selected, threads), default_kernels());
  }, nb::kw_only(), "buffers"_a, "ops"_a, "attention"_a, "convolution"_a, "logits"_a, "max_tokens"_a, "max_selected"_a, "threads"_a,
     "bytes of buffers and scratch that a Program of these will have; no weights are needed");
  nb::class_<Sampler>(m, "Sampler", "Picks tokens by the rules of headwater.sampling")
      .def("__init__", [](Sampler* self, float temperature, int top_k, float top_p, float min_p, float repetition_penalty, float presence_penalty,
                          float frequency_penalty, const std::vector<std::pair<int32_t, float>>& bias, int logprobs, uint64_t seed) {
        SamplingOptions o;
        o.temperature = temperature, o.top_k = top_k, o.top_p = top_p, o.min_p = min_p, o.repetition_penalty = repetition_penalty;
        o.presence_penalty = presence_penalty, o.frequency_penalty = frequency_penalty, o.bias = bias, o.logprobs = logprobs;
        new (self) Sampler(o, seed);
      }, nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "repetition_penalty"_a, "presence_penalty"_a = 0.0f,
         "frequency_penalty"_a = 0.0f, "bias"_a = std::vector<std::pair<int32_t, float>>(), "logprobs"_a, "seed"_a)
      .def("saw", [](Sampler& s, const std::vector<int32_t>& tokens) {
        for (int32_t t : tokens) s.saw(t);
      }, "tokens"_a, "tokens of the prompt")
      .def("wrote", &Sampler::wrote, "token"_a, "a token of the answer")
      .def("pick", [](Sampler& s, const Program& p, size_t row, std::optional<Mask> allowed, const std::vector<int32_t>& forbidden, int32_t forced) {
        return pick(s, p.logits(row), p.vocabulary(), allowed, forbidden, forced);
      }, "program"_a, "row"_a, "allowed"_a = nb::none(), "forbidden"_a = std::vector<int32_t>(), "forced"_a = -1,
         "(token, logprob, [(token, logprob), ...]) from a row of the last run's logits; allowed: uint32 words, one bit a token")
      .def("pick_from", [](Sampler& s, const Vector& logits, std::optional<Mask> allowed, const std::vector<int32_t>& forbidden, int32_t forced) {
        return pick(s, logits.data(), logits.size(), allowed, forbidden, forced);
      }, "logits"_a, "allowed"_a = nb::none(), "forbidden"_a = std::vector<int32_t>(), "forced"_a = -1);

  nb::class_<Program>(m, "Program", "Fused ops over buffers, with sequence slots")
      .def(nb::new_(&make_program), nb::kw_only(), "buffers"_a, "ops"_a, "matrices"_a, "vectors"_a, "attention"_a, "convolution"_a, "ring"_a,
           "capacity"_a, "max_slots"_a, "max_tokens"_a, "max_selected"_a, "logits"_a, "threads"_a, "cpus"_a)
      .def("run", [](Program& p, const Work& work, bool decode) {
        const auto segments = segments_of(work);
        nb::gil_scoped_release free;
        return p.run(segments, decode);
      }, "segments"_a, "decode"_a = false, "[(slot, tokens, 'none' | 'last' | 'all')] -> rows of logits; decode: a step of answers, no prompts")
      .def("logits", [](const Program& p, size_t n) { return rows_to_numpy(n ? p.logits(0) : nullptr, (n ? p.logits(n - 1) : nullptr, n), p.vocabulary()); }, "rows"_a)
      .def("likeliest", &likeliest_of, "rows"_a, "k"_a, "(ids, log-probabilities, mass) of the rows of logits of the last run")
      .def("buffer", [](const Program& p, const std::string& name, size_t row, size_t width) { return rows_to_numpy(p.buffer(name, row), 1, width); })
      .def("sum_normed", &sum_normed, "name"_a, "first"_a, "count"_a, "width"_a, "weight"_a, "eps"_a)
      .def("save_keys", [](Program& p, int slot, int64_t from, int64_t to) {
        const auto [out, at] = new_bytes(p.slots().keys_bytes(from, to));
        p.slots().save_keys(slot, from, to, at);
        return out;
      }, "slot"_a, "begin"_a, "end"_a, "keys and values of positions [begin, end), multiples of 16, as bytes")
      .def("load_keys", [](Program& p, int slot, int64_t from, int64_t to, const nb::bytes& in) {
        expect(in.size(), p.slots().keys_bytes(from, to), "keys");
        p.slots().load_keys(slot, from, to, data_of(in));
      }, "slot"_a, "begin"_a, "end"_a, "keys"_a)
      .def("save_tail", [](Program& p, int slot, int64_t length) {
        const auto [out, at] = new_bytes(p.slots().tail_bytes());
        p.slots().save_tail(slot, length, at);
        return out;
      }, "slot"_a, "length"_a, "the last inputs of every convolution at that length, as bytes")
      .def("restore", [](Program& p, int slot, int64_t length, const nb::bytes& tail) {
        expect(tail.size(), p.slots().tail_bytes(), "tail");
        p.slots().restore(slot, length, data_of(tail));
      }, "slot"_a, "length"_a, "tail"_a, "make a slot with loaded keys a sequence of this length")
      .def("decode", &decode, "slot"_a, "token"_a, "count"_a, "sampler"_a, "stop"_a)
      .def("open", [](Program& p) { return p.slots().open(); })
      .def("close", [](Program& p, int slot) { p.slots().close(slot); }, "slot"_a)
      .def("copy", [](Program& p, int from, int to) { p.slots().copy(from, to); }, "source"_a, "target"_a)
      .def("rewind", [](Program& p, int slot, int64_t length) { p.slots().rewind(slot, length); }, "slot"_a, "length"_a)
      .def("length", [](const Program& p, int slot) { return const_cast<Program&>(p).slots().length(slot); }, "slot"_a)
      .def_prop_ro("capacity", [](Program& p) { return p.slots().capacity(); })
      .def_prop_ro("bytes_fixed", [](Program& p) { return p.slots().bytes_fixed(); })
      .def_prop_ro("tail_bytes", [](Program& p) { return p.slots().tail_bytes(); })
      .def_prop_ro("ring", [](const Program& p) { return p.spec().state.ring; })
      .def_prop_ro("one_arithmetic", &Program::one_arithmetic)
      .def_prop_ro("bytes_per_token", [](Program& p) { return p.slots().bytes_per_token(); })
      .def_prop_ro("max_slots", [](const Program& p) { return p.spec().state.max_slots; })
      .def_prop_ro("max_selected", [](const Program& p) { return p.spec().max_selected; })
      .def_prop_ro("max_tokens", [](const Program& p) { return p.spec().max_tokens; })
      .def_prop_ro("memory", &Program::memory)
      .def_prop_ro("threads", &Program::threads)
      .def_prop_ro("vocabulary", &Program::vocabulary)
      .def_prop_ro("isa", [](const Program& p) { return std::string(p.kernels().name); });
}

}  // namespace hw
