// Attention of prompts: pairs of successive rows of one sequence and query heads of one kv head against the cache, a block
// for each 64 of them (32 below devices of 9.0) and split, of which the last to come merges all. The bits of kernels/src/attention: chains of 32
// dimensions, splits of 256 positions merged in order.
//
// Products are 8 x 8 or 8 x 4 a thread, from keys, values and queries that are widened once into shared memory. Keys and values
// are a warp's own: it waits for no other.
#pragma once

#include "attention.h"

enum {
    PROMPT_WARPS = 8,
    PROMPT_THREADS = PROMPT_WARPS * 32,
    PROMPT_PAIRS = WARPGROUPS ? 64 : 32,
    LANE_PAIRS = PROMPT_PAIRS / 8, // of a lane 4 g + x: 8 i + g
    WEIGHT_STRIDE = SPLIT + 4,     // against bank conflicts
    WIDE_DIMS = 8,                 // of a cache block's keys, a lane 4 x .. + 4 and 16 + 4 x .. + 4
    WIDE_POSITIONS = 16,           // of 16 dimensions, a lane 4 x .. + 4
    WIDE_FLOATS = 256,
};

static_assert(PROMPT_WARPS * KV_BLOCK == SPLIT && WIDE_DIMS * KV_BLOCK == WIDE_FLOATS && WIDE_POSITIONS * 16 == WIDE_FLOATS,
              "keys and values take the same room");

// Shared memory of a block.
struct TileArea {
    float* queries; // [head_dim][LANE_PAIRS g + i]
    float* weights; // [pair][WEIGHT_STRIDE]: scores of a split, then weights
    float* wide;    // of the warp
    float* states;  // [pair][2]: greatest score, sum of weights
    int* ends;      // [pair]: positions that it sees
    int* places;    // [pair]: row * heads + head
    int* merges;

    DEVICE void place(unsigned char* arena) {
        weights = (float*)arena;
        wide = weights + PROMPT_PAIRS * WEIGHT_STRIDE + warp_id() * WIDE_FLOATS;
        states = weights + PROMPT_PAIRS * WEIGHT_STRIDE + PROMPT_WARPS * WIDE_FLOATS;
        ends = (int*)(states + 2 * PROMPT_PAIRS);
        places = ends + PROMPT_PAIRS;
        merges = places + PROMPT_PAIRS;
        queries = (float*)(merges + 4);
    }
    // Positions of a split that a pair sees.
    DEVICE int seen(int pair, int split) const { return min(max(ends[pair] - split * (int)SPLIT, 0), (int)SPLIT); }
    DEVICE int longest(int split) const { return seen(PROMPT_PAIRS - 1, split); }
};

// Where a tile's keys and values are.
struct TileCache {
    const int* table;
    const unsigned short* pool; // of layer and kv head
    long long block_stride;

    DEVICE const unsigned short* block(int split, int b) const {
        return pool + table[split * (SPLIT / KV_BLOCK) + b] * block_stride;
    }
};

DEVICE void widen(float (&to)[8], const uint4& from) {
    const unsigned words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = floats_of_halves(words[i]);
        to[2 * i] = pair.x;
        to[2 * i + 1] = pair.y;
    }
}

// Pairs past the last are copies of it whose results are dropped.
DEVICE void load_queries(const Step& s, const TileArea& area, int first_row, int pairs, int kv_head) {
    const int dim = s.head_dim;
#pragma unroll 1
    for (int i = threadIdx.x; i < PROMPT_PAIRS * (dim / 8); i += PROMPT_THREADS) {
        const int pair = i % PROMPT_PAIRS, d = i / PROMPT_PAIRS * 8, p = min(pair, pairs - 1);
        const int place = (first_row + p / s.group) * s.heads + kv_head * s.group + p % s.group;
        if (d == 0) {
            area.places[pair] = place;
            area.ends[pair] = s.positions[first_row] + p / s.group + 1;
        }
        float x[8];
        widen(x, *(const uint4*)(s.queries + (long long)place * dim + d));
        float* to = area.queries + d * PROMPT_PAIRS + pair % 8 * LANE_PAIRS + pair / 8;
#pragma unroll
        for (int j = 0; j < 8; j++) to[j * PROMPT_PAIRS] = x[j];
    }
}

DEVICE void add_products(float (&sum)[8], float query, const float4 (&keys)[2]) {
    sum[0] = fused(query, keys[0].x, sum[0]);
    sum[1] = fused(query, keys[0].y, sum[1]);
    sum[2] = fused(query, keys[0].z, sum[2]);
    sum[3] = fused(query, keys[0].w, sum[3]);
    sum[4] = fused(query, keys[1].x, sum[4]);
    sum[5] = fused(query, keys[1].y, sum[5]);
    sum[6] = fused(query, keys[1].z, sum[6]);
    sum[7] = fused(query, keys[1].w, sum[7]);
}

// Scores of all pairs with cache block b of the split, yet without their scale.
DEVICE void score_keys(const Step& s, const TileCache& cache, const TileArea& area, int split, int b) {
    const int dim = s.head_dim, g = lane_id() / 4, x = lane_id() % 4;
    const uint4* keys = (const uint4*)cache.block(split, b) + lane_id();
    uint4 next = *keys;
    float sum[LANE_PAIRS][8] = {};
#pragma unroll 1
    for (int d = 0; d < dim; d += WIDE_DIMS) {
        float k[8];
        widen(k, next);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 8; j++) area.wide[j * KV_BLOCK + lane_id()] = k[j];
        __syncwarp();
        keys += KV_BLOCK;
        if (d + WIDE_DIMS < dim) next = *keys;
        const float *q_at = area.queries + d * PROMPT_PAIRS + g * LANE_PAIRS, *k_at = area.wide + 4 * x;
#pragma unroll 2
        for (int j = 0; j < WIDE_DIMS; j++) {
            const float4 keys_of[2] = {*(const float4*)(k_at + j * KV_BLOCK), *(const float4*)(k_at + j * KV_BLOCK + 16)};
            float4 q[LANE_PAIRS / 4];
#pragma unroll
            for (int i = 0; i < LANE_PAIRS / 4; i++) q[i] = ((const float4*)(q_at + j * PROMPT_PAIRS))[i];
#pragma unroll
            for (int i = 0; i < LANE_PAIRS; i++) {
                const float4& four = q[i / 4];
                add_products(sum[i], i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w, keys_of);
            }
        }
        if ((d + WIDE_DIMS) % CHAIN != 0 && d + WIDE_DIMS < dim) continue;
        // The end of a chain.
#pragma unroll
        for (int i = 0; i < LANE_PAIRS * 2; i++) {
            float4* at = (float4*)(area.weights + (i / 2 * 8 + g) * WEIGHT_STRIDE + b * KV_BLOCK + i % 2 * 16 + 4 * x);
            float* of = sum[i / 2] + i % 2 * 4;
            float4 total = d < CHAIN ? float4{0.0f, 0.0f, 0.0f, 0.0f} : *at;
            *at = float4{total.x + of[0], total.y + of[1], total.z + of[2], total.w + of[3]};
            of[0] = of[1] = of[2] = of[3] = 0.0f;
        }
    }
}

// e^x for x up to 0, the bits of exp_exact: one exact power of two on the bits, one that may round.
DEVICE float exp_of_negative(float x) {
    const float round = 12582912.0f + 64.0f;
    x = -104.0f > x ? -104.0f : x;
    const float shifted = fused(x, 1.44269504088896340736f, round), n = shifted - round;
    const float r = fused(n, 1.9046542e-9f, fused(n, -0.693147180559945309417f, x));
    float p = 0.0013814538f;
    p = fused(p, r, 0.008368745f);
    p = fused(p, r, 0.04166839f);
    p = fused(p, r, 0.16666521f);
    p = fused(p, r, 0.49999994f);
    p = fused(r * r, p, r) + 1.0f;
    // The product with 0 keeps what is no number.
    return fused(float_of_bits(bits_of_float(p) + (bits_of_float(shifted) << 23)), 5.42101086242752217e-20f, 0.0f * r);
}

// Scores of two pairs become weights exp(score - greatest), half a warp for each. Position p counts to lane p % 16, in order;
// lanes merge by the tree + 8, + 4, + 2, + 1.
DEVICE void soften_pairs(const Step& s, const TileArea& area, int first, int split) {
    const int pair = first + lane_id() / 16 * 4, lane = lane_id() % 16, seen = area.seen(pair, split);
    float* weights = area.weights + pair * WEIGHT_STRIDE + lane;
    float score[SPLIT / 16], most = -INFINITE, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) {
        score[i] = i * 16 + lane < seen ? weights[i * 16] * s.score_scale : -INFINITE;
        most = fmaxf(most, score[i]);
    }
    for (int mask = 8; mask > 0; mask >>= 1) most = fmaxf(most, shuffle_xor(most, mask));
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) {
        // All at once, without a branch.
        const unsigned mask = i * 16 + lane < seen ? 0xffffffffu : 0u;
        const float weight = float_of_bits(bits_of_float(exp_of_negative(score[i] - most)) & mask);
        weights[i * 16] = weight;
        sum += weight;
    }
    for (int mask = 8; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    if (lane == 0) {
        area.states[2 * pair] = most;
        area.states[2 * pair + 1] = sum;
    }
}

DEVICE void add_values(float (&sum)[4], float weight, const float4& value) {
    sum[0] = fused(weight, value.x, sum[0]);
    sum[1] = fused(weight, value.y, sum[1]);
    sum[2] = fused(weight, value.z, sum[2]);
    sum[3] = fused(weight, value.w, sum[3]);
}

// Weighted values of the split, 16 dimensions from `first` on, in the order of positions.
DEVICE void mix_values(const Step& s, const TileCache& cache, const TileArea& area, int split, int first,
                       float (&sum)[LANE_PAIRS][4]) {
    const int dim = s.head_dim, g = lane_id() / 4, x = lane_id() % 4;
    const int common = area.seen(0, split), longest = area.longest(split);
    // A lane loads half of a position's 16 dimensions.
    const int half = lane_id() % 2 * 8, row = lane_id() / 2;
    uint4 next = {0, 0, 0, 0};
    auto load = [&](int start) {
        if (start >= longest || first + half >= dim) return;
        next = *(const uint4*)(cache.block(split, start / KV_BLOCK) + (KV_BLOCK + start % KV_BLOCK + row) * dim + first + half);
    };
    load(0);
#pragma unroll 1
    for (int start = 0; start < longest; start += WIDE_POSITIONS) {
        float v[8];
        widen(v, next);
        __syncwarp();
        float4* to = (float4*)(area.wide + row * 16 + half);
        to[0] = float4{v[0], v[1], v[2], v[3]};
        to[1] = float4{v[4], v[5], v[6], v[7]};
        __syncwarp();
        load(start + WIDE_POSITIONS);
        const float *w_at = area.weights + g * WEIGHT_STRIDE + start, *v_at = area.wide + 4 * x;
        int p = 0;
#pragma unroll 1
        for (; p + 4 <= min(common - start, (int)WIDE_POSITIONS); p += 4) {
            float4 value[4];
#pragma unroll
            for (int j = 0; j < 4; j++) value[j] = *(const float4*)(v_at + (p + j) * 16);
#pragma unroll
            for (int i = 0; i < LANE_PAIRS; i++) {
                float4 weight = *(const float4*)(w_at + i * 8 * WEIGHT_STRIDE + p);
                add_values(sum[i], weight.x, value[0]);
                add_values(sum[i], weight.y, value[1]);
                add_values(sum[i], weight.z, value[2]);
                add_values(sum[i], weight.w, value[3]);
            }
        }
        // What a pair does not see never enters its sum.
#pragma unroll 1
        for (; p < min(longest - start, (int)WIDE_POSITIONS); p++) {
            const float4 value = *(const float4*)(v_at + p * 16);
#pragma unroll
            for (int i = 0; i < LANE_PAIRS; i++) {
                if (split * (int)SPLIT + start + p < area.ends[8 * i + g]) {
                    add_values(sum[i], w_at[i * 8 * WEIGHT_STRIDE + p], value);
                }
            }
        }
    }
}

// A split's greatest score and sum of weights, and its values, for the block that comes last.
DEVICE float* partial_state(const Step& s, int place, int split) {
    return s.partial + (long long)s.tokens * s.heads * s.splits_max * s.head_dim + ((long long)place * s.splits_max + split) * 2;
}
DEVICE float* partial_values(const Step& s, int place, int split) {
    return s.partial + ((long long)place * s.splits_max + split) * s.head_dim;
}

// Results of the only split, or what is to be merged.
DEVICE void leave_values(const Step& s, const TileArea& area, int pairs, int split, bool only, int first,
                         const float (&sum)[LANE_PAIRS][4]) {
    const int g = lane_id() / 4, d = first + lane_id() % 4 * 4;
    if (d >= s.head_dim) return;
#pragma unroll
    for (int i = 0; i < LANE_PAIRS; i++) {
        const int pair = 8 * i + g;
        if (pair >= pairs) break;
        const int place = area.places[pair];
        const float all = only ? area.states[2 * pair + 1] : 1.0f;
        float* to = only ? s.attention + (long long)place * s.head_dim : partial_values(s, place, split);
        *(float4*)(to + d) = float4{sum[i][0] / all, sum[i][1] / all, sum[i][2] / all, sum[i][3] / all};
    }
}

// All splits of a tile, in order, a warp for each pair.
DEVICE void merge_tile(const Step& s, const TileArea& area, int pairs) {
    enum { AHEAD = 4 };
    const int dim = s.head_dim;
#pragma unroll 1
    for (int i = warp_id(); i < pairs * ((dim + 127) / 128); i += PROMPT_WARPS) {
        const int pair = i % pairs, d = i / pairs * 128 + 4 * lane_id(), place = area.places[pair];
        const int splits = (area.ends[pair] - 1) / (int)SPLIT + 1;
        if (d >= dim) continue;
        float greatest = 0.0f, sum = 0.0f;
        float4 out = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
        for (int start = 0; start < splits; start += AHEAD) {
            float4 values[AHEAD];
            float next[AHEAD], sums[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                const int split = min(start + j, splits - 1);
                values[j] = __ldcg((const float4*)(partial_values(s, place, split) + d));
                next[j] = __ldcg(partial_state(s, place, split));
                sums[j] = __ldcg(partial_state(s, place, split) + 1);
            }
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                if (start + j >= splits) break;
                if (start + j == 0) {
                    greatest = next[0];
                    sum = sums[0];
                    out = values[0];
                    continue;
                }
                const float max = greatest > next[j] ? greatest : next[j];
                const float keep = exp_exact(greatest - max), add = exp_exact(next[j] - max);
                greatest = max;
                sum = fused(sums[j], add, sum * keep);
                out = float4{fused(values[j].x, add, out.x * keep), fused(values[j].y, add, out.y * keep),
                             fused(values[j].z, add, out.z * keep), fused(values[j].w, add, out.w * keep)};
            }
        }
        *(float4*)(s.attention + (long long)place * dim + d) = float4{out.x / sum, out.y / sum, out.z / sum, out.w / sum};
    }
}

// Says that a split of the tile is done; whether it was the last.
DEVICE bool arrive_last(const Step& s, const TileArea& area) {
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned* arrived = s.arrived + area.places[0];
        __threadfence();
        const bool last = atomicAdd(arrived, 1u) == (unsigned)(area.ends[PROMPT_PAIRS - 1] - 1) / SPLIT;
        __threadfence();
        if (last) *arrived = 0;
        *area.merges = last;
    }
    __syncthreads();
    return *area.merges;
}

// A block for each tile, kv head and split; the last tiles, which see most, first.
DEVICE void attend_prompt_tile(const Step& s, int layer) {
    const int tiles = (int)gridDim.x / s.splits_max, index = tiles - 1 - (int)blockIdx.x % tiles, split = (int)blockIdx.x / tiles;
    const int tile = index / s.kv_heads, kv_head = index % s.kv_heads, dim = s.head_dim;
    const int first_row = s.prompt_tiles[2 * tile], rows = s.prompt_tiles[2 * tile + 1], pairs = rows * s.group;
    const int splits = s.positions[first_row + rows - 1] / SPLIT + 1;
    if (split >= splits) return;
    const long long head_block = 2 * KV_BLOCK * dim;
    TileCache cache;
    cache.table = s.block_table + (long long)s.sequences[first_row] * s.table_stride;
    cache.pool = s.kv_pool + ((long long)layer * s.kv_heads + kv_head) * head_block;
    cache.block_stride = (long long)s.layers * s.kv_heads * head_block;
    TileArea area;
    area.place(shared_arena());
    load_queries(s, area, first_row, pairs, kv_head);
    __syncthreads();
    // Not always the same warps have the keys that no row of the last split sees.
    const int b = (warp_id() + index) % PROMPT_WARPS;
    if (b * KV_BLOCK < area.longest(split)) score_keys(s, cache, area, split, b);
    __syncthreads();
#pragma unroll 1
    for (int i = warp_id(); i < PROMPT_PAIRS / 2; i += PROMPT_WARPS) soften_pairs(s, area, i / 4 * 8 + i % 4, split);
    __syncthreads();
#pragma unroll 1
    for (int d = warp_id() * 16; d < dim; d += PROMPT_WARPS * 16) {
        float sum[LANE_PAIRS][4] = {};
        mix_values(s, cache, area, split, d, sum);
        leave_values(s, area, pairs, split, splits == 1, d, sum);
    }
    if (splits == 1) return;
    if ((int)threadIdx.x < pairs) {
        float* to = partial_state(s, area.places[threadIdx.x], split);
        to[0] = area.states[2 * threadIdx.x];
        to[1] = area.states[2 * threadIdx.x + 1];
    }
    if (arrive_last(s, area)) merge_tile(s, area, pairs);
}

// Eight dimensions of one head at its position.
DEVICE void rotate_eight(const Step& s, const float* head, int position, int d, float (&out)[8]) {
    const int half = s.rope_half;
    if (half % 8 != 0 || d >= 2 * half) {
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = rotated(s, head, position, d + j);
        return;
    }
    const bool second = d >= half;
    const float* turn = s.rope + (long long)position * 2 * half + (s.rope_pairs ? d / 2 : second ? d - half : d);
    const float4* own = (const float4*)(head + d);
    const float4 low = own[0], high = own[1];
    const float a[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    if (s.rope_pairs) {
        const float4 cosines = *(const float4*)turn, sines = *(const float4*)(turn + half);
        const float cos[4] = {cosines.x, cosines.y, cosines.z, cosines.w}, sin[4] = {sines.x, sines.y, sines.z, sines.w};
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            out[j] = fused(a[j], cos[j / 2], -a[j + 1] * sin[j / 2]);
            out[j + 1] = fused(a[j], sin[j / 2], a[j + 1] * cos[j / 2]);
        }
        return;
    }
    const float4 *far = (const float4*)(head + (second ? d - half : d + half)), *at = (const float4*)turn;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float4 other = far[i], cosines = at[i], sines = ((const float4*)(turn + half))[i];
        const float b[4] = {other.x, other.y, other.z, other.w}, cos[4] = {cosines.x, cosines.y, cosines.z, cosines.w};
        const float sin[4] = {sines.x, sines.y, sines.z, sines.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float x = a[4 * i + j];
            out[4 * i + j] = second ? fused(b[j], sin[j], x * cos[j]) : fused(x, cos[j], -b[j] * sin[j]);
        }
    }
}

DEVICE uint4 halves_of(const float (&x)[8]) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = (unsigned)half_of_float(x[2 * i]) | (unsigned)half_of_float(x[2 * i + 1]) << 16;
    return uint4{words[0], words[1], words[2], words[3]};
}

// RoPE of row t; keys and values into the cache, queries as F16 into Step. A thread takes eight dimensions.
DEVICE void store_row(const Step& s, int layer, int t) {
    const int dim = s.head_dim, position = s.positions[t], slot = position % KV_BLOCK, eights = dim / 8;
    const float* row = s.qkv + (long long)t * (s.heads + 2 * s.kv_heads) * dim;
    const long long head_block = 2 * KV_BLOCK * dim;
    const int block = s.block_table[(long long)s.sequences[t] * s.table_stride + position / KV_BLOCK];
    unsigned short* pool = s.kv_pool + ((long long)block * s.layers + layer) * s.kv_heads * head_block;
#pragma unroll 1
    for (int i = threadIdx.x; i < (s.heads + 2 * s.kv_heads) * eights; i += THREADS) {
        const int head = i / eights, d = (i - head * eights) * 8, kv_head = head - s.heads;
        float x[8];
        if (kv_head >= s.kv_heads) {
            const float4 low = ((const float4*)(row + head * dim + d))[0], high = ((const float4*)(row + head * dim + d))[1];
            x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
            x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
            *(uint4*)(pool + (kv_head - s.kv_heads) * head_block + (KV_BLOCK + slot) * dim + d) = halves_of(x);
            continue;
        }
        rotate_eight(s, row + head * dim, position, d, x);
        unsigned short* to = kv_head < 0 ? s.queries + ((long long)t * s.heads + head) * dim + d
                                         : pool + kv_head * head_block + (d / 8 * KV_BLOCK + slot) * 8;
        *(uint4*)to = halves_of(x);
    }
}
