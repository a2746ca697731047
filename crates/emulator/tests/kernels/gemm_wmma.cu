// c = a · b on tensor cores by nvcuda::wmma: f16 in, f32 sums. Each warp holds 2 × 2 products m16n16k16.
//
// Launch:  grid (n / 64, m / 64), blocks of 128 threads; m and n are multiples of 64, k of 16.
// Order:   products of 16 columns of a are summed at once, then added up from k = 0 on.
// Planted: -DDROP_SYNCTHREADS: slabs are overwritten while other warps may still read them.

#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda;

constexpr unsigned TILE = 64;
constexpr unsigned SLAB = 16;           // of k
constexpr unsigned A_ROW = SLAB + 8;    // elements from row to row: 16 more bytes spread the rows over banks
constexpr unsigned B_ROW = TILE + 8;
constexpr unsigned THREADS = 128;

extern "C" __global__ void __launch_bounds__(THREADS) gemm_wmma(
    const __half* __restrict__ a,   // f16 [m, k] row-major
    const __half* __restrict__ b,   // f16 [k, n] row-major
    float* __restrict__ c,          // f32 [m, n] row-major, out
    unsigned n,
    unsigned k)
{
    __shared__ __align__(32) __half a_slab[TILE * A_ROW];
    __shared__ __align__(32) __half b_slab[SLAB * B_ROW];

    const unsigned from_row = blockIdx.y * TILE, from_column = blockIdx.x * TILE;
    const unsigned warp = threadIdx.x / 32;
    const unsigned warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;

    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[2][2];
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
#pragma unroll
        for (unsigned j = 0; j < 2; ++j) wmma::fill_fragment(sums[i][j], 0.0f);
    }

    for (unsigned from = 0; from < k; from += SLAB) {
        for (unsigned cell = threadIdx.x; cell < TILE * SLAB; cell += THREADS) {
            const unsigned row = cell / SLAB, inner = cell % SLAB;
            a_slab[row * A_ROW + inner] = a[(from_row + row) * k + from + inner];
        }
        for (unsigned cell = threadIdx.x; cell < SLAB * TILE; cell += THREADS) {
            const unsigned inner = cell / TILE, column = cell % TILE;
            b_slab[inner * B_ROW + column] = b[(from + inner) * n + from_column + column];
        }
        __syncthreads();

        wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> of_a[2];
        wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::row_major> of_b[2];
#pragma unroll
        for (unsigned i = 0; i < 2; ++i) {
            wmma::load_matrix_sync(of_a[i], a_slab + (warp_row + i * 16) * A_ROW, A_ROW);
            wmma::load_matrix_sync(of_b[i], b_slab + warp_column + i * 16, B_ROW);
        }
#pragma unroll
        for (unsigned i = 0; i < 2; ++i) {
#pragma unroll
            for (unsigned j = 0; j < 2; ++j) wmma::mma_sync(sums[i][j], of_a[i], of_b[j], sums[i][j]);
        }
#ifndef DROP_SYNCTHREADS
        __syncthreads();
#endif
    }

#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
#pragma unroll
        for (unsigned j = 0; j < 2; ++j) {
            const unsigned row = from_row + warp_row + i * 16, column = from_column + warp_column + j * 16;
            wmma::store_matrix_sync(c + size_t(row) * n + column, sums[i][j], n, wmma::mem_row_major);
        }
    }
}
