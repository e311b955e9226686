// Many tokens on tiles: four groups of 16 rows are expanded to bfloat16 (scale and minimum included) for a slab of inputs (128 KB: stays in L2) and meet
// tokens that are bfloat16 too, 32 at a time; sums are fp32. No scales are left for the loop, and a rounding to 8 bits of
// each value is finer than int8 with one scale per 32.

constexpr size_t kWideSlab = 1024;
constexpr size_t kFewSlab = 256;  // a multiple of the largest block

struct WidePanel {
  alignas(64) uint32_t q[kWideSlab / 32][4][16][16];  // [32 inputs][group of rows][pair of inputs][row]: the earlier input in the low half
};

HW_INLINE vi as_bits(vf x) { return _mm512_castps_si512(x); }
// Bits of x under the mask as the mantissa of a float of exponent `magic`.
HW_INLINE vf mantissa(vi x, uint32_t mask, uint32_t magic) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(x, vi_set1(int32_t(mask)), vi_set1(int32_t(magic)), 0xea));
}
// Two vectors of floats to bfloat16 (nearest, ties away), the first in the low halves.
HW_INLINE vi pair16(vf low, vf high) {
  const vi half = vi_set1(0x8000);
  const vi a = _mm512_srli_epi32(vi_add(as_bits(low), half), 16), b = vi_add(as_bits(high), half);
  return _mm512_ternarylogic_epi32(a, b, vi_set1(int32_t(0xffff0000)), 0xf8 & 0xff);
}

// Nibbles: 4 bits at bit 8, 12 or 16 of a float's mantissa, where (value + offset) * scale - offset * scale is exact before its one rounding.
HW_INLINE void widen_q4_0(const uint8_t* w, uint32_t (*q)[16]) {
  const vf d = vf_half((const uint16_t*)(w + 256));
  const vf c8 = vf_mul(d, vf_set1(-32776.0f)), c12 = vf_mul(d, vf_set1(-2056.0f)), c16 = vf_mul(d, vf_set1(-136.0f));
  const auto at8 = [&](vi x) { return vf_fma(mantissa(x, 0xf00, 0x47000000), d, c8); };
  const auto at12 = [&](vi x) { return vf_fma(mantissa(x, 0xf000, 0x45000000), d, c12); };
  const auto at16 = [&](vi x) { return vf_fma(mantissa(x, 0xf0000, 0x43000000), d, c16); };
  for (int v = 0; v < 4; v++) {
    const vi x = vb_load(w + 64 * v), up = _mm512_slli_epi32(x, 8), down = _mm512_srli_epi32(x, 12);
    vb_store(q[4 * v], pair16(at8(up), at8(x)));
    vb_store(q[4 * v + 1], pair16(at16(x), at12(down)));
    vb_store(q[4 * v + 2], pair16(at12(up), at12(x)));
    vb_store(q[4 * v + 3], pair16(at8(down), at16(down)));
  }
}

// Bytes of a panel, four inputs a vector, to pairs.
template <class S>
HW_INLINE void widen_bytes(const Panel& p, int r, size_t b, uint32_t (*q)[16]) {
  const vf zero = vf_set1(float(32768 + S::off)), low = S::low ? vf_mul(vf_load(p.low[b][r]), vf_set1(-128.0f)) : vf_zero();
  for (int v = 0; v < 8; v++) {
    const vf s = vf_load(p.scale[S::group == 16 ? 2 * b + size_t(v / 4) : b][r]);
    const vi x = vb_load(p.q[8 * b + size_t(v)][r]);
    const auto value = [&](vi y) {
      const vf n = vf_sub(mantissa(y, 0xff00, 0x47000000), zero);
      return S::low ? vf_fma(n, s, low) : vf_mul(n, s);
    };
    vb_store(q[2 * v], pair16(value(_mm512_slli_epi32(x, 8)), value(x)));
    vb_store(q[2 * v + 1], pair16(value(_mm512_srli_epi32(x, 8)), value(_mm512_srli_epi32(x, 16))));
  }
}

// 32 tokens x 32 rows over `steps` times 32 inputs.
HW_INLINE void meet(const uint16_t* a, size_t stride, const uint32_t (*b)[4][16][16], int r, size_t steps, float* c, bool first) {
  const size_t ldc = kPanelRows * 4;
  float* below = c + 16 * kPanelRows;
  const uint16_t* a1 = a + 8 * stride;
  if (first) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  } else {
    tile_load<0>(c, ldc), tile_load<1>(c + 16, ldc), tile_load<2>(below, ldc), tile_load<3>(below + 16, ldc);
  }
  for (size_t i = 0; i < steps; i++) {
    tile_load<4>(a + 32 * i, stride);
    tile_load<6>(b[i][r], 64);
    tile_load<7>(b[i][r + 1], 64);
    tile_load<5>(a1 + 32 * i, stride);
    tile_dot<0, 4, 6>(), tile_dot<1, 4, 7>(), tile_dot<2, 5, 6>(), tile_dot<3, 5, 7>();
  }
  tile_store<0>(c, ldc), tile_store<1>(c + 16, ldc), tile_store<2>(below, ldc), tile_store<3>(below + 16, ldc);
}

// Up to 16 tokens x all 64 rows: tiles of as many rows as there are tokens, one of results for each group, so that none waits for itself. The
// sums are those of `meet`, bit for bit.
HW_INLINE void meet_few(const uint16_t* a, size_t stride, const uint32_t (*b)[4][16][16], size_t steps, float* c, bool first) {
  const size_t ldc = kPanelRows * 4;
  if (first) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  } else {
    tile_load<0>(c, ldc), tile_load<1>(c + 16, ldc), tile_load<2>(c + 32, ldc), tile_load<3>(c + 48, ldc);
  }
  for (size_t i = 0; i < steps; i++) {
    tile_load<4>(a + 32 * i, stride);
    tile_load<5>(b[i][0], 64), tile_load<6>(b[i][1], 64), tile_load<7>(b[i][2], 64);
    tile_dot<0, 4, 5>(), tile_dot<1, 4, 6>(), tile_dot<2, 4, 7>();
    tile_load<5>(b[i][3], 64);
    tile_dot<3, 4, 5>();
  }
  tile_store<0>(c, ldc), tile_store<1>(c + 16, ldc), tile_store<2>(c + 32, ldc), tile_store<3>(c + 48, ldc);
}

// Expanded weights are read once by few tokens: a slab that stays in the first cache.
template <class Widen>
static void wide_few(Widen widen, const uint8_t* const w[4], const Acts& a, size_t t0, size_t nt, float* c) {
  WidePanel p;
  TileShapes shapes;
  for (int i = 0; i < 5; i++) shapes.rows[i] = uint8_t(nt);  // results and activations
  const Tiles tiles(shapes);
  for (size_t k0 = 0; k0 < a.k; k0 += kFewSlab) {
    const size_t steps = (a.k - k0 < kFewSlab ? a.k - k0 : kFewSlab) / 32;
    widen(w, k0, steps, p);
    meet_few(a.wide + t0 * a.wide_stride + k0, a.wide_stride * 2, p.q, steps, c, k0 == 0);
  }
}

template <class Widen>
static void wide_with(Widen widen, const uint8_t* const w[4], const Acts& a, size_t t0, size_t nt, float* c) {
  if (nt <= 16) return wide_few(widen, w, a, t0, nt, c);
  WidePanel p;
  const Tiles tiles;
  const size_t stride = a.wide_stride;
  for (size_t k0 = 0; k0 < a.k; k0 += kWideSlab) {
    const size_t steps = (a.k - k0 < kWideSlab ? a.k - k0 : kWideSlab) / 32;
    widen(w, k0, steps, p);
    for (size_t t = 0; t < nt; t += 32)
      for (int r = 0; r < 4; r += 2)
        meet(a.wide + (t0 + t) * stride + k0, stride * 2, p.q, r, steps, c + t * kPanelRows + 16 * r, k0 == 0);
  }
}

template <class S, class Expand>
static void wide_bytes(Expand expand, size_t unit, size_t unit_bytes, const uint8_t* const w[4], const Acts& a, size_t t0, size_t nt, float* c) {
  Panel narrow;
  const auto widen = [&](const uint8_t* const from[4], size_t k0, size_t blocks, WidePanel& p) {
    for (size_t b = 0; b < blocks; b += 8)
      for (int r = 0; r < 4; r++) {
        const size_t n = blocks - b < 8 ? blocks - b : 8;
        if (from[r]) expand(from[r] + (k0 + 32 * b) / unit * unit_bytes, n, narrow, r);
        for (size_t i = 0; i < n; i++)
          if (from[r]) widen_bytes<S>(narrow, r, i, p.q[b + i][r]);
          else memset(p.q[b + i][r], 0, sizeof p.q[b + i][r]);
      }
  };
  wide_with(widen, w, a, t0, nt, c);
}

static void wide_q4_0(const uint8_t* const w[4], const Acts& a, size_t t0, size_t nt, float* c) {
  const auto widen = [](const uint8_t* const from[4], size_t k0, size_t blocks, WidePanel& p) {
    for (int r = 0; r < 4; r++)
      for (size_t b = 0; b < blocks; b++)
        if (from[r]) widen_q4_0(from[r] + (k0 / 32 + b) * 288, p.q[b][r]);
        else memset(p.q[b][r], 0, sizeof p.q[b][r]);
  };
  wide_with(widen, w, a, t0, nt, c);
}

static void panel_wide(Format f, const uint8_t* const w[4], const Acts& a, size_t t0, size_t nt, float* c) {
  switch (f) {
    case Format::Q4_0: return wide_q4_0(w, a, t0, nt, c);
    case Format::Q4_1: return wide_bytes<ShapeK>(expand_q45<ShapeK, false, true>, 32, 320, w, a, t0, nt, c);
    case Format::Q5_0: return wide_bytes<ShapeQ5>(expand_q45<ShapeQ5, true, false>, 32, 352, w, a, t0, nt, c);
    case Format::Q5_1: return wide_bytes<ShapeK>(expand_q45<ShapeK, true, true>, 32, 384, w, a, t0, nt, c);
    case Format::Q8_0: return wide_bytes<ShapeQ8>(expand_q8_0, 32, 544, w, a, t0, nt, c);
    case Format::Q6_K: return wide_bytes<ShapeQ6>(expand_q6_k, 256, 3360, w, a, t0, nt, c);
    case Format::Q4_K: return wide_bytes<ShapeK>(expand_k<false>, 256, 2368, w, a, t0, nt, c);
    case Format::Q5_K: return wide_bytes<ShapeK>(expand_k<true>, 256, 2880, w, a, t0, nt, c);
    default: return panel(f, w, a, t0, nt, c);
  }
}
