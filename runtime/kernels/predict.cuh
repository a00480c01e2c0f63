// Predict: which columns are active, and the lists of them that the column warps of a block work through.
//
// The columns that a block looks at in one pass are its domain, counted in words of 32. A unit is a group of scales, or
// a part of one where groups are long; a lane scans a unit, and the active columns of a unit fill whole steps.
#pragma once

DEVICE int column_of(int v) { return GROUP == GROUP_PADDED ? v : v / GROUP_PADDED * GROUP + v % GROUP_PADDED; }

DEVICE bool exists(int v, int k) {
  return column_of(v) < k && (GROUP == GROUP_PADDED || v % GROUP_PADDED < GROUP);
}

// A block takes an equal share of the flat space of tiles; `b * tiles / blocks` says which tiles, however many words a
// tile has, so that a consumer of the sums need not know it. A share may be empty at either end.
// The launcher refuses a space where the products would leave 31 bits.
DEVICE int first_block(int tile, int blocks, const Divider& tiles) { return divide(tile * blocks, tiles); }
DEVICE int num_blocks(int tile, int blocks, const Divider& tiles) {
  return divide((tile + 1) * blocks - 1, tiles) - divide(tile * blocks, tiles) + 1;
}

// The domain of a pass: whole units of the first piece, then of the second. A unit that a piece shares with another block
// has words that are not the block's; the block's own are counted beside.
struct Domain {
  int first_unit;   // of the first piece
  int first_units;  // 0: the first piece is empty
  int units;
  int own_first;    // own words of the first piece
  int own;
  int from;         // word of its tile where the first piece begins

  DEVICE explicit Domain(const Cut& cut) {
    first_unit = cut.from / UNIT_WORDS;
    first_units = cut.first ? (cut.from + cut.first - 1) / UNIT_WORDS - first_unit + 1 : 0;
    units = first_units + div_up(cut.second, UNIT_WORDS);
    own_first = cut.first;
    own = cut.first + cut.second;
    from = cut.from;
  }

  // Of a word of the domain: which word of its tile it is.
  DEVICE int word_of_tile(int word) const {
    return word + (word < first_units * UNIT_WORDS ? first_unit : -first_units) * UNIT_WORDS;
  }

  // Of the i-th own word: the same, and which word of the domain it is.
  DEVICE int own_word_of_tile(int i) const { return i + (i < own_first ? from : -own_first); }
  DEVICE int own_word(int i) const {
    return i + (i < own_first ? from - first_unit * UNIT_WORDS : first_units * UNIT_WORDS - own_first);
  }
};

#if X_FORMAT == 4
// Where the parts of a row of the middle lie: the first, as an index of floats, and how many.
DEVICE int2 parts_of(const Arguments& a, int first_tile, const Divider& band_size, int row) {
  const int per_band = div_up(band_size.value, IN_TILE), band = divide(row, band_size), in_band = row - band * band_size.value;
  const int tile = first_tile + band * per_band + in_band / IN_TILE;
  return make_int2((first_block(tile, a.in_blocks, a.in_tiles) + tile) * IN_TILE + in_band % IN_TILE,
                   num_blocks(tile, a.in_blocks, a.in_tiles));
}

DEVICE int4 gather_of(const Arguments& a, int k) {
  const int2 up = parts_of(a, a.in_up_tile, a.up_band, k);
  const int2 gate = HAS_GATE ? parts_of(a, 0, a.gate_band, k) : make_int2(0, 0);
  return make_int4(gate.x, gate.y, up.x, up.y);
}

// Sums that the blocks of the producer left for a row of the middle; 0 where there are fewer.
struct Parts {
  float gate[PARTS_AT_ONCE], up[PARTS_AT_ONCE];

  // No loop, so that the loads of several rows are under way together: their latency is all that this costs.
  DEVICE void load(const Arguments& a, const int4& gather, int lane) {
    const float *gates = a.in_partials + gather.x + lane, *ups = a.in_partials + gather.z + lane;
    asm("" : "+l"(gates), "+l"(ups));  // else the compiler works each address out anew
#pragma unroll
    for (int i = 0; i < PARTS_AT_ONCE; ++i) gate[i] = up[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < PARTS_AT_ONCE; ++i) {
      if (HAS_GATE && i < gather.y) gate[i] = __ldcg(gates + i * IN_TILE);
      if (i < gather.w) up[i] = __ldcg(ups + i * IN_TILE);
    }
  }

  // Row k of the middle: the sums in block order, biases, activation.
  DEVICE float join(const Arguments& a, const int4& gather, int lane, int k) const {
    float gate_sum = 0.0f, up_sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PARTS_AT_ONCE; ++i) gate_sum += gate[i], up_sum += up[i];
#pragma unroll 1
    for (int i = PARTS_AT_ONCE; i < max(gather.y, gather.w); ++i) {  // of very wide grids
      if (HAS_GATE && i < gather.y) gate_sum += __ldcg(a.in_partials + gather.x + lane + i * IN_TILE);
      if (i < gather.w) up_sum += __ldcg(a.in_partials + gather.z + lane + i * IN_TILE);
    }
    if (a.up_bias_format != NONE) up_sum += load_as_float(a.up_bias, k, a.up_bias_format);
    if (!HAS_GATE) return activate<ACTIVATION>(up_sum);
    if (a.gate_bias_format != NONE) gate_sum += load_as_float(a.gate_bias, k, a.gate_bias_format);
    return activate<ACTIVATION>(gate_sum) * up_sum;
  }
};

// 32 columns of a word are 32 rows of one tile of the middle's producer, unless groups are padded inside words.
constexpr bool GATHER_BY_WORD = GROUP == GROUP_PADDED && !PERMUTED;
#endif

// Works out, before the previous kernel is done, where the pass will find its x; not in the first warp, which finds tiles.
DEVICE void prepare_gathers(Shared& s, const Arguments& a, const Domain& domain) {
#if X_FORMAT == 4
  if (!GATHER_BY_WORD) return;
#pragma unroll 1
  for (int i = (threadIdx.x + THREADS - 32) % THREADS; i < domain.own; i += THREADS)
    s.gathers[i] = gather_of(a, min(domain.own_word_of_tile(i) * 32, a.k - 1));
#endif
}

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

DEVICE u32 lanes_below() {
  u32 mask;
  asm("mov.u32 %0, %lanemask_lt;" : "=r"(mask));
  return mask;
}

// Before a pass: no word of the domain has active columns.
DEVICE void clear_counts(Shared& s) {
  constexpr int WORDS = sizeof(s.counts) / 4;
#pragma unroll
  for (int i = 0; i < div_up(WORDS, THREADS); ++i)
    if (i * THREADS + int(threadIdx.x) < WORDS) reinterpret_cast<u32*>(s.counts)[i * THREADS + threadIdx.x] = 0;
}

// Before a pass: the list holds gaps, zeros that load nothing.
DEVICE void clear_list(Shared& s) {
  uint4* quads = reinterpret_cast<uint4*>(s.list.columns);  // the entries lie behind the columns
  constexpr int COLUMNS = CHUNK / 4, QUADS = (1 + ROWS) * COLUMNS;
#pragma unroll
  for (int i = 0; i < div_up(QUADS, THREADS); ++i) {
    const int quad = i * THREADS + threadIdx.x;
    const u32 value = quad < COLUMNS ? PADDING : 0;
    if (quad < QUADS) quads[quad] = make_uint4(value, value, value, value);
  }
}

// value += the value of the lane that is `offset` below, where there is one.
DEVICE void add_below(int& value, int offset) {
  asm volatile(
      "{ .reg .pred exists; .reg .s32 below;"
      " shfl.sync.up.b32 below|exists, %0, %1, 0, 0xffffffff;"
      " @exists add.s32 %0, %0, below; }"
      : "+r"(value)
      : "r"(offset));
}

// The units of the domain, one a lane: where its active columns go in the list. A unit starts at a whole step.
struct Units {
  u32 before[UNIT_BYTES / 4];  // four words each, a byte a word: active columns of those before it
  int first_four;              // active columns of the first four words
  int start, end;              // steps
  int first, all;              // steps of the first piece, of both
  u32 active;                  // the lanes whose unit has active columns

  DEVICE Units(const Shared& s, const Domain& domain) {
    const int lane = threadIdx.x % 32;
    int columns = 0;
#pragma unroll
    for (int four = 0; four < UNIT_BYTES / 4; ++four) {
      const u32 counts = reinterpret_cast<const u32*>(s.counts)[min(lane, DOMAIN_UNITS - 1) * (UNIT_BYTES / 4) + four];
      before[four] = counts * 0x01010100u;
      columns += counts * 0x01010101u >> 24;  // at most 128
      if (four == 0) first_four = columns;
    }
    const int steps = lane < DOMAIN_UNITS ? div_up(columns, STEP) : 0;
    end = steps;
#pragma unroll
    for (int offset = 1; offset < DOMAIN_UNITS; offset <<= 1) add_below(end, offset);
    start = end - steps;
    all = __shfl_sync(ALL_LANES, end, DOMAIN_UNITS - 1);
    first = __shfl_sync(ALL_LANES, end, domain.first_units - 1);
    if (!domain.first_units) first = 0;
    active = __ballot_sync(ALL_LANES, steps > 0);
  }

  // Leaves in the list where the units end, once for the block.
  DEVICE void write(Shared& s, const Domain& domain) const {
    const int lane = threadIdx.x % 32;
    if (int(threadIdx.x < 32) & int(active >> lane & 1))
      s.list.units[__popc(active & lanes_below())] =
          u32(end) | u32(domain.word_of_tile(lane * UNIT_WORDS) / GROUP_WORDS) << 16 | u32(lane >= domain.first_units) << 31;
  }

  // The entry of the list where the active columns of a word begin; its place is the same in all lanes.
  DEVICE int start_of(int place) const {
    const u32 byte = u32(place) % UNIT_BYTES, four = UNIT_BYTES > 4 ? byte / 4 : 0;
    const u32 in_four = (four ? before[UNIT_BYTES / 4 - 1] : before[0]) >> byte % 4 * 8 & 255;
    const int own = start * STEP + (four ? first_four : 0) + in_four;
    return __shfl_sync(ALL_LANES, own, u32(place) / UNIT_BYTES);
  }

  // An equal share of the steps.
  DEVICE Work work_of(int column_warp) const {
    Work work;
    work.begin = all * column_warp / COLUMN_WARPS, work.end = all * (column_warp + 1) / COLUMN_WARPS;
    work.first = min(max(first, work.begin), work.end);
    work.unit = __popc(active & __ballot_sync(ALL_LANES, end <= work.begin));
    work.units = __popc(active & __ballot_sync(ALL_LANES, start < work.end)) - work.unit;
    return work;
  }
};

DEVICE void put_entry(List& list, int r, int at, float value, bool active) {
#if SCALE_AXIS_OUT
  if (active) list.entries[r][at] = value;
#else
  const u16 high = to_f16(value), low = to_f16(value - from_f16(high));
  if (active) list.parts[r][0][at] = high, list.parts[r][1][at] = low;
#endif
}

// Writes the list: every lane the active ones of the entries that it has read.
DEVICE void compact(Shared& s, const Arguments& a, const Domain& domain, Entries& entries, const Units& units,
                    const float (&scale)[ROWS]) {
#pragma unroll 1
  for (int round = 0; round < num_rounds(domain); ++round) {
    if (!ONE_ROUND) entries.locate(a, domain, round), entries.restore(s, domain, round);
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int at = units.start_of(entries.place[u]) + __popc(entries.active[u] & lanes_below());
      if (entries.is_active(u)) s.list.columns[at] = entries.column[u];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) put_entry(s.list, r, at, entries.value[u][r] * scale[r], entries.is_active(u));
    }
  }
}
