// A few tokens against Q4_1, Q5_0 and Q5_1: 32 inputs: 256 nibbles, [64 bytes of high bits,] d half [16 rows], [minimum half [16]].
// For reading files that others made; our own types are those of matvec.inl.

template <int NT, bool five, bool minimum>
static void matvec_q45(const uint8_t* w, size_t groups, const Acts& a, size_t t0, float* y, size_t ldy) {
  constexpr size_t tail = five ? 320 : 256, bytes = tail + (minimum ? 64 : 32);
  const size_t nb = a.k / 32;
  const vb m4 = vb_set1(15), m5 = vb_set1(16);
  for (size_t g = 0; g < groups; g++) {
    vf f[NT];
    for (int t = 0; t < NT; t++) f[t] = vf_zero();
    for (size_t b = 0; b < nb; b++, w += bytes) {
      for (size_t i = 0; i < bytes; i += 64) prefetch(w + 4096 + i);
      vi acc[NT];
      for (int t = 0; t < NT; t++) acc[t] = minimum ? vi_zero() : vi_sra<3>(vi_set1(a.sum32[(t0 + t) * nb + b]));  // -16 sum
      vb hi = five ? vb_load(w + 256) : vb_set1(0);  // bit i belongs to words i: moved to bit 4, one after the other
      for (int v = 0; v < 4; v++) {
        const vb x = vb_load(w + 64 * v);
        vb lo = vb_and(x, m4), up = vb_and(vb_srl16<4>(x), m4);
        if (five) {
          lo = vb_or(lo, vb_and(vb_sll16<4>(hi), m5)), up = vb_or(up, vb_and(vb_sll16<3>(hi), m5));
          hi = vb_and(vb_srl16<2>(hi), vb_set1(0x3f));
        }
        for (int t = 0; t < NT; t++) {
          const int8_t* q = a.q + (t0 + t) * a.k + 32 * b + 8 * v;
          acc[t] = vi_dot_small(vi_dot_small(acc[t], lo, vb_bcast4(q)), up, vb_bcast4(q + 4));
        }
      }
      const vf d = vf_half((const uint16_t*)(w + tail));
      const vf low = minimum ? vf_mul(vf_half((const uint16_t*)(w + tail + 32)), vf_set1(-1.0f / 128)) : vf_zero();
      for (int t = 0; t < NT; t++) {
        const size_t i = (t0 + t) * nb + b;
        f[t] = vf_fma(vf_from(acc[t]), vf_mul(d, vf_set1(a.scale[i])), f[t]);
        if (minimum) f[t] = vf_fma(low, vf_set1(a.scale[i] * float(a.sum32[i])), f[t]);
      }
    }
    for (int t = 0; t < NT; t++) vf_store(y + t * ldy + 16 * g, f[t]);
  }
}
