// Attention of many rows on tiles: queries, weights of the softmax, keys and values as bfloat16, sums in fp32. Rows are (token, head) pairs of
// one key-value head, 32 at a time; each step of keys is widened once for all of them. Few rows take the exact way (attention.inl).

constexpr size_t kTileAttentionRows = 128, kTileKeys = kAttentionKeys;

struct TileAttention {
  size_t rows, hd, deep;  // deep: hd rounded up to 32
  uint16_t *q, *p;        // [rows][deep]; [32][kTileKeys]
  uint32_t *k, *v;        // [kTileKeys / 16][deep / 2][16] pairs of channels; [kTileKeys / 32][hd / 16][16][16] pairs of keys
  float *o, *s, *peak, *total;  // [rows][hd]; [32][kTileKeys]
};

// 2^x for x <= 0, relative error under 5e-5: the result is rounded to bfloat16.
HW_INLINE vf exp2_low(vf x) {
  const vf n = _mm512_roundscale_ps(x, 0), r = vf_sub(x, n);
  vf p = vf_set1(9.6181291e-3f);
  p = vf_fma(p, r, vf_set1(5.5504109e-2f));
  p = vf_fma(p, r, vf_set1(2.4022651e-1f));
  p = vf_fma(p, r, vf_set1(6.9314718e-1f));
  p = vf_fma(p, r, vf_set1(1.0f));
  return _mm512_scalef_ps(p, n);
}

static void widen_keys(const TileAttention& w, const uint16_t* k, size_t groups, size_t all) {
  for (size_t g = 0; g < all; g++) {
    uint32_t* out = w.k + g * w.deep * 8;
    const uint16_t* from = k + g * w.hd * 16;
    size_t i = 0;
    for (; g < groups && i < w.hd; i += 2) vb_store(out + i * 8, pair16(vf_half(from + i * 16), vf_half(from + i * 16 + 16)));
    for (; i < w.deep; i += 2) vb_store(out + i * 8, vi_zero());
  }
}

static void widen_values(const TileAttention& w, const uint16_t* v, size_t keys, size_t all) {
  const size_t wide = w.hd / 16;
  for (size_t k = 0; k < all; k += 2)
    for (size_t c = 0; c < wide; c++) {
      const uint16_t* from = v + k * w.hd + 16 * c;
      const vf a = k < keys ? vf_half(from) : vf_zero(), b = k + 1 < keys ? vf_half(from + w.hd) : vf_zero();
      vb_store(w.v + ((k / 32 * wide + c) * 16 + k / 2 % 16) * 16, pair16(a, b));
    }
}

// s[32][..] = q k: 32 rows x 32 keys at a time.
static void score(const TileAttention& w, size_t row, size_t cols) {
  const size_t lds = kTileKeys * 4, ldq = w.deep * 2;
  for (size_t c = 0; c < cols; c += 32) {
    const uint32_t *k0 = w.k + c / 16 * w.deep * 8, *k1 = k0 + w.deep * 8;
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    for (size_t i = 0; i < w.deep; i += 32) {
      tile_load<4>(w.q + row * w.deep + i, ldq), tile_load<5>(w.q + (row + 16) * w.deep + i, ldq);
      tile_load<6>(k0 + i * 8, 64), tile_load<7>(k1 + i * 8, 64);
      tile_dot<0, 4, 6>(), tile_dot<1, 4, 7>(), tile_dot<2, 5, 6>(), tile_dot<3, 5, 7>();
    }
    float* s = w.s + c;
    tile_store<0>(s, lds), tile_store<1>(s + 16, lds), tile_store<2>(s + 16 * kTileKeys, lds), tile_store<3>(s + 16 * kTileKeys + 16, lds);
  }
}

// o[32][hd] += p v
static void mix(const TileAttention& w, size_t row, size_t cols) {
  const size_t ldo = w.hd * 4, ldp = kTileKeys * 2, wide = w.hd / 16;
  for (size_t c = 0; c < wide; c += 2) {
    const bool two = c + 1 < wide;
    float *o = w.o + row * w.hd + 16 * c, *below = o + 16 * w.hd;
    tile_load<0>(o, ldo), tile_load<2>(below, ldo);
    if (two) tile_load<1>(o + 16, ldo), tile_load<3>(below + 16, ldo);
    for (size_t i = 0; i < cols / 32; i++) {
      const uint32_t* v = w.v + (i * wide + c) * 256;
      tile_load<4>(w.p + 32 * i, ldp), tile_load<5>(w.p + 16 * kTileKeys + 32 * i, ldp), tile_load<6>(v, 64);
      if (two) tile_load<7>(v + 256, 64);
      tile_dot<0, 4, 6>(), tile_dot<2, 5, 6>();
      if (two) tile_dot<1, 4, 7>(), tile_dot<3, 5, 7>();
    }
    tile_store<0>(o, ldo), tile_store<2>(below, ldo);
    if (two) tile_store<1>(o + 16, ldo), tile_store<3>(below + 16, ldo);
  }
}

// One row of scores (powers of two) to weights; keys k0 .. k0 + cols, those outside [from, to] (positions, so 32 bits hold them) are not seen.
HW_INLINE void weigh(const TileAttention& w, size_t row, size_t i, int64_t from, int64_t to, int64_t k0, size_t cols) {
  float *s = w.s + i * kTileKeys, *o = w.o + row * w.hd;
  if (k0 < from || k0 + int64_t(cols) - 1 > to)
    for (int64_t c = 0; c < int64_t(cols); c += 16) {
      const vi at = vi_add(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), vi_set1(int32_t(k0 + c)));
      const __mmask16 seen = _mm512_cmple_epi32_mask(at, vi_set1(int32_t(to))) & _mm512_cmple_epi32_mask(vi_set1(int32_t(from)), at);
      vf_store(s + c, _mm512_mask_mov_ps(vf_set1(-1e30f), seen, vf_load(s + c)));
    }
  vf top = vf_load(s);
  for (size_t c = 16; c < cols; c += 16) top = vf_max(top, vf_load(s + c));
  const float most = vf_maxall(top), old = w.peak[row], peak = most > old ? most : old;
  const vf shift = vf_set1(peak < -1e29f ? 0.0f : peak);
  vf sum = vf_zero();
  for (size_t c = 0; c < cols; c += 16) {
    const vf e = exp2_low(vf_sub(vf_load(s + c), shift));
    sum = vf_add(sum, e);
    vf_store_bf16(w.p + i * kTileKeys + c, e);
  }
  if (peak > old) {
    const vf less = exp2_low(vf_set1(old - peak));
    for (size_t c = 0; c < w.hd; c += 16) vf_store(o + c, vf_mul(vf_load(o + c), less));
    w.total[row] *= _mm512_cvtss_f32(less), w.peak[row] = peak;
  }
  w.total[row] += vf_sum(sum);
}

static TileAttention tile_attention(const AttentionArgs& a, float* scratch) {
  TileAttention w;
  w.rows = a.tokens * a.group, w.hd = a.hd, w.deep = (a.hd + 31) / 32 * 32;
  w.o = scratch, w.s = w.o + kTileAttentionRows * a.hd;
  w.k = reinterpret_cast<uint32_t*>(w.s + 32 * kTileKeys), w.v = w.k + kTileKeys * w.deep / 2;
  w.q = reinterpret_cast<uint16_t*>(w.v + kTileKeys * a.hd / 2), w.p = w.q + kTileAttentionRows * w.deep;
  w.peak = reinterpret_cast<float*>(w.p + 32 * kTileKeys), w.total = w.peak + kTileAttentionRows;
  for (size_t row = 0; row < (w.rows + 31) / 32 * 32; row++) {
    const float* q = a.q + row / a.group * a.q_stride + row % a.group * a.hd;
    for (size_t i = 0; i < w.deep; i += 16) {
      const bool is = row < w.rows && i < a.hd;
      vf_store_bf16(w.q + row * w.deep + i, is ? vf_mul(vf_load(q + i), vf_set1(a.scale * 1.44269504f)) : vf_zero());
      if (i < a.hd) vf_store(w.o + row * a.hd + i, vf_zero());
    }
    w.peak[row] = -1e30f, w.total[row] = 0;
  }
  return w;
}

static void attention_tiles(const AttentionArgs& a, float* scratch) {
  if (a.exact) return attention(a, scratch);
  const TileAttention w = tile_attention(a, scratch);
  const Tiles tiles;
  const int64_t end = a.pos + int64_t(a.tokens), begin = a.window > 0 && a.pos + 1 > a.window ? a.pos + 1 - a.window : 0;
  // As in attention.inl: steps begin at multiples of their size.
  for (int64_t k0 = begin / int64_t(kTileKeys) * int64_t(kTileKeys); k0 < end; k0 += int64_t(kTileKeys)) {
    const size_t keys = end - k0 < int64_t(kTileKeys) ? size_t(end - k0) : kTileKeys, cols = (keys + 31) / 32 * 32;
    widen_keys(w, a.k + size_t(k0) * a.hd, (keys + 15) / 16, cols / 16);
    widen_values(w, a.v + size_t(k0) * a.hd, keys, cols);
    for (size_t row = 0; row < w.rows; row += 32) {
      const size_t n = w.rows - row < 32 ? w.rows - row : 32;
      const int64_t first = a.pos + int64_t(row / a.group), last = a.pos + int64_t((row + n - 1) / a.group);
      if (k0 > last || (a.window > 0 && k0 + int64_t(cols) <= first + 1 - a.window)) continue;
      const size_t near = last + 1 - k0 < int64_t(cols) ? (size_t(last + 1 - k0) + 31) / 32 * 32 : cols;
      score(w, row, near);
      for (size_t i = 0; i < n; i++) {
        const int64_t pos = a.pos + int64_t((row + i) / a.group);
        weigh(w, row + i, i, a.window > 0 && pos >= a.window ? pos + 1 - a.window : 0, pos, k0, near);
      }
      mix(w, row, near);
    }
  }
  for (size_t row = 0; row < w.rows; row++) finish_row(a, row, w.o + row * a.hd, w.total[row]);
}
