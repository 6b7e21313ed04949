// Attention of decode rows over an int8 cache by the batch kernels: a block for each split of a row and kv head, four query heads at a time. All
// keys and values of the split lie in shared memory, loaded before the queries are waited for.
#pragma once

#include "bytes.h"
#include "decode.h"

// Shared memory of a block. DIM is the head's size, or 0 where it is not one that is worth its own code.
template <int DIM> struct ByteArea {
    int head_dim;
    unsigned char* blocks; // [SPLIT_BLOCKS] head blocks
    float4* weights;       // [SPLIT]: of four heads scores, then weights
    uint4* queries;        // [heads / 4][key_tiles][head % 4][4]: columns' bytes
    uint4* mixing;         // [SPLIT_BLOCKS][head % 4][4]: of the weights
    float *greatest, *most; // [BYTE_HEADS][DECODE_WARPS]: of the scores, of the weights times the values' scales
    float* sums;           // [BYTE_HEADS]
    int* merges;
    float* factors;        // of the group's scores

    DEVICE ByteLayout layout() const { return ByteLayout(DIM ? DIM : head_dim); }
    DEVICE int dim() const { return DIM ? DIM : head_dim; }
    DEVICE void place(unsigned char* at, int dims, int group) {
        head_dim = dims;
        blocks = at;
        weights = (float4*)(at + SPLIT_BLOCKS * layout().bytes());
        mixing = (uint4*)(weights + SPLIT);
        greatest = (float*)(mixing + SPLIT_BLOCKS * BYTE_HEADS * 4);
        most = greatest + BYTE_HEADS * DECODE_WARPS;
        sums = most + BYTE_HEADS * DECODE_WARPS;
        merges = (int*)(sums + BYTE_HEADS);
        queries = (uint4*)(merges + 4);
        factors = (float*)(queries + (group + BYTE_HEADS - 1) / BYTE_HEADS * layout().key_tiles * BYTE_HEADS * 4);
    }
};

// A warp has a head: a lane dimensions 4 lane .. + 4.
struct LaneTurns {
    Turn turns[4];
    int d;
    bool there;

    DEVICE void find(const Step& s, int position) {
        d = 4 * lane_id();
        there = d < s.head_dim;
#pragma unroll
        for (int j = 0; j < 4; j++) turns[j].find(s, position, there ? d + j : 0);
    }
    DEVICE void load(const float* head, bool turned, float (&x)[4]) const {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            x[j] = 0.0f;
            if (there) x[j] = turned ? turns[j].of(head[turns[j].first], head[turns[j].second]) : head[d + j];
        }
    }
    DEVICE static float greatest(const float (&x)[4]) {
        const float most = fmaxf(fmaxf(fmaxf(0.0f, fabsf(x[0])), fmaxf(fabsf(x[1]), fabsf(x[2]))), fabsf(x[3]));
        return float_of_bits(warp_max(bits_of_float(most)));
    }
};

// The bytes of a query's columns; all of them 0 past the group's last.
template <int DIM> DEVICE void put_query(const Step& s, const ByteArea<DIM>& area, const LaneTurns& turns, const float* row, int head) {
    float x[4] = {};
    if (head < s.group) turns.load(row + head * area.dim(), true, x);
    const float most = LaneTurns::greatest(x), inverse = whole_inverse(most);
    int q[4];
#pragma unroll
    for (int j = 0; j < 4; j++) q[j] = whole(x[j] * inverse);
    const int tiles = area.layout().key_tiles, d = turns.d;
    unsigned* to = (unsigned*)(area.queries + ((head / BYTE_HEADS * tiles + d / 32) * BYTE_HEADS + head % BYTE_HEADS) * 4 + d % 16 / 4) + d % 32 / 16;
    if (d < 32 * tiles) {
        to[0] = pack(q[0] >> 8, q[1] >> 8, q[2] >> 8, q[3] >> 8);
        to[2] = pack(q[0], q[1], q[2], q[3]);
    }
    if (lane_id() == 0 && head < s.group) area.factors[head] = whole_step(most) * s.score_scale;
}

// Key and value of the position itself, by the warp that copies its cache block.
template <int DIM>
DEVICE void put_own(const Step& s, const Unit& u, const ByteArea<DIM>& area, const LaneTurns& turns, const float* row, unsigned char* own_block) {
    const ByteLayout layout = area.layout();
    float k[4], v[4];
    turns.load(row + (s.heads + u.kv_head) * area.dim(), true, k);
    turns.load(row + (s.heads + s.kv_heads + u.kv_head) * area.dim(), false, v);
    const ByteScale key(LaneTurns::greatest(k)), value(LaneTurns::greatest(v));
    const int place = u.seen - 1, slot = place % KV_BLOCK;
    unsigned char* block = area.blocks + place / KV_BLOCK * layout.bytes();
    copy_wait<0>();
    __syncwarp();
    if (turns.there) {
        const unsigned key_word = key.word(k), value_word = value.word(v);
        layout.put_key(block, slot, turns.d, key_word);
        layout.put_key(own_block, slot, turns.d, key_word);
        layout.put_value(block, slot, turns.d, value_word);
        layout.put_value(own_block, slot, turns.d, value_word);
    }
    if (lane_id() == 0) {
        *layout.scale(block, false, slot) = *layout.scale(own_block, false, slot) = key.half;
        *layout.scale(block, true, slot) = *layout.scale(own_block, true, slot) = value.half;
    }
}

// Scores of the warp's cache block with four heads, `first` the first of them.
template <int DIM> DEVICE void score_bytes(const ByteArea<DIM>& area, int first) {
    const ByteLayout layout = area.layout();
    unsigned char* block = area.blocks + warp_id() * layout.bytes();
    const uint4 *keys = (const uint4*)block + lane_id(), *queries = area.queries + first / BYTE_HEADS * layout.key_tiles * BYTE_HEADS * 4;
    WholeSums sums[2];
    sums[0].clear();
    sums[1].clear();
#pragma unroll
    for (int c = 0; c < (DIM ? DIM : HEAD_DIM_MAX) / 32; c++) {
        if (c >= layout.key_tiles) break;
        const uint4 q = four_columns(queries + c * BYTE_HEADS * 4);
        sums[0].add(keys[c * 32], q);
        sums[1].add(keys[(layout.key_tiles + c) * 32], q);
    }
    const int column = lane_id() % 4 * 2, row = lane_id() / 4;
    if (column < BYTE_HEADS) {
        const float2 factor = *(const float2*)(area.factors + first + column);
        float* to = (float*)(area.weights + warp_id() * KV_BLOCK + row) + column;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float scale = float_of_one(*layout.scale(block, false, row + 8 * i));
            const WholeSums& of = sums[i / 2];
            *(float2*)(to + 8 * i * BYTE_HEADS) = float2{of.of(i % 2 * 2) * scale * factor.x, of.of(i % 2 * 2 + 1) * scale * factor.y};
        }
    }
    __syncwarp();
}

// Scores become weights, and these, times the values' scales, columns' bytes. A thread has a position.
template <int DIM> DEVICE void soften_bytes(const Unit& u, const ByteArea<DIM>& area, int heads) {
    const ByteLayout layout = area.layout();
    const bool seen = (int)threadIdx.x < u.seen;
    const float4 scores = area.weights[threadIdx.x];
    const float score[BYTE_HEADS] = {scores.x, scores.y, scores.z, scores.w};
#pragma unroll
    for (int h = 0; h < BYTE_HEADS; h++) {
        const float greatest = unordered(warp_max(ordered(seen ? score[h] : -INFINITE)));
        if (lane_id() == 0) area.greatest[h * DECODE_WARPS + warp_id()] = greatest;
    }
    __syncthreads();
    float weight[BYTE_HEADS] = {}, scaled[BYTE_HEADS] = {};
    float scale = 0.0f;
    if (seen) scale = float_of_one(*layout.scale(area.blocks + warp_id() * layout.bytes(), true, lane_id()));
#pragma unroll
    for (int h = 0; h < BYTE_HEADS; h++) {
        if (seen && h < heads) {
            weight[h] = exp_exact(score[h] - greatest_of_warps(area.greatest + h * DECODE_WARPS));
            scaled[h] = weight[h] * scale;
        }
        const unsigned most = warp_max(bits_of_float(fmaxf(scaled[h], 0.0f)));
        if (lane_id() == 0) area.most[h * DECODE_WARPS + warp_id()] = float_of_bits(most);
    }
    area.weights[threadIdx.x] = float4{weight[0], weight[1], weight[2], weight[3]};
    copy_wait<0>();
    __syncthreads();
    if (warp_id() * KV_BLOCK >= u.seen) return;
    unsigned char* to = (unsigned char*)(area.mixing + warp_id() * BYTE_HEADS * 4 + lane_id() % 16 / 4) + lane_id() / 16 * 4 + lane_id() % 4;
#pragma unroll
    for (int h = 0; h < BYTE_HEADS; h++) {
        const int w = whole(scaled[h] * whole_inverse(greatest_of_warps(area.most + h * DECODE_WARPS)));
        to[h * 64] = (unsigned char)(w >> 8);
        to[h * 64 + 8] = (unsigned char)w;
    }
}

// Weighted values of the warp's 16 dimensions.
template <int DIM> DEVICE void mix_bytes(const ByteArea<DIM>& area, int count, WholeSums& sums) {
    const ByteLayout layout = area.layout();
    const uint4* values = (const uint4*)(area.blocks + layout.key_bytes() + warp_id() * 512) + lane_id();
#pragma unroll 4
    for (int b = 0; b < count; b++) sums.add(values[b * (layout.bytes() / 16)], four_columns(area.mixing + b * BYTE_HEADS * 4));
}

// Four heads of the split, from `first` of the group on, or those that are left: results where it is the only one, else the split's part.
template <int DIM> DEVICE void attend_byte_heads(const Step& s, const Unit& u, const ByteArea<DIM>& area, int first) {
    const int count = (u.seen + KV_BLOCK - 1) / KV_BLOCK, heads = min(s.group - first, (int)BYTE_HEADS), dim = area.dim();
    if (warp_id() < count) score_bytes<DIM>(area, first);
    soften_bytes<DIM>(u, area, heads);
    launch_next();
    __syncthreads();
    WholeSums sums;
    sums.clear();
    if (warp_id() < area.layout().value_tiles) mix_bytes<DIM>(area, count, sums);
    const int summed = DECODE_WARPS - 1 - warp_id();
    if (summed < heads) {
        const float* weights = (const float*)area.weights + summed;
        float part[SPLIT / 16], all = 0.0f;
#pragma unroll
        for (int i = 0; i < SPLIT / 16; i++) part[i] = weights[(i * 16 + lane_id() % 16) * BYTE_HEADS];
#pragma unroll
        for (int i = 0; i < SPLIT / 16; i++) all += part[i];
        for (int mask = 8; mask > 0; mask >>= 1) all += shuffle_xor(all, mask);
        if (lane_id() == 0) {
            area.sums[summed] = all;
            if (u.splits > 1) {
                float* state = split_part(s, u, first + summed) + dim;
                state[0] = greatest_of_warps(area.greatest + summed * DECODE_WARPS);
                state[1] = all;
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const int h = lane_id() % 4 * 2 + j;
        if (h >= heads) break;
        const float step = whole_step(greatest_of_warps(area.most + h * DECODE_WARPS));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int d = warp_id() * 16 + lane_id() / 4 + 8 * i;
            if (d >= dim) break;
            const float value = sums.of(2 * i + j) * step;
            if (u.splits == 1) {
                s.attention[((long long)u.row * s.heads + u.first_head + first + h) * dim + d] = value / area.sums[h];
            } else {
                split_part(s, u, first + h)[d] = value;
            }
        }
    }
}

template <int DIM> DEVICE void attend_bytes(const Step& s, int layer, bool stored) {
    settle(layer);
    ByteArea<DIM> area;
    area.place(shared_arena(), s.head_dim, s.group);
    const ByteLayout layout = area.layout();
    Unit u = find_unit(s, blockIdx.x);
    if (u.split >= u.splits) return;
    if (stored) {
        u.last = false;
        wait_prior();
    }
    const int count = (u.seen + KV_BLOCK - 1) / KV_BLOCK, head = layer * s.kv_heads + u.kv_head;
    // All loads: what lies in slots that are not seen is never used, that of the position itself is replaced.
    if (warp_id() < count) {
        const uint4* from = (const uint4*)layout.block(s, u.table[warp_id()], head);
        uint4* to = (uint4*)(area.blocks + warp_id() * layout.bytes());
        const int scales = layout.scales() / 16, keys = layout.key_bytes() / 16;
        if (lane_id() < KV_BLOCK / 4) copy_async(to + scales + lane_id(), from + scales + lane_id());
#pragma unroll 8
        for (int i = lane_id(); i < keys; i += 32) copy_async(to + i, from + i);
        copy_commit();
#pragma unroll 8
        for (int i = keys + lane_id(); i < scales; i += 32) copy_async(to + i, from + i);
    }
    copy_commit();
    LaneTurns turns;
    turns.find(s, u.position);
    const int own = u.table[(u.seen - 1) / KV_BLOCK];
    // All before is of steps before this one, or of launches that the one before has waited for.
    wait_prior();
    const float* row = s.qkv + (long long)u.row * (s.heads + 2 * s.kv_heads) * area.dim();
    const int place = (warp_id() + DECODE_WARPS - count) % DECODE_WARPS, queries = DECODE_WARPS - (u.last ? 1 : 0);
    if (place < queries) {
#pragma unroll 1
        for (int h = place; h < (s.group + BYTE_HEADS - 1) / BYTE_HEADS * BYTE_HEADS; h += queries) {
            put_query<DIM>(s, area, turns, row + u.first_head * area.dim(), h);
        }
    } else {
        put_own<DIM>(s, u, area, turns, row, layout.block(s, own, head));
    }
    copy_wait<1>();
    __syncthreads();
#pragma unroll 1
    for (int h = 0; h < s.group; h += BYTE_HEADS) attend_byte_heads<DIM>(s, u, area, h);
    merge_splits<DECODE_THREADS>(s, u, area.merges, UnitSource<false>{0});
}
