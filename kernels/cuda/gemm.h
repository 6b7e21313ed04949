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

    DEVICE void place(const Phase& p, const signed char* quantized) {
        int size = cluster_size(), index = (int)blockIdx.x / size, rank = cluster_rank();
        int row_blocks = (p.tiles + GEMM_ROW_TILES - 1) / GEMM_ROW_TILES;
        weights = (const unsigned char*)p.weights;
        tiles = p.tiles;
        items = (p.cols + 127) / 128;
        tile = index % row_blocks * GEMM_ROW_TILES;
        group = index / row_blocks * GROUPS;
        rows = quantized + (long long)group * items * 1024;
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
#pragma unroll(GROUPS == 16 ? 1 : 2)
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
    // Behind the stages: what finish() needs of the block's rows and tokens, on its way since the launch.
    DEVICE static unsigned char* facts() { return shared_arena() + STAGES * STAGE_BYTES; }

    // `begin` starts loads that wait for nothing, `follow` those that wait for the launch before.
    template <class Begin, class Follow> DEVICE void run(const Begin& begin, const Follow& follow) {
#pragma unroll
        for (int i = 0; i < WIDE * NT * 4; i++) (&sum[0][0][0])[i] = 0;
        int ahead = min((int)STAGES - 1, last - first);
        for (int i = 0; i < ahead; i++) load_weights(first + i);
        begin();
        wait_prior();
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < ahead) load_rows(first + i);
            copy_commit();
        }
        follow();
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
    // Calls finish(row tile, g, token, stride, sums of row g, sums of row g + 8) with those of some tokens, `stride` apart.
    // Sums go through shared memory, where blocks of a cluster find each other's; one short loop, since code that runs once
    // costs more than its instructions.
    template <class Finish> DEVICE void finish(const Finish& finish) const {
        int* parts = (int*)shared_arena();
        copy_wait<0>();
        __syncthreads();
        if (cluster_size() > 1) {
            add_parts(parts, finish);
            return;
        }
#pragma unroll
        for (int i = 0; i < WIDE * NT; i++) {
            int* at = parts + ((warp_tile() + i / NT) * 16 + lane_id() / 4) * ROW + (warp_group() + i % NT) * 8 + (lane_id() & 3) * 2;
            const int(&from)[4] = sum[i / NT][i % NT];
            *(int2*)at = int2{from[0], from[1]};
            *(int2*)(at + 8 * ROW) = int2{from[2], from[3]};
        }
        __syncthreads();
        // A lane has one row and every fourth token.
        const int* at = parts + (warp_id() * 16 + lane_id() / 4) * ROW + (lane_id() & 3);
        enum { COUNT = GROUPS == 1 ? 2 : 4 };
#pragma unroll 1
        for (int i = 0; i < GROUPS * 2; i += COUNT) {
            int low[COUNT], high[COUNT];
#pragma unroll
            for (int j = 0; j < COUNT; j++) {
                low[j] = at[4 * (i + j)];
                high[j] = at[4 * (i + j) + 8 * ROW];
            }
            finish(tile + warp_id(), lane_id() >> 2, group * 8 + 4 * i + (lane_id() & 3), 4, low, high);
        }
    }
    // Each block of the cluster finishes some of the row tiles. Lane 8 c + g reads sum c of row g and four of its tokens.
    template <class Finish> DEVICE void add_parts(int* parts, const Finish& finish) const {
#pragma unroll
        for (int i = 0; i < WIDE * NT; i++) {
            int* at = parts + ((warp_tile() + i / NT) * GROUPS + warp_group() + i % NT) * 128 + lane_id();
#pragma unroll
            for (int c = 0; c < 4; c++) at[c * 32] = sum[i / NT][i % NT][c];
        }
        cluster_meet();
        const int size = cluster_size(), share = GEMM_ROW_TILES / size * GROUPS, begin = cluster_rank() * share;
        const bool upper = lane_id() >= 16;
#pragma unroll 1
        for (int f = begin + warp_id(); f < begin + share; f += GEMM_THREADS / 32) {
            int4 v = {0, 0, 0, 0};
#pragma unroll 8
            for (int block = 0; block < size; block++) {
                int4 w = load_of_block((const int4*)(parts + f * 128) + lane_id(), block);
                v = int4{v.x + w.x, v.y + w.y, v.z + w.z, v.w + w.w};
            }
            // Rows g + 8 are in the other half of the lanes: each half takes two tokens of both.
            int first = shuffle_xor(upper ? v.x : v.z, 16), second = shuffle_xor(upper ? v.y : v.w, 16);
            int token = (group + f % GROUPS) * 8 + lane_id() / 8 % 2 + (upper ? 4 : 0), t = tile + f / GROUPS;
            const int low[2] = {upper ? first : v.x, upper ? second : v.y}, high[2] = {upper ? v.z : first, upper ? v.w : second};
            finish(t, lane_id() % 8, token, 2, low, high);
        }
        cluster_leave();
    }
};

// Rows g and g + 8 of a row tile become outputs of COUNT tokens. All loads come first: after a store nothing may overtake it.
struct FinishLinear {
    const Phase& p;
    const Step& s;
    int first_tile, first_token; // of the block
    const float4* scales;        // in shared memory, of each row tile
    float2* tokens;              // likewise: factor and sum of each token's bytes

    DEVICE void begin() const {
        int tile = min(first_tile + (int)threadIdx.x, p.tiles - 1);
        if (threadIdx.x < GEMM_ROW_TILES) copy_async_kept((void*)(scales + threadIdx.x), p.scales + tile * 4);
    }
    DEVICE void follow(int count) const {
        int t = first_token + (int)threadIdx.x;
        if ((int)threadIdx.x < count && t < s.tokens) {
            tokens[threadIdx.x] = float2{s.quantized_scale[t], float_of_bits((unsigned)s.quantized_sum[t])};
        }
    }
    template <int COUNT>
    DEVICE void operator()(int tile, int g, int token, int stride, const int (&low)[COUNT], const int (&high)[COUNT]) const {
        if (tile >= p.tiles) return;
        const bool gates = p.epilogue >= EPILOGUE_RELU2, add = p.epilogue == EPILOGUE_ADD;
        const int row = gates ? tile * 8 + g : tile * 16 + g, rows = gates ? p.rows / 2 : p.rows;
        float before[COUNT][2] = {};
        float* out = p.output + (long long)token * p.stride + row;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (token + i * stride >= s.tokens) break;
            const float* at = out + (long long)i * stride * p.stride;
            if (add && row < rows) before[i][0] = at[0];
            if (add && row + 8 < rows) before[i][1] = at[8];
        }
        const float4 scale = scales[tile - first_tile];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (token + i * stride >= s.tokens) break;
            const float2 bytes = tokens[token + i * stride - first_token];
            const int all = (int)bits_of_float(bytes.y);
            float first = (float)(low[i] - all) / bytes.x * scale.x * scale.y;
            float second = (float)(high[i] - all) / bytes.x * scale.z * scale.w;
            float* at = out + (long long)i * stride * p.stride;
            if (gates) {
                if (row < rows) at[0] = gated(first, second, p.epilogue);
                continue;
            }
            if (row < rows) at[0] = add ? before[i][0] + first : first;
            if (row + 8 < rows) at[8] = add ? before[i][1] + second : second;
        }
    }
};

template <int WIDE, int NT, int STAGES> DEVICE void linear_rows(const Phase& p, const Step& s) {
    Gemm<Ternary, WIDE, NT, STAGES> gemm;
    gemm.place(p, s.quantized);
    const float4* scales = (const float4*)gemm.facts();
    FinishLinear finish{p, s, gemm.tile, gemm.group * 8, scales, (float2*)(scales + GEMM_ROW_TILES)};
    gemm.run([&] { finish.begin(); }, [&] { finish.follow(gemm.GROUPS * 8); });
    launch_next();
    gemm.finish(finish);
}
