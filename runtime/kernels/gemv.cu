// zigzag GEMV: y = W x for 1 to 4 rows of x, W in the zigzag layout, columns of inactive entries never read.
// README.md beside this file draws the layout, the thread map and the byte counts.
//
// One launch covers up to three weights that share x (q, k, v or gate, up). Their bands are cut into tiles of
// TILE = 256 * ROW_WARPS rows (4 bits), and the flat (tile, column) space is dealt evenly to a one-wave grid, so every
// block does the same work whatever the shapes. Blocks leave partial sums; `zigzag_combine`, or the next GEMV of an MLP
// while it selects, adds them up in block order: the same bits every run, without atomics. A block thresholds and compacts its own piece of x in shared memory
// (no index kernel, no index list in global memory), then its warps share the active list evenly.
//
// Arithmetic: a field of q bits ANDed out of a 16-bit half is a subnormal fp16 of value code * 2^(offset - 24), so the
// codes enter the tensor cores as they lie, exactly, for one AND each. x is scaled by a power of two and split in
// two fp16 parts that hold 22 bits; sums are fp32.
//
// Macros: BITS, SCALE_AXIS_OUT, GROUP, SCALE_FORMAT, ZERO_FORMAT, ZERO_KIND, X_FORMAT (NONE: x is the activated middle
// of an MLP, given as partial sums), HAS_GATE, ACTIVATION, OUT_FORMAT (of zigzag_combine), SPARSE, PERMUTED,
// ROWS, ROW_WARPS, COLUMN_WARPS, BLOCKS_PER_SM, CHUNK, DEPTH, EARLY, LOCKSTEP, FETCH, IN_TILE (rows of the tiles that made the
// middle), SHARED_BYTES, ARGUMENT_BYTES.
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
  int num_tiles;
  int k;
  int rows;
  int per_channel;  // 1: a threshold per entry
  int in_up_tile;   // first tile of up in the launch that made the middle
  int in_blocks;    // its grid
  int in_words;     // its columns a tile, in words of 32
  Divider in_all_words;  // of all its tiles
  Divider gate_band;     // tiles are cut inside bands
  Divider up_band;
  Divider words;         // columns of a tile, in words of 32
  Divider all_words;     // of all tiles
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
constexpr int MAX_GROUPS = SCALE_AXIS_OUT ? 2 : CHUNK / GROUP_PADDED + 3;  // two pieces, each cut anywhere
constexpr int LIST = CHUNK + STEP * MAX_GROUPS;
constexpr u16 PADDING = 0xffff;
constexpr int STAGED_SCALE = SCALE_AXIS_OUT ? 16 : MAX_GROUPS * TILE * format_bytes(SCALE_FORMAT);
constexpr int STAGED_ZERO = SCALE_AXIS_OUT ? 16 : MAX_GROUPS * TILE * format_bytes(ZERO_FORMAT);
constexpr int STAGED = STAGED_SCALE + STAGED_ZERO;
constexpr int REDUCED = COLUMN_WARPS * TILE * ROWS * 4;
// An mma has 8 result columns. One row of x takes two (high and low part); with fewer than 8 taken, that many
// words of a lane share one set of sums, each in its own result columns.
constexpr int TAKEN = 2 * (ROWS == 3 ? 4 : ROWS);
constexpr int QUADS = TILE * ROWS / 4;      // of the sums, in float4
[[maybe_unused]] constexpr int SHARING = 8 / TAKEN;
static_assert(ROWS == 1 || ROWS == 2 || ROWS == 4, "rows of a launch");
static_assert(!SCALE_AXIS_OUT || (BITS == 4 && ROWS == 1), "scale_axis out: 4 bits, one row");
static_assert(CHUNK % 32 == 0 && CHUNK < 65535, "columns of a chunk are 16-bit");

struct Tile {
  int weight;
  int band;
  int band_start;
  int band_rows;
  int row;       // first row inside the band
  int rows;      // rows of the tile that exist, padding to 128 included
};

// Columns of one tile that a block works on in one pass. A pass has up to two, the end of a tile and the start of the
// next, so that a block whose share crosses a tile does not wait for memory a second time.
struct Piece {
  Tile tile;
  int index;         // of the tile in the launch
  int word;          // first virtual column / 32
  int words;         // 0: no such piece
  bool closes;       // the block does no more of this tile

  DEVICE int first_column() const;
};

struct Steps {
  int first;  // of the first piece
  int all;
};

struct __align__(16) Shared {
  // Sums of the warps, for the first and the second piece; scales are done with when the second is stored.
  float reduced_first[REDUCED / 4];
  union {
    u8 staged[STAGED];
    float reduced_second[REDUCED / 4];
  };
  float x[ROWS][CHUNK];
#if X_FORMAT == 4
  int4 gathers[CHUNK_WORDS];
#endif
  // "in": fp16 high and low parts; "out": the scaled entry itself, its parts depend on the row block.
  union {
    u16 parts[ROWS][2][LIST];
    float entries[ROWS][LIST];
  };
  u16 columns[LIST];
  u16 step_group[LIST / STEP];
  u32 masks[CHUNK_WORDS];
  u32 largest[ROWS][WARPS];
  int4 places[CHUNK_WORDS];
  Steps steps;
  Piece pieces[2];  // here and not in registers: they live as long as the sums do
  float unscale[ROWS];
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

#include "predict.cuh"

// Four columns of a step, 16 bytes each: all that a lane reads of the codes.
struct Codes {
  uint4 column[4];
};

DEVICE u32 word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

DEVICE void columns_of_step(const Shared& s, int step, int (&column)[4]) {
  const u32* pairs = reinterpret_cast<const u32*>(s.columns) + step * (STEP / 2) + threadIdx.x % 4;
  const u32 low = pairs[0], high = pairs[4];
  column[0] = low & 0xffff;
  column[1] = low >> 16;
  column[2] = high & 0xffff;
  column[3] = high >> 16;
}

DEVICE void load_codes(Codes& codes, const int (&column)[4], const u8* base, u32 stride, bool lane_exists) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    codes.column[c] = make_uint4(0, 0, 0, 0);
    if (lane_exists && column[c] != PADDING) codes.column[c] = load_streaming(base + (u64)column[c] * stride);
  }
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

// Asks L2 for the first EARLY columns of the block's share before the previous kernel is done and the active ones are
// known: memory would be idle. As with the scales, a prefetch returns no data, so it is safe.
DEVICE void prefetch_codes(const Arguments& a, const Piece& first, const Piece& second) {
  constexpr int LINES = TILE * BITS / 8 / 128;  // of a column
  const int words = first.words + second.words;
#pragma unroll 1
  for (int i = threadIdx.x; i < EARLY * LINES; i += THREADS) {
    const int line = i % LINES, column = i / LINES;  // spread over the places where the column warps start
    const int at = words * 32 * (column % COLUMN_WARPS) / COLUMN_WARPS + column / COLUMN_WARPS;
    if (at >= words * 32) continue;
    const Tile& t = (at / 32 < first.words ? first : second).tile;
    const int v = virtual_word(first, second, at / 32) * 32 + at % 32;
    if (!exists(v, a.k) || line * 128 >= t.rows * BITS / 8) continue;
    prefetch_l2(static_cast<const u8*>(a.weights[t.weight].codes) +
                ((u64)t.band_start * a.k + (u64)column_of(v) * t.band_rows + t.row) * BITS / 8 + line * 128);
  }
}

// The pieces of the next pass over [at, end); two threads, one piece each.
DEVICE void cut_pieces(Shared& s, const Arguments& a, int at, int end) {
  const int i = threadIdx.x, index = divide(at, a.words), words = a.words.value, word = at - index * words;
  const int left = min(words - word, end - at), taken = min(left, CHUNK_WORDS);
  const int rest = taken == left ? min(words, end - at - taken) : 0;  // of the next tile
  const int more = min(rest, CHUNK_WORDS - taken);
  Piece& p = s.pieces[i];
  p.index = i && more ? index + 1 : index;
  p.tile = find_tile(a, p.index);
  p.word = i ? 0 : word;
  p.words = i ? more : taken;
  p.closes = i ? more && more == rest : taken == left;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
zigzag_gemv(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) u8 shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  int at = start_of(blockIdx.x, a.all_words.value, a.blocks);
  const int end = start_of(blockIdx.x + 1, a.all_words.value, a.blocks);
  const int row_warp = threadIdx.x / 32 % ROW_WARPS, column_warp = threadIdx.x / 32 / ROW_WARPS;

  launch_dependents();
  Sums sums;
  sums.clear();
  const Piece &first = s.pieces[0], &second = s.pieces[1];
  bool waited = false;
  while (at < end) {
    if (waited) __syncthreads();  // the last pass still reads its pieces, list and sums
    if (threadIdx.x < 2) cut_pieces(s, a, at, end);
    __syncthreads();
    at += first.words + second.words;
    if (!waited) {
#pragma unroll 1
      for (int i = 0; i < 2; ++i)
        if (s.pieces[i].words) prefetch_scales(a, s.pieces[i]);
      if (EARLY) prefetch_codes(a, first, second);
    }
    prepare_gathers(s, a, first, second);
    if (!waited) wait_for_previous_kernel();
    waited = true;
    predict(s, a, first, second);
    __syncthreads();
    // While one warp finds the places, the others fetch the scales.
    if (threadIdx.x < 32) find_places(s, first, second);
    if (WARPS == 1 || threadIdx.x >= 32) {
#pragma unroll 1
      for (int i = 0; i < 2; ++i)
        if (s.pieces[i].words) stage_scales(s, a, s.pieces[i], i ? groups_of(first) : 0);
    }
    float scale[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const u32 exponent = exponent_of(s, r);
      scale[r] = scale_of(exponent);
      if (threadIdx.x == 0) s.unscale[r] = unscale_of(exponent);
    }
    __syncthreads();
    compact(s, first, second, scale);
    wait_for_copies();
    __syncthreads();
    accumulate(s, a, first, second, sums, row_warp, column_warp, s.steps);
    if (second.closes) {
      __syncthreads();  // staged scales make room for the sums
      sums.store(s.reduced_second, row_warp, column_warp);
      sums.clear();
    }
    __syncthreads();
    if (first.closes) publish(a, s.reduced_first, first.index);
    if (second.closes) publish(a, s.reduced_second, second.index);
  }
}

// Rows of a tile that a block of zigzag_combine adds up, and the threads that share one: enough blocks for every
// multiprocessor, enough loads at a time to wait for memory once.
constexpr int COMBINED_ROWS = 64;
constexpr int COMBINE_PARTS = 4;

// y = the sum over blocks, in block order, plus bias, in y's dtype. Grid: (num_tiles * TILE / COMBINED_ROWS, rows).
extern "C" __global__ void __launch_bounds__(COMBINED_ROWS * COMBINE_PARTS)
zigzag_combine(const __grid_constant__ Arguments a) {
  __shared__ float parts[COMBINE_PARTS][COMBINED_ROWS];
  const int index = blockIdx.x * COMBINED_ROWS / TILE, row = blockIdx.x * COMBINED_ROWS % TILE + threadIdx.x % COMBINED_ROWS;
  const int part = threadIdx.x / COMBINED_ROWS, words = a.words.value, r = blockIdx.y;
  const int first = owner(index * words, a.all_words, a.blocks.value);
  const int count = owner((index + 1) * words - 1, a.all_words, a.blocks.value) - first + 1;
  const Tile t = find_tile(a, index);
  const int begin = count * part / COMBINE_PARTS, end = count * (part + 1) / COMBINE_PARTS;
  const float* from = a.partials + ((long long)(first + index) * ROWS + r) * TILE + row;
  launch_dependents();
  wait_for_previous_kernel();
  float sum = 0.0f;
#pragma unroll 1
  for (int c = begin; c < end; c += 12) {
    float v[12];
#pragma unroll
    for (int i = 0; i < 12; ++i) v[i] = c + i < end ? __ldcg(from + (long long)(c + i) * ROWS * TILE) : 0.0f;
#pragma unroll
    for (int i = 0; i < 12; ++i) sum += v[i];
  }
  parts[part][threadIdx.x % COMBINED_ROWS] = sum;
  __syncthreads();
  const Weight& w = a.weights[t.weight];
  const int n = t.band_start + t.row + row;
  if (part == 0 && row < t.rows && n < w.n) {
#pragma unroll
    for (int p = 1; p < COMBINE_PARTS; ++p) sum += parts[p][threadIdx.x];
    if (w.bias_format != NONE) sum += load_as_float(w.bias, n, w.bias_format);
    store_float<OUT_FORMAT>(w.out, (long long)r * w.n + n, sum);
  }
}
