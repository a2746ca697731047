// transposed[c][r] = matrix[r][c], through tiles of 32 × 32 in shared memory.
//
// Launch:  grid (ceil(columns / 32), ceil(rows / 32)), blocks of 32 × 8 threads.

constexpr unsigned TILE = 32;
constexpr unsigned ROWS_AT_ONCE = 8;

extern "C" __global__ void __launch_bounds__(TILE * ROWS_AT_ONCE) transpose(
    const float* __restrict__ matrix,   // f32 [rows, columns] row-major
    float* __restrict__ transposed,     // f32 [columns, rows] row-major, out
    unsigned rows,
    unsigned columns)
{
    // One column more than there are, so that the cells of a column lie in 32 different banks.
    __shared__ float tile[TILE][TILE + 1];

    const unsigned from_row = blockIdx.y * TILE, from_column = blockIdx.x * TILE;
    for (unsigned y = threadIdx.y; y < TILE; y += ROWS_AT_ONCE) {
        const unsigned row = from_row + y, column = from_column + threadIdx.x;
        if (row < rows && column < columns) {
            tile[y][threadIdx.x] = matrix[row * columns + column];
        }
    }
    __syncthreads();
    for (unsigned y = threadIdx.y; y < TILE; y += ROWS_AT_ONCE) {
        const unsigned row = from_row + threadIdx.x, column = from_column + y;
        if (row < rows && column < columns) {
            transposed[column * rows + row] = tile[threadIdx.x][y];
        }
    }
}
