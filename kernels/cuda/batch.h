// Host side of the batch kernels: which launches make a step, with which grids and shared memory. The feeder mirrors this.
//
// Launches go to one stream in this order, each after the one before; on devices that know it, with programmatic stream
// serialization, so that a launch loads its weights while the one before ends. The arguments are a Phase and a Step.
#pragma once

#include "plan.h"

// Shared memory of a step kernel for `count` phases; `widest` is the widest row. Its launch is cooperative, a block of
// THREADS threads for each multiprocessor; token_tiles is 0 for step_1, else rows / 8 of the kernel.
inline int step_shared_bytes(const Step& s, int count, int widest, int token_tiles) {
    const auto greater = [](int a, int b) { return a > b ? a : b; };
    int columns = (widest + 127) / 128 * 128, work;
    int attention = SPLIT * s.head_dim * 2 + (3 * SPLIT + s.head_dim + 16) * UNIT_HEADS_MAX * 4 + s.head_dim * 4 + 64;
    if (s.head_dim > HEAD_DIM_MAX) attention = 0; // by batch kernels only
    if (token_tiles == 0) {
        int linear = 2 * TILES_MAX * 64 + GROUPS_MAX * (WARPS * 128 + THREADS * 16);
        work = greater(linear, (s.hidden + 127) / 128 * 128 * 6);
    } else {
        int head = ((s.head_tokens == 1 ? 1 : HEAD_TOKENS_MAX) + 2) * s.hidden * 4;
        work = greater(TILES_MAX * token_tiles * 512 + columns * 8, head);
    }
    return RING_DEPTH * THREADS * 16 + count * 32 + REDUCED_BYTES + FIRST_UNIT_BYTES +
           (token_tiles == 0 ? SUPPLY_BYTES : 0) + greater(work, attention);
}

struct Launch {
    const char* kernel;
    int grid, cluster, threads, shared_bytes;
    Phase phase;
    Step step;
};

// Where the rows of a step go: decode rows first, then those of prompts in tiles, each for one split; tiles for tensor cores come after
// the others. `stored`: all rows are single ones, as decode rows are, but some are successive ones of a prompt.
struct BatchRows {
    int decodes, prompts, prompt_tiles, tensor_tiles;
    bool stored;
};

struct BatchLimits {
    int multiprocessors;
    int cluster_max; // 8, or 1 where devices know no clusters (below 9.0)
};

namespace batch {

inline int divided(int a, int b) { return (a + b - 1) / b; }

// Of an int8 cache.
inline int head_block_bytes(int head_dim) { return divided(head_dim, 32) * 1024 + divided(head_dim, 16) * 512 + 4 * KV_BLOCK; }

inline Launch embed(const Step& s, const Phase& p) {
    return {"embed_rows", divided(s.tokens * (s.hidden / 8), THREADS), 1, THREADS, 0, p, s};
}

inline Launch norm(const Step& s, const Phase& p) {
    if (p.cols <= 8192) return {p.cols <= 3072 ? "norm_short" : "norm_kept", s.tokens, 1, 256, REDUCED_BYTES + p.cols * 4, p, s};
    return {"norm_rows", s.tokens, 1, THREADS, REDUCED_BYTES + p.cols * 8, p, s};
}

// Tokens of one block of a linear kernel.
inline int token_tile(int tokens) {
    for (int tile : {8, 16, 32, 64}) {
        if (tokens <= tile) return tile;
    }
    return 128;
}

// Columns are split over as many blocks of a cluster as the device has room for, two blocks a multiprocessor, while each
// has some to do. Up to 32 rows a block holds all its loads at once, and there are no clusters where most multiprocessors have a block
// anyway; of up to 8 rows other blocks have a single row tile. Up to 64 rows they do so where a cluster has room for all columns, and up to
// 128 blocks for half of the rows do where they have.
// Warpgroups want a multiprocessor for themselves, unless columns are many.
inline Launch linear(const Step& s, const Phase& p, const BatchLimits& limits) {
    const int tile = token_tile(s.tokens), blocks = divided(p.tiles, 8) * divided(s.tokens, tile), items = divided(p.cols, 128);
    const bool most = tile <= 32 && limits.cluster_max > 1 && 5 * blocks >= 3 * limits.multiprocessors;
    const int few_bytes = limits.cluster_max > 1 ? 160 << 10 : 80 << 10; // FEW_ITEM_BYTES
    if (tile == 8 && limits.cluster_max > 1 && !most) {
        const int item = 512 + 1024, held = items < few_bytes / item ? items : few_bytes / item;
        return {"linear_narrow", p.tiles, 1, 256, 4096 + 384 + held * item, p, s};
    }
    const bool groups = tile >= 64 && limits.cluster_max > 1;
    // Blocks that stay, of 256 rows, where most multiprocessors get one.
    const int wide = divided(p.tiles, 16) * divided(s.tokens, 128);
    if (groups && tile == 128 && p.epilogue != EPILOGUE_ADD && 5 * wide >= 3 * limits.multiprocessors) {
        const int grid = wide < limits.multiprocessors ? wide : limits.multiprocessors;
        return {"linear_wide", grid, 1, 384, 8 * (8192 + 16384) + 9 * 16 + 8192, p, s};
    }
    if (groups && s.tokens <= 128) {
        // Four row tiles and half of the rows a block, with all columns at once, where most multiprocessors get one.
        const int rows = tile / 2, pairs = divided(p.tiles, 4) * divided(s.tokens, rows), all = items * (2048 + rows * 128), sums = rows * 512;
        if (pairs <= limits.multiprocessors && 2 * pairs >= limits.multiprocessors && all <= 216 << 10) {
            return {rows == 32 ? "linear_pair_32" : "linear_pair_64", pairs, 1, 256, (rows == 32 ? 1024 : 2048) + (all > sums ? all : sums), p, s};
        }
    }
    int cluster = 1;
    while (!most && cluster * 2 <= limits.cluster_max && items >= cluster * (tile <= 32 ? 10 : 4) &&
           blocks * cluster * 2 <= (groups && items < 27 * cluster ? 1 : 2) * limits.multiprocessors) {
        cluster *= 2;
    }
    if (groups && tile == 64 && (cluster > 1 ? divided(items, cluster) <= 14 : items <= 20 && blocks <= limits.multiprocessors)) {
        // All columns at once, a block alone on its multiprocessor; weights of 16 items, those of the last in registers.
        const int share = divided(items, cluster), least = 116 << 10;
        const int held = (cluster > 1 ? 32768 : 0) + 2048 + share * 8192 + (share < 16 ? share : 16) * 4096;
        return {"linear_held", blocks * cluster, cluster, 256, held > least ? held : least, p, s};
    }
    const char* kernel = tile == 8    ? "linear_8"
                         : tile == 16 ? "linear_16"
                         : tile == 32 ? "linear_32"
                         : tile == 64 ? "linear_64"
                                      : "linear_128";
    const int item = 4096 + tile * 128, held = divided(items, cluster) < few_bytes / item ? divided(items, cluster) : few_bytes / item;
    // The stages, then what finishing needs; the sums of 128 rows that take the stages' place are less.
    const int stages = tile == 64 ? 6 : 4;
    const int shared = tile <= 32 ? tile * 512 + held * item : stages * item;
    const int facts = tile == 32 ? 1024 : tile < 32 ? 256 + tile * 16 : groups ? tile * 16 : 128 + tile * 8;
    // Blocks that have a multiprocessor each shall not share one, when they begin beside those of a norm.
    const bool alone = groups && blocks * cluster <= limits.multiprocessors;
    return {kernel, blocks * cluster, cluster, 256, alone ? 116 << 10 : shared + facts, p, s};
}

// Decode rows, the first of the batch: a block for each split of a row and kv head. Where blocks are few, each has room for all keys
// and values of a split at once, or for those of three quarters of one.
inline Launch attend(Step s, const BatchRows& rows, Phase p, const BatchLimits& limits) {
    s.tokens = rows.decodes;
    p.wide = rows.stored;
    s.unit_heads = s.group;
    if (p.plain) {
        // ByteArea.
        const int fours = divided(s.group, 4), shared = SPLIT / KV_BLOCK * (head_block_bytes(s.head_dim) + 256) + SPLIT * 16 + 288;
        return {"attend_byte_rows", rows.decodes * s.kv_heads * s.splits_max, 1, SPLIT, shared + fours * (divided(s.head_dim, 32) * 256 + 16), p, s};
    }
    const int blocks = rows.decodes * s.kv_heads * s.splits_max, rest = SPLIT * 16 + s.group * s.head_dim * 4 + 160 + s.head_dim * 4;
    const int each = divided(blocks, limits.multiprocessors), whole = SPLIT / KV_BLOCK;
    p.items = limits.cluster_max == 1 || each > 2 ? whole : each == 2 ? whole * 3 / 2 : whole * 2;
    return {p.items > whole ? "attend_few" : "attend_rows", blocks, 1, SPLIT, p.items * KV_BLOCK * s.head_dim * 2 + rest, p, s};
}

// How many of the rows, the last ones, launches of their own compute beside those of the others: the attention of one part takes what the
// linears of the other leave. Halves where linears take them best, up to 128 rows at a time; none where one part is as soon.
inline int rows_beside(const BatchRows& rows, const BatchLimits& limits) {
    if (rows.decodes <= 128 || rows.prompts || rows.stored || limits.cluster_max == 1) return 0;
    return rows.decodes <= 256 ? rows.decodes / 2 : (rows.decodes / 2 + 63) / 128 * 128;
}
// The same phase for the rows from `first` on.
inline Phase phase_from(Phase p, int first) {
    if (p.kind == PHASE_EMBED) p.output += (long long)first * p.cols;
    if (p.kind == PHASE_QUANTIZE) p.input += (long long)first * p.cols;
    if (p.kind == PHASE_LINEAR) p.output += (long long)first * p.stride;
    return p;
}
// The same step with `count` rows from `first` on; the widest of them has so many columns, padded.
inline Step step_of(Step s, int first, int count, int widest) {
    const long long from = first, query_width = s.heads * s.head_dim;
    s.tokens = count;
    s.token_ids += from;
    s.positions += from;
    s.sequences += from;
    s.qkv += from * (query_width + 2 * s.kv_heads * s.head_dim);
    s.attention += from * query_width;
    s.partial += from * s.heads * s.splits_max * (s.head_dim + 2);
    s.arrived += from * s.heads;
    s.quantized += (from + 127) / 128 * 128 * widest; // in whole blocks
    s.quantized_scale += from;
    s.quantized_sum += from;
    s.queries += from * query_width;
    s.query_factors += from * s.heads;
    return s;
}

// Prompt rows follow the decode rows: RoPE and cache write of all, then attention tile by tile.
inline Launch store(const Step& s, const BatchRows& rows, Phase p) {
    p.first_block = rows.stored ? 0 : rows.decodes;
    return {p.plain ? "store_byte_rows" : "store_rows", rows.stored ? rows.decodes : rows.prompts, 1, THREADS, 0, p, s};
}
// Pairs of a row and a query head in a tile of a prompt, whose rows are that by `group`.
inline int prompt_pairs(const BatchLimits& limits) { return limits.cluster_max > 1 ? 64 : 32; }
inline Launch attend_prompt(const Step& s, const BatchRows& rows, Phase p, const BatchLimits& limits) {
    p.items = limits.multiprocessors;
    const int pairs = prompt_pairs(limits);
    if (p.plain) {
        // ByteTileArea.
        const int shared = pairs * ((SPLIT + 4 + 6) * 4 + divided(s.head_dim, 32) * 64) + SPLIT * 4 + 16;
        return {"attend_byte_prompt", rows.prompt_tiles * s.kv_heads, 1, 256, shared, p, s};
    }
    const int shared = (pairs * (SPLIT + 8 + s.head_dim) + 8 * 256 + 8) * 4; // TileArea
    return {"attend_prompt", rows.prompt_tiles * s.kv_heads, 1, 256, shared, p, s};
}
inline Launch attend_tensor(Step s, const BatchRows& rows, const Phase& p) {
    s.prompt_tiles += 4 * rows.prompt_tiles;
    const int keys = divided(s.head_dim, 16) * 32, values = s.head_dim <= 64 ? 128 : 256; // bytes of a position, see TensorArea
    return {s.head_dim == HEAD_DIM_MAX ? "attend_tensor_128" : "attend_tensor", rows.tensor_tiles * s.kv_heads, 1, 2 * TENSOR_PAIRS, 128 * (keys + values) + (2 * TENSOR_PAIRS + 4) * 4,
            p, s};
}

// The head of `s.tokens` rows by its screen: phases SCREEN, CHOOSE (input: the screen's output); `draw` only
// where some rows are drawn among all, `rank` and `pick` where some are among their best.
inline Launch norm_screen(const Step& s, const Phase& p) {
    return {"norm_screen", s.tokens, 1, THREADS, REDUCED_BYTES + divided(p.cols, 128) * 512, p, s};
}
inline Launch screen(const Step& s, const Phase& p, const BatchLimits& limits) {
    const int slots = 2 * s.tokens;
    if (s.tokens > 8 && limits.cluster_max > 1) {
        // Two blocks with the same slots, which stay.
        const int block = slots <= 64 ? 64 : slots <= 128 ? 128 : 256, depth = block == 64 ? 8 : block == 128 ? 6 : 4, pairs = divided(p.tiles, 16) * divided(slots, block);
        const int grid = 2 * (pairs < limits.multiprocessors / 2 ? pairs : limits.multiprocessors / 2);
        return {block == 64 ? "screen_64" : block == 128 ? "screen_128" : "screen_256", grid, 2, 384, depth * (16384 + block * 128 + 16) + 16 + block * 20, p, s};
    }
    const int tile = slots <= 16 ? 16 : slots <= 64 ? 64 : 128, stages = tile == 16 ? 5 : tile == 64 ? 4 : 3;
    return {tile == 16 ? "screen_16" : tile == 64 ? "screen_64" : "screen_128", divided(p.tiles, 8) * divided(slots, tile), 1, 256,
            stages * (16384 + tile * 128) + 2048 + tile * 8, p, s};
}
inline Launch draw(const Step& s, const Phase& screen) {
    return {"draw_rows", s.tokens * divided(screen.rows, 2048), 1, THREADS, 0, screen, s};
}
inline Launch rank(const Step& s, const Phase& choose) {
    // RankArea: weights of a row for each warp, counts, groups, the row.
    return {"rank_rows", s.tokens, 1, THREADS, WARPS * 10 * 512 + (2 * WARPS + RANKED_MAX + 4 + choose.cols) * 4, choose, s};
}
inline Launch choose(const Step& s, const Phase& p) {
    return {"choose_rows", s.tokens * divided(p.rows, 2048), 1, 128, p.cols * 4 + 16 + 4 * 10 * 512, p, s};
}
inline Launch take(const Step& s) { return {"take_rows", divided(s.tokens, WARPS), 1, THREADS, 0, Phase(), s}; }

inline Launch pick(const Step& s, const Phase& choose) {
    // PickArea: keys, the best of them and their weights, a count.
    return {"pick_rows", s.tokens, 1, THREADS, 4096 * 8 + RANKED_MAX * 12 + 8, choose, s};
}

// The end of every step: tokens and number for the host, in memory of its own.
inline Launch tell(const Step& s) { return {"tell_rows", 1, 1, THREADS, 0, Phase(), s}; }

// Once for a model: the screen of its head, for the phase SCREEN `p`.
inline Launch pack_screen(Phase p, const void* pieces) {
    p.output = (float*)p.weights;
    p.weights = pieces;
    return {"pack_screen", p.tiles, 1, THREADS, 0, p, Step()};
}

} // namespace batch
