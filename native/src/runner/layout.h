// Where the buffers of a program stand in its memory. It takes shapes alone, so what a model will need is known before a weight is read.
#pragma once
#include <cstdint>
#include <vector>

#include "runner/program.h"

namespace hw {

struct Layout {  // one entry a buffer
  std::vector<size_t> at;  // bytes from the start
  std::vector<bool> kept;  // outlives the run
  size_t bytes = 0;        // of all together
};

// Per op: the rope or attention that can do its work or whose work it can do, or SIZE_MAX. That is the rope whose results an attention is
// the first and only one to read.
std::vector<size_t> partners(const std::vector<Op>& ops);

// Buffers that are never alive together share memory. wide: prompts are kept as bfloat16. Throws Error for an op over a buffer that is not there.
Layout lay_out(const ProgramSpec& spec, bool wide);

// The pointers of a buffer that stands at `at`.
Acts place(const ProgramSpec& spec, const BufferSpec& b, bool wide, uint8_t* at);

// What Program::memory() of this spec will say; its matrices and vectors are not looked at.
size_t planned_memory(const ProgramSpec& spec, const Kernels& kn);

}  // namespace hw
