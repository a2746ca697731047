// The sweep of one panel: column by column, left to right, a weight goes or is rounded, and the columns to its right pay.
//
//   q = w̃_j where it stays (or the point of the row's grid nearest to it), 0 where it goes
//   e = (w̃_j − q) · V_jj;   W̃[j + 1 ..] ← W̃[j + 1 ..] − e · U_b[j, j + 1 ..];   loss ← loss + e² / 2
//
// Dimensions: W̃ f32 [rows, width], any rows, width ≤ PANEL; U_b f32 [width, width], a row every PANEL.
// Launch:     (rows · parts / SWEEP_ROWS) × SWEEP_THREADS with SWEEP_SHARED, or SWEEP_SHARED_WIDE for groups of 17 to 32.
//             prune_grid_f32: a warp a row, FLAT_THREADS.
// Requires:   what stays as bits, or groups of at most 32 columns of which none straddles two panels.
// Oracle:     reference::sweep_with_factor, reference::n_of_m, reference::Grid
// Tolerance:  testkit::tolerance::sweep_tolerance for every w̃, of which choices in doubt follow.
//
// A thread block holds the panel of its rows in shared memory; a warp's lanes are 32 of its rows. The columns go by in
// pieces of 16 (32 for the widest groups): a thread takes a piece of its row into registers and sweeps it there, which is 120
// dependent steps; then all columns behind the piece take its 16 errors at once, four columns a turn: 64 fma for 16 loads of
// U_b (one address for all lanes) and one load and one store of W̃. U_b streams through two stages, a piece each.
//
// Where rows are few, `parts` warps share a row: each sweeps the piece for itself, which spares telling each other the
// errors, and takes every parts-th turn behind it. With two thread blocks on each of 108 multiprocessors this keeps all of
// them busy from 6912 rows on instead of 27648.
//
// Operations for a full panel: 8128 fma a row, and 960 · (parts − 1) that are done again. A warp of rows takes 8128 fma and
// 3400 wavefronts of shared memory (24 for every 64 fma behind a piece): 4064 and 3400 cycles of a multiprocessor of an
// A100, where fma is the limit; 2032 and 3400 on an H100, whose shared memory is no faster, at 60 % of its fma. Two rows a
// thread would share the loads of U_b, but halve the warps that hide the chain of a piece.
// Bytes: W̃ is read once, Q written once; Δ and E, if wanted, are written once, and Δ reads W once. The tile keeps each w̃ as
// it was when its column was reached, from which q and e follow again when all is written, by whole lines.

#include "common.cuh"

namespace {

// What a thread block is told. All matrices are row-major.
struct Sweep {
    const float* current;                 // f32 [rows, width]: W̃
    unsigned long long current_stride;
    const float* inverse;                 // f32 [width, width], a row every PANEL: U_b
    const float* pivots;                  // f32 [width], one every pivot_stride: V_jj
    unsigned long long pivot_stride;
    float* weights;                       // f32 [rows, width], in: W, if Δ is wanted, out: Q; may be `current`
    unsigned long long weight_stride;
    float* delta;                         // f32 [rows, width], out: Δ = W − Q; may be null
    unsigned long long delta_stride;
    float* errors;                        // f32 [rows, width], out: E; may be null
    unsigned long long error_stride;
    unsigned* keep;                       // u32 [rows, keep_stride], in, or out where groups choose: bit first + j of a row for column j
    unsigned long long keep_stride;
    double* losses;                       // f64 [rows], in/out: += Σ e² / 2
    const float* scales;                  // f32 [rows]: distances of the grids' points
    const float* zeros;                   // f32 [rows]: numbers of the points that are zero
    float top;                            // number of the last point
    unsigned rows;
    unsigned width;
    unsigned first;                       // the panel's first bit in a row of `keep`
    unsigned stay;                        // n of n:m
    unsigned group;                       // m of n:m
    unsigned parts;                       // 1, 2 or 4 warps share a row
    unsigned aligned;                     // whether all rows start at multiples of 16 bytes, and bits at multiples of four
};

constexpr unsigned CHUNK = 4;                                  // numbers in 16 bytes
constexpr unsigned CHUNKS = PANEL / CHUNK;                     // of a row of the tile
constexpr unsigned TILE_SIZE = SWEEP_ROWS * PANEL;
static_assert((TILE_SIZE + 2 * 16 * PANEL + PANEL) * sizeof(float) == SWEEP_SHARED, "the launch gives as much");
static_assert((TILE_SIZE + 2 * 32 * PANEL + PANEL) * sizeof(float) == SWEEP_SHARED_WIDE, "the launch gives as much");
static_assert(SWEEP_SHARED_WIDE <= 99 * 1024, "more than the smallest multiprocessor gives a thread block");
static_assert(SWEEP_THREADS == SWEEP_ROWS && SWEEP_THREADS == PANEL, "a thread for every row and every pivot");

// Where a chunk of the tile lies, in numbers: neither rows read along them nor one chunk of all rows meet a bank twice.
__device__ __forceinline__ unsigned tile_at(unsigned row, unsigned chunk)
{
    return row * PANEL + (chunk ^ (row % 8)) * CHUNK;
}

// One store: written as an assignment, it may come out as four, of which each meets the same banks from every fourth row.
__device__ __forceinline__ void store_chunk(float* to, float4 four)
{
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
                 ::"r"(shared_address(to)), "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w)
                 : "memory");
}

// The columns of a panel in the slots of a tile. A group of m columns begins at a multiple of SLOTS slots, the next power of
// two, so that it lies in registers of its own, known when this is compiled; slots that are left over hold zeros.
template <unsigned SLOTS>
struct Slots {
    unsigned group;
    unsigned width;

    __device__ __forceinline__ unsigned column(unsigned slot) const
    {
        return slot / SLOTS * group + slot % SLOTS;
    }
    __device__ __forceinline__ bool holds(unsigned slot) const
    {
        return slot % SLOTS < group && column(slot) < width;
    }
    __device__ __forceinline__ unsigned count() const
    {
        return divide_up(width, group) * SLOTS;
    }
};

// The point of a row's grid nearest to a value, halves to even.
__device__ __forceinline__ float nearest(float value, float scale, float zero, float top)
{
    return scale * (fminf(fmaxf(rintf(value / scale) + zero, 0.0f), top) - zero);
}

template <bool GRID>
__device__ __forceinline__ float rounded(float value, bool stays, float scale, float zero, float top)
{
    const float left = stays ? value : 0.0f;
    if constexpr (GRID) {
        // Not a number stays so: the bounds of the grid would hide it.
        return isnan(left) ? left : nearest(left, scale, zero, top);
    }
    return left;
}

// Copies rows of U_b: those of a piece, from the piece's first column on.
template <unsigned PIECE, unsigned SLOTS>
__device__ __forceinline__ void copy_inverse(unsigned stage, const Sweep& sweep, const Slots<SLOTS>& slots, unsigned piece, bool dense)
{
    if (dense) {
#pragma unroll
        for (unsigned i = 0; i < PIECE * CHUNKS / SWEEP_THREADS; ++i) {
            const unsigned line = (i * SWEEP_THREADS + threadIdx.x) / CHUNKS, chunk = (i * SWEEP_THREADS + threadIdx.x) % CHUNKS;
            const unsigned row = piece * PIECE + line, column = chunk * CHUNK;
            if (column < piece * PIECE) {
                continue;
            }
            const unsigned left = row < sweep.width && column < sweep.width ? min(sweep.width - column, CHUNK) : 0;
            const float* const source = left > 0 ? sweep.inverse + row * PANEL + column : sweep.inverse;
            copy_async_16(stage + (line * PANEL + column) * 4, source, left * 4);
        }
        return;
    }
    const unsigned slot = threadIdx.x;
    if (slot < piece * PIECE) {
        return;
    }
    for (unsigned line = 0; line < PIECE; ++line) {
        const unsigned row = piece * PIECE + line;
        const bool holds = slots.holds(row) && slots.holds(slot);
        const float* const source = holds ? sweep.inverse + slots.column(row) * PANEL + slots.column(slot) : sweep.inverse;
        copy_async_4(stage + (line * PANEL + slot) * 4, source, holds ? 4 : 0);
    }
}

// Which of a group stay: bit c for slot `first` + c, unless `go` scores are smaller. Scores are compared by their
// bits, which order all numbers that are not negative, and what is not a number behind them; equal ones go from the left.
template <unsigned SIZE, unsigned PIECE>
__device__ __forceinline__ unsigned choose(const float (&values)[PIECE], const float* pivots, unsigned first, unsigned columns, unsigned go)
{
    unsigned keys[SIZE];
#pragma unroll
    for (unsigned c = 0; c < SIZE; ++c) {
        const float scaled = values[first + c] * pivots[first + c];
        keys[c] = c < columns ? __float_as_uint(scaled * scaled) & 0x7fffffff : ~0u;
    }
    unsigned bits = 0;
    if constexpr (SIZE == 32) {
        // Each pair is looked at from both sides: 32 counts that run at one time would not fit into registers.
#pragma unroll
        for (unsigned c = 0; c < SIZE; ++c) {
            unsigned before = 0;
#pragma unroll
            for (unsigned other = 0; other < SIZE; ++other) {
                before += other < c ? keys[other] <= keys[c] : keys[other] < keys[c];
            }
            bits |= (c < columns && before >= go ? 1u : 0u) << c;
        }
    } else {
        int before[SIZE];                                          // how many of the group go before this one
#pragma unroll
        for (unsigned c = 0; c < SIZE; ++c) {
            before[c] = static_cast<int>(SIZE - 1 - c);
        }
#pragma unroll
        for (unsigned later = 1; later < SIZE; ++later) {
#pragma unroll
            for (unsigned earlier = 0; earlier < later; ++earlier) {
                const int first_goes = keys[earlier] <= keys[later];
                before[later] += first_goes;
                before[earlier] -= first_goes;
            }
        }
#pragma unroll
        for (unsigned c = 0; c < SIZE; ++c) {
            bits |= (c < columns && before[c] >= static_cast<int>(go) ? 1u : 0u) << c;
        }
    }
    return bits;
}

// Bits that are written one after the other into a row of `keep`.
struct Writer {
    unsigned* word;
    unsigned long long pending;
    unsigned count;

    // Continues behind the bits of earlier panels.
    __device__ __forceinline__ Writer(unsigned* row, unsigned first)
        : word(row + first / 32), pending(0), count(first % 32)
    {
        if (count > 0) {
            pending = *word & ((1u << count) - 1);
        }
    }
    __device__ __forceinline__ void add(unsigned bits, unsigned number)
    {
        pending |= static_cast<unsigned long long>(bits) << count;
        count += number;
        if (count >= 32) {
            *word++ = static_cast<unsigned>(pending);
            pending >>= 32;
            count -= 32;
        }
    }
    __device__ __forceinline__ void end()
    {
        if (count > 0) {
            *word = static_cast<unsigned>(pending);
        }
    }
};

// 128 bits of a row of `keep` from `first` on, of which `width` count.
__device__ __forceinline__ uint4 read_bits(const unsigned* row, unsigned first, unsigned width)
{
    unsigned words[5];
#pragma unroll
    for (unsigned i = 0; i < 5; ++i) {
        words[i] = i <= (first % 32 + width - 1) / 32 ? row[first / 32 + i] : 0;
    }
    const unsigned shift = first % 32;
    return make_uint4(
        __funnelshift_r(words[0], words[1], shift),
        __funnelshift_r(words[1], words[2], shift),
        __funnelshift_r(words[2], words[3], shift),
        __funnelshift_r(words[3], words[4], shift));
}

// GROUP: slots of a group whose choice falls here, or 0 for what was chosen before. GRID: what stays is rounded.
template <unsigned GROUP, bool GRID>
__device__ __forceinline__ void sweep_rows(const Sweep& sweep)
{
    constexpr unsigned PIECE = GROUP == 32 ? 32 : 16, PIECE_CHUNKS = PIECE / CHUNK;
    constexpr unsigned SLOTS = GROUP == 0 ? PIECE : GROUP;
    extern __shared__ __align__(128) float shared[];
    float* const tile = shared;
    float* const stages = tile + TILE_SIZE;
    float* const pivots = stages + 2 * PIECE * PANEL;

    const Slots<SLOTS> slots = {GROUP == 0 ? SLOTS : sweep.group, sweep.width};
    // Columns lie as they do in memory, and are moved by 16 bytes.
    const bool dense = sweep.aligned != 0 && slots.group == SLOTS;
    const unsigned pieces = divide_up(slots.count(), PIECE), chunks = pieces * PIECE_CHUNKS;
    const unsigned own_rows = SWEEP_ROWS / sweep.parts, from_row = blockIdx.x * own_rows;
    const unsigned line = threadIdx.x % own_rows, part = threadIdx.x / own_rows, row = from_row + line;
    const bool speaks = part == 0 && row < sweep.rows;         // who writes what all parts of a row know

    if (dense) {
        for (unsigned i = threadIdx.x; i < own_rows * CHUNKS; i += SWEEP_THREADS) {
            const unsigned to = i / CHUNKS, chunk = i % CHUNKS, column = chunk * CHUNK;
            if (chunk < chunks) {
                const unsigned left = from_row + to < sweep.rows && column < sweep.width ? min(sweep.width - column, CHUNK) : 0;
                const float* const source = left > 0 ? sweep.current + (from_row + to) * sweep.current_stride + column : sweep.current;
                copy_async_16(shared_address(tile + tile_at(to, chunk)), source, left * 4);
            }
        }
    } else {
        const unsigned slot = threadIdx.x, column = slots.column(slot);
        for (unsigned to = 0; to < own_rows && slot < chunks * CHUNK; ++to) {
            const bool holds = from_row + to < sweep.rows && slots.holds(slot);
            const float* const source = holds ? sweep.current + (from_row + to) * sweep.current_stride + column : sweep.current;
            copy_async_4(shared_address(tile + tile_at(to, slot / CHUNK) + slot % CHUNK), source, holds ? 4 : 0);
        }
    }
    copy_inverse<PIECE>(shared_address(stages), sweep, slots, 0, dense);
    copies_commit();
    pivots[threadIdx.x] = slots.holds(threadIdx.x) ? sweep.pivots[slots.column(threadIdx.x) * sweep.pivot_stride] : 0.0f;

    const unsigned safe_row = min(row, sweep.rows - 1);
    unsigned* const keep = sweep.keep + safe_row * sweep.keep_stride;
    uint4 given = make_uint4(0, 0, 0, 0);
    if constexpr (GROUP == 0) {
        given = read_bits(keep, sweep.first, sweep.width);
    }
    Writer chosen(keep, GROUP == 0 ? 0 : sweep.first);
    const float scale = GRID ? sweep.scales[safe_row] : 0.0f, zero = GRID ? sweep.zeros[safe_row] : 0.0f;
    const unsigned full = slots.group - sweep.stay;            // how many of a whole group go
    float squares = 0.0f;

    for (unsigned piece = 0; piece < pieces; ++piece) {
        copies_wait<0>();
        // After this barrier this piece of U_b is there, nobody reads the other stage, and the columns of this piece have
        // taken all errors before it, whoever brought them.
        __syncthreads();
        if (piece + 1 < pieces) {
            copy_inverse<PIECE>(shared_address(stages + (piece + 1) % 2 * PIECE * PANEL), sweep, slots, piece + 1, dense);
        }
        copies_commit();
        const float* const inverse = stages + piece % 2 * PIECE * PANEL;
        const unsigned first_chunk = piece * PIECE_CHUNKS;

        float values[PIECE], minus[PIECE];                     // w̃ and −e
#pragma unroll
        for (unsigned c = 0; c < PIECE_CHUNKS; ++c) {
            const float4 four = *reinterpret_cast<const float4*>(tile + tile_at(line, first_chunk + c));
            values[c * 4] = four.x, values[c * 4 + 1] = four.y, values[c * 4 + 2] = four.z, values[c * 4 + 3] = four.w;
        }
        if (sweep.parts > 1) {
            __syncthreads();                                   // all parts have read what one of them is about to change
        }
        unsigned bits = 0;
        if constexpr (GROUP == 0) {
            bits = given.x & 0xffff;
            given.x = __funnelshift_r(given.x, given.y, 16);
            given.y = __funnelshift_r(given.y, given.z, 16);
            given.z = __funnelshift_r(given.z, given.w, 16);
            given.w >>= 16;
        }
#pragma unroll
        for (unsigned j = 0; j < PIECE; ++j) {
            if constexpr (GROUP != 0) {
                if (j % SLOTS == 0) {
                    const unsigned from = slots.column(piece * PIECE + j);
                    const unsigned columns = from < sweep.width ? min(sweep.width - from, slots.group) : 0;
                    const unsigned go = columns == slots.group ? full : columns * full / slots.group;
                    const unsigned stays = choose<SLOTS>(values, pivots + piece * PIECE, j, columns, go);
                    bits |= stays << j;
                    if (speaks) {
                        chosen.add(stays, columns);
                    }
                }
            }
            const float value = values[j];
            const float q = rounded<GRID>(value, bits >> j & 1, scale, zero, sweep.top);
            const float e = (value - q) * pivots[piece * PIECE + j];
            squares = fmaf(e, e, squares);
            minus[j] = -e;
#pragma unroll
            for (unsigned c = j / CHUNK; c < PIECE_CHUNKS; ++c) {
                const float4 u = *reinterpret_cast<const float4*>(inverse + j * PANEL + piece * PIECE + c * CHUNK);
                const float us[CHUNK] = {u.x, u.y, u.z, u.w};
#pragma unroll
                for (unsigned n = 0; n < CHUNK; ++n) {
                    if (c * CHUNK + n > j) {
                        values[c * CHUNK + n] = fmaf(minus[j], us[n], values[c * CHUNK + n]);
                    }
                }
            }
        }
        if (part == 0) {
#pragma unroll
            for (unsigned c = 0; c < PIECE_CHUNKS; ++c) {
                const float4 four = make_float4(values[c * 4], values[c * 4 + 1], values[c * 4 + 2], values[c * 4 + 3]);
                store_chunk(tile + tile_at(line, first_chunk + c), four);
            }
        }
        for (unsigned chunk = first_chunk + PIECE_CHUNKS + part; chunk < chunks; chunk += sweep.parts) {
            float* const four = tile + tile_at(line, chunk);
            float4 sums = *reinterpret_cast<const float4*>(four);
#pragma unroll
            for (unsigned j = 0; j < PIECE; ++j) {
                const float4 u = *reinterpret_cast<const float4*>(inverse + j * PANEL + chunk * CHUNK);
                sums.x = fmaf(minus[j], u.x, sums.x);
                sums.y = fmaf(minus[j], u.y, sums.y);
                sums.z = fmaf(minus[j], u.z, sums.z);
                sums.w = fmaf(minus[j], u.w, sums.w);
            }
            store_chunk(four, sums);
        }
    }
    if (speaks) {
        sweep.losses[row] += 0.5 * static_cast<double>(squares);
        if (GROUP != 0) {
            chosen.end();
        }
    }
    // After this barrier the tile is done, and so are the bits.
    __syncthreads();

    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (dense) {
        // A row a turn, a chunk a lane.
        const unsigned column = lane * CHUNK, at = sweep.first + column;
#pragma unroll 4
        for (unsigned to = warp; to < own_rows; to += SWEEP_THREADS / 32) {
            const unsigned long long global = from_row + to;
            if (global >= sweep.rows || column >= sweep.width) {
                break;
            }
            const unsigned left = min(sweep.width - column, CHUNK);
            const unsigned bits = sweep.keep[global * sweep.keep_stride + at / 32] >> (at % 32);
            const float row_scale = GRID ? sweep.scales[global] : 0.0f, row_zero = GRID ? sweep.zeros[global] : 0.0f;
            const float4 four = *reinterpret_cast<const float4*>(tile + tile_at(to, lane));
            const float values[CHUNK] = {four.x, four.y, four.z, four.w};
            float q[CHUNK], e[CHUNK];
#pragma unroll
            for (unsigned n = 0; n < CHUNK; ++n) {
                q[n] = rounded<GRID>(values[n], bits >> n & 1, row_scale, row_zero, sweep.top);
                e[n] = (values[n] - q[n]) * pivots[column + n];
            }
            float* const weight = sweep.weights + global * sweep.weight_stride + column;
            float* const delta = sweep.delta == nullptr ? nullptr : sweep.delta + global * sweep.delta_stride + column;
            float* const error = sweep.errors == nullptr ? nullptr : sweep.errors + global * sweep.error_stride + column;
            if (left == CHUNK) {
                if (delta != nullptr) {
                    const float4 old = *reinterpret_cast<const float4*>(weight);
                    *reinterpret_cast<float4*>(delta) = make_float4(old.x - q[0], old.y - q[1], old.z - q[2], old.w - q[3]);
                }
                if (error != nullptr) {
                    *reinterpret_cast<float4*>(error) = make_float4(e[0], e[1], e[2], e[3]);
                }
                *reinterpret_cast<float4*>(weight) = make_float4(q[0], q[1], q[2], q[3]);
                continue;
            }
#pragma unroll
            for (unsigned n = 0; n < CHUNK - 1; ++n) {
                if (n < left) {
                    if (delta != nullptr) {
                        delta[n] = weight[n] - q[n];
                    }
                    if (error != nullptr) {
                        error[n] = e[n];
                    }
                    weight[n] = q[n];
                }
            }
        }
        return;
    }
    const unsigned slot = threadIdx.x, column = slots.column(slot), at = sweep.first + column;
    if (!slots.holds(slot)) {
        return;
    }
    for (unsigned to = 0; to < own_rows && from_row + to < sweep.rows; ++to) {
        const unsigned long long global = from_row + to;
        const bool stays = sweep.keep[global * sweep.keep_stride + at / 32] >> (at % 32) & 1;
        const float value = tile[tile_at(to, slot / CHUNK) + slot % CHUNK];
        const float q = rounded<GRID>(value, stays, GRID ? sweep.scales[global] : 0.0f, GRID ? sweep.zeros[global] : 0.0f, sweep.top);
        float& weight = sweep.weights[global * sweep.weight_stride + column];
        if (sweep.delta != nullptr) {
            sweep.delta[global * sweep.delta_stride + column] = weight - q;
        }
        if (sweep.errors != nullptr) {
            sweep.errors[global * sweep.error_stride + column] = (value - q) * pivots[slot];
        }
        weight = q;
    }
}

}  // namespace

#define SWEEP(NAME, GROUP)                                                                       \
    extern "C" __global__ void __launch_bounds__(SWEEP_THREADS, 2) NAME(const Sweep sweep)       \
    {                                                                                            \
        sweep_rows<GROUP, false>(sweep);                                                         \
    }                                                                                            \
    extern "C" __global__ void __launch_bounds__(SWEEP_THREADS, 2) NAME##_grid(const Sweep sweep) \
    {                                                                                            \
        sweep_rows<GROUP, true>(sweep);                                                          \
    }

SWEEP(prune_sweep_given, 0)
SWEEP(prune_sweep_4, 4)
SWEEP(prune_sweep_8, 8)
SWEEP(prune_sweep_16, 16)
SWEEP(prune_sweep_32, 32)

// The grid that spans each row and zero, of `top` + 1 points; a row of zeros gets that of [−1, 1].
extern "C" __global__ void __launch_bounds__(FLAT_THREADS) prune_grid_f32(
    const float* __restrict__ weights,    // f32 [rows, columns], a row every `stride`
    float* __restrict__ scales,           // f32 [rows], out: distance of two points, at least the smallest normal number
    float* __restrict__ zeros,            // f32 [rows], out: the number of the point that is zero
    unsigned long long stride,
    unsigned rows,
    unsigned columns,
    float top)
{
    const unsigned row = blockIdx.x * (FLAT_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    float low = 0.0f, high = 0.0f;
    for (unsigned j = lane; j < columns; j += 32) {
        const float weight = weights[row * stride + j];
        low = fminf(low, weight);
        high = fmaxf(high, weight);
    }
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        low = fminf(low, __shfl_xor_sync(~0u, low, distance));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, distance));
    }
    if (lane == 0) {
        if (low == high) {
            low = -1.0f;
            high = 1.0f;
        }
        // In f64, so that a tie of the zero point falls as it does in the definition.
        const double scale = fmax((static_cast<double>(high) - low) / top, 1.17549435082228750797e-38);
        scales[row] = static_cast<float>(scale);
        zeros[row] = static_cast<float>(rint(-static_cast<double>(low) / scale));
    }
}
