#include "runner/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "runner/likeliest.h"
#include "util/error.h"

namespace hw {

namespace {

uint64_t split_mix(uint64_t& x) {
  uint64_t z = (x += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// The first of the largest values.
size_t best_of(const float* x, size_t n, const std::vector<float>& tops) {
  if (tops.empty()) return 0;
  const size_t block = size_t(std::max_element(tops.begin(), tops.end()) - tops.begin());
  for (size_t i = block * kTopBlock; i < n; i++)
    if (x[i] == tops[block]) return i;
  return 0;
}

double log_sum_exp(const float* x, size_t n, float top) {
  double s = 0;
  for (size_t i = 0; i < n; i++) s += std::exp(double(x[i] - top));
  return double(top) + std::log(s);
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options, uint64_t seed) : options_(options) {
  for (uint64_t& s : state_) s = split_mix(seed);
}

void Sampler::saw(int32_t token) {
  if (options_.repetition_penalty == 1 || token < 0) return;
  if (size_t(token) >= seen_.size()) seen_.resize(size_t(token) + 1);
  if (!seen_[size_t(token)]) seen_list_.push_back(token);
  seen_[size_t(token)] = true;
}

void Sampler::wrote(int32_t token) {
  saw(token);
  if (options_.presence_penalty != 0 || options_.frequency_penalty != 0) counts_[token]++;
}

double Sampler::uniform() {  // xoroshiro128+
  const uint64_t a = state_[0], sum = a + state_[1], b = a ^ state_[1];
  state_[0] = ((a << 24) | (a >> 40)) ^ b ^ (b << 16);
  state_[1] = (b << 37) | (b >> 27);
  return double(sum >> 11) * 0x1.0p-53;
}

// order_ holds (probability / the peak's, token): cut it to top_k, then to the share top_p of what is left, then to min_p.
void Sampler::keep_likeliest(double total) {
  const auto less = [](const auto& a, const auto& b) { return a.first < b.first || (a.first == b.first && a.second > b.second); };
  const size_t most = options_.top_k > 0 ? std::min(order_.size(), size_t(options_.top_k)) : order_.size();
  std::vector<std::pair<float, int32_t>> kept;
  std::make_heap(order_.begin(), order_.end(), less);
  const auto next = [&] {
    std::pop_heap(order_.begin(), order_.end(), less);
    kept.push_back(order_.back());
    order_.pop_back();
  };
  if (most < order_.size()) {
    total = 0;
    while (kept.size() < most) next(), total += double(kept.back().first);
    order_.clear();
  }
  double mass = 0;
  size_t count = 0;
  for (; count < most; count++) {
    if (count == kept.size()) next();
    if (count && (mass / total >= double(options_.top_p) || kept[count].first < options_.min_p)) break;
    mass += double(kept[count].first);
  }
  kept.resize(count);
  order_.swap(kept);
}

bool Sampler::changes(const Choice& choice) const {
  return (options_.repetition_penalty != 1 && !seen_list_.empty()) || !counts_.empty() || !options_.bias.empty() || choice.allowed ||
         (choice.forbidden && !choice.forbidden->empty());
}

void Sampler::adjust(std::vector<float>& x, const Choice& choice) const {
  const SamplingOptions& o = options_;
  const size_t n = x.size();
  if (o.repetition_penalty != 1)
    for (int32_t t : seen_list_)
      if (size_t(t) < n) x[size_t(t)] = x[size_t(t)] > 0 ? x[size_t(t)] / o.repetition_penalty : x[size_t(t)] * o.repetition_penalty;
  for (const auto& [t, count] : counts_)
    if (size_t(t) < n) x[size_t(t)] -= o.presence_penalty + o.frequency_penalty * float(count);
  for (const auto& [t, added] : o.bias)
    if (t >= 0 && size_t(t) < n) x[size_t(t)] += added;
  if (choice.forbidden)
    for (int32_t t : *choice.forbidden)
      if (t >= 0 && size_t(t) < n) x[size_t(t)] = -INFINITY;
  if (!choice.allowed) return;
  for (size_t w = 0; w * 32 < n; w++) {
    const uint32_t bits = w < choice.words ? choice.allowed[w] : 0;
    if (bits == ~0u) continue;
    for (size_t i = w * 32, end = std::min(n, i + 32); i < end; i++)
      if (!(bits >> (i & 31) & 1)) x[i] = -INFINITY;
  }
}

// From temperature on. A token below the peak by more than `reach` has less than 2^-40 of its probability; no sum sees it.
int32_t Sampler::draw(const float* x, size_t n, size_t best) {
  const SamplingOptions& o = options_;
  const float reach = o.min_p > 0 && o.top_p >= 1 ? std::min(28.0f, 1e-4f - std::log(o.min_p)) : 28.0f;
  const float floor = x[best] - reach * o.temperature;
  order_.clear();
  double total = 0;
  for (size_t block = 0; block < tops_.size(); block++) {
    if (!(tops_[block] >= floor)) continue;
    for (size_t i = block * kTopBlock; i < std::min(n, (block + 1) * kTopBlock); i++)
      if (x[i] >= floor) order_.emplace_back(std::exp((x[i] - x[best]) / o.temperature), int32_t(i)), total += double(order_.back().first);
  }
  if (o.top_k > 0 || o.top_p < 1 || o.min_p > 0) keep_likeliest(total);
  const size_t count = order_.size();
  total = 0;
  for (const auto& [p, t] : order_) total += double(p);
  double u = uniform() * total;
  size_t i = 0;
  while (i + 1 < count && (u -= double(order_[i].first)) >= 0) i++;
  return order_[i].second;
}

void Sampler::report(const float* logits, size_t n, Picked& r) const {
  const double lse = log_sum_exp(logits, n, *std::max_element(logits, logits + n));
  r.logprob = float(double(logits[r.token]) - lse);
  const size_t k = std::min(n, size_t(options_.logprobs));
  if (!k) return;
  for (int32_t id : largest(logits, n, k)) r.likely.emplace_back(id, float(double(logits[id]) - lse));
}

Picked Sampler::pick(const float* logits, size_t n, const Choice& choice) {
  Picked r;
  if (choice.forced >= 0) {
    check(size_t(choice.forced) < n, "token " + std::to_string(choice.forced) + " is forced, but the vocabulary has " + std::to_string(n));
    r.token = choice.forced;
  } else {
    const float* x = logits;
    if (changes(choice)) {
      own_.assign(logits, logits + n);
      adjust(own_, choice);
      x = own_.data();
    }
    tops_of(x, n, tops_);
    const size_t best = best_of(x, n, tops_);
    check(x[best] > -INFINITY, choice.allowed ? "the mask of this request allows no token" : "no token has a logit that is a number; the weights are damaged");
    r.token = options_.temperature <= 0 || options_.top_k == 1 ? int32_t(best) : draw(x, n, best);
  }
  if (options_.logprobs >= 0) report(logits, n, r);
  return r;
}

}  // namespace hw
