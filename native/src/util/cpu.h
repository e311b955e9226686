// What this processor can do, asked once. The instruction sets are the ones the kernels are built for.
#pragma once
#include <string>
#include <vector>

namespace hw {

struct CpuFacts {
  bool avx2 = false;    // AVX2 + FMA + F16C, and the system saves the registers
  bool avx512 = false;  // F, BW, DQ, VL, VNNI, and the system saves the registers
  bool amx = false;     // avx512, GFNI, int8 and bfloat16 tiles, and the system grants this process the tiles' registers
  std::string brand;
};

const CpuFacts& cpu_facts();
std::vector<int> allowed_cpus();  // the processor numbers this process may run on

}  // namespace hw
