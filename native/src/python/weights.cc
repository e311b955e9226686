// Gguf (a file) and Matrix (packed weights).
#include <cstring>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "formats/load.h"
#include "formats/texts.h"
#include "python/bindings.h"
#include "util/error.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hw {

namespace {

nb::object to_python(const GgufValue& value) {
  return std::visit(
      [](const auto& x) -> nb::object {
        using T = std::decay_t<decltype(x)>;
        if constexpr (std::is_same_v<T, std::string>) {
          PyObject* s = PyUnicode_DecodeUTF8(x.data(), Py_ssize_t(x.size()), "replace");
          return nb::steal(s);
        } else if constexpr (std::is_same_v<T, GgufArray>) {
          nb::list out;
          for (const GgufValue& v : x) out.append(to_python(v));
          return out;
        } else {
          return nb::cast(x);
        }
      },
      value.v);
}

nb::object metadata(const Gguf& g, const std::string& key) {
  std::vector<std::string_view> texts;
  if (g.texts(key, texts)) {
    nb::list out;
    for (const std::string_view t : texts) out.append(nb::steal(PyUnicode_DecodeUTF8(t.data(), Py_ssize_t(t.size()), "replace")));
    return out;
  }
  std::vector<int32_t> integers;
  if (g.integers(key, integers)) return nb::cast(integers);
  return to_python(g.value(key));
}

nb::object text_at(const Texts& t, size_t i) {
  if (i >= t.size()) throw nb::index_error("no such text");
  return nb::steal(PyUnicode_DecodeUTF8(t.at(i).data(), Py_ssize_t(t.at(i).size()), "replace"));
}

std::optional<Texts> texts_of(const Gguf& g, const std::string& key) {
  std::vector<std::string_view> found;
  if (!g.texts(key, found)) return std::nullopt;
  return Texts(g.share(), std::move(found));
}

// Of an array of 32-bit integers: how many there are, and (place, value) of those that are not `usual`; None: it is something else.
nb::object unusual(const Gguf& g, const std::string& key, int32_t usual) {
  std::vector<int32_t> integers;
  if (!g.integers(key, integers)) return nb::none();
  nb::list found;
  for (size_t i = 0; i < integers.size(); i++)
    if (integers[i] != usual) found.append(nb::make_tuple(i, integers[i]));
  return nb::make_tuple(integers.size(), found);
}

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

Matrix matrix_of(const Floats& a, const std::string& format, int threads) {
  check(a.ndim() == 2 || a.ndim() == 3, "matrix: an array of 2 or 3 dimensions is needed, this one has " + std::to_string(a.ndim()));
  const size_t experts = a.ndim() == 3 ? a.shape(0) : 1;
  nb::gil_scoped_release free;
  return quantize_matrix(format_named(format).format, a.data(), experts, a.shape(a.ndim() - 2), a.shape(a.ndim() - 1), threads);
}

struct Mapped {
  std::shared_ptr<MappedFile> file;
};

Matrix mapped_matrix(const Mapped& m, size_t offset, const std::string& format, size_t rows, size_t k, size_t experts) {
  const FormatInfo& f = format_named(format);
  const size_t size = m.file->size(), most = size_t(1) << 24;
  const bool sane = rows && k && experts && rows <= most && k <= most && experts <= 65536 && k % f.block == 0 && offset % 64 == 0 && offset <= size;
  check(sane && packed_bytes(f, rows, k) <= (size - offset) / experts,
        m.file->path() + ": a matrix reaches outside the file; it is truncated or damaged, pack it again");
  Matrix w{f.format, rows, k, experts, m.file->data() + offset, nullptr, nullptr};
  w.owner = m.file;
  return w;
}

// `bytes` from `offset` on are texts, each behind its length in 8 bytes.
Texts mapped_texts(const Mapped& m, size_t offset, size_t bytes) {
  const size_t size = m.file->size();
  const auto need = [&](bool sane) { check(sane, m.file->path() + ": a list of texts reaches outside its place; the file is damaged, pack it again"); };
  need(offset <= size && bytes <= size - offset);
  std::vector<std::string_view> texts;
  for (size_t at = offset, end = offset + bytes; at < end;) {
    uint64_t n;
    need(end - at >= sizeof n);
    memcpy(&n, m.file->data() + at, sizeof n);
    at += sizeof n;
    need(n <= end - at);
    texts.emplace_back(reinterpret_cast<const char*>(m.file->data() + at), size_t(n));
    at += size_t(n);
  }
  return Texts(m.file, std::move(texts));
}

std::vector<float> mapped_floats(const Mapped& m, size_t offset, size_t count, const std::string& format) {
  const FormatInfo& f = format_named(format);
  const size_t size = m.file->size();
  check(count && offset <= size && count <= (size - offset) / f.source_bytes,
        m.file->path() + ": a vector reaches outside the file; it is truncated or damaged, pack or copy it again");
  std::vector<float> v(count);
  read_floats(f.format, m.file->data() + offset, count, v.data());
  return v;
}

Matrix matrix_from_files(const std::vector<Mapped>& files, const std::vector<size_t>& offsets, const std::string& source, size_t rows, size_t k,
                         const std::string& format, int threads) {
  check(files.size() == offsets.size(), "matrix: as many offsets as files are needed");
  std::vector<FloatPart> parts;
  for (size_t i = 0; i < files.size(); i++) parts.push_back({files[i].file, offsets[i]});
  nb::gil_scoped_release free;
  return quantize_parts(format_named(format).format, format_named(source).format, parts, rows, k, threads);
}

// Vectors leave as the bytes of their floats: numpy is not loaded for them.
nb::bytes bytes_of(const std::vector<float>& values) { return nb::bytes(values.data(), 4 * values.size()); }

nb::object vector_to_numpy(std::vector<float>&& values) {
  auto* v = new std::vector<float>(std::move(values));
  nb::capsule owner(v, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, float, nb::ndim<1>>(v->data(), {v->size()}, owner));
}

}  // namespace

void bind_weights(nb::module_& m) {
  nb::class_<Mapped>(m, "Mapped", "A file of weights, mapped read-only")
      .def("__init__", [](Mapped* self, const std::string& path) { new (self) Mapped{std::make_shared<MappedFile>(path)}; }, "path"_a)
      .def("matrix", &mapped_matrix, nb::kw_only(), "offset"_a, "format"_a, "rows"_a, "k"_a, "experts"_a)
      .def("floats", [](const Mapped& m, size_t offset, size_t count, const std::string& format) { return bytes_of(mapped_floats(m, offset, count, format)); },
           nb::kw_only(), "offset"_a, "count"_a, "format"_a = "F32", "the bytes of fp32 values")
      .def("texts", &mapped_texts, nb::kw_only(), "offset"_a, "bytes"_a, "texts, each behind its length in 8 bytes");

  nb::class_<Matrix>(m, "Matrix", "Packed weights: rows x k in one number format; experts of them stacked")
      .def_prop_ro("format", [](const Matrix& w) { return std::string(info(w.format).name); })
      .def_ro("rows", &Matrix::rows)
      .def_ro("k", &Matrix::k)
      .def_ro("experts", &Matrix::experts)
      .def_prop_ro("nbytes", [](const Matrix& w) { return w.bytes_per_expert() * w.experts; })
      .def_prop_ro("int8", [](const Matrix& w) { return info(w.format).act8; }, "meets int8 activations")
      .def("row", [](const Matrix& w, size_t row, size_t expert) {
        w.ready();
        check(row < w.rows && expert < w.experts, "matrix: no row " + std::to_string(row));
        std::vector<float> v(w.k);
        unpack_row(w.format, w.data + expert * w.bytes_per_expert(), row, w.k, v.data());
        return vector_to_numpy(std::move(v));
      }, "row"_a, "expert"_a = 0)
      .def("bytes", [](nb::handle self) {
        const Matrix& w = nb::cast<const Matrix&>(self);
        w.ready();
        const size_t n = w.bytes_per_expert() * w.experts;
        return nb::cast(nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(w.data, {n}, self));
      }, "the packed bytes, a view")
      .def_static("from_floats", &matrix_of, "values"_a, "format"_a, "threads"_a = 1)
      .def_static("from_files", &matrix_from_files, "files"_a, "offsets"_a, "source"_a, nb::kw_only(), "rows"_a, "k"_a, "format"_a, "threads"_a = 1,
                  "tensors of floats in mapped files, one an expert, quantized");

  nb::class_<Texts>(m, "Texts", "A list of texts in a file, found by their contents")
      .def("find", &Texts::find, "text"_a, "its place, or -1; of equal texts the last one's")
      .def("__getitem__", &text_at, "index"_a)
      .def("__len__", &Texts::size);

  nb::class_<Gguf>(m, "Gguf", "A GGUF file: metadata, and tensors packed or read when asked")
      .def("__init__", [](Gguf* self, const std::string& path) {
        nb::gil_scoped_release free;
        new (self) Gguf(path);
      }, "path"_a)
      .def("keys", &Gguf::keys)
      .def("value", &metadata, "key"_a)
      .def("texts", &texts_of, "key"_a, nb::call_guard<nb::gil_scoped_release>(), "an array of texts, or None where the key has something else")
      .def("unusual", &unusual, "key"_a, "usual"_a, "of an array of integers: its length, and (place, value) of those that are not `usual`, or None")
      .def("tensors", [](const Gguf& g) {
        nb::dict out;
        for (const GgufTensor& t : g.tensors()) out[t.name.c_str()] = nb::make_tuple(info(Format(t.type)).name, nb::cast(t.dims));
        return out;
      }, "name -> (format, dimensions innermost first)")
      .def("begin", [](Gguf& g, const std::vector<std::string>& names, int threads) {
        nb::gil_scoped_release free;
        g.loading = std::make_shared<Loading>(g, names, threads);
      }, "names"_a, nb::kw_only(), "threads"_a, "begin to repack these matrices on threads of their own; the first run of a program waits for them")
      .def("matrix", [](const Gguf& g, const std::string& name, size_t rotary_heads, int threads) {
        nb::gil_scoped_release free;
        return load_matrix(g, name, rotary_heads, threads);
      }, "name"_a, "rotary_heads"_a = 0, "threads"_a = 1)
      .def("vector", [](const Gguf& g, const std::string& name) { return bytes_of(load_vector(g, name)); }, "name"_a, "the bytes of fp32 values");
}

}  // namespace hw
