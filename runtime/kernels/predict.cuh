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

// The domain of a pass: units of the first piece, then of the second.
struct Domain {
  int first_unit;   // of the first piece
  int first_units;  // 0: the first piece is empty
  int units;

  DEVICE explicit Domain(const Cut& cut) {
    first_unit = cut.from / UNIT_WORDS;
    first_units = cut.first ? (cut.from + cut.first - 1) / UNIT_WORDS - first_unit + 1 : 0;
    units = first_units + div_up(cut.second, UNIT_WORDS);
  }

  DEVICE bool in_first(int word) const { return word < first_units * UNIT_WORDS; }

  // Which word of its tile the domain's word is.
  DEVICE int word_of_tile(int word) const {
    return word + (in_first(word) ? first_unit : -first_units) * UNIT_WORDS;
  }

  // A unit that a piece shares with another block has words that are not the block's.
  DEVICE bool has(const Cut& cut, int word) const {
    return in_first(word) ? u32(word_of_tile(word) - cut.from) < u32(cut.first) : u32(word_of_tile(word)) < u32(cut.second);
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

// Row k of the middle: the parts of gate and up in block order, biases, activation.
DEVICE float load_middle(const Arguments& a, const int4& gather, int lane, int k) {
  const float *gate_from = a.in_partials + gather.x + lane, *up_from = a.in_partials + gather.z + lane;
  float gate = 0.0f, up = 0.0f;
  int first = 0;
  do {  // once, but for very wide grids: all loads are under way at a time, their latency is all that this costs
    float gate_part[PARTS_AT_ONCE], up_part[PARTS_AT_ONCE];
#pragma unroll
    for (int i = 0; i < PARTS_AT_ONCE; ++i) {
      gate_part[i] = HAS_GATE && first + i < gather.y ? __ldcg(gate_from + (first + i) * IN_TILE) : 0.0f;
      up_part[i] = first + i < gather.w ? __ldcg(up_from + (first + i) * IN_TILE) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < PARTS_AT_ONCE; ++i) gate += gate_part[i], up += up_part[i];
    first += PARTS_AT_ONCE;
  } while (first < max(gather.y, gather.w));
  if (a.up_bias_format != NONE) up += load_as_float(a.up_bias, k, a.up_bias_format);
  if (!HAS_GATE) return activate<ACTIVATION>(up);
  if (a.gate_bias_format != NONE) gate += load_as_float(a.gate_bias, k, a.gate_bias_format);
  return activate<ACTIVATION>(gate) * up;
}

// 32 columns of a word are 32 rows of one tile of the middle's producer, unless groups are padded inside words.
constexpr bool GATHER_BY_WORD = GROUP == GROUP_PADDED && !PERMUTED;
#endif

// Works out, before the previous kernel is done, where the pass will find its x.
DEVICE void prepare_gathers(Shared& s, const Arguments& a, const Domain& domain) {
#if X_FORMAT == 4
  if (!GATHER_BY_WORD) return;
#pragma unroll 1
  for (int word = threadIdx.x; word < domain.units * UNIT_WORDS; word += THREADS)
    s.gathers[word] = gather_of(a, min(domain.word_of_tile(word) * 32, a.k - 1));
  __syncthreads();
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

DEVICE float load_x(const Shared& s, const Arguments& a, int row, int word, int k, bool is_there) {
#if X_FORMAT == 4
  int4 gather = GATHER_BY_WORD ? s.gathers[word] : gather_of(a, k);
  if (!is_there) gather.y = gather.w = 0;
  return load_middle(a, gather, GATHER_BY_WORD ? int(threadIdx.x % 32) : 0, k);
#else
  return load_as_float<X_FORMAT>(a.x, (long long)row * a.k + k);
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
constexpr int WORDS_PER_WARP = div_up(DOMAIN_WORDS, WARPS);
constexpr int MOST_AT_ONCE = X_FORMAT == NONE ? (PARTS_AT_ONCE > 4 ? 1 : 2) : ROWS > 1 ? 2 : 8;
constexpr int AT_ONCE = WORDS_PER_WARP < MOST_AT_ONCE ? WORDS_PER_WARP : MOST_AT_ONCE;

// Reads the entries of the domain and marks the active ones: s.x, s.masks, and the largest magnitude of each warp. Entries
// that are not there are read at 0, so that nothing branches and the loads of a pass are under way together.
DEVICE void predict(Shared& s, const Arguments& a, const Cut& cut, const Domain& domain) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, words = domain.units * UNIT_WORDS;
  u32 largest[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) largest[r] = 0;
#pragma unroll 1
  for (int block = warp; block < words; block += AT_ONCE * WARPS) {
    float value[AT_ONCE][ROWS], least[AT_ONCE];
    bool active[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int word = min(block + u * WARPS, DOMAIN_WORDS - 1), v = domain.word_of_tile(word) * 32 + lane;
      active[u] = int(domain.has(cut, word)) & int(exists(v, a.k));
      const int k = input_of(a, s.tiles[domain.in_first(word) ? 0 : 1], active[u] ? column_of(v) : 0);
      least[u] = SPARSE ? __ldg(a.threshold + (a.per_channel ? k : 0)) : 0.0f;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) value[u][r] = load_x(s, a, r < a.rows ? r : 0, word, k, active[u]);
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int word = block + u * WARPS;
      if (SPARSE) active[u] = int(active[u]) & int(!(fabsf(value[u][0]) < least[u]));
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        largest[r] = max(largest[r], active[u] && r < a.rows ? __float_as_uint(value[u][r]) & 0x7fffffffu : 0);
        if (word < words) s.x[r][word * 32 + lane] = r < a.rows ? value[u][r] : 0.0f;
      }
      const u32 mask = __ballot_sync(ALL_LANES, active[u]);
      if (int(lane == 0) & int(word < words)) s.masks[word] = mask;
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    largest[r] = warp_max(largest[r]);
    if (lane == 0) s.largest[r][warp] = largest[r];
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

DEVICE int inclusive_scan(int value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const int below = __shfl_up_sync(ALL_LANES, value, offset);
    if (lane >= offset) value += below;
  }
  return value;
}

// A lane's unit: its active columns, and which steps of the domain they fill.
struct Unit {
  int active;
  int start;
  int end;
};

// Every lane takes a unit.
DEVICE Unit scan_units(const Shared& s, const Domain& domain, Steps& steps) {
  const int lane = threadIdx.x % 32;
  Unit unit{0, 0, 0};
  if (lane < domain.units) {
#pragma unroll
    for (int w = 0; w < UNIT_WORDS; ++w) unit.active += __popc(s.masks[lane * UNIT_WORDS + w]);
  }
  const int own = div_up(unit.active, STEP);
  unit.end = inclusive_scan(own);
  unit.start = unit.end - own;
  steps.all = __shfl_sync(ALL_LANES, unit.end, 31);
  steps.first = domain.first_units ? __shfl_sync(ALL_LANES, unit.end, domain.first_units - 1) : 0;
  return unit;
}

DEVICE void put_entry(List& list, int r, int at, float value) {
#if SCALE_AXIS_OUT
  list.entries[r][at] = value;
#else
  const u16 high = to_f16(value);
  list.parts[r][0][at] = high;
  list.parts[r][1][at] = to_f16(value - from_f16(high));
#endif
}

// Writes steps [from, to) of the domain to the list; the row warps of the column warp take turns unit by unit. A gap
// after a unit is filled with zeros that load nothing. Returns how many units there are.
DEVICE int compact(Shared& s, List& list, const Domain& domain, const Unit& unit, int from, int to, int row_warp,
                   const float (&scale)[ROWS]) {
  const int lane = threadIdx.x % 32, most = (to - from) * STEP;
  const u32 all = __ballot_sync(ALL_LANES, unit.end > unit.start && unit.start < to && unit.end > from);
  u32 mine = all;
#pragma unroll 1
  for (int found = 0; mine; mine &= mine - 1, ++found) {
    if (found % ROW_WARPS != row_warp) continue;
    const int taken = __ffs(mine) - 1, of_tile = domain.word_of_tile(taken * UNIT_WORDS);
    const int start = __shfl_sync(ALL_LANES, unit.start, taken), stop = __shfl_sync(ALL_LANES, unit.end, taken);
    int at = (start - from) * STEP;  // may lie before the list
    // Unrolled, so that the words wait for shared memory together: 0.1 us of a launch.
#pragma unroll
    for (int w = 0; w < UNIT_WORDS; ++w) {
      const int word = taken * UNIT_WORDS + w;
      const u32 mask = s.masks[word];
      const int entry = at + __popc(mask & lanes_below());
      at += __popc(mask);
      if (int(mask >> lane & 1) & int(u32(entry) < u32(most))) {
        list.columns[entry] = column_of((of_tile + w) * 32 + lane);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) put_entry(list, r, entry, s.x[r][word * 32 + lane] * scale[r]);
      }
    }
    const int gap = at + lane;
    if (int(gap < (stop - from) * STEP) & int(u32(gap) < u32(most))) {
      list.columns[gap] = PADDING;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) put_entry(list, r, gap, 0.0f);
    }
    if (lane == 0)
      list.units[found] = u32(min(stop, to) - from) | u32(of_tile / GROUP_WORDS) << 16 |
                          u32(taken >= domain.first_units) << 31;
  }
  return __popc(all);
}
