// Repacking of whole groups of 16 rows, all sixteen at a time: what loading a model waits for. The twin is pack_groups in formats/pack.cc, which
// takes every other format and instruction set.

// 16 bytes of sixteen rows, as four vectors: lane l of vector j is row 4 l + j.
HW_INLINE void rows_of_four(const uint8_t* s, size_t stride, vi a[4]) {
HW_UNROLL(4)
  for (size_t j = 0; j < 4; j++) {
    const auto row = [&](size_t l) { return _mm_loadu_si128((const __m128i*)(s + (4 * l + j) * stride)); };
    vi x = _mm512_castsi128_si512(row(0));
    x = _mm512_inserti32x4(x, row(1), 1), x = _mm512_inserti32x4(x, row(2), 2);
    a[j] = _mm512_inserti32x4(x, row(3), 3);
  }
}

// Words 0 to 3 of sixteen rows: vector i holds word i of each.
HW_INLINE void words(const uint8_t* s, size_t stride, vi t[4]) {
  vi a[4];
  rows_of_four(s, stride, a);
  const vi x = _mm512_unpacklo_epi32(a[0], a[1]), y = _mm512_unpacklo_epi32(a[2], a[3]);
  const vi z = _mm512_unpackhi_epi32(a[0], a[1]), w = _mm512_unpackhi_epi32(a[2], a[3]);
  t[0] = _mm512_unpacklo_epi64(x, y), t[1] = _mm512_unpackhi_epi64(x, y);
  t[2] = _mm512_unpacklo_epi64(z, w), t[3] = _mm512_unpackhi_epi64(z, w);
}

HW_INLINE void halves(const uint8_t* s, size_t stride, uint8_t* d) {
HW_UNROLL(16)
  for (size_t r = 0; r < 16; r++) memcpy(d + 2 * r, s + r * stride, 2);
}

// Words of eight values below 16 in halves of bytes -> the nibble vectors of the low halves and of the high ones.
template <int n>
HW_INLINE void nibbles(const vi* t, uint8_t* low, uint8_t* high) {
  const vi m = vi_set1(0x0f0f0f0f);
HW_UNROLL(4)
  for (int v = 0; v < n; v++) {
    const vi a = t[2 * v], b = t[2 * v + 1];
    vb_store(low + 64 * v, _mm512_ternarylogic_epi32(m, a, _mm512_slli_epi32(b, 4), 0xca));  // m ? a : b << 4
    vb_store(high + 64 * v, _mm512_ternarylogic_epi32(m, _mm512_srli_epi32(a, 4), b, 0xca));
  }
}

// s: a block of the first of sixteen rows, each `stride` bytes behind the other.
HW_INLINE void pack_q4_0(const uint8_t* s, size_t stride, uint8_t* d) {
  vi t[4];
  words(s + 2, stride, t);
  nibbles<2>(t, d, d + 128);
  halves(s, stride, d + 256);
}

HW_INLINE void pack_q8_0(const uint8_t* s, size_t stride, uint8_t* d) {
  for (size_t half = 0; half < 2; half++) {
    vi t[4];
    words(s + 2 + 16 * half, stride, t);
    for (size_t i = 0; i < 4; i++) vb_store(d + 256 * half + 64 * i, _mm512_xor_si512(t[i], vi_set1(int32_t(0x80808080))));
  }
  halves(s, stride, d + 512);
}

HW_INLINE void pack_q6_k(const uint8_t* s, size_t stride, uint8_t* d) {  // source: ql[128], qh[64], scales[16], d
  for (size_t half = 0; half < 2; half++) {
    vi t[8];
    for (size_t side = 0; side < 2; side++) {  // 32 values in the low halves of bytes, and those 64 further on in the high ones
      words(s + 64 * half + 32 * side, stride, t), words(s + 64 * half + 32 * side + 16, stride, t + 4);
      nibbles<4>(t, d + 384 * (4 * half + side), d + 384 * (4 * half + side + 2));
    }
    words(s + 128 + 32 * half, stride, t), words(s + 144 + 32 * half, stride, t + 4);
    const vi m = vi_set1(0x03030303);
    for (int part = 0; part < 4; part++)
HW_UNROLL(2)
      for (int i = 0; i < 2; i++) {
        vi bits = vi_zero();
HW_UNROLL(4)
        for (int j = 0; j < 4; j++)
          bits = _mm512_or_si512(bits, _mm512_slli_epi32(_mm512_and_si512(_mm512_srli_epi32(t[4 * i + j], unsigned(2 * part)), m), unsigned(2 * j)));
        vb_store(d + 384 * (4 * half + size_t(part)) + 256 + 64 * i, bits);
      }
  }
  vi a[4];
  rows_of_four(s + 192, stride, a);
  const vi turn = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const vi x = _mm512_unpacklo_epi8(a[0], a[1]), y = _mm512_unpacklo_epi8(a[2], a[3]);
  const vi z = _mm512_unpackhi_epi8(a[0], a[1]), w = _mm512_unpackhi_epi8(a[2], a[3]);
  const vi four[4] = {_mm512_unpacklo_epi16(x, y), _mm512_unpackhi_epi16(x, y), _mm512_unpacklo_epi16(z, w), _mm512_unpackhi_epi16(z, w)};
  for (size_t i = 0; i < 4; i++) vb_store(d + 3072 + 64 * i, _mm512_permutexvar_epi32(turn, four[i]));
  halves(s + 208, stride, d + 3328);
}

template <class Block>
static bool pack_with(Block block, const uint8_t* source, size_t groups, size_t blocks, size_t bytes, size_t packed_bytes, uint8_t* packed) {
  const size_t stride = blocks * bytes;
  for (size_t g = 0; g < groups; g++, source += 16 * stride)
    for (size_t b = 0; b < blocks; b++, packed += packed_bytes) block(source + b * bytes, stride, packed);
  return true;
}

static bool pack_sixteen(Format f, const uint8_t* source, size_t groups, size_t k, uint8_t* packed) {
  switch (f) {
    case Format::Q4_0: return pack_with(pack_q4_0, source, groups, k / 32, 18, 288, packed);
    case Format::Q8_0: return pack_with(pack_q8_0, source, groups, k / 32, 34, 544, packed);
    case Format::Q6_K: return pack_with(pack_q6_k, source, groups, k / 256, 210, 3360, packed);
    default: return pack_groups(f, source, groups, k, packed);
  }
}
