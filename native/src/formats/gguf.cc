#include "formats/gguf.h"

#include <cstring>
#include <type_traits>

#include "formats/formats.h"
#include "util/error.h"

namespace hw {

namespace {

enum Type : uint32_t { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };
constexpr size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr int kMaxDepth = 4;
constexpr uint64_t kMaxText = uint64_t(1) << 31;

// A place in the file that cannot be read past.
struct Cursor {
  const MappedFile& file;
  size_t at;

  [[noreturn]] void fault(const std::string& what) const {
    throw Error(file.path() + ": not a readable GGUF file: " + what + " at byte " + std::to_string(at));
  }
  void need(uint64_t bytes, const char* what) const {
    if (bytes > file.size() - at) fault(std::string("the file ends inside ") + what);
  }
  template <class T>
  T number(const char* what) {
    need(sizeof(T), what);
    T x;
    memcpy(&x, file.data() + at, sizeof(T));
    at += sizeof(T);
    return x;
  }
  std::string text(const char* what) {
    const uint64_t n = number<uint64_t>(what);
    if (n > kMaxText) fault(std::string(what) + " of " + std::to_string(n) + " bytes");
    need(n, what);
    std::string s(reinterpret_cast<const char*>(file.data() + at), size_t(n));
    at += size_t(n);
    return s;
  }
  void skip(uint32_t type, int depth) {
    if (type == STRING) {
      const uint64_t n = number<uint64_t>("a text");
      need(n, "a text");
      at += size_t(n);
    } else if (type == ARRAY) {
      if (depth == kMaxDepth) fault("arrays nested more than " + std::to_string(kMaxDepth) + " deep");
      const uint32_t item = number<uint32_t>("an array");
      const uint64_t n = number<uint64_t>("an array");
      if (item > F64) fault("array of type " + std::to_string(item));
      const uint64_t least = item == STRING ? 8 : item == ARRAY ? 12 : kSizes[item];
      if (n > (file.size() - at) / least) fault("an array of " + std::to_string(n) + " items, more than the file can hold");
      if (item != STRING && item != ARRAY)
        at += size_t(n) * kSizes[item];
      else
        for (uint64_t i = 0; i < n; i++) skip(item, depth + 1);
    } else {
      if (type > F64) fault("a value of type " + std::to_string(type));
      need(kSizes[type], "a value");
      at += kSizes[type];
    }
  }
  GgufValue value(uint32_t type) {
    switch (type) {
      case U8: return {uint64_t(number<uint8_t>("a value"))};
      case I8: return {int64_t(number<int8_t>("a value"))};
      case U16: return {uint64_t(number<uint16_t>("a value"))};
      case I16: return {int64_t(number<int16_t>("a value"))};
      case U32: return {uint64_t(number<uint32_t>("a value"))};
      case I32: return {int64_t(number<int32_t>("a value"))};
      case F32: return {double(number<float>("a value"))};
      case BOOL: return {number<uint8_t>("a value") != 0};
      case STRING: return {text("a text")};
      case U64: return {number<uint64_t>("a value")};
      case I64: return {number<int64_t>("a value")};
      case F64: return {number<double>("a value")};
      default: break;
    }
    const uint32_t item = number<uint32_t>("an array");  // sizes were checked by skip
    const uint64_t n = number<uint64_t>("an array");
    GgufArray a;
    a.reserve(size_t(n));
    for (uint64_t i = 0; i < n; i++) a.push_back(value(item));
    return {std::move(a)};
  }
};

const char* foreign_type(uint32_t type) {
  static constexpr const char* kNames[] = {"F32",  "F16",  "Q4_0", "Q4_1", "Q4_2", "Q4_3",    "Q5_0",   "Q5_1",    "Q8_0",  "Q8_1",   "Q2_K",  "Q3_K",
                                           "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS"};
  return type < sizeof kNames / sizeof *kNames ? kNames[type] : "unknown";
}

}  // namespace

Gguf::Gguf(const std::string& path) : file_(std::make_shared<MappedFile>(path)) {
  Cursor c{*file_, 0};
  if (file_->size() < 24 || memcmp(file_->data(), "GGUF", 4) != 0) c.fault("it does not begin with GGUF");
  c.at = 4;
  const uint32_t version = c.number<uint32_t>("the header");
  if (version != 2 && version != 3) c.fault("version " + std::to_string(version) + ", but 2 and 3 (little-endian) are read");
  const uint64_t tensors = c.number<uint64_t>("the header"), values = c.number<uint64_t>("the header");
  if (tensors > file_->size() / 32) c.fault(std::to_string(tensors) + " tensors, more than the file can hold");
  if (values > file_->size() / 13) c.fault(std::to_string(values) + " values, more than the file can hold");
  end_ = c.at;
  read_values(values);
  read_tensors(tensors);
}

void Gguf::read_values(uint64_t count) {
  Cursor c{*file_, end_};
  for (uint64_t i = 0; i < count; i++) {
    const std::string key = c.text("a key");
    if (!at_.emplace(key, c.at).second) c.fault("the key '" + key + "' stands twice");
    keys_.push_back(key);
    c.skip(c.number<uint32_t>("a type"), 0);
  }
  end_ = c.at;
}

void Gguf::read_tensors(uint64_t count) {
  Cursor c{*file_, end_};
  uint64_t align = 32;
  if (has("general.alignment")) {
    const GgufValue v = value("general.alignment");
    align = std::holds_alternative<uint64_t>(v.v) ? std::get<uint64_t>(v.v) : 0;
    if (align == 0 || align > (1u << 20) || (align & (align - 1))) c.fault("general.alignment is not a power of two up to 2^20");
  }
  for (uint64_t i = 0; i < count; i++) {
    GgufTensor t;
    t.name = c.text("a tensor's name");
    const uint32_t dims = c.number<uint32_t>("a tensor");
    if (dims < 1 || dims > 4) c.fault("tensor '" + t.name + "' has " + std::to_string(dims) + " dimensions");
    uint64_t values = 1;
    for (uint32_t d = 0; d < dims; d++) {
      const uint64_t n = c.number<uint64_t>("a tensor");
      if (n == 0 || n > (uint64_t(1) << 40) || values > (uint64_t(1) << 44) / n) c.fault("tensor '" + t.name + "' has an impossible shape");
      values *= n;
      t.dims.push_back(size_t(n));
    }
    t.type = c.number<uint32_t>("a tensor");
    const FormatInfo* f = find_format(t.type);
    if (!f) c.fault("tensor '" + t.name + "' has type " + std::to_string(t.type) + " (" + foreign_type(t.type) + "); allowed: " + format_names());
    if (t.dims[0] % f->block) c.fault("tensor '" + t.name + "' has rows of " + std::to_string(t.dims[0]) + ", which blocks of " + std::to_string(f->block) + " do not fill");
    const uint64_t offset = c.number<uint64_t>("a tensor");
    if (offset % align || offset > file_->size()) c.fault("tensor '" + t.name + "' stands at offset " + std::to_string(offset));
    t.offset = size_t(offset), t.bytes = size_t(values / f->block * f->source_bytes);
    if (!index_.emplace(t.name, tensors_.size()).second) c.fault("tensor '" + t.name + "' stands twice");
    tensors_.push_back(std::move(t));
  }
  const size_t start = (c.at + size_t(align) - 1) / size_t(align) * size_t(align);
  for (GgufTensor& t : tensors_) {
    if (start > file_->size() || t.offset > file_->size() - start || t.bytes > file_->size() - start - t.offset)
      c.fault("the file ends inside tensor '" + t.name + "'; it is truncated, download or copy it again");
    t.offset += start;
  }
}

GgufValue Gguf::value(const std::string& key) const {
  const auto it = at_.find(key);
  check(it != at_.end(), file_->path() + ": the metadata key '" + key + "' is missing");
  Cursor c{*file_, it->second};
  const uint32_t type = c.number<uint32_t>("a type");
  return c.value(type);
}

bool Gguf::texts(const std::string& key, std::vector<std::string_view>& out) const {
  const auto it = at_.find(key);
  if (it == at_.end()) return false;
  Cursor c{*file_, it->second};
  if (c.number<uint32_t>("a type") != ARRAY || c.number<uint32_t>("an array") != STRING) return false;
  out.resize(size_t(c.number<uint64_t>("an array")));  // skip has seen that the file holds as many
  for (std::string_view& text : out) {
    const size_t n = size_t(c.number<uint64_t>("a text"));
    c.need(n, "a text");
    text = {reinterpret_cast<const char*>(file_->data() + c.at), n};
    c.at += n;
  }
  return true;
}

bool Gguf::integers(const std::string& key, std::vector<int32_t>& out) const {
  const auto it = at_.find(key);
  if (it == at_.end()) return false;
  Cursor c{*file_, it->second};
  if (c.number<uint32_t>("a type") != ARRAY || c.number<uint32_t>("an array") != I32) return false;
  out.resize(size_t(c.number<uint64_t>("an array")));
  c.need(4 * out.size(), "an array");
  if (!out.empty()) memcpy(out.data(), file_->data() + c.at, 4 * out.size());
  return true;
}

const GgufTensor* Gguf::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

}  // namespace hw
