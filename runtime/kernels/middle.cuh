// The activated middle of an MLP as input: the launch of gate and up has left it as sums of its blocks.
#pragma once

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
