// Plain C++: the meaning of every name. Slow and obvious.
#pragma once
#include <cmath>

namespace hw::HW_NS {

struct vf {
  float v[16];
};
struct vi {
  int32_t v[16];
};
struct vb {
  uint8_t v[64];
};

#define HW_EACH(n, expr)              \
  for (int i = 0; i < (n); i++) {     \
    r.v[i] = (expr);                  \
  }                                   \
  return r

HW_INLINE vf vf_set1(float x) { vf r; HW_EACH(16, x); }
HW_INLINE vf vf_zero() { return vf_set1(0.0f); }
HW_INLINE vf vf_load(const float* p) { vf r; HW_EACH(16, p[i]); }
HW_INLINE void vf_store_n(float* p, vf a, int n) {
  for (int i = 0; i < n; i++) p[i] = a.v[i];
}
HW_INLINE void vf_store(float* p, vf a) { vf_store_n(p, a, 16); }
HW_INLINE vf vf_load_n(const float* p, int n) { vf r; HW_EACH(16, i < n ? p[i] : 0.0f); }
HW_INLINE vf vf_add(vf a, vf b) { vf r; HW_EACH(16, a.v[i] + b.v[i]); }
HW_INLINE vf vf_sub(vf a, vf b) { vf r; HW_EACH(16, a.v[i] - b.v[i]); }
HW_INLINE vf vf_mul(vf a, vf b) { vf r; HW_EACH(16, a.v[i] * b.v[i]); }
HW_INLINE vf vf_div(vf a, vf b) { vf r; HW_EACH(16, a.v[i] / b.v[i]); }
HW_INLINE vf vf_max(vf a, vf b) { vf r; HW_EACH(16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
HW_INLINE vf vf_min(vf a, vf b) { vf r; HW_EACH(16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
HW_INLINE vf vf_fma(vf a, vf b, vf c) { vf r; HW_EACH(16, a.v[i] * b.v[i] + c.v[i]); }
HW_INLINE float vf_sum(vf a) {
  float s = 0;
  for (int i = 0; i < 16; i++) s += a.v[i];
  return s;
}
HW_INLINE float vf_maxall(vf a) {
  float m = a.v[0];
  for (int i = 1; i < 16; i++) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
HW_INLINE float vf_magnitude(vf a, vf b) {  // the largest |value| of both; no number if one is none: its bits are above those of infinity
  uint32_t m = 0;
  for (int i = 0; i < 32; i++) {
    const uint32_t u = float_to_bits(i < 16 ? a.v[i] : b.v[i - 16]) & 0x7fffffffu;
    m = u > m ? u : m;
  }
  return bits_to_float(m);
}
HW_INLINE vf vf_from(vi a) { vf r; HW_EACH(16, float(a.v[i])); }
HW_INLINE vf vf_pow2(vi n) { vf r; HW_EACH(16, bits_to_float(uint32_t(n.v[i] + 127) << 23)); }
HW_INLINE vf vf_zero_below(vf x, vf lo, vf y) { vf r; HW_EACH(16, x.v[i] < lo.v[i] ? 0.0f : y.v[i]); }
HW_INLINE vf vf_half(const uint16_t* p) { vf r; HW_EACH(16, half_to_float(p[i])); }
HW_INLINE vf vf_bf16(const uint16_t* p) { vf r; HW_EACH(16, bf16_to_float(p[i])); }
HW_INLINE vf vf_s8(const int8_t* p) { vf r; HW_EACH(16, float(p[i])); }
HW_INLINE vf vf_u8(const uint8_t* p) { vf r; HW_EACH(16, float(p[i])); }
HW_INLINE void vf_store_half(uint16_t* p, vf a) {
  for (int i = 0; i < 16; i++) p[i] = float_to_half(a.v[i]);
}
HW_INLINE void vf_store_bf16(uint16_t* p, vf a) {
  for (int i = 0; i < 16; i++) p[i] = float_to_bf16(a.v[i]);
}

HW_INLINE vi vi_set1(int32_t x) { vi r; HW_EACH(16, x); }
HW_INLINE vi vi_zero() { return vi_set1(0); }
HW_INLINE vi vi_add(vi a, vi b) { vi r; HW_EACH(16, a.v[i] + b.v[i]); }
template <int n>
HW_INLINE vi vi_sra(vi a) { vi r; HW_EACH(16, a.v[i] >> n); }
HW_INLINE vi vi_round(vf a) { vi r; HW_EACH(16, int32_t(__builtin_nearbyintf(a.v[i]))); }
HW_INLINE vb vb_load(const void* p) {
  vb r;
  memcpy(r.v, p, 64);
  return r;
}
HW_INLINE void vb_store(void* p, vb a) { memcpy(p, a.v, 64); }
HW_INLINE vb vb_set1(uint8_t x) { vb r; HW_EACH(64, x); }
HW_INLINE vb vb_and(vb a, vb b) { vb r; HW_EACH(64, a.v[i] & b.v[i]); }
HW_INLINE vb vb_or(vb a, vb b) { vb r; HW_EACH(64, a.v[i] | b.v[i]); }
HW_INLINE vb vb_add(vb a, vb b) { vb r; HW_EACH(64, uint8_t(a.v[i] + b.v[i])); }
template <int n>
HW_INLINE vb vb_srl16(vb a) {  // pairs of bytes as one 16-bit number, low byte first
  vb r;
  for (int i = 0; i < 64; i += 2) {
    const uint32_t x = (uint32_t(a.v[i]) | uint32_t(a.v[i + 1]) << 8) >> n;
    r.v[i] = uint8_t(x), r.v[i + 1] = uint8_t(x >> 8);
  }
  return r;
}
template <int n>
HW_INLINE vb vb_sll16(vb a) {
  vb r;
  for (int i = 0; i < 64; i += 2) {
    const uint32_t x = (uint32_t(a.v[i]) | uint32_t(a.v[i + 1]) << 8) << n;
    r.v[i] = uint8_t(x), r.v[i + 1] = uint8_t(x >> 8);
  }
  return r;
}
HW_INLINE vb vb_bcast4(const int8_t* p) { vb r; HW_EACH(64, uint8_t(p[i & 3])); }
HW_INLINE vi vi_dot(vi acc, vb u, vb s) {  // acc[r] += sum over j of u[4r+j] (unsigned) * s[4r+j] (signed)
  for (int i = 0; i < 64; i++) acc.v[i >> 2] += int32_t(u.v[i]) * int8_t(s.v[i]);
  return acc;
}
HW_INLINE void store_s8_sums(int8_t* q, vi x, vi y, int32_t* out) {  // two vectors as 32 signed bytes, and the sum of each
  out[0] = out[1] = 0;
  for (int i = 0; i < 32; i++) q[i] = int8_t(i < 16 ? x.v[i] : y.v[i - 16]), out[i / 16] += q[i];
}
HW_INLINE vi vi_dot_small(vi acc, vb u, vb s) { return vi_dot(acc, u, s); }
#undef HW_EACH

}  // namespace hw::HW_NS
