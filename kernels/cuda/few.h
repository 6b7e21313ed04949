// Linears of up to 64 rows, a launch each. A block has all its loads under way at once, and its warps meet once before the products. It has
// 8 row tiles, a warp for each, and the columns may be split over a cluster of 2, 4 or 8; or it has a single row tile, whose columns its warps split.
// More than 16 rows are multiplied by warpgroups where there are any. Sums are exact integers: no split changes a bit.
#pragma once

#include "linear.h"
#if WARPGROUPS
#include "group.h"
#endif

enum { FEW_THREADS = 256, FEW_TILES = FEW_THREADS / 32, FEW_ITEM_BYTES = WARPGROUPS ? 160 << 10 : 80 << 10, APART_ITEMS = 20, PAIRED_ITEM_BYTES = 216 << 10 };

// NT groups of 8 tokens, TILES row tiles. Shared memory: sums from the other blocks of the cluster, what finishing needs, then items: the
// weights of 128 columns and their bytes of each token.
template <int NT, int TILES = FEW_TILES> struct Few {
    enum {
        SHARES = FEW_TILES / TILES, // warps of a row tile
        PAIRED = TILES == 4, // warpgroups share row tiles, and there may be several blocks for the same ones, each for 8 NT tokens
        APART = NT == 8 && !PAIRED, // weights lie behind all rows; where there are more than SLOTS items, a lane keeps its codes of the last
        SLOTS = 16,
        KEPT = APART_ITEMS - SLOTS,
        ITEM = TILES * 512 + NT * 1024,
        ITEMS = APART ? (int)APART_ITEMS : (PAIRED ? (int)PAIRED_ITEM_BYTES : (int)FEW_ITEM_BYTES) / ITEM, // at a time
        PARTS = FEW_TILES * NT * 512, // a part of each of up to 8 blocks, or warps of a row tile
        CHAINS = NT == 1 ? 2 : 1, // of products, so that one does not wait for the one before
        SHARED_OUT = PAIRED ? TILES * NT / FEW_TILES : 1, // fragments that a warp finishes at once
        GATHERS = WARPGROUPS && NT >= 4, // by warpgroups
        HALVES = NT >= 4 ? 1 : 2,
        FACTS = NT == 8 ? 2048 : NT == 4 ? 1024 : FEW_TILES * 16 + NT * 128 + 128, // what warpgroups read begins at a multiple of 1024
        ROW_STRIDE = NT == 8 || PAIRED ? GATHERED_ROWS * 128 : 4096, // of gathered rows, from 128 columns to the next
    };
    const Phase& p;
    const Step& s;
    int size, rank, behind_parts, first_tile, first_token;
    int tile, items, first, last, held; // the warp's row tile; columns / 128, the block's part of them, and how many of these at a time
    // Codes stay where they are in their bytes: rows g and g + 8 come 1 and 4 times as great in [0], and 16 and 64 times in [1], which
    // has the second half of each 32 columns. Of many tokens that would be too many sums: codes of this half are shifted.
    int sum[CHAINS][HALVES][NT][4];
    uint4 kept[KEPT];

    // Parts take the items' place where no other block sends any.
    DEVICE int4* parts() const { return (int4*)(PAIRED ? item(0) : shared_arena()); }
    DEVICE float4* scales() const { return (float4*)(shared_arena() + behind_parts); }
    DEVICE TokenFacts* tokens() const { return (TokenFacts*)(scales() + FEW_TILES); }
    DEVICE Gate* gate() const { return (Gate*)(tokens() + NT * 8); } // of the parts from a cluster
    DEVICE unsigned char* item(int i) const { return shared_arena() + behind_parts + FACTS + i * (APART ? NT * 1024 : ITEM); }
    DEVICE unsigned char* rows_of(int i) const { return item(i) + (APART ? 0 : TILES * 512); }
    DEVICE unsigned char* weights_of(int i) const { return APART ? item(held) + i % SLOTS * (TILES * 512) : item(i); }

    DEVICE Few(const Phase& phase, const Step& step) : p(phase), s(step) {
        size = cluster_size();
        rank = cluster_rank();
        behind_parts = PAIRED || (APART && size == 1) ? 0 : PARTS;
        first_tile = (int)blockIdx.x / size * TILES;
        first_token = 0;
        if (PAIRED) {
            const int all = (p.tiles + TILES - 1) / TILES;
            first_tile = (int)blockIdx.x % all * TILES;
            first_token = (int)blockIdx.x / all * (NT * 8);
        }
        tile = first_tile + warp_id() % TILES;
        items = (p.cols + 127) / 128;
        first = items * rank / size;
        last = items * (rank + 1) / size;
        held = min(last - first, (int)ITEMS);
#pragma unroll
        for (int i = 0; i < CHAINS * HALVES * NT * 4; i++) (&sum[0][0][0][0])[i] = 0;
    }
    // The warp's share of the block's items.
    DEVICE static int begin(int count) { return SHARES == 1 ? 0 : count * (warp_id() / TILES) / SHARES; }
    DEVICE static int end(int count) { return SHARES == 1 ? count : count * (warp_id() / TILES + 1) / SHARES; }
    // Tiles past the end are copies of the last: nobody reads what they give.
    DEVICE int place() const { return (warp_id() % TILES * 32 + lane_id()) * 16; }
    DEVICE void load_weights(int start, int count) {
        const char* from = (const char*)p.weights + ((long long)min(tile, p.tiles - 1) * items + start) * 512 + lane_id() * 16;
#pragma unroll 4
        for (int i = begin(count); i < (APART ? min(count, (int)SLOTS) : end(count)); i++) {
            unsigned char* to = weights_of(i) + place();
            if (APART) settle(to);
            copy_async(to, from + i * 512);
        }
#pragma unroll
        for (int i = 0; i < KEPT; i++) {
            if (APART && SLOTS + i < count) kept[i] = *(const uint4*)(from + (SLOTS + i) * 512);
        }
    }
#if WARPGROUPS
    DEVICE void load_gathered(int start, int count) const {
        const signed char* from = s.quantized + (long long)start * ROW_STRIDE + first_token * 128;
#pragma unroll 4
        for (int i = threadIdx.x; i < count * NT * 64; i += FEW_THREADS) {
            const int k = i / (NT * 64), at = i % (NT * 64) * 16;
            unsigned char* to = rows_of(k) + at;
            if (APART) settle(to);
            copy_async_kept(to, from + k * ROW_STRIDE + at);
        }
    }
    DEVICE uint4 codes(int i) const {
        if (!APART || i < SLOTS) return *(const uint4*)(weights_of(i) + place());
        uint4 words = kept[0];
#pragma unroll
        for (int k = 1; k < KEPT; k++) {
            if (i == SLOTS + k) words = kept[k];
        }
        return words;
    }
    // Multiplies an item, whose codes are in `a`; those of the next go to `next`, each 32 columns as soon as the products before have done
    // with what they had there.
    DEVICE void gather(int i, bool more, const unsigned (&a)[4][4], unsigned (&next)[4][4]) {
        uint4 words = {};
        if (more) words = codes(i + 1);
#pragma unroll
        for (int q = 0; q < 4; q++) {
            gather_begin();
            gather_mma(sum[0][0], a[q], rows_of(i), q);
            gather_commit();
            gather_wait<4>();
            if (more) open_word(q == 0 ? words.x : q == 1 ? words.y : q == 2 ? words.z : words.w, next[q]);
        }
    }
    DEVICE void multiply_gathered(int count) {
        const int first = begin(count), last = end(count);
        if (PAIRED && first == last) return;
        unsigned a[4][4], other[4][4];
        open_codes(codes(first), a);
        settle(sum[0][0]);
#pragma unroll 1
        for (int i = first; i < last; i += 2) {
            gather(i, i + 1 < last, a, other);
            if (i + 1 < last) gather(i + 1, i + 2 < last, other, a);
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
        int t = first_tile + f / NT;
        return (p.epilogue >= EPILOGUE_RELU2 ? t * 8 : t * 16) + lane_id() / 4;
    }
    DEVICE static int token(int f) { return f % NT * 8 + (lane_id() & 3) * 2; }
    DEVICE float4 residual(int f) const {
        float4 before = {0.0f, 0.0f, 0.0f, 0.0f};
        if (p.epilogue != EPILOGUE_ADD) return before;
        const int r = row(f), t = first_token + token(f);
        const float* at = p.output + (long long)t * p.stride + r;
        if (t < s.tokens && r < p.rows) before.x = at[0];
        if (t + 1 < s.tokens && r < p.rows) before.y = at[p.stride];
        if (t < s.tokens && r + 8 < p.rows) before.z = at[8];
        if (t + 1 < s.tokens && r + 8 < p.rows) before.w = at[p.stride + 8];
        return before;
    }
    // Fragments from f on, of one row tile, by code of their own for gates, so that nobody jumps over what others do.
    template <int COUNT> DEVICE void finish(int f, const int4 (&v)[COUNT], const float4 (&before)[COUNT]) const {
        if (p.epilogue == EPILOGUE_RELU2) return finish_as<EPILOGUE_RELU2>(f, v, before);
        if (p.epilogue == EPILOGUE_SILU) return finish_as<EPILOGUE_SILU>(f, v, before);
        finish_as<EPILOGUE_STORE>(f, v, before);
    }
    // All loads come first: after a store nothing may overtake it.
    template <int EPILOGUE, int COUNT> DEVICE void finish_as(int f, const int4 (&v)[COUNT], const float4 (&before)[COUNT]) const {
        const bool gates = EPILOGUE >= EPILOGUE_RELU2, add = !gates && p.epilogue == EPILOGUE_ADD;
        const int r = row(f), rows = gates ? p.rows / 2 : p.rows;
        const float4 scale = scales()[f / NT];
        TokenFacts facts[COUNT][2];
        float2 y[COUNT][2];
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) facts[n][i] = tokens()[token(f + n) + i];
        }
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            const int low[2] = {v[n].x, v[n].y}, high[2] = {v[n].z, v[n].w};
            const float2 first[2] = {{before[n].x, before[n].z}, {before[n].y, before[n].w}};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const TokenFacts& of = facts[n][i];
                float2& z = y[n][i];
                z.x = quotient((float)(low[i] - of.sum), of) * scale.x * scale.y;
                z.y = quotient((float)(high[i] - of.sum), of) * scale.z * scale.w;
                if (gates) z.x = gated(z.x, z.y, EPILOGUE);
                if (add) z = float2{first[i].x + z.x, first[i].y + z.y};
            }
        }
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int t = first_token + token(f + n) + i;
                float* at = p.output + (long long)t * p.stride + r;
                if (t < s.tokens && r < rows) at[0] = y[n][i].x;
                if (t < s.tokens && !gates && r + 8 < rows) at[8] = y[n][i].y;
            }
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
    DEVICE int4 sum_parts(int f, int each, int count) const {
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
    DEVICE void finish_all(const float4 (&before)[SHARED_OUT]) const {
        if (SHARES > 1) {
            if (PAIRED) __syncthreads();
#pragma unroll
            for (int n = 0; n < NT; n++) parts()[(warp_id() * NT + n) * 32 + lane_id()] = total(n);
            __syncthreads();
            if (warp_id() * SHARED_OUT < TILES * NT) {
                int4 v[SHARED_OUT];
#pragma unroll
                for (int i = 0; i < SHARED_OUT; i++) v[i] = sum_parts(warp_id() * SHARED_OUT + i, TILES * NT, SHARES);
                finish<SHARED_OUT>(warp_id() * SHARED_OUT, v, before);
            }
            return;
        }
        if (size == 1) {
            enum { AT_ONCE = NT < 4 ? NT : 4 };
#pragma unroll
            for (int n = 0; n < NT; n += AT_ONCE) {
                const int f = warp_id() * NT + n;
                int4 v[AT_ONCE];
                float4 there[AT_ONCE];
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    v[i] = total(n + i);
                    there[i] = residual(f + i);
                }
                finish<AT_ONCE>(f, v, there);
            }
            return;
        }
        const int each = FEW_TILES * NT / size;
        cluster_wait(); // all of its blocks are there
#pragma unroll
        for (int n = 0; n < NT; n++) {
            int f = warp_id() * NT + n;
            store_to_block(parts() + (rank * each + f / size) * 32 + lane_id(), f % size, total(n), gate());
        }
        gate_wait(gate(), 0);
#pragma unroll 1
        for (int k = warp_id(); k * size + rank < FEW_TILES * NT; k += FEW_THREADS / 32) {
            const int f = k * size + rank;
            finish<1>(f, {sum_parts(k, each, size)}, {k == warp_id() ? before[0] : residual(f)});
        }
    }
    DEVICE void run() {
        static_assert(SHARES == 1 || PAIRED || TILES * NT <= FEW_THREADS / 32, "a warp finishes a fragment");
        if (SHARES == 1 && size > 1) {
            if (threadIdx.x == 0) {
                gate_open(gate(), 1);
                gate_expect(gate(), PARTS);
                gates_opened();
            }
            cluster_arrive();
        }
        int count = min(last - first, (int)ITEMS);
        load_weights(first, count);
        if (threadIdx.x < TILES) {
            int t = first_tile + (int)threadIdx.x;
            copy_async_kept(scales() + threadIdx.x, p.scales + min(t, p.tiles - 1) * 4);
        }
        wait_prior();
        load_rows(first, count);
        copy_commit();
        launch_next();
        if ((int)threadIdx.x < min(s.tokens - first_token, NT * 8)) {
            const int t = first_token + (int)threadIdx.x;
            tokens()[threadIdx.x] = facts_of(s.quantized_scale[t], s.quantized_sum[t]);
        }
        float4 before[SHARED_OUT] = {};
        if (SHARES == 1 && size > 1 && warp_id() * size + rank < FEW_TILES * NT) before[0] = residual(warp_id() * size + rank);
#pragma unroll
        for (int i = 0; i < SHARED_OUT; i++) {
            const int f = warp_id() * SHARED_OUT + i;
            if (SHARES > 1 && f < TILES * NT) before[i] = residual(f);
        }
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
