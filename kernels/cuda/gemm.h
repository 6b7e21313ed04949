// Matrix products of many rows, a launch each: blocks of 128 weight rows x 8 to 128 tokens, tensor cores, copies to shared
// memory some stages ahead. Sums are exact integers, so a split of the columns over a cluster of blocks changes no bit.
#pragma once

#include "linear.h"

enum { GEMM_THREADS = 256, GEMM_ROW_TILES = 8 };

// What the tensor cores read as A: ternary codes, 16 rows x 128 columns in 512 bytes.
struct Ternary {
    enum { TILE_BYTES = 512 };
    typedef uint2 Opened; // half the columns
    DEVICE static uint2 open(const unsigned char* tile, int half) { return ((const uint2*)tile)[lane_id() * 2 + half]; }
    DEVICE static void take(const uint2& words, const unsigned char*, int s, unsigned (&a)[4]) {
        unsigned word = s % 2 ? words.y : words.x;
#pragma unroll
        for (int r = 0; r < 4; r++) a[r] = (word >> (2 * r)) & 0x03030303u;
    }
    DEVICE static void multiply(int (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { mma(sum, a, b0, b1); }
};

// Signed bytes, four pieces of 16 rows x 32 columns in 2048 bytes.
struct Bytes {
    enum { TILE_BYTES = 2048 };

    struct Opened {};
    DEVICE static Opened open(const unsigned char*, int) { return {}; }
    DEVICE static void take(const Opened&, const unsigned char* tile, int s, unsigned (&a)[4]) {
        uint4 words = ((const uint4*)tile)[s * 32 + lane_id()];
        a[0] = words.x;
        a[1] = words.y;
        a[2] = words.z;
        a[3] = words.w;
    }
    DEVICE static void multiply(int (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        mma_signed(sum, a, b0, b1);
    }
};

// The block's 8 warps: 8 / WIDE of them over the row tiles, WIDE over the tokens, each WIDE row tiles x NT groups of 8
// tokens.
template <class A, int WIDE, int NT, int STAGES> struct Gemm {
    enum {
        GROUPS = WIDE * NT,
        WEIGHT_BYTES = GEMM_ROW_TILES * A::TILE_BYTES,
        STAGE_BYTES = WEIGHT_BYTES + GROUPS * 1024,
        ROW = GROUPS * 8 + 8, // sums of one row in shared memory, padded against bank conflicts
    };
    const unsigned char* weights;
    const signed char* rows;
    int tile, tiles, items, first, last; // first row tile; of the matrix; columns / 128; the block's part of them
    int group; // first of 8 tokens
    int sum[WIDE][NT][4];

    DEVICE static unsigned char* stage(int k) {
        return shared_arena() + k % STAGES * STAGE_BYTES;
    }
    DEVICE int warp_tile() const { return warp_id() / WIDE * WIDE; }
    DEVICE int warp_group() const { return warp_id() % WIDE * NT; }

    DEVICE void place(const Phase& p, const Step& s) {
        int size = cluster_size(), index = (int)blockIdx.x / size, rank = cluster_rank();
        int row_blocks = (p.tiles + GEMM_ROW_TILES - 1) / GEMM_ROW_TILES;
        weights = (const unsigned char*)p.weights;
        tiles = p.tiles;
        items = (p.cols + 127) / 128;
        tile = index % row_blocks * GEMM_ROW_TILES;
        group = index / row_blocks * GROUPS;
        rows = s.quantized + (long long)group * items * 1024;
        first = items * rank / size;
        last = items * (rank + 1) / size;
    }
    // Tiles past the end are copies of the last: nobody reads what they give.
    DEVICE void load_weights(int k) const {
        unsigned char* to = stage(k);
#pragma unroll
        for (int i = 0; i < WEIGHT_BYTES / 16 / GEMM_THREADS; i++) {
            int chunk = i * GEMM_THREADS + (int)threadIdx.x, t = min(tile + chunk / (A::TILE_BYTES / 16), tiles - 1);
            copy_async(to + chunk * 16,
                       weights + ((long long)t * items + k) * A::TILE_BYTES + chunk % (A::TILE_BYTES / 16) * 16);
        }
    }
    // The two halves of a lane's 32 bytes change places in every other four lanes: no two lanes of a load share a bank.
    DEVICE void load_rows(int k) const {
        unsigned char* to = stage(k) + WEIGHT_BYTES;
        const signed char* from = rows + ((long long)(threadIdx.x / 64) * items + k) * 1024 + threadIdx.x % 64 * 16;
#pragma unroll
        for (int i = 0; i < (GROUPS + 3) / 4; i++) {
            int n = i * 4 + (int)threadIdx.x / 64, chunk = (int)threadIdx.x % 64;
            if (GROUPS % 4 && n >= GROUPS) break;
            copy_async_kept(to + n * 1024 + (chunk ^ (chunk >> 3 & 1)) * 16, from + (long long)i * items * 4096);
        }
    }
    DEVICE void multiply_stage(int k) {
        const unsigned char* at = stage(k);
        const unsigned char* b_at = at + WEIGHT_BYTES + warp_group() * 1024;
#pragma unroll(WIDE == 4 ? 1 : 2)
        for (int half = 0; half < 2; half++) {
            typename A::Opened opened[WIDE];
#pragma unroll
            for (int r = 0; r < WIDE; r++) opened[r] = A::open(at + (warp_tile() + r) * A::TILE_BYTES, half);
            int chunk = lane_id() * 2 + half;
            chunk ^= chunk >> 3 & 1;
            uint4 b[NT];
#pragma unroll
            for (int i = 0; i < NT; i++) b[i] = *(const uint4*)(b_at + i * 1024 + chunk * 16);
#pragma unroll
            for (int s = 0; s < 2; s++) {
#pragma unroll
                for (int r = 0; r < WIDE; r++) {
                    unsigned a[4];
                    A::take(opened[r], at + (warp_tile() + r) * A::TILE_BYTES, half * 2 + s, a);
#pragma unroll
                    for (int i = 0; i < NT; i++) A::multiply(sum[r][i], a, s ? b[i].z : b[i].x, s ? b[i].w : b[i].y);
                }
            }
        }
    }
    DEVICE void run() {
#pragma unroll
        for (int i = 0; i < WIDE * NT * 4; i++) (&sum[0][0][0])[i] = 0;
        int ahead = min((int)STAGES - 1, last - first);
        for (int i = 0; i < ahead; i++) load_weights(first + i);
        wait_prior();
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < ahead) load_rows(first + i);
            copy_commit();
        }
#pragma unroll 1
        for (int k = first; k < last; k++) {
            copy_wait<STAGES - 2>();
            __syncthreads();
            int next = k + STAGES - 1;
            if (next < last) {
                load_weights(next);
                load_rows(next);
            }
            copy_commit();
            multiply_stage(k);
        }
    }
    // Calls finish(row tile, g, token, sum of row g, sum of row g + 8) once for each pair of results: a lane has one row and
    // every fourth token. Sums go through shared memory, where blocks of a cluster find each other's; one short loop, since
    // code that runs once costs more than its instructions.
    template <class Finish> DEVICE void finish(const Finish& finish) const {
        int* parts = (int*)shared_arena();
        copy_wait<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < WIDE * NT; i++) {
            int* at = parts + ((warp_tile() + i / NT) * 16 + lane_id() / 4) * ROW + (warp_group() + i % NT) * 8 + (lane_id() & 3) * 2;
            const int(&from)[4] = sum[i / NT][i % NT];
            *(int2*)at = int2{from[0], from[1]};
            *(int2*)(at + 8 * ROW) = int2{from[2], from[3]};
        }
        int size = cluster_size(), rank = cluster_rank(), end = GROUPS * 2 * (rank + 1) / size;
        if (size > 1) {
            cluster_meet();
        } else {
            __syncthreads();
        }
        const int* at = parts + (warp_id() * 16 + lane_id() / 4) * ROW + (lane_id() & 3);
        // As many steps at once as registers allow: their loads overlap.
#pragma unroll 2
        for (int i = GROUPS * 2 * rank / size; i < end; i++) {
            int low = 0, high = 0;
            if (size == 1) {
                low = at[4 * i];
                high = at[4 * i + 8 * ROW];
            } else {
#pragma unroll 4
                for (int block = 0; block < size; block++) {
                    low += load_of_block(at + 4 * i, block);
                    high += load_of_block(at + 4 * i + 8 * ROW, block);
                }
            }
            finish(tile + warp_id(), lane_id() >> 2, group * 8 + 4 * i + (lane_id() & 3), low, high);
        }
        if (size > 1) cluster_leave();
    }
};

// Rows g and g + 8 of a row tile become outputs of one token.
DEVICE void finish_rows(const Phase& p, const Step& s, int low, int high, int tile, int g, int token) {
    if (token >= s.tokens || tile >= p.tiles) return;
    const float* scales = p.scales + tile * 4;
    const float row = s.quantized_scale[token];
    const int all = s.quantized_sum[token];
    float first = (float)(low - all) / row * scales[0] * scales[1], second = (float)(high - all) / row * scales[2] * scales[3];
    if (p.epilogue >= EPILOGUE_RELU2) {
        int feature = tile * 8 + g;
        if (feature < p.rows / 2) p.output[(long long)token * p.stride + feature] = gated(first, second, p.epilogue);
        return;
    }
    float* out = p.output + (long long)token * p.stride + tile * 16 + g;
    bool add = p.epilogue == EPILOGUE_ADD;
    if (tile * 16 + g < p.rows) out[0] = add ? out[0] + first : first;
    if (tile * 16 + g + 8 < p.rows) out[8] = add ? out[8] + second : second;
}

template <int WIDE, int NT, int STAGES> DEVICE void linear_rows(const Phase& p, const Step& s) {
    Gemm<Ternary, WIDE, NT, STAGES> gemm;
    gemm.place(p, s);
    gemm.run();
    launch_next();
    gemm.finish([&](int tile, int g, int token, int low, int high) { finish_rows(p, s, low, high, tile, g, token); });
}
