#include <cstdlib>
#include <cstring>

#include "kernels/kernels.h"
#include "util/cpu.h"
#include "util/error.h"

namespace hw {

namespace portable {
const Kernels* table();
}
#ifdef HW_HAVE_X86
namespace avx2 {
const Kernels* table();
}
namespace avx512 {
const Kernels* table();
}
namespace amx {
const Kernels* table();
}
const Kernels* kernels_avx2() { return avx2::table(); }
const Kernels* kernels_avx512() { return avx512::table(); }
const Kernels* kernels_amx() { return amx::table(); }
#else
const Kernels* kernels_avx2() { return nullptr; }
const Kernels* kernels_avx512() { return nullptr; }
const Kernels* kernels_amx() { return nullptr; }
#endif
const Kernels* kernels_portable() { return portable::table(); }

namespace {
struct Choice {
  const char* name;
  const Kernels* (*table)();
  bool can;
};
}  // namespace

const Kernels& select_kernels(const char* name) {
  const CpuFacts& cpu = cpu_facts();
  const Choice all[] = {{"amx", kernels_amx, cpu.amx}, {"avx512", kernels_avx512, cpu.avx512}, {"avx2", kernels_avx2, cpu.avx2}, {"portable", kernels_portable, true}};
  for (const Choice& c : all) {
    if (*name && strcmp(name, c.name) != 0) continue;
    if (*name) {
      check(c.table() != nullptr, std::string("HEADWATER_ISA=") + name + ": not built into this library; unset it");
      check(c.can, std::string("HEADWATER_ISA=") + name + ": this processor (" + cpu.brand + ") cannot run it; unset it or use portable");
    }
    if (c.can && c.table()) return *c.table();
  }
  throw Error(std::string("HEADWATER_ISA=") + name + ": unknown; allowed: amx, avx512, avx2, portable");
}

const Kernels& default_kernels() {
  const char* name = getenv("HEADWATER_ISA");
  return select_kernels(name ? name : "");
}

}  // namespace hw
