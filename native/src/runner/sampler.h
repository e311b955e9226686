// Picking the next token: repetition penalty, temperature, top-k, top-p, min-p, in that order; temperature 0 is greedy.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace hw {

struct SamplingOptions {
  float temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1;
  int top_k = 0;
  int logprobs = -1;  // -1: none; n: the n likeliest tokens beside the chosen one
};

struct Picked {
  int32_t token = 0;
  float logprob = 0;                              // of the model's own distribution, before any rule; 0 unless asked for
  std::vector<std::pair<int32_t, float>> likely;  // likeliest first
};

class Sampler {
 public:
  Sampler(const SamplingOptions& options, uint64_t seed);
  void saw(int32_t token);  // a token of the prompt or of the answer, for the repetition penalty
  Picked pick(const float* logits, size_t n);

 private:
  double uniform();
  void keep_likeliest(double total);
  SamplingOptions options_;
  uint64_t state_[2];
  std::vector<bool> seen_;
  std::vector<int32_t> seen_list_;
  std::vector<std::pair<float, int32_t>> order_;
  std::vector<float> tops_;  // largest logit of each block
};

}  // namespace hw
