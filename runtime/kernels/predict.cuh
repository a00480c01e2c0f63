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
    const int of_tile = word_of_tile(word);
    return in_first(word) ? of_tile >= cut.from && of_tile < cut.from + cut.first
                          : word < units * UNIT_WORDS && of_tile < cut.second;
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
  // Eight loads each under way at a time, also where fewer are left: their latency is all that this costs.
#pragma unroll 1
  for (int b = 0; b < max(gather.y, gather.w); b += 8) {
    float gate_part[8], up_part[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      gate_part[i] = b + i < gather.y ? __ldcg(gate_from + (b + i) * IN_TILE) : 0.0f;
      up_part[i] = b + i < gather.w ? __ldcg(up_from + (b + i) * IN_TILE) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) gate += gate_part[i], up += up_part[i];
  }
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

DEVICE float load_x(const Shared& s, const Arguments& a, int row, int word, int k) {
#if X_FORMAT == 4
  if (GATHER_BY_WORD) return load_middle(a, s.gathers[word], threadIdx.x % 32, k);
  return load_middle(a, gather_of(a, k), 0, k);
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

DEVICE int warp_sum(int value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(ALL_LANES, value);
#else
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) value += __shfl_xor_sync(ALL_LANES, value, offset);
  return value;
#endif
}

// Asks L2 for active columns as soon as they are known to be active: the list is not ready yet, and memory is idle. Only
// for the first KNOWN words of each column warp's share, which will be read first; the warp that marked a word asks for it.
DEVICE void prefetch_known(const Shared& s, const Arguments& a, const Cut& cut, const Domain& domain) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, all = cut.first + cut.second;
  const int share = div_up(all, COLUMN_WARPS);
  __syncwarp();
#pragma unroll 1
  for (int i = 0; i < KNOWN * COLUMN_WARPS; ++i) {
    const int of_pass = i / KNOWN * share + i % KNOWN;
    const bool second = of_pass >= cut.first;
    const int of_tile = second ? of_pass - cut.first : of_pass + cut.from;
    const int word = of_tile + (second ? domain.first_units : -domain.first_unit) * UNIT_WORDS;
    if (of_pass >= all || word % WARPS != warp || !(s.masks[word] >> lane & 1)) continue;
    const Tile& t = s.tiles[second];
    const u8* from = static_cast<const u8*>(a.weights[t.weight].codes) +
                     ((u64)t.band_start * a.k + (u64)column_of(of_tile * 32 + lane) * t.band_rows + t.row) * BITS / 8;
#pragma unroll
    for (int line = 0; line < TILE * BITS / 8; line += 128)
      if (line < t.rows * BITS / 8) prefetch_l2(from + line);
  }
}

// Words of x that a warp waits for together; a row of the middle is up to 16 loads already.
constexpr int AT_ONCE = X_FORMAT == 4 ? 1 : 2;

// Reads the entries of the domain and marks the active ones: s.x, s.masks, and the largest magnitude of each warp.
DEVICE void predict(Shared& s, const Arguments& a, const Cut& cut, const Domain& domain) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, words = domain.units * UNIT_WORDS;
  const float threshold = SPARSE && !a.per_channel ? __ldg(a.threshold) : 0.0f;
  u32 largest[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) largest[r] = 0;
#pragma unroll 1
  for (int block = warp; block < words; block += AT_ONCE * WARPS) {
    float value[AT_ONCE][ROWS], least[AT_ONCE];
    bool active[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int word = block + u * WARPS, v = domain.word_of_tile(word) * 32 + lane;
      active[u] = word < words && domain.has(cut, word) && exists(v, a.k);
      const int k = active[u] ? input_of(a, s.tiles[domain.in_first(word) ? 0 : 1], column_of(v)) : 0;
      least[u] = SPARSE && a.per_channel ? __ldg(a.threshold + k) : threshold;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) value[u][r] = active[u] && r < a.rows ? load_x(s, a, r, word, k) : 0.0f;
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const int word = block + u * WARPS;
      if (word >= words) break;
      if (SPARSE) active[u] = active[u] && !(fabsf(value[u][0]) < least[u]);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        s.x[r][word * 32 + lane] = value[u][r];
        if (active[u]) largest[r] = max(largest[r], __float_as_uint(value[u][r]) & 0x7fffffffu);
      }
      const u32 mask = __ballot_sync(ALL_LANES, active[u]);
      if (lane == 0) s.masks[word] = mask;
    }
  }
  if (SPARSE && KNOWN) prefetch_known(s, a, cut, domain);
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    largest[r] = warp_max(largest[r]);
    if (lane == 0) s.largest[r][warp] = largest[r];
  }
}

// The exponent field E of the largest magnitude decides the power of two that brings it under 2^15 ("in") or 2^6
// ("out", which leaves room for column scales up to 512). Infinity and NaN keep scale one and spread as they must.
constexpr int TARGET = SCALE_AXIS_OUT ? 5 : 14;
DEVICE u32 exponent_of(const Shared& s, int r) {
  const int lane = threadIdx.x % 32;
  const u32 e = warp_max(lane < WARPS ? s.largest[r][lane] : 0) >> 23;
  return e == 255 ? 127 + TARGET : max(e, TARGET + 1u);
}
DEVICE float scale_of(u32 exponent) { return __uint_as_float((254 + TARGET - exponent) << 23); }
DEVICE float unscale_of(u32 exponent) { return __uint_as_float((exponent - TARGET) << 23); }

DEVICE int inclusive_scan(int value) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const int below = __shfl_up_sync(ALL_LANES, value, offset);
    if (lane >= offset) value += below;
  }
  return value;
}

// Active columns of a unit.
DEVICE int count_active(const Shared& s, int unit) {
  int count = 0;
  if (UNIT_WORDS % 4 == 0) {  // one access for four words: lanes lie next to each other
#pragma unroll
    for (int w = 0; w < UNIT_WORDS; w += 4) {
      const uint4 masks = *reinterpret_cast<const uint4*>(s.masks + unit * UNIT_WORDS + w);
      count += __popc(masks.x) + __popc(masks.y) + __popc(masks.z) + __popc(masks.w);
    }
  } else {
#pragma unroll
    for (int w = 0; w < UNIT_WORDS; ++w) count += __popc(s.masks[unit * UNIT_WORDS + w]);
  }
  return count;
}

// Steps of the whole domain, and of the units of its first piece.
DEVICE Steps count_steps(const Shared& s, const Domain& domain) {
  Steps steps{0, 0};
#pragma unroll 1
  for (int block = 0; block < domain.units; block += 32) {
    const int unit = block + threadIdx.x % 32;
    const int own = unit < domain.units ? div_up(count_active(s, unit), STEP) : 0;
    steps.all += warp_sum(own);
    steps.first += warp_sum(unit < domain.first_units ? own : 0);
  }
  return steps;
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
DEVICE int compact(Shared& s, List& list, const Domain& domain, int from, int to, int row_warp,
                   const float (&scale)[ROWS]) {
  const int lane = threadIdx.x % 32, most = (to - from) * STEP;
  int base = 0, found = 0;
#pragma unroll 1
  for (int block = 0; block < domain.units && base < to; block += 32) {
    const int unit = block + lane;
    const int active = unit < domain.units ? count_active(s, unit) : 0, own = div_up(active, STEP);
    const int end = base + inclusive_scan(own), start = end - own;
    base = __shfl_sync(ALL_LANES, end, 31);
    u32 mine = __ballot_sync(ALL_LANES, own && start < to && end > from);
#pragma unroll 1
    for (; mine; mine &= mine - 1, ++found) {
      if (found % ROW_WARPS != row_warp) continue;
      const int source = __ffs(mine) - 1, taken = block + source;
      const int first = (__shfl_sync(ALL_LANES, start, source) - from) * STEP;  // may lie before the list
      const int entries = __shfl_sync(ALL_LANES, active, source), stop = __shfl_sync(ALL_LANES, end, source);
      const int of_tile = domain.word_of_tile(taken * UNIT_WORDS);
      int at = first;
#pragma unroll
      for (int w = 0; w < UNIT_WORDS; ++w) {
        const int word = taken * UNIT_WORDS + w;
        const u32 mask = s.masks[word];
        const int entry = at + __popc(mask & ((1u << lane) - 1));
        if (mask >> lane & 1 && u32(entry) < u32(most)) {
          list.columns[entry] = column_of((of_tile + w) * 32 + lane);
#pragma unroll
          for (int r = 0; r < ROWS; ++r) put_entry(list, r, entry, s.x[r][word * 32 + lane] * scale[r]);
        }
        at += __popc(mask);
      }
      const int gap = at + lane;
      if (gap < first + div_up(entries, STEP) * STEP && u32(gap) < u32(most)) {
        list.columns[gap] = PADDING;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) put_entry(list, r, gap, 0.0f);
      }
      if (lane == 0)
        list.units[found] = u32(min(stop, to) - from) | u32(of_tile / GROUP_WORDS) << 16 |
                            u32(taken >= domain.first_units) << 31;
    }
  }
  return found;
}
