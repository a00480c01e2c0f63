// Shared by the kernels: types, number formats, PTX spelled once. Needs no CUDA headers, so NVRTC alone compiles it.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Number formats as they appear in macros and in the argument structs.
enum Format { F16 = 0, BF16 = 1, F32 = 2, U8 = 3, NONE = 4 };
enum ZeroKind { SUB_INT = 0, SUB_FLOAT = 1, ADD_FLOAT = 2 };
enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4 };

#define DEVICE __device__ __forceinline__
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr int BLOCK_ROWS = 128;

DEVICE constexpr int div_up(int a, int b) { return (a + b - 1) / b; }

DEVICE float from_f16(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

DEVICE u16 to_f16(float value) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

DEVICE float from_bf16(u16 bits) { return __uint_as_float(u32(bits) << 16); }

// Round to nearest even in integers: the bf16 convert instruction starts at sm_80.
DEVICE u16 to_bf16(float value) {
  const u32 bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return u16((bits >> 16) | 0x40u);
  return u16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <int FORMAT>
DEVICE float load_as_float(const void* base, long long index) {
  if (FORMAT == F16) return from_f16(static_cast<const u16*>(base)[index]);
  if (FORMAT == BF16) return from_bf16(static_cast<const u16*>(base)[index]);
  if (FORMAT == U8) return float(static_cast<const u8*>(base)[index]);
  return static_cast<const float*>(base)[index];
}

DEVICE float load_as_float(const void* base, long long index, int format) {
  if (format == F16) return load_as_float<F16>(base, index);
  if (format == BF16) return load_as_float<BF16>(base, index);
  return load_as_float<F32>(base, index);
}

template <int FORMAT>
DEVICE void store_float(void* base, long long index, float value) {
  if (FORMAT == F16) static_cast<u16*>(base)[index] = to_f16(value);
  else if (FORMAT == BF16) static_cast<u16*>(base)[index] = to_bf16(value);
  else static_cast<float*>(base)[index] = value;
}

DEVICE constexpr int format_bytes(int format) { return format == F32 ? 4 : format == U8 ? 1 : 2; }

template <int KIND>
DEVICE float activate(float v) {
  if (KIND == SILU) return __fdividef(v, 1.0f + expf(-v));  // 2 units in the last place, without a subroutine
  if (KIND == GELU) return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
  if (KIND == GELU_TANH) return 0.5f * v * (1.0f + tanhf(0.79788456080286536f * (v + 0.044715f * v * v * v)));
  const float r = v < 0.0f ? 0.0f : v;  // keeps NaN
  return KIND == RELU ? r : r * r;
}

// A divisor and what replaces the division: q = n / value for 0 <= n < 2^31. Mirrored by arguments.Divider.
struct Divider {
  int value;
  u32 multiplier;
  int shift;
};
DEVICE int divide(int n, const Divider& d) { return d.value == 1 ? n : int(__umulhi(u32(n), d.multiplier) >> d.shift); }

// A register as it happens to be, where any bits do: no instruction.
DEVICE u32 any_bits() {
  u32 bits;
  asm("" : "=r"(bits));
  return bits;
}

DEVICE u32 lanes_below() {
  u32 mask;
  asm("mov.u32 %0, %lanemask_lt;" : "=r"(mask));
  return mask;
}

// value += the value of the lane that is `offset` below, where there is one.
DEVICE void add_below(int& value, int offset) {
  asm volatile(
      "{ .reg .pred exists; .reg .s32 below;"
      " shfl.sync.up.b32 below|exists, %0, %1, 0, 0xffffffff;"
      " @exists add.s32 %0, %0, below; }"
      : "+r"(value)
      : "r"(offset));
}

// Weights are read once: past L1, so that it keeps what is shared. FETCH, where a kernel has it, is what L2 reads at
// least: a warp's 128 bytes of a column, or those of its neighbour too.
#ifndef FETCH
#define FETCH 128
#endif
DEVICE uint4 load_streaming(const void* address) {
  uint4 v;
#if FETCH == 256
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
#else
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
#endif
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

DEVICE void prefetch_l2(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// Copies 16 bytes to shared memory; asynchronous where the arch can (sm_80), else a load and a store.
DEVICE void copy_16_to_shared(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const u32 destination = u32(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(destination), "l"(global) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Ends a batch of such copies.
DEVICE void close_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the newest N batches of this thread are under way.
template <int N>
DEVICE void wait_for_copies_but() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Programmatic dependent launch (sm_90): let the next kernel's blocks start early, and wait here until everything the
// previous kernel wrote is visible. Both do nothing in a kernel that was launched without the attribute.
DEVICE void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// D[16x8] += A[16x16] B[16x8], fp16 in, fp32 sums. sm_75 has the half-deep shape only.
DEVICE void mma_16x8x16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// One matrix of a launch. Mirrored by zigpass.runtime.cuda.arguments.Weight.
struct Weight {
  const void* codes;
  const void* scale;
  const void* zero;
  const void* bias;
  const int* perm;  // input of each column, where columns are stored in another order
  void* out;
  int n;
  int padded_n;
  int band;
  int first_tile;
  int bias_format;
  Divider band_tiles;  // tiles of a band
};
