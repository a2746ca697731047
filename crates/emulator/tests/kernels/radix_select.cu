// *selected = the key of rank `rank` (0 for the smallest), in four passes over the keys, one per byte from the top.
//
// Order:   that of numbers, with -0 below +0 and NaN beyond the infinity of its sign.
// Launch:  one block of 256 threads; rank < count.

constexpr unsigned THREADS = 256;   // also the number of values of a byte

/// Bits whose order as unsigned numbers is that of the keys.
__device__ __forceinline__ unsigned ordered(float key)
{
    const unsigned bits = __float_as_uint(key);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

extern "C" __global__ void __launch_bounds__(THREADS) radix_select(
    const float* __restrict__ keys,     // f32 [count]
    float* __restrict__ selected,       // f32 [1], out
    unsigned count,
    unsigned rank)
{
    __shared__ unsigned counts[THREADS];
    __shared__ unsigned chosen_prefix, chosen_rank;

    unsigned prefix = 0;    // the bytes that are known, in place; the rest is zero
    for (int shift = 24; shift >= 0; shift -= 8) {
        counts[threadIdx.x] = 0;
        __syncthreads();
        const unsigned known = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
        for (unsigned i = threadIdx.x; i < count; i += THREADS) {
            const unsigned bits = ordered(keys[i]);
            if ((bits & known) == prefix) {
                atomicAdd(&counts[bits >> shift & 0xffu], 1u);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned digit = 0, left = rank;
            while (digit < THREADS - 1 && left >= counts[digit]) {
                left -= counts[digit];
                ++digit;
            }
            chosen_prefix = prefix | digit << shift;
            chosen_rank = left;
        }
        __syncthreads();
        prefix = chosen_prefix;
        rank = chosen_rank;
    }
    if (threadIdx.x == 0) {
        *selected = __uint_as_float(prefix & 0x80000000u ? prefix & 0x7fffffffu : ~prefix);
    }
}
