// Attention of one row over an int8 cache: step_1_bytes. Units as in attention.h; a warp has 16 positions' keys in registers, then 16 dimensions
// of the values of every other cache block.
#pragma once

#include "bytes.h"

enum { VALUE_WARPS = HEAD_DIM_MAX / 16 };

static_assert(WARPS == 2 * VALUE_WARPS && WARPS * 16 == SPLIT, "16 positions a warp, and 16 dimensions of two halves");

// Shared memory of a unit.
struct ByteUnitArea {
    uint4* values;         // [SPLIT_BLOCKS][value_tiles][32]
    uint4* queries;        // [key_tiles][head][4]: columns' bytes
    uint4* mixing;         // [SPLIT_BLOCKS][head][4]: of the weights
    float* scores;         // [heads][SPLIT]; then weights
    int* later;            // [VALUE_WARPS][32][4]: sums of the later half of the warps
    float *greatest, *most; // [heads][SPLIT / 32]
    float *sums, *factors; // [heads]
    unsigned char* own;    // [2][HEAD_DIM_MAX]: key and value of the position itself
    unsigned short* scales; // of both
    int* merges;

    DEVICE void place(unsigned char* at, const ByteLayout& layout) {
        values = (uint4*)at;
        queries = values + SPLIT_BLOCKS * layout.value_tiles * 32;
        mixing = queries + layout.key_tiles * BYTE_HEADS * 4;
        scores = (float*)(mixing + SPLIT_BLOCKS * BYTE_HEADS * 4);
        later = (int*)(scores + BYTE_HEADS * SPLIT);
        greatest = (float*)(later + VALUE_WARPS * 128);
        most = greatest + BYTE_HEADS * (SPLIT / 32);
        sums = most + BYTE_HEADS * (SPLIT / 32);
        factors = sums + BYTE_HEADS;
        own = (unsigned char*)(factors + BYTE_HEADS);
        scales = (unsigned short*)(own + 2 * HEAD_DIM_MAX);
        merges = (int*)(scales + 2);
    }
};

static_assert((int)UNIT_HEADS_MAX == (int)BYTE_HEADS, "a unit's heads are columns");

// Of one thread: keys of positions g and g + 8 of its warp's 16, their scales, and that of the value at place `threadIdx.x % SPLIT`.
struct ByteUnitKeys {
    uint4 key[HEAD_DIM_MAX / 32];
    unsigned short scales[2], value_scale;
};

// Starts all loads from the cache. What the position itself has there is replaced later.
DEVICE void load_byte_unit(const Step& s, const Unit& u, const ByteUnitArea& area, int layer, ByteUnitKeys& keys) {
    const ByteLayout layout(s.head_dim);
    const int head = layer * s.kv_heads + u.kv_head, place = threadIdx.x % SPLIT;
    if (warp_id() * 16 < u.seen) {
        unsigned char* block = layout.block(s, u.table[warp_id() / 2], head);
        const uint4* from = (const uint4*)block + warp_id() % 2 * layout.key_tiles * 32 + lane_id();
#pragma unroll
        for (int c = 0; c < HEAD_DIM_MAX / 32; c++) {
            if (c < layout.key_tiles) keys.key[c] = from[c * 32];
        }
#pragma unroll
        for (int i = 0; i < 2; i++) keys.scales[i] = *layout.scale(block, false, warp_id() % 2 * 16 + lane_id() / 4 + 8 * i);
    }
    if (place < u.seen) keys.value_scale = *layout.scale(layout.block(s, u.table[place / KV_BLOCK], head), true, place % KV_BLOCK);
    const int tiles = layout.value_tiles * ((u.seen + KV_BLOCK - 1) / KV_BLOCK);
#pragma unroll 1
    for (int i = warp_id(); i < tiles; i += WARPS) {
        const int b = i / layout.value_tiles;
        const unsigned char* from = layout.block(s, u.table[b], head) + layout.key_bytes() + (i - b * layout.value_tiles) * 512;
        copy_async(area.values + i * 32 + lane_id(), from + lane_id() * 16);
    }
    copy_commit();
}

// A head of the unit, or the position's own key or value, by a warp: a lane has two pairs of values that rotate with each other. All that it needs
// besides is there before it looks for them.
DEVICE void project_bytes(const Step& s, const Unit& u, const ByteUnitArea& area, unsigned tag, unsigned char* own_block) {
    const ByteLayout layout(s.head_dim);
    const int dim = s.head_dim, part = warp_id(), own = part - BYTE_HEADS, slot = u.position % KV_BLOCK;
    if (part >= BYTE_HEADS + (u.last ? 2 : 0)) return;
    const int head = own < 0 ? u.first_head + part : s.heads + u.kv_head + own * s.kv_heads;
    const bool there = own >= 0 || part < s.unit_heads;
    const float* turn = s.rope + (long long)u.position * 2 * s.rope_half;
    const unsigned long long* row = (const unsigned long long*)s.qkv + head * dim;
    int d[4];
    float cos[2] = {1.0f, 1.0f}, sin[2] = {}, x[4] = {}, most = 0.0f;
    bool turns[2], in[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const int pair = lane_id() + 32 * j;
        const bool apart = pair < s.rope_half && !s.rope_pairs;
        in[j] = there && pair < dim / 2;
        turns[j] = pair < s.rope_half && own <= 0;
        d[2 * j] = apart ? pair : 2 * pair;
        d[2 * j + 1] = apart ? pair + s.rope_half : 2 * pair + 1;
        if (turns[j] && in[j]) {
            cos[j] = turn[pair];
            sin[j] = turn[s.rope_half + pair];
        }
    }
    unsigned long long words[4] = {};
    for (bool all = false; !all;) {
        all = true;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (in[j / 2]) words[j] = load_tagged(row + d[j]);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) all &= !in[j / 2] || (unsigned)(words[j] >> 32) == tag;
        if (!all) pause();
    }
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const float a = float_of_bits((unsigned)words[2 * j]), b = float_of_bits((unsigned)words[2 * j + 1]);
        x[2 * j] = turns[j] ? fused(a, cos[j], -b * sin[j]) : a;
        x[2 * j + 1] = turns[j] ? fused(a, sin[j], b * cos[j]) : b;
        most = fmaxf(most, fmaxf(fabsf(x[2 * j]), fabsf(x[2 * j + 1])));
    }
    most = float_of_bits(warp_max(bits_of_float(most)));
    if (own < 0) {
        const float inverse = whole_inverse(most);
        if (lane_id() == 0) area.factors[part] = whole_step(most) * s.score_scale;
        // Those past the last dimension, too, and all of a head that is not there.
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int at = there && !in[j / 2] ? 2 * (lane_id() + 32 * (j / 2)) + j % 2 : d[j], q = whole(x[j] * inverse);
            unsigned char* to = (unsigned char*)(area.queries + (at / 32 * BYTE_HEADS + part) * 4 + at % 16 / 4) + at % 32 / 16 * 4 + at % 4;
            if (at >= layout.key_tiles * 32) continue;
            to[0] = (unsigned char)(q >> 8);
            to[8] = (unsigned char)q;
        }
        return;
    }
    const ByteScale scale(most);
    if (lane_id() == 0) {
        area.scales[own] = scale.half;
        if (u.writes) *layout.scale(own_block, own == 1, slot) = scale.half;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (!in[j / 2]) continue;
        const unsigned char byte = (unsigned char)scale.byte(x[j]);
        area.own[own * HEAD_DIM_MAX + d[j]] = byte;
        if (u.writes) own_block[own ? layout.value_place(slot, d[j]) : layout.key_place(slot, d[j])] = byte;
    }
}

// Scores of the warp's positions with all heads.
DEVICE void score_byte_unit(const Step& s, const Unit& u, const ByteUnitArea& area, ByteUnitKeys& keys) {
    const int tiles = ByteLayout(s.head_dim).key_tiles, first = warp_id() * 16, row = lane_id() / 4;
    if (first >= u.seen) return;
    const int own = u.last ? u.seen - 1 - first : -1;
    const bool has_own = own >= 0 && own < 16 && own % 8 == row;
    WholeSums sums;
    sums.clear();
#pragma unroll
    for (int c = 0; c < HEAD_DIM_MAX / 32; c++) {
        if (c >= tiles) break;
        if (has_own) {
            const unsigned* words = (const unsigned*)(area.own + c * 32) + lane_id() % 4;
            uint4& k = keys.key[c];
            if (own < 8) {
                k.x = words[0];
                k.z = words[4];
            } else {
                k.y = words[0];
                k.w = words[4];
            }
        }
        sums.add(keys.key[c], four_columns(area.queries + c * BYTE_HEADS * 4));
    }
    const int column = lane_id() % 4 * 2;
    if (column >= BYTE_HEADS) return;
    const float2 factor = *(const float2*)(area.factors + column);
    float* to = area.scores + column * SPLIT + first + row;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float scale = float_of_one(row + 8 * i == own ? area.scales[0] : keys.scales[i]);
        to[8 * i] = sums.of(2 * i) * scale * factor.x;
        to[8 * i + SPLIT] = sums.of(2 * i + 1) * scale * factor.y;
    }
}

DEVICE float greatest_of_split(const float* parts) {
    float greatest = parts[0];
#pragma unroll
    for (int k = 1; k < SPLIT / 32; k++) greatest = fmaxf(greatest, parts[k]);
    return greatest;
}

// Scores become weights, and these, times the values' scales, columns' bytes. Each half of the threads takes every other head.
DEVICE void soften_byte_unit(const Step& s, const Unit& u, const ByteUnitArea& area, const ByteUnitKeys& keys) {
    const int place = threadIdx.x % SPLIT, half = threadIdx.x / SPLIT;
    const bool seen = place < u.seen;
    float score[BYTE_HEADS / 2], scaled[BYTE_HEADS / 2];
#pragma unroll
    for (int i = 0; i < BYTE_HEADS / 2; i++) {
        const int h = 2 * i + half;
        if (h >= s.unit_heads) break;
        score[i] = seen ? area.scores[h * SPLIT + place] : -INFINITE;
        const float greatest = unordered(warp_max(ordered(score[i])));
        if (lane_id() == 0) area.greatest[h * (SPLIT / 32) + place / 32] = greatest;
    }
    __syncthreads();
    float scale = 0.0f;
    if (seen) scale = float_of_one(u.last && place == u.seen - 1 ? area.scales[1] : keys.value_scale);
#pragma unroll
    for (int i = 0; i < BYTE_HEADS / 2; i++) {
        const int h = 2 * i + half;
        if (h >= s.unit_heads) break;
        const float weight = seen ? exp_exact(score[i] - greatest_of_split(area.greatest + h * (SPLIT / 32))) : 0.0f;
        area.scores[h * SPLIT + place] = weight;
        scaled[i] = weight * scale;
        const unsigned most = warp_max(bits_of_float(fmaxf(scaled[i], 0.0f)));
        if (lane_id() == 0) area.most[h * (SPLIT / 32) + place / 32] = float_of_bits(most);
    }
    __syncthreads();
    if (place / KV_BLOCK * KV_BLOCK >= u.seen) return;
    unsigned char* to = (unsigned char*)(area.mixing + place / KV_BLOCK * BYTE_HEADS * 4 + place % 16 / 4) + place % KV_BLOCK / 16 * 4 + place % 4;
#pragma unroll
    for (int i = 0; i < BYTE_HEADS / 2; i++) {
        const int h = 2 * i + half;
        if (h >= s.unit_heads) break;
        const int w = whole(scaled[i] * whole_inverse(greatest_of_split(area.most + h * (SPLIT / 32))));
        to[h * 64] = (unsigned char)(w >> 8);
        to[h * 64 + 8] = (unsigned char)w;
    }
}

// The rest of a unit whose loads are under way.
DEVICE void attend_byte_unit(const Step& s, const Unit& u, const ByteUnitArea& area, int layer, ByteUnitKeys& keys, const UnitSource<true>& source) {
    const ByteLayout layout(s.head_dim);
    const int dim = s.head_dim, tile = warp_id() % VALUE_WARPS, later = warp_id() / VALUE_WARPS;
    const int own = u.last ? u.table[u.position % SPLIT / KV_BLOCK] : 0;
    project_bytes(s, u, area, source.tag, layout.block(s, own, layer * s.kv_heads + u.kv_head));
    __syncthreads();
    score_byte_unit(s, u, area, keys);
    copy_wait<0>();
    __syncthreads();
    if (u.last && (int)threadIdx.x < dim) {
        const int place = u.seen - 1;
        unsigned char* to = (unsigned char*)(area.values + place / KV_BLOCK * layout.value_tiles * 32);
        to[layout.value_place(place % KV_BLOCK, threadIdx.x) - layout.key_bytes()] = area.own[HEAD_DIM_MAX + threadIdx.x];
    }
    soften_byte_unit(s, u, area, keys);
    __syncthreads();
    float* partial = s.partial + ((long long)u.row * s.heads + u.first_head) * s.splits_max * (dim + 2);
    partial += u.split * (dim + 2);
    WholeSums sums;
    sums.clear();
    if (tile < layout.value_tiles) {
        const uint4* values = area.values + tile * 32 + lane_id();
#pragma unroll
        for (int b = 0; b < SPLIT_BLOCKS / 2; b++) {
            const int at = 2 * b + later;
            if (at * KV_BLOCK >= u.seen) break;
            sums.add(values[at * layout.value_tiles * 32], four_columns(area.mixing + at * BYTE_HEADS * 4));
        }
    }
    int4* place = (int4*)area.later + tile * 32 + lane_id();
    if (later) *place = int4{sums.whole(0), sums.whole(1), sums.whole(2), sums.whole(3)};
    const int summed = WARPS - 1 - warp_id();
    if (summed < s.unit_heads) {
        const float total = sum_weights(area.scores + summed * SPLIT);
        if (lane_id() == 0) {
            area.sums[summed] = total;
            if (u.splits > 1) {
                float* at = partial + (long long)summed * s.splits_max * (dim + 2) + dim;
                at[0] = greatest_of_split(area.greatest + summed * (SPLIT / 32));
                at[1] = total;
            }
        }
    }
    __syncthreads();
    if (!later) {
        const int4 more = *place;
        const int all[4] = {sums.whole(0) + more.x, sums.whole(1) + more.y, sums.whole(2) + more.z, sums.whole(3) + more.w};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int h = lane_id() % 4 * 2 + j;
            if (h >= s.unit_heads) break;
            const float step = whole_step(greatest_of_split(area.most + h * (SPLIT / 32)));
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int d = tile * 16 + lane_id() / 4 + 8 * i;
                if (d >= dim) break;
                const float value = (float)all[2 * i + j] * step;
                if (u.splits == 1) {
                    source.put(s, ((long long)u.row * s.heads + u.first_head + h) * dim + d, value / area.sums[h]);
                } else {
                    partial[(long long)h * s.splits_max * (dim + 2) + d] = value;
                }
            }
        }
    }
    merge_splits<THREADS>(s, u, area.merges, source);
    __syncthreads();
}

// All units of the step, one after another in each block.
DEVICE void attend_byte_units(const Step& s, int layer, unsigned char* work, const FirstUnit* first, unsigned tag) {
    ByteUnitArea area;
    area.place(work, ByteLayout(s.head_dim));
    const int units = count_units(s);
#pragma unroll 1
    for (int i = blockIdx.x; i < units; i += gridDim.x) {
        const bool begun = i == (int)blockIdx.x;
        if (begun && !first->exists) continue;
        const Unit u = begun ? first->unit : find_unit(s, i);
        if (u.split >= u.splits) continue;
        ByteUnitKeys keys = {};
        load_byte_unit(s, u, area, layer, keys);
        attend_byte_unit(s, u, area, layer, keys, UnitSource<true>{tag});
    }
}
