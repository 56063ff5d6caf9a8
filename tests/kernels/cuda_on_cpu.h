// As much of CUDA as nf4_gemv.cu needs, on a CPU: every CUDA thread is a thread, thread blocks run one after the other.
#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(threads, blocks)

struct Index { unsigned x; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static int min(int a, int b) { return a < b ? a : b; }
static float rsqrtf(float value) { return 1.f / std::sqrt(value); }

static thread_local Index threadIdx, blockIdx;
static Index gridDim;
static std::barrier<>* block_barrier;
static std::vector<std::barrier<>*> warp_barriers;
static unsigned exchange[32][32][6];  // warp, lane, registers

static void __syncthreads() { block_barrier->arrive_and_wait(); }
static void sync_warp() { warp_barriers[threadIdx.x / 32]->arrive_and_wait(); }

static float __shfl_sync(unsigned, float value, int source) {
    auto& mine = exchange[threadIdx.x / 32];
    std::memcpy(mine[threadIdx.x % 32], &value, 4);
    sync_warp();
    float result;
    std::memcpy(&result, mine[source], 4);
    sync_warp();
    return result;
}
static float __shfl_xor_sync(unsigned mask, float value, int distance) {
    return __shfl_sync(mask, value, threadIdx.x % 32 ^ distance);
}

// mma.m16n8k16 with the fragments of PTX ISA 9.7.14.5.8; sums in float32, one after the other.
static void multiply_tiles(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    auto& lanes = exchange[threadIdx.x / 32];
    const unsigned lane = threadIdx.x % 32, mine[6] = {a0, a1, a2, a3, b0, b1};
    std::memcpy(lanes[lane], mine, sizeof mine);
    sync_warp();
    auto element = [&](unsigned from, int reg, int half) {
        const unsigned bits = (half ? lanes[from][reg] & 0xffff0000u : lanes[from][reg] << 16);
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    };
    for (int i = 0; i < 4; i++) {
        const unsigned row = lane / 4, column = 2 * (lane % 4) + i % 2;
        for (int k = 0; k < 16; k++) {
            const int quad = k % 8 / 2, late = k / 8;
            c[i] += element(4 * row + quad, 2 * late + i / 2, k % 2) * element(4 * column + quad, 4 + late, k % 2);
        }
    }
    sync_warp();
}

template <typename Kernel> static void run(Kernel kernel, int blocks, int threads) {
    gridDim = {(unsigned)blocks};
    for (int block = 0; block < blocks; block++) {
        std::barrier<> all(threads);
        block_barrier = &all;
        warp_barriers.clear();
        for (int warp = 0; warp < threads / 32; warp++) warp_barriers.push_back(new std::barrier<>(32));
        std::vector<std::thread> running;
        for (int thread = 0; thread < threads; thread++)
            running.emplace_back([=] { threadIdx = {(unsigned)thread}, blockIdx = {(unsigned)block}, kernel(); });
        for (auto& thread : running) thread.join();
        for (auto* barrier : warp_barriers) delete barrier;
    }
}
