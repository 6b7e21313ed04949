// Linear layers of 64 tokens and more by warpgroups, on devices from 9.0 on: blocks of 128 rows x 8 NT tokens. Weights
// go to the tensor cores from registers, activations from shared memory; the next weights are unpacked meanwhile. Sums are
// exact integers, so a split of the columns over a cluster of blocks changes no bit.
#pragma once

#include "linear.h"

// A lane's codes of 16 rows as the tensor cores take them, 32 columns in a word.
DEVICE void open_word(unsigned word, unsigned (&a)[4]) {
    a[0] = word & 0x03030303u;
    a[1] = word & 0x0c0c0c0cu;
    a[2] = word >> 4 & 0x03030303u;
    a[3] = word >> 4 & 0x0c0c0c0cu;
}
DEVICE void open_codes(const uint4& codes, unsigned (&a)[4][4]) {
    open_word(codes.x, a[0]);
    open_word(codes.y, a[1]);
    open_word(codes.z, a[2]);
    open_word(codes.w, a[3]);
}

template <int NT, int STAGES> struct GroupGemm {
    enum {
        TILES = 8,
        GROUP_THREADS = TILES * 32,
        TOKENS = NT * 8,
        ROWS = TILES * 16,
        WEIGHT_BYTES = TILES * 512,
        STAGE_BYTES = WEIGHT_BYTES + NT * 1024,
        PITCH = ROWS + 4, // sums of a token in shared memory, padded against bank conflicts
    };
    static_assert(TOKENS * PITCH * 4 <= STAGES * STAGE_BYTES && STAGES >= 4, "sums take the place of the stages");

    const Phase& p;
    const Step& s;
    int tile, items, first, last; // first row tile; columns / 128; the block's part of them
    int token;                    // the first
    const unsigned char* weights; // this thread's chunk of the first columns
    const signed char* rows;      // likewise
    int sum[NT][4];

    DEVICE GroupGemm(const Phase& phase, const Step& step) : p(phase), s(step) {
        int size = cluster_size(), index = (int)blockIdx.x / size, rank = cluster_rank();
        int row_blocks = (p.tiles + TILES - 1) / TILES;
        items = (p.cols + 127) / 128;
        tile = index % row_blocks * TILES;
        token = index / row_blocks * TOKENS;
        first = items * rank / size;
        last = items * (rank + 1) / size;
        weights = (const unsigned char*)p.weights + (long long)min(tile + warp_id(), p.tiles - 1) * items * 512 + lane_id() * 16;
        rows = s.quantized + gathered_row(token, items) + threadIdx.x * 16;
    }
    DEVICE static unsigned char* stage(int k) { return shared_arena() + k % STAGES * STAGE_BYTES; }
    DEVICE static TokenFacts* facts() { return (TokenFacts*)(shared_arena() + STAGES * STAGE_BYTES); }

    // Tiles past the end are copies of the last: nobody reads what they give.
    DEVICE void load_weights(int k) const { copy_async(stage(k) + threadIdx.x * 16, weights + k * 512); }
    DEVICE void load_rows(int k) const {
        unsigned char* to = stage(k) + WEIGHT_BYTES + threadIdx.x * 16;
#pragma unroll
        for (int n = 0; n < TOKENS * 128; n += GROUP_THREADS * 16) {
            copy_async_kept(to + n, rows + (long long)k * GATHERED_ROWS * 128 + n);
        }
    }
    DEVICE void unpack(int k, unsigned (&a)[4][4]) const { open_codes(*(const uint4*)(stage(k) + threadIdx.x * 16), a); }
    // Multiplies a stage, whose weights are in `a`; those of the next go to `next`.
    DEVICE void step(int k, const unsigned (&a)[4][4], unsigned (&next)[4][4]) {
        gather_begin();
#pragma unroll
        for (int q = 0; q < 4; q++) gather_mma(sum, a[q], stage(k) + WEIGHT_BYTES, q);
        gather_commit();
        copy_wait<STAGES - 3>();
        show_to_tensor_cores();
        // All have done with the stage before, whose place the one to come takes.
        __syncthreads();
        if (k + STAGES - 1 < last) {
            load_weights(k + STAGES - 1);
            load_rows(k + STAGES - 1);
        }
        copy_commit();
        if (k + 1 < last) unpack(k + 1, next);
        gather_wait<0>();
    }
    DEVICE void run() {
#pragma unroll
        for (int i = 0; i < NT * 4; i++) sum[i / 4][i % 4] = 0;
        const int ahead = min((int)STAGES - 1, last - first);
        for (int i = 0; i < ahead; i++) load_weights(first + i);
        wait_prior();
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < ahead) load_rows(first + i);
            copy_commit();
        }
        const int t = token + (int)threadIdx.x;
        if (threadIdx.x < TOKENS && t < s.tokens) facts()[threadIdx.x] = facts_of(s.quantized_scale[t], s.quantized_sum[t]);
        unsigned a[4][4], other[4][4];
        copy_wait<STAGES - 2>();
        show_to_tensor_cores();
        __syncthreads();
        unpack(first, a);
        settle(sum);
#pragma unroll 1
        for (int k = first; k < last; k += 2) {
            step(k, a, other);
            if (k + 1 < last) step(k + 1, other, a);
        }
        settle(sum);
    }
    // Four rows of one token: of this block, or of all of the cluster.
    DEVICE int4 sums_of(int t, int row) const {
        const int4* at = (const int4*)((const int*)shared_arena() + t * PITCH + row);
        if (cluster_size() == 1) return *at;
        int4 v = {0, 0, 0, 0};
#pragma unroll 4
        for (int block = 0; block < cluster_size(); block++) {
            int4 w = load_of_block(at, block);
            v = int4{v.x + w.x, v.y + w.y, v.z + w.z, v.w + w.w};
        }
        return v;
    }
    DEVICE static float4 scaled(const int4& v, const TokenFacts& token, float first, float second) {
        return float4{quotient((float)(v.x - token.sum), token) * first * second,
                      quotient((float)(v.y - token.sum), token) * first * second,
                      quotient((float)(v.z - token.sum), token) * first * second,
                      quotient((float)(v.w - token.sum), token) * first * second};
    }
    // Results of the tokens from `begin` to `end`, a lane four rows of one: their scales are the same for all tokens.
    DEVICE void finish_rows(int begin, int end) const {
        enum { AHEAD = 4 };
        const int local = lane_id() * 4, row = tile * 16 + local;
        const bool add = p.epilogue == EPILOGUE_ADD;
        if (row >= p.rows) return;
        const float2 scales = *(const float2*)(p.scales + row / 8 * 2);
        float* out = p.output + (long long)token * p.stride + row;
#pragma unroll 1
        for (int t = begin + warp_id(); t < end; t += AHEAD * TILES) {
            float4 before[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                if (add && t + j * TILES < end) before[j] = *(const float4*)(out + (long long)(t + j * TILES) * p.stride);
            }
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                const int u = t + j * TILES;
                if (u >= end) break;
                float4 y = scaled(sums_of(u, local), facts()[u], scales.x, scales.y);
                if (add) y = float4{before[j].x + y.x, before[j].y + y.y, before[j].z + y.z, before[j].w + y.w};
                *(float4*)(out + (long long)u * p.stride) = y;
            }
        }
    }
    // The same of gates: half a warp takes a token.
    template <int EPILOGUE> DEVICE void finish_gates(int begin, int end) const {
        const int place = lane_id() % 16, local = place / 2 * 16 + place % 2 * 4, tile_of = tile + local / 16;
        const int row = tile_of * 8 + place % 2 * 4, rows = p.rows / 2;
        if (row < rows) {
            const float4 scales = *(const float4*)(p.scales + tile_of * 4);
            float* out = p.output + (long long)token * p.stride + row;
#pragma unroll 2
            for (int t = begin + warp_id() * 2 + lane_id() / 16; t < end; t += TILES * 2) {
                float4 gate = scaled(sums_of(t, local), facts()[t], scales.x, scales.y);
                float4 up = scaled(sums_of(t, local + 8), facts()[t], scales.z, scales.w);
                *(float4*)(out + (long long)t * p.stride) =
                    float4{gated(gate.x, up.x, EPILOGUE), gated(gate.y, up.y, EPILOGUE), gated(gate.z, up.z, EPILOGUE),
                           gated(gate.w, up.w, EPILOGUE)};
            }
        }
    }
    DEVICE void finish() const {
        int* parts = (int*)shared_arena();
        copy_wait<0>();
        __syncthreads();
        int* at = parts + (lane_id() & 3) * 2 * PITCH + warp_id() * 16 + lane_id() / 4;
#pragma unroll
        for (int i = 0; i < NT; i++) {
            at[i * 8 * PITCH] = sum[i][0];
            at[(i * 8 + 1) * PITCH] = sum[i][1];
            at[i * 8 * PITCH + 8] = sum[i][2] >> 2;
            at[(i * 8 + 1) * PITCH + 8] = sum[i][3] >> 2;
        }
        const int size = cluster_size(), rank = cluster_rank(), tokens = min((int)TOKENS, s.tokens - token);
        if (size > 1) {
            cluster_meet();
        } else {
            __syncthreads();
        }
        const int begin = tokens * rank / size, end = tokens * (rank + 1) / size;
        if (p.epilogue == EPILOGUE_RELU2) {
            finish_gates<EPILOGUE_RELU2>(begin, end);
        } else if (p.epilogue == EPILOGUE_SILU) {
            finish_gates<EPILOGUE_SILU>(begin, end);
        } else {
            finish_rows(begin, end);
        }
        if (size > 1) cluster_leave();
    }
};

template <int NT, int STAGES> DEVICE void group_linear(const Phase& p, const Step& s) {
    GroupGemm<NT, STAGES> gemm(p, s);
    gemm.run();
    launch_next();
    gemm.finish();
}
