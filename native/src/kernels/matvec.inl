// A few tokens against groups of 16 rows that stream from memory: each weight is read once, unpacked once, used for NT tokens.
// 16 rows are 16 lanes, so there is no horizontal sum. S groups are read at once: a core fetches several streams faster than one, because
// its prefetcher follows a stream only within a page. Each stream is fetched some blocks ahead, and past its end where it goes on.

#if defined(HW_AVX512)
constexpr bool kHold = true;  // the inputs of one token stay in registers while the streams take turns
constexpr int kWide = 8;
#else
constexpr bool kHold = false;
constexpr int kWide = 4;
#endif

template <int bytes>
HW_INLINE void fetch(const uint8_t* p) {
  for (int i = 0; i < bytes; i += 64) prefetch(p + i);
}

// The int8 inputs of a block: N fours of them for each of NT tokens.
template <int NT, int N>
struct Fours {
  const int8_t* at[NT];
  vb held[kHold && NT == 1 ? N : 1];
};
template <int NT, int N>
HW_INLINE Fours<NT, N> fours(const Acts& a, size_t t0, size_t first) {
  Fours<NT, N> x;
  for (int t = 0; t < NT; t++) x.at[t] = a.q + (t0 + size_t(t)) * a.k + first;
  if constexpr (kHold && NT == 1) {
HW_UNROLL(8)
    for (int i = 0; i < N; i++) x.held[i] = vb_bcast4(x.at[0] + 4 * i);
  }
  return x;
}
template <int NT, int N>
HW_INLINE vb four(const Fours<NT, N>& x, int t, int i) {
  if constexpr (kHold && NT == 1) return x.held[i];
  return vb_bcast4(x.at[t] + 4 * i);
}

// 32 inputs of nibbles: acc += dot.
template <int NT>
HW_INLINE void dot_nibbles(const uint8_t* p, const Fours<NT, 8>& q, vi acc[NT]) {
  const vb mask = vb_set1(15);
  vi odd[NT];
  for (int t = 0; t < NT; t++) odd[t] = vi_zero();
HW_UNROLL(4)
  for (int v = 0; v < 4; v++) {
    const vb x = vb_load(p + 64 * v), lo = vb_and(x, mask), hi = vb_and(vb_srl16<4>(x), mask);
HW_UNROLL(4)
    for (int t = 0; t < NT; t++) {
      acc[t] = vi_dot_small(acc[t], lo, four(q, t, 2 * v));
      odd[t] = vi_dot_small(odd[t], hi, four(q, t, 2 * v + 1));
    }
  }
  for (int t = 0; t < NT; t++) acc[t] = vi_add(acc[t], odd[t]);
}

// A format: kBytes hold kInputs inputs of 16 rows; `block` adds block b, which stands at w[s] + b * kBytes, and fetches ahead[s] + b * kBytes.
struct Q4_0 {
  static constexpr size_t kBytes = 288, kInputs = 32, kAhead = 7;
  template <int S, int NT>
  HW_INLINE void block(const uint8_t* const* w, const uint8_t* const* ahead, size_t b, const Acts& a, size_t t0, vf f[S][NT]) {
    const size_t nb = a.k / 32;
    const Fours<NT, 8> q = fours<NT, 8>(a, t0, 32 * b);
    vi start[NT];
    vf scale[NT];
    for (int t = 0; t < NT; t++) start[t] = vi_sra<4>(vi_set1(a.sum32[(t0 + t) * nb + b])), scale[t] = vf_set1(a.scale[(t0 + t) * nb + b]);
HW_UNROLL(8)
    for (int s = 0; s < S; s++) {
      const uint8_t* p = w[s] + b * kBytes;
      fetch<kBytes>(ahead[s] + b * kBytes);
      vi acc[NT];
      for (int t = 0; t < NT; t++) acc[t] = start[t];
      dot_nibbles<NT>(p, q, acc);
      const vf d = vf_half((const uint16_t*)(p + 256));
      for (int t = 0; t < NT; t++) f[s][t] = vf_fma(vf_from(acc[t]), vf_mul(d, scale[t]), f[s][t]);
    }
  }
};

struct Q8_0 {
  static constexpr size_t kBytes = 544, kInputs = 32, kAhead = 4;
  template <int S, int NT>
  HW_INLINE void block(const uint8_t* const* w, const uint8_t* const* ahead, size_t b, const Acts& a, size_t t0, vf f[S][NT]) {
    const size_t nb = a.k / 32;
    const Fours<NT, 8> q = fours<NT, 8>(a, t0, 32 * b);
    vi start[NT];
    vf scale[NT];
    for (int t = 0; t < NT; t++) start[t] = vi_set1(a.sum32[(t0 + t) * nb + b]), scale[t] = vf_set1(a.scale[(t0 + t) * nb + b]);
HW_UNROLL(8)
    for (int s = 0; s < S; s++) {
      const uint8_t* p = w[s] + b * kBytes;
      fetch<kBytes>(ahead[s] + b * kBytes);
      vi acc[NT], odd[NT];
      for (int t = 0; t < NT; t++) acc[t] = start[t], odd[t] = vi_zero();
HW_UNROLL(4)
      for (int v = 0; v < 8; v += 2) {
        const vb x = vb_load(p + 64 * v), z = vb_load(p + 64 * v + 64);
        for (int t = 0; t < NT; t++) acc[t] = vi_dot(acc[t], x, four(q, t, v)), odd[t] = vi_dot(odd[t], z, four(q, t, v + 1));
      }
      const vf d = vf_half((const uint16_t*)(p + 512));
      for (int t = 0; t < NT; t++) f[s][t] = vf_fma(vf_from(vi_add(acc[t], odd[t])), vf_mul(d, scale[t]), f[s][t]);
    }
  }
};

// Q6_K: 256 inputs: 8 x (256 low nibbles, 128 high pairs), scales s8 [16][16 rows], d half [16 rows].
struct Q6_K {
  static constexpr size_t kBytes = 3360, kInputs = 256, kAhead = 1;
  // 16 inputs: 4 vectors of 16 rows x 4
  template <int NT>
  HW_INLINE void half(const uint8_t* low, const uint8_t* high, const Fours<NT, 4>& q, const vi* start, vi acc[NT]) {
    const vb m4 = vb_set1(15), m2 = vb_set1(0x30);
    const vb x = vb_load(low), z = vb_load(low + 64), hi = vb_load(high);
    const vb u0 = vb_or(vb_and(x, m4), vb_and(vb_sll16<4>(hi), m2));
    const vb u1 = vb_or(vb_and(vb_srl16<4>(x), m4), vb_and(vb_sll16<2>(hi), m2));
    const vb u2 = vb_or(vb_and(z, m4), vb_and(hi, m2));
    const vb u3 = vb_or(vb_and(vb_srl16<4>(z), m4), vb_and(vb_srl16<2>(hi), m2));
    for (int t = 0; t < NT; t++) {
      acc[t] = vi_dot_small(start[t], u0, four(q, t, 0));
      acc[t] = vi_dot_small(acc[t], u1, four(q, t, 1));
      acc[t] = vi_dot_small(acc[t], u2, four(q, t, 2));
      acc[t] = vi_dot_small(acc[t], u3, four(q, t, 3));
    }
  }
  template <int S, int NT>
  HW_INLINE void block(const uint8_t* const* w, const uint8_t* const* ahead, size_t s0, const Acts& a, size_t t0, vf f[S][NT]) {
    vf sup[S][NT];
HW_UNROLL(8)
    for (int s = 0; s < S; s++)
      for (int t = 0; t < NT; t++) sup[s][t] = vf_zero();
    for (size_t b = 0; b < 8; b++) {
      vf as[NT];
      for (int t = 0; t < NT; t++) as[t] = vf_set1(a.scale[(t0 + t) * (a.k / 32) + 8 * s0 + b]);
HW_UNROLL(2)
      for (size_t h = 0; h < 2; h++) {
        const Fours<NT, 4> q = fours<NT, 4>(a, t0, 256 * s0 + 32 * b + 16 * h);
        vi start[NT];
        for (int t = 0; t < NT; t++) start[t] = vi_sra<2>(vi_set1(a.sum16[(t0 + t) * (a.k / 16) + 16 * s0 + 2 * b + h]));
HW_UNROLL(8)
        for (int s = 0; s < S; s++) {
          const uint8_t* p = w[s] + s0 * kBytes;
          fetch<192>(ahead[s] + s0 * kBytes + 384 * b + 192 * h);
          vi acc[NT];
          half<NT>(p + 384 * b + 128 * h, p + 384 * b + 256 + 64 * h, q, start, acc);
          const vf scale = vf_s8((const int8_t*)(p + 3072 + 32 * b + 16 * h));
          for (int t = 0; t < NT; t++) sup[s][t] = vf_fma(vf_from(acc[t]), vf_mul(scale, as[t]), sup[s][t]);
        }
      }
    }
HW_UNROLL(8)
    for (int s = 0; s < S; s++) {
      const uint8_t* p = w[s] + s0 * kBytes;
      fetch<288>(ahead[s] + s0 * kBytes + 3072);
      const vf d = vf_half((const uint16_t*)(p + 3328));
      for (int t = 0; t < NT; t++) f[s][t] = vf_fma(sup[s][t], d, f[s][t]);
    }
  }
};

// Q4_K and Q5_K: 256 inputs: 8 x 256 nibbles, [5 bits: 8 x 64 high bits,] scales u8 [8][16], mins u8 [8][16], d half [16], dmin half [16].
template <bool five>
struct Q45_K {
  static constexpr size_t kTail = five ? 2560 : 2048, kBytes = kTail + 320, kInputs = 256, kAhead = 1;
  template <int NT>
  HW_INLINE void dot_five(const uint8_t* p, vb hi, const Fours<NT, 8>& q, vi acc[NT]) {
    const vb m4 = vb_set1(15), m5 = vb_set1(16);
HW_UNROLL(4)
    for (int v = 0; v < 4; v++) {  // bit 2v of the high byte belongs to lo, bit 2v + 1 to up
      const vb x = vb_load(p + 64 * v);
      const vb z = v == 0 ? vb_sll16<4>(hi) : v == 1 ? vb_sll16<2>(hi) : v == 2 ? hi : vb_srl16<2>(hi);
      const vb y = v == 0 ? vb_sll16<3>(hi) : v == 1 ? vb_sll16<1>(hi) : v == 2 ? vb_srl16<1>(hi) : vb_srl16<3>(hi);
      const vb lo = vb_or(vb_and(x, m4), vb_and(z, m5)), up = vb_or(vb_and(vb_srl16<4>(x), m4), vb_and(y, m5));
      for (int t = 0; t < NT; t++) acc[t] = vi_dot_small(vi_dot_small(acc[t], lo, four(q, t, 2 * v)), up, four(q, t, 2 * v + 1));
    }
  }
  template <int S, int NT>
  HW_INLINE void block(const uint8_t* const* w, const uint8_t* const* ahead, size_t s0, const Acts& a, size_t t0, vf f[S][NT]) {
    vf sup[S][NT], low[S][NT];
HW_UNROLL(8)
    for (int s = 0; s < S; s++)
      for (int t = 0; t < NT; t++) sup[s][t] = vf_zero(), low[s][t] = vf_zero();
    for (size_t b = 0; b < 8; b++) {
      const Fours<NT, 8> q = fours<NT, 8>(a, t0, 256 * s0 + 32 * b);
      vf scale[NT], sum[NT];
      for (int t = 0; t < NT; t++) {
        const size_t i = (t0 + t) * (a.k / 32) + 8 * s0 + b;
        scale[t] = vf_set1(a.scale[i]), sum[t] = vf_set1(a.scale[i] * float(a.sum32[i]));  // -128 times what the minimum meets
      }
HW_UNROLL(8)
      for (int s = 0; s < S; s++) {
        const uint8_t* p = w[s] + s0 * kBytes;
        fetch<five ? 320 : 256>(ahead[s] + s0 * kBytes + (five ? 320 : 256) * b);
        vi acc[NT];
        for (int t = 0; t < NT; t++) acc[t] = vi_zero();
        if constexpr (five)
          dot_five<NT>(p + 256 * b, vb_load(p + 2048 + 64 * b), q, acc);
        else
          dot_nibbles<NT>(p + 256 * b, q, acc);
        const vf sc = vf_u8(p + kTail + 16 * b), mn = vf_u8(p + kTail + 128 + 16 * b);
        for (int t = 0; t < NT; t++) {
          sup[s][t] = vf_fma(vf_from(acc[t]), vf_mul(sc, scale[t]), sup[s][t]);
          low[s][t] = vf_fma(mn, sum[t], low[s][t]);
        }
      }
    }
HW_UNROLL(8)
    for (int s = 0; s < S; s++) {
      const uint8_t* p = w[s] + s0 * kBytes + kTail;
      fetch<320>(ahead[s] + s0 * kBytes + kTail);
      const vf d = vf_half((const uint16_t*)(p + 256)), dmin = vf_half((const uint16_t*)(p + 288));
      for (int t = 0; t < NT; t++) {
        f[s][t] = vf_fma(sup[s][t], d, f[s][t]);
        f[s][t] = vf_fma(vf_mul(low[s][t], vf_set1(1.0f / 128)), dmin, f[s][t]);
      }
    }
  }
};

// Floats: one input of 16 rows is a vector. B: f32_t, f16_t or bf16_t.
template <class B>
struct Floats {
  static constexpr size_t kBytes = 16 * sizeof(B), kInputs = 1, kAhead = 2048 / kBytes;
  template <int S, int NT>
  HW_INLINE void block(const uint8_t* const* w, const uint8_t* const* ahead, size_t b, const Acts& a, size_t t0, vf f[S][NT]) {
    vf x[NT];
    for (int t = 0; t < NT; t++) x[t] = vf_set1(a.f[(t0 + t) * a.k + b]);
HW_UNROLL(8)
    for (int s = 0; s < S; s++) {
      prefetch(ahead[s] + b * kBytes);
      const vf v = load_b((const B*)(w[s] + b * kBytes));
      for (int t = 0; t < NT; t++) f[s][t] = vf_fma(x[t], v, f[s][t]);
    }
  }
};

#include "kernels/matvec_q45.inl"

// Streams s0 .. s0 + n of `io`, n <= S: those that are missing repeat the last, and their results are dropped.
template <class F, int S, int NT>
static void walk(const Streams& io, size_t s0, size_t n, const uint8_t* const* next, const Acts& a, size_t t0, float* y, size_t ldy) {
  const size_t blocks = a.k / F::kInputs, cut = blocks > F::kAhead ? blocks - F::kAhead : 0;
  const uint8_t *w[S], *ahead[S];
  vf f[S][NT];
HW_UNROLL(8)
  for (int s = 0; s < S; s++) {
    w[s] = io.at[s0 + (size_t(s) < n ? size_t(s) : n - 1)], ahead[s] = w[s] + F::kAhead * F::kBytes;
    for (int t = 0; t < NT; t++) f[s][t] = vf_zero();
  }
  size_t b = 0;
  for (int behind = 0; behind < 2; behind++) {
    for (const size_t end = behind ? blocks : cut; b < end; b++) F::template block<S, NT>(w, ahead, b, a, t0, f);
    for (int s = 0; s < S; s++) ahead[s] = next[size_t(s) < n ? size_t(s) : n - 1] - cut * F::kBytes;
  }
HW_UNROLL(8)
  for (int s = 0; s < S; s++)
    for (int t = 0; t < NT; t++)
      if (size_t(s) < n) vf_store(y + size_t(t) * ldy + 16 * (s0 + size_t(s)), f[s][t]);
}

template <class F, int NT>
static void matvec_n(const Streams& io, const Acts& a, size_t t0, float* y, size_t ldy) {
  constexpr int S = NT == 1 ? kWide : 4;
  for (size_t s = 0; s < io.count; s += S) {
    const size_t n = io.count - s < S ? io.count - s : S;
    const uint8_t* const* next = s + 2 * S <= io.count ? io.at + s + S : io.next;
    if (S > 4 && n <= 4)
      walk<F, 4, NT>(io, s, n, next, a, t0, y, ldy);
    else
      walk<F, S, NT>(io, s, n, next, a, t0, y, ldy);
  }
}

template <class F>
static void matvec_f(const Streams& io, const Acts& a, size_t t0, int nt, float* y, size_t ldy) {
  switch (nt) {
    case 1: return matvec_n<F, 1>(io, a, t0, y, ldy);
    case 2: return matvec_n<F, 2>(io, a, t0, y, ldy);
    case 3: return matvec_n<F, 3>(io, a, t0, y, ldy);
    default: return matvec_n<F, 4>(io, a, t0, y, ldy);
  }
}

static void matvec_4(Format f, const Streams& io, const Acts& a, size_t t0, int nt, float* y, size_t ldy) {
  switch (f) {
    case Format::Q4_0: return matvec_f<Q4_0>(io, a, t0, nt, y, ldy);
    case Format::Q4_1: return matvec_f<Q45<false, true>>(io, a, t0, nt, y, ldy);
    case Format::Q5_0: return matvec_f<Q45<true, false>>(io, a, t0, nt, y, ldy);
    case Format::Q5_1: return matvec_f<Q45<true, true>>(io, a, t0, nt, y, ldy);
    case Format::Q8_0: return matvec_f<Q8_0>(io, a, t0, nt, y, ldy);
    case Format::Q6_K: return matvec_f<Q6_K>(io, a, t0, nt, y, ldy);
    case Format::Q4_K: return matvec_f<Q45_K<false>>(io, a, t0, nt, y, ldy);
    case Format::Q5_K: return matvec_f<Q45_K<true>>(io, a, t0, nt, y, ldy);
    case Format::F16: return matvec_f<Floats<f16_t>>(io, a, t0, nt, y, ldy);
    case Format::BF16: return matvec_f<Floats<bf16_t>>(io, a, t0, nt, y, ldy);
    default: return matvec_f<Floats<f32_t>>(io, a, t0, nt, y, ldy);
  }
}

// Four tokens at a time; after the first four the weights come from the cache.
static void matvec(Format f, const Streams& io, const Acts& a, size_t t0, int nt, float* y, size_t ldy) {
  for (int t = 0; t < nt; t += 4) matvec_4(f, io, a, t0 + size_t(t), nt - t < 4 ? nt - t : 4, y + size_t(t) * ldy, ldy);
}
