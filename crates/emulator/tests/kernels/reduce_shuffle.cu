// sums[b] = Σ values[i] over the elements i of thread block b: within warps by shuffles, then over the warps' sums.
//
// Launch:  ceil(count / 256) blocks of 256 threads.
// Planted: -DWRONG_SHUFFLE_MASK: eight lanes shuffle, the mask names four.

constexpr unsigned THREADS = 256;
constexpr unsigned WARPS = THREADS / 32;

extern "C" __global__ void __launch_bounds__(THREADS) reduce_shuffle(
    const float* __restrict__ values,   // f32 [count]
    float* __restrict__ sums,           // f32 [blocks], out
    unsigned count)
{
    __shared__ float of_warp[WARPS];
    const unsigned i = blockIdx.x * THREADS + threadIdx.x;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    float sum = i < count ? values[i] : 0.0f;
    for (unsigned offset = 16; offset > 0; offset /= 2) {
        sum += __shfl_down_sync(0xffffffffu, sum, offset);
    }
    if (lane == 0) {
        of_warp[warp] = sum;
    }
    __syncthreads();

    if (threadIdx.x < WARPS) {
#ifdef WRONG_SHUFFLE_MASK
        constexpr unsigned MASK = (1u << WARPS / 2) - 1;
#else
        constexpr unsigned MASK = (1u << WARPS) - 1;
#endif
        sum = of_warp[threadIdx.x];
        for (unsigned offset = WARPS / 2; offset > 0; offset /= 2) {
            sum += __shfl_down_sync(MASK, sum, offset);
        }
        if (threadIdx.x == 0) {
            sums[blockIdx.x] = sum;
        }
    }
}
