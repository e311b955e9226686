// What the data pipeline counts over millions of texts: words, runs of words, C-MinHash, sums of vectors, the language.
// Every function gives the very numbers of its twin in headwater/data (words.py, ngrams.py, cminhash.py, embed.py, language.py, meaning.py).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hw::text {

// The finalizer of splitmix64.
inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Of every code point below `size` its kind (0 gap, 1 letter, 2 a word of its own) and the value of its lower-case form; those from
// `size` - 1 on share the last entry.
struct Alphabet {
  const uint8_t* kinds;
  const uint64_t* values;
  uint32_t size;
};

// Appends the hashes of the words of one text, given as `length` code points of one, two or four bytes each, and which are single
// characters (kind 2).
void append_words(const Alphabet& alphabet, const void* points, int width, size_t length, std::vector<uint64_t>& hashes, std::vector<uint8_t>& alone);

// Whether any of the code points is marked (not 0) in `marks`, of `size` entries; those from `size` - 1 on share the last one.
bool any_marked(const uint8_t* marks, uint32_t size, const void* points, int width, size_t length);

// What rules for shares count in a text: bytes of UTF-8, spaces, line ends, tabs, bytes of letters (A to Z, a to z, all of non-ASCII
// characters), digits, "#", and "..." (none twice) or U+2026. A half surrogate has three bytes.
constexpr size_t kCounts = 8;
void count_characters(const void* points, int width, size_t length, int64_t* counts);

// Words of many texts: text i has hashes[starts[i]] to hashes[starts[i + 1]].
struct Words {
  const uint64_t* hashes;
  const int64_t* starts;
  size_t texts;
};

// For each text with chosen[i]: how often its most frequent run of n words stands there, and how many of its runs stood there before.
void count_repeats(const Words& words, size_t n, const bool* chosen, int64_t* most, int64_t* again);

// For each text with chosen[i]: how many of its words lie in runs of n that stood before in it.
void count_covered(const Words& words, size_t n, const bool* chosen, int64_t* covered);

// A map of 2**bits bits, packed, the highest of a byte first.
struct BitMap {
  const uint8_t* bytes;
  int bits;
  bool has(uint64_t place) const { return bytes[place >> 3] >> (7 - (place & 7)) & 1; }
};

// Runs of words that may be known ones. Where a run of lengths[0] words begins whose hash is marked in `begins` by its top bits, the runs of
// all `lengths` (ascending) that begin there and whose hash is marked in `known` are found: their first words and hashes.
struct Found {
  std::vector<int64_t> first;
  std::vector<uint64_t> hashes;
};
Found find_runs(const Words& words, const std::vector<size_t>& lengths, const BitMap& begins, const BitMap& known);

// Signatures (texts, slots): mix of the least pi(sigma(shingle) - slot - 1), where sigma and pi are mix after adding a key; the mix of
// the largest number where a text has no word. A shingle is `width` words in a row, or all words of a shorter text.
void c_minhash(const Words& words, size_t width, size_t slots, uint64_t sigma_key, uint64_t pi_key, uint64_t* signatures);

// For each text the sum (dims) of the vectors of its words in order. row_of: from the top `bits` bits of a word's hash to its vector, or
// below 0 for none. filled: whether a text had any.
void sum_vectors(const Words& words, const int32_t* row_of, int bits, const float* vectors, size_t dims, float* sums, bool* filled);

// Evaluation items as bags of words; what that is stands in meaning.py. A word is a row by the top bits of its hash.
class Bags {
 public:
  static constexpr size_t kKeys = 8, kDims = 128;
  static constexpr int kRowBits = 16;
  struct Match {
    int64_t text;
    int32_t item;
    double cosine;
    int64_t first, end;  // words of the text
  };
  // Of each item: keys and shares (items, kKeys), vectors (items, kDims), lengths in words. weights: of every row.
  Bags(const uint16_t* keys, const uint8_t* shares, const int8_t* vectors, const uint16_t* lengths, size_t items, const uint8_t* weights);
  // Of each text that has one the best match of a cosine of at least `threshold`. needed: the share of its squared weight that the keys of
  // an item in the text must come to.
  std::vector<Match> find(const Words& words, const int32_t* needed, double threshold) const;
  size_t items() const { return lengths_.size(); }

 private:
  struct Search;
  void take_candidates(Search& search, const int32_t* needed) const;
  bool together(Search& search, size_t item, size_t length) const;
  Match best_window(Search& search, size_t item, size_t length) const;

  std::vector<uint16_t> keys_, lengths_;
  std::vector<uint8_t> shares_, weights_;
  std::vector<int8_t> vectors_;
  std::vector<int64_t> squares_;   // of the vectors' lengths
  std::vector<uint32_t> starts_;   // of each row in `postings_`
  std::vector<int32_t> postings_;  // items that are looked for by that row
};

// fastText's supervised model with hierarchical softmax, quantized input (.ftz), as far as lid.176 needs it. Bojanowski et al. 2017,
// arXiv:1607.04606 (subwords); Joulin et al. 2016, arXiv:1612.03651 (the compressed form).
class LanguageModel {
 public:
  explicit LanguageModel(const std::string& path);  // hw::Error: no such file, or not of this kind
  const std::vector<std::string>& labels() const { return labels_; }
  struct Guess {
    int32_t label;  // -1: nothing in the text is known to the model
    float chance;
  };
  Guess guess(std::string_view line) const;  // one line of UTF-8, without its end

 private:
  struct Node {
    int32_t left = -1, right = -1;
    int64_t count = int64_t(1) << 60;
  };
  void read(const std::string& bytes);
  void build_tree(const std::vector<int64_t>& counts);
  void add_subwords(std::string_view word, std::vector<int32_t>& rows) const;
  void add_token(std::string_view token, std::vector<int32_t>& rows) const;
  int32_t find_word(std::string_view token) const;
  void descend(int32_t node, float score, const float* hidden, Guess& best) const;

  int32_t dims_ = 0, shortest_ = 0, longest_ = 0, words_count_ = 0, end_of_line_ = -1;
  uint32_t buckets_ = 0;
  uint64_t bucket_magic_ = 0;  // for the remainder without a division (Lemire, Kaser & Kurz 2019, arXiv:1902.01961)
  std::vector<std::string> words_, labels_;
  std::vector<int32_t> slot_of_word_;                       // open addressing: hash -> index into words_
  std::vector<std::pair<int32_t, int32_t>> row_of_bucket_;  // open addressing: bucket -> row, -1 where empty
  std::vector<float> input_, output_;
  std::vector<Node> tree_;
};

}  // namespace hw::text
