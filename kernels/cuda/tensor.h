// Attention of prompts on tensor cores, not with the CPU's bits: F16 queries, keys and values as everywhere, scores and sums in
// floats, weights rounded to F16 and divided by the sum of what they were rounded to. A block for TENSOR_PAIRS pairs of a row and a
// query head of one kv head, and a split of TENSOR_SPLIT positions, of which the last to come merges all.
//
// What a pair gets depends on nothing but its own row: keys come in tiles at multiples of TENSOR_KEYS, splits at multiples of
// TENSOR_SPLIT, and those that a pair does not see add nothing to its sums. Only a value that is no number, or infinite, may reach
// rows before it, of the same prompt and tile.
#pragma once

#include "prompt.h"

enum {
    TENSOR_WARPS = TENSOR_PAIRS / 16, // 16 pairs each
    TENSOR_THREADS = TENSOR_WARPS * 32,
    TENSOR_KEYS = 2 * KV_BLOCK, // of a stage
    TENSOR_STEPS = HEAD_DIM_MAX / 16,
    TENSOR_EIGHTS = HEAD_DIM_MAX / 8,
};

static_assert(TENSOR_SPLIT == 32 * KV_BLOCK, "a lane for each cache block of a split");

// Shared memory of a block, as offsets: two stages of keys and values, then what is known of the pairs.
template <int DIM> struct TensorArea {
    enum { WARPS = TENSOR_WARPS, PAIRS = TENSOR_PAIRS, LENGTH = TENSOR_SPLIT };
    int dim;
    int *ends, *places, *notes;

    DEVICE void place(const Step& s) {
        dim = s.head_dim;
        ends = (int*)(shared_arena() + keys(2));
        places = ends + PAIRS;
        notes = places + PAIRS;
    }
    // Bytes of a cache block's keys, dimensions rounded up to 16, and of a position's values.
    DEVICE int key_bytes() const { return ((DIM ? DIM : dim) + 15) / 16 * 16 * 2 * KV_BLOCK; }
    DEVICE int pitch() const { return (DIM ? DIM : dim) <= 64 ? 128 : 256; }
    DEVICE int keys(int stage) const { return stage * (2 * key_bytes() + TENSOR_KEYS * pitch()); }
    DEVICE int values(int stage) const { return keys(stage) + 2 * key_bytes(); }
    DEVICE static float4 divided(const float4& v, float sum) {
        const float inverse = 1.0f / sum;
        return float4{v.x * inverse, v.y * inverse, v.z * inverse, v.w * inverse};
    }
};

// Starts the loads of 64 positions from cache block `b` of the split on; those from `seen` on are zeros. Eight dimensions c of a
// position's values are in place c ^ position % 8, so that eight positions of them are in different banks.
template <int DIM> DEVICE void load_tile(const Step& s, const TensorArea<DIM>& area, const TileCache& cache, int b, int seen) {
    enum { ROUNDS = TENSOR_EIGHTS * KV_BLOCK / TENSOR_THREADS };
    static_assert(TENSOR_THREADS % (8 * TENSOR_EIGHTS) == 0, "a thread has the same eight dimensions of all its positions");
    const unsigned eights = (DIM ? DIM : s.head_dim) / 8, tid = threadIdx.x;
    unsigned char* keys = shared_arena() + area.keys(b / 2 % 2);
    unsigned char* values = shared_arena() + area.values(b / 2 % 2);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int there = seen - (b + h) * KV_BLOCK;
        const unsigned short* from = cache.block(s, there > 0 ? b + h : b) + tid * 8;
#pragma unroll
        for (unsigned j = 0; j < ROUNDS; j++) {
            const unsigned i = tid + j * TENSOR_THREADS;
            if (!DIM && i >= eights * KV_BLOCK) break;
            const unsigned position = DIM ? tid / eights + j * (TENSOR_THREADS / TENSOR_EIGHTS) : i / eights;
            const unsigned c = DIM ? tid % eights : i - position * eights, turned = (c ^ (DIM ? tid / eights : position) % 8) * 16;
            if (there > 0) copy_async_kept(keys + tid * 16 + h * area.key_bytes() + j * (TENSOR_THREADS * 16), from + j * (TENSOR_THREADS * 8));
            copy_async_or_zero(values + (h * KV_BLOCK + position) * area.pitch() + turned,
                               from + (KV_BLOCK * eights + j * TENSOR_THREADS) * 8, (int)position < there);
        }
    }
    copy_commit();
}

// What a warp keeps of its 16 pairs; a lane has rows g and g + 8 of all products, two columns 2 t of each eight.
template <int DIM> struct TensorPairs {
    unsigned queries[TENSOR_STEPS][4];
    float out[TENSOR_EIGHTS][4]; // weighted values
    float sum[4];                // of the weights, in each column
    float most[2];               // what weights are relative to: no score is greater by more than 2^LAG

    enum { LAG = 8 };

    DEVICE static int dim(const Step& s) { return DIM ? DIM : s.head_dim; }

    DEVICE void open(const Step& s, const TensorArea<DIM>& area) {
        const int first = warp_id() * 16, g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int pair = first + g + 8 * h;
            most[h] = -INFINITE;
            const unsigned short* from = s.queries + (long long)area.places[pair] * dim(s) + 2 * t;
#pragma unroll
            for (int k = 0; k < 2 * TENSOR_STEPS; k++) {
                queries[k / 2][k % 2 * 2 + h] = k * 8 < dim(s) ? *(const unsigned*)(from + k * 8) : 0;
            }
        }
#pragma unroll
        for (int i = 0; i < TENSOR_EIGHTS * 4; i++) out[i / 4][i % 4] = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = 0.0f;
    }
    // Scores with the keys of a tile, yet without their scale.
    DEVICE void score(const Step& s, const TensorArea<DIM>& area, int tile, float (&score)[8][4]) const {
        const int lane = lane_id(), keys = area.keys(tile % 2) + lane / 8 % 2 * 512 + lane / 16 * 128 + lane % 8 * 16;
#pragma unroll
        for (int i = 0; i < 32; i++) score[i / 4][i % 4] = 0.0f;
#pragma unroll
        for (int k = 0; k < TENSOR_STEPS; k++) {
            if (k * 16 >= dim(s)) break;
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                unsigned b[4];
                load_matrices(b, keys + n / 4 * area.key_bytes() + k * 1024 + n % 4 * 128);
                mma_halves(score[n], queries[k], b[0], b[1]);
                mma_halves(score[n + 1], queries[k], b[2], b[3]);
            }
        }
    }
    // Scores of positions from `first` on that their pair does not see.
    DEVICE static void mask(const TensorArea<DIM>& area, int first, float (&score)[8][4]) {
        const int* ends = area.ends + warp_id() * 16 + lane_id() / 4;
        const int of = first + lane_id() % 4 * 2, left[2] = {ends[0] - of, ends[8] - of};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            if (i / 4 * 8 + i % 2 >= left[i / 2 % 2]) score[i / 4][i % 4] = -INFINITE;
        }
    }
    // Scores become weights 2^((score - most) factor), as the next product takes them.
    DEVICE void soften(float factor, float (&score)[8][4], unsigned (&weights)[4][4]) {
        float top[2] = {-INFINITE, -INFINITE}, keep[2], shift[2];
#pragma unroll
        for (int i = 0; i < 32; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], score[i / 4][i % 4]);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[h] = fmaxf(top[h], shuffle_xor(top[h], 1));
            top[h] = fmaxf(top[h], shuffle_xor(top[h], 2));
            const bool grows = (top[h] - most[h]) * factor > (float)LAG;
            keep[h] = grows ? power_of_two((most[h] - top[h]) * factor) : 1.0f;
            if (grows) most[h] = top[h];
            // Of a row that has seen nothing yet, all weights are zero.
            shift[h] = most[h] == -INFINITE ? 0.0f : -most[h] * factor;
        }
        if (warp_ballot(keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
            for (int i = 0; i < TENSOR_EIGHTS * 4; i++) out[i / 4][i % 4] *= keep[i / 2 % 2];
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] *= keep[i / 2];
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int n = i / 2, h = i % 2;
            weights[n / 2][n % 2 * 2 + h] = halves_of_floats(power_of_two(fused(score[n][2 * h], factor, shift[h])),
                                                             power_of_two(fused(score[n][2 * h + 1], factor, shift[h])));
        }
    }
    DEVICE void mix(const Step& s, const TensorArea<DIM>& area, int tile, const unsigned (&weights)[4][4]) {
        const unsigned ones = 0x3c003c00u;
        const int lane = lane_id(), row = lane % 16, values = area.values(tile % 2) + row * area.pitch() + (lane / 16 ^ row % 8) * 16;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            mma_halves(sum, weights[k], ones, ones);
#pragma unroll
            for (int n = 0; n < TENSOR_EIGHTS; n += 2) {
                if (n * 8 >= dim(s)) break;
                unsigned b[4];
                load_transposed(b, (values ^ n * 16) + k * 16 * area.pitch());
                mma_halves(out[n], weights[k], b[0], b[1]);
                if (n * 8 + 8 < dim(s)) mma_halves(out[n + 1], weights[k], b[2], b[3]);
            }
        }
    }
    // Results of the only split, or what is to be merged.
    DEVICE void leave(const Step& s, const TensorArea<DIM>& area, int pairs, int split, bool only) const {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int pair = warp_id() * 16 + lane_id() / 4 + 8 * h, d = lane_id() % 4 * 2;
            if (pair >= pairs) break;
            const int place = area.places[pair];
            const float all = sum[2 * h], inverse = only ? 1.0f / all : 1.0f;
            float* to = (only ? s.attention + (long long)place * dim(s) : partial_values(s, place, split)) + d;
#pragma unroll
            for (int n = 0; n < TENSOR_EIGHTS; n++) {
                if (n * 8 >= dim(s)) break;
                *(float2*)(to + n * 8) = float2{out[n][2 * h] * inverse, out[n][2 * h + 1] * inverse};
            }
            if (!only && d == 0) *(float2*)partial_state(s, place, split) = float2{most[h] * s.score_scale, all};
        }
    }
};

// A block for each tile and kv head; a tile has one split.
template <int DIM> DEVICE void attend_tensor_tile(const Step& s, int layer) {
    const int kv_head = (int)blockIdx.x % s.kv_heads, tid = threadIdx.x, dim = DIM ? DIM : s.head_dim;
    const int4 tile = ((const int4*)s.prompt_tiles)[(int)blockIdx.x / s.kv_heads];
    const int first_row = tile.x, rows = tile.y, split = tile.z, first_position = tile.w, pairs = rows * s.group;
    const int start = split * TENSOR_SPLIT, seen = min(first_position + rows - start, (int)TENSOR_SPLIT);
    TileCache cache;
    const int entry = min(start / KV_BLOCK + lane_id(), s.table_stride - 1);
    cache.entry = s.block_table[(long long)s.sequences[first_row] * s.table_stride + entry];
    cache.head = layer * s.kv_heads + kv_head;
    TensorArea<DIM> area;
    area.place(s);
    load_tile<DIM>(s, area, cache, 0, seen);
    // Pairs past the last are copies of it whose results are dropped.
    if (tid < TENSOR_PAIRS) {
        const int p = min(tid, pairs - 1), row = p / s.group;
        area.places[tid] = (first_row + row) * s.heads + kv_head * s.group + p - row * s.group;
        area.ends[tid] = first_position + row + 1;
    }
    // Dimensions that fill up the last 16.
    for (int i = tid; dim % 16 != 0 && i < 4 * KV_BLOCK; i += TENSOR_THREADS) {
        const int at = area.keys(i / (2 * KV_BLOCK)) + i / KV_BLOCK % 2 * area.key_bytes() + (dim / 8 * KV_BLOCK + i % KV_BLOCK) * 16;
        *(uint4*)(shared_arena() + at) = uint4{0, 0, 0, 0};
    }
    __syncthreads();
    TensorPairs<DIM> own;
    own.open(s, area);
    const float factor = s.score_scale * 1.44269504088896340736f;
#pragma unroll 1
    for (int i = 0; i * TENSOR_KEYS < seen; i++) {
        copy_wait<0>();
        // All have done with the tile before, whose place the next one takes.
        __syncthreads();
        if ((i + 1) * TENSOR_KEYS < seen) load_tile<DIM>(s, area, cache, 2 * i + 2, seen);
        // The first pair of the warp sees least, the last one most.
        const int first = start + i * TENSOR_KEYS, *ends = area.ends + warp_id() * 16;
        if (first >= ends[15]) continue;
        float score[8][4];
        unsigned weights[4][4];
        own.score(s, area, i, score);
        if (first + TENSOR_KEYS > ends[0]) own.mask(area, first, score);
        own.soften(factor, score, weights);
        own.mix(s, area, i, weights);
    }
    const bool only = first_position + rows <= TENSOR_SPLIT;
    own.leave(s, area, pairs, split, only);
    if (!only && arrive_last(s, area)) merge_tile(s, area, pairs);
}
