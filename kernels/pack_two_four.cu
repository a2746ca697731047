// A 2:4 weight as the values and metadata that mma.sp reads; back again; and the product with it.
//
//   of every four columns of a row at most two are kept; Y = X · Wᵀ
//
// Dimensions: W [rows, columns], 16 bits a number; X [tokens, columns]; Y [tokens, rows] in the type of X or f32. Packed,
//             with R and C rows and columns up to multiples of 64: values [R, C / 2], metadata u32 [R / 64, C / 64, 32, 4].
// Launch:     packing: a warp for each 64 × 64 of W, PACK_THREADS. Product: (tiles) × TWO_FOUR_THREADS with
//             TWO_FOUR_SHARED, tiles of 256 rows × 128 tokens; `…_narrow` and `…_any`: 64 × 32, TWO_FOUR_NARROW_….
// Requires:   rows of W, X and Y that start at multiples of 16 bytes, or the entry `…_any` for every other stride.
// Oracle:     reference::Matrix::times of the unpacked matrix
// Tolerance:  packing none. Product: γ(columns) · Σ|x·w| and one rounding of Y: products of 16 bits are exact
//             (testkit::tolerance::{gemm_tolerance, stored_tolerance}).
//
// Layout. values[r][2·q], values[r][2·q + 1] are what is kept of columns 4·q to 4·q + 3, in order, and metadata has four
// bits for them: the lower index, then the higher one · 4. Where fewer than two are kept, zeros stand in, at index 0 or 3,
// whichever leaves the indices in order; so it is of all padding: 0b1100.
//
//   word of metadata, of 16 columns of two rows       lane of a 64 × 64 part, l = 4·g + t        one of its four words: i
//     31            16 15             0
//    ┌────┬────┬────┬────┬────┬────┬────┬────┐        columns 16·t to 16·t + 15,                 rows 16·i + g (low half)
//    │ q3 │ q2 │ q1 │ q0 │ q3 │ q2 │ q1 │ q0 │                                                   and 16·i + g + 8 (high)
//    └────┴────┴────┴────┴────┴────┴────┴────┘
//          row g + 8           row g
//
// That is what mma.sp.m16n8k32 of 16-bit types wants (PTX ISA, "Matrix fragments for sparse mma.m16n8k32"): with sparsity
// selector F, lanes 4·g + 2·F and 4·g + 2·F + 1 hold the left and the right 16 of 32 columns, for rows g and g + 8. One word
// a lane is thus two steps of 32 columns, F = 0 and F = 1, and a warp reads its 64 × 64 part by one access of 16 bytes a lane.
// Indices ascend, so mma.sp::ordered_metadata reads it too: the ISA advises it, since plain mma.sp may be slow. It came with
// PTX 8.5; compilers before CUDA 12.5, whose PTX is for the drivers of their time, get plain mma.sp, which gives the same.
//
// The product computes tiles of Yᵀ = W · Xᵀ, since it is A that may be sparse.
//
// Operations: tokens · rows · columns multiplications and additions that mma.sp carries out as twice as many: 624 TFLOP/s of
// an A100 where the dense product has 312. Bytes: W takes 9/16 of the dense one.
// What twice the rate asks of memory decides about the tile: 64 columns of a tile take 34 KiB from L2 and, in an A100, 1024
// cycles of its tensor cores, 34 bytes a cycle of the 47 that each multiprocessor can have; 128 × 128 would want 50. A warp
// of 64 × 64 takes 12 KiB from shared memory for 64 mma.sp: with the copies that fill it, all eight want 128 KiB in the
// 1024 cycles in which it gives 128 KiB. So this is bound by shared memory, at the peak of mma.sp or barely below it.
// Metadata goes from global memory to registers, one slab ahead, and leaves room for three stages in 96 KiB. A slab is 64
// mma.sp, 24 ldmatrix, 8 copies and some 60 other instructions of a warp: two warps a scheduler issue 320 in 1024 cycles.

#include <type_traits>

#include "product.cuh"

namespace {

constexpr unsigned PAD = TWO_FOUR_PAD;
constexpr unsigned CHUNK = 8;                       // 16-bit numbers in 16 bytes
constexpr unsigned PADDING = 0xCCCCCCCC;            // metadata of zeros
static_assert(PAD == 64, "what a warp's 32 lanes of 16 bytes of metadata describe");

// What is kept of four 16-bit numbers, whose bits in `keep` say which.
struct Group {
    unsigned values;    // the two, the lower index in the lower half
    unsigned metadata;  // four bits
};

__device__ __forceinline__ Group pack_group(unsigned long long numbers, unsigned keep)
{
    const unsigned low = keep & 7 ? __ffs(keep & 7) - 1 : 0;
    const unsigned others = keep & ~(1u << low);
    const unsigned high = others ? 31 - __clz(others) : 3;
    const unsigned low_value = keep >> low & 1 ? static_cast<unsigned>(numbers >> 16 * low) & 0xFFFF : 0;
    const unsigned high_value = others ? static_cast<unsigned>(numbers >> 16 * high) & 0xFFFF : 0;
    return {low_value | high_value << 16, low | high << 2};
}

__device__ __forceinline__ unsigned long long unpack_group(unsigned values, unsigned metadata)
{
    const unsigned long long low = values & 0xFFFF, high = values >> 16;
    return low << 16 * (metadata & 3) | high << 16 * (metadata >> 2 & 3);
}

// Bit i says whether number i of four is neither 0 nor −0.
__device__ __forceinline__ unsigned find_group(unsigned long long numbers)
{
    unsigned keep = 0;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        keep |= (numbers >> 16 * i & 0x7FFF) != 0 ? 1u << i : 0;
    }
    return keep;
}

// A lane handles eight columns; the warp four rows at a time, 16 for a word of metadata of each lane. The metadata of a
// lane's four turns is a word of its own, of which `regroup` makes those that the layout wants: rows g and g + 8 belong to
// turns g / 4 and g / 4 + 2, and to the same lanes.
struct Part {
    unsigned rows_first, columns_first;             // of W
    unsigned long long words;                       // where its metadata begins
};

__device__ __forceinline__ bool own_part(Part& part, unsigned padded_rows, unsigned padded_columns)
{
    const unsigned across = padded_columns / PAD;
    const unsigned long long index = (static_cast<unsigned long long>(blockIdx.x) * PACK_THREADS + threadIdx.x) / 32;
    if (index >= static_cast<unsigned long long>(padded_rows / PAD) * across) {
        return false;
    }
    part = {static_cast<unsigned>(index / across) * PAD, static_cast<unsigned>(index % across) * PAD, index * 128};
    return true;
}

__device__ __forceinline__ unsigned regroup(unsigned turns, unsigned lane)
{
    const unsigned g = lane / 4, t = lane % 4;
    const unsigned left = __shfl_sync(~0u, turns, g % 4 * 8 + 2 * t), right = __shfl_sync(~0u, turns, g % 4 * 8 + 2 * t + 1);
    // Bytes: turn g / 4 of both, turn g / 4 + 2 of both.
    const unsigned turn = g / 4;
    return __byte_perm(left, right, turn | (turn + 4) << 4 | (turn + 2) << 8 | (turn + 6) << 12);
}

template <bool ALIGNED>
__device__ __forceinline__ void pack(
    const unsigned short* weight,
    const unsigned* keep,
    unsigned short* values,
    unsigned* metadata,
    unsigned long long* crowded,
    unsigned long long stride,
    unsigned long long keep_stride,
    unsigned rows,
    unsigned columns)
{
    const unsigned padded_rows = divide_up(rows, PAD) * PAD, padded_columns = divide_up(columns, PAD) * PAD;
    const unsigned lane = threadIdx.x % 32;
    Part part;
    if (!own_part(part, padded_rows, padded_columns)) {
        return;
    }
    const unsigned column = part.columns_first + lane % 8 * CHUNK;
    const unsigned left = column < columns ? min(columns - column, CHUNK) : 0;
    unsigned words[4];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        unsigned turns = 0;
#pragma unroll
        for (unsigned turn = 0; turn < 4; ++turn) {
            const unsigned row = part.rows_first + i * 16 + turn * 4 + lane / 8;
            const unsigned short* const source = weight + row * stride + column;
            unsigned long long numbers[2] = {};
            unsigned kept = 0;
            if (row < rows && left > 0) {
                if (ALIGNED && left == CHUNK) {
                    const ulonglong2 raw = *reinterpret_cast<const ulonglong2*>(source);
                    numbers[0] = raw.x;
                    numbers[1] = raw.y;
                } else {
#pragma unroll
                    for (unsigned n = 0; n < CHUNK; ++n) {
                        const unsigned long long number = n < left ? source[n] : 0;
                        numbers[n / 4] |= number << 16 * (n % 4);
                    }
                }
                kept = keep == nullptr
                    ? find_group(numbers[0]) | find_group(numbers[1]) << 4
                    : keep[row * keep_stride + column / 32] >> column % 32 & ((1u << left) - 1);
            }
            uint2 packed;
#pragma unroll
            for (unsigned half = 0; half < 2; ++half) {
                const unsigned own = kept >> 4 * half & 15;
                if (__popc(own) > 2) {
                    // The first one is named, whichever warp sees it first.
                    const unsigned long long group = static_cast<unsigned long long>(row) << 32 | (column / 4 + half);
                    atomicMin(crowded, group);
                }
                const Group group = pack_group(numbers[half], own);
                (half == 0 ? packed.x : packed.y) = group.values;
                turns |= group.metadata << (8 * turn + 4 * half);
            }
            *reinterpret_cast<uint2*>(values + (static_cast<unsigned long long>(row) * padded_columns + column) / 2) = packed;
        }
        words[i] = regroup(turns, lane);
    }
    *reinterpret_cast<uint4*>(metadata + part.words + lane * 4) = make_uint4(words[0], words[1], words[2], words[3]);
}

template <bool ALIGNED>
__device__ __forceinline__ void unpack(
    const unsigned short* values,
    const unsigned* metadata,
    unsigned short* weight,
    unsigned long long stride,
    unsigned rows,
    unsigned columns)
{
    const unsigned padded_rows = divide_up(rows, PAD) * PAD, padded_columns = divide_up(columns, PAD) * PAD;
    const unsigned lane = threadIdx.x % 32;
    Part part;
    if (!own_part(part, padded_rows, padded_columns)) {
        return;
    }
    const uint4 own = *reinterpret_cast<const uint4*>(metadata + part.words + lane * 4);
    const unsigned words[4] = {own.x, own.y, own.z, own.w};
    const unsigned column = part.columns_first + lane % 8 * CHUNK;
    const unsigned left = column < columns ? min(columns - column, CHUNK) : 0;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
#pragma unroll
        for (unsigned turn = 0; turn < 4; ++turn) {
            const unsigned within = turn * 4 + lane / 8, row = part.rows_first + i * 16 + within;
            const unsigned word = __shfl_sync(~0u, words[i], within % 8 * 4 + lane % 8 / 2);
            const unsigned byte = word >> (within / 8 * 16 + lane % 2 * 8) & 0xFF;
            if (row >= rows || left == 0) {
                continue;
            }
            const uint2 packed =
                *reinterpret_cast<const uint2*>(values + (static_cast<unsigned long long>(row) * padded_columns + column) / 2);
            const unsigned long long numbers[2] = {unpack_group(packed.x, byte & 15), unpack_group(packed.y, byte >> 4)};
            unsigned short* const target = weight + row * stride + column;
            if (ALIGNED && left == CHUNK) {
                *reinterpret_cast<ulonglong2*>(target) = make_ulonglong2(numbers[0], numbers[1]);
            } else {
#pragma unroll
                for (unsigned n = 0; n < CHUNK; ++n) {
                    if (n < left) {
                        target[n] = static_cast<unsigned short>(numbers[n / 4] >> 16 * (n % 4));
                    }
                }
            }
        }
    }
}

// nvcc passes instructions on as they are written: what its version of PTX does not have is refused by the driver alone.
#ifndef ORDERED_METADATA
#define ORDERED_METADATA (__CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1205)
#endif
#if ORDERED_METADATA
#define SPARSE "mma.sp::ordered_metadata"
#else
#define SPARSE "mma.sp"
#endif

template <unsigned VALUE>
struct Constant {
    static constexpr unsigned value = VALUE;
};

// sums += A · B for a 16 × 32 fragment of A, of which half is stored, and a 32 × 8 fragment of B.
template <class T, unsigned SELECTOR>
__device__ __forceinline__ void multiply_add_sparse(
    float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[4], unsigned metadata)
{
#define MMA_SPARSE(TYPE)                                                                                                  \
    asm(SPARSE ".sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 "                                                \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"                             \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                                      \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata), "n"(SELECTOR))
    if constexpr (std::is_same_v<T, __half>) {
        MMA_SPARSE("f16");
    } else {
        MMA_SPARSE("bf16");
    }
#undef MMA_SPARSE
}

// Thread blocks of ROW_WARPS × 2 warps, each 64 rows × WARP_TOKENS.
template <unsigned ROW_WARPS_, unsigned WARP_TOKENS_, unsigned STAGES_>
struct Shape {
    static constexpr unsigned ROW_WARPS = ROW_WARPS_, WARP_TOKENS = WARP_TOKENS_, STAGES = STAGES_;
    static constexpr unsigned ROWS = ROW_WARPS * PAD, TOKENS = 2 * WARP_TOKENS, THREADS = ROW_WARPS * 2 * 32;
    static constexpr unsigned VALUES_BYTES = ROWS * PAD, INPUTS_BYTES = TOKENS * PAD * 2;
    static constexpr unsigned STAGE_BYTES = VALUES_BYTES + INPUTS_BYTES, SHARED = STAGES * STAGE_BYTES;
};

using Wide = Shape<4, 64, TWO_FOUR_STAGES>;
// Where tokens are few, reading W is what takes time: more and smaller thread blocks, each with more bytes under way.
using Narrow = Shape<1, 16, TWO_FOUR_NARROW_STAGES>;
static_assert(Wide::ROWS == TWO_FOUR_ROWS && Wide::TOKENS == TWO_FOUR_TOKENS && Wide::THREADS == TWO_FOUR_THREADS);
static_assert(Wide::SHARED == TWO_FOUR_SHARED && Narrow::SHARED == TWO_FOUR_NARROW_SHARED, "the launch gives as much");
static_assert(Narrow::ROWS == TWO_FOUR_NARROW_ROWS && Narrow::TOKENS == TWO_FOUR_NARROW_TOKENS);
static_assert(Narrow::THREADS == TWO_FOUR_NARROW_THREADS);

// Where a chunk of 16 bytes lies in a slab. ldmatrix reads one chunk of eight rows at a time: rows of values are 64 bytes,
// two of which fill all banks, so that pairs of rows take turns; rows of inputs 128 bytes, so that single ones do.
__device__ __forceinline__ unsigned values_at(unsigned row, unsigned chunk)
{
    return row * PAD + (chunk ^ (row / 2 % 4)) * 16;
}

__device__ __forceinline__ unsigned inputs_at(unsigned token, unsigned chunk)
{
    return token * PAD * 2 + (chunk ^ (token % 8)) * 16;
}

// Four neighbours in a row of Y.
__device__ __forceinline__ void store(float* to, float4 from)
{
    *reinterpret_cast<float4*>(to) = from;
}

template <class T>
__device__ __forceinline__ T rounded(float value);

template <>
__device__ __forceinline__ float rounded(float value)
{
    return value;
}

template <>
__device__ __forceinline__ __half rounded(float value)
{
    return __float2half_rn(value);
}

template <>
__device__ __forceinline__ __nv_bfloat16 rounded(float value)
{
    return __float2bfloat16_rn(value);
}

template <class T>
__device__ __forceinline__ void store(T* to, float4 from)
{
    const T numbers[4] = {rounded<T>(from.x), rounded<T>(from.y), rounded<T>(from.z), rounded<T>(from.w)};
    uint2 raw;
    memcpy(&raw, numbers, sizeof raw);
    *reinterpret_cast<uint2*>(to) = raw;
}

template <class T, class Out, class S, bool ALIGNED>
__device__ __forceinline__ void multiply(
    const T* values,
    const unsigned* metadata,
    const T* inputs,
    Out* outputs,
    unsigned long long input_stride,
    unsigned long long output_stride,
    unsigned tokens,
    unsigned rows,
    unsigned columns)
{
    extern __shared__ __align__(128) unsigned char stages[];
    const unsigned shared = shared_address(stages);
    const unsigned padded_rows = divide_up(rows, PAD) * PAD, slabs = divide_up(columns, PAD);
    const uint2 tile = tile_full(blockIdx.x, divide_up(rows, S::ROWS), divide_up(tokens, S::TOKENS));
    const unsigned from_row = tile.x * S::ROWS, from_token = tile.y * S::TOKENS;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned warp_row = warp / 2 * PAD, warp_token = warp % 2 * S::WARP_TOKENS;

    // A thread copies one chunk of every so many rows and tokens. Slabs follow each other: addresses move on, as integers,
    // since those of rows and tokens that do not exist are computed too, though never read.
    constexpr unsigned VALUES_LINE = PAD / 2 / CHUNK, INPUTS_LINE = PAD / CHUNK;
    constexpr unsigned VALUES_STEP = S::THREADS / VALUES_LINE, INPUTS_STEP = S::THREADS / INPUTS_LINE;
    const unsigned own_row = threadIdx.x / VALUES_LINE, values_chunk = threadIdx.x % VALUES_LINE;
    const unsigned own_token = threadIdx.x / INPUTS_LINE, inputs_chunk = threadIdx.x % INPUTS_LINE;
    const unsigned long long values_stride = slabs * (PAD / 2 * 2ull);
    unsigned long long values_next =
        reinterpret_cast<unsigned long long>(values) + (from_row + own_row) * values_stride + values_chunk * 16;
    unsigned long long inputs_next =
        reinterpret_cast<unsigned long long>(inputs) + ((from_token + own_token) * input_stride + inputs_chunk * CHUNK) * 2;
    // Steps keep the swizzles: only the place of the first chunk is computed.
    static_assert(VALUES_STEP % 8 == 0 && INPUTS_STEP % 8 == 0);
    const unsigned values_to = values_at(own_row, values_chunk);
    const unsigned inputs_to = S::VALUES_BYTES + inputs_at(own_token, inputs_chunk);
    const bool inside = from_row + S::ROWS <= padded_rows && from_token + S::TOKENS <= tokens;
    unsigned fetched = 0, to_stage = 0;

    const auto fetch = [&] {
        if (fetched < slabs) {
            const unsigned column = fetched * PAD + inputs_chunk * CHUNK;
            if (ALIGNED && inside && (fetched + 1) * PAD <= columns) {
                // Most slabs. Copies of a size that is computed take six instructions each.
#pragma unroll
                for (unsigned i = 0; i < S::ROWS / VALUES_STEP; ++i) {
                    copy_async_16(
                        shared + to_stage + values_to + i * VALUES_STEP * PAD,
                        reinterpret_cast<const void*>(values_next + i * (VALUES_STEP * values_stride)),
                        16);
                }
#pragma unroll
                for (unsigned i = 0; i < S::TOKENS / INPUTS_STEP; ++i) {
                    copy_async_16(
                        shared + to_stage + inputs_to + i * INPUTS_STEP * PAD * 2,
                        reinterpret_cast<const void*>(inputs_next + i * (INPUTS_STEP * 2 * input_stride)),
                        16);
                }
            } else {
#pragma unroll
                for (unsigned i = 0; i < S::ROWS / VALUES_STEP; ++i) {
                    const bool exists = from_row + own_row + i * VALUES_STEP < padded_rows;
                    const unsigned long long source = values_next + i * (VALUES_STEP * values_stride);
                    copy_async_16(
                        shared + to_stage + values_to + i * VALUES_STEP * PAD,
                        exists ? reinterpret_cast<const void*>(source) : values,
                        exists ? 16 : 0);
                }
#pragma unroll
                for (unsigned i = 0; i < S::TOKENS / INPUTS_STEP; ++i) {
                    const bool exists = from_token + own_token + i * INPUTS_STEP < tokens && column < columns;
                    const unsigned left = exists ? min(columns - column, CHUNK) : 0;
                    const T* const source =
                        exists ? reinterpret_cast<const T*>(inputs_next + i * (INPUTS_STEP * 2 * input_stride)) : inputs;
                    const unsigned target = to_stage + inputs_to + i * INPUTS_STEP * PAD * 2;
                    if constexpr (ALIGNED) {
                        copy_async_16(shared + target, source, left * 2);
                    } else {
                        // Two bytes are less than an asynchronous copy can move. Correct for every stride; for speed, align
                        // the rows.
                        T* const to = reinterpret_cast<T*>(stages + target);
#pragma unroll
                        for (unsigned n = 0; n < CHUNK; ++n) {
                            to[n] = n < left ? source[n] : T(0.0f);
                        }
                    }
                }
            }
            ++fetched;
            to_stage = to_stage + S::STAGE_BYTES < S::SHARED ? to_stage + S::STAGE_BYTES : 0;
            values_next += PAD / 2 * 2;
            inputs_next += PAD * 2;
        }
        copies_commit();
    };
    // Warps whose rows do not exist multiply zeros.
    const bool has_rows = from_row + warp_row < padded_rows;
    const unsigned* const own_words =
        metadata + static_cast<unsigned long long>((from_row + warp_row) / PAD) * slabs * 128 + lane * 4;
    const auto fetch_words = [&](unsigned slab) {
        return has_rows && slab < slabs ? __ldg(reinterpret_cast<const uint4*>(own_words + slab * 128ull))
                                        : make_uint4(PADDING, PADDING, PADDING, PADDING);
    };

    float sums[PAD / 16][S::WARP_TOKENS / 8][4] = {};

    uint4 next_words = fetch_words(0);
    for (unsigned slab = 0; slab < S::STAGES - 1; ++slab) {
        fetch();
    }
    unsigned stage = 0;
    for (unsigned slab = 0; slab < slabs; ++slab) {
        // Every turn commits a group, be it empty: all but the newest ones are slabs up to this one.
        copies_wait<S::STAGES - 2>();
        // After this barrier all copies of the slab have arrived, and nobody reads the stage of the one before.
        __syncthreads();
        const unsigned words[4] = {next_words.x, next_words.y, next_words.z, next_words.w};
        next_words = fetch_words(slab + 1);

        const unsigned values_slab = shared + stage, inputs_slab = values_slab + S::VALUES_BYTES;
        stage = stage + S::STAGE_BYTES < S::SHARED ? stage + S::STAGE_BYTES : 0;
        const auto half = [&](auto selector) {
            constexpr unsigned SELECTOR = decltype(selector)::value;
            unsigned a[PAD / 16][4];
#pragma unroll
            for (unsigned i = 0; i < PAD / 16; ++i) {
                // Matrices: rows 0 to 7 and 8 to 15 of the left eight values, then of the right eight.
                const unsigned row = warp_row + i * 16 + lane % 16, chunk = SELECTOR * 2 + lane / 16;
                load_matrices(a[i], values_slab + values_at(row, chunk));
            }
#pragma unroll
            for (unsigned j = 0; j < S::WARP_TOKENS / 8; ++j) {
                // Matrices: eight tokens by 32 columns, eight at a time.
                unsigned b[4];
                const unsigned token = warp_token + j * 8 + lane % 8, chunk = SELECTOR * 4 + lane / 8;
                load_matrices(b, inputs_slab + inputs_at(token, chunk));
#pragma unroll
                for (unsigned i = 0; i < PAD / 16; ++i) {
                    multiply_add_sparse<T, SELECTOR>(sums[i][j], a[i], b, words[i]);
                }
            }
        };
        half(Constant<0>());
        // While the tensor cores are busy with what they were given.
        fetch();
        half(Constant<1>());
    }

    // Sums lie eight rows apart in a lane, Y wants neighbours: through shared memory, a warp in its own part of it, at most
    // 32 tokens at a time. Rows of 68 numbers put what a warp writes, four pairs of tokens by eight rows, into 32 banks.
    constexpr unsigned PASS = S::WARP_TOKENS < 32 ? S::WARP_TOKENS : 32, LINE = PAD + 4;
    static_assert(S::ROW_WARPS * 2 * PASS * LINE * 4 <= S::SHARED, "the stages have room for it");
    copies_wait<0>();
    __syncthreads();
    float* const own = reinterpret_cast<float*>(stages) + warp * PASS * LINE;
#pragma unroll
    for (unsigned pass = 0; pass < S::WARP_TOKENS; pass += PASS) {
        __syncwarp();
#pragma unroll
        for (unsigned i = 0; i < PAD / 16; ++i) {
#pragma unroll
            for (unsigned j = 0; j < PASS / 8; ++j) {
#pragma unroll
                for (unsigned n = 0; n < 4; ++n) {
                    const unsigned token = j * 8 + lane % 4 * 2 + n % 2, row = i * 16 + n / 2 * 8 + lane / 4;
                    own[token * LINE + row] = sums[i][pass / 8 + j][n];
                }
            }
        }
        __syncwarp();
#pragma unroll 4
        for (unsigned i = 0; i < PASS / 2; ++i) {
            const unsigned within = i * 2 + lane / 16, token = from_token + warp_token + pass + within;
            const unsigned row = from_row + warp_row + lane % 16 * 4;
            const float4 four = *reinterpret_cast<const float4*>(own + within * LINE + lane % 16 * 4);
            if (token >= tokens || row >= rows) {
                continue;
            }
            Out* const target = outputs + token * output_stride + row;
            if (ALIGNED && row + 4 <= rows) {
                store(target, four);
                continue;
            }
            const float numbers[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (unsigned n = 0; n < 4; ++n) {
                if (row + n < rows) {
                    target[n] = rounded<Out>(numbers[n]);
                }
            }
        }
    }
}

}  // namespace

#define PACK(NAME, ALIGNED)                                                                                               \
    extern "C" __global__ void __launch_bounds__(PACK_THREADS) pack_two_four_pack##NAME(                                  \
        const unsigned short* __restrict__ weight, /* [rows, columns] row-major, a row every stride */                    \
        const unsigned* __restrict__ keep,         /* u32 [rows, columns / 32 up], a row every keep_stride; null: what is not zero */ \
        unsigned short* __restrict__ values,       /* [R, C / 2], out */                                                  \
        unsigned* __restrict__ metadata,           /* u32 [R / 64, C / 64, 32, 4], out */                                 \
        unsigned long long* crowded,               /* u64, in/out: the least row · 2³² + group that keeps more than two */ \
        unsigned long long stride,                                                                                        \
        unsigned long long keep_stride,                                                                                   \
        unsigned rows,                                                                                                    \
        unsigned columns)                                                                                                 \
    {                                                                                                                     \
        pack<ALIGNED>(weight, keep, values, metadata, crowded, stride, keep_stride, rows, columns);                       \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(PACK_THREADS) pack_two_four_unpack##NAME(                                \
        const unsigned short* __restrict__ values, /* [R, C / 2] */                                                       \
        const unsigned* __restrict__ metadata,     /* u32 [R / 64, C / 64, 32, 4] */                                      \
        unsigned short* __restrict__ weight,       /* [rows, columns] row-major, a row every stride, out */               \
        unsigned long long stride,                                                                                        \
        unsigned rows,                                                                                                    \
        unsigned columns)                                                                                                 \
    {                                                                                                                     \
        unpack<ALIGNED>(values, metadata, weight, stride, rows, columns);                                                 \
    }

PACK(, true)
PACK(_any, false)

#define MULTIPLY(NAME, TYPE, OUT, SHAPE, ALIGNED, BLOCKS)                                                                 \
    extern "C" __global__ void __launch_bounds__(SHAPE::THREADS, BLOCKS) NAME(                                            \
        const TYPE* __restrict__ values,           /* [R, C / 2] */                                                       \
        const unsigned* __restrict__ metadata,     /* u32 [R / 64, C / 64, 32, 4] */                                      \
        const TYPE* __restrict__ inputs,           /* [tokens, columns] row-major, a row every input_stride */            \
        OUT* __restrict__ outputs,                 /* [tokens, rows] row-major, a row every output_stride, out */         \
        unsigned long long input_stride,                                                                                  \
        unsigned long long output_stride,                                                                                 \
        unsigned tokens,                                                                                                  \
        unsigned rows,                                                                                                    \
        unsigned columns)                                                                                                 \
    {                                                                                                                     \
        multiply<TYPE, OUT, SHAPE, ALIGNED>(                                                                              \
            values, metadata, inputs, outputs, input_stride, output_stride, tokens, rows, columns);                       \
    }

#define MULTIPLY_ALL(NAME, TYPE, OUT)                      \
    MULTIPLY(NAME, TYPE, OUT, Wide, true, 1)               \
    MULTIPLY(NAME##_narrow, TYPE, OUT, Narrow, true, 1)    \
    MULTIPLY(NAME##_any, TYPE, OUT, Narrow, false, 1)

MULTIPLY_ALL(pack_two_four_multiply_f16, __half, __half)
MULTIPLY_ALL(pack_two_four_multiply_f16_f32, __half, float)
MULTIPLY_ALL(pack_two_four_multiply_bf16, __nv_bfloat16, __nv_bfloat16)
MULTIPLY_ALL(pack_two_four_multiply_bf16_f32, __nv_bfloat16, float)
