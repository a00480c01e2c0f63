// Runs the blocks of a CUDA kernel on a CPU, one after the other: a thread is a fiber that gives way at every barrier and
// wherever a warp works together. Which warp goes next is drawn anew each time, so a missing barrier shows. What is not
// modelled: asynchronous copies (they are done at once), caches, and races inside a stretch between two barriers.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define __CUDA_ARCH__ 900
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __restrict__
#define __grid_constant__
#define __maxnreg__(count)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint2 { uint32_t x, y; };
struct int2 { int x, y; };
struct float2 { float x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }

struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, gridDim;

namespace emulator {

// Plain arrays and no standard containers: their headers would be half of the time that a specialization compiles.
constexpr int LANES = 32, MOST_THREADS = 1024, STACK = 256 << 10;
struct Fiber {
  ucontext_t context;
  char* stack;
  bool ended;
};
struct Meeting {  // of threads that wait for each other
  int arrived = 0;
  unsigned number = 0;
};
struct Warp {
  Meeting meeting;
  uint64_t slots[2][LANES][8];  // what the lanes brought, for a meeting and the next
};
static int num_threads;
static Fiber fibers[MOST_THREADS];
static Warp warps[MOST_THREADS / LANES];
static Meeting block;
static ucontext_t scheduler;
static void (*kernel)(const void* arguments);
static const void* kernel_arguments;
alignas(16) static char shared_bytes[256 << 10];

inline void give_way() {
  const unsigned own = threadIdx.x;
  swapcontext(&fibers[own].context, &scheduler);
}

inline void meet(Meeting& meeting, int threads) {
  const unsigned number = meeting.number;
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    ++meeting.number;
  } else {
    while (meeting.number == number) give_way();
  }
}

// Brings a value to the warp's meeting and returns what all lanes brought.
template <typename T>
const uint64_t (*exchange(const T& value))[8] {
  static_assert(sizeof(T) <= 64, "a slot");
  Warp& warp = warps[threadIdx.x / LANES];
  auto& slots = warp.slots[warp.meeting.number % 2];
  std::memcpy(slots[threadIdx.x % LANES], &value, sizeof(T));
  meet(warp.meeting, LANES);
  return slots;
}

template <typename T>
T brought(const uint64_t (*slots)[8], int lane) {
  T value;
  std::memcpy(&value, slots[lane], sizeof(T));
  return value;
}

inline void start() {
  const unsigned own = threadIdx.x;
  kernel(kernel_arguments);
  fibers[own].ended = true;
  swapcontext(&fibers[own].context, &scheduler);
}

inline uint32_t random_number() {  // Numerical Recipes' linear congruential generator, its upper half
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return state >> 16;
}

inline void run_block() {
  std::memset(shared_bytes, 0x7f, sizeof(shared_bytes));  // huge as floats, wild as indices
  for (Warp& warp : warps) warp.meeting = Meeting();
  block = Meeting();
  for (int thread = 0; thread < num_threads; ++thread) {
    Fiber& fiber = fibers[thread];
    if (!fiber.stack) fiber.stack = static_cast<char*>(std::malloc(STACK));
    fiber.ended = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, start, 0);
  }
  for (int left = num_threads; left;) {
    const int warp = random_number() % (num_threads / LANES);
    for (int thread = warp * LANES; thread < (warp + 1) * LANES; ++thread) {
      if (fibers[thread].ended) continue;
      threadIdx = {unsigned(thread), 0, 0};
      swapcontext(&scheduler, &fibers[thread].context);
      left -= fibers[thread].ended;
    }
  }
}

inline void run(int grid_x, int grid_y, int threads, void (*body)(const void*), const void* arguments) {
  kernel = body, kernel_arguments = arguments, num_threads = threads;
  gridDim = {unsigned(grid_x), unsigned(grid_y), 1};
  for (int y = 0; y < grid_y; ++y)
    for (int x = 0; x < grid_x; ++x) {
      blockIdx = {unsigned(x), unsigned(y), 0};
      run_block();
    }
}

inline float half_to_float(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return float(value);
}
inline uint16_t float_to_half(float value) {
  const _Float16 half = _Float16(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32, with the fragments of the PTX manual: lane 4 g + t holds rows g and
// g + 8 of the left matrix at columns 2 t, 2 t + 1 and 8 more, and those of column g of the right one.
struct Fragments { float left[2][4], right[4]; };
inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments own;
  for (int i = 0; i < 4; ++i) {
    for (int row = 0; row < 2; ++row) own.left[row][i] = half_to_float(uint16_t(a[row + i / 2 * 2] >> i % 2 * 16));
    own.right[i] = half_to_float(uint16_t(b[i / 2] >> i % 2 * 16));
  }
  const auto slots = exchange(own);
  const int g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
  for (int lane = 0; lane < 4; ++lane) {
    const Fragments left = brought<Fragments>(slots, 4 * g + lane);
    for (int column = 0; column < 2; ++column) {
      const Fragments right = brought<Fragments>(slots, 4 * (2 * t + column) + lane);
      for (int row = 0; row < 2; ++row)
        for (int i = 0; i < 4; ++i) d[2 * row + column] += left.left[row][i] * right.right[i];
    }
  }
}

}  // namespace emulator

template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) { return a < b ? std::common_type_t<A, B>(a) : std::common_type_t<A, B>(b); }
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) { return a < b ? std::common_type_t<A, B>(b) : std::common_type_t<A, B>(a); }

inline void __syncthreads() { emulator::meet(emulator::block, emulator::num_threads); }
inline void __syncwarp() { emulator::exchange(0); }
template <typename T>
T __shfl_sync(unsigned, T value, int lane) { return emulator::brought<T>(emulator::exchange(value), lane & 31); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::brought<T>(emulator::exchange(value), int(threadIdx.x % 32) ^ mask);
}
inline uint32_t __ballot_sync(unsigned, int predicate) {
  const auto slots = emulator::exchange(predicate);
  uint32_t mask = 0;
  for (int lane = 0; lane < 32; ++lane) mask |= uint32_t(emulator::brought<int>(slots, lane) != 0) << lane;
  return mask;
}
inline uint32_t __reduce_max_sync(unsigned, uint32_t value) {
  const auto slots = emulator::exchange(value);
  for (int lane = 0; lane < 32; ++lane) value = max(value, emulator::brought<uint32_t>(slots, lane));
  return value;
}

template <typename T> T __ldg(const T* from) { return *from; }
template <typename T> T __ldcg(const T* from) { return *from; }
template <typename T> void __stcg(T* to, T value) { *to = value; }
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __ffs(uint32_t bits) { return __builtin_ffs(int(bits)); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline uint32_t __float_as_uint(float value) { uint32_t bits; std::memcpy(&bits, &value, 4); return bits; }
inline float __uint_as_float(uint32_t bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline float __fdividef(float a, float b) { return a / b; }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= uint32_t(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
