#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "kernels/kernels.h"
#include "python/bindings.h"
#include "util/cpu.h"
#include "util/error.h"

namespace nb = nanobind;

NB_MODULE(_native, m) {
  m.doc() = "The native core: weights, program, sampler. Used through headwater.engine.native only.";
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const hw::OutOfMemory& e) {
      PyErr_SetString(PyExc_MemoryError, e.what());
    } catch (const hw::Error& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    }
  });
  m.def("isa", [] { return std::string(hw::default_kernels().name); }, "the instruction set in use (HEADWATER_ISA forces one)");
  m.def("allowed_cpus", &hw::allowed_cpus, "processor numbers this process may run on");
  m.def("cpu_name", [] { return hw::cpu_facts().brand; });
  hw::bind_weights(m);
  hw::bind_program(m);
  hw::bind_probe(m);
}
