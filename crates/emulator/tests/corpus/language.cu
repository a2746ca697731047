// What PTX of nvcc can contain beside plain kernels: initialized data, pointers in packed structures, calls by name and
// by pointer, local arrays, a switch, inline assembly, attributes of kernels. accepted/language.ptx was made from it:
// nvcc -ptx -arch=compute_90a -rdc=true language.cu

#include <cstdio>

struct Packed { char a; void* b; int c; } __attribute__((packed));

__device__ int ints[3] = {1, 2};
__device__ float matrix[2][3] = {{1.0f}, {2.0f, 3.0f}};
__constant__ double doubles[2] = {1.0, 2.5};
__device__ Packed packed = {1, &ints[1], 2};
__device__ int* pointers[2] = {ints, ints + 2};
__device__ __managed__ int managed = 5;
__device__ float4 vector = {1, 2, 3, 4};

__device__ __noinline__ float2 scale(float2 a, int b) { return make_float2(a.x * b, a.y); }
__device__ int add_one(int x) { return x + 1; }
__device__ int twice(int x) { return x * 2; }
__device__ int (*table[2])(int) = {add_one, twice};

extern "C" __global__ void __launch_bounds__(128, 2) language(float2* out, int n, Packed by_value)
{
    extern __shared__ float dynamic[];
    int local[10];
    for (int i = 0; i < 10; ++i) {
        local[i] = out[i].x;
    }
    dynamic[threadIdx.x] = local[n];
    __syncthreads();
    out[0] = scale(out[1], n);
    printf("%d\n", n + by_value.a);
    out[n].x = table[n](3) + dynamic[5];
    switch (n) {
    case 0: out[1].x = 1; break;
    case 1: out[1].x = 2; __threadfence(); break;
    case 2: out[2].x = 3; __syncwarp(); break;
    case 3: out[5].y = 3; break;
    case 4: out[6].y = 1; __syncthreads(); break;
    case 5: out[7].x = clock(); break;
    case 6: __trap();
    }
    if (n == 77) {
        asm volatile("{ .reg .pred p; setp.eq.u32 p, %0, (1 + 2) * 3; @p trap; }" ::"r"(n));
    }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __maxnreg__(64) in_cluster() {}
