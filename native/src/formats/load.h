// Matrices made from files or arrays: repacked by several threads, the source's pages given back on the way.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "formats/gguf.h"
#include "runner/program.h"

namespace hw {

// One matrix of a GGUF file. rotary_heads > 0: the rows of each head stand as interleaved pairs (llama files) and are put back to halves.
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
