// What all kernels are written in: asynchronous copies, matrix fragments and products of the tensor cores, as the PTX
// instructions that they are.
//
// Fragments, of lane l of a warp (PTX ISA, "Matrix fragments for mma"): g = l / 4, t = l % 4.
//   m16n8k16, 16 bits:  A: rows g, g + 8; pairs of columns 2t, 2t + 8    B: column g; pairs of rows 2t, 2t + 8
//   m16n8k8, tf32:      A: rows g, g + 8; columns t, t + 4               B: column g; rows t, t + 4
//   sums of both:       rows g, g + 8; columns 2t, 2t + 1
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.cuh"

__device__ __forceinline__ unsigned shared_address(const void* pointer)
{
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes from global to shared memory, of which all behind the first `bytes` are zeros that are not read.
// Past L1: what is copied here is not read twice by one multiprocessor.
__device__ __forceinline__ void copy_async_16(unsigned to, const void* from, unsigned bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// The same with 4 bytes, for rows that do not start at multiples of 16.
__device__ __forceinline__ void copy_async_4(unsigned to, const void* from, unsigned bytes)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copies_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most PENDING of the groups that this thread committed are still under way.
template <unsigned PENDING>
__device__ __forceinline__ void copies_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 × 8 matrices of 16 bits, or of 8 × 4 numbers of 32 bits. Lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4], unsigned row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

// One number of 32 bits, by its address in shared memory.
__device__ __forceinline__ unsigned load_shared(unsigned address)
{
    unsigned value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

// sums += A · B for a 16 × 16 and a 16 × 8 fragment of 16-bit numbers. Products are exact, sums are float32.
template <class T>
__device__ __forceinline__ void multiply_add(
    float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ __forceinline__ void multiply_add<__half>(
    float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(
    float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sums += A · B for a 16 × 8 and an 8 × 8 fragment of tf32.
__device__ __forceinline__ void multiply_add_tf32(
    float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A number as the sum of two of tf32, which has eleven significant bits, and at most 2⁻²² of it left over: hi is rounded, ties
// away from zero, and what it leaves, twelve bits at most, is cut off. Four instructions where cvt.rna.tf32 takes nine, since
// that keeps NaN apart: here the rounding may turn a NaN into a zero, as it does the one that arithmetic makes, 0x7fffffff;
// but NaN − hi is NaN, and cutting off leaves it one.
__device__ __forceinline__ void split_tf32(unsigned value, unsigned& high, unsigned& low)
{
    constexpr unsigned HALF = 0x1000u, KEPT = 0xffffe000u;
    high = (value + HALF) & KEPT;
    low = __float_as_uint(__uint_as_float(value) - __uint_as_float(high)) & KEPT;
}

__device__ __forceinline__ unsigned divide_up(unsigned a, unsigned b)
{
    return (a + b - 1) / b;
}
