// Predict: the block's entries of x, and which of them are active.
#pragma once

// The input that a column takes: the columns of a permuted weight are stored in another order.
DEVICE int input_of(const Arguments& a, const Tile& t, int column) {
#if PERMUTED
  return __ldg(a.weights[t.weight].perm + column);
#else
  return column;
#endif
}

DEVICE u32 warp_max(u32 value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(ALL_LANES, value);
#else
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) value = max(value, __shfl_xor_sync(ALL_LANES, value, offset));
  return value;
#endif
}

// Words of x that a warp waits for together; a row of the middle is up to 2 * PARTS_AT_ONCE loads already.
constexpr int WORDS_PER_WARP = div_up(CHUNK_WORDS, WARPS);
constexpr int MOST_AT_ONCE = X_FORMAT == NONE ? (PARTS_AT_ONCE > 4 ? 2 : 4) : ROWS > 1 ? 2 : 8;
constexpr int AT_ONCE = WORDS_PER_WARP < MOST_AT_ONCE ? WORDS_PER_WARP : MOST_AT_ONCE;
constexpr bool ONE_ROUND = AT_ONCE == WORDS_PER_WARP;  // a warp waits once, and what it read stays in registers
DEVICE int num_rounds(const Domain& domain) {
  return ONE_ROUND ? 1 : u32(domain.own + AT_ONCE * WARPS - 1) / (AT_ONCE * WARPS);
}

// A lane's entries of x in AT_ONCE own words of its warp.
struct Entries {
  int column[AT_ONCE];   // that takes the entry; -1: there is none
  int place[AT_ONCE];    // of the word in Shared::counts; -1: there is none
  float value[AT_ONCE][ROWS];
  u32 active[AT_ONCE];   // the word's lanes with active entries

  // Needs no x, so it is done before the previous kernel is.
  DEVICE void locate(const Arguments& a, const Domain& domain, int round) {
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int i = own_word(round, u), v = domain.own_word_of_tile(i) * 32 + int(threadIdx.x % 32);
      const u32 word = domain.own_word(i);
      column[u] = i < domain.own && exists(v, a.k) ? column_of(v) : -1;
      place[u] = i < domain.own ? int(word / UNIT_WORDS * UNIT_BYTES + word % UNIT_WORDS) : -1;
    }
  }

  // Entries that are not there are read at 0, so that nothing branches and all loads are under way together.
  DEVICE void read(const Shared& s, const Arguments& a, const Domain& domain, int round) {
    float least[AT_ONCE];
    const float common = SPARSE && !a.per_channel ? __ldg(a.threshold) : 0.0f;
    int k[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      k[u] = input_of(a, s.tiles[own_word(round, u) < domain.own_first ? 0 : 1], max(column[u], 0));
      least[u] = SPARSE && a.per_channel ? __ldg(a.threshold + k[u]) : common;
    }
#if X_FORMAT == 4
    const int lane = GATHER_BY_WORD ? threadIdx.x % 32 : 0;
    int4 gather[AT_ONCE];
    Parts parts[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      gather[u] = GATHER_BY_WORD ? s.gathers[min(own_word(round, u), CHUNK_WORDS - 1)] : gather_of(a, k[u]);
      if (column[u] < 0) gather[u].y = gather[u].w = 0;
      parts[u].load(a, gather[u], lane);
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) value[u][0] = parts[u].join(a, gather[u], lane, k[u]);
#else
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u)
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const bool is_row = ROWS == 1 || r < a.rows;
        value[u][r] = load_as_float<X_FORMAT>(a.x, (long long)(is_row ? r : 0) * a.k + k[u]);
        if (!is_row) value[u][r] = 0.0f;
      }
#endif
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u)
      active[u] = __ballot_sync(ALL_LANES, int(column[u] >= 0) & int(!SPARSE || !(fabsf(value[u][0]) < least[u])));
  }

  DEVICE bool is_active(int u) const { return active[u] >> threadIdx.x % 32 & 1; }

  DEVICE void store(Shared& s, const Domain& domain, int round) const {
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int i = own_word(round, u);
      if (i >= domain.own) continue;
      if (threadIdx.x % 32 == 0) s.masks[i] = active[u];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) s.x[r][i * 32 + threadIdx.x % 32] = value[u][r];
    }
  }

  DEVICE void restore(const Shared& s, const Domain& domain, int round) {
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int i = min(own_word(round, u), CHUNK_WORDS - 1);
      active[u] = i < domain.own ? s.masks[i] : 0;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) value[u][r] = s.x[r][i * 32 + threadIdx.x % 32];
    }
  }

 private:
  static DEVICE int own_word(int round, int u) { return (round * AT_ONCE + u) * WARPS + threadIdx.x / 32; }
};

// Reads the entries of the pass, of which `entries` has located those of the first round, and marks the active ones:
// s.counts, and the largest magnitude of each warp.
DEVICE void predict(Shared& s, const Arguments& a, const Domain& domain, Entries& entries) {
  const int lane = threadIdx.x % 32;
  u32 largest[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) largest[r] = 0;
#pragma unroll 1
  for (int round = 0; round < num_rounds(domain); ++round) {
    if (round) entries.locate(a, domain, round);
    entries.read(s, a, domain, round);
    if (!ONE_ROUND) entries.store(s, domain, round);
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      if (int(lane == 0) & int(entries.place[u] >= 0)) s.counts[entries.place[u]] = __popc(entries.active[u]);
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        largest[r] = max(largest[r], entries.is_active(u) ? __float_as_uint(entries.value[u][r]) & 0x7fffffffu : 0);
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    largest[r] = warp_max(largest[r]);
    if (lane == 0) s.largest[r][threadIdx.x / 32] = largest[r];
  }
}

// The exponent field E of the largest magnitude decides the power of two that brings it under 2^15 ("in") or 2^6
// ("out", which leaves room for column scales up to 512). With an infinity or a NaN the block takes `accumulate_plain`.
constexpr int TARGET = SCALE_AXIS_OUT ? 5 : 14;
DEVICE u32 exponent_of(const Shared& s, int r) {
  const int lane = threadIdx.x % 32;
  const u32 e = warp_max(lane < WARPS ? s.largest[r][lane] : 0) >> 23;
  return max(e, TARGET + 1u);
}
constexpr u32 NOT_FINITE = 255;
DEVICE float scale_of(u32 exponent) { return __uint_as_float((254 + TARGET - exponent) << 23); }
DEVICE float unscale_of(u32 exponent) { return __uint_as_float((exponent - TARGET) << 23); }
