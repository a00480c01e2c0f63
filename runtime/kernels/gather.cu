// Reads the active columns of a weight and does nothing with them: the time that memory alone takes for a sparse GEMV,
// which `zigpass bench` compares the kernels with.
//
// Macros: PIECE (bytes of a column in a band, 128, 256 or 512), AT_ONCE (columns that a lane waits for together).
#include "common.cuh"

constexpr int LANES = PIECE / 16;  // of a column
constexpr int COLUMNS = 32 / LANES;

// codes [bands, k, PIECE]; columns: the `active` ones, ascending; out: one word that nobody reads.
extern "C" __global__ void __launch_bounds__(256)
zigzag_gather(const u8* __restrict__ codes, const int* __restrict__ columns, u32* __restrict__ out, int active, int bands,
              int k) {
  const int lane = threadIdx.x % 32, warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const long long all = (long long)active * bands, warps = gridDim.x * blockDim.x / 32;
  const long long begin = all * warp / warps, end = all * (warp + 1) / warps;
  u32 sum = 0;
  for (long long at = begin + lane / LANES; at < end; at += COLUMNS * AT_ONCE) {
    uint4 v[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
      const long long own = at + u * COLUMNS, band = own / active;
      v[u] = make_uint4(0, 0, 0, 0);
      if (own < end) v[u] = load_streaming(codes + (band * k + __ldg(columns + (own - band * active))) * PIECE + lane % LANES * 16);
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) sum ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (sum == 0x9e3779b9u) *out = sum;  // keeps the loads
}
