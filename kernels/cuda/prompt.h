// Attention of prompts: a tile of successive rows of one sequence against the cache, a warp for each 8 (row, query head)
// pairs of one kv head. The bits of kernels/src/attention: chains of 32 dimensions, splits of 256 positions merged in order.
#pragma once

#include "attention.h"

enum { PROMPT_WARPS = 4, PROMPT_ROWS = 8, PROMPT_THREADS = PROMPT_WARPS * 32, PROMPT_KEYS = 4 };

// RoPE of row t; keys and values into the cache, queries as F16 into Step.
DEVICE void store_row(const Step& s, int layer, int t) {
    const int dim = s.head_dim, position = s.positions[t], slot = position % KV_BLOCK;
    const float* row = s.qkv + (long long)t * (s.heads + 2 * s.kv_heads) * dim;
    const long long head_block = 2 * KV_BLOCK * dim;
    int block = s.block_table[(long long)s.sequences[t] * s.table_stride + position / KV_BLOCK];
    unsigned short* pool = s.kv_pool + ((long long)block * s.layers + layer) * s.kv_heads * head_block;
#pragma unroll 1
    for (int i = threadIdx.x; i < (s.heads + 2 * s.kv_heads) * dim; i += THREADS) {
        int head = i / dim, d = i - head * dim, kv_head = head - s.heads;
        if (kv_head >= s.kv_heads) {
            kv_head -= s.kv_heads;
            pool[kv_head * head_block + (KV_BLOCK + slot) * dim + d] = half_of_float(row[i]);
            continue;
        }
        unsigned short half = half_of_float(rotated(s, row + head * dim, position, d));
        if (kv_head < 0) {
            s.queries[(long long)t * s.heads * dim + i] = half;
        } else {
            pool[kv_head * head_block + (d / 8 * KV_BLOCK + slot) * 8 + d % 8] = half;
        }
    }
}

// Shared memory of a warp of R pairs.
template <int R> struct PromptArea {
    float* queries; // [R][head_dim]
    float* outputs; // likewise: unscaled values of the splits so far
    float* weights; // [R][SPLIT]
    float* state;   // [R][2]: greatest score, sum of weights
    float* part;    // the same of the split at hand

    DEVICE void place(unsigned char* arena, int dim) {
        queries = (float*)(arena + warp_id() * R * (2 * dim + SPLIT + 4) * 4);
        outputs = queries + R * dim;
        weights = outputs + R * dim;
        state = weights + R * SPLIT;
        part = state + 2 * R;
    }
};

// Pairs of one sequence and kv head; pairs past the last are copies of it whose results are dropped.
struct PromptRows {
    int first_row, first_pair, pairs, group, position; // position of pair 0
    const int* table;
    const unsigned short* pool; // of layer and kv head
    long long block_stride;

    DEVICE int row(int r) const { return (first_pair + min(r, pairs - 1)) / group; }
    DEVICE int head(int r) const { return (first_pair + min(r, pairs - 1)) % group; }
    DEVICE int seen(int r, int split) const {
        return min(max(position + row(r) - row(0) + 1 - split * (int)SPLIT, 0), (int)SPLIT);
    }
    DEVICE const unsigned short* block(int split, int b) const {
        return pool + table[split * (SPLIT / KV_BLOCK) + b] * block_stride;
    }
};

// Products of R queries, `stride` apart, with 8 dimensions of each key.
template <int R>
DEVICE void add_products(const float* queries, int stride, const uint4 (&k)[PROMPT_KEYS], float (&sum)[R][PROMPT_KEYS]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float2 low[PROMPT_KEYS], high[PROMPT_KEYS];
#pragma unroll
        for (int j = 0; j < PROMPT_KEYS; j++) {
            low[j] = floats_of_halves(half ? k[j].z : k[j].x);
            high[j] = floats_of_halves(half ? k[j].w : k[j].y);
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            float4 q = *(const float4*)(queries + r * stride + half * 4);
#pragma unroll
            for (int j = 0; j < PROMPT_KEYS; j++) {
                float x = fused(q.y, low[j].y, fused(q.x, low[j].x, sum[r][j]));
                sum[r][j] = fused(q.w, high[j].y, fused(q.z, high[j].x, x));
            }
        }
    }
}

// Scores of PROMPT_KEYS cache blocks from `first` on; a lane has the same position of each.
template <int R>
DEVICE void score_blocks(const Step& s, const PromptRows& rows, const PromptArea<R>& area, int split, int first, int blocks) {
    const int dim = s.head_dim;
    const uint4* keys[PROMPT_KEYS];
#pragma unroll
    for (int j = 0; j < PROMPT_KEYS; j++) {
        keys[j] = (const uint4*)rows.block(split, min(first + j, blocks - 1)) + lane_id();
    }
    float total[R][PROMPT_KEYS] = {};
#pragma unroll 1
    for (int chain = 0; chain < dim; chain += CHAIN) {
        float sum[R][PROMPT_KEYS] = {};
        // One pair leaves room for the loads of a whole chain at once.
        enum { STEPS = R == 1 ? CHAIN / 8 : 1 };
#pragma unroll 1
        for (int start = chain; start < min(chain + CHAIN, dim); start += 8 * STEPS) {
            uint4 k[STEPS][PROMPT_KEYS];
#pragma unroll
            for (int i = 0; i < STEPS * PROMPT_KEYS; i++) {
                int d = start + i / PROMPT_KEYS * 8;
                if (STEPS == 1 || d < dim) k[i / PROMPT_KEYS][i % PROMPT_KEYS] = keys[i % PROMPT_KEYS][d / 8 * KV_BLOCK];
            }
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                int d = start + i * 8;
                if (STEPS == 1 || d < dim) add_products(area.queries + d, dim, k[i], sum);
            }
        }
#pragma unroll
        for (int i = 0; i < R * PROMPT_KEYS; i++) (&total[0][0])[i] += (&sum[0][0])[i];
    }
#pragma unroll
    for (int i = 0; i < R * PROMPT_KEYS; i++) {
        int r = i / PROMPT_KEYS, place = (first + i % PROMPT_KEYS) * KV_BLOCK + lane_id();
        if (place < SPLIT) area.weights[r * SPLIT + place] = total[r][i % PROMPT_KEYS] * s.score_scale;
    }
}

// Scores of one row become weights exp(score - greatest), 0 past what it sees.
DEVICE void soften_row(float* weights, int seen, float* part) {
    float score[SPLIT / 32], most = -INFINITE;
#pragma unroll
    for (int i = 0; i < SPLIT / 32; i++) {
        score[i] = i * 32 + lane_id() < seen ? weights[i * 32 + lane_id()] : -INFINITE;
        most = fmaxf(most, score[i]);
    }
    most = unordered(warp_max(ordered(most)));
#pragma unroll
    for (int i = 0; i < SPLIT / 32; i++) {
        weights[i * 32 + lane_id()] = i * 32 + lane_id() < seen ? exp_exact(score[i] - most) : 0.0f;
    }
    __syncwarp();
    float sum = sum_weights(weights);
    if (lane_id() == 0) {
        part[0] = most;
        part[1] = sum;
    }
}

DEVICE void mix_position(float (&sum)[4], float weight, const float2& low, const float2& high) {
    sum[0] = fused(weight, low.x, sum[0]);
    sum[1] = fused(weight, low.y, sum[1]);
    sum[2] = fused(weight, high.x, sum[2]);
    sum[3] = fused(weight, high.y, sum[3]);
}

// N positions from p on, of one cache block, which all rows see.
template <int R, int N>
DEVICE void mix_positions(const unsigned short* values, int dim, const float* weights, int p, float (&sum)[R][4]) {
    uint2 v[N];
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = *(const uint2*)(values + ((p + i) % KV_BLOCK) * dim);
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float2 low[4], high[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            low[j] = floats_of_halves(v[i + j].x);
            high[j] = floats_of_halves(v[i + j].y);
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            float4 w = *(const float4*)(weights + r * SPLIT + p + i);
            mix_position(sum[r], w.x, low[0], high[0]);
            mix_position(sum[r], w.y, low[1], high[1]);
            mix_position(sum[r], w.z, low[2], high[2]);
            mix_position(sum[r], w.w, low[3], high[3]);
        }
    }
}

// Weighted values of the dimensions d..d + 4 in the order of positions, into sums.
template <int R>
DEVICE void mix_rows(const Step& s, const PromptRows& rows, const float* weights, int split, int d,
                     float (&sum)[R][4]) {
    const int dim = s.head_dim, common = rows.seen(0, split), longest = rows.seen(R - 1, split);
#pragma unroll 1
    for (int b = 0; b * KV_BLOCK < longest; b++) {
        const unsigned short* values = rows.block(split, b) + KV_BLOCK * dim + d;
        int p = b * KV_BLOCK, end = min(longest, p + (int)KV_BLOCK);
        for (; R == 1 && p + 16 <= min(common, end); p += 16) mix_positions<R, 16>(values, dim, weights, p, sum);
#pragma unroll 1
        for (; p + 4 <= min(common, end); p += 4) mix_positions<R, 4>(values, dim, weights, p, sum);
#pragma unroll 1
        for (; p < end; p++) {
            uint2 v = *(const uint2*)(values + (p % KV_BLOCK) * dim);
            float2 low = floats_of_halves(v.x), high = floats_of_halves(v.y);
#pragma unroll
            for (int r = 0; r < R; r++) {
                // What a row does not see never enters its sum.
                if (p < rows.seen(r, split)) mix_position(sum[r], weights[r * SPLIT + p], low, high);
            }
        }
    }
}

// Adds the split's sums to those of the splits before it.
template <int R>
DEVICE void merge_rows(const PromptRows& rows, const PromptArea<R>& area, int split, int dim, int d,
                       const float (&sum)[R][4]) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        float4* out = (float4*)(area.outputs + r * dim + d);
        if (rows.seen(r, split) == 0) continue;
        if (split == 0) {
            *out = float4{sum[r][0], sum[r][1], sum[r][2], sum[r][3]};
            continue;
        }
        float old = area.state[2 * r], next = area.part[2 * r], max = old > next ? old : next;
        float keep = exp_exact(old - max), add = exp_exact(next - max);
        float4 before = *out;
        *out = float4{fused(sum[r][0], add, before.x * keep), fused(sum[r][1], add, before.y * keep),
                      fused(sum[r][2], add, before.z * keep), fused(sum[r][3], add, before.w * keep)};
    }
}

template <int R> DEVICE void merge_states(const PromptRows& rows, const PromptArea<R>& area, int split) {
    int r = lane_id();
    if (r >= R || rows.seen(r, split) == 0) return;
    float old = area.state[2 * r], next = area.part[2 * r], sum = area.part[2 * r + 1];
    float max = split == 0 || next > old ? next : old;
    if (split > 0) sum = fused(sum, exp_exact(next - max), area.state[2 * r + 1] * exp_exact(old - max));
    area.state[2 * r] = max;
    area.state[2 * r + 1] = sum;
}

// All splits, from queries in the area to results.
template <int R>
DEVICE void attend_splits(const Step& s, const PromptRows& rows, const PromptArea<R>& area, int kv_head) {
    const int dim = s.head_dim;
    __syncwarp();
#pragma unroll 1
    for (int split = 0; rows.seen(R - 1, split) > 0; split++) {
        int blocks = (rows.seen(R - 1, split) + KV_BLOCK - 1) / KV_BLOCK;
#pragma unroll 1
        for (int first = 0; first < blocks; first += PROMPT_KEYS) score_blocks(s, rows, area, split, first, blocks);
        __syncwarp();
#pragma unroll 1
        for (int r = 0; r < R; r++) soften_row(area.weights + r * SPLIT, rows.seen(r, split), area.part + 2 * r);
        __syncwarp();
#pragma unroll 1
        for (int d = 4 * lane_id(); d < dim; d += 128) {
            float sum[R][4] = {};
            mix_rows(s, rows, area.weights, split, d, sum);
            merge_rows(rows, area, split, dim, d, sum);
        }
        __syncwarp();
        merge_states(rows, area, split);
        __syncwarp();
    }
    for (int i = lane_id(); i < rows.pairs * dim; i += 32) {
        int r = i / dim, head = kv_head * s.group + rows.head(r);
        s.attention[((long long)(rows.first_row + rows.row(r)) * s.heads + head) * dim + i % dim] =
            area.outputs[i] / area.state[2 * r + 1];
    }
}

// A block for each tile and kv head; the last tiles, which see most, first.
DEVICE void attend_prompt_tile(const Step& s, int layer) {
    int tile = ((int)gridDim.x - 1 - (int)blockIdx.x) / s.kv_heads, kv_head = (int)blockIdx.x % s.kv_heads;
    PromptRows rows;
    rows.first_row = s.prompt_tiles[2 * tile];
    rows.group = s.group;
    rows.first_pair = warp_id() * PROMPT_ROWS;
    rows.pairs = min(s.prompt_tiles[2 * tile + 1] * s.group - rows.first_pair, (int)PROMPT_ROWS);
    if (rows.pairs <= 0) return;
    rows.position = s.positions[rows.first_row] + rows.row(0);
    rows.table = s.block_table + (long long)s.sequences[rows.first_row] * s.table_stride;
    const long long head_block = 2 * KV_BLOCK * s.head_dim;
    rows.pool = s.kv_pool + ((long long)layer * s.kv_heads + kv_head) * head_block;
    rows.block_stride = (long long)s.layers * s.kv_heads * head_block;
    PromptArea<PROMPT_ROWS> area;
    area.place(shared_arena(), s.head_dim);
    const int dim = s.head_dim;
    for (int i = lane_id(); i < PROMPT_ROWS * dim; i += 32) {
        int r = i / dim, head = kv_head * s.group + rows.head(r);
        area.queries[i] = float_of_half(s.queries[((long long)(rows.first_row + rows.row(r)) * s.heads + head) * dim + i % dim]);
    }
    attend_splits(s, rows, area, kv_head);
}
