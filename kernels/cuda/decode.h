// Attention of decode rows by the batch kernels: a block for each split of a row and kv head, with all query heads of the
// group. Keys and values lie in shared memory, both at once where there is room, so that all loads of a block are under way before it
// waits for the queries; of more positions the values take the keys' place. The bits of kernels/src/attention, as
// in attention.h.
#pragma once

#include "attention.h"

enum { DECODE_THREADS = SPLIT, DECODE_WARPS = SPLIT / 32, DECODE_HEADS = 4 };

// Blocks of a multiprocessor.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
enum { DECODE_BLOCKS = 2 };
#else
enum { DECODE_BLOCKS = 3 };
#endif

// Shared memory of a block. DIM is the head's size, or 0 where it is not one that is worth its own code; ROOM is how many cache blocks'
// keys or values have room, or 0 where the host says so.
template <int DIM, int ROOM> struct DecodeArea {
    int head_dim, told;
    uint4* blocks;       // [room()] keys or values of a cache block
    float4* weights;     // [SPLIT], of DECODE_HEADS heads at a time
    float* queries;      // [group][head_dim]
    float* greatest;     // [DECODE_HEADS][DECODE_WARPS]
    float* sums;         // [DECODE_HEADS]
    int* merges;
    unsigned short* own; // [2][head_dim]: key and value of the position itself

    DEVICE int dim() const { return DIM ? DIM : head_dim; }
    DEVICE int room() const { return ROOM ? ROOM : told; }
    DEVICE void place(unsigned char* at, int size, int group, int blocks_told) {
        head_dim = size;
        told = blocks_told;
        blocks = (uint4*)at;
        weights = (float4*)(at + room() * KV_BLOCK * dim() * 2);
        queries = (float*)(weights + SPLIT);
        greatest = queries + group * dim();
        sums = greatest + DECODE_HEADS * DECODE_WARPS;
        merges = (int*)(sums + DECODE_HEADS);
        own = (unsigned short*)(merges + 4);
    }
    DEVICE int block_vectors() const { return KV_BLOCK / 8 * dim(); }
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

// The cache blocks of a split, and how many positions of it are stored: the position itself is not among them.
template <int DIM, int ROOM> struct DecodeCache {
    const Step& s;
    const Unit& u;
    const DecodeArea<DIM, ROOM>& area;
    const int layer;
    int stored, count; // positions; cache blocks with one that is seen

    DEVICE DecodeCache(const Step& step, const Unit& unit, const DecodeArea<DIM, ROOM>& of, int at) : s(step), u(unit), area(of), layer(at) {
        stored = u.last ? u.seen - 1 : u.seen;
        count = (u.seen + KV_BLOCK - 1) / KV_BLOCK;
    }
    // Whether keys and values have room at once: the values from the middle on.
    DEVICE bool both() const { return 2 * count <= area.room(); }
    DEVICE uint4* values() const { return area.blocks + (both() ? area.room() / 2 * area.block_vectors() : 0); }
    // By its number in the pool.
    DEVICE unsigned short* block(int number) const {
        return s.kv_pool + (((long long)number * s.layers + layer) * s.kv_heads + u.kv_head) * 2 * KV_BLOCK * area.dim();
    }
    // A cache block's keys or values, by a warp. Keys have eight dimensions of all positions side by side, values a position's.
    DEVICE void load_keys(int i, uint4* to) const {
        if (i * KV_BLOCK + lane_id() >= stored) return;
        const uint4* from = (const uint4*)block(u.table[i]) + lane_id();
        to += lane_id();
#pragma unroll 4
        for (int v = 0; v < area.dim() / 8; v++) copy_async(to + v * KV_BLOCK, from + v * KV_BLOCK);
    }
    DEVICE void load_values(int i, uint4* to) const {
        const int vectors = min(stored - i * KV_BLOCK, (int)KV_BLOCK) * (area.dim() / 8);
        if (vectors <= 0) return;
        const uint4* from = (const uint4*)block(u.table[i]) + area.block_vectors();
#pragma unroll 4
        for (int v = lane_id(); v < vectors; v += 32) copy_async(to + v, from + v);
    }
    DEVICE void load_keys() const {
        if (warp_id() < count) load_keys(warp_id(), area.blocks + warp_id() * area.block_vectors());
    }
    // What is sure to have room at once.
    DEVICE void begin() const {
        load_keys();
        const int i = (warp_id() + DECODE_WARPS / 2) % DECODE_WARPS;
        if (both() && i < count) load_values(i, values() + i * area.block_vectors());
        copy_commit();
    }
    // Values in the place of keys that all have done with.
    DEVICE void replace() const {
        if (both()) return;
        if (warp_id() < count) load_values(warp_id(), area.blocks + warp_id() * area.block_vectors());
        copy_commit();
        if (u.last && (int)threadIdx.x < area.dim() / 8) {
            area.blocks[(u.seen - 1) * (area.dim() / 8) + threadIdx.x] = ((const uint4*)(area.own + area.dim()))[threadIdx.x];
        }
    }
    // Back to keys, for other heads.
    DEVICE void restore() const {
        if (both()) return;
        __syncthreads();
        load_keys();
        copy_commit();
        const int place = u.seen - 1;
        if (u.last && (int)threadIdx.x < area.dim() / 8) {
            area.blocks[place / KV_BLOCK * area.block_vectors() + threadIdx.x * KV_BLOCK + place % KV_BLOCK] =
                ((const uint4*)area.own)[threadIdx.x];
        }
        copy_wait<0>();
        __syncthreads();
    }
    // A dimension of the position's own key or value: into shared memory and the cache.
    DEVICE void put_own(bool value, int d, unsigned short half, unsigned short* own_block) const {
        const int dim = area.dim(), place = u.seen - 1, slot = place % KV_BLOCK;
        const int in_key = (d / 8 * KV_BLOCK + slot) * 8 + d % 8, in_value = slot * dim + d;
        area.own[value ? dim + d : d] = half;
        own_block[value ? KV_BLOCK * dim + in_value : in_key] = half;
        if (value && !both()) return;
        unsigned short* blocks = (unsigned short*)(value ? values() : area.blocks) + place / KV_BLOCK * KV_BLOCK * dim;
        blocks[value ? in_value : in_key] = half;
    }
};

// Queries, rounded to F16, and, for the last split, the position's own key and value. A thread has one dimension.
template <int DIM, int ROOM>
DEVICE void project_split(const Step& s, const Unit& u, const DecodeArea<DIM, ROOM>& area, const DecodeCache<DIM, ROOM>& cache, const Turn& turn,
                          int own) {
    enum { AHEAD = 3 };
    const int dim = area.dim(), d = (int)threadIdx.x % dim, step = DECODE_THREADS / dim;
    const int key = s.group, parts = s.group + (u.last ? 2 : 0);
    const float* row = s.qkv + (long long)u.row * (s.heads + 2 * s.kv_heads) * dim;
    if ((int)threadIdx.x >= step * dim) return;
#pragma unroll 1
    for (int start = (int)threadIdx.x / dim; start < parts; start += AHEAD * step) {
        float a[AHEAD], b[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int part = min(start + j * step, parts - 1);
            const float* head = row + (part < key ? u.first_head + part : s.heads + u.kv_head + (part - key) * s.kv_heads) * dim;
            a[j] = head[part > key ? d : turn.first];
            b[j] = head[turn.second];
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int part = start + j * step;
            const unsigned short half = half_of_float(part > key ? a[j] : turn.of(a[j], b[j]));
            if (part < key) {
                area.queries[part * dim + d] = float_of_half(half);
            } else if (part < parts) {
                cache.put_own(part > key, d, half, cache.block(own));
            }
        }
    }
}

// Scores of the thread's position against H queries: chains of 32 dimensions, added in their order.
template <int H, int DIM, int ROOM> DEVICE void score_key(const DecodeArea<DIM, ROOM>& area, const float* queries, float (&total)[H]) {
    const int dim = area.dim();
    const uint4* key = area.blocks + warp_id() * area.block_vectors() + lane_id();
#pragma unroll 1
    for (int c = 0; c < dim; c += CHAIN) {
        float sum[H] = {};
#pragma unroll
        for (int v = 0; v < CHAIN / 8; v++) {
            if (DIM % CHAIN != 0 || DIM == 0) {
                if (c + v * 8 >= dim) break;
            }
            if (v == CHAIN / 16) keep_order();
            const uint4 words = key[(c / 8 + v) * KV_BLOCK];
            const float2 k[4] = {floats_of_halves(words.x), floats_of_halves(words.y), floats_of_halves(words.z), floats_of_halves(words.w)};
#pragma unroll
            for (int h = 0; h < H; h++) {
                const float* at = queries + h * dim + c + v * 8;
                const float4 low = *(const float4*)at, high = *(const float4*)(at + 4);
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

// Scores become weights exp(score - greatest), 0 past what the query sees; values take the keys' place meanwhile.
template <int H, int DIM, int ROOM>
DEVICE void soften_scores(const Step& s, const Unit& u, const DecodeArea<DIM, ROOM>& area, const DecodeCache<DIM, ROOM>& cache, const float (&total)[H]) {
    const bool seen = (int)threadIdx.x < u.seen;
    float score[H];
#pragma unroll
    for (int h = 0; h < H; h++) {
        score[h] = seen ? total[h] * s.score_scale : -INFINITE;
        float greatest = unordered(warp_max(ordered(score[h])));
        if (lane_id() == 0) area.greatest[h * DECODE_WARPS + warp_id()] = greatest;
    }
    __syncthreads();
    cache.replace();
    float weight[DECODE_HEADS] = {};
    if (seen) {
#pragma unroll
        for (int h = 0; h < H; h++) weight[h] = exp_exact(score[h] - greatest_of_warps(area.greatest + h * DECODE_WARPS));
    }
    area.weights[threadIdx.x] = float4{weight[0], weight[1], weight[2], weight[3]};
    copy_wait<0>();
    __syncthreads();
}

template <int H> DEVICE void mix_weights(const float4& weights, float value, float (&sum)[H]) {
    const float w[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
    for (int h = 0; h < H; h++) sum[h] = fused(w[h], value, sum[h]);
}

enum { DECODE_MIX = 4 };

// Some positions' values and weights.
struct MixLoads {
    unsigned short values[DECODE_MIX];
    float4 weights[DECODE_MIX];

    DEVICE void load(const unsigned short* from, const float4* of, int dim) {
#pragma unroll
        for (int i = 0; i < DECODE_MIX; i++) {
            values[i] = from[i * dim];
            weights[i] = of[i];
        }
    }
    template <int H> DEVICE void mix(float (&sum)[H]) const {
#pragma unroll
        for (int i = 0; i < DECODE_MIX; i++) mix_weights<H>(weights[i], float_of_half(values[i]), sum);
    }
};

// Weighted values of dimension d for H heads, in the order of positions; the loads of some positions run ahead. Past the last
// position lies what was never written, past the split the weights and queries: never used.
template <int H, int DIM, int ROOM>
DEVICE void mix_values(const DecodeArea<DIM, ROOM>& area, const DecodeCache<DIM, ROOM>& cache, int d, float (&sum)[H]) {
    const int dim = area.dim(), seen = cache.u.seen;
    const unsigned short* values = (const unsigned short*)cache.values() + d;
    const float4* weights = area.weights;
    MixLoads even, odd;
    even.load(values, weights, dim);
    int p = 0;
#pragma unroll 1
    for (; p + 2 * DECODE_MIX <= seen; p += 2 * DECODE_MIX) {
        odd.load(values + DECODE_MIX * dim, weights + DECODE_MIX, dim);
        even.mix<H>(sum);
        values += 2 * DECODE_MIX * dim;
        weights += 2 * DECODE_MIX;
        even.load(values, weights, dim);
        odd.mix<H>(sum);
    }
#pragma unroll 1
    for (; p < seen; p++) {
        mix_weights<H>(*weights, float_of_half(*values), sum);
        values += dim;
        weights++;
    }
}

// The split's part of a head of the group.
DEVICE float* split_part(const Step& s, const Unit& u, int head) {
    return s.partial + (((long long)u.row * s.heads + u.first_head + head) * s.splits_max + u.split) * (s.head_dim + 2);
}

// The sum of a head's weights, by one warp: lane p % 16 adds those of position p in order, lanes merge by a tree.
template <int DIM, int ROOM> DEVICE void sum_split_weights(const Step& s, const Unit& u, const DecodeArea<DIM, ROOM>& area, int h, int head) {
    const float* weights = (const float*)area.weights + h;
    float part[SPLIT / 16], all = 0.0f;
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) part[i] = weights[(i * 16 + lane_id() % 16) * 4];
#pragma unroll
    for (int i = 0; i < SPLIT / 16; i++) all += part[i];
    for (int mask = 8; mask > 0; mask >>= 1) all += shuffle_xor(all, mask);
    if (lane_id() != 0) return;
    area.sums[h] = all;
    if (u.splits > 1) {
        float* state = split_part(s, u, head) + area.dim();
        state[0] = greatest_of_warps(area.greatest + h * DECODE_WARPS);
        state[1] = all;
    }
}

// Some heads of the split, from `first` of the group on: results where it is the only one, else the split's part of them.
// Heads past the group are copies of its last whose results are dropped.
template <int H, int DIM, int ROOM>
DEVICE void attend_heads(const Step& s, const Unit& u, const DecodeArea<DIM, ROOM>& area, const DecodeCache<DIM, ROOM>& cache, int first) {
    const int dim = area.dim(), d = threadIdx.x;
    const int from = min(first, s.group - H), skipped = first - from;
    float total[H] = {}, sum[H] = {};
    if (warp_id() < cache.count) score_key<H, DIM, ROOM>(area, area.queries + from * dim, total);
    soften_scores<H, DIM, ROOM>(s, u, area, cache, total);
    launch_next();
    if (d < dim) mix_values<H, DIM, ROOM>(area, cache, d, sum);
    const int summed = DECODE_WARPS - 1 - warp_id();
    if (summed < H) sum_split_weights<DIM, ROOM>(s, u, area, summed, from + summed);
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

// All heads of the group.
template <int H, int DIM, int ROOM>
DEVICE void attend_group(const Step& s, const Unit& u, const DecodeArea<DIM, ROOM>& area, const DecodeCache<DIM, ROOM>& cache) {
#pragma unroll 1
    for (int h = 0;;) {
        attend_heads<H, DIM, ROOM>(s, u, area, cache, h);
        h += H;
        if (h >= s.group) break;
        cache.restore();
    }
}

// `stored`: keys and values of all rows are in the cache, by a launch of this step.
template <int H, int DIM, int ROOM> DEVICE void attend_split(const Step& s, int layer, int room, bool stored) {
    settle(layer); // nothing in common with the code of other sizes, which would take registers
    DecodeArea<DIM, ROOM> area;
    area.place(shared_arena(), s.head_dim, s.group, room);
    Unit u = find_unit(s, blockIdx.x);
    if (u.split >= u.splits) return;
    if (stored) {
        u.last = false;
        wait_prior();
    }
    const DecodeCache<DIM, ROOM> cache(s, u, area, layer);
    cache.begin();
    Turn turn;
    turn.find(s, u.position, (int)threadIdx.x % area.dim());
    const int own = u.table[(u.seen - 1) / KV_BLOCK];
    // All before is of steps before this one, or of launches that the one before has waited for.
    wait_prior();
    project_split<DIM, ROOM>(s, u, area, cache, turn, own);
    copy_wait<0>();
    __syncthreads();
    attend_group<H, DIM, ROOM>(s, u, area, cache);
    merge_splits<DECODE_THREADS>(s, u, area.merges, UnitSource<false>{0});
}
