// The batch kernels: a launch for each part of a layer, any number of rows. batch.h tells their order.
#include "decode.h"
#include "decode_bytes.h"
#include "draw.h"
#include "few.h"
#include "gemm.h"
#if WARPGROUPS
#include "wide.h"
#endif
#include "head.h"
#include "prompt.h"
#include "prompt_bytes.h"
#include "rank.h"
#include "rows.h"
#include "tensor.h"

KERNEL void __launch_bounds__(THREADS) embed_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    embed(p, s);
}

// Norm and rounding to int8: a block for each row.
KERNEL void __launch_bounds__(THREADS) norm_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    Reduced* reduced = (Reduced*)shared_arena();
    float4* rows = (float4*)(shared_arena() + REDUCED_BYTES);
    RowArea area = {rows, rows + p.cols / 4};
    // As norm_kept.
    if (s.tokens <= 32) launch_next();
    load_gamma(area, p.gamma, p.cols);
    wait_prior();
    quantize_phase(p, s, area, gathered_block(s.tokens), reduced);
}

// The same for rows of up to 8192 columns, kept in registers, and for those of up to 3072.
KERNEL void __launch_bounds__(ROW_THREADS, 4) norm_kept(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    norm_kept_row<8>(p, s);
}
KERNEL void __launch_bounds__(ROW_THREADS, 6) norm_short(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    norm_kept_row<3>(p, s);
}

KERNEL void __launch_bounds__(FEW_THREADS, 2) linear_8(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    Few<1>(p, s).run();
}
// Blocks of a single row tile.
KERNEL void __launch_bounds__(FEW_THREADS, 2) linear_narrow(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    Few<1, 1>(p, s).run();
}
KERNEL void __launch_bounds__(FEW_THREADS, 2) linear_16(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    Few<2>(p, s).run();
}
KERNEL void __launch_bounds__(FEW_THREADS, 2) linear_32(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    Few<4>(p, s).run();
}
// Up to 64 rows, where a cluster's blocks hold all columns.
KERNEL void __launch_bounds__(FEW_THREADS, 1) linear_held(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
#if WARPGROUPS
    Few<8>(p, s).run();
#else
    linear_rows<1, 8, 6>(p, s);
#endif
}
template <int NT> DEVICE void paired_linear(const Phase& p, const Step& s) {
    if constexpr (WARPGROUPS) Few<NT, 4>(p, s).run();
}
// Up to 64 and 128 rows by blocks of four row tiles and half of the rows, with all columns, half of them for each warpgroup.
KERNEL void __launch_bounds__(FEW_THREADS, 1) linear_pair_32(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    paired_linear<4>(p, s);
}
KERNEL void __launch_bounds__(FEW_THREADS, 1) linear_pair_64(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    paired_linear<8>(p, s);
}
KERNEL void __launch_bounds__(GEMM_THREADS, 2) linear_64(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
#if WARPGROUPS
    group_linear<8, 6>(p, s);
#else
    linear_rows<1, 8, 6>(p, s);
#endif
}
KERNEL void __launch_bounds__(GEMM_THREADS, 2) linear_128(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
#if WARPGROUPS
    group_linear<16, 4>(p, s);
#else
    linear_rows<4, 4, 4>(p, s);
#endif
}

// Blocks that stay, for many row tiles and rows.
KERNEL void __launch_bounds__(WARPGROUPS ? 384 : GEMM_THREADS, WARPGROUPS ? 1 : 2)
    linear_wide(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
#if WARPGROUPS
    WideLinear(p, s).run();
#else
    linear_rows<4, 4, 4>(p, s);
#endif
}

// Decode rows: RoPE, cache write and attention, a block for each split of a row and kv head.
template <int ROOM> DEVICE void attend_decodes(const Phase& p, const Step& s) {
    if (s.group < DECODE_HEADS) {
        attend_split<1, 0, ROOM>(s, p.rows, p.items, p.wide);
    } else if (s.head_dim == HEAD_DIM_MAX) {
        attend_split<DECODE_HEADS, HEAD_DIM_MAX, ROOM>(s, p.rows, p.items, p.wide);
    } else {
        attend_split<DECODE_HEADS, 0, ROOM>(s, p.rows, p.items, p.wide);
    }
}
KERNEL void __launch_bounds__(DECODE_THREADS, DECODE_BLOCKS) attend_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    attend_decodes<SPLIT / KV_BLOCK>(p, s);
}
// Blocks so few that each may have more shared memory.
KERNEL void __launch_bounds__(DECODE_THREADS, 2) attend_few(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    attend_decodes<0>(p, s);
}
KERNEL void __launch_bounds__(THREADS) store_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    store_row(s, p.rows, p.first_block + (int)blockIdx.x);
}
KERNEL void __launch_bounds__(PROMPT_THREADS, 2) attend_prompt(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    attend_prompt_tile(s, p.rows, p.items);
}
// The same over an int8 cache.
KERNEL void __launch_bounds__(DECODE_THREADS, DECODE_BLOCKS) attend_byte_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    if (s.head_dim == HEAD_DIM_MAX) {
        attend_bytes<HEAD_DIM_MAX>(s, p.rows, p.wide);
    } else {
        attend_bytes<0>(s, p.rows, p.wide);
    }
}
KERNEL void __launch_bounds__(THREADS) store_byte_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    store_byte_row(s, p.rows, p.first_block + (int)blockIdx.x);
}
KERNEL void __launch_bounds__(PROMPT_THREADS, 2) attend_byte_prompt(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    attend_byte_tile(s, p.rows, p.items);
}
// Attention of prompts on tensor cores, for heads of 128 and for any.
KERNEL void __launch_bounds__(TENSOR_THREADS, 3) attend_tensor_128(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    attend_tensor_tile<HEAD_DIM_MAX>(s, p.rows);
}
KERNEL void __launch_bounds__(TENSOR_THREADS, 3) attend_tensor(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    attend_tensor_tile<0>(s, p.rows);
}

// The head by its screen: norm_screen, screen_*, draw_rows where there are draws among all, rank_rows where some are among the best few,
// choose_rows, take_rows, and for these pick_rows.
KERNEL void __launch_bounds__(THREADS) norm_screen(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    screen_batch_row(p, s, blockIdx.x);
}

template <int WIDE, int NT, int STAGES> DEVICE void screen_rows_of(const Phase& p, const Step& s) {
    Gemm<Bytes, WIDE, NT, STAGES> gemm;
    gemm.place(p, s.screened);
    FinishScreen finish{p, s, gemm.tile * 16, gemm.group * 4, (float4*)gemm.facts()};
    gemm.run([&] { finish.begin(); }, [&] { finish.follow(gemm.GROUPS * 4); });
    launch_next();
    gemm.finish(finish);
}
KERNEL void __launch_bounds__(GEMM_THREADS, 2) screen_16(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    screen_rows_of<1, 2, 5>(p, s);
}
// From 9.0 on by warpgroups, whose blocks stay.
KERNEL void __launch_bounds__(WARPGROUPS ? 384 : GEMM_THREADS, WARPGROUPS ? 1 : 2)
    screen_64(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
#if WARPGROUPS
    WideScreen<8, 8>(p, s).run();
#else
    screen_rows_of<1, 8, 4>(p, s);
#endif
}
KERNEL void __launch_bounds__(WARPGROUPS ? 384 : GEMM_THREADS, WARPGROUPS ? 1 : 2)
    screen_128(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
#if WARPGROUPS
    WideScreen<16, 6>(p, s).run();
#else
    screen_rows_of<4, 4, 3>(p, s);
#endif
}
KERNEL void __launch_bounds__(WARPGROUPS ? 384 : GEMM_THREADS, WARPGROUPS ? 1 : 2)
    screen_256(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
#if WARPGROUPS
    WideScreen<32, 4>(p, s).run();
#else
    screen_rows_of<4, 4, 3>(p, s);
#endif
}
KERNEL void __launch_bounds__(THREADS) draw_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    draw_batch_rows(p, s, (int)blockIdx.x % s.tokens, (int)blockIdx.x / s.tokens);
}
KERNEL void __launch_bounds__(THREADS) rank_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    rank_batch_row(p, s, blockIdx.x);
}
KERNEL void __launch_bounds__(CHOOSE_THREADS) choose_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    choose_batch_rows(p, s, (int)blockIdx.x % s.tokens, (int)blockIdx.x / s.tokens);
}
KERNEL void __launch_bounds__(THREADS) take_rows(const GRID_CONSTANT Phase, const GRID_CONSTANT Step s) {
    wait_prior();
    take_chosen(s, (int)blockIdx.x * WARPS + warp_id());
}
KERNEL void __launch_bounds__(THREADS) pick_rows(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step s) {
    wait_prior();
    pick_batch_row(p, s, blockIdx.x);
}

// The end of a step: its tokens, then its number, where the host looks for them.
KERNEL void __launch_bounds__(THREADS) tell_rows(const GRID_CONSTANT Phase, const GRID_CONSTANT Step s) {
    wait_prior();
    for (int t = threadIdx.x; t < s.tokens; t += THREADS) s.told[t] = s.token_ids[t];
    fence_host();
    __syncthreads();
    if (threadIdx.x == 0) store_for_host(s.done, *s.number);
}

KERNEL void __launch_bounds__(THREADS) pack_screen(const GRID_CONSTANT Phase p, const GRID_CONSTANT Step) {
    pack_screen_rows(p);
}
