// Sixteen lanes on every machine: vf (float), vi (int32), vb (64 bytes). vec_portable.h is the meaning; the others must agree with it
// (integers bit for bit). Kernels are written once against these names and compiled per instruction set in their own namespace HW_NS.
// Only static functions here, so that code built for a newer processor is never shared with the rest of the program.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "util/half.h"

#ifndef HW_NS
#error "kernels are compiled through src/isa/unit.cc, which names the instruction set"
#endif
#if defined(HW_AVX512) || defined(HW_AVX2)
#define HW_INLINE static inline __attribute__((always_inline))
#define HW_PRAGMA(x) _Pragma(#x)
#define HW_UNROLL(n) HW_PRAGMA(GCC unroll n)
#else  // speed is not the portable path's business, compile time is
#define HW_INLINE static inline
#define HW_UNROLL(n)
#endif

namespace hw::HW_NS {
constexpr int kLanes = 16;
}

#if defined(HW_AVX512)
#include "simd/vec_avx512.h"
#if defined(HW_AMX)
#include "simd/tiles.h"
#endif
#elif defined(HW_AVX2)
#include "simd/vec_avx2.h"
#else
#include "simd/vec_portable.h"
#endif

namespace hw::HW_NS {

HW_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
HW_INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }  // into the second cache

// e^x for x <= 88; below -87 the result is 0. Relative error under 2e-7 (degree 6 on |r| <= ln2/2).
// What is no number stays none: where one of two is none, min and max give the second.
HW_INLINE vf vf_exp(vf x) {
  const vf lo = vf_set1(-87.0f), clipped = vf_max(lo, vf_min(vf_set1(88.0f), x));
  const vi n = vi_round(vf_mul(clipped, vf_set1(1.44269504088896341f)));
  const vf nf = vf_from(n);
  vf r = vf_fma(nf, vf_set1(-0.693359375f), clipped);
  r = vf_fma(nf, vf_set1(2.12194440e-4f), r);
  vf p = vf_set1(1.3981999507e-3f);
  p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
  p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
  p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
  p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
  p = vf_fma(vf_mul(p, r), r, vf_add(r, vf_set1(1.0f)));
  return vf_zero_below(x, lo, vf_mul(p, vf_pow2(n)));
}

HW_INLINE vf vf_sigmoid(vf x) { return vf_div(vf_set1(1.0f), vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_zero(), x)))); }

HW_INLINE vf vf_tanh(vf x) {  // 1 - 2 / (e^2x + 1)
  const vf e = vf_exp(vf_min(vf_add(x, x), vf_set1(40.0f)));
  return vf_sub(vf_set1(1.0f), vf_div(vf_set1(2.0f), vf_add(e, vf_set1(1.0f))));
}

}  // namespace hw::HW_NS
