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
constexpr unsigned PRODUCT_SHARED = 69632;

// Kernels that pass once over something: one element a thread.
constexpr unsigned FLAT_THREADS = 256;

// Kernels of one thread block that reduce a vector.
constexpr unsigned REDUCE_THREADS = 1024;

// factor_block.cuh: a diagonal block with rows four banks apart, and the reciprocals of its diagonal.
constexpr unsigned FACTOR_THREADS = 256;
constexpr unsigned FACTOR_SHARED = 68096;

// Products with one block, in thin tiles: factor_divide takes 32 rows of all columns, factor_subtract 64 × 64.
constexpr unsigned FACTOR_DIVIDE_ROWS = 32;
constexpr unsigned FACTOR_DIVIDE_SHARED = 84480;
constexpr unsigned FACTOR_SUBTRACT_TILE = 64;
constexpr unsigned FACTOR_SUBTRACT_SHARED = 67584;

// factor_save, factor_restore: squares that are turned in shared memory.
constexpr unsigned SQUARE = 32;

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

// block_attention: 128 queries, 32 for each of four warps, and a ring of three tiles of keys or values; of heads wider than 128
// columns half as many of either. Shared memory by the width that heads are padded to.
constexpr unsigned ATTENTION_THREADS = 128;
constexpr unsigned ATTENTION_STAGES = 3;
constexpr unsigned ATTENTION_QUERIES = 128;
constexpr unsigned ATTENTION_WIDE_QUERIES = 64;
constexpr unsigned ATTENTION_KEYS = 64;
constexpr unsigned ATTENTION_WIDE_KEYS = 32;
constexpr unsigned ATTENTION_SHARED_32 = 20480;
constexpr unsigned ATTENTION_SHARED_64 = 40960;
constexpr unsigned ATTENTION_SHARED_96 = 61440;
constexpr unsigned ATTENTION_SHARED_128 = 81920;
constexpr unsigned ATTENTION_SHARED_256 = 81920;

// block_norm, block_elementwise, block_loss: a thread block for a row, or for a part of one. block_norm holds so many groups of
// a row's numbers in each thread's registers: 12288 columns, if aligned.
constexpr unsigned BLOCK_THREADS = 256;
constexpr unsigned NORM_HELD = 12;
