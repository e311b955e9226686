// The limits of this machine, for benchmarks.
#include "probe/probe.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "python/bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace hw {

void bind_probe(nb::module_& m) {
  m.def("read_bandwidth", &read_bandwidth, nb::call_guard<nb::gil_scoped_release>(), nb::kw_only(), "bytes"_a, "threads"_a, "seconds"_a,
        "cpus"_a = std::vector<int>(), "bytes per second that `threads` threads read from a buffer of `bytes`");
  m.def("peak", &peak, nb::call_guard<nb::gil_scoped_release>(), "kind"_a, nb::kw_only(), "threads"_a, "seconds"_a,
        "cpus"_a = std::vector<int>(), "multiply-adds per second of int8, bf16 or fp32; 0 where this processor has none");
}

}  // namespace hw
