// What this machine can do at most: bytes a second read from memory, multiply-adds a second in registers. For benchmarks alone.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace hw {

// Bytes read per second by `threads` threads, each over its own part of a fresh buffer in huge pages where the system has them, again and
// again for `seconds`: straight ahead, then in several streams at once, each half of the time; the better of the two.
// cpus: empty, or one processor number per thread to pin it to. Throws Error on a bad argument, OutOfMemory.
double read_bandwidth(size_t bytes, int threads, double seconds, const std::vector<int>& cpus);

// Multiply-adds per second of `threads` threads in registers alone. kind: "int8" (8-bit into 32-bit), "bf16", "fp32" in
// vector registers, "amx_int8", "amx_bf16" in tiles.
// 0 where this processor has no instruction for it. Throws Error on an unknown kind.
double peak(const std::string& kind, int threads, double seconds, const std::vector<int>& cpus);

}  // namespace hw
