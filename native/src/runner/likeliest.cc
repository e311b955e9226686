#include "runner/likeliest.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <thread>

#include "util/threads.h"

namespace hw {

// Compares lane by lane, so that any compiler makes it vector code.
void tops_of(const float* x, size_t n, std::vector<float>& tops) {
  tops.clear();
  for (size_t i = 0; i < n; i += kTopBlock) {
    float lane[16];
    std::fill(lane, lane + 16, -INFINITY);
    const size_t count = std::min(kTopBlock, n - i), whole = count / 16 * 16;
    for (size_t j = 0; j < whole; j += 16)
      for (size_t l = 0; l < 16; l++) lane[l] = x[i + j + l] > lane[l] ? x[i + j + l] : lane[l];
    for (size_t j = whole; j < count; j++) lane[0] = x[i + j] > lane[0] ? x[i + j] : lane[0];
    tops.push_back(*std::max_element(lane, lane + 16));
  }
}

std::vector<int32_t> largest(const float* x, size_t n, size_t k) {
  std::vector<float> tops;
  tops_of(x, n, tops);
  float floor = -INFINITY;  // as many blocks have a value of at least this
  if (k && k <= tops.size()) {
    std::vector<float> sorted = tops;
    std::nth_element(sorted.begin(), sorted.begin() + long(k - 1), sorted.end(), std::greater<float>());
    floor = sorted[k - 1];
  }
  std::vector<int32_t> ids;
  for (size_t b = 0; b < tops.size(); b++) {
    if (tops[b] < floor) continue;
    for (size_t i = b * kTopBlock; i < std::min(n, (b + 1) * kTopBlock); i++)
      if (x[i] >= floor || floor == -INFINITY) ids.push_back(int32_t(i));
  }
  const auto before = [&](int32_t a, int32_t b) {
    const float u = std::isnan(x[a]) ? -INFINITY : x[a], v = std::isnan(x[b]) ? -INFINITY : x[b];
    return u > v || (u == v && a < b);
  };
  std::partial_sort(ids.begin(), ids.begin() + long(k), ids.end(), before);
  ids.resize(k);
  return ids;
}

void likeliest(const Kernels& kernels, const float* logits, size_t rows, size_t n, size_t k, int threads, int32_t* ids, float* logprobs, double* mass) {
  const auto some = [&](size_t from, size_t to) {
    for (size_t r = from; r < to; r++) {
      const float* x = logits + r * n;
      const std::vector<int32_t> best = largest(x, n, k);
      const double whole = double(x[best[0]]) + std::log(kernels.sum_exp(x, n, x[best[0]]));
      mass[r] = 0;
      for (size_t i = 0; i < k; i++) {
        const double logprob = double(x[best[i]]) - whole;
        ids[r * k + i] = best[i], logprobs[r * k + i] = float(logprob), mass[r] += std::exp(logprob);
      }
    }
  };
  const size_t parts = std::max<size_t>(1, std::min(rows, size_t(threads)));
  std::vector<std::thread> others;
  for (size_t p = 1; p < parts; p++) {
    const auto part = [&, p] { some(rows * p / parts, rows * (p + 1) / parts); };
    if (!another(others, part)) part();
  }
  some(0, rows / parts);
  for (std::thread& t : others) t.join();
}

}  // namespace hw
