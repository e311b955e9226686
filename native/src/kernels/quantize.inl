// Activations to int8, one scale per 32 values. -128 * sum comes along, which cancels the +128 of unsigned weights.

HW_INLINE void quantize32(vf a, vf b, int8_t* q, float* scale, int32_t* sum32, int32_t* sum16) {
  const float amax = vf_maxall(vf_max(vf_abs(a), vf_abs(b)));
  const float s = amax / 127.0f, inv = amax > 1e-30f ? 127.0f / amax : 0.0f;
  const vi x = vi_round(vf_mul(a, vf_set1(inv))), y = vi_round(vf_mul(b, vf_set1(inv)));
  vi_store_s8(q, x), vi_store_s8(q + 16, y);
  const int32_t lo = -128 * vi_sum(x), hi = -128 * vi_sum(y);
  *scale = s, sum16[0] = lo, sum16[1] = hi, *sum32 = lo + hi;
}

static void quantize(const float* x, size_t k, int8_t* q, float* scale, int32_t* sum32, int32_t* sum16) {
  for (size_t b = 0; b < k / 32; b++)
    quantize32(vf_load(x + 32 * b), vf_load(x + 32 * b + 16), q + 32 * b, scale + b, sum32 + b, sum16 + 2 * b);
}
