// One row through all layers: step_1. Blocks do not meet between layers: every value travels with a tag, and who needs it
// polls for it. A value's place is written again only after all blocks that read it gave what the writer needs.
#pragma once

#include "screen.h"
#include "token_bytes.h"

// A warp rounds every 16th group of 128 columns of the row; the first ones, which finish rows, and the last one, which orders weights,
// are those without one more.
enum { FINISHING_WARPS = TILES_MAX * 16 / 32 };
DEVICE int first_group() { return (warp_id() + WARPS - FINISHING_WARPS) % WARPS; }
DEVICE int count_groups(int all) { return max(all - first_group() + WARPS - 1, 0) / WARPS; }

// Sixteen bytes of a lane of this warp.
DEVICE uint4* ring_place(int index, int lane) { return (uint4*)shared_arena() + index * THREADS + warp_id() * 32 + lane; }

// Loads of 512 bytes that the ring holds, and the most of a part: while a large phase is used, much of the next one comes. One form of
// the emulator has a small ring, so that small models fill it and have phases of several parts.
#if defined(CUDA_EMULATOR) && WARPGROUPS
enum { SUPPLY_LOADS = 16 };
#else
enum { SUPPLY_LOADS = RING_DEPTH * WARPS };
#endif
enum { PART_LOADS = SUPPLY_LOADS * 5 / 8, SUPPLY_GATES = 8, ORDERING_WARP = WARPS - 1 };

// The block's weights of all linear phases, ahead of their use, in the ring that the screen takes over: a phase is a part, or
// several, and a part a bulk copy and a gate. One lane orders what there is room for whenever a part was used.
struct Supply {
    Gate gates[SUPPLY_GATES];
    int phase, first; // what is ordered next
    int place, room;  // loads
    int parts, left;  // ordered before; gates that are free

    DEVICE static unsigned char* at(int load) { return shared_arena() + (load & (SUPPLY_LOADS - 1)) * 512; }

    // By one thread.
    DEVICE void open() {
        for (int i = 0; i < SUPPLY_GATES; i++) gate_open(gates + i, 1);
        phase = first = place = parts = 0;
        room = SUPPLY_LOADS;
        left = SUPPLY_GATES;
        gates_opened();
    }
    // By the ordering lane, after all have met who used `used` loads in so many parts.
    DEVICE void order(const Stream* streams, int phases, int used, int used_parts) {
        int next = phase, start = first, to = place, space = room + used, number = parts, spare = left + used_parts;
#pragma unroll 1
        while (next < phases && spare > 0) {
            const Stream& stream = streams[next];
            const int items = stream.items, loads = stream.reciprocal == 0.0f ? 0 : stream.tiles * items;
            const int count = min(loads - start, (int)PART_LOADS);
            if (count > space) break;
            if (count > 0) {
                order_part(stream, start, count, to, gates + number % SUPPLY_GATES);
                to += count;
                space -= count;
                number++;
                spare--;
            }
            start += count;
            if (start < loads) continue;
            next++;
            start = 0;
        }
        phase = next;
        first = start;
        place = to & (SUPPLY_LOADS - 1);
        room = space;
        parts = number;
        left = spare;
    }
    // In two pieces where the ring ends between.
    DEVICE static void order_part(const Stream& stream, int first, int count, int to, Gate* gate) {
        to &= SUPPLY_LOADS - 1;
        const char* from = stream.base + (long long)first * 512;
        const int whole = min(count, SUPPLY_LOADS - to), rest = count - whole;
        gate_expect(gate, count * 512);
        copy_bulk_once(at(to), from, whole * 512, gate);
        if (rest > 0) copy_bulk_once(at(0), from + whole * 512, rest * 512, gate);
    }
};

DEVICE bool orders() { return (int)threadIdx.x == ORDERING_WARP * 32; }

static_assert(sizeof(Supply) <= SUPPLY_BYTES, "what is known of a block's ring fits");

// What all threads know of the ring: the part to come, and where it is.
struct Taken {
    int parts, place;
};

enum { EARLY_LOADS = RING_DEPTH / 4 };

// As Ring, for the screen of one row, whose row tiles are a warp's each.
struct ScreenRing {
    unsigned slot; // bytes
    Walk walk;

    DEVICE uint4* place() const { return (uint4*)(shared_arena() + slot + threadIdx.x * 16); }
    DEVICE void open(const Stream& stream) {
        slot = 0;
        walk.open(stream, 1);
    }
    DEVICE void load(int count) {
#pragma unroll 1
        for (int i = 0; i < count; i++) load_next();
    }
    // Into the place at hand; then the next one's turn comes.
    DEVICE void load_next() {
        if (walk.left > 0) {
            copy_async(place(), walk.from + lane_id() * 16);
            walk.next();
        }
        copy_commit();
        slot = (slot + THREADS * 16) & (RING_DEPTH * THREADS * 16 - 1);
    }
    DEVICE uint4 take() {
        copy_wait<RING_DEPTH - 1>();
        uint4 value = *place();
        load_next();
        return value;
    }
};

// Shared memory of a linear phase. Sums are in two places by turns: some still finish one phase while others begin the next.
struct TokenArea {
    int* sums;       // [2][tile][row]
    unsigned* bytes; // [group][t][8]: the row as B operands
    float* gamma;    // [group][warp][128]

    DEVICE void place(unsigned char* at) {
        sums = (int*)at;
        bytes = (unsigned*)(sums + 2 * TILES_MAX * 16);
        gamma = (float*)(bytes + WARPS * GROUPS_MAX * 32) + warp_id() * 128;
    }
};

// Of the linear phase to come, what no other block writes.
struct Ahead {
    float2 scales; // of the row that this thread finishes
    unsigned long long residual; // what it is added to, if it was there already
};

// A warp's part of the input row: four values of each group, two side by side and two 64 columns further, so that a load
// of the warp is of whole sectors.
struct TokenRow {
    float4 values[GROUPS_MAX];
    int groups, column; // of value 0 of group 0; groups are 16 * 128 apart

    DEVICE void place(int items) {
        groups = count_groups(items);
        column = first_group() * 128 + 2 * lane_id();
    }
    // Who comes late finds all values at once. Who does not, waits with a lane for each group for its last value before all look
    // again: a look at a whole row takes the block 300 cycles and more, and delays who has still to write.
    DEVICE void take(const Phase& p, unsigned tag) {
        const unsigned long long* row = (const unsigned long long*)p.input;
        const int cols = p.cols;
        if (warp_ballot(!look(row, cols, tag)) == 0) return;
        if (lane_id() < groups) {
            const unsigned long long* last = row + min(column - 2 * lane_id() + lane_id() * WARPS * 128 + 127, cols - 1);
            while ((unsigned)(load_tagged(last) >> 32) != tag) pause();
        }
        __syncwarp();
        while (!look(row, cols, tag)) pause();
    }
    // All loads go out before the first answer is looked at.
    DEVICE bool look(const unsigned long long* row, int cols, unsigned tag) {
        const unsigned long long nothing = (unsigned long long)tag << 32;
        unsigned long long words[GROUPS_MAX][2][2];
#pragma unroll
        for (int i = 0; i < 2 * GROUPS_MAX; i++) {
            const int j = i / 2, at = column + j * WARPS * 128 + i % 2 * 64;
            unsigned long long(&pair)[2] = words[j][i % 2];
            pair[0] = pair[1] = nothing;
            if (j < groups && at < cols) load_tagged(row + at, pair);
        }
        bool all = true;
#pragma unroll
        for (int j = 0; j < GROUPS_MAX; j++) {
            const unsigned long long(&a)[2] = words[j][0], (&b)[2] = words[j][1];
            values[j] = float4{float_of_bits((unsigned)a[0]), float_of_bits((unsigned)a[1]),
                               float_of_bits((unsigned)b[0]), float_of_bits((unsigned)b[1])};
            all &= (unsigned)(a[0] >> 32) == tag && (unsigned)(a[1] >> 32) == tag;
            all &= (unsigned)(b[0] >> 32) == tag && (unsigned)(b[1] >> 32) == tag;
        }
        return all;
    }
};

DEVICE float tagged_value(const void* row, int i) { return float_of_bits((unsigned)load_tagged((const unsigned long long*)row + i)); }

DEVICE void token_squares(TokenRow& row, Reduced* reduced) {
    double mine = 0.0;
#pragma unroll
    for (int j = 0; j < GROUPS_MAX; j++) {
        if (j >= row.groups) break;
        settle(row.values[j]);
        mine += squares(row.values[j]);
        settle(mine);
    }
    put_sum(mine, reduced->squares);
    __syncthreads();
}

// 1 / sqrt(mean of squares + eps) of the whole row.
DEVICE float token_scale(const Phase& p, double share, Reduced* reduced) {
    const float* input = p.input;
    return scale_of_row(p.cols, p.eps, share, sum_of_warps(reduced->squares), reduced, [=](int i) { return tagged_value(input, i); });
}

// Scales the row by norm and gamma; returns the greatest magnitude of all warps.
DEVICE float token_norm(TokenRow& row, const float* gamma, float scale, Reduced* reduced) {
    float greatest = 0.0f;
#pragma unroll
    for (int j = 0; j < GROUPS_MAX; j++) {
        if (j >= row.groups) break;
        float4& v = row.values[j];
        const float2* pairs = (const float2*)(gamma + j * WARPS * 128) + lane_id();
        float2 w = pairs[0], u = pairs[32];
        v = float4{v.x * scale * w.x, v.y * scale * w.y, v.z * scale * u.x, v.w * scale * u.y};
        greatest = fmaxf(fmaxf(fmaxf(greatest, fabsf(v.x)), fmaxf(fabsf(v.y), fabsf(v.z))), fabsf(v.w));
    }
    unsigned most = warp_max(bits_of_float(greatest));
    if (lane_id() == 0) reduced->greatest[warp_id()] = most;
    __syncthreads();
    return float_of_bits(warp_max(reduced->greatest[lane_id() % WARPS]));
}

// nearest() in the lowest byte, of what is no further from zero than 127.5 or no number: factor is 127 over the greatest magnitude.
DEVICE unsigned nearest_byte(float x) {
    x += 12582912.0f;
    return bits_of_float(x != x ? 12582912.0f : x);
}

// The warp's columns to shared memory; returns the sum of the whole row's bytes, which all warps have written.
DEVICE int token_bytes(const TokenRow& row, float factor, unsigned* bytes, Reduced* reduced) {
    int sum = 0;
    const int lane = lane_id();
    unsigned short* to = (unsigned short*)(bytes + row.column / 128 * 32 + (lane / 2 & 3) * 8 + lane / 8) + (lane & 1);
#pragma unroll
    for (int j = 0; j < GROUPS_MAX; j++) {
        if (j >= row.groups) break;
        const float4& v = row.values[j];
        const unsigned word = low_bytes(nearest_byte(v.x * factor), nearest_byte(v.y * factor), nearest_byte(v.z * factor),
                                        nearest_byte(v.w * factor));
        sum = sum_bytes(word, sum);
        to[j * WARPS * 64] = (unsigned short)word;
        to[j * WARPS * 64 + 8] = (unsigned short)(word >> 16);
    }
    sum = warp_sum(sum);
    if (lane == 0) reduced->sum[warp_id()] = sum;
    __syncthreads();
    return warp_sum(lane < WARPS ? reduced->sum[lane] : 0);
}

// Codes stay where they are in their bytes, so rows g and g + 8 come 1 and 4 times as great in `low`, and 16 and 64 times in `high`, which
// has the second half of each 32 columns: 64 * 2 * 127 * 8192 is below 2^31.
DEVICE void token_product(const uint4& w, const uint4* b, int (&low)[4], int (&high)[4]) {
    uint4 first = b[0], second = b[1];
    unsigned words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
        unsigned v = words[k], u = words[k + 1];
        unsigned a[4] = {v & 0x03030303u, v & 0x0c0c0c0cu, u & 0x03030303u, u & 0x0c0c0c0cu};
        mma(low, a, k ? second.x : first.x, k ? second.z : first.z);
        unsigned c[4] = {v & 0x30303030u, v & 0xc0c0c0c0u, u & 0x30303030u, u & 0xc0c0c0c0u};
        mma(high, c, k ? second.y : first.y, k ? second.w : first.w);
    }
}

// The warp's run of the part's loads [first, first + count) of the block's row tiles; sums are added to sums[tile][row].
DEVICE void token_part(const Stream& stream, const unsigned* bytes, int place, int first, int count, int* sums) {
    const int begin = first + count * warp_id() / WARPS;
    int left = first + count * (warp_id() + 1) / WARPS - begin;
    // Exact below 2^20: half a unit is more than the rounding.
    int tile = (int)(((float)begin + 0.5f) * stream.reciprocal), item = begin - tile * stream.items;
    unsigned at = (unsigned)(place + begin - first) * 512;
    const uint4* from = (const uint4*)shared_arena() + lane_id();
#pragma unroll 1
    while (left > 0) {
        const uint4* b = (const uint4*)(bytes + item * 32 + (lane_id() & 3) * 8);
        int low[4] = {}, high[4] = {}, run = min(left, stream.items - item);
        left -= run;
#pragma unroll 1
        for (; run > 0; run--) {
            token_product(from[(at & (SUPPLY_LOADS * 512 - 1)) / 16], b, low, high);
            at += 512;
            b += 8;
        }
        if ((lane_id() & 3) == 0) {
            int* to = sums + tile * 16 + lane_id() / 4;
            atomicAdd(to, low[0] + (high[0] >> 4));
            atomicAdd(to + 8, (low[2] >> 2) + (high[2] >> 6));
        }
        tile++;
        item = 0;
    }
}

// Loads of a phase's last part.
DEVICE int last_part(const Stream& stream) { return (stream.tiles * stream.items - 1) % PART_LOADS + 1; }

// The block's row tiles; all have met who multiplied. The last part's room is still to be given back.
DEVICE void token_multiply(const Stream& stream, const Stream* streams, int phases, const unsigned* bytes, Supply* supply,
                           Taken& taken, int* sums) {
    const int loads = stream.tiles * stream.items;
#pragma unroll 1
    for (int first = 0; first < loads; first += PART_LOADS) {
        const int count = min(loads - first, (int)PART_LOADS);
        gate_wait(supply->gates + taken.parts % SUPPLY_GATES, taken.parts / SUPPLY_GATES & 1);
        token_part(stream, bytes, taken.place, first, count, sums);
        taken.parts++;
        taken.place += count;
        __syncthreads();
        if (first + count < loads && orders()) supply->order(streams, phases, count, 1);
    }
}

// Thread 16 i + r finishes row r of the block's tile i.
DEVICE void token_finish(const Phase& p, const Stream& stream, const int* sums, int all, float factor, const Ahead& ahead, unsigned tag) {
    int i = threadIdx.x / 16, row = threadIdx.x % 16, tiles = stream.tiles;
    if (warp_id() * 2 >= tiles) return;
    int tile = stream.first + i;
    float y = (float)((i < tiles ? sums[threadIdx.x] : 0) - all) / factor * ahead.scales.x * ahead.scales.y;
    unsigned long long* out = (unsigned long long*)p.output;
    if (p.epilogue >= EPILOGUE_RELU2) {
        float up = shuffle_xor(y, 8);
        int feature = tile * 8 + row;
        if (i < tiles && row < 8 && feature < p.rows / 2) store_tagged(out + feature, gated(y, up, p.epilogue), tag);
        return;
    }
    row += tile * 16;
    if (i >= tiles || row >= p.rows) return;
    if (p.epilogue == EPILOGUE_ADD) {
        unsigned wanted = tag - (unsigned)(p.order - p.residual);
        unsigned long long word = ahead.residual;
        while ((unsigned)(word >> 32) != wanted) word = load_tagged(out + row);
        y = float_of_bits((unsigned)word) + y;
    }
    store_tagged(out + row, y, tag);
}

// Row tiles side by side, so that they are one copy.
DEVICE Stream token_stream(const Phase& p) {
    if (p.kind != PHASE_LINEAR) return make_stream(p);
    const int blocks = (int)gridDim.x, place = ((int)blockIdx.x + blocks - p.first_block) % blocks, first = place * p.tiles / blocks;
    return stream_of_tiles(p, first, (place + 1) * p.tiles / blocks - first);
}

// What the phase needs that does not depend on its row is under way before the row is waited for.
DEVICE Ahead look_ahead_of_token(const Phase& p, const Stream& stream, const TokenArea& area) {
    Ahead ahead = {};
    const int groups = count_groups(stream.items);
#pragma unroll 1
    for (int j = 0; j < groups; j++) {
        const int column = (first_group() + j * WARPS) * 128 + 4 * lane_id();
        float4* to = (float4*)(area.gamma + j * WARPS * 128) + lane_id();
        if (column < p.cols) {
            copy_async_kept(to, p.gamma + column);
        } else {
            *to = float4{0.0f, 0.0f, 0.0f, 0.0f};
        }
    }
    copy_commit();
    int i = threadIdx.x / 16;
    if (i >= stream.tiles) return ahead;
    int tile = stream.first + i, place = tile * 16 + threadIdx.x % 16;
    ahead.scales = *(const float2*)(p.scales + tile * 4 + threadIdx.x % 16 / 8 * 2);
    if (p.epilogue == EPILOGUE_ADD && place < p.rows) ahead.residual = load_tagged((const unsigned long long*)p.output + place);
    return ahead;
}

DEVICE void token_linear(const Phase& p, const Stream& stream, const Stream* streams, int phase, int phases, unsigned tag,
                         Supply* supply, Taken& taken, int& used, Reduced* reduced, const TokenArea& area) {
    const Ahead ahead = look_ahead_of_token(p, stream, area);
    int* sums = area.sums + phase % 2 * (TILES_MAX * 16);
    if ((int)threadIdx.x < stream.tiles * 16) sums[threadIdx.x] = 0;
    TokenRow row;
    row.place(stream.items);
    row.take(p, tag - 1);
    // The norm weights, which the warp will read.
    copy_wait<0>();
    token_squares(row, reduced);
    float scale = token_scale(p, stream.share, reduced);
    float factor = quantizing_factor(token_norm(row, area.gamma, p.plain ? 1.0f : scale, reduced));
    int all = token_bytes(row, factor, area.bytes, reduced);
    // Weights on their way delay who still waits for the row, so they are ordered only now.
    if (used > 0 && orders()) supply->order(streams, phases, used, 1);
    used = last_part(stream);
    token_multiply(stream, streams, phases, area.bytes, supply, taken, sums);
    token_finish(p, stream, sums, all, factor, ahead, tag);
}

// What all blocks will read of each phase starts on its way from memory, by a warp of one of them.
DEVICE void prefetch_norms(const Phase* phases, int count) {
#pragma unroll 1
    for (int phase = blockIdx.x; phase < count; phase += gridDim.x) {
        const Phase& p = phases[phase];
        if (p.kind != PHASE_LINEAR && p.kind != PHASE_SCREEN) continue;
        for (int i = 32 * lane_id(); i < p.cols; i += 32 * 32) prefetch(p.gamma + i);
    }
}

// BYTES: over an int8 cache.
template <bool BYTES> DEVICE void token_attend(const Step& s, int layer, unsigned char* work, const FirstUnit* first_unit, unsigned tag) {
    if (BYTES) return attend_byte_units(s, layer, work, first_unit, tag);
    UnitKeys keys;
    attend_ahead(s, layer, work, first_unit, keys);
    attend(s, layer, work, first_unit, keys, UnitSource<true>{tag});
}

// A row of the embedding, tagged. The step's first phase, while a block's other warps get ready for the rest.
DEVICE void embed_token(const Phase& p, const Step& s, unsigned tag) {
    if (p.kind != PHASE_EMBED || warp_id() < WARPS / 2) return;
    const int id = token_of(s, 0);
#pragma unroll 1
    for (int k = (threadIdx.x - THREADS / 2) * gridDim.x + blockIdx.x; k < s.hidden; k += gridDim.x * THREADS / 2) {
        store_tagged((unsigned long long*)p.output + k, piece_value(p, id, k), tag);
    }
}

DEVICE void copy_token(const Phase& p, unsigned tag) {
#pragma unroll 1
    for (int i = 2 * (blockIdx.x * THREADS + threadIdx.x); i < p.cols; i += 2 * gridDim.x * THREADS) {
        take_pair((const unsigned long long*)p.input + i, tag, p.output + i);
    }
}

// The warp's row tiles: upper bounds to `output`; the key of the greatest lower bound.
DEVICE unsigned screen_tiles(const Phase& p, ScreenRing& ring, const unsigned* bytes, const ScreenRow& x) {
    const unsigned* b = bytes + (lane_id() / 4 % 2) * 8 + (lane_id() & 3) * 2;
    const int items = (p.cols + 127) / 128 * 4;
    unsigned best = 0;
#pragma unroll 1
    for (int tile = blockIdx.x * WARPS + warp_id(); tile < p.tiles; tile += gridDim.x * WARPS) {
        int sum[2][4] = {};
#pragma unroll 1
        for (int item = 0; item < items; item += 2) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint4 w = ring.take();
                uint2 v = *(const uint2*)(b + (item + i) * 16);
                unsigned a[4] = {w.x, w.y, w.z, w.w};
                mma_signed(sum[i], a, v.x, v.y);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = tile * 16 + half * 8 + lane_id() / 4;
            if ((lane_id() & 3) != 0 || row >= p.rows) continue;
            Bounds bounds = screen_bounds(sum[0][2 * half] + sum[1][2 * half], sum[0][2 * half + 1] + sum[1][2 * half + 1],
                                          ((const float4*)p.scales)[row], x);
            p.output[row] = bounds.upper;
            best = max(best, lower_key(bounds.lower));
        }
    }
    return warp_max(best);
}

// Shared memory of the screen: the normalised row, then its bytes, 64 for each 32 columns: upper, then lower bytes, as B
// operands of two tokens.
DEVICE void screen_token(const Phase& p, const Stream& stream, const Step& s, unsigned tag, unsigned char* work, Reduced* reduced) {
    // The whole ring's loads at once would be before the row on their way.
    ScreenRing ring;
    ring.open(stream);
    ring.load(EARLY_LOADS);
    float* x = (float*)work;
    const int items = (p.cols + 127) / 128;
    unsigned* bytes = (unsigned*)(x + items * 128);
    TokenRow taken;
    taken.place(items);
    taken.take(p, tag);
#pragma unroll
    for (int j = 0; j < GROUPS_MAX; j++) {
        if (j >= taken.groups) break;
        float2* to = (float2*)(x + taken.column + j * WARPS * 128);
        to[0] = float2{taken.values[j].x, taken.values[j].y};
        to[32] = float2{taken.values[j].z, taken.values[j].w};
    }
    ring.load(RING_DEPTH - EARLY_LOADS);
    __syncthreads();
    ScreenRow row = prepare_screen(p, x, reduced, [=](int i, const uint2& words) {
        int at = i / 8 * 16 + i % 4 * 2 + i / 4 % 2;
        bytes[at] = words.x;
        bytes[at + 8] = words.y;
    });
    if (threadIdx.x == 0) reduced->best[0] = 0;
    __syncthreads();
    unsigned best = screen_tiles(p, ring, bytes, row);
    if (lane_id() == 0) atomicMax(&reduced->best[0], (unsigned long long)best);
    __syncthreads();
    if (threadIdx.x == 0) atomicMax(s.lower, (unsigned)reduced->best[0]);
}

DEVICE void choose_token(const Phase& p, const Step& s, unsigned char* work) {
    float lower = lower_of_key(load_relaxed(s.lower));
    unsigned long long best = 0;
    int tiles = (p.rows + 15) / 16;
#pragma unroll 1
    for (int tile = blockIdx.x * WARPS + warp_id(); tile < tiles; tile += gridDim.x * WARPS) {
        int row = tile * 16 + lane_id();
        bool live = lane_id() < 16 && row < p.rows && !(p.input[min(row, p.rows - 1)] < lower);
        choose_rows<RING_DEPTH>(p, warp_ballot(live), tile * 16, (float*)work, [](int offset) { return (unsigned char*)ring_place(offset / 512, 0) + offset % 512; },
                                [&](float logit, int row) {
                                    unsigned long long key = greedy_key(logit, row);
                                    best = key > best ? key : best;
                                });
    }
    if (lane_id() == 0 && best != 0) atomicMax(s.best, best);
}

// The phases' work area follows the reductions. Every phase has a meeting of the block: a phase's description is overwritten two
// phases later.
template <bool BYTES> DEVICE void run_token(const Phase* phases, int count, const Step& s) {
    Stream* streams = Ring::streams();
    Reduced* reduced = (Reduced*)((unsigned char*)streams + count * (int)sizeof(Stream));
    FirstUnit* first_unit = (FirstUnit*)((unsigned char*)reduced + REDUCED_BYTES);
    Supply* supply = (Supply*)((unsigned char*)first_unit + FIRST_UNIT_BYTES);
    unsigned char* work = (unsigned char*)supply + SUPPLY_BYTES;
    for (int i = threadIdx.x; i < count; i += THREADS) streams[i] = token_stream(phases[i]);
    if (threadIdx.x == 0) find_first_unit(s, first_unit);
    if (threadIdx.x == ORDERING_WARP * 32) supply->open();
    // No block gets past the meeting at the end before this one arrives there: these are the values before it.
    const unsigned epoch = load_relaxed(s.barrier + 1);
    unsigned bit = load_relaxed(s.barrier);
    embed_token(phases[0], s, epoch + (unsigned)phases[0].order);
    const bool mine = threadIdx.x < (int)sizeof(Phase) / 8;
    for (int i = 0; i < 2; i++) {
        if (mine && i < count) ((long long*)&reduced->phases[i])[threadIdx.x] = ((const long long*)(phases + i))[threadIdx.x];
    }
    __syncthreads();
    if (orders()) supply->order(streams, count, 0, 0);
    if (warp_id() == ORDERING_WARP - 1) prefetch_norms(phases, count);
    Taken taken = {0, 0};
    TokenArea area;
    area.place(work);
    bool met = false;
    int used = 0; // loads of the last part, whose room is still to be given back
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        const Phase& p = reduced->phases[i & 3];
        const unsigned tag = epoch + (unsigned)p.order;
        long long later = 0;
        if (mine && i + 2 < count) later = ((const long long*)(phases + i + 2))[threadIdx.x];
        const bool meet = p.kind == PHASE_SCREEN || p.kind == PHASE_CHOOSE, multiplies = p.kind == PHASE_LINEAR && streams[i].tiles > 0;
        switch (p.kind) {
        case PHASE_EMBED: break;
        case PHASE_LINEAR:
            if (multiplies) token_linear(p, streams[i], streams, i, count, tag, supply, taken, used, reduced, area);
            break;
        case PHASE_ATTEND: token_attend<BYTES>(s, p.rows, work, first_unit, tag - 1); break;
        case PHASE_SCREEN: screen_token(p, streams[i], s, tag - 1, work, reduced); break;
        case PHASE_CHOOSE: choose_token(p, s, work); break;
        case PHASE_COPY: copy_token(p, tag - 1); break;
        default: greedy(s); break;
        }
        if (i + 1 == count) break;
        note_time(s, 2 * i);
        const Phase& next = reduced->phases[(i + 1) & 3];
        // The next phase's area may be that of the sums that some still read; a phase without products has no other meeting.
        if (!multiplies || next.kind != PHASE_LINEAR) __syncthreads();
        if (mine) ((long long*)&reduced->phases[(i + 2) & 3])[threadIdx.x] = later;
        if (meet) {
            barrier_arrive(s.barrier);
            barrier_wait(s.barrier, bit);
            bit ^= 0x80000000u;
            met = true;
        }
        note_time(s, 2 * i + 1);
    }
    // The next launch's tags go on from these, once all blocks have read where these began.
    if (!met) {
        barrier_arrive(s.barrier);
        barrier_wait(s.barrier, bit);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) s.barrier[1] += (unsigned)reduced->phases[(count - 1) & 3].order;
}
