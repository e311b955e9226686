// The module headwater.ops._fused: train.h over torch's tensors. Shapes are checked here; what is computed, and when, is said in headwater/ops.
#include <dlfcn.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "train/train.h"
#include "train/workers.h"
#include "util/error.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hw::train {

namespace {

using Array = nb::ndarray<nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<int64_t, nb::c_contig, nb::device::cpu>;
constexpr size_t kPiece = size_t(1) << 14;  // values of a piece: a few of its size fit the second cache

template <class A>
Type type_of(const A& a) {
  const nb::dlpack::dtype t = a.dtype();
  if (t == nb::dtype<float>()) return Type::f32;
  check(t.code == uint8_t(nb::dlpack::dtype_code::Bfloat) && t.bits == 16 && t.lanes == 1, "an array is neither float32 nor bfloat16");
  return Type::bf16;
}

void same(size_t got, size_t want, const char* what) {
  check(got == want, std::string(what) + " has " + std::to_string(got) + " values; it must have " + std::to_string(want));
}

// One pool for all calls, of as many threads as the last one asked for. Calls come one at a time: gradients of one model.
class Crew {
 public:
  template <class Body>
  void run(int threads, size_t n, size_t piece, const Body& body) {
    const nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> held(guard_);
    if (!workers_ || workers_->threads() != threads) workers_.reset(), workers_ = std::make_unique<Workers>(threads, team_);
    workers_->run(n, piece, body);
  }
  void join(Team team) {
    const std::lock_guard<std::mutex> held(guard_);
    team_ = team;
    workers_.reset();
  }

 private:
  Team team_ = nullptr;
  std::mutex guard_;
  std::unique_ptr<Workers> workers_;
};

Crew& crew() {
  static Crew* one = new Crew;  // never destroyed: its threads may not be joined while the interpreter goes down
  return *one;
}

// Sums of `width` values over n rows, in a fixed number of pieces whoever computes them: the same bits in every run.
class Sums {
 public:
  Sums(size_t n, size_t width) : piece_((n + kPieces - 1) / kPieces), width_(width), all_(kPieces * width) {}
  size_t piece() const { return std::max<size_t>(1, piece_); }
  float* of(size_t number) { return all_.data() + number * width_; }
  void into(float* out) const {
    for (size_t i = 0; i < width_; i++) {
      float sum = 0;
      for (size_t w = i; w < all_.size(); w += width_) sum += all_[w];
      out[i] = sum;
    }
  }

 private:
  static constexpr size_t kPieces = 16;
  size_t piece_, width_;
  std::vector<float> all_;
};

// Whether GNU's OpenMP library at `path`, which this process has loaded already, does the work from now on; "" for threads of our own.
bool join_(const std::string& path) {
  Team team = nullptr;
  if (!path.empty()) {
    if (void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD)) team = reinterpret_cast<Team>(dlsym(library, "GOMP_parallel"));
    if (!team) return false;
  }
  crew().join(team);
  return true;
}

size_t rows_for(size_t width) { return std::max<size_t>(1, kPiece / std::max<size_t>(1, width)); }

void norm_(const Array& x, const Floats& w, float eps, const Array& y, const Floats& inverse, int threads) {
  const size_t n = w.size(), rows = inverse.size();
  check(n > 0, "the weight is empty");
  same(x.size(), rows * n, "x"), same(y.size(), rows * n, "y");
  const Type tx = type_of(x), ty = type_of(y);
  const auto& k = best();
  crew().run(threads, rows, rows_for(n), [&](size_t, size_t a, size_t b) { k.norm(tx, ty, x.data(), w.data(), eps, n, a, b, y.data(), inverse.data()); });
}

void norm_back_(const Array& grad, const Array& x, const Floats& w, const Floats& inverse, std::optional<Array> dx, std::optional<Floats> dw, int threads) {
  const size_t n = w.size(), rows = inverse.size();
  check(n > 0, "the weight is empty");
  same(x.size(), rows * n, "x"), same(grad.size(), rows * n, "grad");
  const Type tx = type_of(x), tg = type_of(grad);
  if (dx) same(dx->size(), rows * n, "dx"), check(type_of(*dx) == tx, "dx is of another type than x");
  if (dw) same(dw->size(), n, "dw");
  const auto& k = best();
  Sums sums(rows, dw ? n : 0);
  crew().run(threads, rows, sums.piece(), [&](size_t i, size_t a, size_t b) {
    k.norm_back(tx, tg, grad.data(), x.data(), w.data(), inverse.data(), n, a, b, dx ? dx->data() : nullptr, dw ? sums.of(i) : nullptr);
  });
  if (dw) sums.into(dw->data());
}

void swiglu_(const Array& gate, const Array& up, const Array& y, int threads) {
  same(up.size(), gate.size(), "up"), same(y.size(), gate.size(), "y");
  const Type t = type_of(gate);
  check(type_of(up) == t && type_of(y) == t, "gate, up and y are of several types");
  const auto& k = best();
  crew().run(threads, gate.size(), kPiece, [&](size_t, size_t a, size_t b) { k.swiglu(t, gate.data(), up.data(), a, b, y.data()); });
}

void swiglu_back_(const Array& grad, const Array& gate, const Array& up, const Array& d_gate, const Array& d_up, int threads) {
  for (const Array* one : {&grad, &up, &d_gate, &d_up}) same(one->size(), gate.size(), "an argument");
  const Type t = type_of(gate), tg = type_of(grad);
  check(type_of(up) == t && type_of(d_gate) == t && type_of(d_up) == t, "gate, up and their gradients are of several types");
  const auto& k = best();
  crew().run(threads, gate.size(), kPiece, [&](size_t, size_t a, size_t b) { k.swiglu_back(t, tg, grad.data(), gate.data(), up.data(), a, b, d_gate.data(), d_up.data()); });
}

ConvShape shape_of(const Array& mixed, const Floats& taps, const std::optional<Floats>& bias, const std::optional<Ids>& segments) {
  check(mixed.ndim() == 3 && taps.ndim() == 2 && taps.shape(0) >= 1 && taps.shape(0) <= kMostTaps, "mixed is (rows, steps, 3 d), taps (1 to 64, d)");
  const size_t d = taps.shape(1);
  check(d > 0 && mixed.shape(2) == 3 * d, "mixed is not three times as wide as the taps");
  if (bias) same(bias->size(), d, "bias");
  if (segments) same(segments->size(), mixed.shape(0) * mixed.shape(1), "segments");
  return {mixed.shape(1), d, taps.shape(0), taps.data(), bias ? bias->data() : nullptr, segments ? segments->data() : nullptr};
}

void conv_(const Array& mixed, const Floats& taps, std::optional<Floats> bias, std::optional<Ids> segments, const Array& y, int threads) {
  const ConvShape s = shape_of(mixed, taps, bias, segments);
  const Type t = type_of(mixed);
  same(3 * y.size(), mixed.size(), "three times y");
  check(type_of(y) == t, "y is of another type than mixed");
  const auto& k = best();
  crew().run(threads, y.size() / s.d, rows_for(s.d), [&](size_t, size_t a, size_t b) { k.conv(t, s, mixed.data(), a, b, y.data()); });
}

void conv_back_(const Array& grad, const Array& mixed, const Floats& taps, std::optional<Floats> bias, std::optional<Ids> segments, const Array& d_mixed,
                const Floats& d_taps, std::optional<Floats> d_bias, int threads) {
  const ConvShape s = shape_of(mixed, taps, bias, segments);
  const Type t = type_of(mixed), tg = type_of(grad);
  same(d_mixed.size(), mixed.size(), "d_mixed"), same(3 * grad.size(), mixed.size(), "three times grad"), same(d_taps.size(), taps.size(), "d_taps");
  if (d_bias) same(d_bias->size(), s.d, "d_bias");
  check(type_of(d_mixed) == t, "d_mixed is of another type than mixed");
  const auto& k = best();
  const size_t tokens = grad.size() / s.d;
  Sums of_taps(tokens, taps.size()), of_bias(tokens, d_bias ? s.d : 0);
  crew().run(threads, tokens, of_taps.piece(), [&](size_t i, size_t a, size_t b) {
    k.conv_back(t, tg, s, grad.data(), mixed.data(), a, b, d_mixed.data(), of_taps.of(i), d_bias ? of_bias.of(i) : nullptr);
  });
  of_taps.into(d_taps.data());
  if (d_bias) of_bias.into(d_bias->data());
}

void partition_(const Array& logits, const Floats& out, int threads) {
  check(logits.ndim() == 2 && logits.shape(1) > 0, "logits are (rows, words)");
  same(out.size(), logits.shape(0), "out");
  const Type t = type_of(logits);
  const size_t v = logits.shape(1);
  const auto& k = best();
  crew().run(threads, out.size(), 1, [&](size_t, size_t a, size_t b) { k.partition(t, logits.data(), v, a, b, out.data()); });
}

void slope_(const Array& logits, const Floats& partition, const Floats& factor, const Ids& ids, const Floats& add, int threads) {
  check(logits.ndim() == 2 && ids.ndim() == 2 && ids.shape(1) <= kMostPlaces, "logits are (rows, words), ids (rows, at most 512)");
  const size_t rows = logits.shape(0), v = logits.shape(1), k = ids.shape(1);
  same(partition.size(), rows, "partition"), same(factor.size(), rows, "factor"), same(ids.shape(0), rows, "ids"), same(add.size(), ids.size(), "add");
  for (size_t i = 0; i < ids.size(); i++) check(ids.data()[i] >= 0 && size_t(ids.data()[i]) < v, "ids: " + std::to_string(ids.data()[i]) + " is no word of " + std::to_string(v));
  const Type t = type_of(logits);
  const auto& kernels = best();
  crew().run(threads, rows, 1, [&](size_t, size_t a, size_t b) { kernels.slope(t, logits.data(), v, partition.data(), factor.data(), ids.data(), add.data(), k, a, b); });
}

// (rows, heads, steps, n), however the first three lie.
using FourWay = nb::ndarray<nb::ndim<4>, nb::device::cpu>;
using Starts = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Heads heads_of(const FourWay& x, size_t rows, size_t heads, size_t steps, size_t n, const char* what) {
  check(x.shape(0) == rows && x.shape(1) == heads && x.shape(2) == steps && x.shape(3) == n, std::string(what) + " has another shape than its like");
  check(x.stride(3) == 1 && x.stride(0) >= 0 && x.stride(1) >= 0 && x.stride(2) >= 0, std::string(what) + ": the values of a head do not lie side by side");
  return {x.data(), size_t(x.stride(0)), size_t(x.stride(1)), size_t(x.stride(2))};
}

struct Attending {
  AttentionShape shape;
  size_t rows;
  Heads q, k, v, o;
  Type type;
  Attending(const FourWay& q_, const FourWay& k_, const FourWay& v_, const FourWay& o_, float scale, const Starts& from, const Floats& lse) {
    rows = q_.shape(0);
    shape = {q_.shape(1), k_.shape(1), q_.shape(2), q_.shape(3), scale, from.data()};
    check(rows && shape.steps && shape.n && shape.n % 16 == 0, "a head has " + std::to_string(shape.n) + " values; allowed: a multiple of 16");
    check(shape.key_heads && shape.heads % shape.key_heads == 0, "the key heads do not divide the heads");
    q = heads_of(q_, rows, shape.heads, shape.steps, shape.n, "q"), o = heads_of(o_, rows, shape.heads, shape.steps, shape.n, "o");
    k = heads_of(k_, rows, shape.key_heads, shape.steps, shape.n, "k"), v = heads_of(v_, rows, shape.key_heads, shape.steps, shape.n, "v");
    type = type_of(q_);
    check(type_of(k_) == type && type_of(v_) == type && type_of(o_) == type, "q, k, v and o are of several types");
    same(lse.size(), rows * shape.heads * shape.steps, "lse");
    check(from.shape(0) == rows && from.shape(1) == shape.steps, "the starts are not (rows, steps)");
    for (size_t i = 0; i < from.size(); i++)
      check(from.data()[i] >= 0 && size_t(from.data()[i]) <= i % shape.steps, "a query sees keys from " + std::to_string(from.data()[i]) + " on, behind itself");
  }
  template <class Body>
  void run(int threads, const Body& body) const {
    const size_t room = attention_scratch(shape);
    crew().run(threads, rows * shape.key_heads, 1, [&](size_t, size_t at, size_t end) {  // of very many tasks a piece has several
      const std::unique_ptr<float[]> scratch(new float[room]);
      for (; at < end; at++) body(at, scratch.get());
    });
  }
};

void attention_(const FourWay& q, const FourWay& k, const FourWay& v, float scale, const Starts& from, const FourWay& o, const Floats& lse, int threads) {
  const Attending a(q, k, v, o, scale, from, lse);
  const auto& kernels = best();
  a.run(threads, [&](size_t at, float* scratch) { kernels.attention(a.type, a.shape, a.q, a.k, a.v, a.o, lse.data(), at, scratch); });
}

void attention_back_(const FourWay& grad, const FourWay& q, const FourWay& k, const FourWay& v, float scale, const Starts& from, const FourWay& o, const Floats& lse,
                     const FourWay& dq, const FourWay& dk, const FourWay& dv, int threads) {
  const Attending a(q, k, v, o, scale, from, lse);
  const AttentionShape& s = a.shape;
  const Heads g = heads_of(grad, a.rows, s.heads, s.steps, s.n, "grad"), to_q = heads_of(dq, a.rows, s.heads, s.steps, s.n, "dq");
  const Heads to_k = heads_of(dk, a.rows, s.key_heads, s.steps, s.n, "dk"), to_v = heads_of(dv, a.rows, s.key_heads, s.steps, s.n, "dv");
  for (const FourWay* x : {&dq, &dk, &dv}) check(type_of(*x) == a.type, "gradients are of another type than q");
  const Type tg = type_of(grad);
  const auto& kernels = best();
  a.run(threads, [&](size_t at, float* scratch) {
    kernels.attention_back(a.type, tg, s, a.q, a.k, a.v, a.o, g, lse.data(), to_q, to_k, to_v, at, scratch);
  });
}

}  // namespace

}  // namespace hw::train

NB_MODULE(_fused, m) {
  using namespace hw::train;
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const hw::Error& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    }
  });
  m.def("join", &join_, "path"_a);
  m.def("norm", &norm_, "x"_a, "w"_a, "eps"_a, "y"_a, "inverse"_a, "threads"_a);
  m.def("norm_back", &norm_back_, "grad"_a, "x"_a, "w"_a, "inverse"_a, "dx"_a.none(), "dw"_a.none(), "threads"_a);
  m.def("swiglu", &swiglu_, "gate"_a, "up"_a, "y"_a, "threads"_a);
  m.def("swiglu_back", &swiglu_back_, "grad"_a, "gate"_a, "up"_a, "d_gate"_a, "d_up"_a, "threads"_a);
  m.def("conv", &conv_, "mixed"_a, "taps"_a, "bias"_a.none(), "segments"_a.none(), "y"_a, "threads"_a);
  m.def("conv_back", &conv_back_, "grad"_a, "mixed"_a, "taps"_a, "bias"_a.none(), "segments"_a.none(), "d_mixed"_a, "d_taps"_a, "d_bias"_a.none(), "threads"_a);
  m.def("attention", &attention_, "q"_a, "k"_a, "v"_a, "scale"_a, "from"_a, "o"_a, "lse"_a, "threads"_a);
  m.def("attention_back", &attention_back_, "grad"_a, "q"_a, "k"_a, "v"_a, "scale"_a, "from"_a, "o"_a, "lse"_a, "dq"_a, "dk"_a, "dv"_a, "threads"_a);
  m.def("partition", &partition_, "logits"_a, "out"_a, "threads"_a);
  m.def("slope", &slope_, "logits"_a, "partition"_a, "factor"_a, "ids"_a, "add"_a, "threads"_a);
}
