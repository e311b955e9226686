// Causal attention of a few tokens of one key-value head with all query heads that share it: online softmax over steps of
// kAttentionKeys keys; both products are fgemm over the f16 cache. Rows are (token, head) pairs.

struct AttentionRows {
  float *q, *s, *o, *peak, *total;
};

HW_INLINE void softmax_step(const AttentionRows& w, size_t row, size_t hd, int64_t from, int64_t to, int64_t k0, size_t cols) {
  float* s = w.s + row * kAttentionKeys;  // keys k0 .. k0 + cols; those outside [from, to] are not seen
  for (int64_t i = 0; i < int64_t(cols); i += 16) {
    if (k0 + i >= from && k0 + i + 15 <= to) continue;
    for (int64_t j = i; j < i + 16; j++)
      if (k0 + j < from || k0 + j > to) s[j] = -1e30f;
  }
  vf top = vf_load(s);
  for (size_t i = 16; i < cols; i += 16) top = vf_max(top, vf_load(s + i));
  const float m = vf_maxall(top), old = w.peak[row], peak = m > old ? m : old;
  vf sum = vf_zero();
  const vf shift = vf_set1(-(peak < -1e29f ? 0.0f : peak));
  for (size_t i = 0; i < cols; i += 16) {
    const vf e = vf_exp(vf_add(vf_load(s + i), shift));
    vf_store(s + i, e);
    sum = vf_add(sum, e);
  }
  if (peak > old) {
    float alpha[16];
    vf_store(alpha, vf_exp(vf_set1(old - peak)));
    const vf av = vf_set1(alpha[0]);
    for (size_t i = 0; i < hd; i += 16) vf_store(w.o + row * hd + i, vf_mul(vf_load(w.o + row * hd + i), av));
    w.total[row] *= alpha[0];
    w.peak[row] = peak;
  }
  w.total[row] += vf_sum(sum);
}

static void attention(const AttentionArgs& a, float* scratch) {
  const size_t rows = a.tokens * a.group, hd = a.hd;
  AttentionRows w;
  w.q = scratch, w.o = w.q + kAttentionRows * hd, w.s = w.o + kAttentionRows * hd;
  w.peak = w.s + kAttentionRows * kAttentionKeys, w.total = w.peak + kAttentionRows;
  for (size_t row = 0; row < rows; row++) {
    const float* q = a.q + row / a.group * a.q_stride + row % a.group * hd;
    for (size_t i = 0; i < hd; i += 16) {
      vf_store(w.q + row * hd + i, vf_mul(vf_load(q + i), vf_set1(a.scale)));
      vf_store(w.o + row * hd + i, vf_zero());
    }
    w.peak[row] = -1e30f, w.total[row] = 0;
  }
  const int64_t end = a.pos + int64_t(a.tokens), begin = a.window > 0 && a.pos + 1 > a.window ? a.pos + 1 - a.window : 0;
  // Steps begin at multiples of their size, so that a token's sums do not depend on which tokens are asked for with it.
  for (int64_t k0 = begin / int64_t(kAttentionKeys) * int64_t(kAttentionKeys); k0 < end; k0 += int64_t(kAttentionKeys)) {
    const size_t keys = end - k0 < int64_t(kAttentionKeys) ? size_t(end - k0) : kAttentionKeys, cols = (keys + 15) / 16 * 16;
    fgemm(Format::F16, w.q, hd, rows, hd, a.k + size_t(k0) * hd, hd * 16, 16, cols / 16, w.s, kAttentionKeys, false);
    for (size_t row = 0; row < rows; row++) {
      const int64_t pos = a.pos + int64_t(row / a.group), from = a.window > 0 ? pos + 1 - a.window : 0;
      softmax_step(w, row, hd, from, pos, k0, cols);
    }
    fgemm(Format::F16, w.s, kAttentionKeys, rows, keys, a.v + size_t(k0) * hd, 16, hd, hd / 16, w.o, hd, true);
  }
  for (size_t row = 0; row < rows; row++) {
    const size_t t = row / a.group, h = row % a.group;
    float s[16], factor = 1.0f / w.total[row];
    if (a.gate) {
      vf_store(s, vf_sigmoid(vf_set1(a.gate[t * a.gate_stride + h])));
      factor *= s[0];
    }
    float* out = a.out + t * a.out_stride + h * hd;
    for (size_t i = 0; i < hd; i += 16) vf_store(out + i, vf_mul(vf_load(w.o + row * hd + i), vf_set1(factor)));
  }
}
