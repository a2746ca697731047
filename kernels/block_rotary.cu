// Norms and rotations of heads: what happens to queries and keys before attention.
//
//   x ← x / √(Σ x² / d + ε) · scale, where heads have a norm, then
//   (y_j, y_{j+d/2}) = (x_j·cos − x_{j+d/2}·sin, x_{j+d/2}·cos + x_j·sin), with the cosine and sine of (position, j)
//
// Dimensions: X, Y [tokens, heads] of heads of d columns, even and at most 256, each in f32, f16 or bf16; Y may be X. Tables f32
//             [length, d / 2]; the position of a token is its number in its sequence of `length`.
// Launch:     (⌈tokens · heads / 8⌉) × BLOCK_THREADS: a warp for each head of each token
// Requires:   nothing of alignment: a warp reads 32 numbers in a row.
// Oracle:     reference::rms_norm, reference::rotate
// Tolerance:  testkit::tolerance::rotation_tolerance
//
// Bytes: every number is read and written once; tables stay in caches.

#include "block_numbers.cuh"

namespace {

constexpr unsigned MOST = 256 / 2 / 32;                        // pairs of a lane

template <class IN, class OUT>
__device__ __forceinline__ void rotate(
    const IN* inputs,
    OUT* outputs,
    const float* scale,
    const float* cosines,
    const float* sines,
    unsigned long long input_stride,
    unsigned long long input_step,
    unsigned long long output_stride,
    unsigned long long output_step,
    unsigned tokens,
    unsigned heads,
    unsigned half,
    unsigned length,
    float epsilon)
{
    const unsigned lane = threadIdx.x % 32;
    const unsigned long long at = blockIdx.x * static_cast<unsigned long long>(BLOCK_THREADS / 32) + threadIdx.x / 32;
    if (at >= static_cast<unsigned long long>(tokens) * heads) {
        return;
    }
    const unsigned token = static_cast<unsigned>(at / heads), head = static_cast<unsigned>(at % heads);
    const IN* const from = inputs + token * input_stride + head * input_step;
    OUT* const to = outputs + token * output_stride + head * output_step;
    float real[MOST] = {}, imaginary[MOST] = {};
    float square = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < MOST; ++i) {
        const unsigned j = i * 32 + lane;
        if (j < half) {
            real[i] = number(from[j]);
            imaginary[i] = number(from[half + j]);
            square += real[i] * real[i] + imaginary[i] * imaginary[i];
        }
    }
    const float factor = scale == nullptr ? 1.0f : 1.0f / sqrtf(sum_of_warp(square) / static_cast<float>(2 * half) + epsilon);
    const unsigned long long row = static_cast<unsigned long long>(token % length) * half;
#pragma unroll
    for (unsigned i = 0; i < MOST; ++i) {
        const unsigned j = i * 32 + lane;
        if (j < half) {
            float a = real[i], b = imaginary[i];
            if (scale != nullptr) {
                a = a * factor * scale[j];
                b = b * factor * scale[half + j];
            }
            if (cosines != nullptr) {
                const float cosine = cosines[row + j], sine = sines[row + j];
                const float turned = a * cosine - b * sine;
                b = b * cosine + a * sine;
                a = turned;
            }
            to[j] = rounded<OUT>(a);
            to[half + j] = rounded<OUT>(b);
        }
    }
}

}  // namespace

#define ROTARY(NAME, IN, OUT)                                                                                              \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) NAME(                                                      \
        const IN* inputs,                     /* head h of token i at i · input_stride + h · input_step */                 \
        OUT* outputs,                         /* likewise, out; inputs or apart from them */                               \
        const float* __restrict__ scale,      /* [2 · half], or null for no norm */                                        \
        const float* __restrict__ cosines,    /* [length, half], or null for no rotation */                                \
        const float* __restrict__ sines,      /* likewise */                                                               \
        unsigned long long input_stride,                                                                                   \
        unsigned long long input_step,                                                                                     \
        unsigned long long output_stride,                                                                                  \
        unsigned long long output_step,                                                                                    \
        unsigned tokens,                                                                                                   \
        unsigned heads,                                                                                                    \
        unsigned half,                        /* half of a head's columns, at most 128 */                                  \
        unsigned length,                                                                                                   \
        float epsilon)                                                                                                     \
    {                                                                                                                      \
        rotate<IN, OUT>(                                                                                                   \
            inputs, outputs, scale, cosines, sines, input_stride, input_step, output_stride, output_step, tokens, heads,   \
            half, length, epsilon);                                                                                        \
    }

FOR_ALL_PAIRS(ROTARY, block_rotary)
