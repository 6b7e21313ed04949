// Linears of up to 64 rows, a launch each. A block has all its loads under way at once, and its warps meet once before the products. It has
// 8 row tiles, a warp for each, and the columns may be split over a cluster of 2, 4 or 8; or it has a single row tile, whose columns its warps split.
// More than 16 rows are multiplied by warpgroups where there are any. Sums are exact integers: no split changes a bit.
#pragma once

#include "linear.h"
#if WARPGROUPS
#include "group.h"
#endif

enum { FEW_THREADS = 256, FEW_TILES = FEW_THREADS / 32, FEW_ITEM_BYTES = WARPGROUPS ? 160 << 10 : 80 << 10, MANY_ITEM_BYTES = 168 << 10 };

// NT groups of 8 tokens, TILES row tiles. Shared memory: sums from the other blocks of the cluster, what finishing needs, then items: the
// weights of 128 columns and their bytes of each token.
template <int NT, int TILES = FEW_TILES> struct Few {
    enum {
        SHARES = FEW_TILES / TILES, // warps of a row tile
        ITEM = TILES * 512 + NT * 1024,
        ITEMS = (NT == 8 ? (int)MANY_ITEM_BYTES : (int)FEW_ITEM_BYTES) / ITEM, // at a time
        PARTS = FEW_TILES * NT * 512, // a part of each of up to 8 blocks, or warps of a row tile
        CHAINS = NT == 1 ? 2 : 1, // of products, so that one does not wait for the one before
        GATHERS = WARPGROUPS && NT >= 4, // by warpgroups
        HALVES = NT >= 4 ? 1 : 2,
        FACTS = NT == 8 ? 2048 : NT == 4 ? 1024 : FEW_TILES * 16 + NT * 128, // what warpgroups read begins at a multiple of 1024
        ROW_STRIDE = NT == 8 ? GATHERED_ROWS * 128 : NT * 1024, // of gathered rows, from 128 columns to the next
    };
    const Phase& p;
    const Step& s;
    int size, rank, tile, items, first, last; // of the cluster; the warp's row tile; columns / 128, and the block's part of them
    // Codes stay where they are in their bytes: rows g and g + 8 come 1 and 4 times as great in [0], and 16 and 64 times in [1], which
    // has the second half of each 32 columns. Of many tokens that would be too many sums: codes of this half are shifted.
    int sum[CHAINS][HALVES][NT][4];

    DEVICE static int4* parts() { return (int4*)shared_arena(); }
    DEVICE static float4* scales() { return (float4*)(shared_arena() + PARTS); }
    DEVICE static TokenFacts* tokens() { return (TokenFacts*)(scales() + FEW_TILES); }
    DEVICE static unsigned char* item(int i) { return shared_arena() + PARTS + FACTS + i * ITEM; }

    DEVICE Few(const Phase& phase, const Step& step) : p(phase), s(step) {
        size = cluster_size();
        rank = cluster_rank();
        tile = (int)blockIdx.x / size * TILES + warp_id() % TILES;
        items = (p.cols + 127) / 128;
        first = items * rank / size;
        last = items * (rank + 1) / size;
#pragma unroll
        for (int i = 0; i < CHAINS * HALVES * NT * 4; i++) (&sum[0][0][0][0])[i] = 0;
    }
    // The warp's share of the block's items.
    DEVICE static int begin(int count) { return SHARES == 1 ? 0 : count * (warp_id() / TILES) / SHARES; }
    DEVICE static int end(int count) { return SHARES == 1 ? count : count * (warp_id() / TILES + 1) / SHARES; }
    // Tiles past the end are copies of the last: nobody reads what they give.
    DEVICE void load_weights(int start, int count) const {
        const char* from = (const char*)p.weights + ((long long)min(tile, p.tiles - 1) * items + start) * 512 + lane_id() * 16;
        unsigned char* to = item(0) + warp_id() % TILES * 512 + lane_id() * 16;
#pragma unroll 4
        for (int i = begin(count); i < end(count); i++) copy_async(to + i * ITEM, from + i * 512);
    }
#if WARPGROUPS
    DEVICE void load_gathered(int start, int count) const {
        const signed char* from = s.quantized + (long long)start * ROW_STRIDE;
#pragma unroll 4
        for (int i = threadIdx.x; i < count * NT * 64; i += FEW_THREADS) {
            const int k = i / (NT * 64), at = i % (NT * 64) * 16;
            copy_async_kept(item(k) + FEW_TILES * 512 + at, from + k * ROW_STRIDE + at);
        }
    }
    DEVICE void gather(int i, const unsigned (&a)[4][4]) {
        gather_begin();
#pragma unroll
        for (int q = 0; q < 4; q++) gather_mma(sum[0][0], a[q], item(i) + FEW_TILES * 512, q);
        gather_commit();
    }
    DEVICE void open(int i, unsigned (&a)[4][4]) const { open_codes(((const uint4*)item(i))[warp_id() * 32 + lane_id()], a); }
    DEVICE void multiply_gathered(int count) {
        unsigned a[4][4], other[4][4];
        open(0, a);
        settle(sum[0][0]);
#pragma unroll 1
        for (int i = 0; i < count; i += 2) {
            gather(i, a);
            gather_wait<1>();
            if (i + 1 == count) break;
            open(i + 1, other);
            gather(i + 1, other);
            gather_wait<1>();
            if (i + 2 < count) open(i + 2, a);
        }
        gather_wait<0>();
        settle(sum[0][0]);
    }
#endif
    // The two halves of a lane's 32 bytes change places in every other four lanes: no two lanes of a load share a bank.
    DEVICE void load_rows(int start, int count) const {
#if WARPGROUPS
        if (GATHERS) return load_gathered(start, count);
#endif
#pragma unroll 4
        for (int i = threadIdx.x; i < count * NT * 64; i += FEW_THREADS) {
            int k = i / (NT * 64), n = i / 64 % NT, chunk = i % 64;
            copy_async_kept(item(k) + TILES * 512 + n * 1024 + (chunk ^ (chunk >> 3 & 1)) * 16,
                            s.quantized + ((long long)n * items + start + k) * 1024 + chunk * 16);
        }
    }
    DEVICE void multiply(int count) {
#if WARPGROUPS
        if constexpr (GATHERS) return multiply_gathered(count);
#endif
        const int low = (lane_id() * 2) ^ (lane_id() >> 2 & 1);
#pragma unroll(NT == 1 ? 5 : 2)
        for (int i = begin(count); i < end(count); i++) {
            const uint4* at = (const uint4*)item(i);
            const uint4 w = at[warp_id() % TILES * 32 + lane_id()];
            uint4 b[NT][2];
#pragma unroll
            for (int n = 0; n < NT; n++) {
                b[n][0] = at[TILES * 32 + n * 64 + low];
                b[n][1] = at[TILES * 32 + n * 64 + (low ^ 1)];
            }
            multiply_words(w.x, w.y, b, 0, sum[0]);
            multiply_words(w.z, w.w, b, 1, sum[CHAINS - 1]);
        }
    }
    // Two words of codes, 64 columns.
    DEVICE static void multiply_words(unsigned v, unsigned u, const uint4 (&b)[NT][2], int half, int (&to)[HALVES][NT][4]) {
        const unsigned a[4] = {v & 0x03030303u, v & 0x0c0c0c0cu, u & 0x03030303u, u & 0x0c0c0c0cu};
        constexpr int shift = HALVES == 2 ? 0 : 4;
        constexpr unsigned low = 0x30303030u >> shift, high = 0xc0c0c0c0u >> shift;
        const unsigned c[4] = {v >> shift & low, v >> shift & high, u >> shift & low, u >> shift & high};
#pragma unroll
        for (int n = 0; n < NT; n++) mma(to[0][n], a, b[n][half].x, b[n][half].z);
#pragma unroll
        for (int n = 0; n < NT; n++) mma(to[HALVES - 1][n], c, b[n][half].y, b[n][half].w);
    }
    // Where this lane's four sums of a fragment go: rows g and g + 8 of a row tile, tokens 2 t and 2 t + 1 of a group. Fragment f
    // is group f % NT of row tile f / NT.
    DEVICE int row(int f) const {
        int t = (int)blockIdx.x / size * TILES + f / NT;
        return (p.epilogue >= EPILOGUE_RELU2 ? t * 8 : t * 16) + lane_id() / 4;
    }
    DEVICE static int token(int f) { return f % NT * 8 + (lane_id() & 3) * 2; }
    DEVICE float4 residual(int f) const {
        float4 before = {0.0f, 0.0f, 0.0f, 0.0f};
        if (p.epilogue != EPILOGUE_ADD) return before;
        const int r = row(f), t = token(f);
        const float* at = p.output + (long long)t * p.stride + r;
        if (t < s.tokens && r < p.rows) before.x = at[0];
        if (t + 1 < s.tokens && r < p.rows) before.y = at[p.stride];
        if (t < s.tokens && r + 8 < p.rows) before.z = at[8];
        if (t + 1 < s.tokens && r + 8 < p.rows) before.w = at[p.stride + 8];
        return before;
    }
    DEVICE void finish(int f, const int4& v, const float4& before) const {
        const bool gates = p.epilogue >= EPILOGUE_RELU2, add = p.epilogue == EPILOGUE_ADD;
        const int r = row(f), t = token(f), rows = gates ? p.rows / 2 : p.rows;
        const float4 scale = scales()[f / NT];
        const int low[2] = {v.x, v.y}, high[2] = {v.z, v.w};
        const float first_before[2] = {before.x, before.y}, second_before[2] = {before.z, before.w};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const TokenFacts token = tokens()[t + i];
            float y = quotient((float)(low[i] - token.sum), token) * scale.x * scale.y;
            float z = quotient((float)(high[i] - token.sum), token) * scale.z * scale.w;
            float* at = p.output + (long long)(t + i) * p.stride + r;
            if (t + i >= s.tokens) break;
            if (gates) {
                if (r < rows) at[0] = gated(y, z, p.epilogue);
                continue;
            }
            if (r < rows) at[0] = add ? first_before[i] + y : y;
            if (r + 8 < rows) at[8] = add ? second_before[i] + z : z;
        }
    }
    // Both halves as great as the first, before they could overflow.
    DEVICE void fold() {
        if (HALVES == 1) return;
#pragma unroll
        for (int i = 0; i < CHAINS * NT * 4; i++) {
            const int k = i / (NT * 4), n = i / 4 % NT, c = i % 4;
            sum[k][0][n][c] += sum[k][HALVES - 1][n][c] >> 4;
            sum[k][HALVES - 1][n][c] = 0;
        }
    }
    DEVICE int4 total(int n) const {
        int v[4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
            v[c] = sum[0][0][n][c];
            if (CHAINS > 1) v[c] += sum[CHAINS - 1][0][n][c];
        }
        return int4{v[0], v[1], v[2] >> 2, v[3] >> 2};
    }
    // The sum of a fragment's parts, `each` fragments from one to the next.
    DEVICE static int4 sum_parts(int f, int each, int count) {
        int4 v = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i >= count) continue;
            int4 w = parts()[(i * each + f) * 32 + lane_id()];
            v = int4{v.x + w.x, v.y + w.y, v.z + w.z, v.w + w.w};
        }
        return v;
    }
    // Each block of the cluster finishes every `size`th fragment, to which all send their sums; or each warp of a block alone those of a
    // row tile, or every eighth.
    DEVICE void finish_all(const float4& before) const {
        if (SHARES > 1) {
#pragma unroll
            for (int n = 0; n < NT; n++) parts()[(warp_id() * NT + n) * 32 + lane_id()] = total(n);
            __syncthreads();
            if (warp_id() < TILES * NT) finish(warp_id(), sum_parts(warp_id(), TILES * NT, SHARES), before);
            return;
        }
        if (size == 1) {
#pragma unroll
            for (int n = 0; n < NT; n++) finish(warp_id() * NT + n, total(n), residual(warp_id() * NT + n));
            return;
        }
        const int each = FEW_TILES * NT / size;
        cluster_wait(); // all of its blocks are there
#pragma unroll
        for (int n = 0; n < NT; n++) {
            int f = warp_id() * NT + n;
            store_to_block(parts() + (rank * each + f / size) * 32 + lane_id(), f % size, total(n));
        }
        cluster_arrive();
        cluster_wait();
#pragma unroll 1
        for (int k = warp_id(); k * size + rank < FEW_TILES * NT; k += FEW_THREADS / 32) {
            const int f = k * size + rank;
            finish(f, sum_parts(k, each, size), k == warp_id() ? before : residual(f));
        }
    }
    DEVICE void run() {
        static_assert(SHARES == 1 || TILES * NT <= FEW_THREADS / 32, "a warp finishes a fragment");
        if (SHARES == 1 && size > 1) cluster_arrive();
        int count = min(last - first, (int)ITEMS);
        load_weights(first, count);
        if (threadIdx.x < TILES) {
            int t = (int)blockIdx.x / size * TILES + (int)threadIdx.x;
            copy_async_kept(scales() + threadIdx.x, p.scales + min(t, p.tiles - 1) * 4);
        }
        wait_prior();
        load_rows(first, count);
        copy_commit();
        launch_next();
        if ((int)threadIdx.x < min(s.tokens, NT * 8)) {
            tokens()[threadIdx.x] = facts_of(s.quantized_scale[threadIdx.x], s.quantized_sum[threadIdx.x]);
        }
        float4 before = {0.0f, 0.0f, 0.0f, 0.0f};
        if (SHARES == 1 && size > 1 && warp_id() * size + rank < FEW_TILES * NT) before = residual(warp_id() * size + rank);
        if (SHARES > 1 && warp_id() < TILES * NT) before = residual(warp_id());
#pragma unroll 1
        for (int start = first; start < last; start += ITEMS) {
            count = min(last - start, (int)ITEMS);
            if (start > first) {
                __syncthreads();
                load_weights(start, count);
                load_rows(start, count);
                copy_commit();
            }
            copy_wait<0>();
            if (GATHERS) show_to_tensor_cores();
            __syncthreads();
            multiply(count);
            fold();
        }
        finish_all(before);
    }
};
