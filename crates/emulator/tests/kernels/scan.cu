// sums[i] = Σ values[j] over j <= i within each run of 512 elements, one run per thread block (modulo 2³²).
//
// Launch:  ceil(count / 512) blocks of 512 threads.
// Planted: -DUNINITIALIZED_CELL: the last warp does not write its total, which the scan over the totals reads.

constexpr unsigned THREADS = 512;
constexpr unsigned WARPS = THREADS / 32;
constexpr unsigned FULL = 0xffffffffu;

static_assert(WARPS <= 32, "one warp scans the totals of all");

/// The sum over this lane and those below it.
__device__ __forceinline__ unsigned scan_warp(unsigned value, unsigned lane)
{
    for (unsigned offset = 1; offset < 32; offset *= 2) {
        const unsigned below = __shfl_up_sync(FULL, value, offset);
        if (lane >= offset) {
            value += below;
        }
    }
    return value;
}

extern "C" __global__ void __launch_bounds__(THREADS) scan(
    const unsigned* __restrict__ values,    // u32 [count]
    unsigned* __restrict__ sums,            // u32 [count], out
    unsigned count)
{
    __shared__ unsigned totals[WARPS];
    const unsigned i = blockIdx.x * THREADS + threadIdx.x;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    const unsigned sum = scan_warp(i < count ? values[i] : 0, lane);
#ifdef UNINITIALIZED_CELL
    if (lane == 31 && warp < WARPS - 1) {
#else
    if (lane == 31) {
#endif
        totals[warp] = sum;
    }
    __syncthreads();

    if (warp == 0) {
        const unsigned total = scan_warp(lane < WARPS ? totals[lane] : 0, lane);
        if (lane < WARPS) {
            totals[lane] = total;
        }
    }
    __syncthreads();

    if (i < count) {
        sums[i] = sum + (warp > 0 ? totals[warp - 1] : 0);
    }
}
