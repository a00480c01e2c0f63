// scale_axis "in": a scale and a zero per (row, group). They lie in shared memory before the first column is
// read, and enter once a group: out += scale * (sum of code * x - zero * sum of x).
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

DEVICE int first_group(const Piece& p) { return p.word / GROUP_WORDS; }
DEVICE int groups_of(const Piece& p) { return (p.word + p.words - 1) / GROUP_WORDS - first_group(p) + 1; }

// Asks L2 for the scales before the previous kernel is done: x is not known yet, but all scales will be read. A
// prefetch returns no data, so it is safe even when that kernel wrote them.
DEVICE void prefetch_scales(const Arguments& a, const Piece& p) {
  const Weight& w = a.weights[p.tile.weight];
  constexpr int SCALE_LINES = div_up(TILE * format_bytes(SCALE_FORMAT), 128);
  constexpr int ZERO_LINES = div_up(TILE * format_bytes(ZERO_FORMAT), 128);
  const int lines = groups_of(p) * (SCALE_LINES + ZERO_LINES);
#pragma unroll 1
  for (int i = threadIdx.x; i < lines; i += THREADS) {
    const int group = i / (SCALE_LINES + ZERO_LINES), line = i % (SCALE_LINES + ZERO_LINES);
    const bool zero = line >= SCALE_LINES;
    const int bytes = zero ? format_bytes(ZERO_FORMAT) : format_bytes(SCALE_FORMAT);
    const int at = (zero ? line - SCALE_LINES : line) * 128;
    if (at < p.tile.rows * bytes)
      prefetch_l2(static_cast<const u8*>(zero ? w.zero : w.scale) +
                  scale_offset(a, p.tile, first_group(p) + group) * bytes + at);
  }
}

// Starts the copies of a piece's scales, `after` groups into the staged ones.
DEVICE void stage_scales(Shared& s, const Arguments& a, const Piece& p, int after) {
  constexpr int SCALE_BYTES = format_bytes(SCALE_FORMAT), SCALE_PIECES = TILE * SCALE_BYTES / 16;
  constexpr int ZERO_BYTES = format_bytes(ZERO_FORMAT), ZERO_PIECES = TILE * ZERO_BYTES / 16;
  const Weight& w = a.weights[p.tile.weight];
  constexpr int IDLE = WARPS == 1 ? 0 : 32;  // the first warp is elsewhere
#pragma unroll 1
  for (int i = threadIdx.x - IDLE; i < groups_of(p) * (SCALE_PIECES + ZERO_PIECES); i += THREADS - IDLE) {
    const int group = i / (SCALE_PIECES + ZERO_PIECES), piece = i % (SCALE_PIECES + ZERO_PIECES);
    const bool zero = piece >= SCALE_PIECES;
    const int bytes = zero ? ZERO_BYTES : SCALE_BYTES, at = (zero ? piece - SCALE_PIECES : piece) * 16;
    if (at < p.tile.rows * bytes)
      copy_16_to_shared(s.staged + (zero ? STAGED_SCALE : 0) + (after + group) * TILE * bytes + at,
                        static_cast<const u8*>(zero ? w.zero : w.scale) +
                            scale_offset(a, p.tile, first_group(p) + group) * bytes + at);
  }
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

  DEVICE void apply_scales(Sums& sums, const Shared& s, int group, int row_warp, float unscale) const {
    const float x_sum = (ones[0] + ones[1]) * unscale;
#pragma unroll
    for (int h = 0; h < 4 / SHARING; ++h)
#pragma unroll
      for (int f = 0; f < FIELDS; ++f) {
        const float* c = sets[h * (FIELDS / 2) + f % (FIELDS / 2)] + (f < FIELDS / 2 ? 0 : 2);
        const int at = group * TILE + tile_row(row_warp, h * SHARING + mma_word(), f);
        const float scale = load_as_float<SCALE_FORMAT>(s.staged, at);
        const float zero = load_as_float<ZERO_FORMAT>(s.staged + STAGED_SCALE, at);
        const float codes = (c[0] + c[1]) * unscale * field_unit(f % (FIELDS / 2));
        if (ZERO_KIND == ADD_FLOAT) sums.rows[h][f] += fmaf(scale, codes, zero * x_sum);
        else sums.rows[h][f] = fmaf(scale, fmaf(-zero, x_sum, codes), sums.rows[h][f]);
      }
  }
};

// Where a lane reads the codes of a piece.
struct Source {
  const u8* base;
  u32 stride;
  bool exists;

  DEVICE Source(const Arguments& a, const Piece& p, int row_warp) {
    const int g = threadIdx.x % 32 / 4;
    const Tile& t = p.tile;
    exists = row_warp * WARP_ROWS + g / LANES_PER_BLOCK * BLOCK_ROWS < t.rows;
    stride = u32(t.band_rows) * BITS / 8;
    base = static_cast<const u8*>(a.weights[t.weight].codes) + (u64)t.band_start * a.k * BITS / 8 +
           (u64)p.first_column() * stride + (t.row + row_warp * WARP_ROWS) * BITS / 8 + g * 16;
  }
};

// Adds this warp's steps to `sums`. Those of the first piece go to shared memory when it closes, and `sums` goes on
// with the second.
DEVICE void accumulate(Shared& s, const Arguments& a, const Piece& first, const Piece& second, Sums& sums, int row_warp,
                       int column_warp, Steps steps) {
  const int g = threadIdx.x % 32 / 4;
  const u16* parts = s.parts[g % TAKEN / 2][g % 2];
  u32 keep[SHARING];
#pragma unroll
  for (int v = 0; v < SHARING; ++v) keep[v] = g / TAKEN == v ? ~0u : 0u;
  const float unscale = s.unscale[mma_row()];

  int step = steps.all * column_warp / COLUMN_WARPS;
  const int end = steps.all * (column_warp + 1) / COLUMN_WARPS;
  bool in_first = step < steps.first;
  Source from(a, in_first ? first : second, row_warp);
  auto load = [&](Codes& codes, int at) {
    if (in_first && at >= steps.first) {
      from = Source(a, second, row_warp);
      in_first = false;
    }
    int column[4];
    columns_of_step(s, at, column);
    load_codes(codes, column, from.base, from.stride, from.exists);
  };
  bool open = first.closes;
  auto close_first = [&] {
    sums.store(s.reduced_first, row_warp, column_warp);
    sums.clear();
    open = false;
  };

  Codes ring[DEPTH];
#pragma unroll
  for (int d = 0; d < DEPTH; ++d)
    if (step + d < end) load(ring[d], step + d);
  if (open && step >= steps.first) close_first();
  Products products;
  products.clear();
  while (step < end) {
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      if (step < end) {
        products.add(ring[d], parts, step, keep);
        if (step + DEPTH < end) load(ring[d], step + DEPTH);
        keep_step(column_warp);
        const int group = s.step_group[step];
        if (++step == end || s.step_group[step] != group) {
          products.apply_scales(sums, s, group, row_warp, unscale);
          products.clear();
          if (open && step >= steps.first) close_first();
        }
      }
    }
  }
  if (open) close_first();
}
