// Activations to int8, one scale per 32 values. -128 * sum comes along, which cancels the +128 of unsigned weights.

HW_INLINE void quantize32(const float* x, int8_t* q, float* scale, int32_t* sum32, int32_t* sum16) {
  const vf a = vf_load(x), b = vf_load(x + 16);
  const float amax = vf_magnitude(a, b);  // where one is no number the scale is none, and so is all that comes of the block
  const vf inv = vf_set1(amax > 1e-30f ? 127.0f / amax : 0.0f);
  int32_t s[2];
  store_s8_sums(q, vi_round(vf_mul(a, inv)), vi_round(vf_mul(b, inv)), s);
  *scale = amax * (1.0f / 127.0f);
  sum16[0] = -128 * s[0], sum16[1] = -128 * s[1], *sum32 = -128 * (s[0] + s[1]);
}

static void widen(const float* x, size_t ldx, size_t rows, size_t k, uint16_t* out, size_t ldo) {
  for (size_t r = 0; r < rows; r++, x += ldx, out += ldo)
    for (size_t i = 0; i < k; i += 16) vf_store_bf16(out + i, vf_load(x + i));
}

static void quantize(const float* x, size_t ldx, size_t rows, size_t k, int8_t* q, float* scale, int32_t* sum32, int32_t* sum16, size_t width) {
  for (size_t r = 0; r < rows; r++, x += ldx, q += width, scale += width / 32, sum32 += width / 32, sum16 += width / 16)
    for (size_t b = 0; b < k / 32; b++) quantize32(x + 32 * b, q + 32 * b, scale + b, sum32 + b, sum16 + 2 * b);
}
