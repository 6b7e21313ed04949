// RMS norm of one row by one block, and its rounding to int8: the bits of kernels/src/norm.rs and ternary/quantize.rs.
#pragma once

#include "device.h"
#include "plan.h"

// Where a block keeps a row: each thread reads back what it wrote itself, four values at a time.
struct RowArea {
    float4* values;
    float4* gamma;
};

// The value of greatest |x * w| among some, and the next greatest |x * w|, as bits.
struct Leader {
    unsigned greatest, next;
    float x, w;
};

// What a block shares besides its work area: results of reductions, and of the phase to come what does not depend on other
// blocks. `best` belongs to the head.
struct alignas(16) Reduced {
    double squares[WARPS];
    Leader leaders[WARPS];
    unsigned greatest[WARPS];
    int sum[WARPS];
    float mean;
    unsigned long long best[HEAD_TOKENS_MAX];
    float scales[TILES_MAX * 4]; // of the first round of tiles
    Phase phases[4];
};

static_assert(sizeof(Reduced) <= REDUCED_BYTES, "a block's reductions fit");

struct Quantized {
    float scale;
    int sum;
};

// Copies a row to shared memory, all loads of a thread in flight at once; hands each four values and their place to `use`.
template <class Use> DEVICE void load_row(float4* to, const float* from, int width, Use use) {
#pragma unroll 1
    for (int start = threadIdx.x; start < width / 4; start += 4 * THREADS) {
        float4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (start + j * THREADS < width / 4) v[j] = ((const float4*)from)[start + j * THREADS];
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (start + j * THREADS < width / 4) {
                to[start + j * THREADS] = v[j];
                use(v[j], start + j * THREADS);
            }
        }
    }
}

DEVICE void load_gamma(const RowArea& area, const float* gamma, int width) {
    load_row(area.gamma, gamma, width, [](const float4&, int) {});
}

DEVICE void put_sum(double mine, double* slots) {
    for (int mask = 16; mask > 0; mask >>= 1) mine += shuffle_xor(mine, mask);
    if (lane_id() == 0) slots[warp_id()] = mine;
}
DEVICE double sum_of_warps(const double* slots) {
    double sum = slots[lane_id() % WARPS];
    for (int mask = WARPS / 2; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    return sum;
}

// The sum in the order that defines it: 32 lanes, element i in lane i % 32, each half of the lanes merged by the tree
// + 8, + 4, + 2, + 1. By the first warp alone.
template <class Value> DEVICE double ordered_sum_of_squares(int width, const Value& value) {
    double sum = 0.0;
#pragma unroll 1
    for (int i = lane_id(); i < width; i += 32) {
        float v = value(i);
        sum += (double)(v * v);
    }
    for (int mask = 8; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    return shuffle(sum, 0) + shuffle(sum, 16);
}

DEVICE double squares(const float4& v) {
    return ((double)(v.x * v.x) + (double)(v.y * v.y)) + ((double)(v.z * v.z) + (double)(v.w * v.w));
}

// 1 / sqrt(mean of squares + eps) of a row, from the sums of the warps.
//
// Any order of adding gives the mean within a relative width * 2^-52 of the defined one. Both are rounded to f32 next: if
// the two ends of that interval round alike, so does the defined order, and only else is it run (about once in 10^5 rows).
template <class Value>
DEVICE float scale_of_row(int width, float eps, double share, double sum, Reduced* reduced, const Value& value) {
    double mean = sum * share;
    double slack = (double)(width + 8) * 2.220446049250313e-16;
    float low = (float)(mean - mean * slack), high = (float)(mean + mean * slack);
    if (seldom(low != high)) {
        if (warp_id() == 0) {
            const float exact = (float)(ordered_sum_of_squares(width, value) / (double)width);
            if (lane_id() == 0) reduced->mean = exact;
        }
        __syncthreads();
        high = reduced->mean;
    }
    return 1.0f / sqrtf(high + eps);
}

DEVICE float scale_of_row(const RowArea& area, int width, float eps, double share, Reduced* reduced) {
    const float* values = (const float*)area.values;
    return scale_of_row(width, eps, share, sum_of_warps(reduced->squares), reduced, [=](int i) { return values[i]; });
}

// Reads `row` into the area and returns its scale.
DEVICE float row_scale(const RowArea& area, const float* row, int width, float eps, Reduced* reduced) {
    double mine = 0.0, share = 1.0 / (double)width;
    load_row(area.values, row, width, [&](const float4& v, int) { mine += squares(v); });
    put_sum(mine, reduced->squares);
    __syncthreads();
    return scale_of_row(area, width, eps, share, reduced);
}

DEVICE void lead(Leader& leader, float x, float w) {
    float key = fabsf(x * w);
    bool ahead = key > float_of_bits(leader.greatest);
    float loser = ahead ? float_of_bits(leader.greatest) : key;
    leader.next = bits_of_float(fmaxf(float_of_bits(leader.next), loser));
    if (!ahead) return;
    leader.greatest = bits_of_float(key);
    leader.x = x;
    leader.w = w;
}

// The lane that leads the warp; its leader's `next` becomes the warp's.
DEVICE int lead_warp(Leader& leader) {
    unsigned greatest = warp_max(leader.greatest);
    int lane = (int)warp_max(leader.greatest == greatest ? (unsigned)lane_id() : 0);
    leader.next = warp_max(lane == lane_id() ? leader.next : leader.greatest);
    leader.greatest = greatest;
    return lane;
}

DEVICE float4 scaled_values(const RowArea& area, int i, float scale) {
    float4 v = area.values[i], w = area.gamma[i];
    v.x = v.x * scale * w.x;
    v.y = v.y * scale * w.y;
    v.z = v.z * scale * w.z;
    v.w = v.w * scale * w.w;
    return v;
}

// Each thread's greatest magnitude of the normalised row (NaN counts as 0).
DEVICE float normalised_max(const RowArea& area, float scale, int width) {
    float greatest = 0.0f;
#pragma unroll 1
    for (int i = threadIdx.x; i < width / 4; i += THREADS) {
        float4 v = scaled_values(area, i, scale);
        greatest = fmaxf(fmaxf(fmaxf(greatest, fabsf(v.x)), fmaxf(fabsf(v.y), fabsf(v.z))), fabsf(v.w));
    }
    return greatest;
}

// Half to even by adding 1.5 * 2^23; 0 for NaN.
DEVICE int nearest(float x) {
    int rounded = (int)(bits_of_float(x + 12582912.0f) & 0x007fffffu) - 0x00400000;
    rounded = x != x ? 0 : rounded;
    return rounded < -128 ? -128 : rounded > 127 ? 127 : rounded;
}

// (float)(127.0 / max(amax, 1e-5)): a quotient of two floats, rounded to f64 and then to f32, is the f32 quotient.
DEVICE float quantizing_factor(float amax) { return (double)amax > 1e-5 ? 127.0f / amax : 12700000.0f; }

// Byte offset of the word with columns i .. i + 4 of token slot g in B operand order.
DEVICE int fragment_offset(int i, int g) {
    return ((i >> 7) * 32 + g * 4 + ((i >> 2) & 3)) * 32 + ((i >> 5) & 3) * 8 + ((i >> 4) & 1) * 4;
}

// How many of a linear's rows lie together where warpgroups gather them from; 0 where they are in B operand order. plan.h has both layouts.
DEVICE int gathered_block(int tokens) {
    return !WARPGROUPS || tokens <= 16 ? 0 : tokens <= 32 ? 32 : (int)GATHERED_ROWS;
}
// The same offset there, from the row's first bytes on.
DEVICE int gathered_offset(int i, int t, int block = GATHERED_ROWS) { return (i >> 7) * (block * 128) + ((i & 127) ^ (t % 8) << 4); }
DEVICE long long gathered_row(int t, int items, int block = GATHERED_ROWS) {
    return (long long)(t / block) * items * (block * 128) + t % block * 128;
}

// Norm, unless `plain`, and int8 rounding of one row; the bytes go to `out` in B operand order. The area's gamma is loaded
// before.
//
// The greatest |x * scale * w| is sought before the scale is known, in the same reduction as the squares: each rounding is
// within 2^-24, so whoever leads in |x * w| by more than 10^-6 leads scaled too. Else the scaled row is searched. Holds for norm
// weights below 10^20, where what a subnormal x * scale loses is nothing against the 10^-5 that amax is at least.
DEVICE Quantized quantize_row(const RowArea& area, const float* row, const Phase& p, signed char* out, int g, int gathered,
                              Reduced* reduced) {
    const int width = p.cols;
    double mine = 0.0, share = 1.0 / (double)width;
    Leader leader = {0, 0, 0.0f, 0.0f};
    load_row(area.values, row, width, [&](const float4& v, int i) {
        float4 w = area.gamma[i];
        mine += squares(v);
        lead(leader, v.x, w.x);
        lead(leader, v.y, w.y);
        lead(leader, v.z, w.z);
        lead(leader, v.w, w.w);
    });
    put_sum(mine, reduced->squares);
    if (lead_warp(leader) == lane_id()) reduced->leaders[warp_id()] = leader;
    __syncthreads();
    float scale = p.plain ? 1.0f : scale_of_row(area, width, p.eps, share, reduced);
    leader = Leader{0, 0, 0.0f, 0.0f};
    if (lane_id() < WARPS) leader = reduced->leaders[lane_id()];
    int lane = lead_warp(leader);
    float most = float_of_bits(leader.greatest), x = shuffle(leader.x, lane), w = shuffle(leader.w, lane), amax;
    if (most > 1e-30f && most < 1e30f && float_of_bits(leader.next) < most * 0.999999f) {
        amax = fmaxf(0.0f, fabsf(x * scale * w));
    } else {
        unsigned greatest = warp_max(bits_of_float(normalised_max(area, scale, width)));
        if (lane_id() == 0) reduced->greatest[warp_id()] = greatest;
        __syncthreads();
        amax = float_of_bits(warp_max(reduced->greatest[lane_id() % WARPS]));
    }
    float factor = quantizing_factor(amax);
    int sum = 0;
#pragma unroll 2
    for (int i = threadIdx.x; i < (width + 127) / 128 * 32; i += THREADS) {
        unsigned word = 0;
        if (i < width / 4) {
            float4 v = scaled_values(area, i, scale);
            int q[4] = {nearest(v.x * factor), nearest(v.y * factor), nearest(v.z * factor), nearest(v.w * factor)};
            for (int j = 0; j < 4; j++) {
                word |= (unsigned)(q[j] & 255) << (8 * j);
                sum += q[j];
            }
        }
        *(unsigned*)(out + (gathered ? gathered_offset(4 * i, g, gathered) : fragment_offset(4 * i, g))) = word;
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) reduced->sum[warp_id()] = sum;
    __syncthreads();
    sum = lane_id() < WARPS ? reduced->sum[lane_id()] : 0;
    return {factor, warp_sum(sum)};
}

// One block for each row: quantised rows for the LINEAR phases that follow.
DEVICE void quantize_phase(const Phase& p, const Step& s, const RowArea& area, int gathered, Reduced* reduced) {
    const int items = (p.cols + 127) / 128;
    for (int t = blockIdx.x; t < s.tokens; t += gridDim.x) {
        signed char* out = s.quantized + (gathered ? gathered_row(t, items, gathered) : (long long)(t / 8) * items * 1024);
        const float* row = p.input + (long long)t * p.cols;
        Quantized q = quantize_row(area, row, p, out, t % 8, gathered, reduced);
        if (threadIdx.x == 0) {
            s.quantized_scale[t] = q.scale;
            s.quantized_sum[t] = q.sum;
        }
        __syncthreads();
    }
}
