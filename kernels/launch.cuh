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

// pack_bitmask: a warp for each row; of the values that it multiplies, blocks of 1024 bytes are under way.
constexpr unsigned PACK_THREADS = 256;
constexpr unsigned BITMASK_BLOCK = 1024;
constexpr unsigned BITMASK_DEPTH = 4;
constexpr unsigned BITMASK_MOST_VECTORS = 8;

// pack_two_four: sizes of the packed form are multiples of 64 in both directions. Tiles of the product are 256 rows by 128
// tokens, or 64 by 32 where tokens are few.
constexpr unsigned TWO_FOUR_PAD = 64;
constexpr unsigned TWO_FOUR_ROWS = 256;
constexpr unsigned TWO_FOUR_TOKENS = 128;
constexpr unsigned TWO_FOUR_STAGES = 3;
constexpr unsigned TWO_FOUR_THREADS = 256;
constexpr unsigned TWO_FOUR_SHARED = 98304;
constexpr unsigned TWO_FOUR_NARROW_ROWS = 64;
constexpr unsigned TWO_FOUR_NARROW_TOKENS = 32;
constexpr unsigned TWO_FOUR_NARROW_STAGES = 8;
constexpr unsigned TWO_FOUR_NARROW_THREADS = 64;
constexpr unsigned TWO_FOUR_NARROW_SHARED = 65536;
