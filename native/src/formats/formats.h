// Number formats, one table row each. The numbers of the enum are the type ids of GGUF files.
// "Packed" is our layout: groups of 16 rows, interleaved (docs/native.md, section 4).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace hw {

enum class Format : uint32_t { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30 };

constexpr size_t kRows = 16;  // rows of a group

struct FormatInfo {
  Format format;
  const char* name;
  size_t block;         // inputs a block
  size_t source_bytes;  // of one row's block in a GGUF file
  size_t packed_bytes;  // of 16 rows' block in our layout
  bool act8;            // meets int8 activations (else fp32)
};

const FormatInfo* find_format(uint32_t id);  // nullptr: not one of ours
const FormatInfo& info(Format f);
const FormatInfo& format_named(const std::string& name);  // throws Error
std::string format_names();                               // of all rows, by commas

inline size_t groups_of(size_t rows) { return (rows + kRows - 1) / kRows; }
inline size_t group_bytes(const FormatInfo& f, size_t k) { return k / f.block * f.packed_bytes; }
inline size_t packed_bytes(const FormatInfo& f, size_t rows, size_t k) { return groups_of(rows) * group_bytes(f, k); }

// Whole groups only, fast; false: there is no fast way for the format. Kernels::pack is the one of an instruction set.
using PackGroups = bool (*)(Format f, const uint8_t* source, size_t groups, size_t k, uint8_t* packed);
bool pack_groups(Format f, const uint8_t* source, size_t groups, size_t k, uint8_t* packed);
// Repack `rows` rows of k inputs (k a multiple of the block) from GGUF order. Rows missing in the last group are zeros.
void pack_rows(Format f, const uint8_t* source, size_t rows, size_t k, uint8_t* packed, PackGroups fast = pack_groups);
// The same, block by block: the meaning of the layout.
void pack_rows_plain(Format f, const uint8_t* source, size_t rows, size_t k, uint8_t* packed);
// A Q4_K or Q5_K block's scales and minima, from the 16 bytes at its start, to `tail` of the packed block.
void put_k_scales(const uint8_t* source, size_t row, uint8_t* tail);
// Read one row back as floats.
void unpack_row(Format f, const uint8_t* packed, size_t row, size_t k, float* out);
// Quantize fp32 rows into GGUF order (F32, F16, BF16, Q4_0, Q8_0 only). Throws Error for a value that the format cannot hold.
bool can_quantize(Format f);
void quantize_row(Format f, const float* x, size_t k, uint8_t* out);

}  // namespace hw
