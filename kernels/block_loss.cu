// The loss of each token from logits that never exist all at once.
//
//   loss_i = ln Σ_v exp(z_iv) − z_{i,target}
//
// with a running largest logit, sum and target logit of every token, over parts of the vocabulary in order.
//
// Dimensions: Z f32 [tokens, part], columns `first` … of all logits; targets u32 [tokens]; losses f64 [tokens].
// Launch:     block_loss_part: (tokens) × BLOCK_THREADS; block_loss_end: ⌈tokens / FLAT_THREADS⌉ × FLAT_THREADS
// Requires:   nothing of alignment: a warp reads 32 logits in a row.
// Oracle:     reference::cross_entropy
// Tolerance:  testkit::tolerance::loss_tolerance
//
// Bytes: each logit once. What a part is off is told by its largest logit; powers are summed in f32 by each thread and in f64
// over threads and parts.

#include "block_numbers.cuh"

namespace {

constexpr unsigned NO_TARGET = 0xffffffff;
constexpr unsigned AT_ONCE = 4;                                // loads under way, and logits that share a rescaling

// e^(a − b), where −∞ stands for nothing so far.
__device__ __forceinline__ float share(float a, float b)
{
    return a == -INFINITY ? 0.0f : expf(a - b);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) block_loss_part(
    const float* __restrict__ logits,       // f32 [tokens, columns], a row every stride
    const unsigned* __restrict__ targets,   // [tokens]; all ones for none
    float* __restrict__ largest,            // [tokens], −∞ before the first part, in/out
    double* __restrict__ sums,              // [tokens]: Σ exp(z − largest), 0 before, in/out
    float* __restrict__ target_logits,      // [tokens], NaN before, in/out
    unsigned long long stride,
    unsigned columns,
    unsigned first)                         // column 0 is this token of the vocabulary
{
    __shared__ double parts[BLOCK_THREADS / 32];
    __shared__ float maxima[BLOCK_THREADS / 32];
    const unsigned token = blockIdx.x;
    const float* const row = logits + token * stride;
    float own_largest = -INFINITY, own_sum = 0.0f;
    for (unsigned from = threadIdx.x; from < columns; from += AT_ONCE * BLOCK_THREADS) {
        float z[AT_ONCE], now = own_largest;
#pragma unroll
        for (unsigned n = 0; n < AT_ONCE; ++n) {
            const unsigned column = from + n * BLOCK_THREADS;
            z[n] = column < columns ? row[column] : -INFINITY;
        }
#pragma unroll
        for (unsigned n = 0; n < AT_ONCE; ++n) {
            now = fmaxf(now, z[n]);
        }
        own_sum *= share(own_largest, now);
#pragma unroll
        for (unsigned n = 0; n < AT_ONCE; ++n) {
            own_sum += share(z[n], now);
        }
        own_largest = now;
    }
    float most = own_largest;
#pragma unroll
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        most = fmaxf(most, __shfl_xor_sync(~0u, most, distance));
    }
    if (threadIdx.x % 32 == 0) {
        maxima[threadIdx.x / 32] = most;
    }
    __syncthreads();
    const float before = largest[token];
    most = before;
#pragma unroll
    for (unsigned warp = 0; warp < BLOCK_THREADS / 32; ++warp) {
        most = fmaxf(most, maxima[warp]);
    }
    // A sum that is not a number stays one, though its largest logit may have been none.
    const float scaled = own_largest == -INFINITY ? own_sum : own_sum * expf(own_largest - most);
    const double sum = sum_of_block(static_cast<double>(scaled), parts);
    if (threadIdx.x == 0) {
        sums[token] = sums[token] * (before == -INFINITY ? 1.0 : exp(static_cast<double>(before) - most)) + sum;
        largest[token] = most;
        const unsigned target = targets[token];
        if (target != NO_TARGET && target >= first && target - first < columns) {
            target_logits[token] = row[target - first];
        }
    }
}

extern "C" __global__ void __launch_bounds__(FLAT_THREADS) block_loss_end(
    const unsigned* __restrict__ targets,         // [tokens]; all ones for none
    const float* __restrict__ largest,            // [tokens]
    const double* __restrict__ sums,              // [tokens]
    const float* __restrict__ target_logits,      // [tokens]
    double* __restrict__ losses,                  // [tokens]: 0 without a target; not finite if any logit was not, out
    unsigned tokens)
{
    const unsigned token = blockIdx.x * FLAT_THREADS + threadIdx.x;
    if (token < tokens) {
        const double all = static_cast<double>(largest[token]) + log(sums[token]);
        const bool none = targets[token] == NO_TARGET && isfinite(all);
        losses[token] = none ? 0.0 : all - static_cast<double>(target_logits[token]);
    }
}
