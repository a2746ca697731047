// c = a · b in f32, by fused multiply-adds; each thread holds 4 × 4 sums of a tile of 64 × 64.
//
// Launch:  grid (ceil(n / 64), ceil(m / 64)), blocks of 16 × 16 threads; any m, n, k.
// Order:   every sum runs over k from 0 on with one rounding per step, so that fma in a loop gives the same bits.
// Planted: -DDROP_SYNCTHREADS: slabs are overwritten while other warps may still read them.

constexpr unsigned TILE = 64;
constexpr unsigned SLAB = 16;
constexpr unsigned SIDE = 16;           // threads along each side of a block
constexpr unsigned EACH = TILE / SIDE;  // sums of a thread along each side

extern "C" __global__ void __launch_bounds__(SIDE * SIDE) gemm_ffma(
    const float* __restrict__ a,    // f32 [m, k] row-major
    const float* __restrict__ b,    // f32 [k, n] row-major
    float* __restrict__ c,          // f32 [m, n] row-major, out
    unsigned m,
    unsigned n,
    unsigned k)
{
    __shared__ float a_slab[SLAB][TILE + 1];    // by k; the extra column spreads the stores over banks
    __shared__ float b_slab[SLAB][TILE];

    const unsigned from_row = blockIdx.y * TILE, from_column = blockIdx.x * TILE;
    const unsigned thread = threadIdx.y * SIDE + threadIdx.x;
    float sums[EACH][EACH] = {};

    for (unsigned from = 0; from < k; from += SLAB) {
        for (unsigned cell = thread; cell < SLAB * TILE; cell += SIDE * SIDE) {
            const unsigned row = from_row + cell / SLAB, inner = from + cell % SLAB;
            a_slab[cell % SLAB][cell / SLAB] = row < m && inner < k ? a[row * k + inner] : 0.0f;
        }
        for (unsigned cell = thread; cell < SLAB * TILE; cell += SIDE * SIDE) {
            const unsigned inner = from + cell / TILE, column = from_column + cell % TILE;
            b_slab[cell / TILE][cell % TILE] = inner < k && column < n ? b[inner * n + column] : 0.0f;
        }
        __syncthreads();

#pragma unroll
        for (unsigned inner = 0; inner < SLAB; ++inner) {
            float of_a[EACH], of_b[EACH];
#pragma unroll
            for (unsigned i = 0; i < EACH; ++i) {
                of_a[i] = a_slab[inner][threadIdx.y + i * SIDE];
                of_b[i] = b_slab[inner][threadIdx.x + i * SIDE];
            }
#pragma unroll
            for (unsigned i = 0; i < EACH; ++i) {
#pragma unroll
                for (unsigned j = 0; j < EACH; ++j) {
                    sums[i][j] = fmaf(of_a[i], of_b[j], sums[i][j]);
                }
            }
        }
#ifndef DROP_SYNCTHREADS
        __syncthreads();
#endif
    }

#pragma unroll
    for (unsigned i = 0; i < EACH; ++i) {
#pragma unroll
        for (unsigned j = 0; j < EACH; ++j) {
            const unsigned row = from_row + threadIdx.y + i * SIDE, column = from_column + threadIdx.x + j * SIDE;
            if (row < m && column < n) {
                c[row * n + column] = sums[i][j];
            }
        }
    }
}
