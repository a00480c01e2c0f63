// Rows [row, row + rows) of a weight as plain numbers, transposed: out [k, rows]. For prefill, where a GEMM of the
// vendor's library follows; `rows` is bounded by the caller, so the workspace is too.
//
// Macros: BITS, SCALE_AXIS_OUT, GROUP, SCALE_FORMAT, ZERO_FORMAT, ZERO_KIND, OUT_FORMAT.
#include "common.cuh"

constexpr int FIELDS = 32 / BITS;
constexpr int DEPTH_WORDS = 4 * BITS;

// One thread, one word: FIELDS rows of one column. A block of 256 threads covers 256 / DEPTH_WORDS columns.
extern "C" __global__ void __launch_bounds__(256)
zigzag_dequantize(const u32* __restrict__ codes, const void* __restrict__ scale, const void* __restrict__ zero,
                  void* __restrict__ out, int padded_n, int k, int band, int row, int rows) {
  const int d = threadIdx.x % DEPTH_WORDS;
  const int column = blockIdx.x * (256 / DEPTH_WORDS) + threadIdx.x / DEPTH_WORDS;
  const int first = row + blockIdx.y * BLOCK_ROWS;  // of the block of 128 rows
  if (column >= k) return;
  const int band_start = first / band * band, band_rows = min(band, padded_n - band_start), in_band = first - band_start;
  const u32 word = codes[((u64)band_start * k + (u64)column * band_rows + in_band) * BITS / 32 + d];
#if SCALE_AXIS_OUT
  const int first_record = band_start / 256, records = div_up(band_start + band_rows, 256) - first_record;
  const uint4 record = static_cast<const uint4*>(
      scale)[(u64)(band_start / band) * div_up(band, 256) * k + (u64)column * records + first / 256 - first_record];
#else
  const u64 at = (u64)band_start * div_up(k, GROUP) + (u64)(column / GROUP) * band_rows + in_band;
#endif
#pragma unroll
  for (int f = 0; f < FIELDS; ++f) {
    const int r = f * DEPTH_WORDS + d;
    const float code = float((word >> (f * BITS)) & ((1u << BITS) - 1));
#if SCALE_AXIS_OUT
    const int nibble = 4 * (first / 128 % 2 * 4 + r / 32);
    const u32 top = record.w >> nibble;
    const float scale6 = float(((record.y >> nibble) & 15) | ((top & 3) << 4));
    const float min6 = float(((record.z >> nibble) & 15) | ((top & 12) << 2));
    const float value = from_f16(u16(record.x)) * scale6 * code - from_f16(u16(record.x >> 16)) * min6;
#else
    const float s = load_as_float<SCALE_FORMAT>(scale, at + r), z = load_as_float<ZERO_FORMAT>(zero, at + r);
    const float value = ZERO_KIND == ADD_FLOAT ? fmaf(s, code, z) : s * (code - z);
#endif
    store_float<OUT_FORMAT>(out, (u64)column * rows + blockIdx.y * BLOCK_ROWS + r, value);
  }
}
