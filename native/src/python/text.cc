// The module headwater.data._text: text.h over numpy arrays and Python's strings.
#include "text/text.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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
  for (size_t i = 0; i < starts.shape(0); ++i) {
    check(before <= starts.data()[i], "starts does not ascend from 0");
    before = starts.data()[i];
  }
  check(before <= int64_t(hashes.shape(0)), "starts ends at " + std::to_string(before) + ", but there are " + std::to_string(hashes.shape(0)) + " words");
  return {hashes.data(), starts.data(), starts.shape(0) - 1};
}

nb::tuple words(const nb::list& texts, const In<uint8_t>& kinds, const In<uint64_t>& values) {
  check(kinds.shape(0) == values.shape(0) && kinds.shape(0) > 0, "kinds and values are of different sizes, or empty");
  const Alphabet alphabet{kinds.data(), values.data(), uint32_t(kinds.shape(0))};
  std::vector<uint64_t> hashes;
  std::vector<int64_t> starts{0};
  for (nb::handle text : texts) {
    check(PyUnicode_Check(text.ptr()), "texts holds something that is no string");
    append_words(alphabet, PyUnicode_DATA(text.ptr()), PyUnicode_KIND(text.ptr()), size_t(PyUnicode_GET_LENGTH(text.ptr())), hashes);
    starts.push_back(int64_t(hashes.size()));
  }
  return nb::make_tuple(array(hashes), array(starts));
}

nb::tuple repeats(const In<uint64_t>& hashes, const In<int64_t>& starts, size_t n, const In<bool>& chosen) {
  const Words words = words_in(hashes, starts);
  check(chosen.shape(0) == words.texts && n > 0, "chosen needs one entry a text, and n is at least 1");
  auto most = std::make_unique_for_overwrite<int64_t[]>(words.texts), again = std::make_unique_for_overwrite<int64_t[]>(words.texts);
  count_repeats(words, n, chosen.data(), most.get(), again.get());
  return nb::make_tuple(array(std::move(most), {words.texts}), array(std::move(again), {words.texts}));
}

nb::object runs_marked(const In<uint64_t>& hashes, const In<int64_t>& starts, size_t n, const In<uint8_t>& map) {
  check(map.shape(0) > 0 && (map.shape(0) & (map.shape(0) - 1)) == 0 && n > 0, "map has no power of two of bytes, or n is 0");
  int bits = 3;
  while ((size_t(1) << bits) < 8 * map.shape(0)) ++bits;
  return array(runs_in_map(words_in(hashes, starts), n, map.data(), bits));
}

nb::object signatures(const In<uint64_t>& hashes, const In<int64_t>& starts, size_t width, size_t slots, uint64_t sigma, uint64_t pi) {
  const Words words = words_in(hashes, starts);
  check(width > 0 && slots > 0, "width and slots are at least 1");
  auto out = std::make_unique_for_overwrite<uint64_t[]>(words.texts * slots);
  c_minhash(words, width, slots, sigma, pi, out.get());
  return array(std::move(out), {words.texts, slots});
}

nb::tuple sums(const In<int32_t>& rows, const In<int64_t>& starts, const In2<float>& vectors) {
  const size_t texts = starts.shape(0) - 1, dims = vectors.shape(1);
  check(starts.shape(0) >= 1 && starts.data()[0] >= 0 && starts.data()[texts] <= int64_t(rows.shape(0)), "starts does not fit rows");
  for (size_t i = 0; i < texts; ++i) check(starts.data()[i] <= starts.data()[i + 1], "starts does not ascend");
  for (size_t i = 0; i < rows.shape(0); ++i)
    check(rows.data()[i] < int64_t(vectors.shape(0)), "a row is beyond the " + std::to_string(vectors.shape(0)) + " vectors");
  auto out = std::make_unique_for_overwrite<float[]>(texts * dims);
  auto filled = std::make_unique_for_overwrite<bool[]>(texts);
  sum_vectors(rows.data(), starts.data(), texts, vectors.data(), dims, out.get(), filled.get());
  return nb::make_tuple(array(std::move(out), {texts, dims}), array(std::move(filled), {texts}));
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
  m.def("words", &words, "texts"_a, "kinds"_a, "values"_a, "(hashes, starts) of the words of all texts");
  m.def("repeats", &repeats, "hashes"_a, "starts"_a, "n"_a, "chosen"_a, "(most, again) of the runs of n words of each chosen text");
  m.def("runs_marked", &runs_marked, "hashes"_a, "starts"_a, "n"_a, "map"_a, "first words of the runs whose bit is set in a packed map");
  m.def("signatures", &signatures, "hashes"_a, "starts"_a, "width"_a, "slots"_a, "sigma_key"_a, "pi_key"_a, "mixed C-MinHash (texts, slots)");
  m.def("sums", &sums, "rows"_a, "starts"_a, "vectors"_a, "(sums (texts, dims), filled) of the vectors of each text's words");
  nb::class_<LanguageModel>(m, "LanguageModel")
      .def(nb::init<const std::string&>(), "path"_a)
      .def_prop_ro("labels", &LanguageModel::labels)
      .def("guess", &guess, "lines"_a, "(label number or -1, chance) of each line");
}
