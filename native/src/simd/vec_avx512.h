// AVX-512 F, BW, DQ, VL, VNNI.
#pragma once
#include <immintrin.h>

namespace hw::HW_NS {

using vf = __m512;
using vi = __m512i;
using vb = __m512i;

HW_INLINE __mmask16 first(int n) { return __mmask16((1u << n) - 1); }

HW_INLINE vf vf_zero() { return _mm512_setzero_ps(); }
HW_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
HW_INLINE vf vf_load(const float* p) { return _mm512_loadu_ps(p); }
HW_INLINE void vf_store(float* p, vf a) { _mm512_storeu_ps(p, a); }
HW_INLINE vf vf_load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
HW_INLINE void vf_store_n(float* p, vf a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
HW_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
HW_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
HW_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
HW_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
HW_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
HW_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
HW_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
HW_INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
HW_INLINE float vf_maxall(vf a) { return _mm512_reduce_max_ps(a); }
HW_INLINE float vf_magnitude(vf a, vf b) {
  const __m512i x = _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(a)), _mm512_castps_si512(_mm512_abs_ps(b)));
  return bits_to_float(uint32_t(_mm512_reduce_max_epi32(x)));
}
HW_INLINE vf vf_from(vi a) { return _mm512_cvtepi32_ps(a); }
HW_INLINE vf vf_pow2(vi n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)); }
HW_INLINE vf vf_zero_below(vf x, vf lo, vf y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, lo, _CMP_NLT_UQ), y); }
HW_INLINE vf vf_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
HW_INLINE vf vf_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
HW_INLINE vf vf_s8(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }
HW_INLINE vf vf_u8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))); }
HW_INLINE void vf_store_half(uint16_t* p, vf a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
HW_INLINE void vf_store_bf16(uint16_t* p, vf a) {  // finite values
  const __m512i x = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  const __m512i y = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(y, 16)));
}

HW_INLINE vi vi_zero() { return _mm512_setzero_si512(); }
HW_INLINE vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
HW_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
template <int n>
HW_INLINE vi vi_sra(vi a) {
  return _mm512_srai_epi32(a, n);
}
HW_INLINE vi vi_round(vf a) { return _mm512_cvtps_epi32(a); }
HW_INLINE vb vb_load(const void* p) { return _mm512_loadu_si512(p); }
HW_INLINE void vb_store(void* p, vb a) { _mm512_storeu_si512(p, a); }
HW_INLINE vb vb_set1(uint8_t x) { return _mm512_set1_epi8(char(x)); }
HW_INLINE vb vb_and(vb a, vb b) { return _mm512_and_si512(a, b); }
HW_INLINE vb vb_or(vb a, vb b) { return _mm512_or_si512(a, b); }
HW_INLINE vb vb_add(vb a, vb b) { return _mm512_add_epi8(a, b); }
template <int n>
HW_INLINE vb vb_srl16(vb a) {
  return _mm512_srli_epi16(a, n);
}
template <int n>
HW_INLINE vb vb_sll16(vb a) {
  return _mm512_slli_epi16(a, n);
}
HW_INLINE vb vb_bcast4(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}

// Inline assembly, because gcc 12 copies and spills the accumulators around _mm512_dpbusd_epi32 (half the speed in the tile loop).
HW_INLINE vi vi_dot(vi acc, vb u, vb s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(s));
  return acc;
}
// Two vectors as 32 signed bytes, and the sum of each.
HW_INLINE void store_s8_sums(int8_t* q, vi x, vi y, int32_t* out) {
  const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(x)), _mm512_cvtepi32_epi8(y), 1);
  _mm256_storeu_si256((__m256i*)q, bytes);
  __m256i s = _mm256_setzero_si256();
  asm("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(_mm256_set1_epi8(1)), "v"(bytes));
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
  out[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(s)), out[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}
HW_INLINE vi vi_dot_small(vi acc, vb u, vb s) { return vi_dot(acc, u, s); }

}  // namespace hw::HW_NS
