// The Cholesky factorization from the last column to the first, of a batch of matrices, in place.
//
//   H → V,  H = V·Vᵀ, V upper triangular;   and U_kk = V_kk⁻¹ of every block of 128 columns
//
//        ┌───────────┐   factor  H₂₂ = V₂₂·V₂₂ᵀ              recursion, down to one block: factor_block_f32
//   H =  │ H₁₁   H₁₂ │   solve   V₁₂·V₂₂ᵀ = H₁₂              recursion, down to one block: V_b = H_b·U_kkᵀ
//        │       H₂₂ │   update  H₁₁ ← H₁₁ − V₁₂·V₁₂ᵀ
//        └───────────┘   factor  H₁₁ = V₁₁·V₁₁ᵀ
//
// Few blocks are not split in halves but factored one after the other, each with its V_b and H₁₁ ← H₁₁ − V_b·V_bᵀ.
//
// Dimensions: H, V f32 [batch, n, n], of which the upper triangle is read and written; U_kk f32 [batch, n / 128 up, 128,
//             128]. Any n, any batch.
// Launch:     factor_update_f32, factor_solve_f32 as product.cuh says; factor_block_f32 (batch) × FACTOR_THREADS with
//             FACTOR_SHARED; thin products (tiles of the region, 1, batch) × FACTOR_THREADS: factor_divide_f32 in tiles of
//             FACTOR_DIVIDE_ROWS × 128 with FACTOR_DIVIDE_SHARED, factor_subtract_f32 and factor_solve_thin_f32 in
//             square tiles of FACTOR_SUBTRACT_TILE with FACTOR_SUBTRACT_SHARED; factor_save_f32, factor_restore_f32
//             (squares of SQUARE of the upper triangle, 1, batch) × FLAT_THREADS.
// Requires:   for products rows that start at multiples of 16 bytes, or the entry `…_any`; other kernels take every stride.
// Oracle:     reference::factor
// Tolerance:  |V·Vᵀ − H| ≤ testkit::tolerance::split_factor_residual · √(h_ii·h_jj), whatever the condition of H
//
// Operations: n³ / 3, nearly all in products of half of what is left. Bytes: products read their operands once a tile.
// What the products wait for is a chain of blocks: 15 µs each (factor_block.cuh), then one round of thin tiles, 3 to 7.
// Model of an A100, every launch with its waves and 3 µs of its own, tensor cores at 55 to 75 % of 156 TFLOP/s: n = 1024
// in 0.2 ms, 4096 in 1.8 (12 TFLOP/s), 12288 in 22 (28), 49152 in 1060 (37 of the 52 that three products leave). Not
// measured.

#include "factor_block.cuh"

// H₁₁ ← H₁₁ − V₁₂·V₁₂ᵀ: both operands are rows of V.
PRODUCT(factor_update_f32, Along::Depth, Along::Depth, Region::Upper)

// H₁ ← H₁ − X₂·V₁₂ᵀ in a solve.
PRODUCT(factor_solve_f32, Along::Depth, Along::Depth, Region::Full)

extern "C" __global__ void __launch_bounds__(FLAT_THREADS) factor_update_sum_f32(const Product product)
{
    product_sum<Region::Upper>(product);
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS) factor_solve_sum_f32(const Product product)
{
    product_sum<Region::Full>(product);
}

// V_b = H_b·U_kkᵀ in place, at the end of a solve: what every step of the recursion waits for, in tiles of few rows.
THIN_PRODUCT(factor_divide_f32, SUB, PANEL, Region::Full, true)
static_assert((SUB + PANEL) * LINE * sizeof(float) == FACTOR_DIVIDE_SHARED, "the launch gives as much");

// H₁₁ ← H₁₁ − V_b·V_bᵀ for a single block b, in small tiles.
THIN_PRODUCT(factor_subtract_f32, 2 * SUB, 2 * SUB, Region::Upper, false)

// H₁ ← H₁ − X_b·V_bᵀ for a single block b in a solve, likewise.
THIN_PRODUCT(factor_solve_thin_f32, 2 * SUB, 2 * SUB, Region::Full, false)
static_assert(4 * SUB * LINE * sizeof(float) == FACTOR_SUBTRACT_SHARED, "the launch gives as much");
static_assert(2 * SUB == FACTOR_SUBTRACT_TILE && SUB == FACTOR_DIVIDE_ROWS, "the launch covers the result");

// H_kk → V_kk and U_kk of one block of every matrix.
extern "C" __global__ void __launch_bounds__(FACTOR_THREADS) factor_block_f32(
    float* hessians,                       // f32 [batch, size, size] row-major, a row every `stride`, in/out
    float* inverses,                       // f32 [batch, 128, 128], a matrix every `inverse_stride`, out
    int* failed,                           // i32 [batch], in/out: 1 + the first column, from the right, whose pivot is not
                                           // a positive number; matrices with an entry that is not zero are left alone
    float* pivots,                         // f32 [batch], out: that pivot, where there is one
    unsigned long long stride,
    unsigned long long batch_stride,
    unsigned long long inverse_stride,
    unsigned first,                        // column of the whole matrix with which the block begins
    unsigned size)                         // columns of the block, 1 to 128
{
    extern __shared__ __align__(128) float block[];
    __shared__ BadPivot bad;
    float* const reciprocals = block + PANEL * LINE;
    const unsigned batch = blockIdx.x;
    if (failed[batch] != 0) {
        return;
    }
    float* const own = hessians + batch * batch_stride;
    block_load(block, own, stride, size);
    if (!block_factor(block, reciprocals, size, bad)) {
        if (threadIdx.x == 0) {
            failed[batch] = static_cast<int>(first) + bad.column + 1;
            pivots[batch] = bad.value;
        }
        return;
    }
    block_store(block, own, stride, size);
    // Squares that the factorization did not come to are those of an identity.
    const unsigned done = divide_up(size, SUB) * SUB;
    for (unsigned column = done + threadIdx.x; column < PANEL; column += FACTOR_THREADS) {
        reciprocals[column] = 1.0f;
    }
    __syncthreads();
    block_invert(block, reciprocals, size);
    block_store_whole(block, inverses + batch * inverse_stride, size);
}

namespace {

// One square of 32: what lies on one side of the diagonal goes to the other. Rows are read and written whole; the
// square is turned in shared memory, whose rows of 33 numbers meet no bank twice either way.
template <bool SAVE>
__device__ __forceinline__ void mirror(float* matrix, unsigned long long stride, unsigned n)
{
    __shared__ float square[SQUARE][SQUARE + 1];
    const uint2 tile = tile_upper(blockIdx.x);
    const unsigned from_row = (SAVE ? tile.x : tile.y) * SQUARE, from_column = (SAVE ? tile.y : tile.x) * SQUARE;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Strictly above the diagonal, or strictly below it.
    const auto wanted = [n](unsigned row, unsigned column, bool upper) {
        return row < n && column < n && (upper ? row < column : row > column);
    };
#pragma unroll
    for (unsigned i = warp; i < SQUARE; i += FLAT_THREADS / 32) {
        const unsigned row = from_row + i, column = from_column + lane;
        if (wanted(row, column, SAVE)) {
            square[i][lane] = matrix[row * stride + column];
        }
    }
    __syncthreads();
#pragma unroll
    for (unsigned i = warp; i < SQUARE; i += FLAT_THREADS / 32) {
        const unsigned row = from_column + i, column = from_row + lane;
        if (wanted(row, column, !SAVE)) {
            matrix[row * stride + column] = square[lane][i];
        }
    }
}

}  // namespace

// Keeps H where V has nothing: below the diagonal, which itself goes into a vector.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS) factor_save_f32(
    float* hessians,                       // f32 [batch, n, n] row-major, a row every `stride`, in/out
    float* diagonals,                      // f32 [batch, n], out
    unsigned long long stride,
    unsigned long long batch_stride,
    unsigned n)
{
    float* const own = hessians + blockIdx.z * batch_stride;
    mirror<true>(own, stride, n);
    const uint2 tile = tile_upper(blockIdx.x);
    const unsigned column = tile.x * SQUARE + threadIdx.x;
    if (tile.x == tile.y && threadIdx.x < SQUARE && column < n) {
        diagonals[static_cast<unsigned long long>(blockIdx.z) * n + column] = own[column * (stride + 1)];
    }
}

// Puts H back, with `added` on the diagonal, for every matrix that failed at a pivot.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS) factor_restore_f32(
    float* hessians,                       // f32 [batch, n, n] row-major, a row every `stride`, in/out
    const float* __restrict__ diagonals,   // f32 [batch, n]
    const float* __restrict__ added,       // f32 [batch]: what each diagonal gains
    const int* __restrict__ failed,        // i32 [batch]: matrices to restore are those with a positive entry
    unsigned long long stride,
    unsigned long long batch_stride,
    unsigned n)
{
    if (failed[blockIdx.z] <= 0) {
        return;
    }
    float* const own = hessians + blockIdx.z * batch_stride;
    mirror<false>(own, stride, n);
    const uint2 tile = tile_upper(blockIdx.x);
    const unsigned column = tile.x * SQUARE + threadIdx.x;
    if (tile.x == tile.y && threadIdx.x < SQUARE && column < n) {
        const float kept = diagonals[static_cast<unsigned long long>(blockIdx.z) * n + column];
        own[column * (stride + 1)] = kept + added[blockIdx.z];
    }
}
