#include "formats/load.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <thread>

#include "util/error.h"
#include "util/half.h"

namespace hw {

namespace {

// body(expert, first row, last row): every matrix in pieces of `step` rows, dealt to the threads in turn.
void in_pieces(size_t experts, size_t rows, size_t step, int threads, const std::function<void(size_t, size_t, size_t)>& body) {
  const size_t per = (rows + step - 1) / step, n = per * experts;
  const auto run = [&](size_t t) {
    for (size_t i = t; i < n; i += size_t(threads)) body(i / per, i % per * step, std::min(rows, (i % per + 1) * step));
  };
  std::vector<std::thread> others;
  for (size_t t = 1; t < std::min(n, size_t(threads)); t++) others.emplace_back(run, t);
  run(0);
  for (std::thread& t : others) t.join();
}

Matrix empty_matrix(Format f, size_t experts, size_t rows, size_t k) {
  const size_t one = packed_bytes(info(f), rows, k);
  check(one < (size_t(1) << 44) / experts, "a matrix of impossible size");
  auto memory = std::make_shared<Arena>(one * experts);
  Matrix m{f, rows, k, experts, memory->data(), nullptr};
  m.owner = memory;
  return m;
}

constexpr size_t kPieceBytes = 1 << 20;

size_t piece_rows(size_t row_bytes) { return std::max<size_t>(kRows, kPieceBytes / std::max<size_t>(1, row_bytes) / kRows * kRows); }

}  // namespace

Matrix load_matrix(const Gguf& file, const std::string& name, size_t rotary_heads, int threads) {
  const GgufTensor* t = file.find(name);
  check(t != nullptr, file.file().path() + ": no tensor '" + name + "'");
  check(t->dims.size() >= 2 && t->dims.size() <= 3, "tensor '" + name + "' is not a matrix");
  const FormatInfo& f = *find_format(t->type);
  const size_t rows = t->rows(), row_bytes = t->k() / f.block * f.source_bytes;
  Matrix m = empty_matrix(f.format, t->experts(), rows, t->k());
  uint8_t* out = const_cast<uint8_t*>(m.data);
  const uint8_t* source = file.file().data() + t->offset;
  const size_t gb = group_bytes(f, t->k());
  check(rotary_heads == 0 || (t->experts() == 1 && rows % (2 * rotary_heads) == 0), "tensor '" + name + "': rows do not split into rotary heads");
  in_pieces(t->experts(), rows, piece_rows(row_bytes), threads, [&](size_t e, size_t a, size_t b) {
    uint8_t* to = out + e * m.bytes_per_expert() + a / kRows * gb;
    if (!rotary_heads) {
      const size_t from = (e * rows + a) * row_bytes;
      pack_rows(f.format, source + from, b - a, t->k(), to);
      return file.file().drop(t->offset + from, (b - a) * row_bytes);
    }
    std::vector<uint8_t> turned((b - a) * row_bytes);
    const size_t n = rows / rotary_heads;
    for (size_t r = a; r < b; r++) {
      const size_t i = r % n, from = r - i + (i < n / 2 ? 2 * i : 2 * (i - n / 2) + 1);
      memcpy(&turned[(r - a) * row_bytes], source + from * row_bytes, row_bytes);
    }
    pack_rows(f.format, turned.data(), b - a, t->k(), to);
  });
  file.file().drop(t->offset, t->bytes);
  return m;
}

std::vector<float> load_vector(const Gguf& file, const std::string& name) {
  const GgufTensor* t = file.find(name);
  check(t != nullptr, file.file().path() + ": no tensor '" + name + "'");
  const FormatInfo& f = *find_format(t->type);
  check(!f.act8 && t->bytes < (size_t(1) << 28), "tensor '" + name + "' is no small vector of floats");
  std::vector<float> v(t->bytes / f.source_bytes);
  const uint8_t* p = file.file().data() + t->offset;
  for (size_t i = 0; i < v.size(); i++, p += f.source_bytes) {
    uint16_t h = 0;
    memcpy(&h, p, 2);
    if (f.format == Format::F32)
      memcpy(&v[i], p, 4);
    else
      v[i] = f.format == Format::F16 ? half_to_float(h) : bf16_to_float(h);
  }
  return v;
}

Matrix quantize_matrix(Format f, const float* values, size_t experts, size_t rows, size_t k, int threads) {
  const FormatInfo& fi = info(f);
  check(can_quantize(f), std::string("cannot quantize to ") + fi.name + "; allowed: F32, F16, BF16, Q4_0, Q8_0");
  check(k % fi.block == 0, "rows of " + std::to_string(k) + " values do not fill blocks of " + std::to_string(fi.block) + "; use F16 or F32");
  Matrix m = empty_matrix(f, experts, rows, k);
  uint8_t* out = const_cast<uint8_t*>(m.data);
  const size_t row_bytes = k / fi.block * fi.source_bytes;
  in_pieces(experts, rows, piece_rows(row_bytes), threads, [&](size_t e, size_t a, size_t b) {
    std::vector<uint8_t> q((b - a) * row_bytes);
    for (size_t r = a; r < b; r++) quantize_row(f, values + (e * rows + r) * k, k, &q[(r - a) * row_bytes]);
    pack_rows(f, q.data(), b - a, k, out + e * m.bytes_per_expert() + a / kRows * group_bytes(fi, k));
  });
  return m;
}

}  // namespace hw
