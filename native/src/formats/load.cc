#include "formats/load.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <numeric>

#include "util/error.h"
#include "util/half.h"
#include "util/threads.h"

namespace hw {

namespace {

// body(expert, first row, last row, room for a piece of the source): every matrix in pieces of `step` rows, taken by the threads in turn.
using Body = std::function<void(size_t, size_t, size_t, std::vector<uint8_t>&)>;

void in_pieces(size_t experts, size_t rows, size_t step, int threads, const Body& body) {
  const size_t per = (rows + step - 1) / step, n = per * experts;
  std::atomic<size_t> next{0};
  std::exception_ptr fault;
  std::mutex guard;
  const auto run = [&] {
    std::vector<uint8_t> room;
    try {
      for (size_t i = next++; i < n; i = next++) body(i / per, i % per * step, std::min(rows, (i % per + 1) * step), room);
    } catch (...) {
      const std::lock_guard<std::mutex> held(guard);
      fault = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (size_t t = 1; t < std::min(n, size_t(threads)) && another(others, run); t++) {
  }
  run();
  for (std::thread& t : others) t.join();
  if (fault) std::rethrow_exception(fault);
}

const uint8_t* read_into(std::vector<uint8_t>& room, const MappedFile& file, size_t offset, size_t bytes) {
  if (room.size() < bytes) room.resize(bytes);
  file.read(offset, bytes, room.data());
  return room.data();
}

size_t matrix_bytes(Format f, size_t experts, size_t rows, size_t k) {
  const size_t one = packed_bytes(info(f), rows, k);
  check(one < (size_t(1) << 44) / experts, "a matrix of impossible size");
  return one * experts;
}

Matrix empty_matrix(Format f, size_t experts, size_t rows, size_t k, Slabs* slabs = nullptr) {
  const size_t bytes = matrix_bytes(f, experts, rows, k);
  Slabs::Piece memory;
  if (slabs) {
    memory = slabs->take(bytes);
  } else {
    memory.owner = std::make_shared<Arena>(bytes);
    memory.data = memory.owner->data();
  }
  return {f, rows, k, experts, memory.data, memory.owner, nullptr};
}

constexpr size_t kPieceBytes = 1 << 19;  // with what it becomes, it fits the cache nearest to a core that holds megabytes

size_t piece_rows(size_t row_bytes) { return std::max<size_t>(kRows, kPieceBytes / std::max<size_t>(1, row_bytes) / kRows * kRows); }

const GgufTensor& matrix_named(const Gguf& file, const std::string& name) {
  const GgufTensor* t = file.find(name);
  check(t != nullptr, file.file().path() + ": no tensor '" + name + "'");
  check(t->dims.size() >= 2 && t->dims.size() <= 3, "tensor '" + name + "' is not a matrix");
  return *t;
}

size_t row_bytes_of(const GgufTensor& t) { return t.k() / find_format(t.type)->block * find_format(t.type)->source_bytes; }

// Rows [a, b) of expert e, packed to where they belong.
void load_rows(const MappedFile& file, const GgufTensor& t, const Matrix& m, size_t e, size_t a, size_t b, std::vector<uint8_t>& room) {
  const size_t row_bytes = row_bytes_of(t);
  uint8_t* to = const_cast<uint8_t*>(m.data) + e * m.bytes_per_expert() + a / kRows * group_bytes(info(m.format), m.k);
  const uint8_t* source = read_into(room, file, t.offset + (e * m.rows + a) * row_bytes, (b - a) * row_bytes);
  pack_rows(m.format, source, b - a, m.k, to, default_kernels().pack);
}

}  // namespace

Matrix load_matrix(const Gguf& file, const std::string& name, size_t rotary_heads, int threads) {
  if (const Matrix* begun = file.loading && !rotary_heads ? file.loading->find(name) : nullptr) {
    Matrix m = *begun;
    m.loading = file.loading;
    return m;
  }
  const GgufTensor& t = matrix_named(file, name);
  const size_t rows = t.rows(), row_bytes = row_bytes_of(t);
  const Matrix m = empty_matrix(Format(t.type), t.experts(), rows, t.k(), &file.slabs());
  check(rotary_heads == 0 || (t.experts() == 1 && rows % (2 * rotary_heads) == 0), "tensor '" + name + "': rows do not split into rotary heads");
  in_pieces(t.experts(), rows, piece_rows(row_bytes), threads, [&](size_t e, size_t a, size_t b, std::vector<uint8_t>& room) {
    if (!rotary_heads) return load_rows(file.file(), t, m, e, a, b, room);
    room.resize((b - a) * row_bytes);
    const size_t n = rows / rotary_heads;
    for (size_t r = a; r < b; r++) {
      const size_t i = r % n, from = r - i + (i < n / 2 ? 2 * i : 2 * (i - n / 2) + 1);
      file.file().read(t.offset + from * row_bytes, row_bytes, &room[(r - a) * row_bytes]);
    }
    pack_rows(m.format, room.data(), b - a, t.k(), const_cast<uint8_t*>(m.data) + a / kRows * group_bytes(info(m.format), t.k()), default_kernels().pack);
  });
  return m;
}

Loading::Loading(const Gguf& file, const std::vector<std::string>& names, int threads) : file_(file.share()) {
  check(threads >= 1 && threads <= 256, "threads: " + std::to_string(threads) + " given; allowed: 1 to 256");
  const auto bytes_of = [](const GgufTensor& t) { return round_up(matrix_bytes(Format(t.type), t.experts(), t.rows(), t.k()), 64); };
  size_t bytes = 0;
  for (const std::string& name : names) {
    bytes += bytes_of(matrix_named(file, name));
    check(bytes < size_t(1) << 46, file.file().path() + ": its matrices are of impossible size together; the file is damaged");  // tensors may overlap
  }
  const auto memory = std::make_shared<Arena>(bytes);  // all of them next to each other: in huge pages, what is between them is taken too
  uint8_t* at = memory->data();
  for (const std::string& name : names) {
    const GgufTensor& t = matrix_named(file, name);
    check(index_.emplace(name, matrices_.size()).second, "tensor '" + name + "' is asked for twice");
    matrices_.push_back({Format(t.type), t.rows(), t.k(), t.experts(), at, memory});
    tensors_.push_back(t);
    at += bytes_of(t);
  }
  for (const bool stacked : {false, true})
    for (size_t i = 0; i < matrices_.size(); i++) {
      Matrix& m = matrices_[i];
      if ((m.experts > 1) != stacked) continue;
      m.part = first_.size();
      const size_t step = piece_rows(row_bytes_of(tensors_[i]));
      for (size_t e = 0; e < m.experts; e++) {
        first_.push_back(pieces_.size());
        for (size_t a = 0; a < m.rows; a += step) pieces_.push_back({i, m.part + e, e, a, std::min(m.rows, a + step)});
        left_.push_back(pieces_.size() - first_.back());
      }
    }
  parts_left_ = first_.size();
  first_.push_back(pieces_.size());
  taken_.resize(pieces_.size());
  for (int i = 1; i < threads && size_t(i) < pieces_.size() && another(others_, [this] { work(); }); i++) {
  }
}

Loading::~Loading() {
  {
    const std::lock_guard<std::mutex> held(guard_);
    next_ = pieces_.size(), urgent_.clear();
  }
  for (std::thread& t : others_) t.join();
}

const Matrix* Loading::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &matrices_[it->second];
}

// Repacks one piece, with the guard given back meanwhile.
void Loading::take(std::unique_lock<std::mutex>& held, size_t piece, std::vector<uint8_t>& room) {
  if (taken_[piece]) return;
  taken_[piece] = true;
  held.unlock();
  std::exception_ptr fault;
  const Piece& p = pieces_[piece];
  try {
    load_rows(*file_, tensors_[p.matrix], matrices_[p.matrix], p.expert, p.begin, p.end, room);
  } catch (...) {
    fault = std::current_exception();
  }
  held.lock();
  if (fault) fault_ = fault, next_ = pieces_.size();
  if (--left_[p.part] == 0) parts_left_--;
  if (fault || !left_[p.part]) there_.notify_all();
}

void Loading::work() {
  std::vector<uint8_t> room;
  std::unique_lock<std::mutex> held(guard_);
  while (!urgent_.empty() || next_ < pieces_.size()) {
    size_t piece = next_;
    if (urgent_.empty()) next_++;
    else piece = urgent_.back(), urgent_.pop_back();
    take(held, piece, room);
  }
}

bool Loading::need(const std::vector<size_t>& parts) noexcept {
  std::vector<uint8_t> room;
  std::unique_lock<std::mutex> held(guard_);
  const auto there = [&] { return fault_ || std::all_of(parts.begin(), parts.end(), [&](size_t p) { return !left_[p]; }); };
  if (!there())
    for (size_t p : parts)
      for (size_t i = first_[p]; i < first_[p + 1]; i++)
        if (!taken_[i]) urgent_.push_back(i);
  while (!urgent_.empty() && !there()) {
    const size_t piece = urgent_.back();
    urgent_.pop_back();
    take(held, piece, room);
  }
  there_.wait(held, there);
  return !fault_;
}

bool Loading::over() {
  const std::lock_guard<std::mutex> held(guard_);
  if (fault_) std::rethrow_exception(fault_);
  return parts_left_ == 0;
}

void Matrix::ready() const {
  if (!loading) return;
  std::vector<size_t> parts(experts);
  std::iota(parts.begin(), parts.end(), part);
  if (!loading->need(parts)) loading->over();
}

void read_floats(Format source, const uint8_t* p, size_t count, float* out) {
  if (source == Format::F32) {
    memcpy(out, p, 4 * count);
    return;
  }
  check(source == Format::F16 || source == Format::BF16, std::string("values in ") + info(source).name + "; allowed: F32, F16, BF16");
  for (size_t i = 0; i < count; i++) {
    uint16_t h;
    memcpy(&h, p + 2 * i, 2);
    out[i] = source == Format::F16 ? half_to_float(h) : bf16_to_float(h);
  }
}

std::vector<float> load_vector(const Gguf& file, const std::string& name) {
  const GgufTensor* t = file.find(name);
  check(t != nullptr, file.file().path() + ": no tensor '" + name + "'");
  const FormatInfo& f = *find_format(t->type);
  check(!f.act8 && t->bytes < (size_t(1) << 28), "tensor '" + name + "' is no small vector of floats");
  std::vector<float> v(t->bytes / f.source_bytes);
  std::vector<uint8_t> room;  // a page touched through the mapping would bring its neighbours, up to megabytes of them
  read_floats(f.format, read_into(room, file.file(), t->offset, t->bytes), v.size(), v.data());
  return v;
}

namespace {

void check_target(const FormatInfo& f, size_t k) {
  check(can_quantize(f.format), std::string("cannot quantize to ") + f.name + "; allowed: F32, F16, BF16, Q4_0, Q8_0");
  check(k % f.block == 0, "rows of " + std::to_string(k) + " values do not fill blocks of " + std::to_string(f.block) + "; use F16 or F32");
}

}  // namespace

Matrix quantize_matrix(Format f, const float* values, size_t experts, size_t rows, size_t k, int threads) {
  const FormatInfo& fi = info(f);
  check_target(fi, k);
  Matrix m = empty_matrix(f, experts, rows, k);
  uint8_t* out = const_cast<uint8_t*>(m.data);
  const size_t row_bytes = k / fi.block * fi.source_bytes;
  in_pieces(experts, rows, piece_rows(row_bytes), threads, [&](size_t e, size_t a, size_t b, std::vector<uint8_t>& q) {
    q.resize((b - a) * row_bytes);
    for (size_t r = a; r < b; r++) quantize_row(f, values + (e * rows + r) * k, k, &q[(r - a) * row_bytes]);
    pack_rows(f, q.data(), b - a, k, out + e * m.bytes_per_expert() + a / kRows * group_bytes(fi, k), default_kernels().pack);
  });
  return m;
}

Matrix quantize_parts(Format f, Format source, const std::vector<FloatPart>& parts, size_t rows, size_t k, int threads) {
  const FormatInfo &fi = info(f), &si = info(source);
  check_target(fi, k);
  const size_t most = size_t(1) << 24;
  check(!parts.empty() && rows && k && rows <= most && k <= most, "a matrix of impossible size");
  const size_t bytes = rows * k * si.source_bytes, row_bytes = k / fi.block * fi.source_bytes;
  for (const FloatPart& p : parts)
    check(p.offset <= p.file->size() && bytes <= p.file->size() - p.offset, p.file->path() + ": a tensor reaches outside the file; download or copy it again");
  Matrix m = empty_matrix(f, parts.size(), rows, k);
  uint8_t* out = const_cast<uint8_t*>(m.data);
  in_pieces(parts.size(), rows, piece_rows(row_bytes), threads, [&](size_t e, size_t a, size_t b, std::vector<uint8_t>& room) {
    const size_t source_row = k * si.source_bytes;
    const uint8_t* values = read_into(room, *parts[e].file, parts[e].offset + a * source_row, (b - a) * source_row);
    uint8_t* to = out + e * m.bytes_per_expert() + a / kRows * group_bytes(fi, k);
    if (f == source) return pack_rows(f, values, b - a, k, to, default_kernels().pack);
    std::vector<uint8_t> q((b - a) * row_bytes);
    std::vector<float> row(k);
    for (size_t r = a; r < b; r++) {
      read_floats(source, values + (r - a) * source_row, k, row.data());
      quantize_row(f, row.data(), k, &q[(r - a) * row_bytes]);
    }
    pack_rows(f, q.data(), b - a, k, to, default_kernels().pack);
  });
  return m;
}

}  // namespace hw
