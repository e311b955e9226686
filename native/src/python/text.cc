// The module headwater.data._text: text.h over numpy arrays and Python's strings.
#include "text/text.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>

#include "util/error.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hw::text {

namespace {

template <typename T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using In2 = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename T>
nb::object array(std::unique_ptr<T[]> values, std::initializer_list<size_t> shape) {
  T* raw = values.release();
  nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(raw, shape, owner));
}

template <typename T>
nb::object array(const std::vector<T>& values) {
  auto copy = std::make_unique_for_overwrite<T[]>(values.size());
  std::copy(values.begin(), values.end(), copy.get());
  return array(std::move(copy), {values.size()});
}

Words words_in(const In<uint64_t>& hashes, const In<int64_t>& starts) {
  check(starts.shape(0) >= 1, "starts is empty; it ends with the number of words");
  int64_t before = 0;
  bool ascends = true;
  for (size_t i = 0; i < starts.shape(0); ++i) {
    ascends &= before <= starts.data()[i];
    before = starts.data()[i];
  }
  check(ascends, "starts does not ascend from 0");
  check(before <= int64_t(hashes.shape(0)), "starts ends at " + std::to_string(before) + ", but there are " + std::to_string(hashes.shape(0)) + " words");
  return {hashes.data(), starts.data(), starts.shape(0) - 1};
}

// Calls visit(number, code points, bytes of each, how many) for every string.
template <typename Visit>
void each_text(const nb::list& texts, Visit visit) {
  size_t number = 0;
  for (nb::handle text : texts) {
    check(PyUnicode_Check(text.ptr()), "texts holds something that is no string");
    visit(number++, PyUnicode_DATA(text.ptr()), int(PyUnicode_KIND(text.ptr())), size_t(PyUnicode_GET_LENGTH(text.ptr())));
  }
}

nb::object marked(const nb::list& texts, const In<uint8_t>& marks) {
  check(marks.shape(0) > 0, "marks is empty");
  auto out = std::make_unique_for_overwrite<bool[]>(texts.size());
  each_text(texts, [&](size_t i, const void* points, int width, size_t length) {
    out[i] = any_marked(marks.data(), uint32_t(marks.shape(0)), points, width, length);
  });
  return array(std::move(out), {texts.size()});
}

nb::object counts(const nb::list& texts) {
  auto out = std::make_unique_for_overwrite<int64_t[]>(texts.size() * kCounts);
  each_text(texts, [&](size_t i, const void* points, int width, size_t length) {
    count_characters(points, width, length, out.get() + i * kCounts);
  });
  return array(std::move(out), {texts.size(), kCounts});
}

nb::tuple words(const nb::list& texts, const In<uint8_t>& kinds, const In<uint64_t>& values) {
  check(kinds.shape(0) == values.shape(0) && kinds.shape(0) > 0, "kinds and values are of different sizes, or empty");
  const Alphabet alphabet{kinds.data(), values.data(), uint32_t(kinds.shape(0))};
  std::vector<uint64_t> hashes;
  std::vector<int64_t> starts{0};
  std::vector<uint8_t> alone;
  each_text(texts, [&](size_t, const void* points, int width, size_t length) {
    append_words(alphabet, points, width, length, hashes, alone);
    starts.push_back(int64_t(hashes.size()));
  });
  return nb::make_tuple(array(hashes), array(starts), array(alone));
}

nb::tuple repeats(const In<uint64_t>& hashes, const In<int64_t>& starts, size_t n, const In<bool>& chosen) {
  const Words words = words_in(hashes, starts);
  check(chosen.shape(0) == words.texts && n > 0, "chosen needs one entry a text, and n is at least 1");
  auto most = std::make_unique_for_overwrite<int64_t[]>(words.texts), again = std::make_unique_for_overwrite<int64_t[]>(words.texts);
  count_repeats(words, n, chosen.data(), most.get(), again.get());
  return nb::make_tuple(array(std::move(most), {words.texts}), array(std::move(again), {words.texts}));
}

nb::object covered(const In<uint64_t>& hashes, const In<int64_t>& starts, size_t n, const In<bool>& chosen) {
  const Words words = words_in(hashes, starts);
  check(chosen.shape(0) == words.texts && n > 0, "chosen needs one entry a text, and n is at least 1");
  auto out = std::make_unique_for_overwrite<int64_t[]>(words.texts);
  count_covered(words, n, chosen.data(), out.get());
  return array(std::move(out), {words.texts});
}

// k where size is 2**k; 0 where it is no power of two.
int bits_of(size_t size) {
  int bits = 0;
  while (bits < 63 && (size_t(1) << bits) < size) ++bits;
  return (size_t(1) << bits) == size ? bits : 0;
}

nb::tuple runs(const In<uint64_t>& hashes, const In<int64_t>& starts, const std::vector<size_t>& lengths, const In<uint8_t>& begins,
               const In<uint8_t>& known) {
  const BitMap first{begins.data(), bits_of(8 * begins.shape(0))}, all{known.data(), bits_of(8 * known.shape(0))};
  check(first.bits >= 3 && all.bits >= 3, "a map has no power of two of bytes");
  size_t before = 0;
  for (const size_t n : lengths) {
    check(n > before, "lengths do not ascend from 1");
    before = n;
  }
  check(before > 0, "lengths is empty");
  const Found found = find_runs(words_in(hashes, starts), lengths, first, all);
  return nb::make_tuple(array(found.first), array(found.hashes));
}

nb::object signatures(const In<uint64_t>& hashes, const In<int64_t>& starts, size_t width, size_t slots, uint64_t sigma, uint64_t pi) {
  const Words words = words_in(hashes, starts);
  check(width > 0 && slots > 0, "width and slots are at least 1");
  auto out = std::make_unique_for_overwrite<uint64_t[]>(words.texts * slots);
  c_minhash(words, width, slots, sigma, pi, out.get());
  return array(std::move(out), {words.texts, slots});
}

nb::tuple sums(const In<uint64_t>& hashes, const In<int64_t>& starts, const In<int32_t>& row_of, const In2<float>& vectors) {
  const Words words = words_in(hashes, starts);
  const int bits = bits_of(row_of.shape(0));
  check(bits > 0, "row_of has " + std::to_string(row_of.shape(0)) + " entries; a power of two is needed");
  const size_t dims = vectors.shape(1);
  int32_t last = -1;
  for (size_t i = 0; i < row_of.shape(0); ++i) last = std::max(last, row_of.data()[i]);
  check(last < int64_t(vectors.shape(0)), "row_of names row " + std::to_string(last) + " of " + std::to_string(vectors.shape(0)) + " vectors");
  auto out = std::make_unique_for_overwrite<float[]>(words.texts * dims);
  auto filled = std::make_unique_for_overwrite<bool[]>(words.texts);
  sum_vectors(words, row_of.data(), bits, vectors.data(), dims, out.get(), filled.get());
  return nb::make_tuple(array(std::move(out), {words.texts, dims}), array(std::move(filled), {words.texts}));
}

Bags make_bags(const In2<uint16_t>& keys, const In2<uint8_t>& shares, const In2<int8_t>& vectors, const In<uint16_t>& lengths,
                const In<uint8_t>& weights) {
  const size_t items = keys.shape(0);
  check(items > 0 && shares.shape(0) == items && vectors.shape(0) == items && lengths.shape(0) == items, "the columns of the items differ in length, or are empty");
  check(keys.shape(1) == Bags::kKeys && shares.shape(1) == Bags::kKeys && vectors.shape(1) == Bags::kDims, "keys, shares and vectors are 8, 8 and 128 wide");
  check(weights.shape(0) == size_t(1) << Bags::kRowBits, "weights has one entry for each of 2**16 rows");
  check(std::all_of(lengths.data(), lengths.data() + items, [](uint16_t n) { return n > 0; }), "an item has no words");
  return Bags(keys.data(), shares.data(), vectors.data(), lengths.data(), items, weights.data());
}

nb::tuple find_bags(const Bags& bags, const In<uint64_t>& hashes, const In<int64_t>& starts, const In<int32_t>& needed, double threshold) {
  check(needed.shape(0) == bags.items(), "needed has one entry an item");
  const std::vector<Bags::Match> found = bags.find(words_in(hashes, starts), needed.data(), threshold);
  const size_t count = found.size();
  auto texts = std::make_unique_for_overwrite<int64_t[]>(count), spans = std::make_unique_for_overwrite<int64_t[]>(2 * count);
  auto items = std::make_unique_for_overwrite<int64_t[]>(count);
  auto cosines = std::make_unique_for_overwrite<double[]>(count);
  for (size_t i = 0; i < count; ++i) {
    texts[i] = found[i].text, items[i] = found[i].item, cosines[i] = found[i].cosine;
    spans[2 * i] = found[i].first, spans[2 * i + 1] = found[i].end;
  }
  return nb::make_tuple(array(std::move(texts), {count}), array(std::move(items), {count}), array(std::move(cosines), {count}),
                        array(std::move(spans), {count, 2}));
}

nb::tuple guess(const LanguageModel& model, const nb::list& lines) {
  auto label = std::make_unique_for_overwrite<int32_t[]>(lines.size());
  auto chance = std::make_unique_for_overwrite<float[]>(lines.size());
  size_t at = 0;
  for (nb::handle line : lines) {
    Py_ssize_t size = 0;
    const char* bytes = PyUnicode_AsUTF8AndSize(line.ptr(), &size);
    if (!bytes) throw nb::python_error();
    const LanguageModel::Guess found = model.guess({bytes, size_t(size)});
    label[at] = found.label, chance[at] = found.chance;
    ++at;
  }
  return nb::make_tuple(array(std::move(label), {at}), array(std::move(chance), {at}));
}

}  // namespace

}  // namespace hw::text

NB_MODULE(_text, m) {
  using namespace hw::text;
  m.doc() = "What the data pipeline counts over many texts. Used through headwater.data.fast only.";
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const hw::Error& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    }
  });
  m.def("words", &words, "texts"_a, "kinds"_a, "values"_a, "(hashes, starts, whether a single character) of the words of all texts");
  m.def("repeats", &repeats, "hashes"_a, "starts"_a, "n"_a, "chosen"_a, "(most, again) of the runs of n words of each chosen text");
  m.def("runs", &runs, "hashes"_a, "starts"_a, "lengths"_a, "begins"_a, "known"_a, "(first words, hashes) of the runs marked in two maps");
  m.def("signatures", &signatures, "hashes"_a, "starts"_a, "width"_a, "slots"_a, "sigma_key"_a, "pi_key"_a, "mixed C-MinHash (texts, slots)");
  m.def("covered", &covered, "hashes"_a, "starts"_a, "n"_a, "chosen"_a, "words in runs of n that stood before, of each chosen text");
  m.def("marked", &marked, "texts"_a, "marks"_a, "whether any code point of each text is marked");
  m.def("counts", &counts, "texts"_a, "(texts, 8): bytes, spaces, line ends, tabs, letter bytes, digits, hashes, ellipses");
  m.def("sums", &sums, "hashes"_a, "starts"_a, "row_of"_a, "vectors"_a, "(sums (texts, dims), filled) of the vectors of each text's words");
  nb::class_<Bags>(m, "Bags")
      .def(nb::new_(&make_bags), "keys"_a, "shares"_a, "vectors"_a, "lengths"_a, "weights"_a)
      .def("find", &find_bags, "hashes"_a, "starts"_a, "needed"_a, "threshold"_a, "(texts, items, cosines, (first, end) words) of each text that has one");
  nb::class_<LanguageModel>(m, "LanguageModel")
      .def(nb::init<const std::string&>(), "path"_a)
      .def_prop_ro("labels", &LanguageModel::labels)
      .def("guess", &guess, "lines"_a, "(label number or -1, chance) of each line");
}
