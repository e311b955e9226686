// Errors that the caller can mend: the binding turns them into ValueError (or MemoryError).
#pragma once
#include <stdexcept>
#include <string>

namespace hw {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct OutOfMemory : Error {
  using Error::Error;
};

inline void check(bool ok, const std::string& what) {
  if (!ok) throw Error(what);
}

}  // namespace hw
