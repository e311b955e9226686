// Picking the next token. The rules, in order: repetition penalty, presence and frequency penalty, bias, what is allowed, temperature, top-k,
// top-p, min-p; temperature 0 is greedy.
#pragma once
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace hw {

struct SamplingOptions {
  float temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int top_k = 0;
  int logprobs = -1;  // -1: none; n: the n likeliest tokens beside the chosen one
  std::vector<std::pair<int32_t, float>> bias;
};

// What one pick may choose from. allowed: one bit a token, or none for all; a token beyond its end is not allowed.
struct Choice {
  const uint32_t* allowed = nullptr;
  size_t words = 0;
  const std::vector<int32_t>* forbidden = nullptr;
  int32_t forced = -1;  // the token, whatever its probability
};

struct Picked {
  int32_t token = 0;
  float logprob = 0;                              // of the model's own distribution, before any rule; 0 unless asked for
  std::vector<std::pair<int32_t, float>> likely;  // likeliest first
};

class Sampler {
 public:
  Sampler(const SamplingOptions& options, uint64_t seed);
  void saw(int32_t token);    // a token of the prompt, for the repetition penalty
  void wrote(int32_t token);  // a token of the answer
  Picked pick(const float* logits, size_t n, const Choice& choice = {});  // throws Error when nothing is allowed

 private:
  double uniform();
  bool changes(const Choice& choice) const;
  void adjust(std::vector<float>& x, const Choice& choice) const;
  int32_t draw(const float* x, size_t n, size_t best);
  void report(const float* logits, size_t n, Picked& r) const;
  void keep_likeliest(double total);
  SamplingOptions options_;
  uint64_t state_[2];
  std::vector<bool> seen_;
  std::vector<int32_t> seen_list_;
  std::unordered_map<int32_t, int32_t> counts_;
  std::vector<std::pair<float, int32_t>> order_;
  std::vector<float> own_;
};

}  // namespace hw
