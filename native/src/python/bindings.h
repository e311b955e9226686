// One bind_ function per file; module.cc calls them.
#pragma once
#include <nanobind/nanobind.h>

namespace hw {
void bind_weights(nanobind::module_& m);
void bind_program(nanobind::module_& m);
void bind_probe(nanobind::module_& m);
}  // namespace hw
