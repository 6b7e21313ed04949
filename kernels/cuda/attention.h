// Decode attention of grouped queries over a paged F16 cache: RoPE, cache write, one split of 256 positions per unit, merge
// in order. The bits of kernels/src/attention: chains of 32 dimensions, splits at multiples of 256, sums of 16 lanes.
#pragma once

#include "device.h"
#include "plan.h"

enum { CHAIN = 32, HALF_DIMS = 64, SCORE_VECTORS = HALF_DIMS / 8 };

// A split of one sequence for some query heads of one kv head.
struct Unit {
    int row, kv_head, first_head, split, splits, position;
    // Positions of the split that the query sees.
    int seen;
    bool writes, last;
    const int* table; // cache blocks of the split
};

// A block's first unit, the same in all layers: found once a launch, so that its loads wait for nothing.
struct FirstUnit {
    Unit unit;
    int table[SPLIT / KV_BLOCK];
    bool exists;
};

static_assert(sizeof(FirstUnit) <= FIRST_UNIT_BYTES, "a block's first unit fits");

// Shared memory of a unit.
struct UnitArea {
    uint4* values;       // [SPLIT][head_dim] halves
    float* scores;       // [heads][SPLIT]
    float* late;         // [2][heads][SPLIT]: chains 2 and 3
    float* queries;      // [heads][head_dim]
    float* greatest;     // [heads][SPLIT / 32]
    float* sums;         // [heads]
    unsigned short* key; // [head_dim] of the position itself
    unsigned short* value;
    int* merges;

    DEVICE void place(unsigned char* at, int head_dim) {
        values = (uint4*)at;
        scores = (float*)(at + SPLIT * head_dim * 2);
        late = scores + UNIT_HEADS_MAX * SPLIT;
        queries = late + 2 * UNIT_HEADS_MAX * SPLIT;
        greatest = queries + UNIT_HEADS_MAX * head_dim;
        sums = greatest + UNIT_HEADS_MAX * (SPLIT / 32);
        key = (unsigned short*)(sums + UNIT_HEADS_MAX);
        value = key + head_dim;
        merges = (int*)(value + head_dim);
    }
};

DEVICE Unit find_unit(const Step& s, int index) {
    Unit u;
    int parts = s.heads / s.unit_heads, rest = index / s.tokens;
    u.row = index - rest * s.tokens;
    u.position = s.positions[u.row];
    u.split = rest / parts;
    u.first_head = (rest - u.split * parts) * s.unit_heads;
    u.kv_head = u.first_head / s.group;
    u.splits = u.position / SPLIT + 1;
    u.last = u.split == u.splits - 1;
    u.writes = u.last && u.first_head == u.kv_head * s.group;
    u.seen = min(u.position + 1 - u.split * SPLIT, (int)SPLIT);
    u.table = s.block_table + (long long)s.sequences[u.row] * s.table_stride + u.split * (SPLIT / KV_BLOCK);
    return u;
}

DEVICE int count_units(const Step& s) { return s.tokens * (s.heads / s.unit_heads) * s.splits_max; }

// By the first thread.
DEVICE void find_first_unit(const Step& s, FirstUnit* first) {
    first->exists = false;
    if ((int)blockIdx.x >= count_units(s)) return;
    Unit u = find_unit(s, blockIdx.x);
    first->exists = u.split < u.splits;
    if (!first->exists) return;
    for (int i = 0; i <= (u.seen - 1) / KV_BLOCK; i++) first->table[i] = u.table[i];
    u.table = first->table;
    first->unit = u;
}

// Value d of one head at its position: the second products of each sum rounded, the first fused to them.
DEVICE float rotated(const Step& s, const float* head, int position, int d) {
    if (d >= 2 * s.rope_half) return head[d];
    int pair = s.rope_pairs ? d / 2 : d % s.rope_half;
    bool second = s.rope_pairs ? d & 1 : d >= s.rope_half;
    const float* turn = s.rope + (long long)position * 2 * s.rope_half;
    float cos = turn[pair], sin = turn[s.rope_half + pair];
    float a = head[s.rope_pairs ? 2 * pair : pair], b = head[s.rope_pairs ? 2 * pair + 1 : pair + s.rope_half];
    return second ? fused(a, sin, b * cos) : fused(a, cos, -b * sin);
}

DEVICE float float_of_half(unsigned short half) { return floats_of_halves(half).x; }

// Where a unit's rows come from and where results go: plain rows, or step_1's tagged ones. Queries, rounded to F16, and, for the last
// split, the position's own key and value come into shared memory, the latter two into the cache too.
template <bool TAGGED> struct UnitSource {
    unsigned tag; // of the input; the output gets the next

    DEVICE void project(const Step& s, const Unit& u, const UnitArea& area, unsigned short* own_block) const {
        if (TAGGED) {
            project_pairs(s, u, area, own_block);
        } else {
            project_values(s, u, area, own_block);
        }
    }
    DEVICE static void project_values(const Step& s, const Unit& u, const UnitArea& area, unsigned short* own_block) {
        const int dim = s.head_dim, slot = u.position % KV_BLOCK;
        const float* row = s.qkv + (long long)u.row * (s.heads + 2 * s.kv_heads) * dim;
        const float *queries = row + u.first_head * dim, *key = row + (s.heads + u.kv_head) * dim, *value = key + s.kv_heads * dim;
#pragma unroll 1
        for (int i = threadIdx.x; i < (s.unit_heads + (u.last ? 2 : 0)) * dim; i += THREADS) {
            int part = i / dim, d = i - part * dim;
            if (part > s.unit_heads) {
                unsigned short v = half_of_float(value[d]);
                area.value[d] = v;
                if (u.writes) own_block[(KV_BLOCK + slot) * dim + d] = v;
                continue;
            }
            bool query = part < s.unit_heads;
            unsigned short half = half_of_float(rotated(s, query ? queries + part * dim : key, u.position, d));
            if (query) {
                area.queries[i] = float_of_half(half);
            } else {
                area.key[d] = half;
                if (u.writes) own_block[(d / 8 * KV_BLOCK + slot) * 8 + d % 8] = half;
            }
        }
    }
    // A thread takes two values that rotate with each other; all that it needs besides is there before it looks for them.
    DEVICE void project_pairs(const Step& s, const Unit& u, const UnitArea& area, unsigned short* own_block) const {
        const int dim = s.head_dim, half = dim / 2, slot = u.position % KV_BLOCK;
        const float* turn = s.rope + (long long)u.position * 2 * s.rope_half;
#pragma unroll 1
        for (int i = threadIdx.x; i < (s.unit_heads + (u.last ? 2 : 0)) * half; i += THREADS) {
            const int part = i / half, pair = i - part * half;
            const int head = part < s.unit_heads ? u.first_head + part : s.heads + u.kv_head + (part - s.unit_heads) * s.kv_heads;
            const bool apart = pair < s.rope_half && !s.rope_pairs, turns = pair < s.rope_half && part <= s.unit_heads;
            const int first = apart ? pair : 2 * pair, second = apart ? pair + s.rope_half : 2 * pair + 1;
            float cos = 1.0f, sin = 0.0f;
            if (turns) {
                cos = turn[pair];
                sin = turn[s.rope_half + pair];
            }
            const unsigned long long* row = (const unsigned long long*)s.qkv + head * dim;
            unsigned long long x = load_tagged(row + first), y = load_tagged(row + second);
            while ((unsigned)(x >> 32) != tag || (unsigned)(y >> 32) != tag) {
                pause();
                x = load_tagged(row + first);
                y = load_tagged(row + second);
            }
            float a = float_of_bits((unsigned)x), b = float_of_bits((unsigned)y);
            unsigned short low = half_of_float(turns ? fused(a, cos, -b * sin) : a), high = half_of_float(turns ? fused(a, sin, b * cos) : b);
            if (part < s.unit_heads) {
                area.queries[part * dim + first] = float_of_half(low);
                area.queries[part * dim + second] = float_of_half(high);
                continue;
            }
            const bool is_value = part > s.unit_heads;
            unsigned short* to = is_value ? area.value : area.key;
            to[first] = low;
            to[second] = high;
            if (!u.writes) continue;
            own_block[is_value ? (KV_BLOCK + slot) * dim + first : (first / 8 * KV_BLOCK + slot) * 8 + first % 8] = low;
            own_block[is_value ? (KV_BLOCK + slot) * dim + second : (second / 8 * KV_BLOCK + slot) * 8 + second % 8] = high;
        }
    }
    DEVICE void put(const Step& s, long long at, float value) const {
        if (TAGGED) {
            store_tagged((unsigned long long*)s.attention + at, value, tag + 1);
        } else {
            s.attention[at] = value;
        }
    }
};

// Products of one query with 64 dimensions of a key, as two chains.
DEVICE void chains(const uint4 (&key)[SCORE_VECTORS], const float* query, int dims, float (&out)[2]) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float sum = 0.0f;
#pragma unroll
        for (int v = 0; v < CHAIN / 8; v++) {
            int d = c * CHAIN + v * 8;
            if (d >= dims) break;
            const uint4& k = key[c * (CHAIN / 8) + v];
            float4 low = *(const float4*)(query + d), high = *(const float4*)(query + d + 4);
            float2 a = floats_of_halves(k.x), b = floats_of_halves(k.y);
            sum = fused(low.w, b.y, fused(low.z, b.x, fused(low.y, a.y, fused(low.x, a.x, sum))));
            a = floats_of_halves(k.z);
            b = floats_of_halves(k.w);
            sum = fused(high.w, b.y, fused(high.z, b.x, fused(high.y, a.y, fused(high.x, a.x, sum))));
        }
        out[c] = sum;
    }
}

// Scores of the split: thread halves take the dimensions below and from 64, for one position each.
DEVICE void score(const Step& s, const Unit& u, const UnitArea& area, uint4 (&key)[SCORE_VECTORS]) {
    int place = threadIdx.x % SPLIT, first = (int)threadIdx.x / SPLIT * HALF_DIMS, dims = s.head_dim - first;
    if (u.last && place == u.seen - 1) {
        for (int v = 0; v < SCORE_VECTORS; v++) {
            if (v * 8 < dims) key[v] = *(const uint4*)(area.key + first + v * 8);
        }
    }
    if (place < u.seen && dims > 0) {
#pragma unroll 1
        for (int h = 0; h < s.unit_heads; h++) {
            float out[2];
            chains(key, area.queries + h * s.head_dim + first, dims, out);
            if (first == 0) {
                out[0] = 0.0f + out[0];
                area.scores[h * SPLIT + place] = dims > CHAIN ? out[0] + out[1] : out[0];
            } else {
                area.late[h * SPLIT + place] = out[0];
                area.late[(UNIT_HEADS_MAX + h) * SPLIT + place] = out[1];
            }
        }
    }
    __syncthreads();
}

// A float's place in the order of unsigned integers.
DEVICE unsigned ordered(float x) {
    unsigned bits = bits_of_float(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float unordered(unsigned key) { return float_of_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// The chains become scores, then weights exp(score - greatest). Each half of the threads takes every other head.
DEVICE void soften(const Step& s, const Unit& u, const UnitArea& area) {
    const int place = threadIdx.x % SPLIT, half = threadIdx.x / SPLIT;
    float score[UNIT_HEADS_MAX / 2];
#pragma unroll
    for (int i = 0; i < UNIT_HEADS_MAX / 2; i++) {
        int h = 2 * i + half;
        if (h >= s.unit_heads) break;
        float total = area.scores[h * SPLIT + place];
        if (s.head_dim > 2 * CHAIN) total += area.late[h * SPLIT + place];
        if (s.head_dim > 3 * CHAIN) total += area.late[(UNIT_HEADS_MAX + h) * SPLIT + place];
        score[i] = place < u.seen ? total * s.score_scale : -INFINITE;
        float greatest = unordered(warp_max(ordered(score[i])));
        if (lane_id() == 0) area.greatest[h * (SPLIT / 32) + place / 32] = greatest;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < UNIT_HEADS_MAX / 2; i++) {
        int h = 2 * i + half;
        if (h >= s.unit_heads) break;
        const float* parts = area.greatest + h * (SPLIT / 32);
        float greatest = parts[0];
        for (int k = 1; k < SPLIT / 32; k++) greatest = fmaxf(greatest, parts[k]);
        area.scores[h * SPLIT + place] = place < u.seen ? exp_exact(score[i] - greatest) : 0.0f;
    }
    __syncthreads();
}

DEVICE float greatest_score(const UnitArea& area, int h) {
    float greatest = area.greatest[h * (SPLIT / 32)];
    for (int k = 1; k < SPLIT / 32; k++) greatest = fmaxf(greatest, area.greatest[h * (SPLIT / 32) + k]);
    return greatest;
}

// Sum of one head's weights, by one warp. Position p counts to lane p % 16, in order; lanes merge by the tree + 8, + 4, + 2,
// + 1.
DEVICE float sum_weights(const float* weights) {
    float part[SPLIT / 16], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) part[i] = weights[i * 16 + lane_id() % 16];
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) sum += part[i];
    for (int mask = 8; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    return sum;
}

enum { MIX = 8 };

// MIX positions of one dimension and their weights.
struct Mixed {
    unsigned short values[MIX];
    float4 weights[MIX / 4];

    // Past the last position lies what earlier rounds left, past the split the scores: never used.
    DEVICE void load(const unsigned short* from, int dim, const float* weights_from) {
#pragma unroll
        for (int i = 0; i < MIX; i++) values[i] = from[i * dim];
#pragma unroll
        for (int i = 0; i < MIX / 4; i++) weights[i] = ((const float4*)weights_from)[i];
    }
    // The first `count` of them.
    DEVICE float add(float sum, int count) const {
#pragma unroll
        for (int i = 0; i < MIX; i++) {
            const float4& w = weights[i / 4];
            const float weight = i % 4 == 0 ? w.x : i % 4 == 1 ? w.y : i % 4 == 2 ? w.z : w.w;
            if (i < count) sum = fused(weight, float_of_one(values[i]), sum);
        }
        return sum;
    }
};

// Weighted values of one dimension in the order of positions, while the loads of the next ones are under way, in two places by
// turns. DIM is the head's size, or 0 where it is not one that is worth its own code.
template <int DIM> DEVICE float mix(const UnitArea& area, const float* weights, int seen, int head_dim, int d) {
    const int dim = DIM ? DIM : head_dim;
    const unsigned short* values = (const unsigned short*)area.values + d;
    float sum = 0.0f;
    Mixed one, other;
    one.load(values, dim, weights);
    int p = 0;
#pragma unroll 1
    for (; p + 2 * MIX <= seen; p += 2 * MIX) {
        other.load(values + (p + MIX) * dim, dim, weights + p + MIX);
        sum = one.add(sum, MIX);
        one.load(values + (p + 2 * MIX) * dim, dim, weights + p + 2 * MIX);
        sum = other.add(sum, MIX);
    }
    if (p + MIX <= seen) {
        other.load(values + (p + MIX) * dim, dim, weights + p + MIX);
        sum = one.add(sum, MIX);
        return other.add(sum, seen - p - MIX);
    }
    return one.add(sum, seen - p);
}

// Splits of one row and unit, merged in order; the loads of one split run ahead.
template <int COUNT, class Source> DEVICE void merge(const Step& s, const Unit& u, const Source& source) {
    const int dim = s.head_dim, stride = dim + 2;
#pragma unroll 1
    for (int i = threadIdx.x; i < s.unit_heads * dim; i += COUNT) {
        int head = u.first_head + i / dim, d = i % dim;
        const float* part = s.partial + ((long long)u.row * s.heads + head) * s.splits_max * stride;
        float value = __ldcg(part + d), greatest = __ldcg(part + dim), sum = __ldcg(part + dim + 1);
        float next_value = __ldcg(part + stride + d), next = __ldcg(part + stride + dim), next_sum = __ldcg(part + stride + dim + 1);
#pragma unroll 1
        for (int k = 1; k < u.splits; k++) {
            float this_value = next_value, this_one = next, this_sum = next_sum;
            if (k + 1 < u.splits) {
                part += stride;
                next_value = __ldcg(part + stride + d);
                next = __ldcg(part + stride + dim);
                next_sum = __ldcg(part + stride + dim + 1);
            }
            float max = greatest > this_one ? greatest : this_one;
            float keep = exp_exact(greatest - max), add = exp_exact(this_one - max);
            greatest = max;
            sum = fused(this_sum, add, sum * keep);
            value = fused(this_value, add, value * keep);
        }
        source.put(s, ((long long)u.row * s.heads + head) * dim + d, value / sum);
    }
}

// Of several splits the block that comes last merges all, by COUNT threads. What each has to give is written.
template <int COUNT, class Source> DEVICE void merge_splits(const Step& s, const Unit& u, int* merges, const Source& source) {
    if (u.splits == 1) return;
    unsigned* arrived = s.arrived + u.row * s.heads + u.first_head;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        *merges = atomicAdd(arrived, 1u) == (unsigned)u.splits - 1;
        __threadfence();
    }
    __syncthreads();
    if (!*merges) return;
    merge<COUNT>(s, u, source);
    if (threadIdx.x == 0) *arrived = 0;
}

// Keys of one thread: half the dimensions of one position.
struct UnitKeys {
    uint4 key[SCORE_VECTORS];
};

// Starts all loads from the cache. The position itself is not among them: another unit may be writing it.
DEVICE void load_unit(const Step& s, const Unit& u, const UnitArea& area, int layer, UnitKeys& keys) {
    const int dim = s.head_dim, tid = threadIdx.x;
    const long long head_block = 2 * KV_BLOCK * dim, block_stride = (long long)s.layers * s.kv_heads * head_block;
    const unsigned short* pool = s.kv_pool + ((long long)layer * s.kv_heads + u.kv_head) * head_block;
    int stored = u.last ? u.seen - 1 : u.seen, place = tid % SPLIT, first = tid / SPLIT * HALF_DIMS;
    if (place < stored) {
        const uint4* from = (const uint4*)(pool + u.table[place / KV_BLOCK] * block_stride) + place % KV_BLOCK;
#pragma unroll
        for (int v = 0; v < SCORE_VECTORS; v++) {
            if (first + v * 8 < dim) keys.key[v] = from[(first / 8 + v) * KV_BLOCK];
        }
    }
    const int per_row = dim / 8, rows = THREADS / per_row, column = tid % per_row;
#pragma unroll 1
    for (int p = tid / per_row; p < stored && tid < rows * per_row; p += rows) {
        const uint4* from = (const uint4*)(pool + u.table[p / KV_BLOCK] * block_stride + KV_BLOCK * dim);
        copy_async(area.values + p * per_row + column, from + p % KV_BLOCK * per_row + column);
    }
    copy_commit();
}

// The rest of a unit whose loads are under way.
template <class Source>
DEVICE void attend_unit(const Step& s, const Unit& u, const UnitArea& area, int layer, UnitKeys& keys, const Source& source) {
    const int dim = s.head_dim, tid = threadIdx.x, per_row = dim / 8;
    const long long head_block = 2 * KV_BLOCK * dim;
    unsigned short* pool = s.kv_pool + ((long long)layer * s.kv_heads + u.kv_head) * head_block;
    const long long block_stride = (long long)s.layers * s.kv_heads * head_block;
    int own = u.last ? u.table[u.position % SPLIT / KV_BLOCK] : 0;
    source.project(s, u, area, pool + own * block_stride);
    __syncthreads();
    score(s, u, area, keys.key);
    // Waits for the ring's loads too, which are older; later waits count only groups after them.
    copy_wait<0>();
    if (u.last && tid < per_row) area.values[(u.seen - 1) * per_row + tid] = ((const uint4*)area.value)[tid];
    soften(s, u, area);
    float* partial = s.partial + ((long long)u.row * s.heads + u.first_head) * s.splits_max * (dim + 2);
    partial += u.split * (dim + 2);
    // The last warps sum the weights while the first mix values: head h, dimension d.
    int h = tid / dim, d = tid % dim, summed = WARPS - 1 - warp_id();
    float sum = 0.0f;
    if (h < s.unit_heads) {
        const float* weights = area.scores + h * SPLIT;
        sum = dim == 128 ? mix<128>(area, weights, u.seen, dim, d) : mix<0>(area, weights, u.seen, dim, d);
    }
    if (summed < s.unit_heads) {
        float total = sum_weights(area.scores + summed * SPLIT);
        if (lane_id() == 0) {
            area.sums[summed] = total;
            if (u.splits > 1) {
                float* at = partial + (long long)summed * s.splits_max * (dim + 2) + dim;
                at[0] = greatest_score(area, summed);
                at[1] = total;
            }
        }
    }
    __syncthreads();
    if (h < s.unit_heads) {
        if (u.splits == 1) {
            source.put(s, ((long long)u.row * s.heads + u.first_head + h) * dim + d, sum / area.sums[h]);
        } else {
            partial[(long long)h * s.splits_max * (dim + 2) + d] = sum;
        }
    }
    merge_splits<THREADS>(s, u, area.merges, source);
    __syncthreads();
}

// Starts the loads of the block's first unit, before the phase begins.
DEVICE void attend_ahead(const Step& s, int layer, unsigned char* work, const FirstUnit* first, UnitKeys& keys) {
    UnitArea area;
    area.place(work, s.head_dim);
    if (first->exists) load_unit(s, first->unit, area, layer, keys);
}

// All units of the step, one after another in each block; attend_ahead has begun the first.
template <class Source>
DEVICE void attend(const Step& s, int layer, unsigned char* work, const FirstUnit* first, UnitKeys& keys,
                   const Source& source) {
    UnitArea area;
    area.place(work, s.head_dim);
    int units = count_units(s);
#pragma unroll 1
    for (int i = blockIdx.x; i < units; i += gridDim.x) {
        bool begun = i == (int)blockIdx.x;
        if (begun && !first->exists) continue;
        Unit u = begun ? first->unit : find_unit(s, i);
        if (u.split >= u.splits) continue;
        if (!begun) {
            keys = {};
            load_unit(s, u, area, layer, keys);
        }
        attend_unit(s, u, area, layer, keys, source);
    }
}
