// One diagonal block of a factor, in shared memory: up to 128 × 128, as four by four squares of 32.
//
//   H_kk → V_kk (from the last square to the first) → U_kk = V_kk⁻¹
//
// and products with one block, in thin tiles. All blocks of a factor follow one another, so latency is what counts, and
// the design is a chain as short as possible:
//   · one warp factors a square in registers, a row a lane, while the others update the squares that are not next;
//   · the next square is updated before that by four warps, one on each scheduler;
//   · what lies above a square is solved by substitution, a row a thread, with the square read as broadcasts;
//   · the inverse is one of squares, then of pairs, then of the pair of pairs, in place: what lies below the diagonal is
//     free for the intermediate product.
// Products of squares run on tensor cores with numbers split as in product.cuh: fma would take three times as long.
//
// Model for an A100 at 1.41 GHz: four squares of 32 steps of 70 cycles (a shuffle 23, an inverse root with its Newton step
// 35, two fma 8) take 6.4 µs; three solves of 1200 cycles and updates of 400 cycles 3.4 µs; the inverse 900 + 2 · 400 +
// 2 · 1000 cycles, 2.6 µs; reading and writing 2 µs. Together about 15 µs. Not measured.
//
// Shared memory: rows of 132 numbers. Rows start four banks apart, so that neither eight rows read four numbers at a time
// nor fragments of mma meet a bank twice, in the order of rows and columns that `fragment_row` and `fragment_column` give.
#pragma once

#include "product.cuh"

constexpr unsigned SUB = 32;
constexpr unsigned SQUARES = PANEL / SUB;
constexpr unsigned LINE = PANEL + 4;
constexpr unsigned WARPS = FACTOR_THREADS / 32;
static_assert((PANEL * LINE + PANEL) * sizeof(float) == FACTOR_SHARED, "the launch gives as much");
static_assert(SUB == 32, "a lane for each row of a square");
static_assert(SQUARES == 4 && WARPS == 8, "a warp for each part of the inverse");

// A pivot that is not a positive number.
struct BadPivot {
    int column;   // −1 if there is none
    float value;
};

// Reads the upper triangle of a block [size, size] at `from` and makes it whole with ones on the diagonal. The squares
// on the diagonal have zeros below it, other squares below it are not written. Numbers one by one: the triangle below
// may hold anything, and rows start anywhere.
__device__ __forceinline__ void block_load(float* block, const float* from, unsigned long long stride, unsigned size)
{
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 4
    for (unsigned row = warp; row < PANEL; row += WARPS) {
#pragma unroll
        for (unsigned square = 0; square < SQUARES; ++square) {
            const unsigned column = square * SUB + lane;
            if (square < row / SUB) {
                continue;
            }
            if (row == column && row >= size) {
                block[row * LINE + column] = 1.0f;
                continue;
            }
            const bool there = row <= column && column < size;
            const float* const source = there ? from + row * stride + column : from;
            copy_async_4(shared_address(block + row * LINE + column), source, there ? 4 : 0);
        }
    }
    copies_commit();
    copies_wait<0>();
    __syncthreads();
}

// Writes the upper triangle.
__device__ __forceinline__ void block_store(const float* block, float* to, unsigned long long stride, unsigned size)
{
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (unsigned row = warp; row < size; row += WARPS) {
#pragma unroll
        for (unsigned square = 0; square < SQUARES; ++square) {
            const unsigned column = square * SUB + lane;
            if (row <= column && column < size) {
                to[row * stride + column] = block[row * LINE + column];
            }
        }
    }
}

// Writes all [PANEL, PANEL] of it, with zeros below the diagonal and beyond its size.
__device__ __forceinline__ void block_store_whole(const float* block, float* to, unsigned size)
{
    const unsigned warp = threadIdx.x / 32, column = threadIdx.x % 32 * 4;
#pragma unroll 4
    for (unsigned row = warp; row < PANEL; row += WARPS) {
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < size && row <= column + 3) {
            value = *reinterpret_cast<const float4*>(block + row * LINE + column);
        }
        value.x = row <= column && column < size ? value.x : 0.0f;
        value.y = row <= column + 1 && column + 1 < size ? value.y : 0.0f;
        value.z = row <= column + 2 && column + 2 < size ? value.z : 0.0f;
        value.w = row <= column + 3 && column + 3 < size ? value.w : 0.0f;
        // As one store, to L2, where the products on other multiprocessors read it.
        __stcg(reinterpret_cast<float4*>(to + row * PANEL + column), value);
    }
}

// A row of a square, from shared memory to registers and back.
__device__ __forceinline__ void row_load(float (&row)[SUB], const float* from)
{
#pragma unroll
    for (unsigned k = 0; k < SUB; k += 4) {
        const float4 part = *reinterpret_cast<const float4*>(from + k);
        row[k] = part.x, row[k + 1] = part.y, row[k + 2] = part.z, row[k + 3] = part.w;
    }
}

__device__ __forceinline__ void row_store(const float (&row)[SUB], float* to)
{
#pragma unroll
    for (unsigned k = 0; k < SUB; k += 4) {
        *reinterpret_cast<float4*>(to + k) = make_float4(row[k], row[k + 1], row[k + 2], row[k + 3]);
    }
}

// 1 / √value, to one rounding or two: the hardware's estimate is good to 22 bits, and a Newton step doubles that.
__device__ __forceinline__ float inverse_root(float value)
{
    const float root = rsqrtf(value);
    return fmaf(0.5f * root, fmaf(-value * root, root, 1.0f), root);
}

// One warp: the square that starts at `first` → its factor V, with Vᵀ below the diagonal, for `solve_above`.
__device__ __forceinline__ void factor_square(float* block, float* reciprocals, unsigned first, BadPivot& bad)
{
    const unsigned lane = threadIdx.x % 32;
    float* const square = block + first * LINE + first;
    float row[SUB];
    row_load(row, square + lane * LINE);
    BadPivot own = {-1, 0.0f};
    float pivot = __shfl_sync(~0u, row[SUB - 1], SUB - 1), root = inverse_root(pivot), reciprocal = 0.0f;
#pragma unroll
    for (int j = SUB - 1; j >= 0; --j) {
        if (own.column < 0 && !(pivot > 0.0f && pivot <= 3.402823466e38f)) {
            own = {j, pivot};
        }
        reciprocal = lane == j ? root : reciprocal;
        const float value = row[j] * root;
        row[j] = value;
        if (j > 0) {
            // The next pivot in every lane, from what it was before this step: one shuffle less in the chain. Its root
            // is under way while the rest of the row is updated. Lanes below the diagonal compute what nobody reads.
            const float before = __shfl_sync(~0u, row[j - 1], j - 1), next = __shfl_sync(~0u, value, j - 1);
            pivot = fmaf(-next, next, before);
            root = inverse_root(pivot);
            row[j - 1] = fmaf(-value, next, row[j - 1]);
#pragma unroll
            for (int k = j - 2; k >= 0; --k) {
                row[k] = fmaf(-value, __shfl_sync(~0u, value, k), row[k]);
            }
        }
    }
    row_store(row, square + lane * LINE);
    __syncwarp();
#pragma unroll
    for (unsigned j = 1; j < SUB; ++j) {
        if (lane < j) {
            square[j * LINE + lane] = row[j];
        }
    }
    reciprocals[first + lane] = reciprocal;
    if (lane == 0) {
        bad = {own.column < 0 ? -1 : static_cast<int>(first) + own.column, own.value};
    }
}

// X·Vᵀ = H for all rows above the square V that starts at `first`, a row a thread, in place.
__device__ __forceinline__ void solve_above(float* block, const float* reciprocals, unsigned first)
{
    if (threadIdx.x >= first) {
        return;
    }
    float* const own = block + threadIdx.x * LINE + first;
    const float* const square = block + first * LINE + first;
    float row[SUB];
    row_load(row, own);
#pragma unroll
    for (int j = SUB - 1; j >= 0; --j) {
        row[j] *= reciprocals[first + j];
#pragma unroll
        for (int k = 0; k < j; k += 4) {
            const float4 part = *reinterpret_cast<const float4*>(square + j * LINE + k);
            row[k] = fmaf(-row[j], part.x, row[k]);
            if (k + 1 < j) row[k + 1] = fmaf(-row[j], part.y, row[k + 1]);
            if (k + 2 < j) row[k + 2] = fmaf(-row[j], part.z, row[k + 2]);
            if (k + 3 < j) row[k + 3] = fmaf(-row[j], part.w, row[k + 3]);
        }
    }
    row_store(row, own);
}

// How the second operand of a product lies: as [columns, depth], or as [depth, columns].
enum class Second { Transposed, Straight };

// The row of a square that row `index` of eight of a fragment stands for, and the column of 32 likewise. Chosen so that
// neither reads of fragments nor writes of sums, two numbers at a time, meet a bank twice.
template <Second SECOND>
__device__ __forceinline__ unsigned fragment_row(unsigned index)
{
    return SECOND == Second::Transposed ? index % 4 * 2 + index / 4 : index;
}

template <Second SECOND>
__device__ __forceinline__ unsigned fragment_column(unsigned tile, unsigned index)
{
    return SECOND == Second::Transposed ? tile * 8 + index : tile * 4 + index % 4 + index / 4 * 16;
}

// One warp: 32 rows by TILES times eight columns of 32, beginning with eight number `tile`, of A · B over `depth`.
template <Second SECOND, unsigned TILES>
__device__ __forceinline__ void square_product(
    float (&sums)[2][TILES][4], const float* a, const float* b, unsigned tile, unsigned depth)
{
    const unsigned lane = threadIdx.x % 32, group = lane / 4, within = lane % 4;
#pragma unroll 2
    for (unsigned k = 0; k < depth; k += 8) {
        unsigned b_high[TILES][2], b_low[TILES][2];
#pragma unroll
        for (unsigned j = 0; j < TILES; ++j) {
#pragma unroll
            for (unsigned part = 0; part < 2; ++part) {
                const unsigned column = fragment_column<SECOND>(tile + j, group), inner = k + part * 4 + within;
                const float value = SECOND == Second::Transposed ? b[column * LINE + inner] : b[inner * LINE + column];
                split_tf32(__float_as_uint(value), b_high[j][part], b_low[j][part]);
            }
        }
#pragma unroll
        for (unsigned i = 0; i < 2; ++i) {
            unsigned high[4], low[4];
#pragma unroll
            for (unsigned part = 0; part < 4; ++part) {
                const unsigned row = i * 16 + part % 2 * 8 + fragment_row<SECOND>(group), inner = k + part / 2 * 4 + within;
                split_tf32(__float_as_uint(a[row * LINE + inner]), high[part], low[part]);
            }
#pragma unroll
            for (unsigned j = 0; j < TILES; ++j) {
                multiply_add_tf32(sums[i][j], low, b_high[j][0], b_high[j][1]);
                multiply_add_tf32(sums[i][j], high, b_low[j][0], b_low[j][1]);
                multiply_add_tf32(sums[i][j], high, b_high[j][0], b_high[j][1]);
            }
        }
    }
}

// C ← β · C + α · sums, with β 0 or 1.
template <Second SECOND, unsigned TILES>
__device__ __forceinline__ void square_write(
    float* c, const float (&sums)[2][TILES][4], unsigned tile, float alpha, bool add)
{
    const unsigned lane = threadIdx.x % 32, group = lane / 4, within = lane % 4;
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
#pragma unroll
        for (unsigned j = 0; j < TILES; ++j) {
#pragma unroll
            for (unsigned half = 0; half < 2; ++half) {
                const unsigned row = i * 16 + half * 8 + fragment_row<SECOND>(group);
                float2& target =
                    *reinterpret_cast<float2*>(c + row * LINE + fragment_column<SECOND>(tile + j, within * 2));
                const float2 old = add ? target : make_float2(0.0f, 0.0f);
                const float* const sum = &sums[i][j][half * 2];
                target = make_float2(fmaf(alpha, sum[0], old.x), fmaf(alpha, sum[1], old.y));
            }
        }
    }
}

// One warp: TILES times eight columns of square (row, column) lose what the columns from `from` on, a square wide,
// explain.
template <unsigned TILES>
__device__ __forceinline__ void update_square(float* block, unsigned row, unsigned column, unsigned from, unsigned tile)
{
    float sums[2][TILES][4] = {};
    const float* const operands = block + from;
    square_product<Second::Transposed>(sums, operands + row * SUB * LINE, operands + column * SUB * LINE, tile, SUB);
    square_write<Second::Transposed>(block + row * SUB * LINE + column * SUB, sums, tile, -1.0f, true);
}

// The whole thread block: H → V of the block's first `size` columns, with V's squares as `factor_square` leaves them.
// False, for all threads, if a pivot was not positive.
__device__ __forceinline__ bool block_factor(float* block, float* reciprocals, unsigned size, BadPivot& bad)
{
    const unsigned warp = threadIdx.x / 32, last = (size - 1) / SUB;
    for (int square = last; square >= 0; --square) {
        const unsigned first = square * SUB;
        if (warp == 0) {
            factor_square(block, reciprocals, first, bad);
        } else if (square < static_cast<int>(last)) {
            // All squares but the last one, which is the one that is being factored.
            const unsigned others = (square + 1) * (square + 2) / 2 - 1;
            if (warp - 1 < others) {
                const uint2 at = tile_upper(warp - 1);
                update_square<4>(block, at.x, at.y, first + SUB, 0);
            }
        }
        __syncthreads();
        if (bad.column >= 0) {
            return false;
        }
        if (square == 0) {
            break;
        }
        solve_above(block, reciprocals, first);
        __syncthreads();
        if (warp < 4) {
            update_square<1>(block, square - 1, square - 1, first, warp);
        }
        __syncthreads();
    }
    return true;
}

// One warp: the square that starts at `first` → its inverse, a column a lane, with zeros below the diagonal.
__device__ __forceinline__ void invert_square(float* block, const float* reciprocals, unsigned first)
{
    const unsigned lane = threadIdx.x % 32;
    float* const square = block + first * LINE + first;
    float column[SUB];
#pragma unroll
    for (int i = SUB - 1; i >= 0; --i) {
        // The newest number last, so that the sums of several rows can be under way.
        float sum = lane == i ? 1.0f : 0.0f;
#pragma unroll
        for (int k = SUB - 4; k + 3 > i; k -= 4) {
            const float4 part = *reinterpret_cast<const float4*>(square + i * LINE + k);
            sum = fmaf(-part.w, column[k + 3], sum);
            if (k + 2 > i) sum = fmaf(-part.z, column[k + 2], sum);
            if (k + 1 > i) sum = fmaf(-part.y, column[k + 1], sum);
            if (k > i) sum = fmaf(-part.x, column[k], sum);
        }
        column[i] = sum * reciprocals[first + i];
    }
    __syncwarp();
#pragma unroll
    for (unsigned i = 0; i < SUB; ++i) {
        square[i * LINE + lane] = column[i];
    }
}

// The whole thread block: −A⁻¹·B·C⁻¹ in the place of B for [A B; 0 C], A and C being HALF wide and inverted; for one
// such pair, or for two of half the size. B·C⁻¹ takes the place below the diagonal.
template <unsigned HALF>
__device__ __forceinline__ void invert_pairs(float* block)
{
    static_assert(HALF == SUB || HALF == 2 * SUB, "eight warps share the work evenly");
    constexpr unsigned TILES = HALF / SUB;
    const unsigned warp = threadIdx.x / 32, high = warp / 4, low = warp % 4;
    const unsigned first = HALF == SUB ? high * 2 * SUB : 0, tile = HALF == SUB ? low : low / 2 * 2;
    // A⁻¹ and C⁻¹ are triangular: half of the squares take half of the depth. Warps w and w + 4 share a scheduler,
    // which gets one of each.
    const unsigned uneven = HALF == SUB ? 0 : (low ^ high) % 2, even = HALF == SUB ? 0 : high;
    float* const b = block + first * LINE + first + HALF;
    float* const product = block + (first + HALF) * LINE + first;
    {
        float sums[2][TILES][4] = {};
        const float* const c = block + (first + HALF) * LINE + first + HALF;
        square_product<Second::Straight>(sums, b + even * SUB * LINE, c + uneven * SUB, tile, (uneven + 1) * SUB);
        square_write<Second::Straight>(product + even * SUB * LINE + uneven * SUB, sums, tile, 1.0f, false);
    }
    __syncthreads();
    {
        float sums[2][TILES][4] = {};
        const float* const a = block + (first + uneven * SUB) * LINE + first + uneven * SUB;
        square_product<Second::Straight>(
            sums, a, product + uneven * SUB * LINE + even * SUB, tile, HALF - uneven * SUB);
        square_write<Second::Straight>(b + uneven * SUB * LINE + even * SUB, sums, tile, -1.0f, false);
    }
    __syncthreads();
}

// The whole thread block: V → U = V⁻¹ of the block's first `size` columns, in place. What lies below the diagonal is
// used.
__device__ __forceinline__ void block_invert(float* block, const float* reciprocals, unsigned size)
{
    const unsigned warp = threadIdx.x / 32;
    if (warp < SQUARES) {
        invert_square(block, reciprocals, warp * SUB);
    }
    __syncthreads();
    if (size > SUB) {
        invert_pairs<SUB>(block);
    }
    if (size > 2 * SUB) {
        invert_pairs<2 * SUB>(block);
    }
}

// C ← β · C + α · A · Bᵀ with a depth of one block at most, in tiles of ROWS × COLUMNS: a product that the next block
// waits for. Tiles are a quarter of those of product.cuh, so that few of them still reach all multiprocessors, and
// everything that a tile reads is under way at once. With TRIANGULAR, B is upper triangular. C may be A where COLUMNS
// are all columns: a thread block has read its rows before it writes them.
template <unsigned ROWS, unsigned COLUMNS, Region REGION, bool TRIANGULAR, bool ALIGNED>
__device__ __forceinline__ void thin_product(const Product& product)
{
    static_assert(ROWS / SUB * (COLUMNS / SUB) * 2 == WARPS, "a warp takes half of a square");
    static_assert(REGION == Region::Full || ROWS == COLUMNS, "tiles of a triangle are square");
    constexpr unsigned STEP = ALIGNED ? 4 : 1;
    extern __shared__ __align__(128) float operands[];
    if (product.failed != nullptr && product.failed[blockIdx.z] != 0) {
        return;
    }
    const unsigned tile_rows = divide_up(product.rows, ROWS);
    const uint2 at = REGION == Region::Upper
        ? tile_upper(blockIdx.x)
        : make_uint2(blockIdx.x % tile_rows, blockIdx.x / tile_rows);
    const unsigned from_row = at.x * ROWS, from_column = at.y * COLUMNS;
    const float* const a = product.a.pointer + blockIdx.z * product.a.batch_stride;
    const float* const b = product.b.pointer + blockIdx.z * product.b.batch_stride;
    // Rows of A's tile, then of B's, a square's width at a time.
#pragma unroll
    for (unsigned first = 0; first < PANEL; first += SUB) {
#pragma unroll 4
        for (unsigned i = threadIdx.x; i < (ROWS + COLUMNS) * SUB / STEP; i += FACTOR_THREADS) {
            const unsigned line = i / (SUB / STEP), depth = first + i % (SUB / STEP) * STEP;
            const bool of_a = line < ROWS;
            const unsigned row = of_a ? from_row + line : from_column + line - ROWS;
            const unsigned rows = of_a ? product.rows : product.columns;
            const unsigned left = row < rows && depth < product.depth ? min(product.depth - depth, STEP) : 0;
            const float* const start = of_a ? a : b;
            const float* const source =
                left > 0 ? start + row * (of_a ? product.a.stride : product.b.stride) + depth : start;
            const unsigned target = shared_address(operands + line * LINE + depth);
            if constexpr (ALIGNED) {
                copy_async_16(target, source, left * 4);
            } else {
                copy_async_4(target, source, left * 4);
            }
        }
        copies_commit();
    }

    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, within = lane % 4;
    // Warps w and w + 4 share a scheduler: where squares to the right take less, it gets one of the left and one of the
    // right.
    const unsigned number = TRIANGULAR && warp >= 4 ? 11 - warp : warp;
    const unsigned square = number / 2, tile = number % 2 * 2;
    const unsigned square_row = square / (COLUMNS / SUB), square_column = square % (COLUMNS / SUB);
    float* const c = product.c.pointer + blockIdx.z * product.c.batch_stride;
    const unsigned first_row = from_row + square_row * SUB, first_column = from_column + square_column * SUB;
    const auto wanted = [&](unsigned row, unsigned column) {
        return row < product.rows && column < product.columns && (REGION == Region::Full || row <= column);
    };
    // Of numbers (i, j, n) of the sums: where in C they go.
    const auto row_of = [&](unsigned i, unsigned n) {
        return first_row + i * 16 + n / 2 * 8 + fragment_row<Second::Transposed>(group);
    };
    const auto column_of = [&](unsigned j, unsigned n) {
        return first_column + fragment_column<Second::Transposed>(tile + j, within * 2) + n % 2;
    };

    // What C was comes in while the operands do.
    float old[2][2][4] = {}, sums[2][2][4] = {};
    if (product.beta != 0.0f) {
#pragma unroll
        for (unsigned e = 0; e < 16; e += 2) {
            const unsigned i = e / 8, j = e / 4 % 2, n = e % 4, row = row_of(i, n), column = column_of(j, n);
            const float* const source = c + row * product.c.stride + column;
            float2 value = make_float2(0.0f, 0.0f);
            if (ALIGNED && wanted(row, column) && wanted(row, column + 1)) {
                value = __ldcg(reinterpret_cast<const float2*>(source));
            } else {
                value.x = wanted(row, column) ? source[0] : 0.0f;
                value.y = wanted(row, column + 1) ? source[1] : 0.0f;
            }
            old[i][j][n] = product.beta * value.x;
            old[i][j][n + 1] = product.beta * value.y;
        }
    }
    const float* const own_a = operands + square_row * SUB * LINE;
    const float* const own_b = operands + (ROWS + square_column * SUB) * LINE;
    const auto step = [&](unsigned first) {
        __syncthreads();
        if (!TRIANGULAR || first >= square_column * SUB) {
            square_product<Second::Transposed>(sums, own_a + first, own_b + first, tile, SUB);
        }
    };
    copies_wait<3>();
    step(0);
    copies_wait<2>();
    step(SUB);
    copies_wait<1>();
    step(2 * SUB);
    copies_wait<0>();
    step(3 * SUB);
#pragma unroll
    for (unsigned e = 0; e < 16; e += 2) {
        const unsigned i = e / 8, j = e / 4 % 2, n = e % 4, row = row_of(i, n), column = column_of(j, n);
        const float2 value = make_float2(
            fmaf(product.alpha, sums[i][j][n], old[i][j][n]), fmaf(product.alpha, sums[i][j][n + 1], old[i][j][n + 1]));
        float* const target = c + row * product.c.stride + column;
        if (ALIGNED && wanted(row, column) && wanted(row, column + 1)) {
            __stcg(reinterpret_cast<float2*>(target), value);
            continue;
        }
        if (wanted(row, column)) {
            target[0] = value.x;
        }
        if (wanted(row, column + 1)) {
            target[1] = value.y;
        }
    }
}

#define THIN_PRODUCT(NAME, ROWS, COLUMNS, REGION, TRIANGULAR)                                                \
    extern "C" __global__ void __launch_bounds__(FACTOR_THREADS, 2) NAME(const Product product)              \
    {                                                                                                        \
        thin_product<ROWS, COLUMNS, REGION, TRIANGULAR, true>(product);                                      \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(FACTOR_THREADS, 2) NAME##_any(const Product product)        \
    {                                                                                                        \
        thin_product<ROWS, COLUMNS, REGION, TRIANGULAR, false>(product);                                     \
    }
