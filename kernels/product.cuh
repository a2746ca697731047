// The f32 matrix product that factor, inverse, panel updates and the Hessian of f32 inputs are made of, at the accuracy of
// f32 on tensor cores that multiply tf32.
//
//   C ← β · C + α · A · B                                  A [rows, depth], B [depth, columns], C [rows, columns]
//
// Each number is split into two of tf32, x = hi + lo + r with |lo| ≤ 2⁻¹¹ |x| and |r| ≤ 2⁻²² |x|, and
// A·B ≈ hi·hi + hi·lo + lo·hi. What is left out, lo·lo and what r multiplies, is at most 3 · 2⁻²² of |a|·|b|: a product
// of two numbers is off by no more than 12 roundings of f32 would make it. Three products of tf32 run at a third of the
// tensor cores' tf32 rate: 52 TFLOP/s of an A100 where fma gives 19.5. Numbers above 3.401e38 round to infinity, and their
// products to what is not a number; where lo becomes subnormal, the bound is no longer a share of the number.
//
// Tiles:     thread block 128 × 128 (eight warps as 2 × 4), warp 64 × 32, mma m16n8k8, slabs of 16 along the depth.
// Pipeline:  four stages filled by cp.async; stage = A slab, then B slab, 8.5 KiB each.
// Slabs:     an operand that is contiguous along the depth lies as [tile][depth] and is read by ldmatrix; one that is
//            contiguous across it as [depth][tile], read number by number. The first is swizzled, the second padded, so
//            that neither copying nor reading meets a bank conflict.
// Order:     every sum runs along the depth, so that on one architecture the bits depend on shapes only; what a tensor core
//            does within one mma differs between them.
#pragma once

#include "common.cuh"

// Where an operand lies contiguous.
enum class Along { Depth, Tile };

// Which part of C is computed.
enum class Region { Full, Upper };

// One operand, or the result: element (i, j) of matrix `batch` is pointer[batch · batch_stride + i · stride + j], where
// i counts along the depth if the operand is contiguous across it.
struct ProductOperand {
    float* pointer;
    unsigned long long stride;
    unsigned long long batch_stride;
};

// All of it f32, row-major.
struct Product {
    ProductOperand a;   // [rows, depth], or [depth, rows] where contiguous along the tile
    ProductOperand b;   // [columns, depth], or [depth, columns] where contiguous along the tile
    ProductOperand c;   // [rows, columns], in/out
    float* partial;     // f32 [splits, batch, rows, columns up to a multiple of four], out: sums of the splits, if several
    const int* failed;  // i32 [batch]: matrices to leave alone are those with a non-zero entry; may be null
    unsigned rows;
    unsigned columns;
    unsigned depth;
    unsigned splits;    // parts of the depth that are summed by different thread blocks
    float alpha;
    float beta;
};

constexpr unsigned PRODUCT_NUMBERS = TILE * PRODUCT_DEPTH;           // numbers of one operand in one stage
constexpr unsigned PADDED_TILE = TILE + 8;                           // rows of [depth][tile]
constexpr unsigned PRODUCT_SLAB = PADDED_TILE * PRODUCT_DEPTH;       // the room that they have
constexpr unsigned WARP_ROWS = 64, WARP_COLUMNS = 32;
static_assert(PRODUCT_STAGES * 2 * PRODUCT_SLAB * sizeof(float) == PRODUCT_SHARED, "the launch gives as much");
static_assert(TILE / WARP_ROWS * (TILE / WARP_COLUMNS) * 32 == PRODUCT_THREADS, "warps cover the tile");

// Where the numbers (index within the tile, depth) of a slab lie, in units of numbers; chunks of four stay together.
template <Along ALONG>
__device__ __forceinline__ unsigned slab_at(unsigned index, unsigned depth)
{
    if constexpr (ALONG == Along::Depth) {
        // Rows of 64 bytes: two of them fill all banks, so that pairs of rows take turns.
        return index * PRODUCT_DEPTH + ((depth / 4) ^ (index / 2 % 4)) * 4 + depth % 4;
    } else {
        // A warp reads eight neighbours in each of four rows, which are eight banks apart. Padding, unlike a swizzle, leaves
        // all addresses of a thread at constant distances.
        return depth * PADDED_TILE + index;
    }
}

// How many of the `step` numbers that start at `first` lie before `end`.
__device__ __forceinline__ unsigned left_of(unsigned first, unsigned end, unsigned step)
{
    return first < end ? min(end - first, step) : 0;
}

// A thread's part of the copies of one operand, slab by slab. What does not change from slab to slab is computed once. Where
// nothing is left to copy, the address may lie beyond the matrix: it is not read.
template <Along ALONG, bool ALIGNED>
struct SlabCopy {
    static constexpr bool DEPTH = ALONG == Along::Depth;
    static constexpr unsigned STEP = ALIGNED ? 4 : 1;                           // numbers of one copy
    static constexpr unsigned CHUNKS = (DEPTH ? PRODUCT_DEPTH : TILE) / STEP;   // copies of a line
    static constexpr unsigned LINES = PRODUCT_THREADS / CHUNKS;                 // lines that all threads copy at once
    static constexpr unsigned ROUNDS = PRODUCT_NUMBERS / STEP / PRODUCT_THREADS;


    const float* source;
    unsigned stride;     // 32 bits, checked before the launch, leave registers for the sums
    int left;            // along the depth: lines from this thread's first one on; across it: numbers of a copy

    static __device__ __forceinline__ unsigned line() { return threadIdx.x / CHUNKS; }
    static __device__ __forceinline__ unsigned within() { return threadIdx.x % CHUNKS * STEP; }

    // `first` is the first index of the tile, `count` how many indices there are in all.
    __device__ __forceinline__ SlabCopy(const ProductOperand& from, unsigned first, unsigned count, unsigned depth)
        : stride(static_cast<unsigned>(from.stride))
    {
        left = DEPTH ? static_cast<int>(count - first) - static_cast<int>(line()) : left_of(first + within(), count, STEP);
        source = from.pointer + blockIdx.z * from.batch_stride
            + static_cast<unsigned long long>((DEPTH ? first : depth) + line()) * stride + (DEPTH ? depth : first) + within();
    }

    // Copies the slab that starts at `depth`, and goes on to the next one.
    __device__ __forceinline__ void next(unsigned to, unsigned depth, unsigned depth_end)
    {
        const unsigned across = DEPTH ? left_of(depth + within(), depth_end, STEP) : left;
#pragma unroll
        for (unsigned i = 0; i < ROUNDS; ++i) {
            const unsigned along = i * LINES + line();
            const bool there = DEPTH ? static_cast<int>(i * LINES) < left : depth + along < depth_end;
            const unsigned bytes = there ? across * 4 : 0;
            const unsigned target = to + (DEPTH ? slab_at<ALONG>(along, within()) : slab_at<ALONG>(within(), along)) * 4;
            if constexpr (ALIGNED) {
                copy_async_16(target, source + static_cast<unsigned long long>(i * LINES) * stride, bytes);
            } else {
                copy_async_4(target, source + static_cast<unsigned long long>(i * LINES) * stride, bytes);
            }
        }
        source += DEPTH ? PRODUCT_DEPTH : static_cast<unsigned long long>(PRODUCT_DEPTH) * stride;
    }
};

// Tile `index` of a grid of tiles: groups of eight rows of tiles, column by column within a group, so that the thread
// blocks that run at one time share operands in L2.
__device__ __forceinline__ uint2 tile_full(unsigned index, unsigned tile_rows, unsigned tile_columns)
{
    constexpr unsigned GROUP = 8;
    const unsigned group = index / (GROUP * tile_columns), first = group * GROUP;
    const unsigned height = min(tile_rows - first, GROUP), within = index - group * GROUP * tile_columns;
    return make_uint2(first + within % height, within / height);
}

// Tile `index` of an upper triangle of tiles, column by column: (row ≤ column).
__device__ __forceinline__ uint2 tile_upper(unsigned index)
{
    unsigned column = static_cast<unsigned>((sqrtf(8.0f * static_cast<float>(index) + 1.0f) - 1.0f) * 0.5f);
    // The root of a number of more than 24 bits may be off by one in either direction.
    column -= column * (column + 1) / 2 > index;
    column += (column + 1) * (column + 2) / 2 <= index;
    return make_uint2(index - column * (column + 1) / 2, column);
}

__device__ __forceinline__ unsigned long long partial_stride(const Product& product)
{
    return divide_up(product.columns, 4) * 4;
}

// Grid: tiles (of the region) × splits × batch; PRODUCT_THREADS threads, PRODUCT_SHARED bytes of dynamic shared memory.
template <Along A_ALONG, Along B_ALONG, Region REGION, bool ALIGNED>
__device__ __forceinline__ void product_tile(const Product& product)
{
    extern __shared__ __align__(128) float stages[];
    const unsigned shared = shared_address(stages);
    const unsigned batch = blockIdx.z, split = blockIdx.y;
    if (product.failed != nullptr && product.failed[batch] != 0) {
        return;
    }
    const uint2 tile = REGION == Region::Upper
        ? tile_upper(blockIdx.x)
        : tile_full(blockIdx.x, divide_up(product.rows, TILE), divide_up(product.columns, TILE));
    const unsigned from_row = tile.x * TILE, from_column = tile.y * TILE;

    // This split's part of the depth, in whole slabs.
    const unsigned part = divide_up(divide_up(product.depth, PRODUCT_DEPTH), product.splits) * PRODUCT_DEPTH;
    const unsigned end = min((split + 1) * part, product.depth);
    unsigned next = min(split * part, end);
    const unsigned slabs = divide_up(end - next, PRODUCT_DEPTH);

    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned warp_row = warp / (TILE / WARP_COLUMNS) * WARP_ROWS, warp_column = warp % (TILE / WARP_COLUMNS) * WARP_COLUMNS;

    SlabCopy<A_ALONG, ALIGNED> a(product.a, from_row, product.rows, next);
    SlabCopy<B_ALONG, ALIGNED> b(product.b, from_column, product.columns, next);
    const auto fetch = [&](unsigned slab) {
        if (next < end) {
            const unsigned stage = shared + slab % PRODUCT_STAGES * 2 * PRODUCT_SLAB * 4;
            a.next(stage, next, end);
            b.next(stage + PRODUCT_SLAB * 4, next, end);
            next += PRODUCT_DEPTH;
        }
        copies_commit();
    };

    float sums[WARP_ROWS / 16][WARP_COLUMNS / 8][4] = {};

    for (unsigned slab = 0; slab < PRODUCT_STAGES - 1; ++slab) {
        fetch(slab);
    }
    for (unsigned slab = 0; slab < slabs; ++slab) {
        // Every turn commits a group, be it empty: all but the newest two are slabs up to this one.
        copies_wait<PRODUCT_STAGES - 2>();
        // After this barrier all copies of the slab have arrived, and nobody reads the stage of the one before.
        __syncthreads();
        fetch(slab + PRODUCT_STAGES - 1);

        const unsigned a_slab = slab % PRODUCT_STAGES * 2 * PRODUCT_SLAB, b_slab = a_slab + PRODUCT_SLAB;
#pragma unroll 1
        for (unsigned inner = 0; inner < PRODUCT_DEPTH; inner += 8) {
            // All of B's fragments, then A's one after the other: fewer registers than the other way round.
            unsigned b_high[WARP_COLUMNS / 8][2], b_low[WARP_COLUMNS / 8][2];
#pragma unroll
            for (unsigned j = 0; j < WARP_COLUMNS / 8; j += 2) {
                unsigned values[4];
                if constexpr (B_ALONG == Along::Depth) {
                    // Matrices: depths 0 to 3 and 4 to 7 of eight columns, then of the next eight.
                    const unsigned column = warp_column + j * 8 + lane / 16 * 8 + lane % 8, depth = inner + lane / 8 % 2 * 4;
                    load_matrices(values, shared + (b_slab + slab_at<B_ALONG>(column, depth)) * 4);
                } else {
#pragma unroll
                    for (unsigned part = 0; part < 4; ++part) {
                        const unsigned column = warp_column + j * 8 + part / 2 * 8 + lane / 4, depth = inner + part % 2 * 4 + lane % 4;
                        values[part] = load_shared(shared + (b_slab + slab_at<B_ALONG>(column, depth)) * 4);
                    }
                }
#pragma unroll
                for (unsigned part = 0; part < 4; ++part) {
                    split_tf32(values[part], b_high[j + part / 2][part % 2], b_low[j + part / 2][part % 2]);
                }
            }
#pragma unroll
            for (unsigned i = 0; i < WARP_ROWS / 16; ++i) {
                unsigned values[4], high[4], low[4];
                if constexpr (A_ALONG == Along::Depth) {
                    // Matrices: rows 0 to 7 and 8 to 15 of the left four columns, then of the right four.
                    const unsigned row = warp_row + i * 16 + lane % 16, depth = inner + lane / 16 * 4;
                    load_matrices(values, shared + (a_slab + slab_at<A_ALONG>(row, depth)) * 4);
                } else {
#pragma unroll
                    for (unsigned part = 0; part < 4; ++part) {
                        const unsigned row = warp_row + i * 16 + part % 2 * 8 + lane / 4, depth = inner + part / 2 * 4 + lane % 4;
                        values[part] = load_shared(shared + (a_slab + slab_at<A_ALONG>(row, depth)) * 4);
                    }
                }
#pragma unroll
                for (unsigned part = 0; part < 4; ++part) {
                    split_tf32(values[part], high[part], low[part]);
                }
                // Small terms first. Each kind goes over all columns before the next one, so that no product waits for the
                // one before it.
#pragma unroll
                for (unsigned j = 0; j < WARP_COLUMNS / 8; ++j) {
                    multiply_add_tf32(sums[i][j], low, b_high[j][0], b_high[j][1]);
                }
#pragma unroll
                for (unsigned j = 0; j < WARP_COLUMNS / 8; ++j) {
                    multiply_add_tf32(sums[i][j], high, b_low[j][0], b_low[j][1]);
                }
#pragma unroll
                for (unsigned j = 0; j < WARP_COLUMNS / 8; ++j) {
                    multiply_add_tf32(sums[i][j], high, b_high[j][0], b_high[j][1]);
                }
            }
        }
    }

    const bool whole = product.splits == 1;
    const unsigned long long stride = whole ? product.c.stride : partial_stride(product);
    float* const c = whole
        ? product.c.pointer + batch * product.c.batch_stride
        : product.partial + (static_cast<unsigned long long>(split) * gridDim.z + batch) * product.rows * stride;
#pragma unroll
    for (unsigned i = 0; i < WARP_ROWS / 16; ++i) {
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
            const unsigned row = from_row + warp_row + i * 16 + half * 8 + lane / 4;
            if (row >= product.rows) {
                continue;
            }
#pragma unroll
            for (unsigned j = 0; j < WARP_COLUMNS / 8; ++j) {
                const unsigned column = from_column + warp_column + j * 8 + lane % 4 * 2;
                float* const target = c + row * stride + column;
                const float* const sum = &sums[i][j][half * 2];
                const bool below = REGION == Region::Upper && row > column;
                if (ALIGNED && column + 2 <= product.columns && !below) {
                    float2 value = make_float2(sum[0], sum[1]);
                    if (whole) {
                        const float2 old = product.beta == 0.0f ? make_float2(0.0f, 0.0f) : *reinterpret_cast<const float2*>(target);
                        value.x = product.alpha * value.x + product.beta * old.x;
                        value.y = product.alpha * value.y + product.beta * old.y;
                    }
                    *reinterpret_cast<float2*>(target) = value;
                    continue;
                }
#pragma unroll
                for (unsigned n = 0; n < 2; ++n) {
                    if (column + n < product.columns && (REGION == Region::Full || row <= column + n)) {
                        float value = sum[n];
                        if (whole) {
                            value = product.alpha * value + (product.beta == 0.0f ? 0.0f : product.beta * target[n]);
                        }
                        target[n] = value;
                    }
                }
            }
        }
    }
}

// An entry that computes tiles. Rows that do not start at multiples of 16 bytes take more registers, for four times as many
// copies, and get them: two thread blocks a multiprocessor then do not fit.
#define PRODUCT(NAME, A_ALONG, B_ALONG, REGION)                                                              \
    extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 2) NAME(const Product product)             \
    {                                                                                                        \
        product_tile<A_ALONG, B_ALONG, REGION, true>(product);                                               \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1) NAME##_any(const Product product)       \
    {                                                                                                        \
        product_tile<A_ALONG, B_ALONG, REGION, false>(product);                                              \
    }

// C ← β · C + α · Σ over the splits, in their order. Grid: enough threads for all of a partial result × 1 × batch.
template <Region REGION>
__device__ __forceinline__ void product_sum(const Product& product)
{
    const unsigned batch = blockIdx.z;
    if (product.failed != nullptr && product.failed[batch] != 0) {
        return;
    }
    const unsigned long long size = product.rows * partial_stride(product);
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * FLAT_THREADS + threadIdx.x;
    const unsigned long long row = at / partial_stride(product), column = at % partial_stride(product);
    if (at >= size || column >= product.columns || (REGION == Region::Upper && row > column)) {
        return;
    }
    float sum = 0.0f;
    for (unsigned split = 0; split < product.splits; ++split) {
        sum += product.partial[(static_cast<unsigned long long>(split) * gridDim.z + batch) * size + at];
    }
    float* const target = product.c.pointer + batch * product.c.batch_stride + row * product.c.stride + column;
    *target = product.alpha * sum + (product.beta == 0.0f ? 0.0f : product.beta * *target);
}
