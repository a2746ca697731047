// sum[i] = a[i] + b[i] for i < count.
//
// Launch:  any grid and block of one dimension, at least count threads.
// Planted: -DONE_PAST_END also touches element `count` of all three arrays.

extern "C" __global__ void vector_add(
    const float* __restrict__ a,    // f32 [count]
    const float* __restrict__ b,    // f32 [count]
    float* __restrict__ sum,        // f32 [count], out
    unsigned count)
{
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef ONE_PAST_END
    if (i <= count) {
#else
    if (i < count) {
#endif
        sum[i] = a[i] + b[i];
    }
}
