//! Which launches of the batch kernels make the layers of a step, with which grids and shared memory: the mirror of
//! `kernels/cuda/batch.h`.

use std::ffi::CStr;
use std::ops::Range;

use kernels::attention::BLOCK;

use super::abi::{
    CHOOSE_BYTES, CHOOSE_ROWS, CHOOSE_THREADS, EPILOGUE_ADD, HEAD_DIM_MAX, PHASE_ATTEND, PHASE_EMBED, PHASE_LINEAR,
    PHASE_QUANTIZE, PICK_BYTES, PROMPT_PAIRS_LEAST, Phase, RANK_BYTES, REDUCED_BYTES, SPLIT, Step, TENSOR_PAIRS,
    THREADS, TILE_WORDS, head_block_bytes, to_i32,
};

/// Where the rows of a step go: single rows first, then those of prompts in tiles, each for one split; tiles for tensor cores come
/// after the others. `stored`: all rows are single ones, but some are successive ones of a prompt.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rows {
    pub(super) decodes: usize,
    pub(super) prompts: usize,
    pub(super) prompt_tiles: usize,
    pub(super) tensor_tiles: usize,
    pub(super) stored: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) multiprocessors: usize,
    /// 8, or 1 where devices know no clusters.
    pub(super) cluster_max: usize,
}

/// Whether tokens are drawn among all, and whether some are among the best few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Draws {
    pub(super) among_all: bool,
    pub(super) among_best: bool,
}

/// One launch of a batch kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub(super) kernel: &'static CStr,
    pub(super) grid: usize,
    pub(super) cluster: usize,
    pub(super) threads: usize,
    pub(super) shared_bytes: usize,
    pub(super) phase: Phase,
    pub(super) step: Step,
}

pub(super) const KERNELS: [&CStr; 35] = [
    c"embed_rows",
    c"norm_rows",
    c"norm_kept",
    c"norm_short",
    c"linear_8",
    c"linear_narrow",
    c"linear_16",
    c"linear_32",
    c"linear_held",
    c"linear_pair_32",
    c"linear_pair_64",
    c"linear_64",
    c"linear_128",
    c"linear_wide",
    c"attend_rows",
    c"attend_few",
    c"store_rows",
    c"attend_prompt",
    c"attend_tensor",
    c"attend_tensor_128",
    c"attend_byte_rows",
    c"store_byte_rows",
    c"attend_byte_prompt",
    c"pack_screen",
    c"norm_screen",
    c"screen_16",
    c"screen_64",
    c"screen_128",
    c"screen_256",
    c"choose_rows",
    c"draw_rows",
    c"take_rows",
    c"rank_rows",
    c"pick_rows",
    c"tell_rows",
];

/// Hands over the launches that give the tokens of `step.tokens` rows by the screen of the head, phases `screen` and `choose`: the
/// best, and those of the `draws` that `step` has.
pub(super) fn screened_head<E>(
    (screen, choose): (&Phase, &Phase),
    step: &Step,
    draws: Draws,
    limits: Limits,
    mut launch: impl FnMut(&Launch) -> Result<(), E>,
) -> Result<(), E> {
    let tokens = size(step.tokens);
    let of = |kernel, grid, threads, shared_bytes, phase: &Phase| Launch {
        kernel,
        grid,
        cluster: 1,
        threads,
        shared_bytes,
        phase: *phase,
        step: *step,
    };
    launch(&of(c"norm_screen", tokens, THREADS, REDUCED_BYTES + size(screen.cols).next_multiple_of(128) * 4, screen))?;
    let (kernel, grid, cluster, threads, shared_bytes) = screen_of(2 * tokens, size(screen.tiles), limits);
    launch(&Launch { cluster, ..of(kernel, grid, threads, shared_bytes, screen) })?;
    if draws.among_all {
        launch(&of(c"draw_rows", tokens * size(screen.rows).div_ceil(CHOOSE_ROWS), THREADS, 0, screen))?;
    }
    if draws.among_best {
        launch(&of(c"rank_rows", tokens, THREADS, RANK_BYTES + size(choose.cols) * 4, choose))?;
    }
    launch(&of(
        c"choose_rows",
        tokens * size(choose.rows).div_ceil(CHOOSE_ROWS),
        CHOOSE_THREADS,
        CHOOSE_BYTES + size(choose.cols) * 4,
        choose,
    ))?;
    launch(&of(c"take_rows", tokens.div_ceil(THREADS / 32), THREADS, 0, choose))?;
    if draws.among_best { launch(&of(c"pick_rows", tokens, THREADS, PICK_BYTES, choose)) } else { Ok(()) }
}

/// The kernel for so many slots, two for each row: its upper and its lower bytes. Then grid, cluster, threads and shared memory.
/// From 9 rows on two blocks with the same slots, which stay, where devices know clusters.
fn screen_of(slots: usize, tiles: usize, limits: Limits) -> (&'static CStr, usize, usize, usize, usize) {
    if slots > 16 && limits.cluster_max > 1 {
        let (block, kernel, stages) = match slots {
            0..=64 => (64, c"screen_64", 8),
            65..=128 => (128, c"screen_128", 6),
            _ => (256, c"screen_256", 4),
        };
        let pairs = tiles.div_ceil(16) * slots.div_ceil(block);
        let shared_bytes = stages * (16384 + block * 128 + 16) + 16 + block * 20;
        return (kernel, 2 * pairs.min(limits.multiprocessors / 2), 2, WIDE_THREADS, shared_bytes);
    }
    let (tile, kernel, stages) = match slots {
        0..=16 => (16, c"screen_16", 5),
        17..=64 => (64, c"screen_64", 4),
        _ => (128, c"screen_128", 3),
    };
    let shared_bytes = stages * (16384 + tile * 128) + 2048 + tile * 8;
    (kernel, tiles.div_ceil(8) * slots.div_ceil(tile), 1, LINEAR_THREADS, shared_bytes)
}

/// The launch that ends a step: its tokens, then its number, where the server looks for them.
pub(super) fn tell(step: &Step) -> Launch {
    let phase = Phase::default();
    Launch { kernel: c"tell_rows", grid: 1, cluster: 1, threads: THREADS, shared_bytes: 0, phase, step: *step }
}

/// The launch that makes the screen of the head, once for a model, from the half-precision pieces at `halves`.
pub(super) fn pack_screen(screen: &Phase, halves: u64) -> Launch {
    let phase = Phase { output: screen.weights, weights: halves, ..*screen };
    let grid = size(screen.tiles);
    Launch { kernel: c"pack_screen", grid, cluster: 1, threads: THREADS, shared_bytes: 0, phase, step: Step::default() }
}

/// Hands over the launches of the layers `phases`, the embedding first, in their order.
pub(super) fn launches<E>(
    phases: &[Phase],
    step: &Step,
    rows: Rows,
    limits: Limits,
    mut launch: impl FnMut(&Launch) -> Result<(), E>,
) -> Result<(), E> {
    let tokens = usize::try_from(step.tokens).expect("rows are counted");
    for phase in phases {
        let plain = |kernel, grid, shared_bytes| Launch {
            kernel,
            grid,
            cluster: 1,
            threads: THREADS,
            shared_bytes,
            phase: *phase,
            step: *step,
        };
        match phase.kind {
            PHASE_EMBED => launch(&plain(c"embed_rows", (tokens * size(step.hidden) / 8).div_ceil(THREADS), 0))?,
            PHASE_QUANTIZE => launch(&norm(plain(c"", tokens, 0)))?,
            PHASE_LINEAR => launch(&linear(plain(c"", 0, 0), tokens, limits))?,
            PHASE_ATTEND => {
                if rows.prompts > 0 || rows.stored {
                    let (first, count) = if rows.stored { (0, rows.decodes) } else { (rows.decodes, rows.prompts) };
                    let kernel = if phase.plain == 1 { c"store_byte_rows" } else { c"store_rows" };
                    let mut store = plain(kernel, count, 0);
                    store.phase.first_block = to_i32(first);
                    launch(&store)?;
                }
                if rows.decodes > 0 {
                    launch(&attend(plain(c"", 0, 0), rows, limits))?;
                }
                if rows.prompt_tiles > 0 {
                    launch(&attend_prompt(plain(c"", rows.prompt_tiles * size(step.kv_heads), 0), limits))?;
                }
                if rows.tensor_tiles > 0 {
                    launch(&attend_tensor(plain(c"", rows.tensor_tiles * size(step.kv_heads), 0), rows.prompt_tiles))?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// How many of `rows`, the last ones, launches of their own compute beside those of the others: the attention of one part takes what the
/// linears of the other leave. Halves where linears take them best, up to 128 rows at a time; none where one part is as soon.
pub(super) fn rows_beside(rows: Rows, limits: Limits) -> usize {
    match rows.decodes {
        0..=128 => 0,
        _ if rows.prompts > 0 || rows.stored || limits.cluster_max == 1 => 0,
        decodes @ 129..=256 => decodes / 2,
        decodes => (decodes / 2 + LINEAR_ROWS / 2 - 1) / LINEAR_ROWS * LINEAR_ROWS,
    }
}

/// The same phase for the rows from `first` on.
pub(super) fn phase_from(phase: &Phase, first: usize) -> Phase {
    let after = |at: u64, width: i32| at + (first * size(width) * 4) as u64;
    match phase.kind {
        PHASE_EMBED => Phase { output: after(phase.output, phase.cols), ..*phase },
        PHASE_QUANTIZE => Phase { input: after(phase.input, phase.cols), ..*phase },
        PHASE_LINEAR => Phase { output: after(phase.output, phase.stride), ..*phase },
        _ => *phase,
    }
}

/// The same step with some of its rows; the widest of them has so many columns, padded.
pub(super) fn step_of(step: &Step, rows: Range<usize>, widest: usize) -> Step {
    let after = |at: u64, bytes: usize| at + (rows.start * bytes) as u64;
    let (heads, query_width) = (size(step.heads), size(step.heads * step.head_dim));
    let qkv_width = query_width + 2 * size(step.kv_heads * step.head_dim);
    let parts = heads * size(step.splits_max) * (size(step.head_dim) + 2);
    Step {
        tokens: to_i32(rows.len()),
        token_ids: after(step.token_ids, 4),
        positions: after(step.positions, 4),
        sequences: after(step.sequences, 4),
        qkv: after(step.qkv, qkv_width * 4),
        attention: after(step.attention, query_width * 4),
        partial: after(step.partial, parts * 4),
        arrived: after(step.arrived, heads * 4),
        // In whole blocks.
        quantized: step.quantized + (rows.start.next_multiple_of(LINEAR_ROWS) * widest) as u64,
        quantized_scale: after(step.quantized_scale, 4),
        quantized_sum: after(step.quantized_sum, 4),
        queries: after(step.queries, query_width * 2),
        query_factors: after(step.query_factors, heads * 4),
        ..*step
    }
}

/// Pairs of a row and a query head in one tile of a prompt.
pub(super) fn prompt_pairs(sm_90: bool) -> usize {
    if sm_90 { 64 } else { PROMPT_PAIRS_LEAST }
}

/// Tiles of prompts.
fn attend_prompt(launch: Launch, limits: Limits) -> Launch {
    let (pairs, dim) = (prompt_pairs(limits.cluster_max > 1), size(launch.step.head_dim));
    let (kernel, shared_bytes) = if launch.phase.plain == 1 {
        (c"attend_byte_prompt", pairs * ((SPLIT + 4 + 6) * 4 + dim.div_ceil(32) * 64) + SPLIT * 4 + 16)
    } else {
        (c"attend_prompt", (pairs * (SPLIT + 8 + dim) + 8 * 256 + 8) * 4)
    };
    let phase = Phase { items: to_i32(limits.multiprocessors), ..launch.phase };
    Launch { kernel, threads: PROMPT_THREADS, shared_bytes, phase, ..launch }
}

/// Tiles for tensor cores, which come after `before` others.
fn attend_tensor(launch: Launch, before: usize) -> Launch {
    let dim = size(launch.step.head_dim);
    let kernel = if dim == HEAD_DIM_MAX { c"attend_tensor_128" } else { c"attend_tensor" };
    // Of a position.
    let (key_bytes, value_bytes) = (dim.next_multiple_of(16) * 2, if dim <= 64 { 128 } else { 256 });
    let shared_bytes = 128 * (key_bytes + value_bytes) + (2 * TENSOR_PAIRS + 4) * 4;
    let prompt_tiles = launch.step.prompt_tiles + (before * TILE_WORDS * 4) as u64;
    Launch { kernel, threads: 2 * TENSOR_PAIRS, shared_bytes, step: Step { prompt_tiles, ..launch.step }, ..launch }
}

/// A block for each row, which keeps it in registers where there is room.
fn norm(launch: Launch) -> Launch {
    let cols = size(launch.phase.cols);
    if cols <= KEPT_COLUMNS_MAX {
        let shared_bytes = REDUCED_BYTES + cols * 4;
        let kernel = if cols <= SHORT_COLUMNS_MAX { c"norm_short" } else { c"norm_kept" };
        return Launch { kernel, threads: KEPT_THREADS, shared_bytes, ..launch };
    }
    Launch { kernel: c"norm_rows", shared_bytes: REDUCED_BYTES + cols * 8, ..launch }
}

/// Single rows: a block for each split of a row and KV head. Where blocks are few, each has room for all keys and values of a split
/// at once, or for those of three quarters of one.
fn attend(launch: Launch, rows: Rows, limits: Limits) -> Launch {
    let step = Step { tokens: to_i32(rows.decodes), unit_heads: launch.step.group, ..launch.step };
    let launch = Launch { phase: Phase { wide: i32::from(rows.stored), ..launch.phase }, ..launch };
    let (dim, group) = (size(step.head_dim), size(step.group));
    let grid = rows.decodes * size(step.kv_heads) * size(step.splits_max);
    if launch.phase.plain == 1 {
        let of_fours = group.div_ceil(4) * (dim.div_ceil(32) * 256 + 16);
        let shared_bytes = SPLIT / BLOCK * (head_block_bytes(dim) + 256) + SPLIT * 16 + 288 + of_fours;
        return Launch { kernel: c"attend_byte_rows", grid, threads: SPLIT, shared_bytes, step, ..launch };
    }
    let whole = SPLIT / BLOCK;
    let room = match grid.div_ceil(limits.multiprocessors) {
        0..=1 if limits.cluster_max > 1 => 2 * whole,
        2 if limits.cluster_max > 1 => whole * 3 / 2,
        _ => whole,
    };
    let kernel = if room > whole { c"attend_few" } else { c"attend_rows" };
    let shared_bytes = room * BLOCK * dim * 2 + SPLIT * 16 + group * dim * 4 + 160 + dim * 4;
    let phase = Phase { items: to_i32(room), ..launch.phase };
    Launch { kernel, grid, threads: SPLIT, shared_bytes, phase, step, ..launch }
}

/// Columns are split over as many blocks of a cluster as the device has room for, two blocks a multiprocessor, while each
/// has some to do. Up to 32 rows a block holds all its loads at once, and there are no clusters where most multiprocessors have a block
/// anyway; of up to 8 rows other blocks have a single row tile. Up to 64 rows they do so where a cluster has room for all columns, and up
/// to 128 blocks for half of the rows do where they have.
/// Warpgroups want a multiprocessor for themselves, unless columns are many.
fn linear(launch: Launch, tokens: usize, limits: Limits) -> Launch {
    let (tile, kernel, stages) = match tokens {
        0..=8 => (8, c"linear_8", 0),
        9..=16 => (16, c"linear_16", 0),
        17..=32 => (32, c"linear_32", 0),
        33..=64 => (64, c"linear_64", 6),
        _ => (128, c"linear_128", 4),
    };
    let blocks = size(launch.phase.tiles).div_ceil(8) * tokens.div_ceil(tile);
    let (items, items_least) = (size(launch.phase.cols).div_ceil(128), if tile <= 32 { 10 } else { 4 });
    let groups = tile >= 64 && limits.cluster_max > 1;
    let wide = size(launch.phase.tiles).div_ceil(16) * tokens.div_ceil(128);
    if groups && tile == 128 && launch.phase.epilogue != EPILOGUE_ADD && 5 * wide >= 3 * limits.multiprocessors {
        // Blocks that stay, of 256 rows, where most multiprocessors get one.
        let shared_bytes = 8 * (8192 + 16384) + 9 * 16 + 8192;
        let grid = wide.min(limits.multiprocessors);
        return Launch { kernel: c"linear_wide", grid, cluster: 1, threads: WIDE_THREADS, shared_bytes, ..launch };
    }
    let most = tile <= 32 && limits.cluster_max > 1 && 5 * blocks >= 3 * limits.multiprocessors;
    let few_item_bytes = if limits.cluster_max > 1 { FEW_ITEM_BYTES } else { FEW_ITEM_BYTES_OLDER };
    if tile == 8 && limits.cluster_max > 1 && !most {
        let item_bytes = 512 + 1024;
        let shared_bytes = 4096 + 384 + items.min(few_item_bytes / item_bytes) * item_bytes;
        return Launch {
            kernel: c"linear_narrow",
            grid: size(launch.phase.tiles),
            threads: LINEAR_THREADS,
            shared_bytes,
            ..launch
        };
    }
    if groups && tokens <= 128 {
        // Four row tiles and half of the rows a block, with all columns at once, where most multiprocessors get one.
        let rows = tile / 2;
        let grid = size(launch.phase.tiles).div_ceil(4) * tokens.div_ceil(rows);
        let (all, sums, facts) = (items * (2048 + rows * 128), rows * 512, if rows == 32 { 1024 } else { 2048 });
        if grid <= limits.multiprocessors && 2 * grid >= limits.multiprocessors && all <= PAIRED_ITEM_BYTES {
            let kernel = if rows == 32 { c"linear_pair_32" } else { c"linear_pair_64" };
            let shared_bytes = facts + all.max(sums);
            return Launch { kernel, grid, threads: LINEAR_THREADS, shared_bytes, ..launch };
        }
    }
    let mut cluster = 1;
    while !most
        && cluster * 2 <= limits.cluster_max
        && items >= cluster * items_least
        && blocks * cluster * 2 <= if groups && items < 27 * cluster { 1 } else { 2 } * limits.multiprocessors
    {
        cluster *= 2;
    }
    let share = items.div_ceil(cluster);
    let has_room = if cluster > 1 {
        share <= HELD_ITEMS_MAX
    } else {
        items <= ALONE_ITEMS_MAX && blocks <= limits.multiprocessors
    };
    if groups && tile == 64 && has_room {
        // All columns at once, a block alone on its multiprocessor; weights of 16 items, those of the last in registers.
        let sums = if cluster > 1 { 32768 } else { 0 };
        let shared_bytes = (sums + 2048 + share * 8192 + share.min(16) * 4096).max(ALONE_BYTES);
        return Launch {
            kernel: c"linear_held",
            grid: blocks * cluster,
            cluster,
            threads: LINEAR_THREADS,
            shared_bytes,
            ..launch
        };
    }
    let item_bytes = 4096 + tile * 128;
    let held = if tile <= 32 { items.div_ceil(cluster).min(few_item_bytes / item_bytes) } else { stages };
    let sums = if tile <= 32 { tile * 512 } else { 0 };
    let facts = match tile {
        32 => 1024,
        0..32 => 256 + tile * 16,
        _ if groups => tile * 16,
        _ => 128 + tile * 8,
    };
    // Blocks that have a multiprocessor each shall not share one, when they begin beside those of a norm.
    let alone = groups && blocks * cluster <= limits.multiprocessors;
    let shared_bytes = if alone { ALONE_BYTES } else { sums + held * item_bytes + facts };
    Launch { kernel, grid: blocks * cluster, cluster, threads: LINEAR_THREADS, shared_bytes, ..launch }
}

fn size(value: i32) -> usize {
    usize::try_from(value).expect("sizes are not negative")
}

/// Rows that a block of a linear kernel takes at most.
const LINEAR_ROWS: usize = 128;
const LINEAR_THREADS: usize = 256;
const WIDE_THREADS: usize = 384;
const KEPT_THREADS: usize = 256;
const KEPT_COLUMNS_MAX: usize = 8192;
const SHORT_COLUMNS_MAX: usize = 3072;
const PROMPT_THREADS: usize = 256;
/// Shared memory for the weights and activations that a block of few rows holds at a time, from 9.0 on and below.
const FEW_ITEM_BYTES: usize = 160 << 10;
const FEW_ITEM_BYTES_OLDER: usize = 80 << 10;
/// Weights and activations of 128 columns each, of 64 rows, that a block holds.
const HELD_ITEMS_MAX: usize = 14;
/// The same without sums of a cluster.
const ALONE_ITEMS_MAX: usize = 20;
/// Those of a block for half of the rows.
const PAIRED_ITEM_BYTES: usize = 216 << 10;
/// More than half of the shared memory of a multiprocessor from 9.0 on.
const ALONE_BYTES: usize = 116 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_beside_others_have_places_of_their_own_and_no_more_blocks_than_all() {
        let limits = Limits { multiprocessors: 132, cluster_max: 8 };
        let step = Step { heads: 4, kv_heads: 2, head_dim: 16, splits_max: 3, ..Step::default() };
        let linear = Phase { kind: PHASE_LINEAR, stride: 100, ..Phase::default() };
        for decodes in 129..=600 {
            let rows = Rows { decodes, ..Rows::default() };
            let beside = rows_beside(rows, limits);
            let first = decodes - beside;
            assert!(beside > 0 && first > 0, "{decodes}");
            let blocks = |rows: usize| rows.div_ceil(LINEAR_ROWS);
            assert_eq!(blocks(first) + blocks(beside), blocks(decodes), "{decodes}");
            let second = step_of(&step, first..decodes, 640);
            assert_eq!(second.quantized as usize, blocks(first) * LINEAR_ROWS * 640);
            let places = [(second.positions, 4), (second.qkv, 128 * 4), (second.attention, 64 * 4)];
            let further = [(second.partial, 4 * 3 * 18 * 4), (second.queries, 64 * 2), (second.arrived, 4 * 4)];
            for (at, row_bytes) in places.into_iter().chain(further) {
                assert_eq!(at, first as u64 * row_bytes);
            }
            assert_eq!((size(second.tokens), phase_from(&linear, first).output), (beside, first as u64 * 400));
            for of_one_part in [Rows { stored: true, ..rows }, Rows { prompts: 1, ..rows }] {
                assert_eq!(rows_beside(of_one_part, limits), 0);
            }
            assert_eq!(rows_beside(rows, Limits { cluster_max: 1, ..limits }), 0);
        }
        assert_eq!(rows_beside(Rows { decodes: 128, ..Rows::default() }, limits), 0);
    }
}
