// Attention of a training step and its gradients, in floats. A task is one key head of one row with the query heads it serves: what its keys and
// values get is then summed by one thread. Queries and keys meet in blocks; for the gradients a block of scores is computed again (FlashAttention:
// Dao et al. 2022).

using train::AttentionShape;
using train::Heads;
using train::kKeyBlock;
using train::kQueryBlock;

#if defined(HW_AVX512)
constexpr size_t kTall = 4, kVectors = 4;  // of results that registers hold
#else
constexpr size_t kTall = 2, kVectors = 2;
#endif
constexpr float kNever = -__builtin_inff();

// c[i][j] (+)= sum over k of a[i * row + k * step] * b[k][j], for kTall rows and V vectors of columns.
template <size_t V>
HW_INLINE void tile(const float* a, size_t row, size_t step, const float* b, size_t ldb, size_t depth, float* c, size_t ldc, bool add) {
  vf sum[kTall][V];
  HW_UNROLL(4)
  for (size_t i = 0; i < kTall; i++)
    HW_UNROLL(4)
    for (size_t v = 0; v < V; v++) sum[i][v] = add ? vf_load(c + i * ldc + 16 * v) : vf_zero();
  for (size_t k = 0; k < depth; k++) {
    vf line[V];
    HW_UNROLL(4)
    for (size_t v = 0; v < V; v++) line[v] = vf_load(b + k * ldb + 16 * v);
    HW_UNROLL(4)
    for (size_t i = 0; i < kTall; i++) {
      const vf by = vf_set1(a[i * row + k * step]);
      HW_UNROLL(4)
      for (size_t v = 0; v < V; v++) sum[i][v] = vf_fma(by, line[v], sum[i][v]);
    }
  }
  HW_UNROLL(4)
  for (size_t i = 0; i < kTall; i++)
    HW_UNROLL(4)
    for (size_t v = 0; v < V; v++) vf_store(c + i * ldc + 16 * v, sum[i][v]);
}

// The same for `rows` rows (a multiple of kTall) and `columns` columns (of 16).
void product(const float* a, size_t row, size_t step, const float* b, size_t ldb, size_t depth, float* c, size_t ldc, size_t rows, size_t columns, bool add) {
  for (size_t j = 0; j < columns;) {
    const bool wide = j + 16 * kVectors <= columns;
    for (size_t i = 0; i < rows; i += kTall) {
      if (wide) tile<kVectors>(a + i * row, row, step, b + j, ldb, depth, c + i * ldc + j, ldc, add);
      else tile<1>(a + i * row, row, step, b + j, ldb, depth, c + i * ldc + j, ldc, add);
    }
    j += wide ? 16 * kVectors : 16;
  }
}

template <class T>
void read(const Heads& x, size_t row, size_t head, size_t steps, size_t n, float by, float* out) {
  const T* in = static_cast<const T*>(x.data) + row * x.row + head * x.head;
  const vf factor = vf_set1(by);
  for (size_t t = 0; t < steps; t++)
    for (size_t i = 0; i < n; i += 16) vf_store(out + t * n + i, vf_mul(load(in + t * x.step + i), factor));
}
template <class T>
void write(const Heads& x, size_t row, size_t head, size_t steps, size_t n, const float* from) {
  T* out = static_cast<T*>(x.data) + row * x.row + head * x.head;
  for (size_t t = 0; t < steps; t++)
    for (size_t i = 0; i < n; i += 16) store(out + t * x.step + i, vf_load(from + t * n + i));
}
void read(Type t, const Heads& x, size_t row, size_t head, size_t steps, size_t n, float by, float* out) {
  if (t == Type::f32) read<float>(x, row, head, steps, n, by, out);
  else read<bf16>(x, row, head, steps, n, by, out);
}
void write(Type t, const Heads& x, size_t row, size_t head, size_t steps, size_t n, const float* from) {
  if (t == Type::f32) write<float>(x, row, head, steps, n, from);
  else write<bf16>(x, row, head, steps, n, from);
}

void zero(float* x, size_t n) {
  for (size_t i = 0; i < n; i += 16) vf_store(x + i, vf_zero());
}
// [steps][n] to [n][ld].
void turn(const float* x, size_t steps, size_t n, float* out, size_t ld) {
  for (size_t t0 = 0; t0 < steps; t0 += 16)
    for (size_t i = 0; i < n; i++)
      for (size_t t = t0; t < steps && t < t0 + 16; t++) out[i * ld + t] = x[t * n + i];
}

// Where a block of queries looks: keys from `first` (rounded down to a block) up to `end`, and by row.
struct Reach {
  const int32_t* from;  // of the row's queries
  size_t q0, rows, first, end;
  Reach(const AttentionShape& s, const int32_t* all, size_t at) : from(all), q0(at) {
    rows = s.steps - at < kQueryBlock ? s.steps - at : kQueryBlock;
    first = size_t(all[at]), end = at + rows;
    for (size_t i = at; i < end; i++) first = size_t(all[i]) < first ? size_t(all[i]) : first;
    first = first / kKeyBlock * kKeyBlock;
  }
  // Scores of keys from k0 on that query i must not see become `value`; rows behind the last see nothing.
  void hide(float* s, size_t k0, float value) const {
    for (size_t i = 0; i < kQueryBlock; i++) {
      const size_t q = q0 + i, low = i < rows ? size_t(from[q]) : k0 + kKeyBlock, high = q + 1;
      if (low <= k0 && high >= k0 + kKeyBlock && i < rows) continue;
      for (size_t j = 0; j < kKeyBlock; j++)
        if (k0 + j < low || k0 + j >= high) s[i * kKeyBlock + j] = value;
    }
  }
};

// Pieces of the scratch, in order.
struct Room {
  float* next;
  float* take(size_t n) {
    float* const got = next;
    next += (n + 15) / 16 * 16;
    return got;
  }
};

void attention(Type type, const AttentionShape& s, const Heads& q, const Heads& k, const Heads& v, const Heads& o, float* lse, size_t at, float* scratch) {
  const size_t row = at / s.key_heads, g = at % s.key_heads, group = s.heads / s.key_heads, n = s.n, padded = train::padded_steps(s.steps);
  Room room{scratch};
  float *keys = room.take(padded * n), *turned = room.take(n * padded), *values = room.take(padded * n), *queries = room.take(padded * n), *out = room.take(padded * n);
  float *scores = room.take(kQueryBlock * kKeyBlock), *sums = room.take(kQueryBlock * n);
  float top[kQueryBlock], total[kQueryBlock];
  zero(keys, padded * n), zero(values, padded * n), zero(queries, padded * n);
  read(type, k, row, g, s.steps, n, 1.0f, keys), read(type, v, row, g, s.steps, n, 1.0f, values);
  zero(turned, n * padded), turn(keys, s.steps, n, turned, padded);
  for (size_t head = g * group; head < (g + 1) * group; head++) {
    read(type, q, row, head, s.steps, n, s.scale, queries);
    for (size_t q0 = 0; q0 < s.steps; q0 += kQueryBlock) {
      const Reach reach(s, s.from + row * s.steps, q0);
      for (size_t i = 0; i < kQueryBlock; i++) top[i] = kNever, total[i] = 0;
      zero(sums, kQueryBlock * n);
      for (size_t k0 = reach.first; k0 < reach.end; k0 += kKeyBlock) {
        product(queries + q0 * n, n, 1, turned + k0, padded, n, scores, kKeyBlock, kQueryBlock, kKeyBlock, false);
        reach.hide(scores, k0, kNever);
        for (size_t i = 0; i < kQueryBlock; i++) {
          float* const x = scores + i * kKeyBlock;
          vf most = vf_load(x);
          for (size_t j = 16; j < kKeyBlock; j += 16) most = vf_max(most, vf_load(x + j));
          const float highest = vf_maxall(most), now = highest > top[i] ? highest : top[i];
          if (highest == kNever && now == kNever) {  // nothing seen so far; a score that is no number is not nothing
            zero(x, kKeyBlock);
            continue;
          }
          const vf by = vf_set1(now);
          vf sum = vf_zero();
          for (size_t j = 0; j < kKeyBlock; j += 16) {
            const vf p = vf_exp(vf_sub(vf_load(x + j), by));
            vf_store(x + j, p), sum = vf_add(sum, p);
          }
          if (now != top[i]) {
            const float fade = top[i] == kNever ? 0.0f : __builtin_expf(top[i] - now);
            for (size_t j = 0; j < n; j += 16) vf_store(sums + i * n + j, vf_mul(vf_load(sums + i * n + j), vf_set1(fade)));
            total[i] *= fade, top[i] = now;
          }
          total[i] += vf_sum(sum);
        }
        product(scores, kKeyBlock, 1, values + k0 * n, n, kKeyBlock, sums, n, kQueryBlock, n, true);
      }
      for (size_t i = 0; i < reach.rows; i++) {
        lse[(row * s.heads + head) * s.steps + q0 + i] = top[i] + __builtin_logf(total[i]);
        const vf by = vf_set1(1.0f / total[i]);
        for (size_t j = 0; j < n; j += 16) vf_store(out + (q0 + i) * n + j, vf_mul(vf_load(sums + i * n + j), by));
      }
    }
    write(type, o, row, head, s.steps, n, out);
  }
}

void attention_back(Type type, Type tg, const AttentionShape& s, const Heads& q, const Heads& k, const Heads& v, const Heads& o, const Heads& grad, const float* lse,
                    const Heads& dq, const Heads& dk, const Heads& dv, size_t at, float* scratch) {
  const size_t row = at / s.key_heads, g = at % s.key_heads, group = s.heads / s.key_heads, n = s.n, padded = train::padded_steps(s.steps);
  Room room{scratch};
  float *keys = room.take(padded * n), *keys_turned = room.take(n * padded), *values = room.take(padded * n), *values_turned = room.take(n * padded);
  float *queries = room.take(padded * n), *slopes = room.take(padded * n), *d_queries = room.take(padded * n), *d_keys = room.take(padded * n), *d_values = room.take(padded * n);
  float *shares = room.take(kQueryBlock * kKeyBlock), *d_scores = room.take(kQueryBlock * kKeyBlock), *inner = room.take(padded), *whole = room.take(padded);
  float* const begin_at_0[] = {keys, values, queries, slopes, d_keys, d_values};
  for (float* x : begin_at_0) zero(x, padded * n);
  read(type, k, row, g, s.steps, n, 1.0f, keys), read(type, v, row, g, s.steps, n, 1.0f, values);
  zero(keys_turned, n * padded), turn(keys, s.steps, n, keys_turned, padded);
  zero(values_turned, n * padded), turn(values, s.steps, n, values_turned, padded);
  for (size_t head = g * group; head < (g + 1) * group; head++) {
    read(tg, grad, row, head, s.steps, n, 1.0f, slopes);
    read(type, o, row, head, s.steps, n, 1.0f, queries);
    for (size_t t = 0; t < s.steps; t++) {
      vf sum = vf_zero();
      for (size_t i = 0; i < n; i += 16) sum = vf_fma(vf_load(slopes + t * n + i), vf_load(queries + t * n + i), sum);
      inner[t] = vf_sum(sum), whole[t] = lse[(row * s.heads + head) * s.steps + t];
    }
    read(type, q, row, head, s.steps, n, s.scale, queries);
    zero(d_queries, padded * n);
    for (size_t q0 = 0; q0 < s.steps; q0 += kQueryBlock) {
      const Reach reach(s, s.from + row * s.steps, q0);
      for (size_t k0 = reach.first; k0 < reach.end; k0 += kKeyBlock) {
        product(queries + q0 * n, n, 1, keys_turned + k0, padded, n, shares, kKeyBlock, kQueryBlock, kKeyBlock, false);
        reach.hide(shares, k0, kNever);
        product(slopes + q0 * n, n, 1, values_turned + k0, padded, n, d_scores, kKeyBlock, kQueryBlock, kKeyBlock, false);
        for (size_t i = 0; i < kQueryBlock; i++) {
          const vf by = vf_set1(i < reach.rows ? whole[q0 + i] : 0.0f), less = vf_set1(i < reach.rows ? inner[q0 + i] : 0.0f);
          for (size_t j = i * kKeyBlock; j < (i + 1) * kKeyBlock; j += 16) {
            const vf p = vf_exp(vf_sub(vf_load(shares + j), by));
            vf_store(shares + j, p), vf_store(d_scores + j, vf_mul(p, vf_sub(vf_load(d_scores + j), less)));
          }
        }
        product(shares, 1, kKeyBlock, slopes + q0 * n, n, kQueryBlock, d_values + k0 * n, n, kKeyBlock, n, true);
        product(d_scores, 1, kKeyBlock, queries + q0 * n, n, kQueryBlock, d_keys + k0 * n, n, kKeyBlock, n, true);  // queries bear the scale
        product(d_scores, kKeyBlock, 1, keys + k0 * n, n, kKeyBlock, d_queries + q0 * n, n, kQueryBlock, n, true);
      }
    }
    const vf by = vf_set1(s.scale);
    for (size_t i = 0; i < s.steps * n; i += 16) vf_store(d_queries + i, vf_mul(vf_load(d_queries + i), by));
    write(type, dq, row, head, s.steps, n, d_queries);
  }
  write(type, dk, row, g, s.steps, n, d_keys), write(type, dv, row, g, s.steps, n, d_values);
}
