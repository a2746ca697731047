// Activations in f32, f16 and bf16: read as f32, four at a time where they are aligned, and rounded where they are written.
#pragma once

#include "common.cuh"

__device__ __forceinline__ float number(float value) { return value; }
__device__ __forceinline__ float number(__half value) { return __half2float(value); }
__device__ __forceinline__ float number(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T rounded(float value);
template <>
__device__ __forceinline__ float rounded<float>(float value) { return value; }
template <>
__device__ __forceinline__ __half rounded<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// COUNT numbers that are read or written by one instruction.
template <class T, unsigned COUNT>
struct alignas(sizeof(T) * COUNT) Several {
    T numbers[COUNT];
};

template <unsigned COUNT, class T>
__device__ __forceinline__ void read(float (&to)[COUNT], const T* from)
{
    const Several<T, COUNT> several = *reinterpret_cast<const Several<T, COUNT>*>(from);
#pragma unroll
    for (unsigned n = 0; n < COUNT; ++n) {
        to[n] = number(several.numbers[n]);
    }
}

template <unsigned COUNT, class T>
__device__ __forceinline__ void write(T* to, const float (&from)[COUNT])
{
    Several<T, COUNT> several;
#pragma unroll
    for (unsigned n = 0; n < COUNT; ++n) {
        several.numbers[n] = rounded<T>(from[n]);
    }
    *reinterpret_cast<Several<T, COUNT>*>(to) = several;
}

// The sum over a warp, in every lane, in one order.
template <class T>
__device__ __forceinline__ T sum_of_warp(T value)
{
#pragma unroll
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(~0u, value, distance);
    }
    return value;
}

// The sum over a thread block of BLOCK_THREADS, in every thread, in one order. `parts` is shared, and free again after the next
// barrier.
template <class T>
__device__ __forceinline__ T sum_of_block(T value, T (&parts)[BLOCK_THREADS / 32])
{
    value = sum_of_warp(value);
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = value;
    }
    __syncthreads();
    T sum = parts[0];
#pragma unroll
    for (unsigned warp = 1; warp < BLOCK_THREADS / 32; ++warp) {
        sum += parts[warp];
    }
    return sum;
}

// Defines ENTRY for every pair of types that is read and written.
#define FOR_ALL_PAIRS(ENTRY, STEM)                                                                                         \
    ENTRY(STEM##_f32, float, float)                                                                                        \
    ENTRY(STEM##_f32_f16, float, __half)                                                                                   \
    ENTRY(STEM##_f32_bf16, float, __nv_bfloat16)                                                                           \
    ENTRY(STEM##_f16, __half, __half)                                                                                      \
    ENTRY(STEM##_f16_f32, __half, float)                                                                                   \
    ENTRY(STEM##_bf16, __nv_bfloat16, __nv_bfloat16)                                                                       \
    ENTRY(STEM##_bf16_f32, __nv_bfloat16, float)
