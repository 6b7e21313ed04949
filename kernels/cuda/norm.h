// RMS norm of one row by one block, and its rounding to int8: the bits of kernels/src/norm.rs and ternary/quantize.rs.
#pragma once

#include "device.h"
#include "plan.h"

// Where a block keeps a row: each thread reads back what it wrote itself, four values at a time.
struct RowArea {
    float4* values;
    float4* gamma;
};

// What a block shares besides its work area: results of reductions, and of the phase to come what does not depend on other
// blocks. `best` belongs to the head.
struct alignas(16) Reduced {
    double squares[WARPS];
    unsigned greatest[WARPS];
    int sum[WARPS];
    float scale;
    unsigned long long best[HEAD_TOKENS_MAX];
    float scales[TILES_MAX * 4]; // of the first round of tiles
    Phase phases[4];
};

struct Quantized {
    float scale;
    int sum;
};

// Copies a row to shared memory, all loads of a thread in flight at once; hands each value to `use`.
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
                use(v[j]);
            }
        }
    }
}

DEVICE void load_gamma(const RowArea& area, const float* gamma, int width) {
    load_row(area.gamma, gamma, width, [](const float4&) {});
}

DEVICE double sum_of_warps(double mine, double* slots) {
    for (int mask = 16; mask > 0; mask >>= 1) mine += shuffle_xor(mine, mask);
    if (lane_id() == 0) slots[warp_id()] = mine;
    __syncthreads();
    double a = 0.0, b = 0.0, c = 0.0, d = 0.0;
#pragma unroll
    for (int w = 0; w < WARPS; w += 4) {
        a += slots[w];
        b += slots[w + 1];
        c += slots[w + 2];
        d += slots[w + 3];
    }
    return (a + b) + (c + d);
}

// The sum in the order that defines it: 32 lanes, element i in lane i % 32, each half of the lanes merged by the tree
// + 8, + 4, + 2, + 1. By the first warp alone.
DEVICE double ordered_sum_of_squares(const float* values, int width) {
    double sum = 0.0;
#pragma unroll 1
    for (int i = lane_id(); i < width; i += 32) sum += (double)(values[i] * values[i]);
    for (int mask = 8; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    return shuffle(sum, 0) + shuffle(sum, 16);
}

DEVICE float norm_scale(double sum, int width, float eps) {
    float mean = (float)(sum / (double)width);
    return 1.0f / sqrtf(mean + eps);
}

// Reads `row` into the area and returns 1 / sqrt(mean of squares + eps).
//
// Any order of adding gives the mean within a relative width * 2^-52 of the defined one. Both are rounded to f32 next: if
// the two ends of that interval round alike, so does the defined order, and only else is it run (about once in 10^5 rows).
DEVICE float row_scale(const RowArea& area, const float* row, int width, float eps, Reduced* reduced) {
    double mine = 0.0, share = 1.0 / (double)width;
    load_row(area.values, row, width, [&](const float4& v) {
        mine += ((double)(v.x * v.x) + (double)(v.y * v.y)) + ((double)(v.z * v.z) + (double)(v.w * v.w));
    });
    double mean = sum_of_warps(mine, reduced->squares) * share;
    double slack = (double)(width + 8) * 2.220446049250313e-16;
    float low = (float)(mean - mean * slack), high = (float)(mean + mean * slack);
    if (low != high) {
        if (warp_id() == 0) {
            float scale = norm_scale(ordered_sum_of_squares((const float*)area.values, width), width, eps);
            if (lane_id() == 0) reduced->scale = scale;
        }
        __syncthreads();
        return reduced->scale;
    }
    return 1.0f / sqrtf(high + eps);
}

// Normalised row, in the area; returns each thread's greatest magnitude (NaN counts as 0).
DEVICE float normalise(const RowArea& area, float scale, int width) {
    float greatest = 0.0f;
#pragma unroll 2
    for (int i = threadIdx.x; i < width / 4; i += THREADS) {
        float4 v = area.values[i], w = area.gamma[i];
        v.x = v.x * scale * w.x;
        v.y = v.y * scale * w.y;
        v.z = v.z * scale * w.z;
        v.w = v.w * scale * w.w;
        area.values[i] = v;
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

// Byte offset of the word with columns i .. i + 4 of token slot g in B operand order; `lanes` is 32, or 4 where only one
// token is kept.
DEVICE int fragment_offset(int i, int g, int lanes) {
    return ((i >> 7) * lanes + g * 4 + ((i >> 2) & 3)) * 32 + ((i >> 5) & 3) * 8 + ((i >> 4) & 1) * 4;
}

// Norm and int8 rounding of one row; the bytes go to `out` in B operand order. The area's gamma is loaded before.
DEVICE Quantized quantize_row(const RowArea& area, const float* row, int width, float eps, signed char* out, int g,
                              int lanes, Reduced* reduced) {
    float scale = row_scale(area, row, width, eps, reduced);
    unsigned greatest = warp_max(bits_of_float(normalise(area, scale, width)));
    if (lane_id() == 0) reduced->greatest[warp_id()] = greatest;
    __syncthreads();
    greatest = warp_max(reduced->greatest[lane_id() % WARPS]);
    // (float)(127.0 / max(amax, 1e-5)): a quotient of two floats, rounded to f64 and then to f32, is the f32 quotient.
    float amax = float_of_bits(greatest), factor = (double)amax > 1e-5 ? 127.0f / amax : 12700000.0f;
    int sum = 0;
#pragma unroll 2
    for (int i = threadIdx.x; i < (width + 127) / 128 * 32; i += THREADS) {
        unsigned word = 0;
        if (i < width / 4) {
            float4 v = area.values[i];
            int q[4] = {nearest(v.x * factor), nearest(v.y * factor), nearest(v.z * factor), nearest(v.w * factor)};
            for (int j = 0; j < 4; j++) {
                word |= (unsigned)(q[j] & 255) << (8 * j);
                sum += q[j];
            }
        }
        *(unsigned*)(out + fragment_offset(4 * i, g, lanes)) = word;
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) reduced->sum[warp_id()] = sum;
    __syncthreads();
    sum = lane_id() < WARPS ? reduced->sum[lane_id()] : 0;
    return {factor, warp_sum(sum)};
}
