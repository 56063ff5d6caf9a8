// Products of at most 16 rows with NF4 weights, and with the A of their adapters: see nf4_gemv.py.
//
// Tensor cores multiply 16 outputs by 16 elements of K by 8 rows at a time (mma.m16n8k16). Which elements of K meet in
// which lane is free as long as weights and rows agree, so a lane takes what lies together: of each block of 64 weights
// that share a scale, lane t of four has the 16 that begin at 16 t, in 8 bytes. They go from memory to registers to
// tensor cores, past shared memory. A byte's two weights are looked up at once in a table of all 256 bytes, of which
// each lane has a copy in its own bank of shared memory; the look-ups then never wait for each other.
//
// A thread block computes OUTPUTS outputs over all of K, of which its warps have every WARPS-th part of UNROLL blocks.
// Their sums are added in a fixed order, the same for any number of rows.
//
// Macros: TILES of 16 outputs, WARPS of a thread block, UNROLL blocks a warp asks for at once, HALVES of 8 rows,
// NESTED (whether scales are quantised), RESIDENT thread blocks for each multiprocessor.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int OUTPUTS = 16 * TILES, ROWS = 8 * HALVES, THREADS = 32 * WARPS;

// Weights [count, K], as bitsandbytes stores them; see NF4Weight in nf4.py.
struct Weight {
    const u8* packed;
    const void* absmax;
    const float* absmax_scale;
    const float* absmax_offset;
    int count;
};

struct Shared {
    union {
        u32 table[256][32];
        float sums[WARPS][ROWS][OUTPUTS];
    };
    float absmax_code[256];
    float factors[ROWS];
};

// Sums of 16 outputs and 8 rows: a lane has rows 2 t and 2 t + 1 of outputs g and g + 8.
struct Tile {
    float of[4] = {0.f, 0.f, 0.f, 0.f};

    // 16 elements of K: pairs of 16-bit elements of outputs g and g + 8 and of row g.
    __device__ void add(u32 upper0, u32 lower0, u32 upper1, u32 lower1, u32 row0, u32 row1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(of[0]), "+f"(of[1]), "+f"(of[2]), "+f"(of[3])
            : "r"(upper0), "r"(lower0), "r"(upper1), "r"(lower1), "r"(row0), "r"(row1));
    }

    // 64 elements of K.
    __device__ void add_block(const u32 (&upper)[8], const u32 (&lower)[8], const u32 (&row)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) add(upper[i], lower[i], upper[i + 1], lower[i + 1], row[i], row[i + 1]);
    }
};

// Each weight is read once: not to displace the rows from the first-level cache.
__device__ uint2 load_once(const u8* at) {
    uint2 value;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(at));
    return value;
}

// The lane's 16 elements of a block: 16-bit pairs.
__device__ void load_pairs(u32 (&pairs)[8], const u16* at, bool there) {
    const uint4 none = make_uint4(0, 0, 0, 0);
    const uint4 first = there ? ((const uint4*)at)[0] : none, second = there ? ((const uint4*)at)[1] : none;
    pairs[0] = first.x, pairs[1] = first.y, pairs[2] = first.z, pairs[3] = first.w;
    pairs[4] = second.x, pairs[5] = second.y, pairs[6] = second.z, pairs[7] = second.w;
}

// The pairs of eight bytes; `table` is the lane's own.
__device__ void decode(u32 (&pairs)[8], uint2 bytes, const u32 (&table)[256][32], int lane) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const u32 word = i < 4 ? bytes.x : bytes.y, place = i & 3;
        // The byte times 128, the distance of its entries in memory.
        const u32 at = (place ? word >> (8 * place - 7) : word << 7) & 0x7f80;
        pairs[i] = *(const u32*)((const char*)table + (at | 4 * lane));
    }
}

// What RMSNorm multiplies each row with, which is left to the product that follows it.
__device__ void read_norm(Shared& shared, const float* squares, int rows, int columns, int parts, float eps) {
    const int lane = threadIdx.x % 32;
    for (int n = threadIdx.x / 32; n < rows; n += WARPS) {
        float sum = 0.f;
        for (int part = lane; squares && part < parts; part += 32) sum += squares[n * parts + part];
        for (int distance = 16; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        if (lane == 0) shared.factors[n] = squares ? rsqrtf(sum / columns + eps) : 1.f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) product(
    const u16* __restrict__ x,  // bfloat16 [rows, K]
    const float* __restrict__ squares,  // [rows, parts]: parts of the sum of squares of RMSNorm's input, or null
    const u8* packed0, const void* absmax0, const float* scale0, const float* offset0, int count0,
    const u8* packed1, const void* absmax1, const float* scale1, const float* offset1, int count1,
    const u8* packed2, const void* absmax2, const float* scale2, const float* offset2, int count2,
    const float* __restrict__ absmax_code,  // [256]
    const u32* __restrict__ pairs,  // bfloat16 [256, 2]: the two weights of each byte
    const u16* __restrict__ a,  // bfloat16 [adapters, K]
    float* __restrict__ out,  // [rows, count0 + count1 + count2 + adapters]
    int rows, int columns, int adapters, int parts, float eps)
{
    __shared__ Shared shared;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int blocks = columns / 64, outputs = count0 + count1 + count2;
    const u16* row = x + (u64)g * columns + 16 * t;
    Tile sums[TILES][HALVES];

    // Adapters come first: their 16-bit rows take longer.
    const int adapter_tiles = (adapters + OUTPUTS - 1) / OUTPUTS;
    int tile = blockIdx.x, start, count;  // the first output, and how many there are
    if (tile < adapter_tiles) {
        start = outputs + tile * OUTPUTS, count = outputs + adapters - start;
        read_norm(shared, squares, rows, columns, parts, eps);
#pragma unroll 2
        for (int block = warp; block < blocks; block += WARPS) {
            u32 rows_of[HALVES][8], upper[8], lower[8];
#pragma unroll
            for (int h = 0; h < HALVES; h++) load_pairs(rows_of[h], row + (u64)8 * h * columns + block * 64, 8 * h + g < rows);
#pragma unroll
            for (int m = 0; m < TILES; m++) {
                const int output = 16 * m + g;
                const u16* at = a + (u64)(tile * OUTPUTS + output) * columns + block * 64 + 16 * t;
                load_pairs(upper, at, output < count);
                load_pairs(lower, at + (u64)8 * columns, output + 8 < count);
#pragma unroll
                for (int h = 0; h < HALVES; h++) sums[m][h].add_block(upper, lower, rows_of[h]);
            }
        }
    } else {
        tile -= adapter_tiles;
        Weight weight = {packed0, absmax0, scale0, offset0, count0};
        start = 0;
        const int tiles0 = (count0 + OUTPUTS - 1) / OUTPUTS, tiles1 = (count1 + OUTPUTS - 1) / OUTPUTS;
        if (tile >= tiles0 + tiles1) {
            tile -= tiles0 + tiles1, start = count0 + count1, weight = {packed2, absmax2, scale2, offset2, count2};
        } else if (tile >= tiles0) {
            tile -= tiles0, start = count0, weight = {packed1, absmax1, scale1, offset1, count1};
        }
        const int first = tile * OUTPUTS;
        start += first, count = weight.count - first;

        // Outputs g and g + 8 of each tile; beyond the end the last one again, which is not stored.
        u32 bytes_at[TILES][2], scales_at[TILES][2];
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
            for (int part = 0; part < 2; part++) {
                const int output = first + min(16 * m + 8 * part + g, count - 1);
                bytes_at[m][part] = (u32)output * (columns / 2) + 8 * t, scales_at[m][part] = (u32)output * blocks + t % UNROLL;
            }
        const float offset = NESTED ? *weight.absmax_offset : 0.f;

        // What was asked for and has not arrived: bytes, and the scales of block t for all four lanes.
        uint2 bytes[TILES][2][UNROLL];
        float scale[TILES][2];
        u8 code[TILES][2];
        auto ask = [&](int block) {
#pragma unroll
            for (int m = 0; m < TILES; m++)
#pragma unroll
                for (int part = 0; part < 2; part++) {
#pragma unroll
                    for (int u = 0; u < UNROLL; u++)
                        bytes[m][part][u] = load_once(weight.packed + (bytes_at[m][part] + 32 * (block + u)));
                    const u32 at = scales_at[m][part] + block;
                    if (NESTED) code[m][part] = ((const u8*)weight.absmax)[at], scale[m][part] = weight.absmax_scale[at / 256];
                    else scale[m][part] = ((const float*)weight.absmax)[at];
                }
        };
        int block = warp * UNROLL;
        if (block < blocks) ask(block);
        read_norm(shared, squares, rows, columns, parts, eps);
        for (int i = thread; NESTED && i < 256; i += THREADS) shared.absmax_code[i] = absmax_code[i];
        for (int i = thread; i < 256 * 8; i += THREADS) {
            const u32 pair = pairs[i / 8];
            ((uint4*)shared.table)[i] = make_uint4(pair, pair, pair, pair);
        }
        __syncthreads();

        while (block < blocks) {
            uint2 now[TILES][2][UNROLL];
            float now_scale[TILES][2];
#pragma unroll
            for (int m = 0; m < TILES; m++)
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    now_scale[m][part] = NESTED ? shared.absmax_code[code[m][part]] * scale[m][part] + offset : scale[m][part];
#pragma unroll
                    for (int u = 0; u < UNROLL; u++) now[m][part][u] = bytes[m][part][u];
                }
            const int next = block + WARPS * UNROLL;
            if (next < blocks) ask(next);
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                u32 rows_of[HALVES][8], upper[8], lower[8];
#pragma unroll
                for (int h = 0; h < HALVES; h++)
                    load_pairs(rows_of[h], row + (u64)8 * h * columns + (block + u) * 64, 8 * h + g < rows);
#pragma unroll
                for (int m = 0; m < TILES; m++) {
                    decode(upper, now[m][0][u], shared.table, lane);
                    decode(lower, now[m][1][u], shared.table, lane);
                    // A block's scale multiplies its sum of 64 products instead of each weight.
                    const float upper_scale = __shfl_sync(~0u, now_scale[m][0], 4 * g + u);
                    const float lower_scale = __shfl_sync(~0u, now_scale[m][1], 4 * g + u);
#pragma unroll
                    for (int h = 0; h < HALVES; h++) {
                        Tile product;
                        product.add_block(upper, lower, rows_of[h]);
#pragma unroll
                        for (int i = 0; i < 4; i++) sums[m][h].of[i] += product.of[i] * (i < 2 ? upper_scale : lower_scale);
                    }
                }
            }
            block = next;
        }
    }

    __syncthreads();  // the table is no longer read: its memory takes the warps' sums
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                shared.sums[warp][8 * h + 2 * t + i % 2][16 * m + g + i / 2 * 8] = sums[m][h].of[i];
    __syncthreads();
    for (int i = thread; i < OUTPUTS * rows; i += THREADS) {
        const int n = i / OUTPUTS, output = i % OUTPUTS;
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += shared.sums[w][n][output];
        if (output < count) out[(u64)n * (outputs + adapters) + start + output] = sum * shared.factors[n];
    }
}
