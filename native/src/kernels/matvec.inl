// A few tokens against a matrix that streams from memory: each weight is read once, unpacked once, used for NT tokens.
// 16 rows are 16 lanes, so there is no horizontal sum; the next 4 KB are on their way while this block is used.

constexpr size_t kAhead = 4096;

template <int bytes>
HW_INLINE void prefetch_block(const uint8_t* p) {
  for (int i = 0; i < bytes; i += 64) prefetch(p + kAhead + i);
}

// One 32-input block of nibbles against the tokens: acc = -8 sum + dot.
template <int NT>
HW_INLINE void dot_nibbles(const uint8_t* p, const Acts& a, size_t t0, size_t b, vi acc[NT]) {
  const vb mask = vb_set1(15);
  vi odd[NT];
  for (int t = 0; t < NT; t++) odd[t] = vi_zero();
HW_UNROLL(4)
  for (int v = 0; v < 4; v++) {
    const vb x = vb_load(p + 64 * v), lo = vb_and(x, mask), hi = vb_and(vb_srl16<4>(x), mask);
    for (int t = 0; t < NT; t++) {
      const int8_t* q = a.q + (t0 + t) * a.k + 32 * b + 8 * v;
      acc[t] = vi_dot_small(acc[t], lo, vb_bcast4(q));
      odd[t] = vi_dot_small(odd[t], hi, vb_bcast4(q + 4));
    }
  }
  for (int t = 0; t < NT; t++) acc[t] = vi_add(acc[t], odd[t]);
}

template <int NT>
static void matvec_q4_0(const uint8_t* w, size_t groups, const Acts& a, size_t t0, float* y, size_t ldy) {
  const size_t nb = a.k / 32;
  for (size_t g = 0; g < groups; g++) {
    vf f[NT];
    for (int t = 0; t < NT; t++) f[t] = vf_zero();
    for (size_t b = 0; b < nb; b++, w += 288) {
      prefetch_block<288>(w);
      vi acc[NT];
      for (int t = 0; t < NT; t++) acc[t] = vi_sra<4>(vi_set1(a.sum32[(t0 + t) * nb + b]));
      dot_nibbles<NT>(w, a, t0, b, acc);
      const vf d = vf_half((const uint16_t*)(w + 256));
      for (int t = 0; t < NT; t++) f[t] = vf_fma(vf_from(acc[t]), vf_mul(d, vf_set1(a.scale[(t0 + t) * nb + b])), f[t]);
    }
    for (int t = 0; t < NT; t++) vf_store(y + t * ldy + 16 * g, f[t]);
  }
}

template <int NT>
static void matvec_q8_0(const uint8_t* w, size_t groups, const Acts& a, size_t t0, float* y, size_t ldy) {
  const size_t nb = a.k / 32;
  for (size_t g = 0; g < groups; g++) {
    vf f[NT];
    for (int t = 0; t < NT; t++) f[t] = vf_zero();
    for (size_t b = 0; b < nb; b++, w += 544) {
      prefetch_block<544>(w);
      vi acc[NT], odd[NT];
      for (int t = 0; t < NT; t++) acc[t] = vi_set1(a.sum32[(t0 + t) * nb + b]), odd[t] = vi_zero();
HW_UNROLL(4)
      for (int v = 0; v < 8; v += 2) {
        const vb x = vb_load(w + 64 * v), z = vb_load(w + 64 * v + 64);
        for (int t = 0; t < NT; t++) {
          const int8_t* q = a.q + (t0 + t) * a.k + 32 * b + 4 * v;
          acc[t] = vi_dot(acc[t], x, vb_bcast4(q));
          odd[t] = vi_dot(odd[t], z, vb_bcast4(q + 4));
        }
      }
      const vf d = vf_half((const uint16_t*)(w + 512));
      for (int t = 0; t < NT; t++)
        f[t] = vf_fma(vf_from(vi_add(acc[t], odd[t])), vf_mul(d, vf_set1(a.scale[(t0 + t) * nb + b])), f[t]);
    }
    for (int t = 0; t < NT; t++) vf_store(y + t * ldy + 16 * g, f[t]);
  }
}

// Q6_K: 256 inputs: 8 x (256 low nibbles, 128 high pairs), scales s8 [16][16 rows], d half [16 rows].
template <int NT>
static void matvec_q6_k(const uint8_t* w, size_t groups, const Acts& a, size_t t0, float* y, size_t ldy) {
  const size_t ns = a.k / 256;
  const vb m4 = vb_set1(15), m2 = vb_set1(0x30);
  for (size_t g = 0; g < groups; g++) {
    vf f[NT];
    for (int t = 0; t < NT; t++) f[t] = vf_zero();
    for (size_t s = 0; s < ns; s++, w += 3360) {
      vf sup[NT];
      for (int t = 0; t < NT; t++) sup[t] = vf_zero();
      for (size_t b = 0; b < 8; b++) {
        const uint8_t* p = w + 384 * b;
        prefetch_block<384>(p);
        const int8_t* sc = (const int8_t*)(w + 3072) + 32 * b;
HW_UNROLL(2)
        for (int h = 0; h < 2; h++) {  // 16 inputs: 4 vectors of 16 rows x 4
          const vb x = vb_load(p + 128 * h), z = vb_load(p + 128 * h + 64), hi = vb_load(p + 256 + 64 * h);
          const vb u0 = vb_or(vb_and(x, m4), vb_and(vb_sll16<4>(hi), m2));
          const vb u1 = vb_or(vb_and(vb_srl16<4>(x), m4), vb_and(vb_sll16<2>(hi), m2));
          const vb u2 = vb_or(vb_and(z, m4), vb_and(hi, m2));
          const vb u3 = vb_or(vb_and(vb_srl16<4>(z), m4), vb_and(vb_srl16<2>(hi), m2));
          const vf scale = vf_s8(sc + 16 * h);
          for (int t = 0; t < NT; t++) {
            const int8_t* q = a.q + (t0 + t) * a.k + 256 * s + 32 * b + 16 * h;
            vi acc = vi_sra<2>(vi_set1(a.sum16[(t0 + t) * (a.k / 16) + 16 * s + 2 * b + h]));
            acc = vi_dot_small(acc, u0, vb_bcast4(q));
            acc = vi_dot_small(acc, u1, vb_bcast4(q + 4));
            acc = vi_dot_small(acc, u2, vb_bcast4(q + 8));
            acc = vi_dot_small(acc, u3, vb_bcast4(q + 12));
            const vf as = vf_set1(a.scale[(t0 + t) * (a.k / 32) + 8 * s + b]);
            sup[t] = vf_fma(vf_from(acc), vf_mul(scale, as), sup[t]);
          }
        }
      }
      prefetch_block<288>(w + 3072);
      const vf d = vf_half((const uint16_t*)(w + 3328));
      for (int t = 0; t < NT; t++) f[t] = vf_fma(sup[t], d, f[t]);
    }
    for (int t = 0; t < NT; t++) vf_store(y + t * ldy + 16 * g, f[t]);
  }
}

// Q4_K and Q5_K: 256 inputs: 8 x 256 nibbles, [5 bits: 8 x 64 high bits,] scales u8 [8][16], mins u8 [8][16], d half [16], dmin half [16].
template <int NT, bool five>
static void matvec_k(const uint8_t* w, size_t groups, const Acts& a, size_t t0, float* y, size_t ldy) {
  const size_t ns = a.k / 256, tail = five ? 2560 : 2048;
  const vb m4 = vb_set1(15), m5 = vb_set1(16);
  for (size_t g = 0; g < groups; g++) {
    vf f[NT];
    for (int t = 0; t < NT; t++) f[t] = vf_zero();
    for (size_t s = 0; s < ns; s++, w += tail + 320) {
      vf sup[NT], low[NT];
      for (int t = 0; t < NT; t++) sup[t] = vf_zero(), low[t] = vf_zero();
      for (size_t b = 0; b < 8; b++) {
        const uint8_t* p = w + 256 * b;
        prefetch_block<five ? 320 : 256>(p);
        vb hi = vb_set1(0);
        if (five) hi = vb_load(w + 2048 + 64 * b);
        vi acc[NT];
        for (int t = 0; t < NT; t++) acc[t] = vi_zero();
HW_UNROLL(4)
        for (int v = 0; v < 4; v++) {
          const vb x = vb_load(p + 64 * v);
          vb lo = vb_and(x, m4), up = vb_and(vb_srl16<4>(x), m4);
          if (five) {  // bit 2v of the high byte belongs to lo, bit 2v + 1 to up
            const vb z = v == 0 ? vb_sll16<4>(hi) : v == 1 ? vb_sll16<2>(hi) : v == 2 ? hi : vb_srl16<2>(hi);
            const vb y1 = v == 0 ? vb_sll16<3>(hi) : v == 1 ? vb_sll16<1>(hi) : v == 2 ? vb_srl16<1>(hi) : vb_srl16<3>(hi);
            lo = vb_or(lo, vb_and(z, m5)), up = vb_or(up, vb_and(y1, m5));
          }
          for (int t = 0; t < NT; t++) {
            const int8_t* q = a.q + (t0 + t) * a.k + 256 * s + 32 * b + 8 * v;
            acc[t] = vi_dot_small(vi_dot_small(acc[t], lo, vb_bcast4(q)), up, vb_bcast4(q + 4));
          }
        }
        const vf sc = vf_u8(w + tail + 16 * b), mn = vf_u8(w + tail + 128 + 16 * b);
        for (int t = 0; t < NT; t++) {
          const size_t i = (t0 + t) * (a.k / 32) + 8 * s + b;
          const float as = a.scale[i];
          sup[t] = vf_fma(vf_from(acc[t]), vf_mul(sc, vf_set1(as)), sup[t]);
          low[t] = vf_fma(mn, vf_set1(as * float(a.sum32[i])), low[t]);  // -128 times what the minimum meets
        }
      }
      prefetch_block<320>(w + tail);
      const vf d = vf_half((const uint16_t*)(w + tail + 256)), dmin = vf_half((const uint16_t*)(w + tail + 288));
      for (int t = 0; t < NT; t++) {
        f[t] = vf_fma(sup[t], d, f[t]);
        f[t] = vf_fma(vf_mul(low[t], vf_set1(1.0f / 128)), dmin, f[t]);
      }
    }
    for (int t = 0; t < NT; t++) vf_store(y + t * ldy + 16 * g, f[t]);
  }
}

template <int NT>
static void matvec_n(Format f, const uint8_t* w, size_t groups, const Acts& a, size_t t0, float* y, size_t ldy) {
  switch (f) {
    case Format::Q4_0: return matvec_q4_0<NT>(w, groups, a, t0, y, ldy);
    case Format::Q4_1: return matvec_q45<NT, false, true>(w, groups, a, t0, y, ldy);
    case Format::Q5_0: return matvec_q45<NT, true, false>(w, groups, a, t0, y, ldy);
    case Format::Q5_1: return matvec_q45<NT, true, true>(w, groups, a, t0, y, ldy);
    case Format::Q8_0: return matvec_q8_0<NT>(w, groups, a, t0, y, ldy);
    case Format::Q6_K: return matvec_q6_k<NT>(w, groups, a, t0, y, ldy);
    case Format::Q4_K: return matvec_k<NT, false>(w, groups, a, t0, y, ldy);
    case Format::Q5_K: return matvec_k<NT, true>(w, groups, a, t0, y, ldy);
    default: return fgemm(f, a.f + t0 * a.k, a.k, NT, a.k, w, a.k * 16, 16, groups, y, ldy, false);
  }
}

static void matvec(Format f, const uint8_t* w, size_t groups, const Acts& a, size_t t0, int nt, float* y, size_t ldy) {
  switch (nt) {
    case 1: return matvec_n<1>(f, w, groups, a, t0, y, ldy);
    case 2: return matvec_n<2>(f, w, groups, a, t0, y, ldy);
    case 3: return matvec_n<3>(f, w, groups, a, t0, y, ldy);
    default: return matvec_n<4>(f, w, groups, a, t0, y, ldy);
  }
}
