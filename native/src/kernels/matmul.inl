// Many tokens: four groups of 16 rows are expanded to bytes for a slab of 256 inputs (16 KB: stays in L1) and meet tile after tile of tokens.
// Both scales (weights and activations, per 32 inputs) are kept exactly; the float sums live in c, the integer sums in registers.

#if defined(HW_AVX512)
constexpr int kTileRows = 4, kTileTokens = 6;
constexpr bool kOneDot = true;  // any unsigned byte is good for the dot product: all panels hold value + 128
#else
constexpr int kTileRows = 1, kTileTokens = 4;
constexpr bool kOneDot = false;  // bytes up to 127 have a faster dot product: panels keep the offset of their format
#endif
constexpr size_t kSlab = 256;

struct Panel {
  alignas(64) uint8_t q[kSlab / 4][4][64];     // [4 inputs][group of rows][row x 4]
  alignas(64) float scale[kSlab / 16][4][16];  // [scale group][group of rows][row]
  alignas(64) float low[kSlab / 32][4][16];    // minimum, as added
};

// How a format looks as a panel: inputs a scale, offset of the bytes (as the shift that makes -128 * sum into -offset * sum), minimum or not.
template <int inputs, int offset, bool minimum>
struct Shape {
  static constexpr int group = inputs, off = kOneDot ? 128 : offset;
  static constexpr bool low = minimum, small = off != 128;
  static constexpr uint8_t raise = uint8_t(off - offset);
};
using ShapeQ4 = Shape<32, 8, false>;
using ShapeQ8 = Shape<32, 128, false>;
using ShapeQ6 = Shape<16, 32, false>;
using ShapeQ5 = Shape<32, 16, false>;
using ShapeK = Shape<32, 0, true>;

template <class S>
HW_INLINE vi start(int32_t sum) {
  if (S::off == 128) return vi_set1(sum);
  if (S::off == 32) return vi_sra<2>(vi_set1(sum));
  if (S::off == 16) return vi_sra<3>(vi_set1(sum));
  if (S::off == 8) return vi_sra<4>(vi_set1(sum));
  return vi_zero();
}

template <class S, int T>
static void tile(const Panel& p, int r0, size_t scales, const Acts& a, size_t t0, size_t k0, float* c, bool first) {
  constexpr int G = S::group, R = kTileRows;
  const size_t nb = a.k / 32, ns = a.k / G;
  const int8_t* q = a.q + t0 * a.k + k0;
  const float* as = a.scale + t0 * nb + k0 / 32;
  const int32_t* sum = (G == 16 ? a.sum16 : a.sum32) + t0 * ns + k0 / G;
  for (size_t b = 0; b < scales; b++, q += G) {
    vi acc[T][R];
HW_UNROLL(8)
    for (int t = 0; t < T; t++) {
      const vi z = start<S>(sum[t * ns + b]);
HW_UNROLL(4)
      for (int r = 0; r < R; r++) acc[t][r] = z;
    }
HW_UNROLL(8)
    for (int i = 0; i < G / 4; i++) {
      vb w[R];
HW_UNROLL(4)
      for (int r = 0; r < R; r++) w[r] = vb_load(p.q[b * (G / 4) + i][r0 + r]);
HW_UNROLL(8)
      for (int t = 0; t < T; t++) {
        const vb x = vb_bcast4(q + t * a.k + 4 * i);
HW_UNROLL(4)
        for (int r = 0; r < R; r++) acc[t][r] = S::small ? vi_dot_small(acc[t][r], w[r], x) : vi_dot(acc[t][r], w[r], x);
      }
    }
HW_UNROLL(8)
    for (int t = 0; t < T; t++) {
      const float s = as[t * nb + b / (32 / G)];
      const float m = S::low ? s * float(sum[t * ns + b]) : 0.0f;
HW_UNROLL(4)
      for (int r = 0; r < R; r++) {
        float* out = c + t * kPanelRows + 16 * r;
        vf sumf = first && b == 0 ? vf_zero() : vf_load(out);
        sumf = vf_fma(vf_from(acc[t][r]), vf_mul(vf_load(p.scale[b][r0 + r]), vf_set1(s)), sumf);
        if (S::low) sumf = vf_fma(vf_load(p.low[b][r0 + r]), vf_set1(m), sumf);
        vf_store(out, sumf);
      }
    }
  }
}

template <class S>
static void tiles(const Panel& p, size_t scales, const Acts& a, size_t t0, size_t nt, size_t k0, float* c, bool first) {
  size_t t = 0;
  for (; t + kTileTokens <= nt; t += kTileTokens)
    for (int r = 0; r < 4; r += kTileRows) tile<S, kTileTokens>(p, r, scales, a, t0 + t, k0, c + t * kPanelRows + 16 * r, first);
  for (int r = 0; r < 4; r += kTileRows) {
    float* out = c + t * kPanelRows + 16 * r;
    switch (nt - t) {
      case 5: tile<S, 5>(p, r, scales, a, t0 + t, k0, out, first); break;
      case 4: tile<S, 4>(p, r, scales, a, t0 + t, k0, out, first); break;
      case 3: tile<S, 3>(p, r, scales, a, t0 + t, k0, out, first); break;
      case 2: tile<S, 2>(p, r, scales, a, t0 + t, k0, out, first); break;
      case 1: tile<S, 1>(p, r, scales, a, t0 + t, k0, out, first); break;
      default: break;
    }
  }
}

// expand: `blocks` 32-input blocks of one group from w into column r of the panel.
HW_INLINE void expand_nibbles(const uint8_t* w, uint8_t raise, Panel& p, int r, size_t b) {
  const vb mask = vb_set1(15), up = vb_set1(raise);
  for (int v = 0; v < 4; v++) {
    const vb x = vb_load(w + 64 * v);
    vb_store(p.q[8 * b + 2 * v][r], vb_add(vb_and(x, mask), up));
    vb_store(p.q[8 * b + 2 * v + 1][r], vb_add(vb_and(vb_srl16<4>(x), mask), up));
  }
}

static void expand_q4_0(const uint8_t* w, size_t blocks, Panel& p, int r) {
  for (size_t b = 0; b < blocks; b++, w += 288) {
    expand_nibbles(w, ShapeQ4::raise, p, r, b);
    vf_store(p.scale[b][r], vf_half((const uint16_t*)(w + 256)));
  }
}

static void expand_q8_0(const uint8_t* w, size_t blocks, Panel& p, int r) {
  for (size_t b = 0; b < blocks; b++, w += 544) {
    for (int v = 0; v < 8; v++) vb_store(p.q[8 * b + v][r], vb_load(w + 64 * v));
    vf_store(p.scale[b][r], vf_half((const uint16_t*)(w + 512)));
  }
}

template <class S, bool five, bool minimum>
static void expand_q45(const uint8_t* w, size_t blocks, Panel& p, int r) {
  constexpr size_t tail = five ? 320 : 256;
  const vb m4 = vb_set1(15), m5 = vb_set1(16), up = vb_set1(S::raise);
  for (size_t b = 0; b < blocks; b++, w += tail + (minimum ? 64 : 32)) {
    if (!five) expand_nibbles(w, S::raise, p, r, b);
    vb hi = five ? vb_load(w + 256) : vb_set1(0);
    for (int v = 0; five && v < 4; v++) {
      const vb x = vb_load(w + 64 * v);
      vb_store(p.q[8 * b + 2 * v][r], vb_add(vb_or(vb_and(x, m4), vb_and(vb_sll16<4>(hi), m5)), up));
      vb_store(p.q[8 * b + 2 * v + 1][r], vb_add(vb_or(vb_and(vb_srl16<4>(x), m4), vb_and(vb_sll16<3>(hi), m5)), up));
      hi = vb_and(vb_srl16<2>(hi), vb_set1(0x3f));
    }
    vf_store(p.scale[b][r], vf_half((const uint16_t*)(w + tail)));
    if (minimum) vf_store(p.low[b][r], vf_mul(vf_half((const uint16_t*)(w + tail + 32)), vf_set1(-1.0f / 128)));
  }
}

static void expand_q6_k(const uint8_t* w, size_t blocks, Panel& p, int r) {  // one super-block: blocks == 8
  const vb m4 = vb_set1(15), m2 = vb_set1(0x30), up = vb_set1(ShapeQ6::raise);
  const vf d = vf_half((const uint16_t*)(w + 3328));
  for (size_t b = 0; b < blocks; b++)
    for (int h = 0; h < 2; h++) {
      const uint8_t* s = w + 384 * b;
      const vb x = vb_load(s + 128 * h), z = vb_load(s + 128 * h + 64), hi = vb_load(s + 256 + 64 * h);
      uint8_t(*q)[4][64] = &p.q[8 * b + 4 * h];
      vb_store(q[0][r], vb_add(vb_or(vb_and(x, m4), vb_and(vb_sll16<4>(hi), m2)), up));
      vb_store(q[1][r], vb_add(vb_or(vb_and(vb_srl16<4>(x), m4), vb_and(vb_sll16<2>(hi), m2)), up));
      vb_store(q[2][r], vb_add(vb_or(vb_and(z, m4), vb_and(hi, m2)), up));
      vb_store(q[3][r], vb_add(vb_or(vb_and(vb_srl16<4>(z), m4), vb_and(vb_srl16<2>(hi), m2)), up));
      vf_store(p.scale[2 * b + h][r], vf_mul(vf_s8((const int8_t*)w + 3072 + 32 * b + 16 * h), d));
    }
}

template <bool five>
static void expand_k(const uint8_t* w, size_t blocks, Panel& p, int r) {
  const size_t tail = five ? 2560 : 2048;
  const vf d = vf_half((const uint16_t*)(w + tail + 256));
  const vf dmin = vf_mul(vf_half((const uint16_t*)(w + tail + 288)), vf_set1(1.0f / 128));
  const vb m4 = vb_set1(15), m5 = vb_set1(16), up = vb_set1(ShapeK::raise);
  for (size_t b = 0; b < blocks; b++) {
    if (!five) expand_nibbles(w + 256 * b, ShapeK::raise, p, r, b);
    if (five) {
      vb hi = vb_load(w + 2048 + 64 * b);  // bit i belongs to vector i: moved to bit 4, one after the other
      for (int v = 0; v < 4; v++) {
        const vb x = vb_load(w + 256 * b + 64 * v);
        vb_store(p.q[8 * b + 2 * v][r], vb_add(vb_or(vb_and(x, m4), vb_and(vb_sll16<4>(hi), m5)), up));
        vb_store(p.q[8 * b + 2 * v + 1][r], vb_add(vb_or(vb_and(vb_srl16<4>(x), m4), vb_and(vb_sll16<3>(hi), m5)), up));
        hi = vb_and(vb_srl16<2>(hi), vb_set1(0x3f));
      }
    }
    vf_store(p.scale[b][r], vf_mul(vf_u8(w + tail + 16 * b), d));
    vf_store(p.low[b][r], vf_mul(vf_u8(w + tail + 128 + 16 * b), dmin));
  }
}

template <class S, class Expand>
static void panel_with(Expand expand, size_t unit, size_t unit_bytes, const uint8_t* const w[4], const Acts& a, size_t t0, size_t nt, float* c) {
  Panel p;
  for (size_t k0 = 0; k0 < a.k; k0 += kSlab) {
    const size_t inputs = a.k - k0 < kSlab ? a.k - k0 : kSlab;
    for (int r = 0; r < 4; r++) {
      if (w[r]) {
        expand(w[r] + k0 / unit * unit_bytes, inputs / 32, p, r);
      } else {
        for (size_t i = 0; i < inputs / 4; i++) vb_store(p.q[i][r], vb_set1(0));
        for (size_t b = 0; b < inputs / S::group; b++) vf_store(p.scale[b][r], vf_zero());
        for (size_t b = 0; b < inputs / 32; b++) vf_store(p.low[b][r], vf_zero());
      }
    }
    tiles<S>(p, inputs / S::group, a, t0, nt, k0, c, k0 == 0);
  }
}

static void panel_float(Format f, size_t bytes, const uint8_t* const w[4], const Acts& a, size_t t0, size_t nt, float* c) {
  const size_t group = a.k * 16;
  for (int r = 0; r < 4;) {
    int n = 1;
    while (r + n < 4 && w[r] && w[r + n] == w[r] + n * group * bytes) n++;
    float* out = c + 16 * r;
    if (w[r]) fgemm(f, a.f + t0 * a.k, a.k, nt, a.k, w[r], group, 16, size_t(n), out, kPanelRows, false);
    for (size_t t = 0; !w[r] && t < nt; t++) vf_store(out + t * kPanelRows, vf_zero());
    r += n;
  }
}

static void panel(Format f, const uint8_t* const w[4], const Acts& a, size_t t0, size_t nt, float* c) {
  switch (f) {
    case Format::Q4_0: return panel_with<ShapeQ4>(expand_q4_0, 32, 288, w, a, t0, nt, c);
    case Format::Q4_1: return panel_with<ShapeK>(expand_q45<ShapeK, false, true>, 32, 320, w, a, t0, nt, c);
    case Format::Q5_0: return panel_with<ShapeQ5>(expand_q45<ShapeQ5, true, false>, 32, 352, w, a, t0, nt, c);
    case Format::Q5_1: return panel_with<ShapeK>(expand_q45<ShapeK, true, true>, 32, 384, w, a, t0, nt, c);
    case Format::Q8_0: return panel_with<ShapeQ8>(expand_q8_0, 32, 544, w, a, t0, nt, c);
    case Format::Q6_K: return panel_with<ShapeQ6>(expand_q6_k, 256, 3360, w, a, t0, nt, c);
    case Format::Q4_K: return panel_with<ShapeK>(expand_k<false>, 256, 2368, w, a, t0, nt, c);
    case Format::Q5_K: return panel_with<ShapeK>(expand_k<true>, 256, 2880, w, a, t0, nt, c);
    case Format::F32: return panel_float(f, 4, w, a, t0, nt, c);
    default: return panel_float(f, 2, w, a, t0, nt, c);
  }
}
