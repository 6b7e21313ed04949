//! What the kernels are handed: the mirror of `kernels/cuda/plan.h`, and the shared memory of the step kernels.

use kernels::attention::BLOCK;

use super::shape::Shape;

/// One phase of a step, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Phase {
    pub(super) weights: u64,
    pub(super) scales: u64,
    pub(super) gamma: u64,
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) kind: i32,
    pub(super) epilogue: i32,
    pub(super) rows: i32,
    pub(super) cols: i32,
    pub(super) tiles: i32,
    pub(super) items: i32,
    pub(super) stride: i32,
    pub(super) first_block: i32,
    pub(super) eps: f32,
    pub(super) order: i32,
    pub(super) residual: i32,
    pub(super) plain: i32,
    pub(super) wide: i32,
}

/// Buffers and shape of one launch, as the kernel reads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    pub(super) tokens: i32,
    pub(super) hidden: i32,
    pub(super) vocab: i32,
    pub(super) layers: i32,
    pub(super) heads: i32,
    pub(super) kv_heads: i32,
    pub(super) head_dim: i32,
    pub(super) rope_half: i32,
    pub(super) rope_pairs: i32,
    pub(super) unit_heads: i32,
    pub(super) group: i32,
    pub(super) splits_max: i32,
    pub(super) table_stride: i32,
    pub(super) head_tokens: i32,
    pub(super) score_scale: f32,
    pub(super) padding: i32,
    pub(super) token_ids: u64,
    pub(super) positions: u64,
    pub(super) block_table: u64,
    pub(super) kv_pool: u64,
    pub(super) rope: u64,
    pub(super) qkv: u64,
    pub(super) attention: u64,
    pub(super) partial: u64,
    pub(super) arrived: u64,
    pub(super) quantized: u64,
    pub(super) quantized_scale: u64,
    pub(super) quantized_sum: u64,
    pub(super) logits: u64,
    pub(super) best: u64,
    pub(super) barrier: u64,
    pub(super) trace: u64,
    pub(super) sequences: u64,
    pub(super) queries: u64,
    pub(super) picked: u64,
    pub(super) lower: u64,
    pub(super) screened: u64,
    pub(super) screen_rows: u64,
    pub(super) normed: u64,
    pub(super) prompt_tiles: u64,
    pub(super) earlier: u64,
    pub(super) draws: u64,
    pub(super) chosen: u64,
    pub(super) query_factors: u64,
    pub(super) told: u64,
    pub(super) done: u64,
    pub(super) number: u64,
}

const _: () = assert!(size_of::<Phase>() == 96 && size_of::<Step>() == 312);

pub(super) const PHASE_EMBED: i32 = 0;
pub(super) const PHASE_QUANTIZE: i32 = 1;
pub(super) const PHASE_LINEAR: i32 = 2;
pub(super) const PHASE_ATTEND: i32 = 3;
pub(super) const PHASE_HEAD: i32 = 4;
pub(super) const PHASE_GREEDY: i32 = 5;
pub(super) const PHASE_SCREEN: i32 = 6;
pub(super) const PHASE_CHOOSE: i32 = 7;
pub(super) const PHASE_COPY: i32 = 8;

pub(super) const EPILOGUE_STORE: i32 = 0;
pub(super) const EPILOGUE_ADD: i32 = 1;
pub(super) const EPILOGUE_RELU2: i32 = 2;
pub(super) const EPILOGUE_SILU: i32 = 3;

pub(super) const THREADS: usize = 512;
/// Row tiles of one block in one LINEAR phase.
pub(super) const TILES_MAX: usize = 8;
pub(super) const SPLIT: usize = 256;
/// On tensor cores: pairs of a row and a query head in a tile of a prompt, and positions of its splits.
pub(super) const TENSOR_PAIRS: usize = 64;
pub(super) const TENSOR_SPLIT: usize = 1024;
/// What the device is told of a tile of a prompt.
pub(super) const TILE_WORDS: usize = 4;
/// Pairs of a row and a query head in a tile of a prompt, on the devices where they are fewest.
pub(super) const PROMPT_PAIRS_LEAST: usize = 32;
pub(super) const HEAD_DIM_MAX: usize = 128;
pub(super) const UNIT_HEADS_MAX: usize = 4;
pub(super) const HEAD_TOKENS_MAX: usize = 2;

/// The widest row that `step_1` takes.
pub(super) const TOKEN_COLS_MAX: usize = 8192;

/// What a row that has no logit above minus infinity gives instead of a token.
pub(super) const NO_TOKEN: u32 = 0x7fff_ffff;

/// Rows whose head is screened by one set of launches.
pub(super) const SCREEN_ROWS: usize = 256;

/// Words of what a row's draw depends on: seed, position, one over the temperature; among how many best, if not all, and with
/// which shares of these.
pub(super) const DRAW_WORDS: usize = 8;

/// A draw is among so many best at most, or among all.
pub(super) const RANKED_MAX: usize = 256;

/// Among how many best of `vocab` tokens draws are made on the device: what these reach is found by groups of tokens, which have
/// to be more.
pub(super) fn ranked_max(vocab: usize) -> usize {
    RANKED_MAX.min(vocab / RANK_GROUP / 2)
}
const RANK_GROUP: usize = 16;

/// Shared memory of `rank_rows`, beside the row's floats, and of `pick_rows`.
pub(super) const RANK_BYTES: usize = THREADS / 32 * 10 * 512 + (2 * THREADS / 32 + RANKED_MAX + 4) * 4;
pub(super) const PICK_BYTES: usize = 4096 * 8 + RANKED_MAX * 12 + 8;

/// Logits that one block of `draw_rows` and of `choose_rows` looks at, and the latter's threads and shared
/// memory, beside the row's floats.
pub(super) const CHOOSE_ROWS: usize = 2048;
pub(super) const CHOOSE_THREADS: usize = 128;
pub(super) const CHOOSE_BYTES: usize = 16 + CHOOSE_THREADS / 32 * 10 * 512;

/// Rows of one launch of a step kernel, each of another sequence.
pub(super) const LAUNCH_ROWS: usize = 32;

/// What takes a single row, by the bytes that its cache holds or by F16.
pub(super) fn token_kernel(shape: &Shape) -> &'static std::ffi::CStr {
    if shape.kv_bytes == 1 { c"step_1_bytes" } else { c"step_1" }
}

/// Bytes of a head block of an int8 cache: tiles of 512 bytes of 16 keys by 32 dimensions, and of 16 dimensions of all
/// values, then scales.
pub(super) fn head_block_bytes(head_dim: usize) -> usize {
    head_dim.div_ceil(32) * 1024 + head_dim.div_ceil(16) * 512 + 4 * BLOCK
}

/// The kernel for a launch of so many rows, and its rows in steps of 8.
pub(super) fn kernel_for(rows: usize) -> (usize, &'static std::ffi::CStr) {
    match rows {
        0..=8 => (1, c"step_8"),
        9..=16 => (2, c"step_16"),
        _ => (4, c"step_32"),
    }
}

/// Loads that each thread keeps in flight, by compute capability of the image.
pub(super) fn ring_depth(sm_90: bool) -> usize {
    if sm_90 { 16 } else { 4 }
}

/// Rows of one pass of the head.
pub(super) fn head_tokens(rows: usize, blocks: usize) -> usize {
    let groups = rows.div_ceil(HEAD_TOKENS_MAX);
    rows.div_ceil(groups).max(rows.div_ceil(blocks))
}

/// Query heads of one attention unit: fewer rounds of units against more heads in each; a unit costs about as much as
/// three heads besides.
pub(super) fn unit_heads(shape: &Shape, rows: usize, splits: usize, blocks: usize) -> usize {
    let (heads, group) = (shape.heads as usize, shape.group());
    let fitting = (1..=UNIT_HEADS_MAX).filter(|n| group.is_multiple_of(*n));
    let cost = |n: &usize| (rows * heads / n * splits).div_ceil(blocks) * (3 + n);
    fitting.min_by_key(cost).unwrap_or(1)
}

/// Shared memory that the attention of a unit takes.
pub(super) fn attention_bytes(head_dim: usize) -> usize {
    SPLIT * head_dim * 2 + (3 * SPLIT + head_dim + 16) * UNIT_HEADS_MAX * 4 + head_dim * 4 + 64
}

/// Shared memory of a step kernel for `phases` phases of `rows` rows: `step_shared_bytes` of `kernels/cuda/batch.h`.
pub(super) fn shared_bytes(shape: &Shape, sm_90: bool, rows: usize, head_tokens: usize, phases: usize) -> usize {
    let (tiles, _) = kernel_for(rows);
    let head = (if head_tokens == 1 { 1 } else { HEAD_TOKENS_MAX } + 2) * shape.hidden as usize * 4;
    let linear = TILES_MAX * tiles * 512 + shape.widest_padded() * 8;
    let work = linear.max(head).max(attention_bytes(shape.head_dim as usize));
    let ring = ring_depth(sm_90) * THREADS * 16;
    ring + phases * STREAM_BYTES + REDUCED_BYTES + FIRST_UNIT_BYTES + work
}

/// Shared memory of `step_1` for `phases` phases, likewise.
pub(super) fn token_shared_bytes(shape: &Shape, phases: usize) -> usize {
    const GROUPS_MAX: usize = TOKEN_COLS_MAX / 2048;
    let linear = 2 * TILES_MAX * 64 + GROUPS_MAX * (THREADS / 32 * 128 + THREADS * 16);
    let screen = (shape.hidden as usize).next_multiple_of(128) * 6;
    let work = linear.max(screen).max(attention_bytes(shape.head_dim as usize));
    ring_depth(true) * THREADS * 16 + phases * STREAM_BYTES + REDUCED_BYTES + FIRST_UNIT_BYTES + SUPPLY_BYTES + work
}

pub(super) fn to_i32(value: usize) -> i32 {
    i32::try_from(value).expect("model sizes fit 32 bits")
}

/// What a block's loader keeps of each phase.
const STREAM_BYTES: usize = 32;
/// Shared memory of a block's reductions.
pub(super) const REDUCED_BYTES: usize = 1152;
pub(super) const FIRST_UNIT_BYTES: usize = 128;
/// What `step_1` knows of its ring.
const SUPPLY_BYTES: usize = 96;
