// Q4_1, Q5_0 and Q5_1: 32 inputs: 256 nibbles, [64 bytes of high bits,] d half [16 rows], [minimum half [16]]. Part of matvec.inl.
// For files that others made.

template <bool five, bool minimum>
struct Q45 {
  static constexpr size_t kTail = five ? 320 : 256, kBytes = kTail + (minimum ? 64 : 32), kInputs = 32, kAhead = 6;
  template <int S, int NT>
  HW_INLINE void block(const uint8_t* const* w, const uint8_t* const* ahead, size_t b, const Acts& a, size_t t0, vf f[S][NT]) {
    const size_t nb = a.k / 32;
    const Fours<NT, 8> q = fours<NT, 8>(a, t0, 32 * b);
    vi start[NT];
    vf scale[NT], sum[NT];
    for (int t = 0; t < NT; t++) {
      const size_t i = (t0 + t) * nb + b;
      start[t] = minimum ? vi_zero() : vi_sra<3>(vi_set1(a.sum32[i]));  // -16 sum
      scale[t] = vf_set1(a.scale[i]), sum[t] = vf_set1(a.scale[i] * float(a.sum32[i]) * (-1.0f / 128));
    }
HW_UNROLL(8)
    for (int s = 0; s < S; s++) {
      const uint8_t* p = w[s] + b * kBytes;
      fetch<kBytes>(ahead[s] + b * kBytes);
      vi acc[NT];
      for (int t = 0; t < NT; t++) acc[t] = start[t];
      if constexpr (five)
        Q45_K<true>::template dot_five<NT>(p, vb_load(p + 256), q, acc);
      else
        dot_nibbles<NT>(p, q, acc);
      const vf d = vf_half((const uint16_t*)(p + kTail));
      for (int t = 0; t < NT; t++) f[s][t] = vf_fma(vf_from(acc[t]), vf_mul(d, scale[t]), f[s][t]);
      if constexpr (minimum) {
        const vf low = vf_half((const uint16_t*)(p + kTail + 32));
        for (int t = 0; t < NT; t++) f[s][t] = vf_fma(low, sum[t], f[s][t]);
      }
    }
  }
};
