// Matrices made from files or arrays: repacked by several threads, the source's pages given back on the way.
#pragma once
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "formats/gguf.h"
#include "runner/program.h"

namespace hw {

// Matrices of a GGUF file that are repacked while their user does something else: those without experts first, and what is needed before all
// others. From any thread.
class Loading {
 public:
  // Begins at once, on one thread fewer than `threads`: the last is whoever waits. Throws for what load_matrix would throw for, except for
  // what only reading finds out.
  Loading(const Gguf& file, const std::vector<std::string>& names, int threads);
  ~Loading();  // stops what was not waited for
  Loading(const Loading&) = delete;
  const Matrix* find(const std::string& name) const;  // whose data may not be there yet
  // Parts (a matrix, or one of its experts) that have to be there now: takes part in the work. False: reading failed, `over` says why.
  bool need(const std::vector<size_t>& parts) noexcept;
  bool over();  // is everything there? Throws what went wrong

 private:
  struct Piece {
    size_t matrix, part, expert, begin, end;  // rows
  };
  void work();
  void take(std::unique_lock<std::mutex>& held, size_t piece, std::vector<uint8_t>& room);
  std::shared_ptr<const MappedFile> file_;
  std::vector<Matrix> matrices_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<Piece> pieces_;
  std::vector<size_t> first_;  // piece of a part, and one more
  std::mutex guard_;           // of all that follows
  std::condition_variable there_;
  std::vector<bool> taken_;    // pieces
  std::vector<size_t> left_;   // pieces of a part
  std::vector<size_t> urgent_; // pieces, the last one first
  size_t next_ = 0, parts_left_ = 0;
  std::exception_ptr fault_;
  std::vector<std::thread> others_;
};

// One matrix of a GGUF file. rotary_heads > 0: the rows of each head stand as interleaved pairs (llama files) and are put back to halves.
// One that was begun is given out at once.
Matrix load_matrix(const Gguf& file, const std::string& name, size_t rotary_heads, int threads);
// A small tensor as floats (F32, F16, BF16).
std::vector<float> load_vector(const Gguf& file, const std::string& name);
// fp32 values [experts][rows][k], quantized.
Matrix quantize_matrix(Format f, const float* values, size_t experts, size_t rows, size_t k, int threads);

// Where a tensor of floats stands.
struct FloatPart {
  std::shared_ptr<const MappedFile> file;
  size_t offset;
};
// Tensors of F32, F16 or BF16 as a file holds them (one an expert), quantized piece by piece: no copy in fp32 is ever whole.
Matrix quantize_parts(Format f, Format source, const std::vector<FloatPart>& parts, size_t rows, size_t k, int threads);
// `count` values of F32, F16 or BF16 as floats.
void read_floats(Format source, const uint8_t* p, size_t count, float* out);

}  // namespace hw
