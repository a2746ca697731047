// The inverse of the triangular factors of a batch, in place.
//
//   V → U = V⁻¹,  H⁻¹ = Uᵀ·U
//
//   [A B; 0 C]⁻¹ = [A⁻¹  −A⁻¹·B·C⁻¹; 0  C⁻¹]      A and C by recursion, down to blocks of 128, whose inverses are given;
//                                                 B by two triangular products in place, which split in halves likewise:
//   [P Q; 0 R]·[B₁; B₂]:   B₁ ← P·B₁,  B₁ ← B₁ + Q·B₂,  B₂ ← R·B₂
//   [B₁ B₂]·[P Q; 0 R]:    B₂ ← B₂·R,  B₂ ← B₂ + B₁·Q,  B₁ ← B₁·P
//
// Dimensions: V, U f32 [batch, n, n], upper triangles; U_kk f32 [batch, n / 128 up, 128, 128]. Any n, any batch.
// Launch:     factor_multiply_f32 as product.cuh says; factor_block_invert_f32, factor_block_place_f32 (blocks, 1, batch) ×
//             FACTOR_THREADS, the former with FACTOR_SHARED.
// Requires:   for products rows that start at multiples of 16 bytes, or the entry `…_any`; other kernels take every stride.
// Oracle:     reference::invert_upper
// Tolerance:  |U·V − I| by testkit::tolerance::split_inverse_residual times |U|·|V|·|U|·|V|
//
// Operations: n³ / 3, in products of a half by halves of a half. Nothing below the diagonal is read or written: a
// triangular product ends with U_kk, which has its zeros.

#include "factor_block.cuh"

// B ← B + α·Q·B₂ and the like; and, in place, α·U_kk·B and α·B·U_kk, where one tile spans the depth, so that a thread
// block has read all that it overwrites.
PRODUCT(factor_multiply_f32, Along::Depth, Along::Tile, Region::Full)

extern "C" __global__ void __launch_bounds__(FLAT_THREADS) factor_multiply_sum_f32(const Product product)
{
    product_sum<Region::Full>(product);
}

// U_kk = V_kk⁻¹ of all blocks on the diagonal.
extern "C" __global__ void __launch_bounds__(FACTOR_THREADS) factor_block_invert_f32(
    const float* __restrict__ factors,     // f32 [batch, n, n] row-major, a row every `stride`
    float* inverses,                       // f32 [batch, blocks, 128, 128], out
    const int* __restrict__ failed,        // i32 [batch]: matrices to leave alone are those with a non-zero entry
    unsigned long long stride,
    unsigned long long batch_stride,
    unsigned n)
{
    extern __shared__ __align__(128) float block[];
    float* const reciprocals = block + PANEL * LINE;
    const unsigned batch = blockIdx.z, first = blockIdx.x * PANEL, size = min(n - first, PANEL);
    if (failed[batch] != 0) {
        return;
    }
    block_load(block, factors + batch * batch_stride + first * (stride + 1), stride, size);
    if (threadIdx.x < PANEL) {
        reciprocals[threadIdx.x] = 1.0f / block[threadIdx.x * (LINE + 1)];
    }
    __syncthreads();
    block_invert(block, reciprocals, size);
    const unsigned long long number = static_cast<unsigned long long>(batch) * gridDim.x + blockIdx.x;
    block_store_whole(block, inverses + number * PANEL * PANEL, size);
}

// Puts U_kk in the place of V_kk.
extern "C" __global__ void __launch_bounds__(FACTOR_THREADS) factor_block_place_f32(
    float* factors,                        // f32 [batch, n, n] row-major, a row every `stride`, in/out
    const float* __restrict__ inverses,    // f32 [batch, blocks, 128, 128]
    const int* __restrict__ failed,        // i32 [batch]: matrices to leave alone are those with a non-zero entry
    unsigned long long stride,
    unsigned long long batch_stride,
    unsigned n)
{
    const unsigned batch = blockIdx.z, first = blockIdx.x * PANEL, size = min(n - first, PANEL);
    if (failed[batch] != 0) {
        return;
    }
    const float* const from = inverses + (static_cast<unsigned long long>(batch) * gridDim.x + blockIdx.x) * PANEL * PANEL;
    float* const to = factors + batch * batch_stride + first * (stride + 1);
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (unsigned row = warp; row < size; row += WARPS) {
#pragma unroll
        for (unsigned square = 0; square < SQUARES; ++square) {
            const unsigned column = square * SUB + lane;
            if (row <= column && column < size) {
                to[row * stride + column] = from[row * PANEL + column];
            }
        }
    }
}
