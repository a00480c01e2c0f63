// The list of active columns that the column warps of a block work through.
#pragma once

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
