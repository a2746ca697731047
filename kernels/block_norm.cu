// Norms over rows.
//
//   y_j = (x_j − c) / √(Σ_k (x_k − c)² / columns + ε) · scale_j + shift_j,   c = Σ_k x_k / columns, or 0 for RMS norms
//
// Dimensions: X, Y [rows, columns], each in f32, f16 or bf16; Y may be X. scale, shift f32 [columns].
// Launch:     (rows) × BLOCK_THREADS, two thread blocks a multiprocessor: their rows, under way as a whole, are what memory needs
// Requires:   rows that start at multiples of four numbers, or the entry `…_any`.
// Oracle:     reference::norm
// Tolerance:  testkit::tolerance::norm_tolerance
//
// Bytes: every number is read and written once, for up to NORM_HELD groups a thread; beyond that a row is read three times,
// from caches. The squares are summed after the mean is known, since their difference would lose digits.

#include "block_numbers.cuh"

namespace {

template <class IN, class OUT, unsigned GROUP>
__device__ __forceinline__ void normalize(
    const IN* inputs,
    OUT* outputs,
    const float* scale,
    const float* shift,
    unsigned long long input_stride,
    unsigned long long output_stride,
    unsigned columns,
    bool centered,
    float epsilon)
{
    __shared__ float sums[BLOCK_THREADS / 32], squares[BLOCK_THREADS / 32];
    const IN* const row = inputs + blockIdx.x * input_stride;
    OUT* const target = outputs + blockIdx.x * output_stride;
    const unsigned groups = columns / GROUP;
    float held[NORM_HELD][GROUP];
#pragma unroll
    for (unsigned i = 0; i < NORM_HELD; ++i) {
        const unsigned group = i * BLOCK_THREADS + threadIdx.x;
        if (group < groups) {
            read(held[i], row + group * GROUP);
        }
    }
    // Calls `each` with all numbers of the thread and the column of the first.
    const auto for_all = [&](auto each) {
#pragma unroll
        for (unsigned i = 0; i < NORM_HELD; ++i) {
            const unsigned group = i * BLOCK_THREADS + threadIdx.x;
            if (group < groups) {
                each(held[i], group * GROUP);
            }
        }
        for (unsigned group = NORM_HELD * BLOCK_THREADS + threadIdx.x; group < groups; group += BLOCK_THREADS) {
            float numbers[GROUP];
            read(numbers, row + group * GROUP);
            each(numbers, group * GROUP);
        }
    };

    float center = 0.0f;
    if (centered) {
        float sum = 0.0f;
        for_all([&](const float (&numbers)[GROUP], unsigned) {
#pragma unroll
            for (unsigned n = 0; n < GROUP; ++n) {
                sum += numbers[n];
            }
        });
        center = sum_of_block(sum, sums) / static_cast<float>(columns);
    }
    float square = 0.0f;
    for_all([&](const float (&numbers)[GROUP], unsigned) {
#pragma unroll
        for (unsigned n = 0; n < GROUP; ++n) {
            square += (numbers[n] - center) * (numbers[n] - center);
        }
    });
    const float factor = 1.0f / sqrtf(sum_of_block(square, squares) / static_cast<float>(columns) + epsilon);
    for_all([&](const float (&numbers)[GROUP], unsigned column) {
        float scales[GROUP], shifts[GROUP] = {}, result[GROUP];
        read(scales, scale + column);
        if (shift != nullptr) {
            read(shifts, shift + column);
        }
#pragma unroll
        for (unsigned n = 0; n < GROUP; ++n) {
            result[n] = (numbers[n] - center) * factor * scales[n] + shifts[n];
        }
        write(target + column, result);
    });
}

}  // namespace

#define NORM_ENTRY(NAME, IN, OUT, GROUP)                                                                                   \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 2) NAME(                                                   \
        const IN* inputs,                     /* [rows, columns] row-major, a row every input_stride */                    \
        OUT* outputs,                         /* likewise every output_stride, out; inputs or apart from them */           \
        const float* __restrict__ scale,      /* [columns] */                                                              \
        const float* __restrict__ shift,      /* [columns], or null for none */                                            \
        unsigned long long input_stride,                                                                                   \
        unsigned long long output_stride,                                                                                  \
        unsigned columns,                     /* a multiple of GROUP */                                                    \
        unsigned centered,                    /* 0 for an RMS norm */                                                      \
        float epsilon)                                                                                                     \
    {                                                                                                                      \
        normalize<IN, OUT, GROUP>(                                                                                         \
            inputs, outputs, scale, shift, input_stride, output_stride, columns, centered != 0, epsilon);                  \
    }

#define NORM(NAME, IN, OUT)                                                                                                \
    NORM_ENTRY(NAME, IN, OUT, 4)                                                                                           \
    NORM_ENTRY(NAME##_any, IN, OUT, 1)

FOR_ALL_PAIRS(NORM, block_norm)
