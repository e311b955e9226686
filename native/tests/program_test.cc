// Whole programs of products: every format, odd numbers of rows and threads. Whoever computes what, the bits are those of one thread.
#include <functional>
#include <memory>

#include "runner/program.h"
#include "testing.h"
#include "util/aligned.h"
#include "util/error.h"

using namespace hw;
using namespace hwt;

namespace {

Matrix matrix(Format f, size_t rows, size_t k, Random& r) {
  const auto room = std::make_shared<Arena>(packed_bytes(info(f), rows, k), false);
  const std::vector<uint8_t> source = random_rows(f, rows, k, r);
  pack_rows(f, source.data(), rows, k, room->data());
  return {f, rows, k, 1, room->data(), room};
}

Op op(OpKind kind, int in, int out, std::vector<int> matrices, int vec) {
  Op o;
  o.kind = kind, o.in = in, o.out = out, o.matrices = std::move(matrices), o.vec = vec, o.eps = 1e-5f;
  return o;
}

// Two products side by side, a gated one, one that adds, and a head with rows that fill no group.
ProgramSpec spec_of(Format f) {
  enum { x, normed, both, again, hidden, chosen, last, logits };
  Random r(11);
  const bool small = info(f).act8;
  const size_t d = 256, h = info(f).block == 256 ? 512 : 288, words = 1003;
  ProgramSpec s;
  const auto buffer = [&](const char* name, size_t width, bool input, bool selected) {
    s.buffers.push_back({name, width, !input || !small, input && small, selected, 1});
  };
  buffer("x", d, false, false), buffer("normed", d, true, false), buffer("both", d, false, false), buffer("again", d, true, false);
  buffer("hidden", h, true, false), buffer("chosen", d, false, true), buffer("last", d, true, true), buffer("logits", words, false, true);
  s.matrices = {matrix(f, words, d, r), matrix(f, 56, d, r), matrix(f, 200, d, r), matrix(f, h, d, r), matrix(f, h, d, r), matrix(f, d, h, r)};
  s.vectors = {std::vector<float>(d, 0.7f)};
  s.ops = {op(OpKind::embed, -1, x, {0}, -1), op(OpKind::norm, x, normed, {}, 0), op(OpKind::matmul, normed, both, {1, 2}, -1),
           op(OpKind::norm, both, again, {}, 0), op(OpKind::matmul, again, hidden, {3, 4}, -1), op(OpKind::matmul, hidden, x, {5}, -1),
           op(OpKind::select, x, chosen, {}, -1), op(OpKind::norm, chosen, last, {}, 0), op(OpKind::matmul, last, logits, {0}, -1)};
  s.ops[4].epilogue = Epilogue::gated, s.ops[5].epilogue = Epilogue::add;
  s.state.capacity = 128, s.max_tokens = 40, s.max_selected = 4, s.logits = logits;
  return s;
}

// Logits of a prompt, then of answers alone and of three users at once.
std::vector<float> run(ProgramSpec spec, const Kernels& kn, int threads) {
  spec.threads = threads, spec.state.max_slots = 3;
  Program p(std::move(spec), kn);
  std::vector<float> all;
  const auto keep = [&](size_t rows) {
    for (size_t i = 0; i < rows; i++) all.insert(all.end(), p.logits(i), p.logits(i) + p.vocabulary());
  };
  std::vector<int> slots;
  for (int i = 0; i < 3; i++) slots.push_back(p.slots().open());
  std::vector<int32_t> prompt;
  for (int i = 0; i < 37; i++) prompt.push_back(i * 17 % 1003);
  keep(p.run({{slots[0], prompt, Want::last}}));
  keep(p.run({{slots[1], {5, 900, 3}, Want::all}}));
  for (int32_t t = 0; t < 8; t++) {
    keep(p.run({{slots[0], {t}, Want::last}}, true));
    keep(p.run({{slots[0], {t}, Want::last}, {slots[1], {t + 1}, Want::last}, {slots[2], {t + 2}, Want::last}}, true));
  }
  return all;
}

// What would be too much for the counters of chunks is refused before any memory is taken.
void refused(const std::function<void(ProgramSpec&)>& spoil) {
  ProgramSpec spec = spec_of(Format::Q4_0);
  spoil(spec);
  try {
    Program p(std::move(spec), *machine_sets()[0]);
  } catch (const Error& e) {
    expect(std::string(e.what()).find("2^24") != std::string::npos, std::string("refused for another reason: ") + e.what());
    return;
  }
  fail("a program of impossible size was built");
}

#ifdef HW_SANITIZED  // fifty times slower, and what they look for does not take chance
constexpr int kTimes = 1;
#else
constexpr int kTimes = 3;
#endif

}  // namespace

int main() {
  refused([](ProgramSpec& s) { s.matrices[1].rows = (size_t(1) << 24) + 1; });
  refused([](ProgramSpec& s) { s.matrices[1].experts = size_t(1) << 20; });
  refused([](ProgramSpec& s) { s.buffers[2].width = size_t(1) << 25; });
  for (Format f : {Format::F32, Format::F16, Format::BF16, Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::Q4_K, Format::Q5_K,
                   Format::Q6_K}) {
    const ProgramSpec spec = spec_of(f);
    const std::vector<float> plain = run(spec, *machine_sets()[0], 1);
    for (const Kernels* kn : machine_sets()) {
      const std::string where = std::string(info(f).name) + " on " + kn->name;
      const std::vector<float> one = run(spec, *kn, 1);
      expect_close(one.data(), plain.data(), plain.size(), 0.05f, where + " beside portable");
      for (int threads : {2, 3, 5})
        for (int again = 0; again < kTimes; again++) expect(run(spec, *kn, threads) == one, where + ": " + std::to_string(threads) + " threads give other bits");
    }
  }
  puts("ok");
}
