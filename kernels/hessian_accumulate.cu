// Hessian accumulation: the Gram matrix of a layer's inputs, added to what other tokens gave.
//
//   H ← β · H + α · Xᵀ·X, of which the upper triangle is computed, read and written
//
// Dimensions: X [tokens, columns] in f16, bf16 or f32, any of either; H f32 [columns, columns]. With β = 1, α = 1 it sums;
//             with β = n / (n + tokens), α = 1 / (n + tokens) it keeps the mean over all tokens so far.
// Launch:     (tiles of the upper triangle, splits, 1) × HESSIAN_THREADS with HESSIAN_SHARED for 16-bit inputs; as
//             product.cuh says for f32 inputs. Where tiles are few, tokens are split: partial sums go to `partial` and
//             hessian_sum_f32 adds them in order. hessian_prepare_f32: (batch) × REDUCE_THREADS.
// Requires:   rows of X and H that start at multiples of 16 bytes, or the entry `…_any` for every other stride.
// Oracle:     reference::hessian, reference::damped
// Tolerance:  16-bit inputs have exact products: γ(tokens) · √(h_ii·h_jj); f32 inputs are split (product.cuh):
//             γ(3 · tokens + 12) · √(h_ii·h_jj). testkit::tolerance::{hessian_tolerance, hessian_split_tolerance}
//
// Operations: tokens · columns² (one triangle; products and sums each counted). Bytes: every tile of 128 × 128 reads two
// strips of 128 columns once (one, on the diagonal), and writes itself once.

#include "product.cuh"

namespace {

constexpr unsigned SLAB_TOKENS = 32;
constexpr unsigned CHUNK = 8;                                  // 16-bit numbers in 16 bytes
constexpr unsigned LINE = TILE / CHUNK;                        // chunks of one token in a slab
constexpr unsigned SLAB_BYTES = SLAB_TOKENS * TILE * 2;
constexpr unsigned STAGE_BYTES = 2 * SLAB_BYTES;               // a strip for the rows of the tile, one for its columns
constexpr unsigned WARP = 64;                                  // a warp's part of the tile is 64 × 64
static_assert(HESSIAN_STAGES * STAGE_BYTES == HESSIAN_SHARED, "the launch gives as much");
static_assert(TILE / WARP * (TILE / WARP) * 32 == HESSIAN_THREADS, "warps cover the tile");

// Where a chunk lies in a slab, in bytes. ldmatrix reads a chunk of eight tokens at once, copies fill whole lines: neither
// meets a bank twice.
__device__ __forceinline__ unsigned chunk_at(unsigned token, unsigned chunk)
{
    return (token * LINE + (chunk ^ (token % 8))) * 16;
}

// A thread's part of the copies of one strip of 128 columns, slab of 32 tokens by slab. What does not change from slab to
// slab is computed once. Where nothing is left to copy, the address may lie beyond the matrix: it is not read.
template <class T, bool ALIGNED>
struct SlabCopy {
    static constexpr unsigned LINES = HESSIAN_THREADS / LINE;      // tokens that all threads copy at once
    static_assert(LINES % 8 == 0, "a thread's chunks are swizzled alike");

    const T* source;
    unsigned long long stride;
    unsigned token, left, target;

    __device__ __forceinline__ SlabCopy(const T* inputs, unsigned long long stride, unsigned first_token, unsigned first, unsigned columns)
        : stride(stride), token(first_token + threadIdx.x / LINE)
    {
        const unsigned chunk = threadIdx.x % LINE, column = first + chunk * CHUNK;
        left = column < columns ? min(columns - column, CHUNK) : 0;
        target = chunk_at(threadIdx.x / LINE, chunk);
        source = inputs + token * stride + column;
    }

    __device__ __forceinline__ void next(unsigned char* slab, unsigned tokens)
    {
#pragma unroll
        for (unsigned i = 0; i < SLAB_TOKENS / LINES; ++i) {
            const unsigned count = token + i * LINES < tokens ? left : 0;
            const T* const from = source + i * LINES * stride;
            unsigned char* const to = slab + target + i * LINES * LINE * 16;
            if constexpr (ALIGNED) {
                copy_async_16(shared_address(to), from, count * 2);
            } else {
                // Two bytes are less than an asynchronous copy can move. Correct for every stride; for speed, align the rows.
                T numbers[CHUNK];
#pragma unroll
                for (unsigned n = 0; n < CHUNK; ++n) {
                    numbers[n] = n < count ? from[n] : T(0.0f);
                }
#pragma unroll
                for (unsigned n = 0; n < CHUNK; ++n) {
                    reinterpret_cast<T*>(to)[n] = numbers[n];
                }
            }
        }
        token += SLAB_TOKENS;
        source += SLAB_TOKENS * stride;
    }
};

template <class T, bool ALIGNED>
__device__ __forceinline__ void accumulate(
    const T* inputs,
    float* hessian,
    float* partial,
    unsigned long long input_stride,
    unsigned long long hessian_stride,
    unsigned tokens,
    unsigned columns,
    unsigned splits,
    float alpha,
    float beta)
{
    extern __shared__ __align__(128) unsigned char slabs[];
    const uint2 tile = tile_upper(blockIdx.x);
    const unsigned from_row = tile.x * TILE, from_column = tile.y * TILE;
    const bool diagonal = tile.x == tile.y;

    const unsigned all_slabs = divide_up(tokens, SLAB_TOKENS);
    const unsigned slabs_each = divide_up(all_slabs, splits);
    const unsigned first_slab = min(blockIdx.y * slabs_each, all_slabs);
    const unsigned count = min(slabs_each, all_slabs - first_slab);

    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned warp_row = warp / 2 * WARP, warp_column = warp % 2 * WARP;

    SlabCopy<T, ALIGNED> of_rows(inputs, input_stride, first_slab * SLAB_TOKENS, from_row, columns);
    SlabCopy<T, ALIGNED> of_columns(inputs, input_stride, first_slab * SLAB_TOKENS, from_column, columns);
    const auto fetch = [&](unsigned slab) {
        unsigned char* const stage = slabs + slab % HESSIAN_STAGES * STAGE_BYTES;
        of_rows.next(stage, tokens);
        if (!diagonal) {
            of_columns.next(stage + SLAB_BYTES, tokens);
        }
    };

    float sums[WARP / 16][WARP / 8][4] = {};

    for (unsigned slab = 0; slab < HESSIAN_STAGES - 1; ++slab) {
        if (slab < count) {
            fetch(slab);
        }
        copies_commit();
    }
    for (unsigned slab = 0; slab < count; ++slab) {
        // Every turn commits a group, be it empty: all but the newest two are slabs up to this one.
        copies_wait<HESSIAN_STAGES - 2>();
        // After this barrier all copies of the slab have arrived, and nobody reads the stage of the one before.
        __syncthreads();
        if (slab + HESSIAN_STAGES - 1 < count) {
            fetch(slab + HESSIAN_STAGES - 1);
        }
        copies_commit();

        const unsigned rows_slab = shared_address(slabs) + slab % HESSIAN_STAGES * STAGE_BYTES;
        const unsigned columns_slab = diagonal ? rows_slab : rows_slab + SLAB_BYTES;
#pragma unroll
        for (unsigned inner = 0; inner < SLAB_TOKENS; inner += 16) {
            // Slabs lie token by token, fragments are wanted column by column: transposed on the way.
            unsigned a[WARP / 16][4];
#pragma unroll
            for (unsigned i = 0; i < WARP / 16; ++i) {
                const unsigned token = inner + lane / 16 * 8 + lane % 8, chunk = (warp_row + i * 16) / CHUNK + lane / 8 % 2;
                load_matrices_transposed(a[i], rows_slab + chunk_at(token, chunk));
            }
#pragma unroll
            for (unsigned j = 0; j < WARP / 8; j += 2) {
                unsigned b[4];
                const unsigned token = inner + lane % 16, chunk = (warp_column + j * 8) / CHUNK + lane / 16;
                load_matrices_transposed(b, columns_slab + chunk_at(token, chunk));
#pragma unroll
                for (unsigned i = 0; i < WARP / 16; ++i) {
                    multiply_add<T>(sums[i][j], a[i], b[0], b[1]);
                    multiply_add<T>(sums[i][j + 1], a[i], b[2], b[3]);
                }
            }
        }
    }

    const bool whole = splits == 1;
    const unsigned long long stride = whole ? hessian_stride : divide_up(columns, 4) * 4;
    float* const target = whole ? hessian : partial + blockIdx.y * (columns * stride);
#pragma unroll
    for (unsigned i = 0; i < WARP / 16; ++i) {
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
            const unsigned row = from_row + warp_row + i * 16 + half * 8 + lane / 4;
#pragma unroll
            for (unsigned j = 0; j < WARP / 8; ++j) {
                const unsigned column = from_column + warp_column + j * 8 + lane % 4 * 2;
                float* const entry = target + row * stride + column;
                const float* const sum = &sums[i][j][half * 2];
                if (ALIGNED && column + 1 < columns && row <= column) {
                    float2 value = make_float2(sum[0], sum[1]);
                    if (whole) {
                        const float2 old = beta == 0.0f ? make_float2(0.0f, 0.0f) : *reinterpret_cast<const float2*>(entry);
                        value = make_float2(alpha * value.x + beta * old.x, alpha * value.y + beta * old.y);
                    }
                    *reinterpret_cast<float2*>(entry) = value;
                    continue;
                }
#pragma unroll
                for (unsigned n = 0; n < 2; ++n) {
                    if (row <= column + n && column + n < columns) {
                        entry[n] = whole ? alpha * sum[n] + (beta == 0.0f ? 0.0f : beta * entry[n]) : sum[n];
                    }
                }
            }
        }
    }
}

}  // namespace

#define HESSIAN(NAME, TYPE, ALIGNED)                                                                                       \
    extern "C" __global__ void __launch_bounds__(HESSIAN_THREADS, 2) NAME(                                                 \
        const TYPE* __restrict__ inputs,      /* [tokens, columns] row-major, a row every input_stride */                  \
        float* hessian,                       /* f32 [columns, columns] row-major, a row every hessian_stride, in/out */   \
        float* partial,                       /* f32 [splits, columns, columns up to a multiple of four], out; if splits > 1 */ \
        unsigned long long input_stride,                                                                                   \
        unsigned long long hessian_stride,                                                                                 \
        unsigned tokens,                                                                                                   \
        unsigned columns,                                                                                                  \
        unsigned splits,                      /* gridDim.y: parts of the tokens summed apart */                            \
        float alpha,                                                                                                       \
        float beta)                                                                                                        \
    {                                                                                                                      \
        accumulate<TYPE, ALIGNED>(                                                                                         \
            inputs, hessian, partial, input_stride, hessian_stride, tokens, columns, splits, alpha, beta);                 \
    }

HESSIAN(hessian_accumulate_f16, __half, true)
HESSIAN(hessian_accumulate_f16_any, __half, false)
HESSIAN(hessian_accumulate_bf16, __nv_bfloat16, true)
HESSIAN(hessian_accumulate_bf16_any, __nv_bfloat16, false)

// f32 inputs: both operands are X, contiguous across the tokens, which are the depth.
PRODUCT(hessian_accumulate_f32, Along::Tile, Along::Tile, Region::Upper)

// The sums of the splits, for inputs of every type.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS) hessian_sum_f32(const Product product)
{
    product_sum<Region::Upper>(product);
}

// What the preparation found out about one Hessian.
struct HessianSummary {
    float mean;          // of the diagonal, after dead columns were given a one
    float damp;          // added to the diagonal: damping · mean
    int dead_columns;    // how many columns had a zero on the diagonal
    int not_finite;      // the first column whose diagonal is not a finite number, or −1
};

// Dead columns and damping, in place: H_jj ← 1 where it is 0, then H_jj ← H_jj + damping · mean(diag H).
// Sums in f64, whose rounding is far below that of the f32 diagonal.
extern "C" __global__ void __launch_bounds__(REDUCE_THREADS) hessian_prepare_f32(
    float* hessian,                        // f32 [batch, columns, columns] row-major, a row every `stride`, in/out
    unsigned char* dead,                   // u8 [batch, columns], out: 1 for a dead column
    HessianSummary* summaries,             // [batch], out
    int* failed,                           // i32 [batch], out: 1 + the column in which a diagonal is not finite, or 0
    unsigned long long stride,
    unsigned long long batch_stride,
    unsigned columns,
    float damping)
{
    __shared__ double sums[REDUCE_THREADS / 32];
    __shared__ unsigned dead_counts[REDUCE_THREADS / 32], first_bad[REDUCE_THREADS / 32];
    float* const diagonal = hessian + blockIdx.x * batch_stride;
    unsigned char* const own_dead = dead + static_cast<unsigned long long>(blockIdx.x) * columns;

    double sum = 0.0;
    unsigned dead_count = 0, bad = columns;
    for (unsigned j = threadIdx.x; j < columns; j += REDUCE_THREADS) {
        const float value = diagonal[j * (stride + 1)];
        const bool is_dead = value == 0.0f;
        own_dead[j] = is_dead;
        dead_count += is_dead;
        sum += is_dead ? 1.0 : static_cast<double>(value);
        if (!isfinite(value)) {
            bad = min(bad, j);
        }
    }
    // One order of additions, whatever the thread block does first.
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_down_sync(~0u, sum, distance);
        dead_count += __shfl_down_sync(~0u, dead_count, distance);
        bad = min(bad, __shfl_down_sync(~0u, bad, distance));
    }
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = sum;
        dead_counts[threadIdx.x / 32] = dead_count;
        first_bad[threadIdx.x / 32] = bad;
    }
    __syncthreads();
    sum = 0.0;
    dead_count = 0;
    bad = columns;
    for (unsigned warp = 0; warp < REDUCE_THREADS / 32; ++warp) {
        sum += sums[warp];
        dead_count += dead_counts[warp];
        bad = min(bad, first_bad[warp]);
    }
    const float mean = static_cast<float>(sum / columns), damp = static_cast<float>(damping * (sum / columns));
    if (threadIdx.x == 0) {
        summaries[blockIdx.x] = {mean, damp, static_cast<int>(dead_count), bad < columns ? static_cast<int>(bad) : -1};
        failed[blockIdx.x] = bad < columns ? static_cast<int>(bad) + 1 : 0;
    }
    if (bad < columns) {
        return;
    }
    for (unsigned j = threadIdx.x; j < columns; j += REDUCE_THREADS) {
        float& value = diagonal[j * (stride + 1)];
        value = (value == 0.0f ? 1.0f : value) + damp;
    }
}
