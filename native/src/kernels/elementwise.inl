// Per-token vector work: RMS norm, adding, gating, rotating, writing keys and values.

static void rms_norm(const float* x, const float* w, float eps, size_t k, float* y) {
  vf s0 = vf_zero(), s1 = vf_zero();
  size_t i = 0;
  for (; i + 32 <= k; i += 32) {
    const vf a = vf_load(x + i), b = vf_load(x + i + 16);
    s0 = vf_fma(a, a, s0), s1 = vf_fma(b, b, s1);
  }
  float sum = vf_sum(vf_add(s0, s1));
  for (size_t j = i; j < k; j++) sum += x[j] * x[j];
  const float r = 1.0f / __builtin_sqrtf(sum / float(k) + eps);
  const vf rv = vf_set1(r);
  for (i = 0; i + 16 <= k; i += 16) {
    const vf n = vf_mul(vf_load(x + i), rv);
    vf_store(y + i, w ? vf_mul(n, vf_load(w + i)) : n);
  }
  for (; i < k; i++) y[i] = x[i] * r * (w ? w[i] : 1.0f);
}

static double sum_exp(const float* x, size_t n, float top) {
  const vf at = vf_set1(top);
  const auto power = [&](vf a) { return vf_exp(vf_sub(a, at)); };
  double all = 0;
  size_t i = 0;
  while (i + 16 <= n) {  // floats for a few thousand values, or small ones would be lost beside their sum
    const size_t end = n - i > 4096 ? i + 4096 : n;
    vf s0 = vf_zero(), s1 = vf_zero();
    for (; i + 32 <= end; i += 32) s0 = vf_add(s0, power(vf_load(x + i))), s1 = vf_add(s1, power(vf_load(x + i + 16)));
    for (; i + 16 <= end; i += 16) s0 = vf_add(s0, power(vf_load(x + i)));
    all += double(vf_sum(vf_add(s0, s1)));
  }
  float rest[16];
  for (float& r : rest) r = -__builtin_inff();
  for (size_t j = i; j < n; j++) rest[j - i] = x[j];
  return all + double(vf_sum(power(vf_load(rest))));
}

static void add_scaled(float* x, const float* y, float s, size_t k) {
  size_t i = 0;
  for (; i + 16 <= k; i += 16) vf_store(x + i, vf_fma(vf_load(y + i), vf_set1(s), vf_load(x + i)));
  for (; i < k; i++) x[i] += s * y[i];
}

static void add(float* x, const float* y, size_t k) {
  size_t i = 0;
  for (; i + 16 <= k; i += 16) vf_store(x + i, vf_add(vf_load(x + i), vf_load(y + i)));
  for (; i < k; i++) x[i] += y[i];
}

HW_INLINE vf gate_of(Gate g, vf a) {
  if (g == Gate::silu) return vf_mul(a, vf_sigmoid(a));
  const vf u = vf_mul(vf_set1(0.7978845608028654f), vf_mul(a, vf_fma(vf_mul(a, a), vf_set1(0.044715f), vf_set1(1.0f))));
  return vf_mul(vf_mul(vf_set1(0.5f), a), vf_add(vf_set1(1.0f), vf_tanh(u)));
}

static void gate(Gate g, float* a, const float* b, size_t ld, size_t rows, size_t k) {
  for (size_t r = 0; r < rows; r++, a += ld, b += ld) {
    size_t i = 0;
    for (; i + 16 <= k; i += 16) vf_store(a + i, vf_mul(gate_of(g, vf_load(a + i)), vf_load(b + i)));
    const int n = int(k - i);
    if (n) vf_store_n(a + i, vf_mul(gate_of(g, vf_load_n(a + i, n)), vf_load_n(b + i, n)), n);
  }
}

static void rotate(float* x, const float* cos, const float* sin, size_t pairs, size_t offset) {
  size_t i = 0;
  for (; i + 16 <= pairs; i += 16) {
    const vf a = vf_load(x + i), b = vf_load(x + i + offset), c = vf_load(cos + i), s = vf_load(sin + i);
    vf_store(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)));
    vf_store(x + i + offset, vf_fma(b, c, vf_mul(a, s)));
  }
  for (; i < pairs; i++) {
    const float a = x[i], b = x[i + offset];
    x[i] = a * cos[i] - b * sin[i], x[i + offset] = b * cos[i] + a * sin[i];
  }
}

// Keys stand in blocks of 16 positions, [hd][16], so that one vector holds 16 positions of one channel.
static void store_key(const float* x, size_t hd, int64_t pos, uint16_t* k) {
  uint16_t* out = k + size_t(pos / 16) * hd * 16 + size_t(pos % 16);
  for (size_t i = 0; i < hd; i += 16) {
    uint16_t h[16];
    vf_store_half(h, vf_load(x + i));
    for (int j = 0; j < 16; j++) out[(i + j) * 16] = h[j];
  }
}

static void store_value(const float* x, size_t hd, int64_t pos, uint16_t* v) {
  for (size_t i = 0; i < hd; i += 16) vf_store_half(v + size_t(pos) * hd + i, vf_load(x + i));
}
