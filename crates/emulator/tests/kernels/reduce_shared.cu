// sums[b] = Σ values[i] over the elements i of thread block b, by a tree in shared memory.
//
// Launch:  ceil(count / 256) blocks of 256 threads.
// Planted: -DDROP_SYNCTHREADS: no barrier between the levels of the tree.
//          -DUNINITIALIZED_CELL: threads past the end leave their cell as it is; shows where 256 does not divide count.

constexpr unsigned THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS) reduce_shared(
    const float* __restrict__ values,   // f32 [count]
    float* __restrict__ sums,           // f32 [blocks], out
    unsigned count)
{
    __shared__ float cells[THREADS];
    const unsigned i = blockIdx.x * THREADS + threadIdx.x;

#ifdef UNINITIALIZED_CELL
    if (i < count) {
        cells[threadIdx.x] = values[i];
    }
#else
    cells[threadIdx.x] = i < count ? values[i] : 0.0f;
#endif
    __syncthreads();

    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            cells[threadIdx.x] += cells[threadIdx.x + half];
        }
#ifndef DROP_SYNCTHREADS
        __syncthreads();
#endif
    }
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = cells[0];
    }
}
