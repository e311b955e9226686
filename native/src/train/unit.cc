// Compiled once per instruction set, like isa/unit.cc.
#include "simd/vec.h"
#include "train/train.h"

namespace hw::HW_NS {
namespace {

using train::ConvShape;
using train::Type;
using bf16 = uint16_t;

HW_INLINE vf load(const float* p) { return vf_load(p); }
HW_INLINE vf load(const bf16* p) { return vf_bf16(p); }
HW_INLINE void store(float* p, vf a) { vf_store(p, a); }
#if defined(HW_AVX512)
HW_INLINE void store(bf16* p, vf a) {  // what is no number stays none: a sick gradient has to be seen
  const __m512i x = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  const __m512i y = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i z = _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(z, 16)));
}
#else
HW_INLINE void store(bf16* p, vf a) { vf_store_bf16(p, a); }
#endif
template <class T>
HW_INLINE vf load_n(const T* p, size_t n) {
  T some[16] = {};
  for (size_t i = 0; i < n; i++) some[i] = p[i];
  return load(some);
}
template <class T>
HW_INLINE void store_n(T* p, vf a, size_t n) {
  T some[16];
  store(some, a);
  for (size_t i = 0; i < n; i++) p[i] = some[i];
}
HW_INLINE vf rounded(const float*, vf a) { return a; }
HW_INLINE vf rounded(const bf16*, vf a) {
  bf16 some[16];
  store(some, a);
  return load(some);
}

// body(i, n): values i to i + n of a row, n = 16 but at the end.
template <class Body>
HW_INLINE void sixteens(size_t from, size_t to, const Body& body) {
  size_t i = from;
  for (; i + 16 <= to; i += 16) body(i, size_t(16));
  if (i < to) body(i, to - i);
}
template <class T>
HW_INLINE vf take(const T* p, size_t n) {
  return n == 16 ? load(p) : load_n(p, n);
}
template <class T>
HW_INLINE void put(T* p, vf a, size_t n) {
  if (n == 16) store(p, a);
  else store_n(p, a, n);
}

// body(T{}, U{}): the pointers' types.
template <class Body>
void typed(Type t, const Body& body) {
  if (t == Type::f32) body(float{});
  else body(bf16{});
}

template <class X, class Y>
void norm_rows(const X* x, const float* w, float eps, size_t n, size_t a, size_t b, Y* y, float* inverse) {
  for (size_t r = a; r < b; r++) {
    const X* in = x + r * n;
    vf sum = vf_zero();
    sixteens(0, n, [&](size_t i, size_t m) {
      const vf v = take(in + i, m);
      sum = vf_fma(v, v, sum);
    });
    inverse[r] = 1.0f / __builtin_sqrtf(vf_sum(sum) / float(n) + eps);
    const vf by = vf_set1(inverse[r]);
    sixteens(0, n, [&](size_t i, size_t m) { put(y + r * n + i, vf_mul(rounded(in, vf_mul(take(in + i, m), by)), take(w + i, m)), m); });
  }
}

template <class X, class G>
void norm_back_rows(const G* grad, const X* x, const float* w, const float* inverse, size_t n, size_t a, size_t b, X* dx, float* dw) {
  for (size_t r = a; r < b; r++) {
    const X* in = x + r * n;
    const G* g = grad + r * n;
    const vf by = vf_set1(inverse[r]);
    vf sum = vf_zero();
    sixteens(0, n, [&](size_t i, size_t m) {
      const vf both = vf_mul(take(g + i, m), vf_mul(take(in + i, m), by));
      sum = vf_fma(both, take(w + i, m), sum);
      if (dw) put(dw + i, vf_add(take(dw + i, m), both), m);
    });
    if (!dx) continue;
    const vf shared = vf_set1(vf_sum(sum) / float(n));
    sixteens(0, n, [&](size_t i, size_t m) {
      const vf slope = vf_sub(vf_mul(take(g + i, m), take(w + i, m)), vf_mul(vf_mul(take(in + i, m), by), shared));
      put(dx + r * n + i, vf_mul(slope, by), m);
    });
  }
}

template <class T>
void swiglu_values(const T* gate, const T* up, size_t a, size_t b, T* y) {
  sixteens(a, b, [&](size_t i, size_t m) {
    const vf x = take(gate + i, m);
    put(y + i, vf_mul(rounded(gate, vf_mul(x, vf_sigmoid(x))), take(up + i, m)), m);
  });
}

template <class T, class G>
void swiglu_back_values(const G* grad, const T* gate, const T* up, size_t a, size_t b, T* d_gate, T* d_up) {
  sixteens(a, b, [&](size_t i, size_t m) {
    const vf x = take(gate + i, m), g = take(grad + i, m), share = vf_sigmoid(x), active = vf_mul(x, share);
    const vf u = take(up + i, m), slope = vf_fma(active, vf_sub(vf_set1(1.0f), share), share);
    put(d_up + i, vf_mul(g, active), m);
    put(d_gate + i, vf_mul(vf_mul(g, u), slope), m);
  });
}

// Does the token `back` before (or behind) this one belong to its row and segment?
HW_INLINE bool before(const ConvShape& s, size_t token, size_t back) {
  return token % s.steps >= back && (!s.segments || s.segments[token - back] == s.segments[token]);
}
HW_INLINE bool behind(const ConvShape& s, size_t token, size_t ahead) {
  return token % s.steps + ahead < s.steps && (!s.segments || s.segments[token + ahead] == s.segments[token]);
}

template <class T>
HW_INLINE vf input(const ConvShape& s, const T* mixed, size_t token, size_t i, size_t m) {
  const T* at = mixed + token * 3 * s.d + i;
  return rounded(mixed, vf_mul(take(at, m), take(at + 2 * s.d, m)));
}

template <class T>
HW_INLINE vf convolved(const ConvShape& s, const T* mixed, size_t token, const bool* reach, size_t i, size_t m) {
  vf v = s.bias ? take(s.bias + i, m) : vf_zero();
  for (size_t back = 0; back < s.width; back++)
    if (reach[back]) v = vf_fma(input(s, mixed, token - back, i, m), take(s.taps + (s.width - 1 - back) * s.d + i, m), v);
  return v;
}

template <class T>
void conv_tokens(const ConvShape& s, const T* mixed, size_t a, size_t b, T* y) {
  for (size_t t = a; t < b; t++) {
    bool reach[train::kMostTaps];
    for (size_t back = 0; back < s.width; back++) reach[back] = before(s, t, back);
    sixteens(0, s.d, [&](size_t i, size_t m) { put(y + t * s.d + i, vf_mul(convolved(s, mixed, t, reach, i, m), take(mixed + (3 * t + 1) * s.d + i, m)), m); });
  }
}

template <class T, class G>
void conv_back_tokens(const ConvShape& s, const G* grad, const T* mixed, size_t a, size_t b, T* d_mixed, float* d_taps, float* d_bias) {
  const size_t d = s.d;
  for (size_t t = a; t < b; t++) {
    bool reach[train::kMostTaps], reached[train::kMostTaps];
    for (size_t back = 0; back < s.width; back++) reach[back] = before(s, t, back), reached[back] = behind(s, t, back);
    const T* in = mixed + 3 * t * d;
    T* out = d_mixed + 3 * t * d;
    sixteens(0, d, [&](size_t i, size_t m) {
      const vf g = take(grad + t * d + i, m), dv = vf_mul(g, take(in + d + i, m));
      vf v = s.bias ? take(s.bias + i, m) : vf_zero(), du = vf_zero();
      for (size_t back = 0; back < s.width; back++) {
        const size_t tap = (s.width - 1 - back) * d + i;
        const vf weight = take(s.taps + tap, m);
        if (reach[back]) {
          const vf u = input(s, mixed, t - back, i, m);
          v = vf_fma(u, weight, v);
          put(d_taps + tap, vf_fma(u, dv, take(d_taps + tap, m)), m);
        }
        if (reached[back]) du = vf_fma(vf_mul(take(grad + (t + back) * d + i, m), take(mixed + (3 * (t + back) + 1) * d + i, m)), weight, du);
      }
      if (d_bias) put(d_bias + i, vf_add(take(d_bias + i, m), dv), m);
      put(out + i, vf_mul(du, take(in + 2 * d + i, m)), m);
      put(out + d + i, vf_mul(g, v), m);
      put(out + 2 * d + i, vf_mul(du, take(in + i, m)), m);
    });
  }
}

template <class T>
void partition_rows(const T* logits, size_t v, size_t a, size_t b, float* out) {
  for (size_t r = a; r < b; r++) {
    const T* x = logits + r * v;
    vf most = vf_set1(-3.0e38f);
    size_t i = 0;
    for (; i + 16 <= v; i += 16) most = vf_max(most, load(x + i));
    float top = vf_maxall(most);
    for (size_t j = i; j < v; j++) {
      T one[16] = {x[j]};
      float value[16];
      vf_store(value, load(one));
      top = value[0] > top ? value[0] : top;
    }
    // sums over stretches: with floats alone the smallest of a hundred thousand would be lost
    const vf by = vf_set1(top);
    double total = 0;
    for (size_t from = 0; from < i; from += 4096) {
      vf sum = vf_zero();
      const size_t to = from + 4096 < i ? from + 4096 : i;
      for (size_t j = from; j < to; j += 16) sum = vf_add(sum, vf_exp(vf_sub(load(x + j), by)));
      total += double(vf_sum(sum));
    }
    for (size_t j = i; j < v; j++) {
      T one[16] = {x[j]};
      float value[16];
      vf_store(value, vf_exp(vf_sub(load(one), by)));
      total += double(value[0]);
    }
    out[r] = top + float(__builtin_log(total));
  }
}

template <class T>
void slope_rows(T* logits, size_t v, const float* partition, const float* factor, const int64_t* ids, const float* add, size_t k, size_t a, size_t b) {
  for (size_t r = a; r < b; r++) {
    T* x = logits + r * v;
    const vf by = vf_set1(partition[r]), times = vf_set1(factor[r]);
    const auto slope = [&](vf logit) { return vf_mul(vf_exp(vf_sub(logit, by)), times); };
    float kept[train::kMostPlaces];  // places that are added to are rounded once
    for (size_t j = 0; j < k; j++) {
      T one[16] = {x[ids[r * k + j]]};
      float value[16];
      vf_store(value, slope(load(one)));
      kept[j] = value[0];
    }
    sixteens(0, v, [&](size_t i, size_t m) { put(x + i, slope(take(x + i, m)), m); });
    for (size_t j = 0; j < k; j++) {
      float sum = kept[j];
      for (size_t i = 0; i < k; i++)
        if (ids[r * k + i] == ids[r * k + j]) sum += add[r * k + i];
      store_n(x + ids[r * k + j], vf_set1(sum), 1);
    }
  }
}

void norm(Type tx, Type ty, const void* x, const float* w, float eps, size_t n, size_t a, size_t b, void* y, float* inverse) {
  typed(tx, [&](auto X) {
    typed(ty, [&](auto Y) { norm_rows((const decltype(X)*)x, w, eps, n, a, b, (decltype(Y)*)y, inverse); });
  });
}
void norm_back(Type tx, Type tg, const void* grad, const void* x, const float* w, const float* inverse, size_t n, size_t a, size_t b, void* dx, float* dw) {
  typed(tx, [&](auto X) {
    typed(tg, [&](auto G) { norm_back_rows((const decltype(G)*)grad, (const decltype(X)*)x, w, inverse, n, a, b, (decltype(X)*)dx, dw); });
  });
}
void swiglu(Type t, const void* gate, const void* up, size_t a, size_t b, void* y) {
  typed(t, [&](auto T) { swiglu_values((const decltype(T)*)gate, (const decltype(T)*)up, a, b, (decltype(T)*)y); });
}
void swiglu_back(Type t, Type tg, const void* grad, const void* gate, const void* up, size_t a, size_t b, void* d_gate, void* d_up) {
  typed(t, [&](auto T) {
    typed(tg, [&](auto G) {
      swiglu_back_values((const decltype(G)*)grad, (const decltype(T)*)gate, (const decltype(T)*)up, a, b, (decltype(T)*)d_gate, (decltype(T)*)d_up);
    });
  });
}
void conv(Type t, const ConvShape& s, const void* mixed, size_t a, size_t b, void* y) {
  typed(t, [&](auto T) { conv_tokens(s, (const decltype(T)*)mixed, a, b, (decltype(T)*)y); });
}
void conv_back(Type t, Type tg, const ConvShape& s, const void* grad, const void* mixed, size_t a, size_t b, void* d_mixed, float* d_taps, float* d_bias) {
  typed(t, [&](auto T) {
    typed(tg, [&](auto G) { conv_back_tokens(s, (const decltype(G)*)grad, (const decltype(T)*)mixed, a, b, (decltype(T)*)d_mixed, d_taps, d_bias); });
  });
}
void partition(Type t, const void* logits, size_t v, size_t a, size_t b, float* out) {
  typed(t, [&](auto T) { partition_rows((const decltype(T)*)logits, v, a, b, out); });
}
void slope(Type t, void* logits, size_t v, const float* partition, const float* factor, const int64_t* ids, const float* add, size_t k, size_t a, size_t b) {
  typed(t, [&](auto T) { slope_rows((decltype(T)*)logits, v, partition, factor, ids, add, k, a, b); });
}

#include "train/attention.inl"

#define HW_TEXT_(x) #x
#define HW_TEXT(x) HW_TEXT_(x)
constexpr train::Kernels kTable = {HW_TEXT(HW_NS), norm, norm_back, swiglu, swiglu_back, conv, conv_back, partition, slope, attention, attention_back};
}  // namespace
const train::Kernels* training() { return &kTable; }
}  // namespace hw::HW_NS
