// Activations to int8, one scale per 32 values. -128 * sum comes along, which cancels the +128 of unsigned weights.

HW_INLINE void quantize32(const float* x, int8_t* q, float* scale) {
  const vf a = vf_load(x), b = vf_load(x + 16);
  const float amax = vf_maxall(vf_max(vf_abs(a), vf_abs(b)));
  const vf inv = vf_set1(amax > 1e-30f ? 127.0f / amax : 0.0f);
  vi_store_s8(q, vi_round(vf_mul(a, inv))), vi_store_s8(q + 16, vi_round(vf_mul(b, inv)));
  *scale = amax * (1.0f / 127.0f);
}

HW_INLINE void quantize_sums(const int8_t* q, size_t k, int32_t* sum32, int32_t* sum16) {
  for (size_t i = 0; i < k; i += 64) {
    alignas(64) int8_t tail[64];
    int32_t s[4];
    const bool whole = k - i >= 64;
    if (!whole) memset(tail, 0, 64), memcpy(tail, q + i, 32);
    vb_sums16(vb_load(whole ? q + i : tail), s);
    for (size_t j = 0; j < (whole ? 4 : 2); j++) sum16[i / 16 + j] = -128 * s[j];
    for (size_t j = 0; j < (whole ? 2 : 1); j++) sum32[i / 32 + j] = -128 * (s[2 * j] + s[2 * j + 1]);
  }
}

static void quantize(const float* x, size_t ldx, size_t rows, size_t k, int8_t* q, float* scale, int32_t* sum32, int32_t* sum16, size_t width) {
  for (size_t r = 0; r < rows; r++, x += ldx, q += width, scale += width / 32, sum32 += width / 32, sum16 += width / 16) {
    for (size_t b = 0; b < k / 32; b++) quantize32(x + 32 * b, q + 32 * b, scale + b);
    quantize_sums(q, k, sum32, sum16);
  }
}
