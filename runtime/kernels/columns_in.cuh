// scale_axis "in": a scale and a zero per (row, group). Every warp copies those of its rows to shared memory two units
// ahead, and they enter once a unit: out += scale * (sum of code * x - zero * sum of x).
#pragma once

constexpr int SETS = FIELDS / 2 * (4 / SHARING);

// Which result columns a lane ends up with: row `mma_row` of x, in the sums of words mma_word, mma_word + SHARING, ..
DEVICE int mma_word() { return 2 * (threadIdx.x % 4) / TAKEN; }
DEVICE int mma_row() { return 2 * (threadIdx.x % 4) % TAKEN / 2; }

// Row of the tile that a lane's sum (word i, field f) belongs to.
DEVICE int tile_row(int row_warp, int i, int f) {
  const int g = threadIdx.x % 32 / 4, block = g / LANES_PER_BLOCK, l = g % LANES_PER_BLOCK;
  return row_warp * WARP_ROWS + block * BLOCK_ROWS + f * DEPTH_WORDS + 4 * l + i;
}

struct Sums {
  float rows[4 / SHARING][FIELDS];

  // Adds weight * x of one column, without tensor cores.
  DEVICE void add_column(const Arguments& a, const Tile& t, const u8* codes, int column, float x, int row_warp);

  DEVICE void clear() {
#pragma unroll
    for (int h = 0; h < 4 / SHARING; ++h)
#pragma unroll
      for (int f = 0; f < FIELDS; ++f) rows[h][f] = 0.0f;
  }

  DEVICE void store(float* reduced, int row_warp, int column_warp) const {
    float* to = reduced + (column_warp * ROWS + mma_row()) * TILE;
#pragma unroll
    for (int h = 0; h < 4 / SHARING; ++h)
#pragma unroll
      for (int f = 0; f < FIELDS; ++f) to[tile_row(row_warp, h * SHARING + mma_word(), f)] = rows[h][f];
  }
};

DEVICE long long scale_offset(const Arguments& a, const Tile& t, int group) {
  return (long long)t.band_start * div_up(a.k, GROUP) + (long long)group * t.band_rows + t.row;
}

// Asks L2 for the scales before the previous kernel is done: x is not known yet, but all scales will be read. A
// prefetch returns no data, so it is safe even when that kernel wrote them.
DEVICE void prefetch_scales(const Shared& s, const Arguments& a, const Cut& cut, int thread, int threads) {
  constexpr int SCALE_LINES = div_up(TILE * format_bytes(SCALE_FORMAT), 128);
  constexpr int ZERO_LINES = div_up(TILE * format_bytes(ZERO_FORMAT), 128);
#pragma unroll 1
  for (int piece = 0; piece < 2; ++piece) {
    const int words = piece ? cut.second : cut.first;
    if (!words) continue;
    const Tile& t = s.tiles[piece];
    const Weight& w = a.weights[t.weight];
    const int from = piece ? 0 : cut.from, first = from / GROUP_WORDS;
    const int groups = (from + words - 1) / GROUP_WORDS - first + 1;
#pragma unroll 1
    for (int i = thread; i < groups * (SCALE_LINES + ZERO_LINES); i += threads) {
      const int group = i / (SCALE_LINES + ZERO_LINES), line = i % (SCALE_LINES + ZERO_LINES);
      const bool zero = line >= SCALE_LINES;
      const int bytes = zero ? format_bytes(ZERO_FORMAT) : format_bytes(SCALE_FORMAT);
      const int at = (zero ? line - SCALE_LINES : line) * 128;
      if (at < t.rows * bytes)
        prefetch_l2(static_cast<const u8*>(zero ? w.zero : w.scale) + scale_offset(a, t, first + group) * bytes + at);
    }
  }
}

constexpr int SCALE_BYTES = WARP_ROWS * format_bytes(SCALE_FORMAT), ZERO_BYTES = WARP_ROWS * format_bytes(ZERO_FORMAT);

// Starts the copy of a group's scales and zeros for the rows of one warp.
DEVICE void stage_scales(u8* to, const Arguments& a, const Tile& t, int group, int row_warp) {
  const Weight& w = a.weights[t.weight];
  const long long offset = scale_offset(a, t, group) + row_warp * WARP_ROWS;
  const int rows = t.rows - row_warp * WARP_ROWS;
#pragma unroll
  for (int i = 0; i < div_up(SCALE_BYTES + ZERO_BYTES, 512); ++i) {
    const int at = (i * 32 + threadIdx.x % 32) * 16;
    const bool zero = at >= SCALE_BYTES;
    const int bytes = zero ? format_bytes(ZERO_FORMAT) : format_bytes(SCALE_FORMAT), in_part = zero ? at - SCALE_BYTES : at;
    if (at < SCALE_BYTES + ZERO_BYTES && in_part < rows * bytes)
      copy_16_to_shared(to + at, static_cast<const u8*>(zero ? w.zero : w.scale) + offset * bytes + in_part);
  }
  close_copies();
}

struct Products {
  float sets[SETS][4];  // code * x
  float ones[4];        // x

  DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < SETS; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c) sets[i][c] = 0.0f;
#pragma unroll
    for (int c = 0; c < 4; ++c) ones[c] = 0.0f;
  }

  // parts: the lane's result column of x, as it lies in shared memory; keep[v]: whether words i = v mod SHARING use it.
  DEVICE void add(const Codes& codes, const u16* parts, int step, const u32 (&keep)[SHARING]) {
    const u32* pairs = reinterpret_cast<const u32*>(parts) + step * (STEP / 2) + threadIdx.x % 4;
    const u32 x0 = pairs[0], x1 = pairs[4];
    constexpr u32 ONES = 0x3c003c00u;
    mma_16x8x16(ones, ONES, ONES, ONES, ONES, x0, x1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Halves h = halves_of(codes, i);
      const u32 b0 = x0 & keep[i % SHARING], b1 = x1 & keep[i % SHARING];
#pragma unroll
      for (int f = 0; f < FIELDS / 2; ++f)
        mma_16x8x16(sets[i / SHARING * (FIELDS / 2) + f], take_field(h.low[0], f), take_field(h.high[0], f),
                    take_field(h.low[1], f), take_field(h.high[1], f), b0, b1);
    }
  }

  DEVICE void apply_scales(Sums& sums, const u8* staged, float unscale) const {
    const float x_sum = (ones[0] + ones[1]) * unscale;
#pragma unroll
    for (int h = 0; h < 4 / SHARING; ++h)
#pragma unroll
      for (int f = 0; f < FIELDS; ++f) {
        const float* c = sets[h * (FIELDS / 2) + f % (FIELDS / 2)] + (f < FIELDS / 2 ? 0 : 2);
        const int at = tile_row(0, h * SHARING + mma_word(), f);
        const float scale = load_as_float<SCALE_FORMAT>(staged, at);
        const float zero = load_as_float<ZERO_FORMAT>(staged + SCALE_BYTES, at);
        const float codes = (c[0] + c[1]) * unscale * field_unit(f % (FIELDS / 2));
        if (ZERO_KIND == ADD_FLOAT) sums.rows[h][f] += fmaf(scale, codes, zero * x_sum);
        else sums.rows[h][f] = fmaf(scale, fmaf(-zero, x_sum, codes), sums.rows[h][f]);
      }
  }
};

// Where a lane reads the codes of a tile.
struct Source {
  const u8* base;
  u32 stride;
  bool exists;

  DEVICE Source(const Arguments& a, const Tile& t, int row_warp) {
    const int g = threadIdx.x % 32 / 4;
    exists = row_warp * WARP_ROWS + g / LANES_PER_BLOCK * BLOCK_ROWS < t.rows;
    stride = u32(t.band_rows) * BITS / 8;
    base = static_cast<const u8*>(a.weights[t.weight].codes) + (u64)t.band_start * a.k * BITS / 8 +
           (t.row + row_warp * WARP_ROWS) * BITS / 8 + g * 16;
  }
};

DEVICE void Sums::add_column(const Arguments& a, const Tile& t, const u8* codes, int column, float x, int row_warp) {
  const Weight& w = a.weights[t.weight];
  const long long offset = scale_offset(a, t, column / GROUP);
#pragma unroll
  for (int h = 0; h < 4 / SHARING; ++h) {
    const int i = h * SHARING + mma_word();
    const u32 word = reinterpret_cast<const u32*>(codes)[i];
#pragma unroll
    for (int f = 0; f < FIELDS; ++f) {
      const float code = float(word >> (BITS * f) & ((1u << BITS) - 1));
      const long long at = offset + tile_row(row_warp, i, f);
      const float scale = load_as_float<SCALE_FORMAT>(w.scale, at), zero = load_as_float<ZERO_FORMAT>(w.zero, at);
      rows[h][f] += x * (ZERO_KIND == ADD_FLOAT ? fmaf(scale, code, zero) : scale * (code - zero));
    }
  }
}

// Adds a column warp's steps to `sums`. When those of the first piece are done and it closes, its sums go to shared memory,
// and `sums` goes on with the second.
DEVICE void accumulate(Shared& s, const Arguments& a, const Cut& cut, const Source& first, const Source& second,
                       Sums& sums, int row_warp, int column_warp, const Work& work, float unscale) {
  const List& list = s.list;
  const int g = threadIdx.x % 32 / 4;
  const u16* parts = list.parts[g % TAKEN / 2][g % 2];
  u32 keep[SHARING];
#pragma unroll
  for (int v = 0; v < SHARING; ++v) keep[v] = g / TAKEN == v ? ~0u : 0u;

  // As differences, not as a choice between two structs, which would put them in local memory.
  const long long to_first = first.base - second.base;
  const u32 to_first_stride = first.stride - second.stride;
  auto load = [&](Codes& codes, int at) {
    u32 column[4];
    columns_of_step(list, at, column);
    const bool in_first = at < work.first;
    load_codes(codes, column, second.base + (in_first ? to_first : 0), second.stride + (in_first ? to_first_stride : 0),
               (in_first && first.exists) || (!in_first && second.exists));
  };
  u8(*staged)[GROUP_BYTES] = s.staged[threadIdx.x / 32];
  auto stage = [&](int unit) {
    if (unit < work.units) {
      const u32 record = list.units[work.unit + unit];
      stage_scales(staged[unit % 2], a, s.tiles[record >> 31], record >> 16 & 0x7fff, row_warp);
    } else {
      close_copies();  // counted all the same
    }
  };

  Codes ring[DEPTH];
#pragma unroll
  for (int d = 0; d < DEPTH; ++d) {
#pragma unroll
    for (int c = 0; c < 4; ++c) ring[d].column[c] = make_uint4(any_bits(), any_bits(), any_bits(), any_bits());
    if (work.begin + d < work.end) load(ring[d], work.begin + d);
  }
  stage(0);
  stage(1);
  bool open = cut.first_closes;
  auto close_first_at = [&](int step) {
    if (open && step == work.first) {
      sums.store(s.reduced_first, row_warp, column_warp);
      sums.clear();
      open = false;
    }
  };
  close_first_at(work.begin);
  Products products;
  products.clear();
  auto end_of = [&](int unit) { return min(int(list.units[work.unit + unit] & 0xffff), work.end); };
  int step = work.begin, unit = 0, stop = work.units ? end_of(0) : 0;
  while (step < work.end) {
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      if (step < work.end) {
        products.add(ring[d], parts, step, keep);
        if (step + DEPTH < work.end) load(ring[d], step + DEPTH);
        keep_step(column_warp);
        if (++step == stop) {
          wait_for_copies_but<1>();
          __syncwarp();
          products.apply_scales(sums, staged[unit % 2], unscale);
          products.clear();
          __syncwarp();
          stage(unit + 2);
          ++unit;
          if (step < work.end) stop = end_of(unit);
          close_first_at(step);
        }
      }
    }
  }
  wait_for_copies_but<0>();
}
