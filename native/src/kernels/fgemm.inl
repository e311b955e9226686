// c[m][16 v + lane] (+)= sum over k of a[m][k] * b[v][k][lane], with b in fp32, f16 or bf16: the one float kernel. It serves attention
// (b = keys, then values) and matrices kept in float formats. vec_stride and row_stride count elements of b.

struct f32_t {
  float x;
};
struct f16_t {
  uint16_t x;
};
struct bf16_t {
  uint16_t x;
};
HW_INLINE vf load_b(const f32_t* p) { return vf_load(&p->x); }
HW_INLINE vf load_b(const f16_t* p) { return vf_half(&p->x); }
HW_INLINE vf load_b(const bf16_t* p) { return vf_bf16(&p->x); }

template <class B, int M, int NV>
static void fgemm_tile(const float* a, size_t lda, size_t k, const B* b, size_t vec_stride, size_t row_stride, float* c, size_t ldc,
                       bool accumulate) {
  vf acc[M][NV];
HW_UNROLL(8)
  for (int m = 0; m < M; m++)
HW_UNROLL(4)
    for (int v = 0; v < NV; v++) acc[m][v] = accumulate ? vf_load(c + m * ldc + 16 * v) : vf_zero();
  for (size_t i = 0; i < k; i++, b += row_stride) {
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

#if defined(HW_AVX512)
constexpr size_t kMaxVecs = 4;
#else
constexpr size_t kMaxVecs = 2;
#endif

template <class B, int NV>
static void fgemm_rows(const float* a, size_t lda, size_t m, size_t k, const B* b, size_t vs, size_t rs, float* c, size_t ldc, bool acc) {
  for (; m >= 6; m -= 6, a += 6 * lda, c += 6 * ldc) fgemm_tile<B, 6, NV>(a, lda, k, b, vs, rs, c, ldc, acc);
  for (; m >= 4; m -= 4, a += 4 * lda, c += 4 * ldc) fgemm_tile<B, 4, NV>(a, lda, k, b, vs, rs, c, ldc, acc);
  for (; m >= 2; m -= 2, a += 2 * lda, c += 2 * ldc) fgemm_tile<B, 2, NV>(a, lda, k, b, vs, rs, c, ldc, acc);
  if (m) fgemm_tile<B, 1, NV>(a, lda, k, b, vs, rs, c, ldc, acc);
}

template <class B>
static void fgemm_b(const float* a, size_t lda, size_t m, size_t k, const void* bv, size_t vs, size_t rs, size_t vecs, float* c, size_t ldc,
                    bool acc) {
  const B* b = static_cast<const B*>(bv);
  for (; vecs >= kMaxVecs; vecs -= kMaxVecs, b += kMaxVecs * vs, c += 16 * kMaxVecs)
    fgemm_rows<B, kMaxVecs>(a, lda, m, k, b, vs, rs, c, ldc, acc);
  for (; vecs >= 2; vecs -= 2, b += 2 * vs, c += 32) fgemm_rows<B, 2>(a, lda, m, k, b, vs, rs, c, ldc, acc);
  if (vecs) fgemm_rows<B, 1>(a, lda, m, k, b, vs, rs, c, ldc, acc);
}

static void fgemm(Format f, const float* a, size_t lda, size_t m, size_t k, const void* b, size_t vs, size_t rs, size_t vecs, float* c,
                  size_t ldc, bool acc) {
  switch (f) {
    case Format::F16: return fgemm_b<f16_t>(a, lda, m, k, b, vs, rs, vecs, c, ldc, acc);
    case Format::BF16: return fgemm_b<bf16_t>(a, lda, m, k, b, vs, rs, vecs, c, ldc, acc);
    default: return fgemm_b<f32_t>(a, lda, m, k, b, vs, rs, vecs, c, ldc, acc);
  }
}
