// What happens to numbers one by one between linear layers.
//
//   embed:    x_i = tokens[id_i] + positions[i mod length + offset]
//   activate: y = f(x + bias), or f(gate + bias) · (up + bias);  f: identity, ReLU, SiLU, GELU, GELU by tanh
//   add:      x ← x + (y + bias)
//   convert:  y = x rounded, and where the first number is that is not finite then
//
// Dimensions: [rows, columns] throughout, x of embed and add f32, the others in f32, f16 or bf16; biases f32 [columns];
//             tables [vocabulary, columns] and [positions, columns] in one type.
// Launch:     (rows, ⌈columns / 4 / BLOCK_THREADS⌉) × BLOCK_THREADS; without the 4 for `…_any`
// Requires:   rows that start at multiples of four numbers and columns that are one, or the entry `…_any`.
// Oracle:     reference::activation
// Tolerance:  testkit::tolerance::activation_tolerance; the others are correctly rounded but for one addition more.
//
// Bytes: everything is read and written once, and nothing but that takes time.

#include "block_numbers.cuh"

namespace {

enum Activation : unsigned { IDENTITY, RELU, SILU, GELU, GELU_TANH };

__device__ __forceinline__ float activated(unsigned kind, float x)
{
    switch (kind) {
    case RELU:
        // Not fmaxf, which would turn NaN into 0.
        return x < 0.0f ? 0.0f : x;
    case SILU:
        return x / (1.0f + expf(-x));
    case GELU:
        return x * (0.5f * (1.0f + erff(x * 0.707106781f)));
    case GELU_TANH:
        return x / (1.0f + expf(-1.59576912f * (x + 0.044715f * x * x * x)));
    default:
        return x;
    }
}

// The thread's first column.
template <unsigned GROUP>
__device__ __forceinline__ unsigned own_column()
{
    return (blockIdx.y * BLOCK_THREADS + threadIdx.x) * GROUP;
}

template <unsigned GROUP, class T>
__device__ __forceinline__ void read_with_bias(float (&to)[GROUP], const T* row, const float* bias, unsigned column)
{
    read(to, row + column);
    if (bias != nullptr) {
        float biases[GROUP];
        read(biases, bias + column);
#pragma unroll
        for (unsigned n = 0; n < GROUP; ++n) {
            to[n] += biases[n];
        }
    }
}

}  // namespace

#define EMBED_ENTRY(NAME, TYPE, GROUP)                                                                                     \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) NAME(                                                      \
        const unsigned* __restrict__ ids,     /* [rows]; those from vocabulary on make a row of NaN */                     \
        const TYPE* __restrict__ table,       /* [vocabulary, columns], a row every table_stride */                        \
        const TYPE* __restrict__ positions,   /* [offset + length, columns] likewise, or null for none */                  \
        float* __restrict__ outputs,          /* f32 [rows, columns], a row every output_stride, out */                    \
        unsigned long long table_stride,                                                                                   \
        unsigned long long position_stride,                                                                                \
        unsigned long long output_stride,                                                                                  \
        unsigned vocabulary,                                                                                               \
        unsigned columns,                     /* a multiple of GROUP */                                                    \
        unsigned length,                      /* of a sequence */                                                          \
        unsigned offset)                      /* the row of position 0 */                                                  \
    {                                                                                                                      \
        const unsigned row = blockIdx.x, column = own_column<GROUP>(), id = ids[row];                                      \
        if (column >= columns) {                                                                                           \
            return;                                                                                                        \
        }                                                                                                                  \
        float numbers[GROUP], places[GROUP] = {};                                                                          \
        if (id < vocabulary) {                                                                                             \
            read(numbers, table + id * table_stride + column);                                                             \
        }                                                                                                                  \
        if (positions != nullptr) {                                                                                        \
            read(places, positions + (row % length + offset) * position_stride + column);                                  \
        }                                                                                                                  \
        _Pragma("unroll") for (unsigned n = 0; n < GROUP; ++n)                                                             \
        {                                                                                                                  \
            numbers[n] = id < vocabulary ? numbers[n] + places[n] : NAN;                                                   \
        }                                                                                                                  \
        write(outputs + row * output_stride + column, numbers);                                                            \
    }

#define ADD_ENTRY(NAME, TYPE, GROUP)                                                                                       \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) NAME(                                                      \
        float* __restrict__ stream,           /* f32 [rows, columns], a row every stream_stride, in/out */                 \
        const TYPE* __restrict__ inputs,      /* likewise every input_stride */                                            \
        const float* __restrict__ bias,       /* [columns], or null for none */                                            \
        unsigned long long stream_stride,                                                                                  \
        unsigned long long input_stride,                                                                                   \
        unsigned columns)                     /* a multiple of GROUP */                                                    \
    {                                                                                                                      \
        const unsigned column = own_column<GROUP>();                                                                       \
        if (column >= columns) {                                                                                           \
            return;                                                                                                        \
        }                                                                                                                  \
        float numbers[GROUP], sums[GROUP];                                                                                 \
        read_with_bias(numbers, inputs + blockIdx.x * input_stride, bias, column);                                         \
        float* const to = stream + blockIdx.x * stream_stride + column;                                                    \
        read(sums, to);                                                                                                    \
        _Pragma("unroll") for (unsigned n = 0; n < GROUP; ++n)                                                             \
        {                                                                                                                  \
            sums[n] += numbers[n];                                                                                         \
        }                                                                                                                  \
        write(to, sums);                                                                                                   \
    }

#define ACTIVATE_ENTRY(NAME, IN, OUT, GROUP)                                                                               \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) NAME(                                                      \
        const IN* inputs,                     /* [rows, columns], a row every input_stride */                              \
        const IN* ups,                        /* [rows, columns], a row every up_stride, or null for no gate */            \
        OUT* outputs,                         /* likewise every output_stride, out; inputs, ups, or apart from both */     \
        const float* __restrict__ bias,       /* [columns], or null for none */                                            \
        const float* __restrict__ up_bias,    /* [columns], or null for none */                                            \
        unsigned long long input_stride,                                                                                   \
        unsigned long long up_stride,                                                                                      \
        unsigned long long output_stride,                                                                                  \
        unsigned columns,                     /* a multiple of GROUP */                                                    \
        unsigned kind)                        /* an Activation */                                                          \
    {                                                                                                                      \
        const unsigned column = own_column<GROUP>();                                                                       \
        if (column >= columns) {                                                                                           \
            return;                                                                                                        \
        }                                                                                                                  \
        float numbers[GROUP], factors[GROUP];                                                                              \
        read_with_bias(numbers, inputs + blockIdx.x * input_stride, bias, column);                                         \
        if (ups != nullptr) {                                                                                              \
            read_with_bias(factors, ups + blockIdx.x * up_stride, up_bias, column);                                        \
        }                                                                                                                  \
        _Pragma("unroll") for (unsigned n = 0; n < GROUP; ++n)                                                             \
        {                                                                                                                  \
            numbers[n] = activated(kind, numbers[n]);                                                                      \
            if (ups != nullptr) {                                                                                          \
                numbers[n] *= factors[n];                                                                                  \
            }                                                                                                              \
        }                                                                                                                  \
        write(outputs + blockIdx.x * output_stride + column, numbers);                                                     \
    }

#define CONVERT_ENTRY(NAME, IN, OUT, GROUP)                                                                                \
    extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) NAME(                                                      \
        const IN* __restrict__ inputs,        /* [rows, columns], a row every input_stride */                              \
        OUT* __restrict__ outputs,            /* likewise every output_stride, out */                                      \
        unsigned long long* not_finite,       /* [1]: the least row · columns + column of such a result; all ones before, in/out */ \
        unsigned long long input_stride,                                                                                   \
        unsigned long long output_stride,                                                                                  \
        unsigned columns)                     /* a multiple of GROUP */                                                    \
    {                                                                                                                      \
        const unsigned column = own_column<GROUP>();                                                                       \
        if (column >= columns) {                                                                                           \
            return;                                                                                                        \
        }                                                                                                                  \
        float numbers[GROUP];                                                                                              \
        read(numbers, inputs + blockIdx.x * input_stride + column);                                                        \
        unsigned first = GROUP;                                                                                            \
        _Pragma("unroll") for (unsigned n = GROUP; n-- > 0;)                                                               \
        {                                                                                                                  \
            numbers[n] = number(rounded<OUT>(numbers[n]));                                                                 \
            first = isfinite(numbers[n]) ? first : n;                                                                      \
        }                                                                                                                  \
        write(outputs + blockIdx.x * output_stride + column, numbers);                                                     \
        if (first < GROUP) {                                                                                               \
            atomicMin(not_finite, blockIdx.x * static_cast<unsigned long long>(columns) + column + first);                 \
        }                                                                                                                  \
    }

#define BOTH(ENTRY, NAME, ...)                                                                                             \
    ENTRY(NAME, __VA_ARGS__, 4)                                                                                            \
    ENTRY(NAME##_any, __VA_ARGS__, 1)
#define ACTIVATE(NAME, IN, OUT) BOTH(ACTIVATE_ENTRY, NAME, IN, OUT)
#define CONVERT(NAME, IN, OUT) BOTH(CONVERT_ENTRY, NAME, IN, OUT)

BOTH(EMBED_ENTRY, block_embed_f32, float)
BOTH(EMBED_ENTRY, block_embed_f16, __half)
BOTH(EMBED_ENTRY, block_embed_bf16, __nv_bfloat16)
BOTH(ADD_ENTRY, block_add_f32, float)
BOTH(ADD_ENTRY, block_add_f16, __half)
BOTH(ADD_ENTRY, block_add_bf16, __nv_bfloat16)
FOR_ALL_PAIRS(ACTIVATE, block_activate)
FOR_ALL_PAIRS(CONVERT, block_convert)
