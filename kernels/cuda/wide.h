// Matrix products of very many rows by blocks that stay, on devices from 9.0 on: four warps copy stages of 128 columns in bulk, two
// warpgroups multiply what has come. Weights go to the tensor cores from registers, opened while the stage before is
// multiplied; activations from shared memory.
#pragma once

#include "group.h"
#include "screen.h"

enum {
    WIDE_THREADS = 3 * 128, // four warps that copy, two groups that multiply
    WIDE_COPIER_REGISTERS = 40,
    WIDE_REGISTERS = 232,
};

// Stages in shared memory, and gates behind them: `full` when a stage's bytes are there, `empty` when all have done with it.
template <int STAGE_BYTES, int STAGES, bool CLUSTERS> struct WideRing {
    enum { GATE_BYTES = (STAGES + 1) * 16, FACTS = STAGES * STAGE_BYTES + GATE_BYTES };

    DEVICE static unsigned char* stage(int at) { return shared_arena() + at % STAGES * STAGE_BYTES; }
    DEVICE static Gate* full(int at) { return (Gate*)(shared_arena() + STAGES * STAGE_BYTES) + at % STAGES; }
    DEVICE static Gate* empty(int at) { return full(at) + STAGES; }
    DEVICE static Gate* turn() { return full(0) + 2 * STAGES; }
    DEVICE static unsigned char* facts() { return shared_arena() + FACTS; }

    // `leaves` arrivals empty a stage.
    DEVICE static void open(int leaves) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                gate_open(full(i), 4);
                gate_open(empty(i), leaves);
            }
            gate_open(turn(), 4);
            gates_opened();
        }
        if (CLUSTERS) {
            cluster_meet();
        } else {
            __syncthreads();
        }
    }
    DEVICE static void wait_full(int at) { gate_wait(full(at), at / STAGES % 2); }
    DEVICE static void wait_empty(int at) { gate_wait(empty(at), at / STAGES % 2 ^ 1); }
    // By all lanes of a warp, once its products with the stage are done.
    DEVICE static void leave(int at) {
        __syncwarp();
        if (!CLUSTERS) {
            if (lane_id() == 0) gate_arrive(empty(at));
        } else if (lane_id() < cluster_size()) {
            gate_arrive_at(empty(at), lane_id());
        }
    }
};

// What a warp copies of each stage: a quarter of it, some row tiles and some activations. Row tiles past the end are copies of the
// last: nobody reads what they give.
template <int TILE_BYTES, int TILES> struct WideSources {
    enum { COUNT = TILES / 4 };
    const unsigned char* from[COUNT];

    DEVICE WideSources(const Phase& p, int tile, int items) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const long long first = (long long)min(tile + warp_id() * COUNT + i, p.tiles - 1) * items;
            from[i] = (const unsigned char*)p.weights + first * TILE_BYTES;
        }
    }
    DEVICE void copy(unsigned char* stage, Gate* full) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            copy_bulk(stage + (warp_id() * COUNT + i) * TILE_BYTES, from[i], TILE_BYTES, full);
            from[i] += TILE_BYTES;
        }
    }
};

// Linear layers: blocks of 256 rows x 128 tokens, half of the rows for each warpgroup. The second group is some stages behind, so
// that one finishes while the other multiplies.
struct WideLinear {
    enum {
        NT = 16,
        TILES = 16,
        TOKENS = NT * 8,
        WEIGHT_BYTES = TILES * 512,
        STAGE_BYTES = WEIGHT_BYTES + TOKENS * 128,
        STAGES = 8,
        BEHIND = 4,
    };
    typedef WideRing<STAGE_BYTES, STAGES, false> Ring;
    typedef unsigned Opened[2][4][4]; // halves of the rows, steps of 32 columns

    const Phase& p;
    const Step& s;
    int items, row_blocks, count; // columns / 128; of tiles

    DEVICE WideLinear(const Phase& phase, const Step& step) : p(phase), s(step) {
        items = (p.cols + 127) / 128;
        row_blocks = (p.tiles + TILES - 1) / TILES;
        count = row_blocks * ((s.tokens + TOKENS - 1) / TOKENS);
    }
    DEVICE int tile_of(int index) const { return index % row_blocks * TILES; }
    DEVICE int token_of(int index) const { return index / row_blocks * TOKENS; }

    DEVICE void copy() const {
        int at = 0;
        wait_prior();
#pragma unroll 1
        for (int index = blockIdx.x; index < count; index += gridDim.x) {
            WideSources<512, TILES> sources(p, tile_of(index), items);
            const int part = warp_id() * TOKENS * 32;
            const signed char* rows = s.quantized + (long long)token_of(index) * items * 128 + part;
#pragma unroll 1
            for (int k = 0; k < items; k++, at++, rows += TOKENS * 128) {
                Ring::wait_empty(at);
                Gate* full = Ring::full(at);
                gate_expect(full, STAGE_BYTES / 4);
                copy_bulk(Ring::stage(at) + WEIGHT_BYTES + part, rows, TOKENS * 32, full);
                sources.copy(Ring::stage(at), full);
            }
        }
    }

    DEVICE static uint4 codes(int at, int m) {
        return *(const uint4*)(Ring::stage(at) + m * 2048 + (warp_id() / 4 - 1) * 4096 + threadIdx.x % 128 * 16);
    }
    // Multiplies a stage, whose weights are in `a`; those of the next go to `next`, each 32 columns as soon as the stage before has
    // done with them: a warp stands still where the tensor cores have no room for its next product.
    DEVICE static void step(int at, bool first, bool last, int (&sum)[2][NT][4], const Opened& a, Opened& next) {
        uint4 words[2] = {};
#pragma unroll
        for (int q = 0; q < 4; q++) {
            gather_begin();
#pragma unroll
            for (int m = 0; m < 2; m++) gather_mma(sum[m], a[m][q], Ring::stage(at) + WEIGHT_BYTES, q);
            gather_commit();
            gather_wait<4>();
            if (last) continue;
            if (q == 0) {
                Ring::wait_full(at + 1);
                words[0] = codes(at + 1, 0);
                words[1] = codes(at + 1, 1);
            }
#pragma unroll
            for (int m = 0; m < 2; m++) open_word(q == 0 ? words[m].x : q == 1 ? words[m].y : q == 2 ? words[m].z : words[m].w, next[m][q]);
        }
        if (!first) Ring::leave(at - 1);
    }

    DEVICE void multiply(int group) const {
        TokenFacts* facts = (TokenFacts*)Ring::facts() + group * 2 * TOKENS;
        int round = 0;
#pragma unroll 1
        for (int index = blockIdx.x; index < count; index += gridDim.x, round++) {
            if (round == 0) wait_prior();
            TokenFacts* of = facts + round % 2 * TOKENS;
            const int t = token_of(index) + (int)threadIdx.x % 128;
            if (t < s.tokens) of[threadIdx.x % 128] = facts_of(s.quantized_scale[t], s.quantized_sum[t]);
            int sum[2][NT][4];
#pragma unroll
            for (int i = 0; i < 2 * NT * 4; i++) sum[i / (NT * 4)][i / 4 % NT][i % 4] = 0;
            const int begin = round * items, end = begin + items;
            const bool staggered = round == 0 && index + (int)gridDim.x < count && items > BEHIND;
            Opened a, other;
            if (staggered && group == 1) gate_wait(Ring::turn(), 0);
            Ring::wait_full(begin);
            open_codes(codes(begin, 0), a[0]);
            open_codes(codes(begin, 1), a[1]);
            settle(sum[0]);
            settle(sum[1]);
#pragma unroll 1
            for (int at = begin; at < end; at += 2) {
                if (staggered && group == 0 && at == BEHIND && lane_id() == 0) gate_arrive(Ring::turn());
                step(at, at == begin, at + 1 == end, sum, a, other);
                if (at + 1 < end) step(at + 1, false, at + 2 == end, sum, other, a);
            }
            gather_wait<0>();
            settle(sum[0]);
            settle(sum[1]);
            Ring::leave(end - 1);
            group_meet(1 + group);
            finish(tile_of(index) + group * 8, token_of(index), of, sum);
        }
    }

    DEVICE void finish(int tile, int token, const TokenFacts* facts, const int (&sum)[2][NT][4]) const {
        if (p.epilogue == EPILOGUE_RELU2) {
            finish_gates<EPILOGUE_RELU2>(tile, token, facts, sum);
        } else if (p.epilogue == EPILOGUE_SILU) {
            finish_gates<EPILOGUE_SILU>(tile, token, facts, sum);
        } else if (p.epilogue == EPILOGUE_ADD) {
            finish_rows<true>(tile, token, facts, sum);
        } else {
            finish_rows<false>(tile, token, facts, sum);
        }
    }
    // A lane has two tokens of each eight, rows g and g + 8 of two row tiles.
    template <bool ADD> DEVICE void finish_rows(int tile, int token, const TokenFacts* facts, const int (&sum)[2][NT][4]) const {
        enum { AHEAD = 2 };
        const int first = tile + warp_id() % 4, row = first * 16 + lane_id() / 4, local = lane_id() % 4 * 2;
        const bool whole[4] = {row < p.rows, row + 8 < p.rows, row + 64 < p.rows, row + 72 < p.rows};
        const float4 low = ((const float4*)p.scales)[min(first, p.tiles - 1)], high = ((const float4*)p.scales)[min(first + 4, p.tiles - 1)];
        const float2 scales[4] = {{low.x, low.y}, {low.z, low.w}, {high.x, high.y}, {high.z, high.w}};
        float* out = p.output + (long long)(token + local) * p.stride + row;
        int left = s.tokens - token - local;
        facts += local;
#pragma unroll
        for (int first_n = 0; first_n < NT; first_n += AHEAD) {
            float before[AHEAD][8];
            keep_order();
#pragma unroll
            for (int i = 0; i < AHEAD * 8; i++) {
                const int t = i / 8 * 8 + i / 4 % 2;
                before[i / 8][i % 8] = ADD && whole[i % 4] && t < left ? out[t * p.stride + i % 4 / 2 * 64 + i % 2 * 8] : 0.0f;
            }
#pragma unroll
            for (int n = 0; n < AHEAD; n++) {
                keep_order();
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int c = i / 4, m = i % 4 / 2, h = i % 2, t = n * 8 + c;
                    const TokenFacts of = facts[first_n * 8 + t];
                    float y = quotient((float)((sum[m][first_n + n][h * 2 + c] >> 2 * h) - of.sum), of) * scales[m * 2 + h].x * scales[m * 2 + h].y;
                    if (ADD) y = before[n][i] + y;
                    if (whole[i % 4] && t < left) out[t * p.stride + m * 64 + h * 8] = y;
                }
            }
            out += 8 * AHEAD * p.stride;
            left -= 8 * AHEAD;
        }
    }
    template <int EPILOGUE> DEVICE void finish_gates(int tile, int token, const TokenFacts* facts, const int (&sum)[2][NT][4]) const {
        const int first = tile + warp_id() % 4, row = first * 8 + lane_id() / 4, rows = p.rows / 2, local = lane_id() % 4 * 2;
        const bool whole[2] = {row < rows, row + 32 < rows};
        const float4 scales[2] = {((const float4*)p.scales)[min(first, p.tiles - 1)],
                                  ((const float4*)p.scales)[min(first + 4, p.tiles - 1)]};
        float* out = p.output + (long long)(token + local) * p.stride + row;
        int left = s.tokens - token - local;
        facts += local;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            keep_order();
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int c = i / 2, m = i % 2;
                const TokenFacts of = facts[n * 8 + c];
                const float gate = quotient((float)(sum[m][n][c] - of.sum), of) * scales[m].x * scales[m].y;
                const float up = quotient((float)((sum[m][n][2 + c] >> 2) - of.sum), of) * scales[m].z * scales[m].w;
                const float y = gated(gate, up, EPILOGUE);
                if (whole[m] && c < left) out[c * p.stride + m * 32] = y;
            }
            out += 8 * p.stride;
            left -= 8;
        }
    }
    DEVICE void run() const {
        Ring::open(8);
        if (warp_id() < 4) {
            give_registers<WIDE_COPIER_REGISTERS>();
            if (lane_id() == 0) copy();
        } else {
            take_registers<WIDE_REGISTERS>();
            multiply(warp_id() / 4 - 1);
        }
    }
};

// The screen of more than 8 rows: both warpgroups take each stage, 64 rows and all slots each. The blocks of a cluster have the
// same slots, of which each copies its part to all.
template <int NT, int STAGES> struct WideScreen {
    enum {
        SLOTS = NT * 8,
        TOKENS = SLOTS / 2,
        TILES = 8,
        WEIGHT_BYTES = TILES * 2048,
        STAGE_BYTES = WEIGHT_BYTES + SLOTS * 128,
    };
    typedef WideRing<STAGE_BYTES, STAGES, true> Ring;
    typedef unsigned Opened[4][4];

    const Phase& p;
    const Step& s;
    int items, parts, units, first, steps; // columns / 128; groups of TOKENS rows; of a cluster: pieces of work, its first, its stride

    DEVICE WideScreen(const Phase& phase, const Step& step) : p(phase), s(step) {
        const int size = cluster_size(), blocks = (p.tiles + TILES - 1) / TILES;
        items = (p.cols + 127) / 128;
        parts = (s.tokens + TOKENS - 1) / TOKENS;
        units = (blocks + size - 1) / size * parts;
        first = (int)blockIdx.x / size;
        steps = (int)gridDim.x / size;
    }
    DEVICE int tile_of(int unit) const { return (unit / parts * cluster_size() + cluster_rank()) * TILES; }

    DEVICE void copy() const {
        const int size = cluster_size(), share = SLOTS * 32 / size, part = (warp_id() * size + cluster_rank()) * share;
        int at = 0;
        wait_prior();
#pragma unroll 1
        for (int unit = first; unit < units; unit += steps) {
            WideSources<2048, TILES> sources(p, tile_of(unit), items);
            const signed char* slots = s.screened + (long long)(unit % parts) * items * SLOTS * 128 + part;
#pragma unroll 1
            for (int k = 0; k < items; k++, at++, slots += SLOTS * 128) {
                Ring::wait_empty(at);
                Gate* full = Ring::full(at);
                gate_expect(full, STAGE_BYTES / 4);
                copy_bulk_to_all(Ring::stage(at) + WEIGHT_BYTES + part, slots, share, full, size);
                sources.copy(Ring::stage(at), full);
            }
        }
    }
    DEVICE static void open(int at, int q, unsigned (&a)[4]) {
        const uint4 words = *(const uint4*)(Ring::stage(at) + (warp_id() - 4) * 2048 + q * 512 + lane_id() * 16);
        a[0] = words.x;
        a[1] = words.y;
        a[2] = words.z;
        a[3] = words.w;
    }
    DEVICE static void step(int at, bool first, bool last, int (&sum)[NT][4], const Opened& a, Opened& next) {
#pragma unroll
        for (int q = 0; q < 4; q++) {
            gather_begin();
            gather_mma_signed(sum, a[q], Ring::stage(at) + WEIGHT_BYTES, q);
            gather_commit();
            gather_wait<4>();
            if (last) continue;
            if (q == 0) Ring::wait_full(at + 1);
            open(at + 1, q, next[q]);
        }
        if (!first) Ring::leave(at - 1);
    }
    // Of the group: what is known of its tokens, and their lower bounds at the start of the unit.
    DEVICE static float4* facts(int group) { return (float4*)Ring::facts() + group * TOKENS; }
    DEVICE static unsigned* lowers(int group) { return (unsigned*)((float4*)Ring::facts() + 2 * TOKENS) + group * TOKENS; }

    DEVICE void multiply(int group) const {
        int begin = 0;
        wait_prior();
#pragma unroll 1
        for (int unit = first; unit < units; unit += steps, begin += items) {
            int sum[NT][4];
#pragma unroll
            for (int i = 0; i < NT * 4; i++) sum[i / 4][i % 4] = 0;
            const int end = begin + items, place = (int)threadIdx.x % 128, token = unit % parts * TOKENS;
            float4 fact = {0.0f, 0.0f, 0.0f, 0.0f};
            unsigned before = 0;
            if (place < TOKENS && token + place < s.tokens) {
                fact = ((const float4*)s.screen_rows)[token + place];
                before = load_relaxed(&s.lower[token + place]);
            }
            Opened a, other;
            Ring::wait_full(begin);
#pragma unroll
            for (int q = 0; q < 4; q++) open(begin, q, a[q]);
            settle(sum);
#pragma unroll 1
            for (int at = begin; at < end; at += 2) {
                step(at, at == begin, at + 1 == end, sum, a, other);
                if (at + 1 < end) step(at + 1, false, at + 2 == end, sum, other, a);
            }
            gather_wait<0>();
            settle(sum);
            Ring::leave(end - 1);
            // All have done with the facts of the unit before.
            group_meet(1 + group);
            if (place < TOKENS) {
                facts(group)[place] = fact;
                lowers(group)[place] = before;
            }
            group_meet(1 + group);
            finish(tile_of(unit) + warp_id() - 4, token, facts(group), lowers(group), sum);
        }
    }
    // A lane has both slots of each fourth token, for rows g and g + 8. The bounds of 16 rows are kept where one of them may be
    // that of the best, or where there is a draw.
    DEVICE void finish(int tile, int token, const float4* facts, const unsigned* lowers, const int (&sum)[NT][4]) const {
        if (tile >= p.tiles) return;
        const int row = tile * 16 + lane_id() / 4, local = lane_id() % 4;
        const float4 of[2] = {((const float4*)p.scales)[row], ((const float4*)p.scales)[row + 8]};
        const bool whole[2] = {row < p.rows, row + 8 < p.rows};
        const int g = lane_id() / 4;
#pragma unroll
        for (int n = 0; n < NT; n += 4) {
            keep_order();
            float upper[4][2], most[8]; // most: of each token, the greatest bound above, the greatest below
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float4 x = facts[(n + i) * 4 + local];
                most[2 * i] = most[2 * i + 1] = -INFINITE;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const Bounds bounds = screen_bounds(sum[n + i][2 * h], sum[n + i][2 * h + 1], of[h], {x.x, x.y, x.z});
                    upper[i][h] = bounds.upper;
                    if (!whole[h]) continue;
                    most[2 * i] = fmaxf(most[2 * i], bounds.upper == bounds.upper ? bounds.upper : INFINITE);
                    most[2 * i + 1] = fmaxf(most[2 * i + 1], bounds.lower);
                }
            }
            // Lane 4 g + local gets number g of those of 16 rows.
#pragma unroll
            for (int half = 4; half > 0; half /= 2) {
                const bool high = (g & half) != 0;
#pragma unroll
                for (int i = 0; i < half; i++) {
                    const float kept = high ? most[i + half] : most[i], sent = high ? most[i] : most[i + half];
                    most[i] = fmaxf(kept, shuffle_xor(sent, 4 * half));
                }
            }
            const int own = (n + g / 2) * 4 + local, t = token + own;
            const unsigned before = lowers[own];
            const bool drawn = facts[own].w != 0.0f, there = t < s.tokens;
            if (there && g % 2 == 0) screen_tops(p.output, s.tokens, p.rows, t)[tile] = most[0];
            // A draw's scores have bounds of their own.
            if (there && g % 2 == 1 && drawn) screen_lows(p.output, s.tokens, p.rows, t)[tile] = most[0];
            if (there && g % 2 == 1 && !drawn && lower_key(most[0]) > before) atomicMax(&s.lower[t], lower_key(most[0]));
            const unsigned live = warp_ballot(there && g % 2 == 0 && (drawn || !(most[0] < lower_of_key(before)))) >> local;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if ((live >> (8 * i) & 1) == 0) continue;
                float* to = p.output + (long long)(token + (n + i) * 4 + local) * p.rows + row;
                if (whole[0]) to[0] = upper[i][0];
                if (whole[1]) to[8] = upper[i][1];
            }
        }
    }
    DEVICE void run() const {
        Ring::open(8 * cluster_size());
        if (warp_id() < 4) {
            give_registers<WIDE_COPIER_REGISTERS>();
            if (lane_id() == 0) copy();
            __syncwarp();
        } else {
            take_registers<WIDE_REGISTERS>();
            multiply(warp_id() / 4 - 1);
        }
        // Others may yet arrive at gates of this block.
        cluster_leave();
    }
};
