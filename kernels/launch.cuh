// Constants that kernels and their launches share. build.rs turns each `constexpr unsigned NAME = number;` into a
// constant of the same name in Rust, so that no number of a launch stands in two places.
#pragma once

// Columns handled together, and the size of the diagonal blocks of a factor.
constexpr unsigned PANEL = 128;

// Tiles of all matrix products, square.
constexpr unsigned TILE = 128;

// hessian_accumulate: warps of 64 × 64, so that shared memory is read at half of what it can give.
constexpr unsigned HESSIAN_THREADS = 128;
constexpr unsigned HESSIAN_STAGES = 4;
constexpr unsigned HESSIAN_SHARED = 65536;

// product.cuh: warps of 64 × 32.
constexpr unsigned PRODUCT_THREADS = 256;
constexpr unsigned PRODUCT_STAGES = 4;
constexpr unsigned PRODUCT_DEPTH = 16;
constexpr unsigned PRODUCT_SHARED = 65536;

// Kernels that pass once over something: one element a thread.
constexpr unsigned FLAT_THREADS = 256;

// Kernels of one thread block that reduce a vector.
constexpr unsigned REDUCE_THREADS = 1024;

// prune_sweep: a tile of W̃ of this many rows, U_b in two stages, and the pivots: two thread blocks fit on a multiprocessor
// of an A100. Groups of 32 columns need stages twice as high.
constexpr unsigned SWEEP_ROWS = 128;
constexpr unsigned SWEEP_THREADS = 128;
constexpr unsigned SWEEP_SHARED = 82432;
constexpr unsigned SWEEP_SHARED_WIDE = 98816;

// prune_select: a histogram of 2^11 bins fits into one thread block's hands, eight bins a thread.
constexpr unsigned SELECT_THREADS = 256;
constexpr unsigned SELECT_BINS = 2048;
constexpr unsigned SELECT_PASSES = 3;

// prune_trailing: the inverse of one panel, its triangle in f64.
constexpr unsigned INVERT_SHARED = 66048;
