// Threads that the system may refuse: containers bound their number, and a vector of running threads must not be left by an exception.
#pragma once
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace hw {

// One more thread of `body`; false where the system gives none.
template <class Body>
bool another(std::vector<std::thread>& threads, Body&& body) {
  try {
    threads.emplace_back(std::forward<Body>(body));
  } catch (const std::system_error&) {
    return false;
  }
  return true;
}

}  // namespace hw
