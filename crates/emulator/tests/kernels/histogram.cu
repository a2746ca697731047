// bins[v] += how often v occurs in values: each thread block counts in shared memory, then adds to the whole.
//
// Launch:  any number of blocks of one dimension; the bins must be zero, or hold what is to be added to.

constexpr unsigned BINS = 256;

extern "C" __global__ void histogram(
    const unsigned char* __restrict__ values,   // u8 [count]
    unsigned* __restrict__ bins,                // u32 [256], in/out
    unsigned count)
{
    __shared__ unsigned own[BINS];
    for (unsigned bin = threadIdx.x; bin < BINS; bin += blockDim.x) {
        own[bin] = 0;
    }
    __syncthreads();
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        atomicAdd(&own[values[i]], 1u);
    }
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < BINS; bin += blockDim.x) {
        if (own[bin] > 0) {
            atomicAdd(&bins[bin], own[bin]);
        }
    }
}
