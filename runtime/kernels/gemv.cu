// zigzag GEMV: y = W x for 1 to 4 rows of x, W in the zigzag layout, columns of inactive entries never read.
// README.md beside this file draws the layout, the thread map and the byte counts.
//
// One launch covers up to three weights that share x (q, k, v or gate, up). Their bands are cut into tiles of
// TILE = 256 * ROW_WARPS rows (4 bits), and the flat (tile, column) space is dealt evenly to a one-wave grid, so every
// block does the same work whatever the shapes. Blocks leave partial sums; `zigzag_combine`, or the next GEMV of an MLP
// while it selects, adds them up in block order: the same bits every run, without atomics. A block thresholds its own
// piece of x and keeps the list of active columns in shared memory (no index kernel, no index list in global memory);
// its column warps share the list evenly.
//
// Arithmetic: a field of q bits ANDed out of a 16-bit half is a subnormal fp16 of value code * 2^(offset - 24), so the
// codes enter the tensor cores as they lie, exactly, for one AND each. x is scaled by a power of two and split in
// two fp16 parts that hold 22 bits; sums are fp32.
//
// Macros: BITS, SCALE_AXIS_OUT, GROUP, SCALE_FORMAT, ZERO_FORMAT, ZERO_KIND, X_FORMAT (NONE: x is the activated middle
// of an MLP, given as partial sums), HAS_GATE, ACTIVATION, OUT_FORMAT (of zigzag_combine), SPARSE, PERMUTED,
// ROWS, ROW_WARPS, COLUMN_WARPS, BLOCKS_PER_SM, CHUNK (columns of a pass), PARTS (fp16 parts of x), DEPTH, EARLY, LOCKSTEP,
// FETCH, COMBINE_THREADS and COMBINED_ROWS (of a block of zigzag_combine), IN_TILE (rows of the tiles that made the middle),
// PARTS_AT_ONCE (blocks that share one of those, rounded up), SHARED_BYTES, ARGUMENT_BYTES.
#include "common.cuh"

struct Arguments {
  Weight weights[3];
  const void* x;           // [rows, k]
  const float* threshold;  // 1 or k
  float* partials;         // [slots, ROWS, TILE]
  const float* in_partials;  // of the launch that made the middle
  const void* gate_bias;
  const void* up_bias;
  int gate_bias_format;
  int up_bias_format;
  int num_weights;
  int k;
  int rows;
  int per_channel;  // 1: a threshold per entry
  int in_up_tile;   // first tile of up in the launch that made the middle
  int in_blocks;    // its grid
  Divider in_tiles;      // its tiles
  Divider gate_band;     // tiles are cut inside bands
  Divider up_band;
  Divider words;         // columns of a tile, in words of 32
  Divider tiles;         // of all weights
  Divider blocks;        // the grid of zigzag_gemv
};
static_assert(sizeof(Arguments) == ARGUMENT_BYTES, "the Python side packs another struct");

constexpr int WARPS = ROW_WARPS * COLUMN_WARPS;
constexpr int THREADS = WARPS * 32;
constexpr int FIELDS = 32 / BITS;           // codes in a word
constexpr int FIELDS_PER_BYTE = 8 / BITS;
constexpr int DEPTH_WORDS = 4 * BITS;       // words of a block of 128 rows
constexpr int LANES_PER_BLOCK = BITS;       // lanes of 16 bytes
constexpr int WARP_ROWS = 1024 / BITS;      // 8 lanes of 16 bytes
constexpr int TILE = WARP_ROWS * ROW_WARPS;
constexpr int STEP = 16;                    // columns of an mma
// A group is padded to whole words of 32 columns: `virtual` columns count the padding.
constexpr int GROUP_PADDED = div_up(GROUP, 32) * 32;
constexpr int GROUP_WORDS = GROUP_PADDED / 32;
constexpr int CHUNK_WORDS = CHUNK / 32;
constexpr int MOST_UNIT_WORDS = 8;
DEVICE constexpr int unit_words() {
  int words = 1;
  for (int w = 1; w <= MOST_UNIT_WORDS; ++w)
    if (GROUP_WORDS % w == 0) words = w;
  return words;
}
constexpr int UNIT_WORDS = unit_words();
constexpr int DOMAIN_UNITS = div_up(CHUNK_WORDS, UNIT_WORDS) + 3;  // two pieces, each cut anywhere
constexpr int UNIT_BYTES = UNIT_WORDS > 4 ? 8 : 4;
constexpr u32 PADDING = ~0u;
constexpr int REDUCED = COLUMN_WARPS * TILE * ROWS * 4;
// An mma has 8 result columns. One row of x takes two (high and low part); with fewer than 8 taken, that many
// words of a lane share one set of sums, each in its own result columns.
constexpr int TAKEN = 2 * (ROWS == 3 ? 4 : ROWS);
constexpr int QUADS = TILE * ROWS / 4;      // of the sums, in float4
[[maybe_unused]] constexpr int SHARING = 8 / TAKEN;
static_assert(ROWS == 1 || ROWS == 2 || ROWS == 4, "rows of a launch");
static_assert(X_FORMAT != NONE || ROWS == 1, "the middle has one row");
static_assert(!SCALE_AXIS_OUT || (BITS == 4 && ROWS == 1), "scale_axis out: 4 bits, one row");
static_assert(CHUNK % 32 == 0 && CHUNK / STEP < 65536, "steps of a list are 16-bit");
static_assert(DOMAIN_UNITS <= 32, "a lane scans a unit");

struct Tile {
  int weight;
  int band;
  int band_start;
  int band_rows;
  int row;       // first row inside the band
  int rows;      // rows of the tile that exist, padding to 128 included
};

// What a block does in one pass: the end of a tile and the start of the next, so that a block whose share crosses a
// tile does not wait for memory a second time. In words of 32 columns; the same in every thread.
struct Cut {
  int tile;      // of the first piece
  int from;      // where the first piece begins in its tile
  int first;     // words of the first piece
  int second;    // of the second, which begins its tile
  bool two;      // there is a second piece
  bool first_closes;  // the block does no more of this tile
  bool second_closes;
};

// The active columns of a pass, in steps.
struct __align__(16) List {
  u32 columns[CHUNK];
  // "in": fp16 high and low parts; "out": the scaled entry itself, its parts depend on the row block.
  union {
    u16 parts[ROWS][2][CHUNK];
    float entries[ROWS][CHUNK];
  };
  u32 units[DOMAIN_UNITS];  // of those with active columns: step where it ends, its group, whether it is of the second piece
};

// What a column warp does of the list.
struct Work {
  int begin, end;  // steps
  int first;       // where the steps of the first piece end in them
  int unit;        // the first unit, in list.units
  int units;
};

constexpr int GROUP_BYTES = SCALE_AXIS_OUT ? 0 : WARP_ROWS * (format_bytes(SCALE_FORMAT) + format_bytes(ZERO_FORMAT));

struct __align__(16) Shared {
  // Sums of the warps, for the first and the second piece; lists and scales are done with when the second is stored.
  float reduced_first[REDUCED / 4];
  union {
    struct {
      List list;
      __align__(16) u8 staged[WARPS][2][GROUP_BYTES + SCALE_AXIS_OUT];  // scales and zeros of a warp's rows: this unit, the next
    };
    float reduced_second[REDUCED / 4];
  };
  float x[ROWS][CHUNK];
#if X_FORMAT == 4
  int4 gathers[CHUNK_WORDS];
#endif
  __align__(16) u32 masks[CHUNK_WORDS];
  __align__(8) u8 counts[DOMAIN_UNITS * UNIT_BYTES];  // active columns of each word
  u32 largest[ROWS][WARPS];
  Tile tiles[2];  // of the pieces
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "shared memory of the launch");

DEVICE Tile find_tile(const Arguments& a, int tile) {
  Tile t;
  t.weight = 0;
  if (a.num_weights > 1 && tile >= a.weights[1].first_tile) t.weight = 1;
  if (a.num_weights > 2 && tile >= a.weights[2].first_tile) t.weight = 2;
  const Weight& w = a.weights[t.weight];
  const int local = tile - w.first_tile;
  t.band = divide(local, w.band_tiles);
  t.band_start = t.band * w.band;
  t.band_rows = min(w.band, w.padded_n - t.band_start);
  t.row = (local - t.band * w.band_tiles.value) * TILE;
  t.rows = min(TILE, t.band_rows - t.row);
  return t;
}

#include "domain.cuh"
#include "middle.cuh"
#include "predict.cuh"
#include "list.cuh"

// Four columns of a step, 16 bytes each: all that a lane reads of the codes.
struct Codes {
  uint4 column[4];
};

DEVICE u32 word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

DEVICE void columns_of_step(const List& list, int step, u32 (&column)[4]) {
  const uint2* pairs = reinterpret_cast<const uint2*>(list.columns) + step * (STEP / 2) + threadIdx.x % 4;
  const uint2 low = pairs[0], high = pairs[4];
  column[0] = low.x, column[1] = low.y, column[2] = high.x, column[3] = high.y;
}

// A column that is padding keeps what the registers held: its entry of x is 0, and every code is finite.
DEVICE void load_codes(Codes& codes, const u32 (&column)[4], const u8* base, u32 stride, bool lane_exists) {
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (lane_exists && column[c] != PADDING) codes.column[c] = load_streaming(base + (u64)column[c] * stride);
}

// The 16-bit halves of word i of a lane's four columns, paired as an mma fragment wants them.
struct Halves {
  u32 low[2];   // rows of fields 0 .. FIELDS/2-1, columns (0, 1) and (2, 3)
  u32 high[2];  // rows of the other fields
};

DEVICE Halves halves_of(const Codes& codes, int i) {
  Halves h;
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    const u32 even = word_of(codes.column[2 * pair], i), odd = word_of(codes.column[2 * pair + 1], i);
    h.low[pair] = __byte_perm(even, odd, 0x5410);
    h.high[pair] = __byte_perm(even, odd, 0x7632);
  }
  return h;
}

// Field f of a pair of halves, as two subnormal fp16.
DEVICE u32 take_field(u32 halves, int f) {
  constexpr u32 mask = ((1u << BITS) - 1) * 0x00010001u;
  return (f >= FIELDS_PER_BYTE ? halves >> 8 : halves) & (mask << (f % FIELDS_PER_BYTE * BITS));
}

// What brings a sum of field f back to whole codes: 2^(24 - bit offset).
DEVICE constexpr float field_unit(int f) { return float(1u << (24 - f % FIELDS_PER_BYTE * BITS)); }

// Keeps the row warps of a column warp on the same step, so that they ask memory for neighbouring pieces together.
DEVICE void keep_step(int column_warp) {
  if (LOCKSTEP && ROW_WARPS > 1 && COLUMN_WARPS < 16)
    asm volatile("bar.sync %0, %1;" ::"r"(1 + column_warp), "n"(32 * ROW_WARPS) : "memory");
}

#if SCALE_AXIS_OUT
#include "columns_out.cuh"
#else
#include "columns_in.cuh"
#endif

// Adds up the warps of the block, in order, into the block's slot of the workspace.
DEVICE void publish(const Arguments& a, const float* reduced, int tile) {
  float4* slot = reinterpret_cast<float4*>(a.partials) + (long long)(blockIdx.x + tile) * QUADS;
  const float4* sums = reinterpret_cast<const float4*>(reduced);
#pragma unroll 1
  for (int quad = threadIdx.x; quad < QUADS; quad += THREADS) {
    float4 sum = sums[quad];
#pragma unroll
    for (int c = 1; c < COLUMN_WARPS; ++c) {
      const float4 part = sums[c * QUADS + quad];
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    __stcg(slot + quad, sum);
  }
}

// The same sums as `accumulate`, number by number: an infinity times a code less its zero is what plain arithmetic
// makes of it, while a sum of codes less a sum of zeros would be NaN. Slow, and never needed in a healthy model.
DEVICE void accumulate_plain(Shared& s, const Arguments& a, const Cut& cut, const Domain& domain,
                             const Source& first, const Source& second, Sums& sums, int row_warp, int column_warp) {
#pragma unroll 1
  for (int piece = 0; piece < 2; ++piece) {
    const int begin = piece ? domain.own_first : 0, end = piece ? domain.own : domain.own_first;
    const bool exists = piece ? second.exists : first.exists;
    const u8* base = piece ? second.base : first.base;
    const u32 stride = piece ? second.stride : first.stride;
#pragma unroll 1
    for (int i = begin + column_warp; exists && i < end; i += COLUMN_WARPS) {
#pragma unroll 1
      for (u32 mask = s.masks[i]; mask; mask &= mask - 1) {
        const int bit = __ffs(mask) - 1;
        const int column = column_of(domain.own_word_of_tile(i) * 32 + bit);
        sums.add_column(a, s.tiles[piece], base + (u64)column * stride, column, s.x[mma_row()][i * 32 + bit], row_warp);
      }
    }
    if (piece == 0 && cut.first_closes) {
      sums.store(s.reduced_first, row_warp, column_warp);
      sums.clear();
    }
  }
}

// Asks L2 for the first EARLY columns of the block's share before the previous kernel is done and the active ones are
// known: memory would be idle. As with the scales, a prefetch returns no data, so it is safe.
DEVICE void prefetch_codes(const Shared& s, const Arguments& a, const Cut& cut, int thread, int threads) {
  constexpr int LINES = TILE * BITS / 8 / 128;  // of a column
  const int words = cut.first + cut.second;
#pragma unroll 1
  for (int i = thread; i < EARLY * LINES; i += threads) {
    const int line = i % LINES, column = i / LINES;  // spread over the places where the column warps start
    const int at = words * 32 * (column % COLUMN_WARPS) / COLUMN_WARPS + column / COLUMN_WARPS;
    if (at >= words * 32) continue;
    const bool second = at / 32 >= cut.first;
    const Tile& t = s.tiles[second];
    const int v = at + (second ? -cut.first : cut.from) * 32;
    if (!exists(v, a.k) || line * 128 >= t.rows * BITS / 8) continue;
    prefetch_l2(static_cast<const u8*>(a.weights[t.weight].codes) +
                ((u64)t.band_start * a.k + (u64)column_of(v) * t.band_rows + t.row) * BITS / 8 + line * 128);
  }
}

// One of so many blocks, the last ones, starts late, on a multiprocessor that the kernel before leaves last: it has no time
// in which memory would be idle.
constexpr int LATE_BLOCKS = 8;

// Half of the threads for each, because what comes before the wait takes as long as what the block waits for.
DEVICE void prefetch(const Shared& s, const Arguments& a, const Cut& cut) {
  constexpr int HALF = EARLY && !SCALE_AXIS_OUT && WARPS > 1 ? WARPS / 2 * 32 : 0;
  const int thread = threadIdx.x;
  if (EARLY && thread >= HALF && blockIdx.x < gridDim.x - gridDim.x / LATE_BLOCKS)
    prefetch_codes(s, a, cut, thread - HALF, THREADS - HALF);
  if (thread < HALF || !HALF) prefetch_scales(s, a, cut, thread, HALF ? HALF : THREADS);
}

// The block's share of the flat space, and the part of it that a pass takes from word `from` of a tile on.
struct Share {
  int begin, end, words, first_tile, last_tile;

  DEVICE explicit Share(const Arguments& a) : words(a.words.value) {
    const int b = blockIdx.x, all = a.tiles.value * words;
    begin = divide(b * all, a.blocks), end = divide((b + 1) * all, a.blocks);
    first_tile = divide(b * a.tiles.value, a.blocks), last_tile = divide((b + 1) * a.tiles.value - 1, a.blocks);
  }

  DEVICE Cut cut(int tile, int from) const {
    Cut c;
    c.tile = tile;
    c.from = from;
    const int left = max(min(end - tile * words, words) - from, 0);
    c.first = min(left, CHUNK_WORDS);
    c.first_closes = c.first == left;
    c.two = c.first_closes && tile < last_tile;
    const int next = c.two ? max(min(end - (tile + 1) * words, words), 0) : 0;
    c.second = min(next, CHUNK_WORDS - c.first);
    c.second_closes = c.two && c.second == next;
    return c;
  }

  DEVICE Cut first_cut() const { return cut(first_tile, max(begin - first_tile * words, 0)); }

  // False when nothing is left.
  DEVICE bool next(Cut& c) const {
    const int tile = c.tile + int(c.first_closes) + int(c.second_closes);
    if (tile > last_tile) return false;
    c = cut(tile, c.second_closes ? 0 : c.two ? c.second : c.first_closes ? 0 : c.from + c.first);
    return true;
  }
};

// Registers of a multiprocessor that zigzag_gemv leaves free for one block of zigzag_combine. So that is there before the
// sums are, on every multiprocessor, and the kernel after it can start early too.
constexpr int COMBINE_REGISTERS = 32;
constexpr int REGISTERS = (65536 - COMBINE_THREADS * COMBINE_REGISTERS) / (THREADS * BLOCKS_PER_SM) / 8 * 8;

extern "C" __global__ void __maxnreg__(REGISTERS < 255 ? REGISTERS : 255)
zigzag_gemv(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) u8 shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const int row_warp = threadIdx.x / 32 % ROW_WARPS, column_warp = threadIdx.x / 32 / ROW_WARPS;
  Sums sums;
  sums.clear();

  launch_dependents();
  const Share share(a);
  Cut cut = share.first_cut();
  bool waited = false;
  do {
    if (waited) __syncthreads();  // the last pass still reads its tiles and sums
    const Domain domain(cut);
    if (threadIdx.x < 2) s.tiles[threadIdx.x] = find_tile(a, cut.tile + (cut.two ? threadIdx.x : 0));
    prepare_gathers(s, a, domain);
    clear_counts(s);
    __syncthreads();
    if (!waited) prefetch(s, a, cut);
    clear_list(s);
    const Source first(a, s.tiles[0], row_warp), second(a, s.tiles[1], row_warp);
    Entries entries;
    entries.locate(a, domain, 0);
    if (!waited) wait_for_previous_kernel();
    waited = true;
    predict(s, a, domain, entries);
    __syncthreads();
    float scale[ROWS];
    u32 own_exponent = 0;  // of the row of x whose sums this lane ends with
    bool finite = true;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const u32 exponent = exponent_of(s, r);
      scale[r] = scale_of(exponent);
      own_exponent |= r == mma_row() ? exponent : 0;
      finite &= exponent != NOT_FINITE;
    }
    if (finite) {
      const Units units(s, domain);
      compact(s, a, domain, entries, units, scale);
      units.write(s, domain);
      const Work work = units.work_of(column_warp);
      __syncthreads();
      accumulate(s, a, cut, first, second, sums, row_warp, column_warp, work, unscale_of(own_exponent));
    } else {
      if (ONE_ROUND) entries.store(s, domain, 0);
      __syncthreads();
      accumulate_plain(s, a, cut, domain, first, second, sums, row_warp, column_warp);
    }
    if (cut.second_closes) {
      __syncthreads();  // lists and staged scales make room for the sums
      sums.store(s.reduced_second, row_warp, column_warp);
      sums.clear();
    }
    __syncthreads();
#pragma unroll 1
    for (int piece = 0; piece < 2; ++piece)
      if (piece ? cut.second_closes : cut.first_closes)
        publish(a, piece ? s.reduced_second : s.reduced_first, cut.tile + piece);
  } while (share.next(cut));
}

constexpr int COMBINE_PARTS = COMBINE_THREADS / COMBINED_ROWS;  // threads that share a row
constexpr int COMBINED_AT_ONCE = 12;                            // sums that a thread waits for together

// y = the sum over blocks, in block order, plus bias, in y's dtype. Grid: (num_tiles * TILE / COMBINED_ROWS, rows).
extern "C" __global__ void __maxnreg__(COMBINE_REGISTERS)
zigzag_combine(const __grid_constant__ Arguments a) {
  __shared__ float parts[COMBINE_PARTS][COMBINED_ROWS];
  launch_dependents();
  const int index = blockIdx.x * COMBINED_ROWS / TILE, row = blockIdx.x * COMBINED_ROWS % TILE + threadIdx.x % COMBINED_ROWS;
  const int part = threadIdx.x / COMBINED_ROWS, r = blockIdx.y;
  const Tile t = find_tile(a, index);
  const Weight& w = a.weights[t.weight];
  const int n = t.band_start + t.row + row;
  const bool writes = part == 0 && row < t.rows && n < w.n;
  const int first = first_block(index, a.blocks.value, a.tiles), count = num_blocks(index, a.blocks.value, a.tiles);
  const int begin = count * part / COMBINE_PARTS;
  int left = count * (part + 1) / COMBINE_PARTS - begin;
  const float* from = a.partials + ((long long)(first + index + begin) * ROWS + r) * TILE + row;
  wait_for_previous_kernel();
  float sum = 0.0f;
#pragma unroll 1
  for (; left > 0; left -= COMBINED_AT_ONCE, from += COMBINED_AT_ONCE * ROWS * TILE) {
    float v[COMBINED_AT_ONCE];
#pragma unroll
    for (int i = 0; i < COMBINED_AT_ONCE; ++i) v[i] = i < left ? __ldcg(from + i * ROWS * TILE) : 0.0f;
#pragma unroll
    for (int i = 0; i < COMBINED_AT_ONCE; ++i) sum += v[i];
  }
  if (COMBINE_PARTS > 1) {
    parts[part][threadIdx.x % COMBINED_ROWS] = sum;
    __syncthreads();
  }
  if (!writes) return;
#pragma unroll
  for (int p = 1; p < COMBINE_PARTS; ++p) sum += parts[p][threadIdx.x];
  if (w.bias_format != NONE) sum += load_as_float(w.bias, n, w.bias_format);
  store_float<OUT_FORMAT>(w.out, (long long)r * w.n + n, sum);
}
