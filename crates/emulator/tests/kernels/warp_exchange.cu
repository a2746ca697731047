// reversed[i] = values of the same warp in reverse order, through shared memory of which each warp owns 32 cells.
//
// Launch:  count / 32 warps in blocks of 128 threads; 32 divides count.
// Planted: -DDROP_SYNCWARP: a lane reads what another writes without __syncwarp between.

constexpr unsigned THREADS = 128;

extern "C" __global__ void __launch_bounds__(THREADS) warp_exchange(
    const unsigned* __restrict__ values,    // u32 [count]
    unsigned* __restrict__ reversed,        // u32 [count], out
    unsigned count)
{
    __shared__ unsigned cells[THREADS / 32][32];
    const unsigned i = blockIdx.x * THREADS + threadIdx.x;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= count) {
        return;     // whole warps
    }
    cells[warp][lane] = values[i];
#ifndef DROP_SYNCWARP
    __syncwarp();
#endif
    reversed[i] = cells[warp][31 - lane];
}
