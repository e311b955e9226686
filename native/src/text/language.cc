#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

#include "text/text.h"
#include "util/error.h"

namespace hw::text {

namespace {

constexpr int32_t kMagic = 793712314, kVersion = 12, kHierarchicalSoftmax = 1, kSupervised = 3;
constexpr size_t kCentroids = 256;
constexpr int64_t kMostSeen = int64_t(1) << 50;  // so that no sum of counts reaches that of a tree's node not yet made
constexpr std::string_view kEndOfLine = "</s>", kSpaces = " \n\r\t\v\f";
constexpr uint32_t kFnvStart = 2166136261u, kFnvPrime = 16777619u;

// Reads plain values out of a file in memory.
class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}
  template <typename T>
  T value() {
    T out;
    std::memcpy(&out, take(sizeof(T)), sizeof(T));
    return out;
  }
  template <typename T>
  std::vector<T> values(int64_t count) {
    check(count >= 0 && size_t(count) <= bytes_.size() / sizeof(T), "language model: a size in the file is beyond its end");
    std::vector<T> out(static_cast<size_t>(count));
    if (count) std::memcpy(out.data(), take(sizeof(T) * size_t(count)), sizeof(T) * size_t(count));
    return out;
  }
  std::string text() {
    const size_t end = bytes_.find('\0', at_);
    check(end != std::string::npos, "language model: the file ends inside a word");
    std::string out = bytes_.substr(at_, end - at_);
    at_ = end + 1;
    return out;
  }

 private:
  const char* take(size_t size) {
    check(size <= bytes_.size() - at_, "language model: the file is shorter than it says");
    const char* here = bytes_.data() + at_;
    at_ += size;
    return here;
  }
  const std::string& bytes_;
  size_t at_ = 0;
};

uint32_t grown(uint32_t hash, char byte) { return (hash ^ uint32_t(int32_t(static_cast<signed char>(byte)))) * kFnvPrime; }

uint32_t hash_of(std::string_view text) {
  uint32_t hash = kFnvStart;
  for (const char c : text) hash = grown(hash, c);
  return hash;
}

bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

bool is_space(char c) { return c == '\0' || kSpaces.find(c) != std::string_view::npos; }

size_t bucket_place(int32_t bucket, size_t size) { return size_t(uint32_t(bucket) * 2654435761u) & (size - 1); }

// A product quantizer: dims cut into parts of `width`, each part one of 256 centroids.
struct Quantizer {
  int32_t dims, parts, width, last_width;
  std::vector<float> centroids;
  explicit Quantizer(Reader& in) {
    dims = in.value<int32_t>(), parts = in.value<int32_t>(), width = in.value<int32_t>(), last_width = in.value<int32_t>();
    check(dims > 0 && parts > 0 && width > 0 && last_width > 0 && int64_t(parts - 1) * width + last_width == dims,
          "language model: the parts of a quantizer do not add up");
    centroids = in.values<float>(int64_t(dims) * int64_t(kCentroids));
  }
  const float* centroid(int32_t part, uint8_t code) const {
    const size_t before = size_t(part) * kCentroids * size_t(width);
    return centroids.data() + before + size_t(code) * size_t(part == parts - 1 ? last_width : width);
  }
};

std::vector<float> unpacked(Reader& in, int32_t dims) {
  const bool with_norms = in.value<uint8_t>() != 0;
  const int64_t rows = in.value<int64_t>(), columns = in.value<int64_t>();
  const std::vector<uint8_t> codes = in.values<uint8_t>(in.value<int32_t>());
  const Quantizer quantizer(in);
  check(columns == dims && quantizer.dims == dims && int64_t(codes.size()) == rows * quantizer.parts,
        "language model: the sizes of the input vectors do not fit each other");
  std::vector<float> norms(size_t(rows), 1.0f);
  if (with_norms) {
    const std::vector<uint8_t> norm_codes = in.values<uint8_t>(rows);
    const Quantizer of_norms(in);
    check(of_norms.dims == 1, "language model: norms are no single numbers");
    for (size_t i = 0; i < norms.size(); ++i) norms[i] = *of_norms.centroid(0, norm_codes[i]);
  }
  std::vector<float> out(size_t(rows) * size_t(dims));
  for (size_t row = 0; row < norms.size(); ++row) {
    float* to = out.data() + row * size_t(dims);
    for (int32_t part = 0; part < quantizer.parts; ++part) {
      const float* from = quantizer.centroid(part, codes[row * size_t(quantizer.parts) + size_t(part)]);
      const int32_t width = part == quantizer.parts - 1 ? quantizer.last_width : quantizer.width;
      for (int32_t i = 0; i < width; ++i) *to++ = norms[row] * from[i];
    }
  }
  return out;
}

float log_of(float x) { return float(std::log(double(x) + 1e-5)); }

}  // namespace

LanguageModel::LanguageModel(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  check(file.is_open(), "language model: cannot open " + path);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  read(bytes);
}

void LanguageModel::read(const std::string& bytes) {
  Reader in(bytes);
  check(in.value<int32_t>() == kMagic && in.value<int32_t>() == kVersion, "language model: not a fastText file of version 12");
  const std::vector<int32_t> options = in.values<int32_t>(12);
  in.value<double>();
  dims_ = options[0];
  const int32_t word_runs = options[5], loss = options[6], kind = options[7], buckets = options[8];
  shortest_ = options[9], longest_ = options[10], buckets_ = uint32_t(buckets);
  check(dims_ > 0 && buckets > 0 && word_runs == 1 && loss == kHierarchicalSoftmax && kind == kSupervised && shortest_ > 0,
        "language model: only a supervised model with hierarchical softmax, subwords and single words is read");
  bucket_magic_ = ~uint64_t(0) / buckets_ + 1;
  const int32_t entries = in.value<int32_t>();
  words_count_ = in.value<int32_t>();
  const int32_t num_labels = in.value<int32_t>();
  in.value<int64_t>();
  const int64_t pruned = in.value<int64_t>();
  check(words_count_ >= 0 && num_labels > 0 && entries == words_count_ + num_labels && pruned > 0,
        "language model: only a pruned dictionary of words and labels is read");
  std::vector<int64_t> counts;
  for (int32_t i = 0; i < entries; ++i) {
    std::string text = in.text();
    const int64_t count = in.value<int64_t>();
    const bool is_label = in.value<int8_t>() != 0;
    check(is_label == (i >= words_count_), "language model: words and labels are mixed");
    check(count >= 0 && count < kMostSeen, "language model: a count is beyond all reason");
    if (is_label) counts.push_back(count);
    (is_label ? labels_ : words_).push_back(std::move(text));
  }
  check(pruned <= int64_t(bytes.size()), "language model: a size in the file is beyond its end");
  const std::vector<int32_t> pairs = in.values<int32_t>(2 * pruned);
  row_of_bucket_.assign(std::bit_ceil(pairs.size()) * 2, {-1, -1});
  for (size_t i = 0; i < pairs.size(); i += 2) {
    check(pairs[i] >= 0 && pairs[i + 1] >= 0 && pairs[i + 1] < pruned, "language model: a subword has no row of its own");
    size_t at = bucket_place(pairs[i], row_of_bucket_.size());
    while (row_of_bucket_[at].first >= 0) at = (at + 1) & (row_of_bucket_.size() - 1);
    row_of_bucket_[at] = {pairs[i], words_count_ + pairs[i + 1]};
  }
  check(in.value<uint8_t>() != 0, "language model: the input vectors are not quantized");
  input_ = unpacked(in, dims_);
  check(in.value<uint8_t>() == 0, "language model: the output vectors are quantized");
  const int64_t rows = in.value<int64_t>(), columns = in.value<int64_t>();
  check(rows == num_labels && columns == dims_, "language model: the output vectors do not fit the labels");
  output_ = in.values<float>(rows * columns);
  for (const auto& [bucket, row] : row_of_bucket_)
    check(bucket < 0 || (row >= words_count_ && size_t(row) < input_.size() / size_t(dims_)), "language model: a row is beyond the vectors");
  check(size_t(words_count_) <= input_.size() / size_t(dims_), "language model: there are fewer vectors than words");
  slot_of_word_.assign(std::bit_ceil(words_.size() * 2 + 1), -1);
  for (size_t i = 0; i < words_.size(); ++i) {
    size_t at = hash_of(words_[i]) & (slot_of_word_.size() - 1);
    while (slot_of_word_[at] >= 0) at = (at + 1) & (slot_of_word_.size() - 1);
    slot_of_word_[at] = int32_t(i);
  }
  end_of_line_ = find_word(kEndOfLine);
  build_tree(counts);
}

// The Huffman tree of the labels, which stand by falling count: leaves first, then inner nodes as they are made.
void LanguageModel::build_tree(const std::vector<int64_t>& counts) {
  const int32_t leaves = int32_t(counts.size());
  tree_.assign(size_t(2 * leaves - 1), Node{});
  for (int32_t i = 0; i < leaves; ++i) tree_[size_t(i)].count = counts[size_t(i)];
  int32_t leaf = leaves - 1, node = leaves;
  for (int32_t i = leaves; i < 2 * leaves - 1; ++i) {
    int32_t least[2];
    for (int32_t& one : least) one = leaf >= 0 && tree_[size_t(leaf)].count < tree_[size_t(node)].count ? leaf-- : node++;
    tree_[size_t(i)] = {least[0], least[1], tree_[size_t(least[0])].count + tree_[size_t(least[1])].count};
  }
}

int32_t LanguageModel::find_word(std::string_view token) const {
  for (size_t at = hash_of(token) & (slot_of_word_.size() - 1);; at = (at + 1) & (slot_of_word_.size() - 1)) {
    const int32_t word = slot_of_word_[at];
    if (word < 0 || words_[size_t(word)] == token) return word;
  }
}

void LanguageModel::add_subwords(std::string_view word, std::vector<int32_t>& rows) const {
  for (size_t i = 0; i < word.size(); ++i) {
    if (continues(word[i])) continue;
    uint32_t hash = kFnvStart;
    size_t end = i;
    for (int32_t n = 1; end < word.size() && n <= longest_; ++n) {
      do hash = grown(hash, word[end++]);
      while (end < word.size() && continues(word[end]));
      if (n < shortest_ || (n == 1 && (i == 0 || end == word.size()))) continue;
      const int32_t bucket = int32_t(uint64_t((unsigned __int128)(bucket_magic_ * hash) * buckets_ >> 64));
      for (size_t at = bucket_place(bucket, row_of_bucket_.size()); row_of_bucket_[at].first >= 0;
           at = (at + 1) & (row_of_bucket_.size() - 1)) {
        if (row_of_bucket_[at].first != bucket) continue;
        rows.push_back(row_of_bucket_[at].second);
        break;
      }
    }
  }
}

void LanguageModel::add_token(std::string_view token, std::vector<int32_t>& rows) const {
  const int32_t word = find_word(token);
  if (word >= 0) rows.push_back(word);
  if (token == kEndOfLine) return;
  std::string marked;
  marked.reserve(token.size() + 2);
  marked.append("<").append(token).append(">");
  add_subwords(marked, rows);
}

LanguageModel::Guess LanguageModel::guess(std::string_view line) const {
  std::vector<int32_t> rows;
  for (size_t at = 0; at < line.size();) {
    size_t end = at;
    while (end < line.size() && !is_space(line[end])) ++end;
    const std::string_view token = line.substr(at, end - at);
    if (!token.empty()) add_token(token, rows);
    if (token == kEndOfLine) break;  // the library reads on with the next call only
    at = end + 1;
  }
  if (end_of_line_ >= 0) rows.push_back(end_of_line_);
  if (rows.empty()) return {-1, 0.0f};
  std::vector<float> hidden(size_t(dims_), 0.0f);
  for (const int32_t row : rows) {
    const float* from = input_.data() + size_t(row) * size_t(dims_);
    for (size_t d = 0; d < hidden.size(); ++d) hidden[d] += from[d];
  }
  const float share = float(1.0 / double(rows.size()));
  for (float& h : hidden) h *= share;
  Guess best{-1, -INFINITY};
  descend(int32_t(tree_.size()) - 1, 0.0f, hidden.data(), best);
  return {best.label, std::exp(best.chance)};
}

void LanguageModel::descend(int32_t number, float score, const float* hidden, Guess& best) const {
  if (score < best.chance || score < log_of(0.0f)) return;
  const Node& node = tree_[size_t(number)];
  if (node.left < 0) {
    best = {number, score};
    return;
  }
  const float* weights = output_.data() + size_t(number - int32_t(labels_.size())) * size_t(dims_);
  float dot = 0.0f;
  for (int32_t d = 0; d < dims_; ++d) dot += weights[d] * hidden[d];
  const float right = float(1.0 / double(1.0f + std::exp(-dot)));
  descend(node.left, score + log_of(float(1.0 - double(right))), hidden, best);
  descend(node.right, score + log_of(right), hidden, best);
}

}  // namespace hw::text
