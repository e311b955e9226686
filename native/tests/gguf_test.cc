// A hostile GGUF file ends in Error, never in a crash: every prefix of a good file, every byte changed, and random damage.
// Run it in a HEADWATER_SANITIZE build as well.
#include <unistd.h>

#include <cstring>

#include "formats/gguf.h"
#include "formats/load.h"
#include "testing.h"
#include "util/error.h"

using namespace hw;
using namespace hwt;

namespace {

struct Bytes {
  std::vector<uint8_t> v;
  template <class T>
  void put(T x) {
    const uint8_t* p = reinterpret_cast<const uint8_t*>(&x);
    v.insert(v.end(), p, p + sizeof x);
  }
  void text(const std::string& s) {
    put(uint64_t(s.size()));
    v.insert(v.end(), s.begin(), s.end());
  }
};

std::vector<uint8_t> good() {
  Bytes b;
  b.v = {'G', 'G', 'U', 'F'};
  b.put(uint32_t(3)), b.put(uint64_t(2)), b.put(uint64_t(4));
  b.text("general.architecture"), b.put(uint32_t(8)), b.text("lfm2");
  b.text("numbers"), b.put(uint32_t(9)), b.put(uint32_t(5)), b.put(uint64_t(3)), b.put(int32_t(1)), b.put(int32_t(-2)), b.put(int32_t(3));
  b.text("words"), b.put(uint32_t(9)), b.put(uint32_t(8)), b.put(uint64_t(2)), b.text("a"), b.text("bc");
  b.text("general.alignment"), b.put(uint32_t(4)), b.put(uint32_t(32));
  b.text("m"), b.put(uint32_t(2)), b.put(uint64_t(64)), b.put(uint64_t(3)), b.put(uint32_t(2)), b.put(uint64_t(0));
  b.text("v"), b.put(uint32_t(1)), b.put(uint64_t(5)), b.put(uint32_t(0)), b.put(uint64_t(128));
  while (b.v.size() % 32) b.v.push_back(0);
  for (int i = 0; i < 128 + 20; i++) b.v.push_back(uint8_t(i));
  return b.v;
}

std::string kPath;

// Reads everything a file offers; true when it was accepted.
bool read(const std::vector<uint8_t>& bytes) {
  FILE* f = fopen(kPath.c_str(), "wb");
  if (!bytes.empty()) fwrite(bytes.data(), 1, bytes.size(), f);
  fclose(f);
  try {
    const Gguf g(kPath);
    for (const std::string& k : g.keys()) g.value(k);
    for (const GgufTensor& t : g.tensors()) {
      if (t.dims.size() >= 2 && t.dims.size() <= 3) load_matrix(g, t.name, 0, 1);
      if (t.dims.size() == 1 && !info(Format(t.type)).act8) load_vector(g, t.name);
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

// A file of several matrices, begun before they are asked for: what comes is what is read at once, whoever waits and however many threads there
// are; a file that got shorter meanwhile is an error for whoever waits, and one that nobody waits for is left alone.
void beginning() {
  Random r(5);
  Bytes b;
  b.v = {'G', 'G', 'U', 'F'};
  const Format formats[] = {Format::Q4_0, Format::Q6_K, Format::F16, Format::Q4_K};
  const size_t rows = 3000, k = 256, experts = 2;
  b.put(uint32_t(3)), b.put(uint64_t(4)), b.put(uint64_t(0));
  std::vector<uint8_t> data;
  std::vector<std::string> names;
  for (const Format f : formats) {
    names.push_back(info(f).name);
    b.text(names.back()), b.put(uint32_t(3)), b.put(uint64_t(k)), b.put(uint64_t(rows)), b.put(uint64_t(experts)), b.put(uint32_t(f)), b.put(uint64_t(data.size()));
    const auto bytes = random_rows(f, rows * experts, k, r);
    data.insert(data.end(), bytes.begin(), bytes.end());
    while (data.size() % 32) data.push_back(0);
  }
  while (b.v.size() % 32) b.v.push_back(0);
  b.v.insert(b.v.end(), data.begin(), data.end());
  const auto write = [&] {
    FILE* f = fopen(kPath.c_str(), "wb");
    fwrite(b.v.data(), 1, b.v.size(), f);
    fclose(f);
  };
  write();
  const Gguf plain(kPath);
  for (int threads : {1, 2, 5}) {
    Gguf g(kPath);
    g.loading = std::make_shared<Loading>(g, names, threads);
    const uint8_t* next = nullptr;
    for (const std::string& name : names) {
      const Matrix want = load_matrix(plain, name, 0, 1), got = load_matrix(g, name, 0, threads);
      expect(got.loading == g.loading, name + " was read again");
      expect(!next || (got.data >= next && got.data < next + 64), name + " leaves a hole in front of it, which huge pages would fill");
      next = got.data + got.bytes_per_expert() * experts;
      if (threads == 1) {
        expect(g.loading->need({got.part + 1}), "an expert was not read");
        const size_t bytes = want.bytes_per_expert();
        expect(memcmp(want.data + bytes, got.data + bytes, bytes) == 0, name + ": an expert that was needed is not there");
        expect(memcmp(want.data, got.data, bytes) != 0 && !g.loading->over(), name + ": an expert that nobody needed is there");
      }
      got.ready();
      expect(memcmp(want.data, got.data, want.bytes_per_expert() * experts) == 0, name + " begun early is another matrix");
    }
  }
  const auto refused = [&](const std::vector<std::string>& which) {
    try {
      const Loading all(plain, which, 2);
    } catch (const Error&) {
      return true;
    }
    return false;
  };
  expect(refused({"Q4_0", "nothing"}) && refused({"Q4_0", "Q4_0"}) && !refused(names), "names that are no matrices were not refused");
  Gguf g(kPath);
  expect(truncate(kPath.c_str(), long(b.v.size() / 2)) == 0, "truncate");
  g.loading = std::make_shared<Loading>(g, names, 2);
  for (int again = 0; again < 2; again++) {
    bool failed = false;
    try {
      load_matrix(g, names[3], 0, 2).ready();
    } catch (const Error& e) {
      failed = std::string(e.what()).find("the file got shorter") != std::string::npos;
    }
    expect(failed, "a file that got shorter was not noticed");
  }
}

}  // namespace

int main() {
  kPath = "/tmp/headwater_gguf_test_" + std::to_string(getpid());
  beginning();
  const std::vector<uint8_t> whole = good();
  expect(read(whole), "the good file was refused");
  for (size_t n = 0; n < whole.size(); n++) expect(!read({whole.begin(), whole.begin() + long(n)}), "accepted a file cut at " + std::to_string(n));
  size_t accepted = 0;
  for (size_t i = 0; i < whole.size(); i++)
    for (uint8_t x : {uint8_t(0), uint8_t(1), uint8_t(0x7f), uint8_t(0x80), uint8_t(0xff)}) {
      auto bad = whole;
      bad[i] = x;
      accepted += read(bad);
    }
  Random r(3);
  for (int rep = 0; rep < 4000; rep++) {
    auto bad = whole;
    for (size_t n = 1 + r.below(8); n--;) bad[r.below(bad.size())] = uint8_t(r.bits());
    if (r.below(2)) bad.resize(1 + r.below(bad.size()));
    accepted += read(bad);
  }
  unlink(kPath.c_str());
  printf("ok (%zu damaged files were still readable)\n", accepted);
  return 0;
}
