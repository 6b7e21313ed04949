// The batch kernels: a launch for each part of a layer, any number of rows. batch.h tells their order.
#include "attention.h"
#include "gemm.h"
#include "head.h"
#include "prompt.h"
#include "screen.h"

KERNEL void __launch_bounds__(THREADS) embed_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    embed(p, s);
}

// Norm and rounding to int8: a block for each row.
KERNEL void __launch_bounds__(THREADS) norm_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    Reduced* reduced = (Reduced*)shared_arena();
    float4* rows = (float4*)(shared_arena() + REDUCED_BYTES);
    RowArea area = {rows, rows + p.cols / 4};
    load_gamma(area, p.gamma, p.cols);
    wait_prior();
    quantize_phase(p, s, area, reduced);
}

KERNEL void __launch_bounds__(GEMM_THREADS, 2) linear_8(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    linear_rows<1, 1, 8>(p, s);
}
KERNEL void __launch_bounds__(GEMM_THREADS, 2) linear_16(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    linear_rows<1, 2, 8>(p, s);
}
KERNEL void __launch_bounds__(GEMM_THREADS, 2) linear_32(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    linear_rows<1, 4, 8>(p, s);
}
KERNEL void __launch_bounds__(GEMM_THREADS, 2) linear_64(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    linear_rows<2, 4, 6>(p, s);
}
KERNEL void __launch_bounds__(GEMM_THREADS, 2) linear_128(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    linear_rows<4, 4, 4>(p, s);
}

// Decode rows: RoPE, cache write and attention, a block for each unit.
KERNEL void __launch_bounds__(THREADS) attend_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    FirstUnit* first = (FirstUnit*)shared_arena();
    unsigned char* work = shared_arena() + FIRST_UNIT_BYTES;
    wait_prior();
    if (threadIdx.x == 0) find_first_unit(s, first);
    __syncthreads();
    UnitKeys keys = {};
    attend_ahead(s, p.rows, work, first, keys);
    attend(s, p.rows, work, first, keys, UnitSource<false>{0});
}

KERNEL void __launch_bounds__(THREADS) store_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    store_row(s, p.rows, p.first_block + (int)blockIdx.x);
}
KERNEL void __launch_bounds__(PROMPT_THREADS, 3) attend_prompt(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    attend_prompt_tile(s, p.rows);
}

KERNEL void __launch_bounds__(THREADS) pack_screen(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step) {
    pack_screen_rows(p);
}
