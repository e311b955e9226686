// The likeliest tokens of a row of logits.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace hw {

constexpr size_t kTopBlock = 256;

// The largest of every kTopBlock values (a NaN never is).
void tops_of(const float* x, size_t n, std::vector<float>& tops);

// Numbers of the k largest of n values, largest first; of equal ones the first. k at most n; a NaN is less than all.
std::vector<int32_t> largest(const float* x, size_t n, size_t k);

// Of each of `rows` rows of n logits: the k likeliest ids [rows][k], their log-probabilities [rows][k] and their share of the whole [rows].
void likeliest(const Kernels& kernels, const float* logits, size_t rows, size_t n, size_t k, int threads, int32_t* ids, float* logprobs, double* mass);

}  // namespace hw
