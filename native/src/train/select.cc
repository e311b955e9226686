#include <cstdlib>
#include <cstring>

#include "train/train.h"
#include "util/cpu.h"
#include "util/error.h"

namespace hw {

namespace portable {
const train::Kernels* training();
}
#ifdef HW_HAVE_X86
namespace avx2 {
const train::Kernels* training();
}
namespace avx512 {
const train::Kernels* training();
}
#endif

namespace train {

const Kernels& select(const char* name) {
  struct Choice {
    const Kernels* table;
    bool can;
  };
  const Choice all[] = {
#ifdef HW_HAVE_X86
      {avx512::training(), cpu_facts().avx512}, {avx2::training(), cpu_facts().avx2},
#endif
      {portable::training(), true}};
  if (strcmp(name, "amx") == 0) name = "avx512";
  for (const Choice& c : all) {
    if (*name && strcmp(name, c.table->name) != 0) continue;
    check(c.can || !*name, std::string("HEADWATER_ISA=") + name + ": this processor (" + cpu_facts().brand + ") cannot run it; unset it or use portable");
    if (c.can) return *c.table;
  }
  throw Error(std::string("HEADWATER_ISA=") + name + ": unknown or not built; allowed: amx, avx512, avx2, portable");
}

const Kernels& best() {
  const char* name = getenv("HEADWATER_ISA");
  return select(name ? name : "");
}

}  // namespace train
}  // namespace hw
