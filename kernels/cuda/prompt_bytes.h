// Attention of prompts over an int8 cache: tiles, splits and merges as in prompt.h, products of whole numbers on tensor cores, as in bytes.h. A
// warp has 32 pairs and a cache block's keys, or 32 dimensions of the values.
#pragma once

#include "bytes.h"
#include "prompt.h"

enum { HALF_PAIRS = 32, HALF_COLUMNS = HALF_PAIRS / 8 };

// Shared memory of a block.
struct ByteTileArea {
    enum { WARPS = PROMPT_WARPS, PAIRS = PROMPT_PAIRS, LENGTH = SPLIT };
    int key_tiles;
    float* weights; // [pair][WEIGHT_STRIDE]: scores of a split; then columns' bytes of the weights
    uint4* queries; // [pair / 8][key_tiles][pair % 8][4]: columns' bytes
    float* scales;  // [SPLIT]: of the values
    float* factors; // [pair]: of the scores
    float* steps;   // [pair]: of the weighted values
    float* states;  // [pair][2]: greatest score, sum of weights
    int* ends;      // [pair]: positions that it sees
    int* places;    // [pair]: row * heads + head
    int* notes;     // whether the block merges, the tile's pairs and splits

    DEVICE void place(unsigned char* arena, int tiles) {
        key_tiles = tiles;
        weights = (float*)arena;
        scales = weights + PROMPT_PAIRS * WEIGHT_STRIDE;
        factors = scales + SPLIT;
        steps = factors + PROMPT_PAIRS;
        states = steps + PROMPT_PAIRS;
        ends = (int*)(states + 2 * PROMPT_PAIRS);
        places = ends + PROMPT_PAIRS;
        notes = places + PROMPT_PAIRS;
        queries = (uint4*)(notes + 4);
    }
    DEVICE int seen(int pair, int split) const { return min(max(ends[pair] - split * (int)SPLIT, 0), (int)SPLIT); }
    DEVICE int longest(int split) const { return seen(PROMPT_PAIRS - 1, split); }
    DEVICE static float4 divided(const float4& v, float sum) { return float4{v.x / sum, v.y / sum, v.z / sum, v.w / sum}; }
    // A pair's bytes of four times four positions, 4 b + t, in the room of its scores: those of two pairs side by side are in banks of their own.
    DEVICE uint4* mixing(int pair, int four) const {
        return (uint4*)(weights + pair * WEIGHT_STRIDE) + (four & ~7) + ((four + 4 * (pair & 1) - pair) & 7);
    }
};

// The cache blocks of a tile's split.
struct ByteTileCache {
    ByteLayout layout;
    int entry; // lane b: of the split's cache block b % 8
    int head;  // of layer and kv head

    // By all lanes of a warp.
    DEVICE const unsigned char* block(const Step& s, int b) const { return layout.block(s, shuffle(entry, b), head); }
};

// Pairs past the last are copies of it whose results are dropped. Half a warp has a pair.
DEVICE void load_byte_queries(const Step& s, const ByteTileArea& area, int first_row, int rows, int kv_head, int first_position) {
    const int dim = s.head_dim, d = lane_id() % 16 * 8, pairs = rows * s.group;
#pragma unroll
    for (int pair = (int)threadIdx.x / 16; pair < PROMPT_PAIRS; pair += PROMPT_THREADS / 16) {
        const int p = min(pair, pairs - 1), row = p / s.group, place = (first_row + row) * s.heads + kv_head * s.group + p - row * s.group;
        if (d == 0) {
            area.places[pair] = place;
            area.ends[pair] = first_position + row + 1;
            area.factors[pair] = s.query_factors[place];
            area.notes[1] = pairs;
            area.notes[2] = (first_position + rows - 1) / (int)SPLIT + 1;
        }
        if (d >= area.key_tiles * 32) continue;
        uint4 x = {0, 0, 0, 0};
        if (d < dim) x = *(const uint4*)(s.queries + (long long)place * dim + d);
        unsigned* to = (unsigned*)(area.queries + (pair / 8 * area.key_tiles + d / 32) * 32 + pair % 8 * 4 + d % 16 / 4) + d % 32 / 16;
        to[0] = pack((int)x.x >> 8, (int)x.x >> 24, (int)x.y >> 8, (int)x.y >> 24);
        to[2] = pack((int)x.x, (int)x.x >> 16, (int)x.y, (int)x.y >> 16);
        to[4] = pack((int)x.z >> 8, (int)x.z >> 24, (int)x.w >> 8, (int)x.w >> 24);
        to[6] = pack((int)x.z, (int)x.z >> 16, (int)x.w, (int)x.w >> 16);
    }
}

// Sums of 32 rows and pairs.
struct HalfSums {
    WholeSums of[2][HALF_COLUMNS];

    DEVICE void clear() {
#pragma unroll
        for (int n = 0; n < HALF_COLUMNS; n++) {
            of[0][n].clear();
            of[1][n].clear();
        }
    }
};

// Scores of half of the pairs with cache block b of the split. `next`: the lane's first keys.
DEVICE void score_half(const ByteTileArea& area, const ByteLayout& layout, const unsigned char* block, uint4 (&next)[2], int b, int half) {
    const int tiles = area.key_tiles;
    const uint4 *keys = (const uint4*)block + lane_id(), *queries = area.queries + half * HALF_COLUMNS * tiles * 32 + lane_id();
    HalfSums sums;
    sums.clear();
#pragma unroll 1
    for (int c = 0; c < tiles; c++) {
        const uint4 rows[2] = {next[0], next[1]};
        // At the end once more the first.
        const int after = c + 1 < tiles ? c + 1 : 0;
        next[0] = keys[after * 32];
        next[1] = keys[(tiles + after) * 32];
#pragma unroll
        for (int n = 0; n < HALF_COLUMNS; n++) {
            const uint4 q = queries[(n * tiles + c) * 32];
            sums.of[0][n].add(rows[0], q);
            sums.of[1][n].add(rows[1], q);
        }
    }
    const unsigned short* scales = (const unsigned short*)(block + layout.scales()) + lane_id() / 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float scale = float_of_one(scales[8 * i]);
#pragma unroll
        for (int n = 0; n < HALF_COLUMNS; n++) {
            const int pair = half * HALF_PAIRS + n * 8 + lane_id() % 4 * 2;
            const float2 factor = *(const float2*)(area.factors + pair);
            float* to = area.weights + pair * WEIGHT_STRIDE + b * KV_BLOCK + 8 * i + lane_id() / 4;
            const WholeSums& of = sums.of[i / 2][n];
            to[0] = of.of(i % 2 * 2) * scale * factor.x;
            to[WEIGHT_STRIDE] = of.of(i % 2 * 2 + 1) * scale * factor.y;
        }
    }
}

// As soften_pairs; then the weights, times the values' scales, become columns' bytes in the place of the scores.
template <bool WHOLE> DEVICE void soften_byte_pairs(const ByteTileArea& area, int first, int split) {
    const int pair = first + lane_id() / 16 * 4, lane = lane_id() % 16, seen = WHOLE ? (int)SPLIT : area.seen(pair, split);
    const float *scores = area.weights + pair * WEIGHT_STRIDE + lane, *scales = area.scales + lane;
    float weight[SPLIT / 16], most = -INFINITE, sum = 0.0f, greatest = 0.0f;
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) {
        weight[i] = scores[i * 16];
        if (!WHOLE && i * 16 + lane >= seen) weight[i] = -INFINITE;
        most = fmaxf(most, weight[i]);
    }
    for (int mask = 8; mask > 0; mask >>= 1) most = fmaxf(most, shuffle_xor(most, mask));
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) {
        // All at once, without a branch.
        const unsigned mask = WHOLE || i * 16 + lane < seen ? 0xffffffffu : 0u;
        weight[i] = float_of_bits(bits_of_float(exp_of_negative(weight[i] - most)) & mask);
        sum += weight[i];
        weight[i] = float_of_bits(bits_of_float(weight[i] * scales[i * 16]) & mask);
        greatest = fmaxf(greatest, weight[i]);
    }
    for (int mask = 8; mask > 0; mask >>= 1) {
        sum += shuffle_xor(sum, mask);
        greatest = fmaxf(greatest, shuffle_xor(greatest, mask));
    }
    const float inverse = whole_inverse(greatest);
    // All of the warp have read.
    __syncwarp();
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) {
        const int w = whole(weight[i] * inverse);
        unsigned char* to = (unsigned char*)area.mixing(pair, i / 2 * 4 + lane / 4) + i % 2 * 4 + lane % 4;
        to[0] = (unsigned char)(w >> 8);
        to[8] = (unsigned char)w;
    }
    if (lane == 0) {
        area.states[2 * pair] = most;
        area.states[2 * pair + 1] = sum;
        area.steps[pair] = whole_step(greatest);
    }
}

// A lane's values of 32 dimensions, cache block by cache block.
struct ByteValues {
    uint4 next[2];

    // By all lanes of a warp.
    DEVICE void load(const Step& s, const ByteTileCache& cache, int dims, int b) {
        const uint4* from = (const uint4*)(cache.block(s, b) + cache.layout.key_bytes() + dims * 1024) + lane_id();
        next[0] = from[0];
        if (2 * dims + 1 < cache.layout.value_tiles) next[1] = from[32];
    }
};

// Weighted values of the split for half of the pairs; results of the only split, or what is to be merged.
DEVICE void mix_half(const Step& s, const ByteTileArea& area, const ByteTileCache& cache, ByteValues& values, int split, int dims, int half) {
    const int blocks = (area.longest(split) + KV_BLOCK - 1) / KV_BLOCK, pairs = area.notes[1], dim = s.head_dim;
    const bool only = area.notes[2] == 1;
    HalfSums sums;
    sums.clear();
#pragma unroll 1
    for (int b = 0; b < blocks; b++) {
        const uint4 rows[2] = {values.next[0], values.next[1]};
        if (b + 1 < blocks) values.load(s, cache, dims, b + 1);
#pragma unroll
        for (int n = 0; n < HALF_COLUMNS; n++) {
            const uint4 w = *area.mixing(half * HALF_PAIRS + n * 8 + lane_id() / 4, 4 * b + lane_id() % 4);
            sums.of[0][n].add(rows[0], w);
            sums.of[1][n].add(rows[1], w);
        }
    }
#pragma unroll
    for (int n = 0; n < HALF_COLUMNS; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int pair = half * HALF_PAIRS + n * 8 + lane_id() % 4 * 2 + j;
            if (pair >= pairs) break;
            const int place = area.places[pair];
            const float step = area.steps[pair], all = area.states[2 * pair + 1];
            float* to = only ? s.attention + (long long)place * dim : partial_values(s, place, split);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int d = dims * 32 + 8 * i + lane_id() / 4;
                if (d >= dim) break;
                const float value = sums.of[i / 2][n].of(i % 2 * 2 + j) * step;
                to[d] = only ? value / all : value;
            }
        }
    }
}

// As attend_prompt_tile.
DEVICE void attend_byte_tile(const Step& s, int layer, int most) {
    const int blocks = gridDim.x, block = blockIdx.x, index = blocks <= 2 * most && block >= most ? blocks - 1 + most - block : block;
    const int kv_head = index % s.kv_heads;
    const int4 tile = ((const int4*)s.prompt_tiles)[index / s.kv_heads];
    const int first_row = tile.x, rows = tile.y, split = tile.z, first_position = tile.w, sequence = s.sequences[first_row];
    const int entry = min(split * (SPLIT / KV_BLOCK) + lane_id() % (SPLIT / KV_BLOCK), s.table_stride - 1);
    const ByteTileCache cache = {ByteLayout(s.head_dim), s.block_table[(long long)sequence * s.table_stride + entry], layer * s.kv_heads + kv_head};
    ByteTileArea area;
    area.place(shared_arena(), cache.layout.key_tiles);
    load_byte_queries(s, area, first_row, rows, kv_head, first_position);
    // Not always the same warps have the keys that no row of the last split sees.
    const int b = (warp_id() + index) % PROMPT_WARPS;
    const bool seen = split * (int)SPLIT + b * KV_BLOCK < first_position + rows;
    const unsigned char* own = cache.block(s, b);
    uint4 next[2] = {};
    if (seen) {
        next[0] = ((const uint4*)own)[lane_id()];
        next[1] = ((const uint4*)own)[cache.layout.key_tiles * 32 + lane_id()];
        area.scales[b * KV_BLOCK + lane_id()] = float_of_one(((const unsigned short*)(own + cache.layout.scales()))[KV_BLOCK + lane_id()]);
    }
    __syncthreads();
    if (seen) {
#pragma unroll 1
        for (int half = 0; half < PROMPT_PAIRS / HALF_PAIRS; half++) score_half(area, cache.layout, own, next, b, half);
    }
    const int dims = (s.head_dim + 31) / 32, items = dims * (PROMPT_PAIRS / HALF_PAIRS);
    ByteValues values = {};
    if (warp_id() < items) values.load(s, cache, warp_id() % dims, 0);
    __syncthreads();
    const bool whole = area.seen(0, split) == SPLIT;
#pragma unroll 1
    for (int i = warp_id(); i < PROMPT_PAIRS / 2; i += PROMPT_WARPS) {
        const int pair = i / 4 * 8 + i % 4;
        if (whole) {
            soften_byte_pairs<true>(area, pair, split);
        } else {
            soften_byte_pairs<false>(area, pair, split);
        }
    }
    __syncthreads();
    // Heads have 128 dimensions at most: no warp has more than one.
    if (warp_id() < items) mix_half(s, area, cache, values, split, warp_id() % dims, warp_id() / dims);
    if (area.notes[2] == 1) return;
    const int pairs = area.notes[1];
    if ((int)threadIdx.x < pairs) {
        float* to = partial_state(s, area.places[threadIdx.x], split);
        to[0] = area.states[2 * threadIdx.x];
        to[1] = area.states[2 * threadIdx.x + 1];
    }
    if (arrive_last(s, area)) merge_tile(s, area, pairs);
}

static_assert(HEAD_DIM_MAX / 32 * (PROMPT_PAIRS / HALF_PAIRS) <= PROMPT_WARPS, "a warp for each 32 dimensions and pairs");

// RoPE of row t; keys and values into the cache, queries as whole numbers into Step. Half a warp has a head, a lane eight dimensions.
DEVICE void store_byte_row(const Step& s, int layer, int t) {
    const ByteLayout layout(s.head_dim);
    const int dim = s.head_dim, position = s.positions[t], slot = position % KV_BLOCK, d = lane_id() % 16 * 8, vectors = s.heads + 2 * s.kv_heads;
    const float* row = s.qkv + (long long)t * vectors * dim;
    const int number = s.block_table[(long long)s.sequences[t] * s.table_stride + position / KV_BLOCK];
#pragma unroll 1
    for (int first = 2 * warp_id(); first < vectors; first += 2 * WARPS) {
        const int head = min(first + lane_id() / 16, vectors - 1), kv_head = head - s.heads;
        const bool value = kv_head >= s.kv_heads;
        float x[8] = {}, most = 0.0f;
        if (d < dim && value) {
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] = row[head * dim + d + j];
        } else if (d < dim) {
            rotate_eight(s, row + head * dim, position, d, x);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) most = fmaxf(most, fabsf(x[j]));
        for (int mask = 8; mask > 0; mask >>= 1) most = fmaxf(most, shuffle_xor(most, mask));
        if (kv_head < 0) {
            const float inverse = whole_inverse(most);
            unsigned q[4];
#pragma unroll
            for (int j = 0; j < 4; j++) q[j] = ((unsigned)whole(x[2 * j] * inverse) & 0xffffu) | (unsigned)whole(x[2 * j + 1] * inverse) << 16;
            const long long place = (long long)t * s.heads + head;
            if (d < dim) *(uint4*)(s.queries + place * dim + d) = uint4{q[0], q[1], q[2], q[3]};
            if (d == 0) s.query_factors[place] = whole_step(most) * s.score_scale;
            continue;
        }
        const ByteScale scale(most);
        unsigned char* block = layout.block(s, number, layer * s.kv_heads + (value ? kv_head - s.kv_heads : kv_head));
        if (d == 0) *layout.scale(block, value, slot) = scale.half;
        if (d >= dim) continue;
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            if (value) {
                layout.put_value(block, slot, d + j, scale.word(x + j));
            } else {
                layout.put_key(block, slot, d + j, scale.word(x + j));
            }
        }
    }
}
