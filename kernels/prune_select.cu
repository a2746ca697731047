// Selection: which weights have the smallest scores, exactly, of a whole panel or layer, of every row, or of every group.
//
//   score = (w̃ · V_jj)²  or  |w|  or  |w| · ‖x_j‖;   the `count` smallest go, equal ones in order of (row, column)
//
// Dimensions: W f32 [rows, columns], any; bits u32 [rows, words].
// Launch:     prune_select_{histogram, ties, drop}: any number of thread blocks × SELECT_THREADS, the same for the last two;
//             prune_select_rows: (rows) × SELECT_THREADS; prune_select_groups, prune_apply_bits: a warp for 32 columns,
//             FLAT_THREADS; prune_norms_f32: a thread a column, FLAT_THREADS.
// Requires:   what the host checks: count ≤ rows · columns; bits that begin with a word.
// Oracle:     reference::smallest, reference::magnitude, reference::wanda, reference::n_of_m
// Tolerance:  none: the choice is exact for the scores as f32 has them.
//
// A score's bits without the sign, read as an integer, order as the score does, and what is not a number comes last; such
// scores are counted. The threshold is found digit by digit, 11 + 10 + 10 bits: a pass counts the values of a digit among the
// scores that agree with the digits found so far, and the next kernel begins by finding the digit in these counts, every
// thread block for itself. So five launches select without the host, and several devices select together by adding up
// histograms between the launches. All counts are integers, whose sums know no order.
//
// Bytes: the scores' weights are read five times, the last four from L2, which holds 6 MB for 12288 rows and one panel.

#include "common.cuh"

namespace {

// What the kernels of one selection are told.
struct Select {
    const float* weights;                 // f32 [rows, columns], a row every `stride`
    unsigned long long stride;
    const float* factors;                 // f32 [columns], one every factor_stride; null for ones
    unsigned long long factor_stride;
    unsigned* keep;                       // u32 [rows, keep_stride], out: bit j of a row, from this word on
    unsigned long long keep_stride;
    unsigned long long* histograms;       // u64 [SELECT_PASSES, SELECT_BINS], in/out
    unsigned long long* state;            // u64 [8], in/out, as below
    unsigned* ties;                       // u32 [thread blocks of ties and drop], out, then in
    unsigned long long* not_numbers;      // u64 [1], in/out: scores that are not a number are added
    unsigned long long count;             // how many go, on all devices together
    unsigned rows;
    unsigned columns;
    unsigned squared;                     // whether the score is a square
    unsigned pass;                        // which digit is counted
};

// Words of `state`: of each pass, how many are left to go among those that agree with the prefix, and the prefix; how many
// scores of this device equal the threshold, and how many of the devices before it.
constexpr unsigned OWN_TIES = 6, TIES_BEFORE = 7;

constexpr unsigned SEGMENT = 128;         // columns that a warp looks at together
constexpr unsigned WARPS = SELECT_THREADS / 32;
constexpr unsigned BINS_EACH = SELECT_BINS / SELECT_THREADS;

__device__ __forceinline__ unsigned digit_shift(unsigned pass)
{
    return pass == 0 ? 20 : pass == 1 ? 10 : 0;
}

__device__ __forceinline__ unsigned digit_bits(unsigned pass)
{
    return pass == 0 ? 11 : 10;
}

__device__ __forceinline__ unsigned score_key(float weight, float factor, bool squared)
{
    const float scaled = weight * factor;
    return __float_as_uint(squared ? scaled * scaled : scaled) & 0x7fffffff;
}

struct Narrowed {
    unsigned prefix;                      // the digits found
    unsigned long long left;              // how many of those that agree with them go
    unsigned long long ties;              // how many agree with them
};

// The digit in which the `left`-th smallest falls, by all threads of the block: they get the same answer.
template <class COUNT>
__device__ __forceinline__ Narrowed find_digit(const COUNT* histogram, unsigned prefix, unsigned long long left, unsigned bits)
{
    __shared__ unsigned long long warp_sums[WARPS];
    __shared__ Narrowed found;
    __syncthreads();                      // nobody looks at an earlier answer any more
    unsigned long long counts[BINS_EACH], sum = 0;
#pragma unroll
    for (unsigned i = 0; i < BINS_EACH; ++i) {
        counts[i] = histogram[threadIdx.x * BINS_EACH + i];
        sum += counts[i];
    }
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned long long before = sum;
    for (unsigned distance = 1; distance < 32; distance *= 2) {
        const unsigned long long other = __shfl_up_sync(~0u, before, distance);
        before += lane >= distance ? other : 0;
    }
    if (lane == 31) {
        warp_sums[warp] = before;
    }
    if (threadIdx.x == 0) {
        found = {prefix << bits, left, counts[0]};
    }
    __syncthreads();
    before -= sum;
    for (unsigned w = 0; w < warp; ++w) {
        before += warp_sums[w];
    }
#pragma unroll
    for (unsigned i = 0; i < BINS_EACH; ++i) {
        if (before < left && left <= before + counts[i]) {
            found = {prefix << bits | (threadIdx.x * BINS_EACH + i), left - before, counts[i]};
        }
        before += counts[i];
    }
    __syncthreads();
    return found;
}

// What is known once `passes` digits were counted. The first thread block writes it down for the kernels behind.
__device__ __forceinline__ Narrowed narrow(const Select& select, unsigned passes)
{
    if (passes == 0) {
        return {0, select.count, 0};
    }
    const unsigned pass = passes - 1;
    const unsigned long long left = pass == 0 ? select.count : select.state[2 * (pass - 1)];
    const unsigned prefix = pass == 0 ? 0 : static_cast<unsigned>(select.state[2 * (pass - 1) + 1]);
    const Narrowed narrowed = find_digit(select.histograms + pass * SELECT_BINS, prefix, left, digit_bits(pass));
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        select.state[2 * pass] = narrowed.left;
        select.state[2 * pass + 1] = narrowed.prefix;
    }
    return narrowed;
}

// The keys of 128 columns of a row, every 32nd a lane, and whether there is such a column.
struct Keys {
    unsigned keys[SEGMENT / 32];
    bool there[SEGMENT / 32];
};

__device__ __forceinline__ Keys load_keys(const Select& select, unsigned long long row, unsigned first)
{
    Keys loaded;
#pragma unroll
    for (unsigned i = 0; i < SEGMENT / 32; ++i) {
        const unsigned column = first + i * 32 + threadIdx.x % 32;
        loaded.there[i] = column < select.columns;
        const float weight = loaded.there[i] ? select.weights[row * select.stride + column] : 0.0f;
        const float factor = loaded.there[i] && select.factors != nullptr ? select.factors[column * select.factor_stride] : 1.0f;
        loaded.keys[i] = score_key(weight, factor, select.squared != 0);
    }
    return loaded;
}

// The host sees to it that their number has 31 bits.
__device__ __forceinline__ unsigned segments_of(const Select& select)
{
    return select.rows * divide_up(select.columns, SEGMENT);
}

// Segments of one thread block, in the order of (row, column).
struct Share {
    unsigned first, end;
};

__device__ __forceinline__ Share share_of(const Select& select)
{
    const unsigned all = segments_of(select), each = divide_up(divide_up(all, gridDim.x), WARPS) * WARPS;
    const unsigned first = min(blockIdx.x * each, all);
    return {first, min(first + each, all)};
}

// Calls `f(keys, row, first column)` for each segment of this warp.
template <class F>
__device__ __forceinline__ void for_segments(const Select& select, F f)
{
    const unsigned across = divide_up(select.columns, SEGMENT);
    const Share share = share_of(select);
    for (unsigned segment = share.first + threadIdx.x / 32; segment < share.end; segment += WARPS) {
        const unsigned row = segment / across, first = segment % across * SEGMENT;
        f(load_keys(select, row, first), row, first);
    }
}

}  // namespace

// Adds how many scores have each value of a digit, among those that agree with the digits before it.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS) prune_select_histogram(const Select select)
{
    __shared__ unsigned counts[SELECT_BINS];
    __shared__ unsigned long long not_numbers;
    const unsigned prefix = narrow(select, select.pass).prefix;
    for (unsigned bin = threadIdx.x; bin < SELECT_BINS; bin += SELECT_THREADS) {
        counts[bin] = 0;
    }
    if (threadIdx.x == 0) {
        not_numbers = 0;
    }
    __syncthreads();
    const unsigned shift = digit_shift(select.pass), bits = digit_bits(select.pass);
    unsigned strange = 0;
    for_segments(select, [&](const Keys& loaded, unsigned long long, unsigned) {
#pragma unroll
        for (unsigned i = 0; i < SEGMENT / 32; ++i) {
            const unsigned key = loaded.keys[i];
            if (loaded.there[i] && key >> shift >> bits == prefix) {
                atomicAdd(&counts[key >> shift & ((1u << bits) - 1)], 1u);
            }
            strange += loaded.there[i] && key > 0x7f800000;
        }
    });
    if (strange > 0 && select.pass == 0) {
        atomicAdd(&not_numbers, static_cast<unsigned long long>(strange));
    }
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < SELECT_BINS; bin += SELECT_THREADS) {
        if (counts[bin] > 0) {
            atomicAdd(&select.histograms[select.pass * SELECT_BINS + bin], static_cast<unsigned long long>(counts[bin]));
        }
    }
    if (threadIdx.x == 0 && not_numbers > 0) {
        atomicAdd(select.not_numbers, not_numbers);
    }
}

// Counts the scores that equal the threshold, if not all of them go.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS) prune_select_ties(const Select select)
{
    __shared__ unsigned ties;
    const Narrowed narrowed = narrow(select, SELECT_PASSES);
    if (narrowed.left >= narrowed.ties) {
        return;
    }
    if (threadIdx.x == 0) {
        ties = 0;
    }
    __syncthreads();
    unsigned own = 0;
    for_segments(select, [&](const Keys& loaded, unsigned long long, unsigned) {
#pragma unroll
        for (unsigned i = 0; i < SEGMENT / 32; ++i) {
            own += loaded.there[i] && loaded.keys[i] == narrowed.prefix;
        }
    });
    if (own > 0) {
        atomicAdd(&ties, own);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        select.ties[blockIdx.x] = ties;
        atomicAdd(&select.state[OWN_TIES], static_cast<unsigned long long>(ties));
    }
}

// Writes the bits of what stays.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS) prune_select_drop(const Select select)
{
    __shared__ unsigned long long ties_before;
    __shared__ unsigned warp_ties[WARPS];
    const Narrowed narrowed = narrow(select, SELECT_PASSES);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const auto write = [&](unsigned long long row, unsigned column, bool stays) {
        const unsigned word = __ballot_sync(~0u, column + lane < select.columns && stays);
        if (lane == 0 && column < select.columns) {
            select.keep[row * select.keep_stride + column / 32] = word;
        }
    };
    if (narrowed.left >= narrowed.ties) {
        // All that equal the threshold go, as the one of many that is the threshold does.
        for_segments(select, [&](const Keys& loaded, unsigned long long row, unsigned first) {
#pragma unroll
            for (unsigned i = 0; i < SEGMENT / 32; ++i) {
                write(row, first + i * 32, loaded.keys[i] > narrowed.prefix);
            }
        });
        return;
    }
    if (threadIdx.x == 0) {
        ties_before = 0;
    }
    __syncthreads();
    unsigned long long sum = 0;
    for (unsigned block = threadIdx.x; block < blockIdx.x; block += SELECT_THREADS) {
        sum += select.ties[block];
    }
    if (sum > 0) {
        atomicAdd(&ties_before, sum);
    }
    __syncthreads();
    unsigned long long before = select.state[TIES_BEFORE] + ties_before;
    const unsigned across = divide_up(select.columns, SEGMENT);
    const Share share = share_of(select);
    for (unsigned base = share.first; base < share.end; base += WARPS) {
        const unsigned segment = base + warp, row = segment / across;
        const bool there = segment < share.end;
        // Behind the last segment: columns of which there are none.
        const unsigned first = there ? segment % across * SEGMENT : select.columns;
        const Keys loaded = load_keys(select, row, first);
        unsigned own = 0;
#pragma unroll
        for (unsigned i = 0; i < SEGMENT / 32; ++i) {
            own += __popc(__ballot_sync(~0u, loaded.there[i] && loaded.keys[i] == narrowed.prefix));
        }
        if (lane == 0) {
            warp_ties[warp] = own;
        }
        __syncthreads();
        unsigned long long mine = before;
        for (unsigned w = 0; w < WARPS; ++w) {
            mine += w < warp ? warp_ties[w] : 0;
            before += warp_ties[w];
        }
        __syncthreads();
#pragma unroll
        for (unsigned i = 0; i < SEGMENT / 32; ++i) {
            const bool ties = loaded.there[i] && loaded.keys[i] == narrowed.prefix;
            const unsigned equal = __ballot_sync(~0u, ties);
            const unsigned long long tie = mine + __popc(equal & ((1u << lane) - 1));
            write(row, first + i * 32, loaded.keys[i] > narrowed.prefix || (ties && tie >= narrowed.left));
            mine += __popc(equal);
        }
    }
}

// The `count` smallest of every row go, equal ones from the left: a thread block a row.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS) prune_select_rows(const Select select)
{
    __shared__ unsigned counts[SELECT_BINS];
    __shared__ unsigned warp_ties[WARPS];
    const unsigned long long row = blockIdx.x;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float* const weights = select.weights + row * select.stride;
    const auto key_of = [&](unsigned column) {
        const float factor = select.factors != nullptr ? select.factors[column * select.factor_stride] : 1.0f;
        return score_key(weights[column], factor, select.squared != 0);
    };
    Narrowed narrowed = {0, select.count, 0};
    unsigned strange = 0;
    for (unsigned pass = 0; pass < SELECT_PASSES; ++pass) {
        for (unsigned bin = threadIdx.x; bin < SELECT_BINS; bin += SELECT_THREADS) {
            counts[bin] = 0;
        }
        __syncthreads();
        const unsigned shift = digit_shift(pass), bits = digit_bits(pass);
        for (unsigned column = threadIdx.x; column < select.columns; column += SELECT_THREADS) {
            const unsigned key = key_of(column);
            if (key >> shift >> bits == narrowed.prefix) {
                atomicAdd(&counts[key >> shift & ((1u << bits) - 1)], 1u);
            }
            strange += pass == 0 && key > 0x7f800000;
        }
        narrowed = find_digit(counts, narrowed.prefix, narrowed.left, bits);
    }
    if (strange > 0) {
        atomicAdd(select.not_numbers, static_cast<unsigned long long>(strange));
    }
    unsigned before = 0;
    for (unsigned first = 0; first < select.columns; first += SELECT_THREADS) {
        const unsigned column = first + threadIdx.x;
        const unsigned key = column < select.columns ? key_of(column) : ~0u;
        const unsigned equal = __ballot_sync(~0u, key == narrowed.prefix);
        if (lane == 0) {
            warp_ties[warp] = __popc(equal);
        }
        __syncthreads();
        unsigned mine = before + __popc(equal & ((1u << lane) - 1));
        for (unsigned w = 0; w < WARPS; ++w) {
            mine += w < warp ? warp_ties[w] : 0;
            before += warp_ties[w];
        }
        __syncthreads();
        const bool stays = key > narrowed.prefix || (key == narrowed.prefix && mine >= narrowed.left);
        const unsigned word = __ballot_sync(~0u, column < select.columns && stays);
        if (lane == 0 && column < select.columns) {
            select.keep[row * select.keep_stride + column / 32] = word;
        }
    }
}

// Of every `group` consecutive columns the smallest group − stay go, equal ones from the left; of a shorter last one of c
// columns, c · (group − stay) / group. A warp decides about 32 columns, each lane by looking at its column's group.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS) prune_select_groups(
    const Select select, unsigned stay, unsigned group)
{
    const unsigned words = divide_up(select.columns, 32), lane = threadIdx.x % 32;
    const unsigned long long word = blockIdx.x * static_cast<unsigned long long>(FLAT_THREADS / 32) + threadIdx.x / 32;
    const unsigned long long row = word / words;
    if (row >= select.rows) {
        return;
    }
    const unsigned column = static_cast<unsigned>(word % words) * 32 + lane;
    bool stays = false;
    unsigned strange = 0;
    if (column < select.columns) {
        const auto key_of = [&](unsigned j) {
            const float factor = select.factors != nullptr ? select.factors[j * select.factor_stride] : 1.0f;
            return score_key(select.weights[row * select.stride + j], factor, select.squared != 0);
        };
        const unsigned first = column / group * group, end = min(first + group, select.columns), key = key_of(column);
        unsigned before = 0;
        for (unsigned j = first; j < end; ++j) {
            const unsigned other = key_of(j);
            before += j < column ? other <= key : other < key;
        }
        stays = before >= static_cast<unsigned>(static_cast<unsigned long long>(end - first) * (group - stay) / group);
        strange = key > 0x7f800000;
    }
    const unsigned bits = __ballot_sync(~0u, stays), bad = __ballot_sync(~0u, strange);
    if (lane == 0) {
        select.keep[row * select.keep_stride + column / 32] = bits;
        if (bad != 0) {
            atomicAdd(select.not_numbers, static_cast<unsigned long long>(__popc(bad)));
        }
    }
}

// Sets to zero what does not stay: what the baselines do to a layer, which correct nothing.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS) prune_apply_bits(
    float* weights,                       // f32 [rows, columns], a row every `stride`, in/out
    const unsigned* __restrict__ keep,    // u32 [rows, keep_stride]
    unsigned long long stride,
    unsigned long long keep_stride,
    unsigned rows,
    unsigned columns)
{
    const unsigned words = divide_up(columns, 32), lane = threadIdx.x % 32;
    const unsigned long long word = blockIdx.x * static_cast<unsigned long long>(FLAT_THREADS / 32) + threadIdx.x / 32;
    const unsigned long long row = word / words;
    const unsigned column = static_cast<unsigned>(word % words) * 32 + lane;
    if (row < rows && column < columns && (keep[row * keep_stride + column / 32] >> lane & 1) == 0) {
        weights[row * stride + column] = 0.0f;
    }
}

// ‖x_j‖ = √H_jj of a layer's inputs, which Wanda's scores are made of.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS) prune_norms_f32(
    const float* __restrict__ hessian,    // f32 [columns, columns], a row every `stride`: H = XᵀX, not damped
    float* __restrict__ norms,            // f32 [columns], out
    unsigned long long stride,
    unsigned columns)
{
    const unsigned j = blockIdx.x * FLAT_THREADS + threadIdx.x;
    if (j < columns) {
        norms[j] = sqrtf(hessian[j * (stride + 1)]);
    }
}
