// *total = Σ values: each thread block adds up a share, and the last one to finish adds up the shares.
//
// Launch:  any number of blocks of 256 threads; *finished is 0, and is so again afterwards.
// Planted: -DDROP_FENCE: a block counts itself as finished before its share is sure to be seen.

constexpr unsigned THREADS = 256;

/// The sum over the thread block, in thread 0.
__device__ float sum_block(float value)
{
    __shared__ float cells[THREADS];
    cells[threadIdx.x] = value;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            cells[threadIdx.x] += cells[threadIdx.x + half];
        }
        __syncthreads();
    }
    return cells[0];
}

extern "C" __global__ void __launch_bounds__(THREADS) last_block(
    const float* __restrict__ values,   // f32 [count]
    float* shares,                      // f32 [blocks], scratch
    unsigned* finished,                 // u32 [1], in/out: 0
    float* total,                       // f32 [1], out
    unsigned count)
{
    __shared__ bool is_last;

    float sum = 0.0f;
    for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) {
        sum += values[i];
    }
    sum = sum_block(sum);

    if (threadIdx.x == 0) {
        shares[blockIdx.x] = sum;
#ifndef DROP_FENCE
        __threadfence();
#endif
        // Wraps to 0 after the last block.
        is_last = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
        // The other half of the pattern: what was fenced before the counts that this one saw is seen from here on.
        __threadfence();
    }
    __syncthreads();
    if (!is_last) {
        return;
    }

    sum = 0.0f;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += THREADS) {
        sum += shares[i];
    }
    sum = sum_block(sum);
    if (threadIdx.x == 0) {
        *total = sum;
    }
}
