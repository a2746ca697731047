// probabilities[r][c] = exp(x[r][c] - max of row r) / Σ of the same over the row; one warp per row, one pass for both
// the maximum and the sum (a sum is rescaled whenever the maximum grows).
//
// Launch:  ceil(rows / 4) blocks of 128 threads; columns > 0, values finite.

#include <math_constants.h>

constexpr unsigned THREADS = 128;
constexpr unsigned FULL = 0xffffffffu;

extern "C" __global__ void __launch_bounds__(THREADS) softmax(
    const float* __restrict__ x,            // f32 [rows, columns] row-major
    float* __restrict__ probabilities,      // f32 [rows, columns] row-major, out
    unsigned rows,
    unsigned columns)
{
    const unsigned row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) {
        return;     // whole warps
    }
    x += size_t(row) * columns;
    probabilities += size_t(row) * columns;

    float most = -CUDART_INF_F, sum = 0.0f;
    for (unsigned column = lane; column < columns; column += 32) {
        const float value = x[column], larger = fmaxf(most, value);
        sum = sum * expf(most - larger) + expf(value - larger);
        most = larger;
    }
    for (unsigned offset = 16; offset > 0; offset /= 2) {
        const float other_most = __shfl_xor_sync(FULL, most, offset);
        const float other_sum = __shfl_xor_sync(FULL, sum, offset);
        const float larger = fmaxf(most, other_most);
        // A lane that had no column has nothing to rescale; -inf - -inf would be NaN.
        const float own = sum > 0.0f ? sum * expf(most - larger) : 0.0f;
        const float other = other_sum > 0.0f ? other_sum * expf(other_most - larger) : 0.0f;
        sum = own + other;
        most = larger;
    }
    for (unsigned column = lane; column < columns; column += 32) {
        probabilities[column] = expf(x[column] - most) / sum;
    }
}
