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
    LANE_PAIRS = PROMPT_PAIRS / 8, // of a lane with its g and x: 8 i + g
    WEIGHT_STRIDE = SPLIT + 4,     // against bank conflicts
    WIDE_DIMS = 8,                 // of a cache block's keys, a lane 8 x .. + 8
    WIDE_POSITIONS = 16,           // of 16 dimensions, a lane 4 x .. + 4
    WIDE_FLOATS = 256,
};

static_assert(PROMPT_WARPS * KV_BLOCK == SPLIT && WIDE_DIMS * KV_BLOCK == WIDE_FLOATS && WIDE_POSITIONS * 16 == WIDE_FLOATS,
              "keys and values take the same room");

// A lane's place among 8 x 4. Loads of 16 bytes take half as long where every other lane, or every other two, have the same
// address: g is what lanes 2 n and 2 n + 1 share, x what lanes 4 n and 4 n + 2 share.
DEVICE int lane_pair() { return lane_id() / 2 % 8; }
DEVICE int lane_column() { return lane_id() % 2 * 2 + lane_id() / 16; }

// Shared memory of a block.
struct TileArea {
    enum { WARPS = PROMPT_WARPS, PAIRS = PROMPT_PAIRS, LENGTH = SPLIT };
    float* queries; // [head_dim][32 (i / 4) + 4 g + i % 4]
    float* weights; // [pair][WEIGHT_STRIDE]: scores of a split, then weights
    float* wide;    // of the warp
    float* states;  // [pair][2]: greatest score, sum of weights
    int* ends;      // [pair]: positions that it sees
    int* places;    // [pair]: row * heads + head
    int* notes;     // whether the block merges, the tile's pairs and splits
    float* zeros;   // [4]

    DEVICE void place(unsigned char* arena) {
        weights = (float*)arena;
        wide = weights + PROMPT_PAIRS * WEIGHT_STRIDE + warp_id() * WIDE_FLOATS;
        states = weights + PROMPT_PAIRS * WEIGHT_STRIDE + PROMPT_WARPS * WIDE_FLOATS;
        ends = (int*)(states + 2 * PROMPT_PAIRS);
        places = ends + PROMPT_PAIRS;
        notes = places + PROMPT_PAIRS;
        zeros = (float*)(notes + 4);
        queries = zeros + 4;
    }
    // Positions of a split that a pair sees.
    DEVICE int seen(int pair, int split) const { return min(max(ends[pair] - split * (int)SPLIT, 0), (int)SPLIT); }
    DEVICE int longest(int split) const { return seen(PROMPT_PAIRS - 1, split); }
    DEVICE static float4 divided(const float4& v, float sum) { return float4{v.x / sum, v.y / sum, v.z / sum, v.w / sum}; }
};

// Where a tile's keys and values are.
struct TileCache {
    int entry; // lane b: of the split's cache block b % 8
    int head;  // of layer and kv head

    // By all lanes of a warp.
    DEVICE const unsigned short* block(const Step& s, int b) const {
        return s.kv_pool + (long long)(shuffle(entry, b) * (s.layers * s.kv_heads) + head) * (2 * KV_BLOCK * s.head_dim);
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

// Pairs past the last are copies of it whose results are dropped. A thread has one pair.
DEVICE void load_queries(const Step& s, const TileArea& area, int first_row, int rows, int kv_head, int first_position) {
    enum { STEP = PROMPT_THREADS / PROMPT_PAIRS * 8, AHEAD = HEAD_DIM_MAX / STEP };
    const int dim = s.head_dim, pair = (int)threadIdx.x % PROMPT_PAIRS, first = (int)threadIdx.x / PROMPT_PAIRS * 8, pairs = rows * s.group;
    const int p = min(pair, pairs - 1), row = p / s.group, place = (first_row + row) * s.heads + kv_head * s.group + p - row * s.group;
    const unsigned short* from = s.queries + (long long)place * dim;
    float* to = area.queries + pair / 32 * 32 + pair % 8 * 4 + pair / 8 % 4;
    if (threadIdx.x == 0) *(float4*)area.zeros = float4{0.0f, 0.0f, 0.0f, 0.0f};
    if (first == 0) {
        area.places[pair] = place;
        area.ends[pair] = first_position + row + 1;
        area.notes[1] = pairs;
        area.notes[2] = (first_position + rows - 1) / (int)SPLIT + 1;
    }
#pragma unroll 1
    for (int start = first; start < dim; start += AHEAD * STEP) {
        uint4 halves[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (start + i * STEP < dim) halves[i] = *(const uint4*)(from + start + i * STEP);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (start + i * STEP >= dim) break;
            float x[8];
            widen(x, halves[i]);
#pragma unroll
            for (int j = 0; j < 8; j++) to[(start + i * STEP + j) * PROMPT_PAIRS] = x[j];
        }
    }
}

// Registers are in two banks, even and odd ones, each of which gives one operand a cycle. A product of three is read in one cycle where a factor is that of the
// product before and the other is not in the bank of the sum. Factors come in fours of successive registers by loads of 16 bytes, and so do these sums by
// their zeros, each two of them exchanged: sum 1 in R, sum 0 in R + 1.
DEVICE void clear_four(float* sum, const float* zeros) {
    const float4 zero = load_zeros(zeros);
    sum[1] = zero.x, sum[0] = zero.y, sum[3] = zero.z, sum[2] = zero.w;
}

// Products of one dimension. Each two that follow each other have a factor in common.
DEVICE void add_products(float (&sum)[LANE_PAIRS][8], const float4 (&queries)[LANE_PAIRS / 4], const float4 (&keys)[2]) {
    const float key[8] = {keys[0].x, keys[0].y, keys[0].z, keys[0].w, keys[1].x, keys[1].y, keys[1].z, keys[1].w};
#pragma unroll
    for (int i = 0; i < LANE_PAIRS; i++) {
        const float4& four = queries[i / 4];
        const float query = i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const int k = i % 2 ? 7 - n : n;
            sum[i][k] = fused(query, key[k], sum[i][k]);
        }
    }
}

// Scores of all pairs with cache block b of the split, yet without their scale. `next`: the first eight dimensions of the lane's key.
DEVICE void score_keys(const Step& s, const uint4* keys, uint4 next, const TileArea& area, int b) {
    const int dim = s.head_dim;
    // Computed once.
    int q_place = lane_pair() * 4, k_place = lane_column() * 8;
    settle(q_place);
    settle(k_place);
    float* to = area.wide + lane_id();
    float sum[LANE_PAIRS][8];
#pragma unroll
    for (int i = 0; i < LANE_PAIRS * 2; i++) clear_four(sum[i / 2] + i % 2 * 4, area.zeros);
#pragma unroll 1
    for (int d = 0; d < dim; d += WIDE_DIMS) {
        float k[8];
        widen(k, next);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 8; j++) to[j * KV_BLOCK] = k[j];
        __syncwarp();
        keys += KV_BLOCK;
        // After the keys come values.
        next = *keys;
        const float *q_at = area.queries + q_place + d * PROMPT_PAIRS, *k_at = area.wide + k_place;
#pragma unroll
        for (int j = 0; j < WIDE_DIMS; j++) {
            const float4 keys_of[2] = {*(const float4*)k_at, *(const float4*)(k_at + 4)};
            float4 queries[LANE_PAIRS / 4];
#pragma unroll
            for (int i = 0; i < LANE_PAIRS / 4; i++) queries[i] = *(const float4*)(q_at + i * 32);
            add_products(sum, queries, keys_of);
            k_at += KV_BLOCK;
            q_at += PROMPT_PAIRS;
        }
        if ((d + WIDE_DIMS) % CHAIN != 0 && d + WIDE_DIMS < dim) continue;
        // The end of a chain.
        float* scores = area.weights + lane_pair() * WEIGHT_STRIDE + b * KV_BLOCK + k_place;
#pragma unroll
        for (int i = 0; i < LANE_PAIRS * 2; i++) {
            float4* at = (float4*)(scores + i / 2 * 8 * WEIGHT_STRIDE + i % 2 * 4);
            float* of = sum[i / 2] + i % 2 * 4;
            float4 total = d < CHAIN ? float4{0.0f, 0.0f, 0.0f, 0.0f} : *at;
            *at = float4{total.x + of[0], total.y + of[1], total.z + of[2], total.w + of[3]};
            clear_four(of, area.zeros);
        }
    }
}

// e^x for x up to 0, the bits of exp_exact: times a power of two that is exact, then by one that may round.
DEVICE float exp_of_negative(float x) {
    // The sum's lowest bits are an exponent, of 2^(n + 64).
    const float round = 12582912.0f + 64.0f + 127.0f;
    x = greater_or_nan(x, -104.0f);
    const float shifted = fused(x, 1.44269504088896340736f, round), n = shifted - round;
    const float r = fused(n, 1.9046542e-9f, fused(n, -0.693147180559945309417f, x)), power = float_of_bits(bits_of_float(shifted) << 23);
    float p = 0.0013814538f;
    p = fused(p, r, 0.008368745f);
    p = fused(p, r, 0.04166839f);
    p = fused(p, r, 0.16666521f);
    p = fused(p, r, 0.49999994f);
    // 1 + .., rounded at the same bit.
    return fused(fused(r * r, p, r), power, power) * 5.42101086242752217e-20f;
}

// Scores of two pairs become weights exp(score - greatest), half a warp for each. Position p counts to lane p % 16, in order;
// lanes merge by the tree + 8, + 4, + 2, + 1. WHOLE: all pairs see all of the split.
template <bool WHOLE> DEVICE void soften_pairs(const Step& s, const TileArea& area, int first, int split) {
    const int pair = first + lane_id() / 16 * 4, lane = lane_id() % 16, seen = WHOLE ? (int)SPLIT : area.seen(pair, split);
    float* weights = area.weights + pair * WEIGHT_STRIDE + lane;
    float score[SPLIT / 16], most = -INFINITE, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) {
        score[i] = weights[i * 16] * s.score_scale;
        if (!WHOLE && i * 16 + lane >= seen) score[i] = -INFINITE;
        most = fmaxf(most, score[i]);
    }
    for (int mask = 8; mask > 0; mask >>= 1) most = fmaxf(most, shuffle_xor(most, mask));
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) {
        float weight = exp_of_negative(score[i] - most);
        // All at once, without a branch.
        const unsigned mask = i * 16 + lane < seen ? 0xffffffffu : 0u;
        if (!WHOLE) weight = float_of_bits(bits_of_float(weight) & mask);
        weights[i * 16] = weight;
        sum += weight;
    }
    for (int mask = 8; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    if (lane == 0) {
        area.states[2 * pair] = most;
        area.states[2 * pair + 1] = sum;
    }
}

// Weighted values of four positions. In turn of positions, each two products that follow each other have a value or a weight in common, and what is new
// of a weight is in the other bank than its sum.
DEVICE void add_values(float (&sum)[LANE_PAIRS][4], const float4 (&weights)[LANE_PAIRS], const float4 (&values)[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float value[4] = {values[j].y, values[j].x, values[j].w, values[j].z};
#pragma unroll
        for (int i = 0; i < LANE_PAIRS; i++) {
            const float weight = j == 0 ? weights[i].x : j == 1 ? weights[i].y : j == 2 ? weights[i].z : weights[i].w;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                // 1 0 2 3 and 3 2 0 1, 0 1 3 2 and 2 3 1 0.
                const int turn = i % 2 ? 3 - n : n, k = (turn ^ turn / 2) ^ (j + 1) % 2;
                sum[i][k] = fused(weight, value[k], sum[i][k]);
            }
        }
    }
}

// A lane's half of a position's 16 dimensions, step by step of so many positions.
struct LaneValues {
    const unsigned short* at;
    int place;
    bool there;
    uint4 next;

    // From dimension `first` on. By all lanes of a warp, as advance().
    DEVICE void open(const Step& s, const TileCache& cache, int first) {
        const int half = first + lane_id() % 2 * 8;
        place = (KV_BLOCK + lane_id() / 2) * s.head_dim + half;
        there = half < s.head_dim;
        next = uint4{0, 0, 0, 0};
        load(cache.block(s, 0) + place);
    }
    DEVICE void advance(const Step& s, const TileCache& cache, int start) {
        if (start % KV_BLOCK == 0) {
            load(cache.block(s, start / KV_BLOCK) + place);
        } else {
            load(at + WIDE_POSITIONS * s.head_dim);
        }
    }
    DEVICE void load(const unsigned short* from) {
        at = from;
        if (there) next = *(const uint4*)at;
    }
};

// Weighted values of the split, 16 dimensions of them, in the order of positions.
DEVICE void mix_values(const Step& s, const TileCache& cache, LaneValues& values, const TileArea& area, int split,
                       float (&sum)[LANE_PAIRS][4]) {
    const int common = area.seen(0, split), longest = area.longest(split);
    // Computed once.
    int v_place = lane_column() * 4, w_place = lane_pair() * WEIGHT_STRIDE;
    settle(v_place);
    settle(w_place);
    float* to = area.wide + lane_id() * 8;
    const float *v_at = area.wide + v_place, *w_at = area.weights + w_place;
#pragma unroll 1
    for (int start = 0; start < longest; start += WIDE_POSITIONS) {
        float v[8];
        widen(v, values.next);
        __syncwarp();
        ((float4*)to)[0] = float4{v[1], v[0], v[3], v[2]};
        ((float4*)to)[1] = float4{v[5], v[4], v[7], v[6]};
        __syncwarp();
        if (start + WIDE_POSITIONS < longest) values.advance(s, cache, start + WIDE_POSITIONS);
        if (start + WIDE_POSITIONS <= common) {
            const float* v_now = v_at;
#pragma unroll
            for (int p = 0; p < WIDE_POSITIONS; p += 4) {
                float4 value[4], weights[LANE_PAIRS];
#pragma unroll
                for (int j = 0; j < 4; j++) value[j] = *(const float4*)(v_now + j * 16);
#pragma unroll
                for (int i = 0; i < LANE_PAIRS; i++) weights[i] = *(const float4*)(w_at + i * 8 * WEIGHT_STRIDE);
                add_values(sum, weights, value);
                v_now += 4 * 16;
                w_at += 4;
            }
            continue;
        }
        // What a pair does not see never enters its sum.
#pragma unroll 1
        for (int p = 0; p < min(longest - start, (int)WIDE_POSITIONS); p++) {
            const float4 value = *(const float4*)(v_at + p * 16);
#pragma unroll
            for (int i = 0; i < LANE_PAIRS; i++) {
                if (split * (int)SPLIT + start + p < area.ends[8 * i + lane_pair()]) {
                    const float weight = w_at[i * 8 * WEIGHT_STRIDE + p];
                    sum[i][0] = fused(weight, value.y, sum[i][0]);
                    sum[i][1] = fused(weight, value.x, sum[i][1]);
                    sum[i][2] = fused(weight, value.w, sum[i][2]);
                    sum[i][3] = fused(weight, value.z, sum[i][3]);
                }
            }
        }
        w_at += WIDE_POSITIONS;
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
    const int g = lane_pair(), d = first + lane_column() * 4;
    if (d >= s.head_dim) return;
#pragma unroll
    for (int i = 0; i < LANE_PAIRS; i++) {
        const int pair = 8 * i + g;
        if (pair >= pairs) break;
        const int place = area.places[pair];
        if (only) {
            const float all = area.states[2 * pair + 1];
            float* to = s.attention + (long long)place * s.head_dim;
            *(float4*)(to + d) = float4{sum[i][0] / all, sum[i][1] / all, sum[i][2] / all, sum[i][3] / all};
        } else {
            *(float4*)(partial_values(s, place, split) + d) = float4{sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
        }
    }
}

// All splits of a tile, in order, a warp for each MERGED pairs.
template <class Area> DEVICE void merge_tile(const Step& s, const Area& area, int pairs) {
    enum { MERGED = 4, AHEAD = 2 };
    const int dim = s.head_dim, groups = (pairs + MERGED - 1) / MERGED;
#pragma unroll 1
    for (int i = warp_id(); i < groups * ((dim + 127) / 128); i += Area::WARPS) {
        const int d = i / groups * 128 + 4 * lane_id();
        if (d >= dim) continue;
        int place[MERGED], splits[MERGED];
        float greatest[MERGED], sum[MERGED];
        float4 out[MERGED];
#pragma unroll
        for (int k = 0; k < MERGED; k++) {
            // Pairs past the last are copies of it.
            const int pair = min(i % groups * MERGED + k, pairs - 1);
            place[k] = area.places[pair];
            splits[k] = (area.ends[pair] - 1) / (int)Area::LENGTH + 1;
        }
#pragma unroll 1
        for (int start = 0; start < splits[MERGED - 1]; start += AHEAD) {
            float4 values[MERGED][AHEAD];
            float2 states[MERGED][AHEAD];
#pragma unroll
            for (int k = 0; k < MERGED * AHEAD; k++) {
                const int split = min(start + k % AHEAD, splits[k / AHEAD] - 1);
                values[k / AHEAD][k % AHEAD] = __ldcg((const float4*)(partial_values(s, place[k / AHEAD], split) + d));
                states[k / AHEAD][k % AHEAD] = __ldcg((const float2*)partial_state(s, place[k / AHEAD], split));
            }
#pragma unroll
            for (int n = 0; n < MERGED * AHEAD; n++) {
                const int k = n / AHEAD, j = n % AHEAD;
                if (start + j >= splits[k]) continue;
                const float4& value = values[k][j];
                const float next = states[k][j].x;
                if (start + j == 0) {
                    greatest[k] = next;
                    sum[k] = states[k][j].y;
                    out[k] = value;
                    continue;
                }
                // One of both is e^0.
                const bool kept = greatest[k] > next;
                const float less = exp_of_negative(kept ? next - greatest[k] : greatest[k] - next);
                const float keep = kept ? 1.0f : less, add = kept ? less : 1.0f;
                greatest[k] = kept ? greatest[k] : next;
                sum[k] = fused(states[k][j].y, add, sum[k] * keep);
                out[k] = float4{fused(value.x, add, out[k].x * keep), fused(value.y, add, out[k].y * keep),
                                fused(value.z, add, out[k].z * keep), fused(value.w, add, out[k].w * keep)};
            }
        }
#pragma unroll
        for (int k = 0; k < MERGED; k++) *(float4*)(s.attention + (long long)place[k] * dim + d) = Area::divided(out[k], sum[k]);
    }
}

// Says that a split of the tile is done; whether it was the last.
template <class Area> DEVICE bool arrive_last(const Step& s, const Area& area) {
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned* arrived = s.arrived + area.places[0];
        __threadfence();
        const bool last = atomicAdd(arrived, 1u) == (unsigned)(area.ends[Area::PAIRS - 1] - 1) / Area::LENGTH;
        __threadfence();
        if (last) *arrived = 0;
        area.notes[0] = last;
    }
    __syncthreads();
    return area.notes[0];
}

// A block for each tile and kv head; a tile has one split. The host has tiles that see most positions of it first. Where all blocks have
// room at once, two on each of the `most` multiprocessors, the second ones take the shortest tiles first, so that the sums are even.
DEVICE void attend_prompt_tile(const Step& s, int layer, int most) {
    const int blocks = gridDim.x, block = blockIdx.x, index = blocks <= 2 * most && block >= most ? blocks - 1 + most - block : block;
    const int kv_head = index % s.kv_heads, dim = s.head_dim;
    const int4 tile = ((const int4*)s.prompt_tiles)[index / s.kv_heads];
    const int first_row = tile.x, rows = tile.y, split = tile.z, first_position = tile.w, sequence = s.sequences[first_row];
    const int entry = min(split * (SPLIT / KV_BLOCK) + lane_id() % (SPLIT / KV_BLOCK), s.table_stride - 1);
    TileCache cache;
    cache.entry = s.block_table[(long long)sequence * s.table_stride + entry];
    cache.head = layer * s.kv_heads + kv_head;
    TileArea area;
    area.place(shared_arena());
    load_queries(s, area, first_row, rows, kv_head, first_position);
    // Not always the same warps have the keys that no row of the last split sees.
    const int b = (warp_id() + index) % PROMPT_WARPS;
    const bool seen = split * (int)SPLIT + b * KV_BLOCK < first_position + rows;
    const uint4* keys = (const uint4*)cache.block(s, b) + lane_id();
    uint4 next = {0, 0, 0, 0};
    if (seen) next = *keys;
    __syncthreads();
    if (seen) score_keys(s, keys, next, area, b);
    const int first = warp_id() * 16;
    LaneValues values;
    values.open(s, cache, first);
    __syncthreads();
    const bool whole = area.seen(0, split) == SPLIT;
#pragma unroll 1
    for (int i = warp_id(); i < PROMPT_PAIRS / 2; i += PROMPT_WARPS) {
        const int pair = i / 4 * 8 + i % 4;
        if (whole) {
            soften_pairs<true>(s, area, pair, split);
        } else {
            soften_pairs<false>(s, area, pair, split);
        }
    }
    __syncthreads();
    const int pairs = area.notes[1], splits = area.notes[2];
#pragma unroll 1
    for (int d = first; d < dim; d += PROMPT_WARPS * 16) {
        float sum[LANE_PAIRS][4];
#pragma unroll
        for (int i = 0; i < LANE_PAIRS; i++) {
            const float4 zero = load_zeros(area.zeros);
            sum[i][0] = zero.x, sum[i][1] = zero.y, sum[i][2] = zero.z, sum[i][3] = zero.w;
        }
        if (d > first) values.open(s, cache, d);
        mix_values(s, cache, values, area, split, sum);
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
