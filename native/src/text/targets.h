// Marks that compile one loop for several instruction sets, and which of them the processor has. For loops over whole numbers and for sums
// in a fixed order, which give the same in each.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define HW_TEXT_X86 1
#define HW_TEXT_AVX2 [[gnu::target("avx2")]]
#define HW_TEXT_AVX512 [[gnu::target("avx512f,avx512dq,avx512vl,avx512bw,prefer-vector-width=512")]]

namespace hw::text {

inline bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
}

inline bool has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw");
}

}  // namespace hw::text
#endif
