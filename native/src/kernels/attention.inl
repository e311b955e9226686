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

// The sums of a row divided by their weights, through the head's gate.
HW_INLINE void finish_row(const AttentionArgs& a, size_t row, const float* o, float total) {
  const size_t t = row / a.group, h = row % a.group;
  float s[16], factor = 1.0f / total;
  if (a.gate) {
    vf_store(s, vf_sigmoid(vf_set1(a.gate[t * a.gate_stride + h])));
    factor *= s[0];
  }
  float* out = a.out + t * a.out_stride + h * a.hd;
  for (size_t i = 0; i < a.hd; i += 16) vf_store(out + i, vf_mul(vf_load(o + i), vf_set1(factor)));
}

// One token: the cache streams from memory, so each step fetches the next step's keys and values while it works, from four places at once.
struct NextStep {
  const uint8_t* at[4];  // keys and values, and the second half of each
  size_t done = 0;       // bytes of each place
};

template <int M, int NV>
static void tile_ahead(const float* a, size_t lda, size_t k, const f16_t* b, size_t vec_stride, size_t row_stride, float* c, size_t ldc,
                       bool accumulate, NextStep& next) {
  vf acc[M][NV];
HW_UNROLL(8)
  for (int m = 0; m < M; m++)
HW_UNROLL(4)
    for (int v = 0; v < NV; v++) acc[m][v] = accumulate ? vf_load(c + m * ldc + 16 * v) : vf_zero();
  for (size_t i = 0; i < k; i++, b += row_stride) {
    const size_t pair = i % 2 * 2;
    prefetch_far(next.at[pair] + next.done), prefetch_far(next.at[pair + 1] + next.done);
    next.done += 32 * pair;
    vf x[NV];
HW_UNROLL(4)
    for (int v = 0; v < NV; v++) x[v] = load_b(b + v * vec_stride);
HW_UNROLL(8)
    for (int m = 0; m < M; m++) {
      const vf s = vf_set1(a[m * lda + i]);
HW_UNROLL(4)
      for (int v = 0; v < NV; v++) acc[m][v] = vf_fma(s, x[v], acc[m][v]);
    }
  }
HW_UNROLL(8)
  for (int m = 0; m < M; m++)
HW_UNROLL(4)
    for (int v = 0; v < NV; v++) vf_store(c + m * ldc + 16 * v, acc[m][v]);
}

// fgemm on an f16 cache for one to four rows (more: the rest without fetching); whole tiles fetch ahead.
static void product_ahead(const float* a, size_t lda, size_t rows, size_t k, const uint16_t* cache, size_t vs, size_t rs, size_t vecs, float* c,
                          size_t ldc, bool accumulate, NextStep& next) {
  constexpr int NV = int(kMaxVecs);
  const f16_t* b = reinterpret_cast<const f16_t*>(cache);
  const size_t first = rows < 4 ? rows : 4;
  for (; vecs >= NV; vecs -= NV, b += NV * vs, c += 16 * NV) {
    switch (first) {
      case 1: tile_ahead<1, NV>(a, lda, k, b, vs, rs, c, ldc, accumulate, next); break;
      case 2: tile_ahead<2, NV>(a, lda, k, b, vs, rs, c, ldc, accumulate, next); break;
      case 3: tile_ahead<3, NV>(a, lda, k, b, vs, rs, c, ldc, accumulate, next); break;
      default: tile_ahead<4, NV>(a, lda, k, b, vs, rs, c, ldc, accumulate, next);
    }
    if (rows > 4) fgemm_rows<f16_t, NV>(a + 4 * lda, lda, rows - 4, k, b, vs, rs, c + 4 * ldc, ldc, accumulate);
  }
  if (vecs) fgemm(Format::F16, a, lda, rows, k, b, vs, rs, vecs, c, ldc, accumulate);
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
  for (int64_t k0 = begin / 16 * 16; k0 < end; k0 += int64_t(kAttentionKeys)) {
    const size_t keys = end - k0 < int64_t(kAttentionKeys) ? size_t(end - k0) : kAttentionKeys, cols = (keys + 15) / 16 * 16;
    const uint16_t *k = a.k + size_t(k0) * hd, *v = a.v + size_t(k0) * hd;
    const bool last = k0 + int64_t(kAttentionKeys) >= end;
    const uint8_t* coming[2] = {(const uint8_t*)(last ? a.next_k : k + kAttentionKeys * hd), (const uint8_t*)(last ? a.next_v : v + kAttentionKeys * hd)};
    const size_t half = (last && end - begin <= int64_t(kAttentionKeys) ? cols : kAttentionKeys) * hd;
    NextStep next{{coming[0], coming[1], coming[0] + half, coming[1] + half}};
    if (a.tokens == 1)
      product_ahead(w.q, hd, rows, hd, k, hd * 16, 16, cols / 16, w.s, kAttentionKeys, false, next);
    else
      fgemm(Format::F16, w.q, hd, rows, hd, k, hd * 16, 16, cols / 16, w.s, kAttentionKeys, false);
    for (size_t row = 0; row < rows; row++) {
      const int64_t pos = a.pos + int64_t(row / a.group), from = a.window > 0 ? pos + 1 - a.window : 0;
      softmax_step(w, row, hd, from, pos, k0, cols);
    }
    if (a.tokens == 1)
      product_ahead(w.s, kAttentionKeys, rows, keys, v, 16, hd, hd / 16, w.o, hd, true, next);
    else
      fgemm(Format::F16, w.s, kAttentionKeys, rows, keys, v, 16, hd, hd / 16, w.o, hd, true);
  }
  for (size_t row = 0; row < rows; row++) finish_row(a, row, w.o + row * hd, w.total[row]);
}
