// Predict: which columns of a tile are active, and the list of them that the block's warps share.
#pragma once

DEVICE int column_of(int v) { return GROUP == GROUP_PADDED ? v : v / GROUP_PADDED * GROUP + v % GROUP_PADDED; }

DEVICE int Piece::first_column() const { return column_of(word * 32); }

DEVICE bool exists(int v, int k) {
  return column_of(v) < k && (GROUP == GROUP_PADDED || v % GROUP_PADDED < GROUP);
}

// Word `p` of the flat space belongs to the block that this returns; block b starts at words * b / blocks.
// The launcher refuses a space where the products would leave 31 bits.
DEVICE int owner(int p, const Divider& words, int blocks) { return divide((p + 1) * blocks - 1, words); }
DEVICE int start_of(int block, int words, const Divider& blocks) { return divide(words * block, blocks); }

// Word of a tile that is the `word`-th of a pass.
DEVICE int virtual_word(const Piece& first, const Piece& second, int word) {
  return word < first.words ? first.word + word : second.word + word - first.words;
}

#if X_FORMAT == 4
// Where the parts of a row of the middle lie: the first, as an index of floats, and how many.
DEVICE int2 parts_of(const Arguments& a, int first_tile, const Divider& band_size, int row) {
  const int per_band = div_up(band_size.value, IN_TILE), band = divide(row, band_size), in_band = row - band * band_size.value;
  const int tile = first_tile + band * per_band + in_band / IN_TILE;
  const int first = owner(tile * a.in_words, a.in_all_words, a.in_blocks);
  return make_int2((first + tile) * IN_TILE + in_band % IN_TILE,
                   owner((tile + 1) * a.in_words - 1, a.in_all_words, a.in_blocks) - first + 1);
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
DEVICE void prepare_gathers(Shared& s, const Arguments& a, const Piece& first, const Piece& second) {
#if X_FORMAT == 4
  if (!GATHER_BY_WORD) return;
#pragma unroll 1
  for (int word = threadIdx.x; word < first.words + second.words; word += THREADS)
    s.gathers[word] = gather_of(a, virtual_word(first, second, word) * 32);
  __syncthreads();
#endif
}

// The input that a column takes: the columns of a permuted weight are stored in another order.
DEVICE int input_of(const Arguments& a, const Piece& p, int column) {
#if PERMUTED
  return __ldg(a.weights[p.tile.weight].perm + column);
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

constexpr int AT_ONCE = 2;  // words of x that a warp waits for together

// Reads the entries of both pieces and marks the active ones: s.x, s.masks, and the largest magnitude of each warp.
DEVICE void predict(Shared& s, const Arguments& a, const Piece& first, const Piece& second) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, words = first.words + second.words;
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
      const int word = block + u * WARPS, v = virtual_word(first, second, word) * 32 + lane;
      active[u] = word < words && exists(v, a.k);
      const int k = active[u] ? input_of(a, word < first.words ? first : second, column_of(v)) : 0;
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

DEVICE void put_entry(Shared& s, int at, int word, int lane, const float (&scale)[ROWS]) {
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const float value = lane >= 0 ? s.x[r][word * 32 + lane] * scale[r] : 0.0f;
#if SCALE_AXIS_OUT
    s.entries[r][at] = value;
#else
    const u16 high = to_f16(value);
    s.parts[r][0][at] = high;
    s.parts[r][1][at] = to_f16(value - from_f16(high));
#endif
  }
}

// Finds where each word's entries go: every group starts at a multiple of STEP. One warp does it for the block.
DEVICE void find_places(Shared& s, const Piece& first, const Piece& second) {
  const int lane = threadIdx.x, words = first.words + second.words;
  int base = 0, open = 0;  // list length so far, entries of the group that the next 32 words continue
#pragma unroll 1
  for (int block = 0; block < words; block += 32) {
    const int word = block + lane, in_group = virtual_word(first, second, word) % GROUP_WORDS;
    const int count = word < words ? __popc(s.masks[word]) : 0;
    const bool last =
        word < words && (in_group == GROUP_WORDS - 1 || word == first.words - 1 || word == words - 1);
    int total = count;  // of the group, up to this word
#pragma unroll
    for (int offset = 1; offset < 32 && offset < GROUP_WORDS; offset <<= 1) {
      const int below = __shfl_up_sync(ALL_LANES, total, offset);
      if (lane >= offset && in_group >= offset) total += below;
    }
    if (in_group > lane) total += open;
    const int padded = last ? div_up(total, STEP) * STEP : 0;
    const int ended = inclusive_scan(padded), start = base + ended - padded;
    if (word < words) s.places[word] = make_int4(start + total - count, start, total, padded);
    if (word == first.words - 1) s.steps.first = (start + padded) / STEP;
    if (word == words - 1) s.steps.all = (start + padded) / STEP;
    base += __shfl_sync(ALL_LANES, ended, 31);
    open = __shfl_sync(ALL_LANES, last ? 0 : total, 31);
  }
}

// Writes the active list: entries and columns, the gap after a group filled with zeros that load nothing.
DEVICE void compact(Shared& s, const Piece& first, const Piece& second, const float (&scale)[ROWS]) {
  const int lane = threadIdx.x % 32, first_column = first.first_column(), first_group = first.word / GROUP_WORDS;
  const int first_groups = (first.word + first.words - 1) / GROUP_WORDS - first_group + 1;
#pragma unroll 1
  for (int word = threadIdx.x / 32; word < first.words + second.words; word += WARPS) {
    const int4 place = s.places[word];  // of the word's entries, its group's start, entries so far, length if it ends
    const u32 mask = s.masks[word];
    const int of_tile = virtual_word(first, second, word);
    const bool in_first = word < first.words;
    if (mask >> lane & 1) {
      const int at = place.x + __popc(mask & ((1u << lane) - 1));
      // The second piece starts its tile, at column 0.
      s.columns[at] = u16(column_of(of_tile * 32 + lane) - (in_first ? first_column : 0));
      put_entry(s, at, word, lane, scale);
    }
    if (place.z + lane < place.w) {
      s.columns[place.y + place.z + lane] = PADDING;
      put_entry(s, place.y + place.z + lane, 0, -1, scale);
    }
    const int group = of_tile / GROUP_WORDS;
#pragma unroll 1
    for (int step = lane; step < place.w / STEP; step += 32)
      s.step_group[place.y / STEP + step] = u16(in_first ? group - first_group : group + first_groups);
  }
}
