// Causal self-attention over whole sequences, without ever holding the scores.
//
//   O_i = Σ_{j sees} p_ij · V_j / Σ_j p_ij,   p_ij = exp(Q_i·K_j / √d − slope · (i − j)),   i − window < j ≤ i
//
// Dimensions: Q [tokens, heads] and K, V [tokens, kv_heads] of heads of d columns, f16 or bf16, d from 1 to 256; heads of one
//             token lie anywhere at equal distances. Tokens are those of sequences of `length`, one after another. Head h
//             reads keys and values of head h / (heads / kv_heads). O [tokens, heads · d] in the type of Q.
// Launch:     (query tiles, heads, sequences) × ATTENTION_THREADS with ATTENTION_SHARED_… of the smallest width ≥ d. The last
//             query tile, which sees most keys, comes first: what is left at the end is short.
// Requires:   tokens and heads that start at multiples of 16 bytes, or the entry `…_any` for everything else.
// Oracle:     reference::attention
// Tolerance:  scores are exact products summed in f32; p is rounded to the type of V for its product, and its sum is that of
//             rounded numbers, so that weights sum to one and a rounding shifts weight but adds none. The result is rounded
//             once more. testkit::tolerance::attention_tolerance
//
// p is not kept in more than 16 bits: the result is, and its rounding is as large as the largest that the p bring. Their
// errors have random signs, and shrink where many keys share the weight.
//
// Operations: 4 · d for every pair of query and key that sees. Bytes: each query tile reads itself and the keys and values
// that it sees, which other tiles left in L2.
//
// A warp has 32 queries: each fragment of K and V that it reads serves two products, so that shared memory is busy 5 cycles of
// the 8 that the tensor cores take. O, 32 × d f32, stays in registers, and so do the scores, whose layout as sums is the
// layout of p as an operand. Two thread blocks fit on a multiprocessor of an A100: softmax of one beside products of the other.

#include "common.cuh"

namespace {

constexpr unsigned CHUNK = 8;                                  // 16-bit numbers in 16 bytes
constexpr unsigned WARPS = ATTENTION_THREADS / 32;
constexpr float NEVER = -INFINITY;

template <class T>
struct Pair;

template <>
struct Pair<__half> {
    static constexpr unsigned ONES = 0x3c003c00;
    static __device__ __forceinline__ unsigned of(float low, float high)
    {
        const __half2 pair = __floats2half2_rn(low, high);
        return *reinterpret_cast<const unsigned*>(&pair);
    }
};

template <>
struct Pair<__nv_bfloat16> {
    static constexpr unsigned ONES = 0x3f803f80;
    static __device__ __forceinline__ unsigned of(float low, float high)
    {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<const unsigned*>(&pair);
    }
};

// 2^x with an error of at most two units in the last place (PTX ISA, ex2.approx); results below 2^-126 are zero.
__device__ __forceinline__ float power_of_two(float x)
{
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// The largest number of a row of sums, whose columns four lanes share.
__device__ __forceinline__ float largest_of_row(float value)
{
    value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
    return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}

// WIDTH: columns of a head in shared memory, those beyond d zeros.
template <unsigned WIDTH>
struct Shape {
    static constexpr bool WIDE = WIDTH > 128;
    static constexpr unsigned QUERIES = WIDE ? ATTENTION_WIDE_QUERIES : ATTENTION_QUERIES;
    static constexpr unsigned KEYS = WIDE ? ATTENTION_WIDE_KEYS : ATTENTION_KEYS;
    static constexpr unsigned LINE = WIDTH / CHUNK;            // chunks of a token
    static constexpr unsigned ROWS = QUERIES / WARPS;          // queries of a warp
    static constexpr unsigned QUERY_BYTES = QUERIES * WIDTH * 2;
    static constexpr unsigned TILE_BYTES = KEYS * WIDTH * 2;
    static constexpr unsigned SHARED = QUERY_BYTES + ATTENTION_STAGES * TILE_BYTES;

    // Where a chunk lies, in bytes. Eight tokens at one chunk, as ldmatrix reads them, and eight chunks in a row, as copies
    // write them, meet all banks once. Lines that are an odd multiple of 64 bytes alternate between halves of the banks.
    static __device__ __forceinline__ unsigned at(unsigned token, unsigned chunk)
    {
        static_assert(LINE % 4 == 0, "lines of whole halves of the banks");
        const unsigned turn = LINE % 8 == 0 ? token % 8 : token / 2 % 4;
        return (token * LINE + (chunk ^ turn)) * 16;
    }

    // at(token, first + chunk) from at(token, first), for a first chunk of 0 or 1 and an even `chunk`: the few different turns
    // are computed once, and what is left is an offset of the instruction.
    static __device__ __forceinline__ unsigned ahead(unsigned place, unsigned chunk)
    {
        constexpr unsigned TURNED = LINE % 8 == 0 ? 7 : 3;
        return (place ^ (chunk & TURNED) * 16) + (chunk & ~TURNED) * 16;
    }
};

static_assert(Shape<32>::SHARED == ATTENTION_SHARED_32, "the launch gives as much");
static_assert(Shape<64>::SHARED == ATTENTION_SHARED_64, "the launch gives as much");
static_assert(Shape<96>::SHARED == ATTENTION_SHARED_96, "the launch gives as much");
static_assert(Shape<128>::SHARED == ATTENTION_SHARED_128, "the launch gives as much");
static_assert(Shape<256>::SHARED == ATTENTION_SHARED_256, "the launch gives as much");

// A thread's part of the copies of one head's tokens. Zeros stand for tokens that there are not and columns from `columns` on,
// which are not read. What does not change from tile to tile is computed once.
template <class T, unsigned WIDTH, bool ALIGNED>
struct TileCopy {
    using S = Shape<WIDTH>;
    // Tokens that all threads copy at once: of heads of 96 columns eight, by three quarters of the threads.
    static constexpr unsigned LINES = ATTENTION_THREADS / S::LINE / 4 * 4;
    static constexpr bool ALL = LINES * S::LINE == ATTENTION_THREADS;
    unsigned token, column, left;

    __device__ __forceinline__ explicit TileCopy(unsigned columns)
        : token(threadIdx.x / S::LINE), column(threadIdx.x % S::LINE * CHUNK)
    {
        left = column < columns ? min(columns - column, CHUNK) : 0;
    }

    template <unsigned COUNT>
    __device__ __forceinline__ void copy(unsigned char* to, const T* from, unsigned long long stride, unsigned tokens) const
    {
        static_assert(COUNT % LINES == 0, "all threads copy as much");
        if (!ALL && token >= LINES) {
            return;
        }
        const T* source = from + token * stride + column;
#pragma unroll
        for (unsigned i = 0; i < COUNT / LINES; ++i) {
            const unsigned count = token + i * LINES < tokens ? left : 0;
            unsigned char* const target = to + S::at(token + i * LINES, column / CHUNK);
            if constexpr (ALIGNED) {
                copy_async_16(shared_address(target), source, count * 2);
            } else {
#pragma unroll
                for (unsigned n = 0; n < CHUNK; ++n) {
                    reinterpret_cast<T*>(target)[n] = n < count ? source[n] : T(0.0f);
                }
            }
            source += LINES * stride;
        }
    }
};

// What of a kernel's arguments is the same for all heads and tiles.
template <class T>
struct Heads {
    const T* data;
    unsigned long long stride, step;
};

template <class T, unsigned WIDTH, bool ALIGNED>
__device__ __forceinline__ void attend(
    const Heads<T> queries,
    const Heads<T> keys,
    const Heads<T> values,
    T* output,
    const float* slopes,
    unsigned long long output_stride,
    unsigned length,
    unsigned columns,
    unsigned group,
    unsigned window,
    float scale)
{
    using S = Shape<WIDTH>;
    constexpr unsigned BANDS = S::ROWS / 16;                   // fragments of 16 queries
    constexpr unsigned STEPS = S::KEYS / 8;                    // fragments of 8 keys
    constexpr bool HELD = WIDTH <= 64;                         // Q stays in registers where there are enough
    extern __shared__ __align__(128) unsigned char shared[];

    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned head = blockIdx.y, kv_head = head / group;
    const unsigned first_query = (gridDim.x - 1 - blockIdx.x) * S::QUERIES;
    const unsigned long long first_token = static_cast<unsigned long long>(blockIdx.z) * length;
    const T* const own_queries = queries.data + (first_token + first_query) * queries.stride + head * queries.step;
    const T* const own_keys = keys.data + first_token * keys.stride + kv_head * keys.step;
    const T* const own_values = values.data + first_token * values.stride + kv_head * values.step;

    // Tiles of keys that any of the queries sees.
    const unsigned end_key = min(first_query + S::QUERIES, length);
    const unsigned oldest = first_query >= window ? first_query - window + 1 : 0;
    const unsigned first_tile = oldest / S::KEYS, tiles = divide_up(end_key, S::KEYS) - first_tile;

    const TileCopy<T, WIDTH, ALIGNED> copies(columns);
    unsigned char* const ring = shared + S::QUERY_BYTES;
    // Keys and values take turns: 2i is tile i of keys, 2i + 1 that of values.
    const auto fetch_next = [&](unsigned turn, unsigned stage) {
        if (turn < 2 * tiles) {
            const unsigned first = (first_tile + turn / 2) * S::KEYS;
            const Heads<T>& source = turn % 2 == 0 ? keys : values;
            const T* const from = (turn % 2 == 0 ? own_keys : own_values) + first * source.stride;
            copies.template copy<S::KEYS>(ring + stage * S::TILE_BYTES, from, source.stride, length - first);
        }
        copies_commit();
    };
    copies.template copy<S::QUERIES>(shared, own_queries, queries.stride, length - first_query);
    fetch_next(0, 0);
    fetch_next(1, 1);

    const unsigned warp_query = warp * S::ROWS;                // in the tile
    const unsigned from_query = first_query + warp_query;      // in the sequence
    const unsigned to_query = from_query + S::ROWS - 1;
    const unsigned g = lane / 4, t = lane % 4;
    // In units of the product Q·K.
    const float slope = slopes == nullptr ? 0.0f : slopes[head] / scale * 1.44269504f;

    float sums[BANDS][WIDTH / 8][4] = {}, weights[BANDS][4] = {};
    float largest[BANDS][2];
#pragma unroll
    for (unsigned band = 0; band < BANDS; ++band) {
        largest[band][0] = largest[band][1] = NEVER;
    }
    unsigned held[HELD ? BANDS : 1][HELD ? WIDTH / 16 : 1][4];
    const unsigned queries_at = shared_address(shared), ring_at = shared_address(ring);
    // Where the lane reads its rows of fragments.
    const unsigned query_place = S::at(warp_query + lane % 16, lane / 16);
    const unsigned key_place = S::at(lane / 16 * 8 + lane % 8, lane / 8 % 2), value_place = S::at(lane % 16, lane / 16);
    const auto load_queries = [&](unsigned (&a)[4], unsigned band, unsigned step) {
        load_matrices(a, queries_at + S::ahead(query_place, step * 2) + band * 16 * S::LINE * 16);
    };

    unsigned stage = 0;
    const auto advance = [](unsigned stage) { return stage + 1 == ATTENTION_STAGES ? 0 : stage + 1; };
    for (unsigned tile = 0; tile < tiles; ++tile) {
        const unsigned first_key = (first_tile + tile) * S::KEYS;
        // A warp skips what none of its queries sees, but for the barriers.
        const bool sees = first_key <= to_query && from_query < first_key + S::KEYS - 1 + static_cast<unsigned long long>(window);
        copies_wait<1>();
        // After this barrier the keys have arrived, and nobody reads the tile before the last any more.
        __syncthreads();
        fetch_next(2 * tile + 2, advance(advance(stage)));
        if constexpr (HELD) {
            if (tile == 0) {
#pragma unroll
                for (unsigned band = 0; band < BANDS; ++band) {
#pragma unroll
                    for (unsigned step = 0; step < WIDTH / 16; ++step) {
                        load_queries(held[band][step], band, step);
                    }
                }
            }
        }

        unsigned p[BANDS][STEPS][2];
        if (sees) {
            float scores[BANDS][STEPS][4] = {};
            const unsigned keys_at = ring_at + stage * S::TILE_BYTES;
#pragma unroll
            for (unsigned step = 0; step < WIDTH / 16; ++step) {
                unsigned a[BANDS][4];
#pragma unroll
                for (unsigned band = 0; band < BANDS; ++band) {
                    if constexpr (HELD) {
#pragma unroll
                        for (unsigned n = 0; n < 4; ++n) {
                            a[band][n] = held[band][step][n];
                        }
                    } else {
                        load_queries(a[band], band, step);
                    }
                }
#pragma unroll
                for (unsigned j = 0; j < STEPS; j += 2) {
                    unsigned b[4];
                    load_matrices(b, keys_at + S::ahead(key_place, step * 2) + j * 8 * S::LINE * 16);
#pragma unroll
                    for (unsigned band = 0; band < BANDS; ++band) {
                        multiply_add<T>(scores[band][j], a[band], b[0], b[1]);
                        multiply_add<T>(scores[band][j + 1], a[band], b[2], b[3]);
                    }
                }
            }
            // Only the tiles at the ends of what a warp sees hold keys that some of its queries do not.
            const bool hides = first_key + S::KEYS - 1 > from_query || to_query >= first_key + static_cast<unsigned long long>(window);
#pragma unroll
            for (unsigned band = 0; band < BANDS; ++band) {
#pragma unroll
                for (unsigned half = 0; half < 2; ++half) {
                    const unsigned query = from_query + band * 16 + half * 8 + g;
                    if (slopes != nullptr) {
                        const float distance = static_cast<float>(static_cast<int>(first_key + t * 2 - query));
#pragma unroll
                        for (unsigned j = 0; j < STEPS; ++j) {
#pragma unroll
                            for (unsigned n = 0; n < 2; ++n) {
                                scores[band][j][half * 2 + n] += slope * (distance + static_cast<float>(j * 8 + n));
                            }
                        }
                    }
                    if (hides) {
                        // The distance wraps for keys that come after the query: it is no smaller than any window then.
                        const unsigned distance = query - first_key - t * 2;
#pragma unroll
                        for (unsigned j = 0; j < STEPS; ++j) {
#pragma unroll
                            for (unsigned n = 0; n < 2; ++n) {
                                float& score = scores[band][j][half * 2 + n];
                                score = distance - (j * 8 + n) < window ? score : NEVER;
                            }
                        }
                    }
                    float now = largest[band][half];
#pragma unroll
                    for (unsigned j = 0; j < STEPS; ++j) {
                        now = fmaxf(now, fmaxf(scores[band][j][half * 2], scores[band][j][half * 2 + 1]));
                    }
                    now = largest_of_row(now);
                    // Where a query saw nothing yet, all are −∞ and stay at a weight of zero.
                    const float origin = now == NEVER ? 0.0f : now * scale;
                    const float kept = power_of_two(largest[band][half] * scale - origin);
                    largest[band][half] = now;
#pragma unroll
                    for (unsigned j = 0; j < STEPS; ++j) {
                        const float low = power_of_two(scores[band][j][half * 2] * scale - origin);
                        const float high = power_of_two(scores[band][j][half * 2 + 1] * scale - origin);
                        p[band][j][half] = Pair<T>::of(low, high);
                    }
#pragma unroll
                    for (unsigned n = 0; n < 2; ++n) {
                        weights[band][half * 2 + n] *= kept;
#pragma unroll
                        for (unsigned j = 0; j < WIDTH / 8; ++j) {
                            sums[band][j][half * 2 + n] *= kept;
                        }
                    }
                }
            }
        }

        stage = advance(stage);
        copies_wait<1>();
        __syncthreads();
        fetch_next(2 * tile + 3, advance(advance(stage)));
        if (sees) {
            const unsigned values_at = ring_at + stage * S::TILE_BYTES;
#pragma unroll
            for (unsigned step = 0; step < STEPS; step += 2) {
                unsigned a[BANDS][4];
#pragma unroll
                for (unsigned band = 0; band < BANDS; ++band) {
                    a[band][0] = p[band][step][0];
                    a[band][1] = p[band][step][1];
                    a[band][2] = p[band][step + 1][0];
                    a[band][3] = p[band][step + 1][1];
                    // Row sums as a product with ones: cheaper than the additions, and sums of what multiplies V.
                    multiply_add<T>(weights[band], a[band], Pair<T>::ONES, Pair<T>::ONES);
                }
#pragma unroll
                for (unsigned j = 0; j < WIDTH / 8; j += 2) {
                    unsigned b[4];
                    load_matrices_transposed(b, values_at + S::ahead(value_place, j) + step * 8 * S::LINE * 16);
#pragma unroll
                    for (unsigned band = 0; band < BANDS; ++band) {
                        multiply_add<T>(sums[band][j], a[band], b[0], b[1]);
                        multiply_add<T>(sums[band][j + 1], a[band], b[2], b[3]);
                    }
                }
            }
        }
        stage = advance(stage);
    }

    // Through the warp's own queries, which it alone reads, to whole lines. Copies of nothing may still be counted.
    copies_wait<0>();
    __syncwarp();
#pragma unroll
    for (unsigned band = 0; band < BANDS; ++band) {
#pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
            const unsigned row = warp_query + band * 16 + half * 8 + g;
            const float share = 1.0f / weights[band][half * 2];
#pragma unroll
            for (unsigned j = 0; j < WIDTH / 8; ++j) {
                const float* const pair = &sums[band][j][half * 2];
                *reinterpret_cast<unsigned*>(shared + S::at(row, j) + t * 4) = Pair<T>::of(pair[0] * share, pair[1] * share);
            }
        }
    }
    __syncwarp();
    T* const own_output = output + first_token * output_stride + head * static_cast<unsigned long long>(columns);
    for (unsigned i = lane; i < S::ROWS * S::LINE; i += 32) {
        const unsigned row = i / S::LINE, chunk = i % S::LINE, query = from_query + row;
        if (query >= length || chunk * CHUNK >= columns) {
            continue;
        }
        const unsigned char* const from = shared + S::at(warp_query + row, chunk);
        T* const to = own_output + query * output_stride + chunk * CHUNK;
        if (ALIGNED && (chunk + 1) * CHUNK <= columns) {
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
            continue;
        }
#pragma unroll
        for (unsigned n = 0; n < CHUNK; ++n) {
            if (chunk * CHUNK + n < columns) {
                to[n] = reinterpret_cast<const T*>(from)[n];
            }
        }
    }
}

}  // namespace

#define ATTENTION(NAME, TYPE, WIDTH, ALIGNED)                                                                              \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, 2) NAME(                                               \
        const TYPE* __restrict__ queries,     /* head h of token i at i · query_stride + h · query_step */                 \
        const TYPE* __restrict__ keys,        /* likewise; of sequences · length tokens, as all of these */                \
        const TYPE* __restrict__ values,      /* likewise */                                                               \
        TYPE* __restrict__ output,            /* [tokens, heads · columns], a row every output_stride, out */              \
        const float* __restrict__ slopes,     /* [heads], or null for none */                                              \
        unsigned long long query_stride,                                                                                   \
        unsigned long long query_step,                                                                                     \
        unsigned long long key_stride,                                                                                     \
        unsigned long long key_step,                                                                                       \
        unsigned long long value_stride,                                                                                   \
        unsigned long long value_step,                                                                                     \
        unsigned long long output_stride,                                                                                  \
        unsigned length,                      /* tokens of a sequence, below 2^30 */                                       \
        unsigned columns,                     /* of a head, at most WIDTH */                                               \
        unsigned group,                       /* heads that read one head of keys and values */                            \
        unsigned window,                      /* keys that a query sees, its own included; 2^31 for all before it */       \
        float scale)                          /* log2(e) / √columns */                                                     \
    {                                                                                                                      \
        attend<TYPE, WIDTH, ALIGNED>(                                                                                      \
            {queries, query_stride, query_step}, {keys, key_stride, key_step}, {values, value_stride, value_step}, output, \
            slopes, output_stride, length, columns, group, window, scale);                                                 \
    }

ATTENTION(block_attention_f16_32, __half, 32, true)
ATTENTION(block_attention_f16_64, __half, 64, true)
ATTENTION(block_attention_f16_96, __half, 96, true)
ATTENTION(block_attention_f16_128, __half, 128, true)
ATTENTION(block_attention_f16_256, __half, 256, true)
ATTENTION(block_attention_f16_any, __half, 256, false)
ATTENTION(block_attention_bf16_32, __nv_bfloat16, 32, true)
ATTENTION(block_attention_bf16_64, __nv_bfloat16, 64, true)
ATTENTION(block_attention_bf16_96, __nv_bfloat16, 96, true)
ATTENTION(block_attention_bf16_128, __nv_bfloat16, 128, true)
ATTENTION(block_attention_bf16_256, __nv_bfloat16, 256, true)
ATTENTION(block_attention_bf16_any, __nv_bfloat16, 256, false)
