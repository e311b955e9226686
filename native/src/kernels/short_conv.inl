// Gated short convolution: u = gate_in * value; out[t] = gate_out[t] * (bias + sum over j of taps[j] * u[t - (width-1) + j]).
// Inputs before this call come from the slot's ring; positions before 0 are zeros.

static void short_conv(const ConvArgs& a, size_t c0, size_t c1, float* out, size_t out_stride, float* scratch) {
  const size_t past = a.width - 1, d = a.d;
  for (size_t c = c0; c < c1; c += 16) {
    const int n = c1 - c < 16 ? int(c1 - c) : 16;
    float* u = scratch;  // [past + tokens][16]
    for (size_t j = 0; j < past; j++) {
      const int64_t p = a.pos - int64_t(past) + int64_t(j);
      vf_store(u + 16 * j, p < 0 ? vf_zero() : vf_load_n(a.ring + size_t(p) % a.ring_size * d + c, n));
    }
    vf taps[8];
    for (size_t j = 0; j < a.width && j < 8; j++) taps[j] = vf_load_n(a.taps + j * d + c, n);
    const vf bias = a.bias ? vf_load_n(a.bias + c, n) : vf_zero();
    for (size_t t = 0; t < a.tokens; t++) {
      const float* b = a.bcx + t * 3 * d + c;
      vf_store(u + 16 * (past + t), vf_mul(vf_load_n(b, n), vf_load_n(b + 2 * d, n)));
      vf s = bias;
      for (size_t j = 0; j < a.width; j++)
        s = vf_fma(j < 8 ? taps[j] : vf_load_n(a.taps + j * d + c, n), vf_load(u + 16 * (t + j)), s);
      vf_store_n(out + t * out_stride + c - c0, vf_mul(vf_load_n(b + d, n), s), n);
    }
    const size_t keep = a.tokens < a.ring_size ? a.tokens : a.ring_size;
    for (size_t t = a.tokens - keep; t < a.tokens; t++)
      vf_store_n(a.ring + size_t(a.pos + int64_t(t)) % a.ring_size * d + c, vf_load(u + 16 * (past + t)), n);
  }
}
