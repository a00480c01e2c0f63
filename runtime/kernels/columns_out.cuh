// scale_axis "out": 32 rows of a column share a scale and a minimum, so they belong to x. The 8 result columns of an
// mma are the 8 row blocks of a warp (2 blocks of 128 rows times 4 of 32): each has its own scaled x, every
// fragment row uses the column of its own block, and the minimum is a plain sum beside.
#pragma once

DEVICE int mma_row() { return 0; }
DEVICE int lane_block() { return threadIdx.x % 32 / 4 / LANES_PER_BLOCK; }

struct Sums {
  float rows[4][2];

  // Adds weight * x of one column, without tensor cores.
  DEVICE void add_column(const Arguments& a, const Tile& t, const u8* codes, int column, float x, int row_warp);

  DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i][0] = rows[i][1] = 0.0f;
  }

  DEVICE void store(float* reduced, int row_warp, int column_warp) const {
    const int lane = threadIdx.x % 32, l = lane / 4 % LANES_PER_BLOCK, t = lane % 4;
    float* to = reduced + column_warp * TILE + row_warp * WARP_ROWS + lane_block() * BLOCK_ROWS + 4 * l;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) to[(2 * t + half) * DEPTH_WORDS + i] = rows[i][half];
  }
};

DEVICE void prefetch_scales(const Shared&, const Arguments&, const Cut&, int, int) {}

// An integer below 2^23 as a float, without the convert instruction, whose rate is a quarter.
DEVICE float small_float(u32 value) { return __uint_as_float(value | 0x4b000000u) - 8388608.0f; }

struct Records {
  uint4 column[4];
};

// Steps after those in registers that L2 is asked for. Scaled x takes so many registers that a warp holds fewer bytes of
// codes than memory needs under way. An MLP 4096-14336 at 50 % on an H100: 36.5 us with 0, 34.4 with 1, 35.0 with 2, 36.7
// with 4; dense 53.7, 51.1, 51.6, 54.5. With launch parameters tuned for each (`early` 128), 0.75 of the time at 50 % and
// 0.25 of the dense one are 36.7 with 1, 36.2 with 2, 37.1 with 3.
constexpr int AHEAD = 2;

DEVICE void load_records(Records& records, const u32 (&column)[4], const u8* base, u32 stride, bool exists) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    records.column[c] = make_uint4(0, 0, 0, 0);
    if (exists && column[c] != PADDING)
      records.column[c] = __ldg(reinterpret_cast<const uint4*>(base + (u64)column[c] * stride));
  }
}

struct Products {
  float sets[4][4];
  float minimum;

  DEVICE void clear() {
    minimum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c) sets[i][c] = 0.0f;
  }

  // `nibble`: 4 * block of the record; the lane's result column is one 32-row block. `keep[p]`: it is the p-th of 128.
  DEVICE void add(const Codes& codes, const Records& records, const float* entries, int step, int nibble,
                  const u32 (&keep)[4]) {
    const float2* pairs = reinterpret_cast<const float2*>(entries) + step * (STEP / 2) + threadIdx.x % 4;
    const float2 low = pairs[0], high = pairs[4];
    const float x[4] = {low.x, low.y, high.x, high.y};
    u16 part[PARTS][4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const uint4 r = records.column[c];
      const u32 top = r.w >> nibble;
      const float scale6 = small_float((r.y >> nibble & 15) | (top & 3) << 4);
      const float min6 = small_float((r.z >> nibble & 15) | (top & 12) << 2);
      const float value = x[c] * (from_f16(u16(r.x)) * scale6);
      minimum = fmaf(x[c], from_f16(u16(r.x >> 16)) * min6, minimum);
      part[0][c] = to_f16(value);
      if (PARTS == 2) part[1][c] = to_f16(value - from_f16(part[0][c]));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Halves h = halves_of(codes, i);
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const u32(&from)[2] = p < 2 ? h.low : h.high;
        const int f = 2 * p % (FIELDS / 2);
        const u32 a0 = take_field(from[0], f), a1 = take_field(from[0], f + 1);
        const u32 a2 = take_field(from[1], f), a3 = take_field(from[1], f + 1);
#pragma unroll
        for (int q = 0; q < PARTS; ++q) {
          const u32 b0 = (part[q][0] | u32(part[q][1]) << 16) & keep[p];
          const u32 b1 = (part[q][2] | u32(part[q][3]) << 16) & keep[p];
          mma_16x8x16(sets[i], a0, a1, a2, a3, b0, b1);
        }
      }
    }
  }

  DEVICE void apply(Sums& sums, float unscale) const {
    // A result column's minimum is spread over the four lanes that hold its x.
    float total = minimum + __shfl_xor_sync(ALL_LANES, minimum, 1);
    total += __shfl_xor_sync(ALL_LANES, total, 2);
    const int column = 2 * (threadIdx.x % 4) + lane_block();
    total = __shfl_sync(ALL_LANES, total, column * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float c = lane_block() ? sets[i][2 * half + 1] : sets[i][2 * half];
        sums.rows[i][half] += (c * field_unit(half) - total) * unscale;
      }
  }
};

// Records of a column in the band of a tile, each for 256 rows; full bands hold as many as any, the last one may hold fewer.
DEVICE int records_per_column(const Tile& t) { return div_up(t.band_start + t.band_rows, 256) - t.band_start / 256; }

// The record of a row in the first column of its band.
DEVICE u64 first_record(const Arguments& a, const Tile& t, int row) {
  return (u64)t.band * div_up(a.weights[t.weight].band, 256) * a.k + row / 256 - t.band_start / 256;
}

// Where a lane reads the codes and, as a result column, the records of a tile.
struct Source {
  const u8* base;
  const u8* records;
  u32 stride;
  u32 record_stride;
  int nibble;
  bool exists;
  bool block_exists;

  DEVICE Source(const Arguments& a, const Tile& t, int row_warp) {
    const int g = threadIdx.x % 32 / 4;
    const Weight& w = a.weights[t.weight];
    const int warp_row = t.row + row_warp * WARP_ROWS;
    exists = row_warp * WARP_ROWS + lane_block() * BLOCK_ROWS < t.rows;
    stride = u32(t.band_rows) * BITS / 8;
    base = static_cast<const u8*>(w.codes) + (u64)t.band_start * a.k * BITS / 8 + warp_row * BITS / 8 + g * 16;
    // The lane as a result column: block g % 2 of 128 rows, and in it the (g / 2)-th block of 32.
    const int row = t.band_start + warp_row + g % 2 * BLOCK_ROWS;
    block_exists = row_warp * WARP_ROWS + g % 2 * BLOCK_ROWS < t.rows;
    records = static_cast<const u8*>(w.scale) + 16 * first_record(a, t, row);
    record_stride = 16 * records_per_column(t);
    nibble = 4 * (row / 128 % 2 * 4 + g / 2);
  }
};

DEVICE void Sums::add_column(const Arguments& a, const Tile& t, const u8* codes, int column, float x, int row_warp) {
  // The record of the lane's own rows, which are those of `lane_block`; `Source` has that of its result column.
  const int lane = threadIdx.x % 32, row = t.band_start + t.row + row_warp * WARP_ROWS + lane_block() * BLOCK_ROWS;
  const uint4 r = static_cast<const uint4*>(
      a.weights[t.weight].scale)[first_record(a, t, row) + (u64)column * records_per_column(t)];
  const int nibble = 4 * (row / 128 % 2 * 4 + lane % 4);
  const u32 top = r.w >> nibble;
  const float scale = from_f16(u16(r.x)) * small_float((r.y >> nibble & 15) | (top & 3) << 4);
  const float minimum = from_f16(u16(r.x >> 16)) * small_float((r.z >> nibble & 15) | (top & 12) << 2);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const u32 word = reinterpret_cast<const u32*>(codes)[i];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      rows[i][half] += x * fmaf(scale, float(word >> (BITS * (2 * (lane % 4) + half)) & 15), -minimum);
  }
}

// As for the scale axis "in": a column warp's steps to `sums`, those of a closing first piece to shared memory.
DEVICE void accumulate(Shared& s, const Arguments& a, const Cut& cut, const Source&, const Source&, Sums& sums,
                       int row_warp, int column_warp, const Work& work, float unscale) {
  const List& list = s.list;
  const int g = threadIdx.x % 32 / 4;
  u32 keep[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) keep[p] = g / 2 == p ? ~0u : 0u;
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const Source from(a, s.tiles[i], row_warp);  // here: a choice between two structs would lie in local memory
    int step = i ? work.first : work.begin;
    const int stop = i ? work.end : work.first;
    Codes ring[DEPTH];
    Records record_ring[DEPTH];
    auto load = [&](Codes& codes, Records& records, int at) {
      u32 column[4];
      columns_of_step(list, at, column);
      load_records(records, column, from.records, from.record_stride, from.block_exists);
      load_codes(codes, column, from.base, from.stride, from.exists);
    };
    // A lane asks for its column's codes or records.
    const int lane = threadIdx.x % 32;
    const u8* asked = lane < STEP ? from.base : from.records;
    const u32 asked_stride = lane < STEP ? from.stride : from.record_stride;
    const bool asks = lane < STEP ? from.exists : from.block_exists;
    auto ask = [&](int at) {
      if (at >= stop) return;
      const u32 column = list.columns[at * STEP + lane % STEP];
      if (asks && column != PADDING) prefetch_l2(asked + (u64)column * asked_stride);
    };
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
#pragma unroll
      for (int c = 0; c < 4; ++c) ring[d].column[c] = make_uint4(any_bits(), any_bits(), any_bits(), any_bits());
      if (step + d < stop) load(ring[d], record_ring[d], step + d);
    }
#pragma unroll
    for (int d = 0; d < AHEAD; ++d) ask(step + DEPTH + d);
    Products products;
    products.clear();
    while (step < stop) {
#pragma unroll
      for (int d = 0; d < DEPTH; ++d) {
        if (step < stop) {
          products.add(ring[d], record_ring[d], list.entries[0], step, from.nibble, keep);
          if (step + DEPTH < stop) load(ring[d], record_ring[d], step + DEPTH);
          ask(step + DEPTH + AHEAD);
          keep_step(column_warp);
          ++step;
        }
      }
    }
    products.apply(sums, unscale);
    if (i == 0 && cut.first_closes) {
      sums.store(s.reduced_first, row_warp, column_warp);
      sums.clear();
    }
  }
}
