// Several answers at once, on int8 tiles: what matvec does for one to four tokens, for up to sixteen in one pass over the weights. Weights are
// unpacked to signed bytes, a tile product gives the integer sums of 16 rows x all tokens, and the floats follow in matvec's order: the same bits.
// Up to 8 tokens share a tile with themselves: one product has two scale groups, the activations of each in rows (and columns) of their own beside
// zeros, because a product takes its time however few the rows are. A stream's tiles are under way while the floats of the one before it are added.

constexpr int kFewLeast = 6;  // from so many on tiles are faster than four at a time
constexpr size_t kFewTiles = 2;  // of activations, which stay in registers while the streams take turns: two, so that a stream's turn is short

// How a format is read here: kInputs of a scale, kBytes of them for 16 rows; `bytes`: signed, [4 inputs][row x 4].
struct FewQ4_0 {
  static constexpr size_t kInputs = 32, kBytes = 288;
  HW_INLINE void bytes(const uint8_t* p, uint8_t (*out)[64]) {
    // nibble - 8: bits 0 to 2 stay, bit 3 turned round goes into all above
    const vi low = _mm512_set1_epi64(0x0102040808080808), high = _mm512_set1_epi64(0x1020408080808080);
HW_UNROLL(4)
    for (int v = 0; v < 4; v++) {
      const vb x = vb_load(p + 64 * v);
      vb_store(out[2 * v], _mm512_gf2p8affine_epi64_epi8(x, low, 0xf8));
      vb_store(out[2 * v + 1], _mm512_gf2p8affine_epi64_epi8(x, high, 0xf8));
    }
  }
  HW_INLINE vf scale(const uint8_t* p) { return vf_half((const uint16_t*)(p + 256)); }
};

struct FewQ8_0 {
  static constexpr size_t kInputs = 32, kBytes = 544;
  HW_INLINE void bytes(const uint8_t* p, uint8_t (*out)[64]) {
HW_UNROLL(8)
    for (int v = 0; v < 8; v++) vb_store(out[v], vb_add(vb_load(p + 64 * v), vb_set1(128)));
  }
  HW_INLINE vf scale(const uint8_t* p) { return vf_half((const uint16_t*)(p + 512)); }
};

// Scratch of a call for up to T tokens: activations, bytes and integer sums of two granules (kFewTiles tiles) and the float sums of every stream.
template <class F, int T>
struct FewWork {
  static constexpr size_t kPair = 16 / T, kGranule = kFewTiles * kPair, kRowBytes = kPair * F::kInputs;  // groups a tile, a granule; bytes of a row
  alignas(64) uint8_t bytes[2][kGranule][F::kInputs / 4][64];
  uint8_t apart[2048];  // bytes are stored while sums are loaded: not at the same place of a page
  alignas(64) int32_t sums[2][kGranule][T][16];
  alignas(64) int8_t acts[kFewTiles][kPair][T][kRowBytes];
  alignas(64) float f[kStreams][T][16];
  float scale[2][kGranule][T];

  static TileShapes shapes() {
    TileShapes s;
    for (int i = 2; i < 4; i++) s.rows[i] = kRowBytes / 4;   // weights; 0 and 1 are sums
    for (int i = 4; i < 6; i++) s.row_bytes[i] = kRowBytes;  // activations
    return s;
  }
};

struct FewItem {  // n blocks (a scale each) from `group` on, of stream s, which are at w
  const uint8_t* w;
  size_t s, group, n;
};

// Activations and scales of a granule.
template <class F, int T>
HW_INLINE void few_begin(FewWork<F, T>& k, const Acts& a, size_t t0, size_t nt, const FewItem& x, size_t turn) {
  constexpr size_t G = F::kInputs, P = FewWork<F, T>::kPair, row = FewWork<F, T>::kRowBytes;
  for (size_t t = 0; t < nt; t++)
    for (size_t j = 0; j < x.n; j++) {
      memcpy(k.acts[j / P][j % P][t] + j % P * G, a.q + (t0 + t) * a.k + (x.group + j) * G, G);
      k.scale[turn][j][t] = a.scale[(t0 + t) * (a.k / 32) + (x.group + j) * G / 32];
    }
  tile_load<4>(k.acts[0], row), tile_load<5>(k.acts[1], row);
}

// The groups of tile i: bytes of those of `x`, floats of those of `y`, whose sums are there. What comes later is fetched evenly: a core has few
// reads of memory under way, and they should never rest.
template <int i, class F, int T>
HW_INLINE void few_tile(FewWork<F, T>& k, const FewItem& x, const uint8_t* ahead, const FewItem& y, size_t turn, size_t turn_y, vf f[T]) {
  constexpr size_t P = FewWork<F, T>::kPair;
HW_UNROLL(4)
  for (size_t j = i * P; j < (i + 1) * P; j++) {
    fetch<F::kBytes>(ahead + j * F::kBytes);
    if (j < x.n) F::bytes(x.w + j * F::kBytes, k.bytes[turn][j]);
    if (j < y.n) {
      const vf d = F::scale(y.w + j * F::kBytes);
HW_UNROLL(16)
      for (int t = 0; t < T; t++) f[t] = vf_fma(vf_from(vb_load(k.sums[turn ^ 1][j][t])), vf_mul(d, vf_set1(k.scale[turn_y][j][t])), f[t]);
    }
  }
}

// The product of tile i; a tile ago its bytes were stored.
template <int i, class F, int T>
HW_INLINE void few_dot(FewWork<F, T>& k, const FewItem& x, size_t turn) {
  constexpr size_t P = FewWork<F, T>::kPair;
  if (i * P >= x.n) return;
  tile_load<2 + i % 2>(k.bytes[turn][i * P], 64);
  tile_zero<i % 2>();
  tile_dot_s8<i % 2, 4 + i, 2 + i % 2>();
  tile_store<i % 2>(k.sums[turn][i * P], 64);
}

template <class F, int T>
static void few_tiles(const Streams& io, const Acts& a, size_t t0, size_t nt, float* out, size_t ldo) {
  using Work = FewWork<F, T>;
  constexpr size_t kGranule = Work::kGranule, kBytes = kGranule * F::kBytes, kAhead = (2048 + kBytes - 1) / kBytes;  // granules
  Work k;
  memset(k.acts, 0, sizeof k.acts), memset(k.f, 0, sizeof k.f), memset(k.scale, 0, sizeof k.scale);
  const Tiles tiles(Work::shapes());
  const size_t groups = a.k / F::kInputs, granules = (groups + kGranule - 1) / kGranule;
  FewItem x{io.at[0], 0, 0, 0}, y{io.at[0], 0, 0, 0};
  size_t turn = 0;
  for (size_t i = 0; i <= granules; i++) {
    const size_t group = i * kGranule, n = i == granules ? 0 : groups - group < kGranule ? groups - group : kGranule;
    for (size_t s = 0; s < (n ? io.count : 1); s++, turn ^= 1) {
      x = {io.at[s] + group * F::kBytes, s, group, n};
      if (s == 0 && n) few_begin<F, T>(k, a, t0, nt, x, i & 1);
      const uint8_t* ahead = i + kAhead < granules ? io.at[s] + (i + kAhead) * kBytes : io.next[s] + (i + kAhead - granules) * kBytes;
      vf f[T];
HW_UNROLL(16)
      for (int t = 0; t < T; t++) f[t] = vf_load(k.f[y.s][t]);
      const size_t turn_y = y.group / kGranule & 1;
      few_tile<0, F, T>(k, x, ahead, y, turn, turn_y, f);
      few_tile<1, F, T>(k, x, ahead, y, turn, turn_y, f);
      few_dot<0, F, T>(k, x, turn);
      few_dot<1, F, T>(k, x, turn);
HW_UNROLL(16)
      for (int t = 0; t < T; t++) vf_store(k.f[y.s][t], f[t]);
      y = x;
    }
  }
  for (size_t s = 0; s < io.count; s++)
    for (size_t t = 0; t < nt; t++) vf_store(out + t * ldo + 16 * s, vf_load(k.f[s][t]));
}

// More than eight: one product has sixteen, or the last few go as few do.
template <class F>
static void few(Format f, const Streams& io, const Acts& a, size_t t0, int nt, float* y, size_t ldy) {
  if (nt > 12) return few_tiles<F, 16>(io, a, t0, size_t(nt), y, ldy);
  few_tiles<F, 8>(io, a, t0, nt < 8 ? size_t(nt) : 8, y, ldy);
  if (nt > 8) matvec(f, io, a, t0 + 8, nt - 8, y + 8 * ldy, ldy);
}

static void matvec_tiles(Format f, const Streams& io, const Acts& a, size_t t0, int nt, float* y, size_t ldy) {
  static_assert(kTokensAtOnce <= 16, "the rows of a tile");
  if (nt >= kFewLeast && f == Format::Q4_0) return few<FewQ4_0>(f, io, a, t0, nt, y, ldy);
  if (nt >= kFewLeast && f == Format::Q8_0) return few<FewQ8_0>(f, io, a, t0, nt, y, ldy);
  matvec(f, io, a, t0, nt, y, ldy);
}
