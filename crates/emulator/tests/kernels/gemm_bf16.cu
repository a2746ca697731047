// c = a · b, bf16 in, f32 sums on the tensor cores, with a pipeline of three stages that cp.async fills.
//
// Tiles:   thread block 128 × 128 (eight warps as 2 × 4), warp 64 × 32, mma.sync m16n8k16, slabs of 32 along k.
// Launch:  grid (n / 128, m / 128), blocks of 256 threads, 49152 bytes of dynamic shared memory.
// Demands: 128 divides m and n, 32 divides k; a and b aligned to 16 bytes.
// Planted: -DDROP_ASYNC_WAIT: slabs are read without waiting for their copies.

#include <cuda_bf16.h>

constexpr unsigned TILE_M = 128, TILE_N = 128, SLAB = 32;
constexpr unsigned STAGES = 3;
constexpr unsigned THREADS = 256;
constexpr unsigned WARPS_N = 4;
constexpr unsigned WARP_M = 64, WARP_N = 32;
constexpr unsigned CHUNK = 8;   // bf16 in the 16 bytes that cp.async and a row of ldmatrix move

constexpr unsigned A_BYTES = TILE_M * SLAB * 2, B_BYTES = SLAB * TILE_N * 2, STAGE_BYTES = A_BYTES + B_BYTES;
static_assert(STAGES * STAGE_BYTES == 49152, "the launch gives as much");
static_assert(TILE_M / WARP_M * WARPS_N * 32 == THREADS && TILE_N / WARP_N == WARPS_N, "warps cover the tile");

// Where a chunk lies within its slab, in bytes. Eight rows of one column of chunks, which ldmatrix reads at once, lie in
// all 32 banks: two rows of a share 128 bytes, so pairs of rows are told apart; a row of b spans 256 bytes.
__device__ __forceinline__ unsigned a_at(unsigned row, unsigned chunk)
{
    return (row * (SLAB / CHUNK) + (chunk ^ (row / 2 % 4))) * 16;
}

__device__ __forceinline__ unsigned b_at(unsigned row, unsigned chunk)
{
    return (row * (TILE_N / CHUNK) + (chunk ^ (row % 8))) * 16;
}

__device__ __forceinline__ void copy_async(unsigned to, const void* from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

extern "C" __global__ void __launch_bounds__(THREADS) gemm_bf16(
    const __nv_bfloat16* __restrict__ a,    // bf16 [m, k] row-major
    const __nv_bfloat16* __restrict__ b,    // bf16 [k, n] row-major
    float* __restrict__ c,                  // f32 [m, n] row-major, out
    unsigned m,
    unsigned n,
    unsigned k)
{
    extern __shared__ __align__(128) unsigned char stages[];
    const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(stages));

    const unsigned from_row = blockIdx.y * TILE_M, from_column = blockIdx.x * TILE_N;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned warp_row = warp / WARPS_N * WARP_M, warp_column = warp % WARPS_N * WARP_N;
    const unsigned slabs = k / SLAB;

    const auto fetch = [&](unsigned slab) {
        const unsigned stage = shared + slab % STAGES * STAGE_BYTES;
        for (unsigned i = threadIdx.x; i < A_BYTES / 16; i += THREADS) {
            const unsigned row = i / (SLAB / CHUNK), chunk = i % (SLAB / CHUNK);
            const size_t element = size_t(from_row + row) * k + slab * SLAB + chunk * CHUNK;
            copy_async(stage + a_at(row, chunk), a + element);
        }
        for (unsigned i = threadIdx.x; i < B_BYTES / 16; i += THREADS) {
            const unsigned row = i / (TILE_N / CHUNK), chunk = i % (TILE_N / CHUNK);
            const size_t element = size_t(slab * SLAB + row) * n + from_column + chunk * CHUNK;
            copy_async(stage + A_BYTES + b_at(row, chunk), b + element);
        }
    };

    float sums[WARP_M / 16][WARP_N / 8][4] = {};

    for (unsigned slab = 0; slab < STAGES - 1; ++slab) {
        if (slab < slabs) {
            fetch(slab);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    for (unsigned slab = 0; slab < slabs; ++slab) {
#ifndef DROP_ASYNC_WAIT
        // Every turn commits a group, be it empty: all but the newest one are slabs up to this one.
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
#endif
        // After this barrier all copies of the slab have arrived, and nobody reads the stage of the one before.
        __syncthreads();
        if (slab + STAGES - 1 < slabs) {
            fetch(slab + STAGES - 1);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");

        const unsigned a_slab = shared + slab % STAGES * STAGE_BYTES, b_slab = a_slab + A_BYTES;
#pragma unroll
        for (unsigned inner = 0; inner < SLAB; inner += 16) {
            // Lanes 0 to 15 point at the rows of the left half, 16 to 31 at those of the right half.
            unsigned of_a[WARP_M / 16][4], of_b[WARP_N / 8][2];
#pragma unroll
            for (unsigned i = 0; i < WARP_M / 16; ++i) {
                const unsigned row = warp_row + i * 16 + lane % 16, chunk = inner / CHUNK + lane / 16;
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(of_a[i][0]), "=r"(of_a[i][1]), "=r"(of_a[i][2]), "=r"(of_a[i][3])
                             : "r"(a_slab + a_at(row, chunk))
                             : "memory");
            }
#pragma unroll
            for (unsigned j = 0; j < WARP_N / 8; j += 2) {
                const unsigned row = inner + lane % 16, chunk = (warp_column + j * 8) / CHUNK + lane / 16;
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(of_b[j][0]), "=r"(of_b[j][1]), "=r"(of_b[j + 1][0]), "=r"(of_b[j + 1][1])
                             : "r"(b_slab + b_at(row, chunk))
                             : "memory");
            }
#pragma unroll
            for (unsigned i = 0; i < WARP_M / 16; ++i) {
#pragma unroll
                for (unsigned j = 0; j < WARP_N / 8; ++j) {
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                                 : "+f"(sums[i][j][0]), "+f"(sums[i][j][1]), "+f"(sums[i][j][2]), "+f"(sums[i][j][3])
                                 : "r"(of_a[i][0]), "r"(of_a[i][1]), "r"(of_a[i][2]), "r"(of_a[i][3]),
                                   "r"(of_b[j][0]), "r"(of_b[j][1]));
                }
            }
        }
    }

    // A lane holds two neighbours of row lane / 4, and two of the row eight below.
#pragma unroll
    for (unsigned i = 0; i < WARP_M / 16; ++i) {
#pragma unroll
        for (unsigned j = 0; j < WARP_N / 8; ++j) {
            const unsigned row = from_row + warp_row + i * 16 + lane / 4;
            const unsigned column = from_column + warp_column + j * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(&c[size_t(row) * n + column]) = make_float2(sums[i][j][0], sums[i][j][1]);
            *reinterpret_cast<float2*>(&c[size_t(row + 8) * n + column]) = make_float2(sums[i][j][2], sums[i][j][3]);
        }
    }
}
