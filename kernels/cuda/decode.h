// Attention of decode rows by the batch kernels: a block for each split of a row and kv head, with all query heads of the
// group. Keys lie in registers, a position a thread, values in shared memory: all loads of a block are under way before it
// waits for the queries. The bits of kernels/src/attention, as in attention.h.
#pragma once

#include "attention.h"

enum { DECODE_THREADS = SPLIT, DECODE_WARPS = SPLIT / 32, DECODE_HEADS = 4, KEY_VECTORS = HEAD_DIM_MAX / 8 };

// Shared memory of a block.
struct DecodeArea {
    uint4* values;       // [SPLIT][head_dim] halves
    float4* weights;     // [SPLIT], of DECODE_HEADS heads at a time
    float* queries;      // [group][head_dim]
    float* greatest;     // [DECODE_HEADS][DECODE_WARPS]
    float* sums;         // [DECODE_HEADS]
    int* merges;
    unsigned short* key; // [head_dim] of the position itself

    DEVICE void place(unsigned char* at, int head_dim, int group) {
        values = (uint4*)at;
        weights = (float4*)(at + SPLIT * head_dim * 2);
        queries = (float*)(weights + SPLIT);
        greatest = queries + group * head_dim;
        sums = greatest + DECODE_HEADS * DECODE_WARPS;
        merges = (int*)(sums + DECODE_HEADS);
        key = (unsigned short*)(merges + 4);
    }
};

// Where one dimension of a head comes from, by RoPE at a position.
struct Turn {
    int first, second; // the pair
    float cos, sin;
    bool upper, still;

    DEVICE void find(const Step& s, int position, int d) {
        still = d >= 2 * s.rope_half;
        int pair = s.rope_pairs ? d / 2 : d % s.rope_half;
        upper = s.rope_pairs ? d & 1 : d >= s.rope_half;
        first = still ? d : s.rope_pairs ? 2 * pair : pair;
        second = still ? d : s.rope_pairs ? 2 * pair + 1 : pair + s.rope_half;
        const float* turn = s.rope + (long long)position * 2 * s.rope_half;
        cos = still ? 0.0f : turn[pair];
        sin = still ? 0.0f : turn[s.rope_half + pair];
    }
    DEVICE float of(float a, float b) const { return still ? a : upper ? fused(a, sin, b * cos) : fused(a, cos, -b * sin); }
};

// A warp takes the keys and values of one cache block: where they are, and how many positions of it are stored. The position
// itself is not among them.
struct DecodeBlock {
    int index, stored;

    DEVICE void find(const Unit& u) {
        stored = (u.last ? u.seen - 1 : u.seen) - warp_id() * KV_BLOCK;
        index = stored > 0 ? u.table[warp_id()] : 0;
    }
    DEVICE void load_keys(const Step& s, const unsigned short* pool, uint4 (&key)[KEY_VECTORS]) const {
        const uint4* from = (const uint4*)(pool + index * block_halves(s));
        if (lane_id() >= stored) return;
#pragma unroll
        for (int v = 0; v < KEY_VECTORS; v++) {
            if (v * 8 < s.head_dim) key[v] = from[v * KV_BLOCK + lane_id()];
        }
    }
    DEVICE void load_values(const Step& s, const unsigned short* pool, uint4* values) const {
        const int per_row = s.head_dim / 8;
        const uint4* from = (const uint4*)(pool + index * block_halves(s)) + KV_BLOCK * per_row;
        uint4* to = values + warp_id() * KV_BLOCK * per_row;
#pragma unroll 4
        for (int i = lane_id(); i < min(stored, (int)KV_BLOCK) * per_row; i += 32) copy_async(to + i, from + i);
    }
    // From one cache block to the next.
    DEVICE static long long block_halves(const Step& s) { return (long long)s.layers * s.kv_heads * 2 * KV_BLOCK * s.head_dim; }
};

// Queries, rounded to F16, and, for the last split, the position's own key and value: into shared memory and the cache. A
// thread has one dimension.
DEVICE void project_split(const Step& s, const Unit& u, const DecodeArea& area, const Turn& turn, unsigned short* own_block) {
    enum { AHEAD = 4 };
    const int dim = s.head_dim, d = (int)threadIdx.x % dim, step = DECODE_THREADS / dim, slot = u.position % KV_BLOCK;
    const int key = s.group, parts = s.group + (u.last ? 2 : 0);
    const float* row = s.qkv + (long long)u.row * (s.heads + 2 * s.kv_heads) * dim;
    if ((int)threadIdx.x >= step * dim) return;
#pragma unroll 1
    for (int start = (int)threadIdx.x / dim; start < parts; start += AHEAD * step) {
        float a[AHEAD], b[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int part = start + j * step;
            if (part >= parts) break;
            const float* head = row + (part < key ? u.first_head + part : s.heads + u.kv_head + (part - key) * s.kv_heads) * dim;
            a[j] = head[part > key ? d : turn.first];
            b[j] = head[turn.second];
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int part = start + j * step;
            if (part >= parts) break;
            unsigned short half = half_of_float(part > key ? a[j] : turn.of(a[j], b[j]));
            if (part < key) {
                area.queries[part * dim + d] = float_of_half(half);
            } else if (part == key) {
                area.key[d] = half;
                own_block[(d / 8 * KV_BLOCK + slot) * 8 + d % 8] = half;
            } else {
                ((unsigned short*)area.values)[(u.seen - 1) * dim + d] = half;
                own_block[(KV_BLOCK + slot) * dim + d] = half;
            }
        }
    }
}

// Scores of a position against H queries: chains of 32 dimensions, added in their order.
template <int H> DEVICE void score_key(const uint4 (&key)[KEY_VECTORS], const float* queries, int dim, float (&total)[H]) {
#pragma unroll
    for (int h = 0; h < H; h++) total[h] = 0.0f;
#pragma unroll
    for (int c = 0; c < HEAD_DIM_MAX / CHAIN; c++) {
        if (c * CHAIN >= dim) break;
        __syncwarp();
        float sum[H] = {};
#pragma unroll
        for (int v = c * (CHAIN / 8); v < (c + 1) * (CHAIN / 8); v++) {
            if (v * 8 >= dim) break;
            const float2 k[4] = {floats_of_halves(key[v].x), floats_of_halves(key[v].y), floats_of_halves(key[v].z),
                                 floats_of_halves(key[v].w)};
#pragma unroll
            for (int h = 0; h < H; h++) {
                const float4 low = *(const float4*)(queries + h * dim + v * 8), high = *(const float4*)(queries + h * dim + v * 8 + 4);
                float x = fused(low.w, k[1].y, fused(low.z, k[1].x, fused(low.y, k[0].y, fused(low.x, k[0].x, sum[h]))));
                sum[h] = fused(high.w, k[3].y, fused(high.z, k[3].x, fused(high.y, k[2].y, fused(high.x, k[2].x, x))));
            }
        }
#pragma unroll
        for (int h = 0; h < H; h++) total[h] += sum[h];
    }
}

DEVICE float greatest_of_warps(const float* parts) {
    float greatest = parts[0];
#pragma unroll
    for (int k = 1; k < DECODE_WARPS; k++) greatest = fmaxf(greatest, parts[k]);
    return greatest;
}

// Scores become weights exp(score - greatest), 0 past what the query sees.
template <int H> DEVICE void soften_scores(const Step& s, const Unit& u, const DecodeArea& area, const float (&total)[H]) {
    const bool seen = (int)threadIdx.x < u.seen;
    float score[H];
#pragma unroll
    for (int h = 0; h < H; h++) {
        score[h] = seen ? total[h] * s.score_scale : -INFINITE;
        float greatest = unordered(warp_max(ordered(score[h])));
        if (lane_id() == 0) area.greatest[h * DECODE_WARPS + warp_id()] = greatest;
    }
    __syncthreads();
    float weight[DECODE_HEADS] = {};
#pragma unroll
    for (int h = 0; h < H; h++) {
        if (seen) weight[h] = exp_exact(score[h] - greatest_of_warps(area.greatest + h * DECODE_WARPS));
    }
    area.weights[threadIdx.x] = float4{weight[0], weight[1], weight[2], weight[3]};
    __syncthreads();
}

template <int H> DEVICE void mix_weights(const float4& weights, float value, float (&sum)[H]) {
    const float w[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int h = 0; h < H; h++) sum[h] = fused(w[h], value, sum[h]);
}

// Weighted values of dimension d for H heads, in the order of positions; the loads of some positions run ahead.
template <int H> DEVICE void mix_values(const DecodeArea& area, int seen, int dim, int d, float (&sum)[H]) {
    enum { AHEAD = 4 };
    const unsigned short* values = (const unsigned short*)area.values + d;
    const float4* weights = area.weights;
    unsigned short next[AHEAD];
    float4 next_weights[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        next[i] = values[i * dim];
        next_weights[i] = weights[i];
    }
    int p = 0;
#pragma unroll 2
    for (; p + AHEAD <= seen; p += AHEAD) {
        float value[AHEAD];
        float4 w[AHEAD];
        // Past the last position lies what was never written, past the split the weights and queries: never used.
        values += AHEAD * dim;
        weights += AHEAD;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            value[i] = float_of_half(next[i]);
            w[i] = next_weights[i];
            next[i] = values[i * dim];
            next_weights[i] = weights[i];
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) mix_weights<H>(w[i], value[i], sum);
    }
#pragma unroll
    for (int i = 0; i < AHEAD - 1; i++) {
        if (p + i < seen) mix_weights<H>(next_weights[i], float_of_half(next[i]), sum);
    }
}

// The split's part of a head of the group.
DEVICE float* split_part(const Step& s, const Unit& u, int head) {
    return s.partial + (((long long)u.row * s.heads + u.first_head + head) * s.splits_max + u.split) * (s.head_dim + 2);
}

// Some heads of the split, from `first` of the group on: results where it is the only one, else the split's part of them.
// Heads past the group are copies of its last whose results are dropped.
template <int H>
DEVICE void attend_heads(const Step& s, const Unit& u, const DecodeArea& area, const uint4 (&key)[KEY_VECTORS], int first) {
    const int dim = s.head_dim, d = threadIdx.x;
    const int from = min(first, s.group - H), skipped = first - from;
    float total[H] = {}, sum[H] = {};
    if (warp_id() * 32 < u.seen) score_key<H>(key, area.queries + from * dim, dim, total);
    copy_wait<0>();
    soften_scores<H>(s, u, area, total);
    launch_next();
    const int summed = DECODE_WARPS - 1 - warp_id();
    if (d < dim) mix_values<H>(area, u.seen, dim, d, sum);
    if (summed < H) {
        const float* weights = (const float*)area.weights + summed;
        float part[SPLIT / 16], all = 0.0f;
#pragma unroll
        for (int i = 0; i < SPLIT / 16; i++) part[i] = weights[(i * 16 + lane_id() % 16) * 4];
#pragma unroll
        for (int i = 0; i < SPLIT / 16; i++) all += part[i];
        for (int mask = 8; mask > 0; mask >>= 1) all += shuffle_xor(all, mask);
        if (lane_id() == 0) {
            area.sums[summed] = all;
            if (u.splits > 1 && summed >= skipped) {
                float* state = split_part(s, u, from + summed) + dim;
                state[0] = greatest_of_warps(area.greatest + summed * DECODE_WARPS);
                state[1] = all;
            }
        }
    }
    __syncthreads();
    if (d >= dim) return;
#pragma unroll
    for (int h = 0; h < H; h++) {
        if (h < skipped) continue;
        if (u.splits == 1) {
            s.attention[((long long)u.row * s.heads + u.first_head + from + h) * dim + d] = sum[h] / area.sums[h];
        } else {
            split_part(s, u, from + h)[d] = sum[h];
        }
    }
}

// The thread of the position itself takes its key, which the cache does not have yet.
DEVICE void take_own_key(const Unit& u, const DecodeArea& area, int dim, uint4 (&key)[KEY_VECTORS]) {
    if (!u.last || (int)threadIdx.x != u.seen - 1) return;
#pragma unroll
    for (int v = 0; v < KEY_VECTORS; v++) {
        if (v * 8 < dim) key[v] = ((const uint4*)area.key)[v];
    }
}

// All heads of the group, whose first ones have their keys. Others read them again: they would not stay in registers.
template <int H>
DEVICE void attend_group(const Step& s, const Unit& u, const DecodeArea& area, const unsigned short* pool, const DecodeBlock& block,
                         uint4 (&key)[KEY_VECTORS]) {
#pragma unroll 1
    for (int h = 0;;) {
        take_own_key(u, area, s.head_dim, key);
        attend_heads<H>(s, u, area, key, h);
        h += H;
        if (h >= s.group) break;
        block.load_keys(s, pool, key);
    }
}

DEVICE void attend_split(const Step& s, int layer) {
    const int dim = s.head_dim;
    DecodeArea area;
    area.place(shared_arena(), dim, s.group);
    Unit u = find_unit(s, blockIdx.x);
    if (u.split >= u.splits) return;
    unsigned short* pool = s.kv_pool + ((long long)layer * s.kv_heads + u.kv_head) * 2 * KV_BLOCK * dim;
    DecodeBlock block;
    block.find(u);
    uint4 key[KEY_VECTORS] = {};
    block.load_keys(s, pool, key);
    block.load_values(s, pool, area.values);
    copy_commit();
    Turn turn;
    turn.find(s, u.position, (int)threadIdx.x % dim);
    int own = u.last ? u.table[(u.seen - 1) / KV_BLOCK] : 0;
    // All before is of steps before this one, or of launches that the one before has waited for.
    wait_prior();
    project_split(s, u, area, turn, pool + own * DecodeBlock::block_halves(s));
    __syncthreads();
    if (s.group < DECODE_HEADS) {
        attend_group<1>(s, u, area, pool, block, key);
    } else {
        attend_group<DECODE_HEADS>(s, u, area, pool, block, key);
    }
    merge_splits<DECODE_THREADS>(s, u, area.merges, UnitSource<false>{0});
}
