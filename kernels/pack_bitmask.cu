// A pruned weight as a bitmask and the values that it keeps; back again; and its product with a few vectors.
//
//   bits[r][j / 32] >> j % 32 & 1 = 1 where (r, j) is kept;   values = (Q_rj kept, row by row, in order of columns)
//   offsets[r] = kept before row r;                           y_r = Σ_j kept Q_rj · x_j
//
// Dimensions: Q [rows, columns], bits u32 [rows, ⌈columns / 32⌉], offsets u64 [rows + 1], values [offsets[rows]],
//             x [1 to 8, columns], y [1 to 8, rows]. Q of 16 or 32 bits a number: only products look at what they mean.
// Launch:     (rows, a warp each) × PACK_THREADS; pack_bitmask_offsets: 1 × REDUCE_THREADS. Shared memory is static:
//             for products BITMASK_DEPTH · BITMASK_BLOCK bytes and 16 a warp.
// Requires:   bits that are zero beyond the columns, as all that this file writes. Products: x with rows that begin at
//             multiples of 8 bytes, or the entry `…_any`, one vector at a time, for every other stride.
// Oracle:     the dense matrix with what is dropped set to zero, bit by bit; for products reference::Matrix::times
// Tolerance:  packing none. Products: γ(columns) · Σ|Q_rj·x_j| and one rounding of y, in any order of sums
//             (testkit::tolerance::{gemm_tolerance, stored_tolerance}); 16-bit products are exact.
//
// Bytes: a 16-bit weight takes 2·d + 1/8 for each of rows · columns at density d where the dense one takes 2, 9/16 at one
// half (f32: 17/32); inputs are read from L1. Packing reads Q twice (once with a mask) and writes what is kept.
// A model of the product with one f16 vector, half of them kept: 128 columns of a row are 144 bytes, 11 cycles of an A100's
// memory (13 bytes a cycle and multiprocessor), in which its schedulers issue 44 instructions; SASS has 37 for them in the
// loop, 54 with all that is around it. It is bound by those, at four fifths of what memory can give, where the dense product is
// bound by memory: 1.4 times as fast as that. More vectors share everything but their own sums.
// A lane a column, which is simpler, takes a prefix of bits for each one: about twice the instructions.

#include "common.cuh"

namespace {

constexpr unsigned WORD = 32;

__device__ __forceinline__ unsigned own_row()
{
    return blockIdx.x * (PACK_THREADS / 32) + threadIdx.x / 32;
}

// Σ over the lanes before this one.
__device__ __forceinline__ unsigned sum_before(unsigned value)
{
    unsigned sum = value;
#pragma unroll
    for (unsigned distance = 1; distance < 32; distance *= 2) {
        // The predicate says whether there is a lane so far before.
        asm volatile("{ .reg .u32 other; .reg .pred p; shfl.sync.up.b32 other|p, %0, %1, 0, 0xffffffff; @p add.u32 %0, %0, other; }"
                     : "+r"(sum)
                     : "r"(distance));
    }
    return sum - value;
}

template <bool VALUE>
struct Constant {
    static constexpr bool value = VALUE;
};

// Whether a number is neither 0 nor −0: in every format these are zero behind the sign.
template <class Bits>
__device__ __forceinline__ bool is_something(Bits bits)
{
    return static_cast<Bits>(bits << 1) != 0;
}

template <class Bits>
__device__ __forceinline__ void find(
    const Bits* weight, unsigned* bits, unsigned* counts, unsigned long long stride, unsigned rows, unsigned columns)
{
    // As many reads are under way at one time; eight words are a sector.
    constexpr unsigned WORDS = 8;
    const unsigned row = own_row(), lane = threadIdx.x % 32, words = divide_up(columns, WORD);
    if (row >= rows) {
        return;
    }
    const Bits* const own = weight + row * stride;
    unsigned* const own_bits = bits + static_cast<unsigned long long>(row) * words;
    unsigned count = 0;
    for (unsigned first = 0; first < words; first += WORDS) {
        Bits numbers[WORDS];
#pragma unroll
        for (unsigned i = 0; i < WORDS; ++i) {
            const unsigned column = (first + i) * WORD + lane;
            numbers[i] = column < columns ? own[column] : Bits(0);
        }
        unsigned word = 0;
#pragma unroll
        for (unsigned i = 0; i < WORDS; ++i) {
            const unsigned ballot = __ballot_sync(~0u, is_something(numbers[i]));
            word = lane == i ? ballot : word;
        }
        if (lane < WORDS && first + lane < words) {
            own_bits[first + lane] = word;
        }
        count += __popc(word);
    }
    count = __reduce_add_sync(~0u, count);
    if (lane == 0) {
        counts[row] = count;
    }
}

// Calls `each(column, kept, position)` for every column of whole words: a lane a column, and where in `values` it is.
template <class Each>
__device__ __forceinline__ void walk(
    const unsigned* bits, const unsigned long long* offsets, unsigned row, unsigned columns, const Each& each)
{
    const unsigned lane = threadIdx.x % 32, words = divide_up(columns, WORD);
    const unsigned* const own = bits + static_cast<unsigned long long>(row) * words;
    unsigned long long at = offsets[row];
    for (unsigned first = 0; first < words; first += 32) {
        const unsigned mine = first + lane < words ? own[first + lane] : 0;
        const unsigned count = __popc(mine), before = sum_before(count);
        const unsigned end = min(words - first, 32u);
#pragma unroll 8
        for (unsigned i = 0; i < end; ++i) {
            const unsigned word = __shfl_sync(~0u, mine, i), start = __shfl_sync(~0u, before, i);
            each((first + i) * WORD + lane, (word >> lane & 1) != 0, at + start + __popc(word & ((1u << lane) - 1)));
        }
        at += __shfl_sync(~0u, before + count, 31);
    }
}

template <class Bits>
__device__ __forceinline__ void collect(
    const Bits* weight,
    const unsigned* bits,
    const unsigned long long* offsets,
    Bits* values,
    unsigned long long stride,
    unsigned rows,
    unsigned columns)
{
    const unsigned row = own_row();
    if (row >= rows) {
        return;
    }
    const Bits* const own = weight + row * stride;
    walk(bits, offsets, row, columns, [&](unsigned column, bool kept, unsigned long long position) {
        if (kept) {
            values[position] = own[column];
        }
    });
}

template <class Bits>
__device__ __forceinline__ void spread(
    const unsigned* bits,
    const unsigned long long* offsets,
    const Bits* values,
    Bits* weight,
    unsigned long long stride,
    unsigned rows,
    unsigned columns)
{
    const unsigned row = own_row();
    if (row >= rows) {
        return;
    }
    Bits* const own = weight + row * stride;
    walk(bits, offsets, row, columns, [&](unsigned column, bool kept, unsigned long long position) {
        if (column < columns) {
            own[column] = kept ? values[position] : Bits(0);
        }
    });
}

// The number at `address` in shared memory, which then moves on, or nothing of any meaning if `kept` is zero. As a predicate:
// branches would wait for one load after the other.
template <class T>
__device__ __forceinline__ float take(unsigned& address, unsigned kept);

template <>
__device__ __forceinline__ float take<float>(unsigned& address, unsigned kept)
{
    float value;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.shared.f32 %0, [%1]; @p add.u32 %1, %1, 4; }"
                 : "=f"(value), "+r"(address)
                 : "r"(kept)
                 : "memory");
    return value;
}

template <>
__device__ __forceinline__ float take<__half>(unsigned& address, unsigned kept)
{
    float value;
    asm volatile("{ .reg .pred p; .reg .b16 h; setp.ne.u32 p, %2, 0; @p ld.shared.b16 h, [%1]; @p add.u32 %1, %1, 2; "
                 "cvt.f32.f16 %0, h; }"
                 : "=f"(value), "+r"(address)
                 : "r"(kept)
                 : "memory");
    return value;
}

template <>
__device__ __forceinline__ float take<__nv_bfloat16>(unsigned& address, unsigned kept)
{
    unsigned value;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.shared.u16 %0, [%1]; @p add.u32 %1, %1, 2; }"
                 : "=r"(value), "+r"(address)
                 : "r"(kept)
                 : "memory");
    return __uint_as_float(value << 16);
}

// sum += a · b, unless `kept` is zero.
__device__ __forceinline__ void multiply_add_if(float& sum, float a, float b, unsigned kept)
{
    asm("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p fma.rn.f32 %0, %1, %2, %0; }" : "+f"(sum) : "f"(a), "f"(b), "r"(kept));
}

// What `take` and `multiply_add_if` do for all columns of a lane and one vector, in one piece, so that a predicate is computed
// once: a tenth of the inner loop.
#define MULTIPLY_FOUR(WIDEN)                                                                                              \
    asm volatile(                                                                                                         \
        "{ .reg .pred p<4>; .reg .u32 b<4>; .reg .b16 h<4>, zero; .reg .f32 v<4>;\n"                                      \
        "mov.b16 zero, 0; and.b32 b0, %2, 1; and.b32 b1, %2, 2; and.b32 b2, %2, 4; and.b32 b3, %2, 8;\n"                  \
        "setp.ne.u32 p0, b0, 0; setp.ne.u32 p1, b1, 0; setp.ne.u32 p2, b2, 0; setp.ne.u32 p3, b3, 0;\n"                   \
        "@p0 ld.shared.b16 h0, [%1]; @p0 add.u32 %1, %1, 2; @p1 ld.shared.b16 h1, [%1]; @p1 add.u32 %1, %1, 2;\n"         \
        "@p2 ld.shared.b16 h2, [%1]; @p2 add.u32 %1, %1, 2; @p3 ld.shared.b16 h3, [%1];\n"                                \
        WIDEN("0") WIDEN("1") WIDEN("2") WIDEN("3")                                                                       \
        "@p0 fma.rn.f32 %0, v0, %3, %0; @p1 fma.rn.f32 %0, v1, %4, %0;\n"                                                 \
        "@p2 fma.rn.f32 %0, v2, %5, %0; @p3 fma.rn.f32 %0, v3, %6, %0; }"                                                 \
        : "+f"(sum), "+r"(address)                                                                                        \
        : "r"(kept), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])                                                           \
        : "memory")

__device__ __forceinline__ void multiply_lane(float& sum, unsigned address, unsigned kept, const float (&x)[4], __half)
{
#define WIDEN(I) "cvt.f32.f16 v" I ", h" I ";\n"
    MULTIPLY_FOUR(WIDEN);
#undef WIDEN
}

__device__ __forceinline__ void multiply_lane(float& sum, unsigned address, unsigned kept, const float (&x)[4], __nv_bfloat16)
{
#define WIDEN(I) "mov.b32 v" I ", {zero, h" I "};\n"
    MULTIPLY_FOUR(WIDEN);
#undef WIDEN
}

__device__ __forceinline__ void multiply_lane(float& sum, unsigned address, unsigned kept, const float (&x)[2], float)
{
    asm volatile("{ .reg .pred p<2>; .reg .u32 b<2>; .reg .f32 v<2>;\n"
                 "and.b32 b0, %2, 1; and.b32 b1, %2, 2; setp.ne.u32 p0, b0, 0; setp.ne.u32 p1, b1, 0;\n"
                 "@p0 ld.shared.f32 v0, [%1]; @p0 add.u32 %1, %1, 4; @p1 ld.shared.f32 v1, [%1];\n"
                 "@p0 fma.rn.f32 %0, v0, %3, %0; @p1 fma.rn.f32 %0, v1, %4, %0; }"
                 : "+f"(sum), "+r"(address)
                 : "r"(kept), "f"(x[0]), "f"(x[1])
                 : "memory");
}

// 8 bytes of columns as floats.
__device__ __forceinline__ void widen(float (&to)[2], uint2 from, float)
{
    to[0] = __uint_as_float(from.x);
    to[1] = __uint_as_float(from.y);
}

__device__ __forceinline__ void widen(float (&to)[4], uint2 from, __half)
{
    const unsigned words[2] = {from.x, from.y};
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
        __half2 pair;
        memcpy(&pair, &words[i], sizeof pair);
        to[2 * i] = __low2float(pair);
        to[2 * i + 1] = __high2float(pair);
    }
}

__device__ __forceinline__ void widen(float (&to)[4], uint2 from, __nv_bfloat16)
{
    to[0] = __uint_as_float(from.x << 16);
    to[1] = __uint_as_float(from.x & 0xFFFF0000);
    to[2] = __uint_as_float(from.y << 16);
    to[3] = __uint_as_float(from.y & 0xFFFF0000);
}

template <class T>
__device__ __forceinline__ T from_float(float value);

template <>
__device__ __forceinline__ float from_float(float value)
{
    return value;
}

template <>
__device__ __forceinline__ __half from_float(float value)
{
    return __float2half_rn(value);
}

template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float value)
{
    return __float2bfloat16_rn(value);
}

// A lane takes 8 bytes of columns at a time: four of 16 bits, or two of 32. Its first value is as many behind the warp's
// as bits are set before its own. Lanes thus read from shared memory a stretch without gaps, of 128 bytes where half of
// the columns are kept: no bank twice but where more are kept, and never more than two times.
//
// Values come through a ring of BITMASK_DEPTH blocks in shared memory, filled by 16-byte copies that do not know of bits.
// A block has as many values as a chunk has columns, so that
//   - a chunk reads from the block in which it begins and from the next one, and
//   - the block in which the next chunk begins is at most one further: one copy a chunk, which may be of nothing, keeps
//     BITMASK_DEPTH blocks from there on under way or arrived.
// The later of the two blocks was thus copied at least BITMASK_DEPTH − 2 chunks ago. Behind the ring stands a copy of its
// first 16 bytes, so that a lane's values have consecutive addresses.
template <class T, unsigned VECTORS, bool ALIGNED>
__device__ __forceinline__ void multiply(
    const unsigned* bits,
    const unsigned long long* offsets,
    const T* values,
    const T* inputs,
    T* outputs,
    unsigned long long input_stride,
    unsigned long long output_stride,
    unsigned rows,
    unsigned columns,
    unsigned vectors)
{
    constexpr unsigned EACH = 8 / sizeof(T);                 // columns of a lane in a step
    constexpr unsigned STEP = 32 * EACH, STEP_WORDS = EACH;  // of the warp
    constexpr unsigned BLOCK = BITMASK_BLOCK / sizeof(T), CHUNK_WORDS = BLOCK / WORD;
    constexpr unsigned COPY = 16 / sizeof(T), COPIES = BITMASK_BLOCK / (32 * 16);
    constexpr unsigned RING = BITMASK_DEPTH * BITMASK_BLOCK; // bytes
    constexpr unsigned WARPS = PACK_THREADS / 32;
    static_assert(BLOCK % STEP == 0 && 32 % CHUNK_WORDS == 0 && COPIES > 0);
    static_assert(BITMASK_DEPTH >= 3 && (BITMASK_DEPTH & (BITMASK_DEPTH - 1)) == 0, "positions wrap by a mask");

    __shared__ __align__(16) unsigned char rings[WARPS][RING + 16];
    const unsigned row = own_row(), lane = threadIdx.x % 32, words = divide_up(columns, WORD);
    if (row >= rows) {
        return;
    }
    unsigned ring = shared_address(rings[threadIdx.x / 32]);
    // Kept in a register, where the compiler would compute it anew for each step.
    asm volatile("" : "+r"(ring));
    const unsigned* const own = bits + static_cast<unsigned long long>(row) * words;
    // Copies begin at multiples of 16 bytes: what lies there of the row before is not looked at.
    const unsigned long long begin = offsets[row], end = offsets[row + 1];
    const unsigned skipped = begin % COPY;
    const unsigned count = skipped + static_cast<unsigned>(end - begin), blocks = divide_up(count, BLOCK);
    const T* source = values + (begin - skipped) + lane * COPY;

    unsigned issued = 0;
    const auto fetch = [&] {
        if (issued < blocks) {
            const unsigned to = ring + issued % BITMASK_DEPTH * BITMASK_BLOCK + lane * 16;
            const bool first = issued % BITMASK_DEPTH == 0 && lane == 0;
            if (++issued < blocks) {
#pragma unroll
                for (unsigned i = 0; i < COPIES; ++i) {
                    copy_async_16(to + i * 32 * 16, source + i * 32 * COPY, 16);
                }
                if (first) {
                    copy_async_16(ring + RING, source, 16);
                }
            } else {
#pragma unroll
                for (unsigned i = 0; i < COPIES; ++i) {
                    const unsigned at = (issued - 1) * BLOCK + (i * 32 + lane) * COPY;
                    const unsigned left = at < count ? min(count - at, COPY) : 0;
                    copy_async_16(to + i * 32 * 16, left > 0 ? source + i * 32 * COPY : values, left * sizeof(T));
                    if (first && i == 0) {
                        copy_async_16(ring + RING, left > 0 ? source : values, left * sizeof(T));
                    }
                }
            }
            source += BLOCK;
        }
    };
    for (unsigned block = 0; block < BITMASK_DEPTH; ++block) {
        fetch();
        copies_commit();
    }

    const unsigned shift = lane * EACH % WORD, before = (1u << shift) - 1;
    float sums[VECTORS] = {};
    // One chunk: those of the last batch of words may reach beyond the columns, and are guarded.
    const auto chunk = [&](auto whole, unsigned first, unsigned word_first, unsigned mine, unsigned start) {
        const unsigned column_first = first * WORD + lane * EACH;
        const T* const inputs_first = inputs + column_first;
#pragma unroll(VECTORS == 1 ? BLOCK / STEP : VECTORS == 2 ? 2 : 1)
        for (unsigned step = 0; step < BLOCK / STEP; ++step) {
            const unsigned column = column_first + step * STEP;
            float x[VECTORS][EACH];
#pragma unroll
            for (unsigned v = 0; v < VECTORS; ++v) {
                // A vector that does not exist is the first one again.
                const T* const vector = inputs_first + (v < vectors ? v * input_stride : 0) + step * STEP;
                if (ALIGNED && (decltype(whole)::value || column + EACH <= columns)) {
                    widen(x[v], __ldg(reinterpret_cast<const uint2*>(vector)), T());
                } else {
                    T numbers[EACH];
#pragma unroll
                    for (unsigned i = 0; i < EACH; ++i) {
                        numbers[i] = column + i < columns ? vector[i] : T(0.0f);
                    }
                    uint2 raw;
                    memcpy(&raw, numbers, sizeof raw);
                    widen(x[v], raw, T());
                }
            }
            const unsigned from = word_first + step * STEP_WORDS + lane * EACH / WORD;
            const unsigned word = __shfl_sync(~0u, mine, from);
            const unsigned position = __shfl_sync(~0u, start, from) + __popc(word & before) * sizeof(T);
            unsigned address = ring + position % RING;
            const unsigned kept = word >> shift;
            if constexpr (VECTORS == 1) {
                multiply_lane(sums[0], address, kept, x[0], T());
            } else {
                float taken[EACH];
#pragma unroll
                for (unsigned i = 0; i < EACH; ++i) {
                    taken[i] = take<T>(address, kept & 1u << i);
                }
#pragma unroll
                for (unsigned i = 0; i < EACH; ++i) {
#pragma unroll
                    for (unsigned v = 0; v < VECTORS; ++v) {
                        multiply_add_if(sums[v], taken[i], x[v][i], kept & 1u << i);
                    }
                }
            }
        }
    };

    // Positions within the row's values are counted in bytes from here on.
    unsigned at = skipped * sizeof(T);
    unsigned next = lane < words ? own[lane] : 0;
    for (unsigned first = 0; first < words; first += 32) {
        const unsigned mine = next;
        next = first + 32 + lane < words ? own[first + 32 + lane] : 0;
        const unsigned own_bytes = __popc(mine) * sizeof(T), start = at + sum_before(own_bytes);
        at = __shfl_sync(~0u, start + own_bytes, 31);
#pragma unroll 1
        for (unsigned word_first = 0; word_first < 32 && first + word_first < words; word_first += CHUNK_WORDS) {
            copies_wait<BITMASK_DEPTH - 2>();
            __syncwarp();
            if ((first + word_first + CHUNK_WORDS) * WORD <= columns) {
                chunk(Constant<true>(), first + word_first, word_first, mine, start);
            } else {
                chunk(Constant<false>(), first + word_first, word_first, mine, start);
            }
            // All lanes have read what the next copy writes over.
            __syncwarp();
            const unsigned after = word_first + CHUNK_WORDS < 32 ? __shfl_sync(~0u, start, word_first + CHUNK_WORDS) : at;
            if (issued < after / BITMASK_BLOCK + BITMASK_DEPTH) {
                fetch();
            }
            copies_commit();
        }
    }
    copies_wait<0>();

#pragma unroll
    for (unsigned v = 0; v < VECTORS; ++v) {
#pragma unroll
        for (unsigned distance = 16; distance > 0; distance /= 2) {
            sums[v] += __shfl_xor_sync(~0u, sums[v], distance);
        }
        if (lane == 0 && v < vectors) {
            outputs[v * output_stride + row] = from_float<T>(sums[v]);
        }
    }
}

}  // namespace

// What is not zero is kept.
#define PACK(BITS, TYPE)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(PACK_THREADS) pack_bitmask_find_##BITS(                                  \
        const TYPE* __restrict__ weight,        /* [rows, columns] row-major, a row every stride */                       \
        unsigned* __restrict__ bits,            /* u32 [rows, columns / 32 up], out */                                    \
        unsigned* __restrict__ counts,          /* u32 [rows], out: how many are kept */                                  \
        unsigned long long stride,                                                                                        \
        unsigned rows,                                                                                                    \
        unsigned columns)                                                                                                 \
    {                                                                                                                     \
        find<TYPE>(weight, bits, counts, stride, rows, columns);                                                          \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(PACK_THREADS) pack_bitmask_values_##BITS(                                \
        const TYPE* __restrict__ weight,        /* [rows, columns] row-major, a row every stride */                       \
        const unsigned* __restrict__ bits,      /* u32 [rows, columns / 32 up] */                                         \
        const unsigned long long* offsets,      /* u64 [rows + 1] */                                                      \
        TYPE* __restrict__ values,              /* [offsets[rows]], out */                                                \
        unsigned long long stride,                                                                                        \
        unsigned rows,                                                                                                    \
        unsigned columns)                                                                                                 \
    {                                                                                                                     \
        collect<TYPE>(weight, bits, offsets, values, stride, rows, columns);                                              \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(PACK_THREADS) pack_bitmask_unpack_##BITS(                                \
        const unsigned* __restrict__ bits,      /* u32 [rows, columns / 32 up] */                                         \
        const unsigned long long* offsets,      /* u64 [rows + 1] */                                                      \
        const TYPE* __restrict__ values,        /* [offsets[rows]] */                                                     \
        TYPE* __restrict__ weight,              /* [rows, columns] row-major, a row every stride, out */                  \
        unsigned long long stride,                                                                                        \
        unsigned rows,                                                                                                    \
        unsigned columns)                                                                                                 \
    {                                                                                                                     \
        spread<TYPE>(bits, offsets, values, weight, stride, rows, columns);                                               \
    }

PACK(16, unsigned short)
PACK(32, unsigned)

// What a mask keeps is kept, be it zero.
extern "C" __global__ void __launch_bounds__(PACK_THREADS) pack_bitmask_keep(
    const unsigned* __restrict__ keep,         // u32 [rows, columns / 32 up] row-major, a row every stride
    unsigned* __restrict__ bits,               // u32 [rows, columns / 32 up], out: the same, zero beyond the columns
    unsigned* __restrict__ counts,             // u32 [rows], out: how many are kept
    unsigned long long stride,
    unsigned rows,
    unsigned columns)
{
    const unsigned row = own_row(), lane = threadIdx.x % 32, words = divide_up(columns, WORD);
    if (row >= rows) {
        return;
    }
    const unsigned* const own = keep + row * stride;
    unsigned* const own_bits = bits + static_cast<unsigned long long>(row) * words;
    unsigned count = 0;
    for (unsigned at = lane; at < words; at += 32) {
        const unsigned left = columns - at * WORD;
        const unsigned word = own[at] & (left < WORD ? (1u << left) - 1 : ~0u);
        own_bits[at] = word;
        count += __popc(word);
    }
    count = __reduce_add_sync(~0u, count);
    if (lane == 0) {
        counts[row] = count;
    }
}

// offsets[r] = Σ counts before r. One thread block: a sum over rows, of which there are some ten thousands.
extern "C" __global__ void __launch_bounds__(REDUCE_THREADS) pack_bitmask_offsets(
    const unsigned* __restrict__ counts,       // u32 [rows]
    unsigned long long* __restrict__ offsets,  // u64 [rows + 1], out
    unsigned rows)
{
    constexpr unsigned EACH = 8;
    __shared__ unsigned long long totals[REDUCE_THREADS / 32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned long long at = 0;
    for (unsigned first = 0; first < rows; first += EACH * REDUCE_THREADS) {
        unsigned own[EACH];
        unsigned long long sum = 0;
#pragma unroll
        for (unsigned i = 0; i < EACH; ++i) {
            const unsigned row = first + threadIdx.x * EACH + i;
            own[i] = row < rows ? counts[row] : 0;
            sum += own[i];
        }
        unsigned long long until = sum;
#pragma unroll
        for (unsigned distance = 1; distance < 32; distance *= 2) {
            const unsigned long long other = __shfl_up_sync(~0u, until, distance);
            until += lane >= distance ? other : 0;
        }
        if (lane == 31) {
            totals[warp] = until;
        }
        __syncthreads();
        unsigned long long before = at + until - sum;
        for (unsigned other = 0; other < REDUCE_THREADS / 32; ++other) {
            before += other < warp ? totals[other] : 0;
            at += totals[other];
        }
#pragma unroll
        for (unsigned i = 0; i < EACH; ++i) {
            const unsigned row = first + threadIdx.x * EACH + i;
            if (row < rows) {
                offsets[row] = before;
            }
            before += own[i];
        }
        // Nobody writes totals of the next turn while they are read.
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        offsets[rows] = at;
    }
}

#define MULTIPLY(NAME, TYPE, VECTORS, ALIGNED)                                                                            \
    extern "C" __global__ void __launch_bounds__(PACK_THREADS, VECTORS > 2 ? 2 : 3) NAME(                                 \
        const unsigned* __restrict__ bits,      /* u32 [rows, columns / 32 up] */                                         \
        const unsigned long long* offsets,      /* u64 [rows + 1] */                                                      \
        const TYPE* __restrict__ values,        /* [offsets[rows]], at a multiple of 16 bytes */                          \
        const TYPE* __restrict__ inputs,        /* [vectors, columns] row-major, a row every input_stride */              \
        TYPE* __restrict__ outputs,             /* [vectors, rows] row-major, a row every output_stride, out */           \
        unsigned long long input_stride,                                                                                  \
        unsigned long long output_stride,                                                                                 \
        unsigned rows,                                                                                                    \
        unsigned columns,                                                                                                 \
        unsigned vectors)                       /* at most as many as the name says */                                    \
    {                                                                                                                     \
        multiply<TYPE, VECTORS, ALIGNED>(                                                                                 \
            bits, offsets, values, inputs, outputs, input_stride, output_stride, rows, columns, vectors);                 \
    }

#define MULTIPLY_ALL(NAME, TYPE)             \
    MULTIPLY(NAME##_x1, TYPE, 1, true)       \
    MULTIPLY(NAME##_x2, TYPE, 2, true)       \
    MULTIPLY(NAME##_x4, TYPE, 4, true)       \
    MULTIPLY(NAME##_x8, TYPE, 8, true)       \
    MULTIPLY(NAME##_any, TYPE, 1, false)

MULTIPLY_ALL(pack_bitmask_multiply_f16, __half)
MULTIPLY_ALL(pack_bitmask_multiply_bf16, __nv_bfloat16)
MULTIPLY_ALL(pack_bitmask_multiply_f32, float)
