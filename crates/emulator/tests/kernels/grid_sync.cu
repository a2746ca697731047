// after[b] = before[(b + 1) % blocks], each block writing before[b] = b + 1 ahead of a barrier of the whole grid.
//
// Launch:  cooperative, any number of blocks that are resident at once, of one dimension.

#include <cooperative_groups.h>

extern "C" __global__ void grid_sync(
    unsigned* __restrict__ before,  // u32 [blocks], out
    unsigned* __restrict__ after)   // u32 [blocks], out
{
    if (threadIdx.x == 0) {
        before[blockIdx.x] = blockIdx.x + 1;
    }
    cooperative_groups::this_grid().sync();
    if (threadIdx.x == 0) {
        after[blockIdx.x] = before[(blockIdx.x + 1) % gridDim.x];
    }
}
