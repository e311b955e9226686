// AVX2, FMA, F16C: a pair of 256-bit registers a value.
#pragma once
#include <immintrin.h>

namespace hw::HW_NS {

struct vf {
  __m256 a, b;
};
struct vi {
  __m256i a, b;
};
using vb = vi;

HW_INLINE vf vf_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
HW_INLINE vf vf_set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
HW_INLINE vf vf_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
HW_INLINE void vf_store(float* p, vf x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
HW_INLINE vf vf_load_n(const float* p, int n) {
  float t[16] = {};
  for (int i = 0; i < n; i++) t[i] = p[i];
  return vf_load(t);
}
HW_INLINE void vf_store_n(float* p, vf x, int n) {
  float t[16];
  vf_store(t, x);
  for (int i = 0; i < n; i++) p[i] = t[i];
}
HW_INLINE vf vf_add(vf x, vf y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
HW_INLINE vf vf_sub(vf x, vf y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
HW_INLINE vf vf_mul(vf x, vf y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
HW_INLINE vf vf_div(vf x, vf y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
HW_INLINE vf vf_max(vf x, vf y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
HW_INLINE vf vf_min(vf x, vf y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
HW_INLINE vf vf_fma(vf x, vf y, vf z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
HW_INLINE float vf_sum(vf x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
HW_INLINE float vf_maxall(vf x) {
  const __m256 s = _mm256_max_ps(x.a, x.b);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
HW_INLINE __m256i magnitudes(__m256 x) { return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)); }
HW_INLINE float vf_magnitude(vf x, vf y) {
  const __m256i s = _mm256_max_epi32(_mm256_max_epi32(magnitudes(x.a), magnitudes(x.b)), _mm256_max_epi32(magnitudes(y.a), magnitudes(y.b)));
  __m128i t = _mm_max_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  return bits_to_float(uint32_t(_mm_cvtsi128_si32(_mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1)))));
}
HW_INLINE vf vf_from(vi x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
HW_INLINE vf vf_pow2(vi n) {
  const __m256i k = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, k), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, k), 23))};
}
HW_INLINE vf vf_zero_below(vf x, vf lo, vf y) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.a, lo.a, _CMP_NLT_UQ), y.a), _mm256_and_ps(_mm256_cmp_ps(x.b, lo.b, _CMP_NLT_UQ), y.b)};
}
HW_INLINE vf vf_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
HW_INLINE __m256 bf16_8(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
HW_INLINE vf vf_bf16(const uint16_t* p) { return {bf16_8(p), bf16_8(p + 8)}; }
HW_INLINE vf vf_s8(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
HW_INLINE vf vf_u8(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
HW_INLINE void vf_store_half(uint16_t* p, vf x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
HW_INLINE void vf_store_bf16(uint16_t* p, vf x) {  // no kernel for AVX2 wants it to be fast
  float t[16];
  vf_store(t, x);
  for (int i = 0; i < 16; i++) p[i] = float_to_bf16(t[i]);
}

HW_INLINE vi vi_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
HW_INLINE vi vi_set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
HW_INLINE vi vi_add(vi x, vi y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
template <int n>
HW_INLINE vi vi_sra(vi x) {
  return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}
HW_INLINE vi vi_round(vf x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
HW_INLINE __m128i pack_s8(vi x) {
  const __m128i lo = _mm_packs_epi32(_mm256_castsi256_si128(x.a), _mm256_extracti128_si256(x.a, 1));
  const __m128i hi = _mm_packs_epi32(_mm256_castsi256_si128(x.b), _mm256_extracti128_si256(x.b, 1));
  return _mm_packs_epi16(lo, hi);
}

HW_INLINE vb vb_load(const void* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
HW_INLINE void vb_store(void* p, vb x) { _mm256_storeu_si256((__m256i*)p, x.a), _mm256_storeu_si256((__m256i*)p + 1, x.b); }
HW_INLINE vb vb_set1(uint8_t x) { return {_mm256_set1_epi8(char(x)), _mm256_set1_epi8(char(x))}; }
HW_INLINE vb vb_and(vb x, vb y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
HW_INLINE vb vb_or(vb x, vb y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
HW_INLINE vb vb_add(vb x, vb y) { return {_mm256_add_epi8(x.a, y.a), _mm256_add_epi8(x.b, y.b)}; }
template <int n>
HW_INLINE vb vb_srl16(vb x) {
  return {_mm256_srli_epi16(x.a, n), _mm256_srli_epi16(x.b, n)};
}
template <int n>
HW_INLINE vb vb_sll16(vb x) {
  return {_mm256_slli_epi16(x.a, n), _mm256_slli_epi16(x.b, n)};
}
HW_INLINE vb vb_bcast4(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}

// Any u: widened to 16 bits, since vpmaddubsw saturates when two products of 255 x 127 meet.
HW_INLINE __m256i dot_any(__m256i acc, __m256i u, __m256i s) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
HW_INLINE vi vi_dot(vi acc, vb u, vb s) { return {dot_any(acc.a, u.a, s.a), dot_any(acc.b, u.b, s.b)}; }

// u <= 127: two products fit 16 bits.
HW_INLINE __m256i dot_small(__m256i acc, __m256i u, __m256i s) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
HW_INLINE vi vi_dot_small(vi acc, vb u, vb s) { return {dot_small(acc.a, u.a, s.a), dot_small(acc.b, u.b, s.b)}; }

// Two vectors as 32 signed bytes, and the sum of each.
HW_INLINE void store_s8_sums(int8_t* q, vi x, vi y, int32_t* out) {
  const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(pack_s8(x)), pack_s8(y), 1);
  _mm256_storeu_si256((__m256i*)q, bytes);
  __m256i s = dot_small(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
  out[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(s)), out[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}

}  // namespace hw::HW_NS
