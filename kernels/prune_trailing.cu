// Panel and trailing updates: how the errors of the columns that are done reach those that are not, and what a sweep needs
// beside them.
//
//   left-looking:   owed = Δ_{<b} · V_{<b,b},  W̃_b = W_b + owed · U_b        with Δ = W − Q and U_b = V_bb⁻¹
//   right-looking:  W_{>b} ← W_{>b} − E_b · U_{b,>b}                          with U = V⁻¹
//
// Dimensions: Δ, E, W, owed f32 [rows, …] row-major; V, U f32 [columns, columns], of which rows above the panel, or of it, are
//             read: nothing below the diagonal is.
// Launch:     as product.cuh says. prune_take_f32: a warp for 32 columns of a row, FLAT_THREADS. prune_clear_columns: likewise.
//             prune_invert_panels_f32: (panels) × PANEL with INVERT_SHARED.
// Requires:   rows that start at multiples of 16 bytes, or the entry `…_any`, which the host chooses.
// Oracle:     reference::sweep_with_factor, reference::sweep_with_inverse_factor, reference::invert_upper
// Tolerance:  testkit::tolerance::split_gemm_tolerance; inverses: γ(4) · |U|·|V|·|U|, sums in f64.
//
// Operations: rows · columns² over all panels of a layer, either way round. Left-looking reads Δ again for every panel, 64
// operations a byte; it needs no inverse of V beyond the diagonal blocks, which saves two thirds of the factor's work.

#include "product.cuh"

static_assert((PANEL * (PANEL + 1) / 2) * sizeof(double) == INVERT_SHARED, "the launch gives as much");

PRODUCT(prune_trailing_f32, Along::Depth, Along::Tile, Region::Full)

extern "C" __global__ void __launch_bounds__(FLAT_THREADS) prune_trailing_sum_f32(const Product product)
{
    product_sum<Region::Full>(product);
}

// Copies a matrix: W_b to where its W̃_b grows.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS) prune_take_f32(
    const float* __restrict__ from,       // f32 [rows, columns], a row every from_stride
    float* __restrict__ to,               // f32 [rows, columns], a row every to_stride, out
    unsigned long long from_stride,
    unsigned long long to_stride,
    unsigned rows,
    unsigned columns)
{
    const unsigned words = divide_up(columns, 32), word = blockIdx.x * (FLAT_THREADS / 32) + threadIdx.x / 32;
    const unsigned row = word / words, column = word % words * 32 + threadIdx.x % 32;
    if (row < rows && column < columns) {
        to[row * to_stride + column] = from[row * from_stride + column];
    }
}

// Sets the columns to zero that no input ever touched.
extern "C" __global__ void __launch_bounds__(FLAT_THREADS) prune_clear_columns(
    float* weights,                       // f32 [rows, columns], a row every `stride`, in/out
    const unsigned char* __restrict__ dead,  // u8 [columns]: not zero for a dead column
    unsigned long long stride,
    unsigned rows,
    unsigned columns)
{
    const unsigned words = divide_up(columns, 32), word = blockIdx.x * (FLAT_THREADS / 32) + threadIdx.x / 32;
    const unsigned row = word / words, column = word % words * 32 + threadIdx.x % 32;
    if (row < rows && column < columns && dead[column] != 0) {
        weights[row * stride + column] = 0.0f;
    }
}

// U_b = V_bb⁻¹ of panels of any one width, for groups whose panels are not the blocks that the factor was made of. A thread a
// column, by back substitution: u_ij = −Σ_{i < k ≤ j} v_ik · u_kj / v_ii. Short and rare: it is not worth more than that.
extern "C" __global__ void __launch_bounds__(PANEL) prune_invert_panels_f32(
    const float* __restrict__ factor,     // f32 [columns, columns], upper triangular, a row every `stride`: V
    float* __restrict__ inverses,         // f32 [panels, PANEL, PANEL], out: with zeros below the diagonal and behind the width
    unsigned long long stride,
    unsigned columns,
    unsigned width)
{
    extern __shared__ __align__(128) double entries[];
    const unsigned first = blockIdx.x * width, own = min(width, columns - first), j = threadIdx.x;
    const float* const block = factor + first * (stride + 1);
    float* const inverse = inverses + static_cast<unsigned long long>(blockIdx.x) * PANEL * PANEL;
    // Row k of the triangle: entries k to PANEL − 1. Each thread reads what it wrote itself.
    const auto entry = [&](unsigned k) -> double& { return entries[k * PANEL - k * (k + 1) / 2 + j]; };
    for (unsigned below = PANEL; below > 0; --below) {
        const unsigned i = below - 1;
        double u = 0.0;
        if (i <= j && j < own) {
            double sum = i == j ? 1.0 : 0.0;
            for (unsigned k = i + 1; k <= j; ++k) {
                sum -= static_cast<double>(block[i * stride + k]) * entry(k);
            }
            u = sum / static_cast<double>(block[i * (stride + 1)]);
            entry(i) = u;
        }
        inverse[i * PANEL + j] = static_cast<float>(u);
    }
}
