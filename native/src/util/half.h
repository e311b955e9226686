// Half and bfloat16 in plain C++, for code that is not per instruction set. Static on purpose: the units compiled for a newer
// instruction set must not share inline functions with the rest of the program.
#pragma once
#include <cstdint>
#include <cstring>

namespace hw {

static inline float bits_to_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline uint32_t float_to_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

static inline float bf16_to_float(uint16_t h) { return bits_to_float(uint32_t(h) << 16); }

static inline uint16_t float_to_bf16(float f) {  // nearest, ties to even; NaN stays NaN
  uint32_t u = float_to_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 64);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, mant = h & 0x3ff, expo = (h >> 10) & 31;
  if (expo == 31) return bits_to_float(sign | 0x7f800000u | (mant << 13));
  if (expo) return bits_to_float(sign | ((expo + 112) << 23) | (mant << 13));
  const float f = float(int32_t(mant)) * 5.9604644775390625e-08f;  // subnormal: mant * 2^-24
  return sign ? -f : f;
}

static inline uint16_t float_to_half(float f) {  // nearest, ties to even
  const uint32_t u = float_to_bits(f), sign = (u >> 16) & 0x8000, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return uint16_t(sign | 0x7e00);
  if (a >= 0x47800000u) return uint16_t(sign | 0x7c00);  // 65536 and above
  if (a < 0x38800000u) {                                  // below 2^-14: subnormal half
    const float r = bits_to_float(a) + 0.5f;              // the add rounds at 2^-24
    return uint16_t(sign | (float_to_bits(r) - 0x3f000000u));
  }
  const uint32_t r = a + 0xfff + ((a >> 13) & 1);
  return uint16_t(sign | ((r - 0x38000000u) >> 13));
}

}  // namespace hw
