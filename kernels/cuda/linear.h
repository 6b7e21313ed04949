// Ternary linear layers: weights stream through a ring of shared memory that runs ahead of the phases, tensor cores sum.
#pragma once

#include "norm.h"

DEVICE void note_time(const Step& s, int index) {
    if (s.trace && blockIdx.x == 0 && threadIdx.x == 0) s.trace[index] = clock_now();
}

// What a block's loader knows of a phase: computed once, since a division costs a warp some 100 cycles.
struct Stream {
    const char* base; // of the block's first row tile; HEAD: of the matrix
    int tiles;        // row tiles of the block; HEAD: of the matrix
    int items;
    float reciprocal; // of items; 0 for HEAD
    int first;        // row tile of the block
    double share;     // 1 / columns
};

DEVICE int first_tile(const Phase& p) {
    int tile = (int)blockIdx.x - p.first_block;
    return tile < 0 ? tile + (int)gridDim.x : tile;
}

// `tiles` row tiles of the block, of which `first` is the first.
DEVICE Stream stream_of_tiles(const Phase& p, int first, int tiles) {
    return {(const char*)p.weights + (long long)first * p.items * 512, tiles, p.items, 1.0f / (float)max(p.items, 1), first,
            1.0 / (double)max(p.cols, 1)};
}

DEVICE Stream make_stream(const Phase& p) {
    if (p.kind == PHASE_HEAD || p.kind == PHASE_SCREEN) return {(const char*)p.weights, p.tiles, p.items, 0.0f, 0, 0.0};
    const int first = first_tile(p), blocks = (int)gridDim.x;
    return stream_of_tiles(p, first, p.kind == PHASE_LINEAR && first < p.tiles ? (p.tiles - first + blocks - 1) / blocks : 0);
}

// The 512-byte loads of one warp in one phase, in the order of their use.
//
// A LINEAR phase gives row tile i to block (first_block + i) % gridDim; the loads of a block's row tiles, one tile after
// another, are cut into one run for each warp. A HEAD phase gives each row tile to one warp.
struct Walk {
    const char* from;
    int left, item, items, wrap, tile;

    DEVICE void open(const Stream& s, int groups) {
        items = s.items;
        if (s.reciprocal == 0.0f) {
            int sharing = (int)gridDim.x / groups, place = (int)blockIdx.x / groups, step = sharing * WARPS;
            int first = place < sharing ? place * WARPS + warp_id() : s.tiles;
            left = first < s.tiles ? (s.tiles - first + step - 1) / step * items : 0;
            item = tile = 0;
            wrap = (step - 1) * items * 512;
            from = s.base + (long long)first * items * 512;
            return;
        }
        int loads = s.tiles * items, begin = loads * warp_id() / WARPS;
        left = loads * (warp_id() + 1) / WARPS - begin;
        // Exact below 2^20: half a unit is more than the rounding.
        tile = (int)(((float)begin + 0.5f) * s.reciprocal);
        item = begin - tile * items;
        wrap = ((int)gridDim.x - 1) * items * 512;
        from = s.base + ((long long)tile * ((int)gridDim.x * items) + item) * 512;
    }
    DEVICE void next() {
        left--;
        from += 512;
        if (++item == items) {
            item = 0;
            tile++;
            from += wrap;
        }
    }
};

// Each thread loads, ahead of time, exactly the 16 bytes that it will use itself: no barrier between loads and use, and
// loads for the phases to come are in flight while blocks meet.
struct Ring {
    int phase, phases, groups, slot;
    Walk walk;

    // Slots come first in shared memory, then what is known of the phases.
    DEVICE uint4* at(int index) const {
        return (uint4*)shared_arena() + index * THREADS + threadIdx.x;
    }
    DEVICE static Stream* streams() {
        return (Stream*)(shared_arena() + RING_DEPTH * THREADS * 16);
    }

    // The phases from `first` on; their streams are in shared memory.
    DEVICE void start(int count, int head_groups) {
        phases = count;
        groups = head_groups;
        phase = -1;
        slot = walk.left = 0;
#pragma unroll 1
        for (int i = 0; i < RING_DEPTH; i++) load_next(i);
    }
    DEVICE void load_next(int into) {
        if (walk.left == 0) open_next();
        if (walk.left > 0) {
            copy_async(at(into), walk.from + lane_id() * 16);
            walk.next();
        }
        copy_commit();
    }
    // The next phase that has loads for this warp, if any.
    DEVICE void open_next() {
#pragma unroll 1
        while (walk.left == 0 && phase < phases) {
            if (++phase < phases && streams()[phase].tiles > 0) walk.open(streams()[phase], groups);
        }
    }
    DEVICE uint4 front() const {
        copy_wait<RING_DEPTH - 1>();
        return *at(slot);
    }
    // The first `count` loads, at most COUNT; the others are zero. advance() once for each that was used.
    template <int COUNT> DEVICE void front(uint4 (&loads)[COUNT], int count) const {
        copy_wait<RING_DEPTH - COUNT>();
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            loads[i] = uint4{0, 0, 0, 0};
            if (i < count) loads[i] = *at((slot + i) % RING_DEPTH);
        }
    }
    // After the value of front() was used.
    DEVICE void advance() {
        load_next(slot);
        slot = slot + 1 == RING_DEPTH ? 0 : slot + 1;
    }
};

// Rows of activations as the tensor cores read them.
struct Rows {
    const signed char* quantized;
    const float* scale;
    const int* sum;
    int tokens;
};

// Token groups whose activations are in registers at once.
template <int NT> struct Chunk { enum { SIZE = NT == 2 || NT == 4 ? 2 : 1 }; };

template <int NT> DEVICE void multiply(const uint4& weights, const Rows& x, int items, int item, int (&sum)[NT][4]) {
    const unsigned words[4] = {weights.x, weights.y, weights.z, weights.w};
    const signed char* at = x.quantized + ((long long)item * 32 + lane_id()) * 32;
#pragma unroll
    for (int chunk = 0; chunk < NT; chunk += Chunk<NT>::SIZE) {
        if (chunk > 0) keep_order();
        uint4 b[Chunk<NT>::SIZE][2] = {};
#pragma unroll
        for (int i = 0; i < Chunk<NT>::SIZE; i++) {
            if ((chunk + i) * 8 + lane_id() / 4 < x.tokens) {
                const uint4* from = (const uint4*)(at + (long long)(chunk + i) * items * 1024);
                b[i][0] = from[0];
                b[i][1] = from[1];
            }
        }
#pragma unroll
        for (int s = 0; s < 4; s++) {
            unsigned a[4];
#pragma unroll
            for (int r = 0; r < 4; r++) a[r] = (words[s] >> (2 * r)) & 0x03030303u;
#pragma unroll
            for (int i = 0; i < Chunk<NT>::SIZE; i++) {
                const uint4& half = b[i][s / 2];
                mma(sum[chunk + i], a, s % 2 ? half.z : half.x, s % 2 ? half.w : half.y);
            }
        }
    }
}

// The exact sum of w * q as a value: the order of kernels/src/ternary/linear.rs, then the matrix's own factor.
DEVICE float scaled(int sum, const Rows& x, int token, const float* scales) {
    return (float)(sum - x.sum[token]) / x.scale[token] * scales[0] * scales[1];
}

DEVICE float gated(float gate, float up, int epilogue) {
    if (epilogue == EPILOGUE_RELU2) {
        float live = gate > 0.0f ? gate : 0.0f;
        return live * live * up;
    }
    return gate / (1.0f + exp_exact(0.0f - gate)) * up;
}

// What finishing needs of a token: its scale is `scale`, from 1 to below 2, over a power of two.
struct TokenFacts {
    float scale, inverse, power;
    int sum;
};

// x over the token's scale, rounded once, for whole numbers x: two corrections of x * inverse, where nothing overflows or gets
// lost, and then the power of two, which is exact or overflows as the quotient does.
DEVICE float quotient(float x, const TokenFacts& token) {
    float q = x * token.inverse;
    q = fused(fused(-q, token.scale, x), token.inverse, q);
    return fused(fused(-q, token.scale, x), token.inverse, q) * token.power;
}
// Scales are 0, for a row with what is infinite, or from 10^-37 to 10^8.
DEVICE TokenFacts facts_of(float scale, int sum) {
    if (scale == 0.0f) return TokenFacts{1.0f, 1.0f, INFINITE, sum};
    const unsigned bits = bits_of_float(scale);
    const float mantissa = float_of_bits((bits & 0x007fffffu) | 0x3f800000u);
    return TokenFacts{mantissa, 1.0f / mantissa, float_of_bits((254u << 23) - (bits & 0x7f800000u)), sum};
}

// Sums of one row tile become outputs. Slot (n * 4 + c) * 32 + lane holds row lane / 4 + 8 (c >> 1) of token
// 8 n + 2 (lane % 4) + (c & 1).
template <int NT> DEVICE void finish_tile(const Phase& p, const Rows& x, const int* sums, const float* scales, int tile, int i,
                        const float* residual) {
    int lane = i & 31, c = (i >> 5) & 3, token = (i >> 7) * 8 + (lane & 3) * 2 + (c & 1), row = lane >> 2;
    if (token >= x.tokens) return;
    if (p.epilogue >= EPILOGUE_RELU2) {
        int feature = tile * 8 + row, features = p.rows / 2;
        if (c >= 2 || feature >= features) return;
        float gate = scaled(sums[i], x, token, scales), up = scaled(sums[i + 64], x, token, scales + 2);
        p.output[(long long)token * p.stride + feature] = gated(gate, up, p.epilogue);
        return;
    }
    row += tile * 16 + (c >> 1) * 8;
    if (row >= p.rows) return;
    float y = scaled(sums[i], x, token, scales + (c >> 1) * 2);
    float* out = p.output + (long long)token * p.stride + row;
    *out = p.epilogue == EPILOGUE_ADD ? (residual ? *residual : *out) + y : y;
}

DEVICE void clear_sums(int* sums, int count) {
    for (int i = threadIdx.x; i < count; i += THREADS) sums[i] = 0;
}

// What the phase will add its first result of this thread to; see finish_tile for the place.
template <int NT> DEVICE float load_residual(const Phase& p, int tiles, int tokens) {
    int k = (int)threadIdx.x / (NT * 128), i = (int)threadIdx.x % (NT * 128), lane = i & 31, c = (i >> 5) & 3;
    int token = (i >> 7) * 8 + (lane & 3) * 2 + (c & 1);
    int row = (first_tile(p) + k * (int)gridDim.x) * 16 + (c >> 1) * 8 + (lane >> 2);
    if (p.epilogue != EPILOGUE_ADD || k >= tiles || token >= tokens || row >= p.rows) return 0.0f;
    return p.output[(long long)token * p.stride + row];
}

// Adds a warp's sums of one row tile to the block's.
template <int NT> DEVICE void add_sums(int* sums, int (&sum)[NT][4], int tokens) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int token = n * 8 + (lane_id() & 3) * 2 + (c & 1);
            if (token < tokens) atomicAdd(&sums[(n * 4 + c) * 32 + lane_id()], sum[n][c]);
            sum[n][c] = 0;
        }
    }
}

// The row tiles of this block; their sums are clear.
template <int NT>
DEVICE void linear(const Phase& p, const Stream& stream, const Rows& x, Ring& ring, int* sums, const float* scales,
                   float residual) {
    // Loads of one row tile taken together: one chain of dependent instructions would leave the warp idle most of the time.
    enum { BATCH = NT == 1 ? 4 : 1 };
    int sum[NT][4] = {}, other[NT][4] = {};
    Walk walk;
    walk.open(stream, 1);
#pragma unroll 1
    while (walk.left > 0) {
        int count = min(min((int)BATCH, walk.left), p.items - walk.item), tile = walk.tile;
        uint4 loads[BATCH];
        ring.front(loads, count);
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            multiply<NT>(loads[i], x, p.items, min(walk.item + i, p.items - 1), i % 2 ? other : sum);
        }
#pragma unroll 1
        for (int i = 0; i < count; i++) {
            ring.advance();
            walk.next();
        }
        if (walk.tile == tile && walk.left > 0) continue;
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                sum[n][c] += other[n][c];
                other[n][c] = 0;
            }
        }
        add_sums<NT>(sums + tile * NT * 128, sum, x.tokens);
    }
    __syncthreads();
    int tiles = stream.tiles, tile = first_tile(p);
#pragma unroll 1
    for (int i = threadIdx.x; i < tiles * NT * 128; i += THREADS) {
        int k = i / (NT * 128);
        finish_tile<NT>(p, x, sums + k * NT * 128, scales + k * 4, tile + k * (int)gridDim.x, i % (NT * 128),
                        i < THREADS ? &residual : nullptr);
    }
}
