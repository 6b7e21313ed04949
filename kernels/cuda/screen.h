// The head without reading all of it: bytes instead of halves give every logit within a proven bound, and only rows that may
// hold the greatest are computed as kernels/src/dense does. The choice is that of the full head, always.
//
// With w' = scale * byte and x' = q / factor for q of 16 bits, in two bytes: |w x - w' x'| <= |w - w'| |x| + |w'| |x - x'|.
// `error` is at least |w - w'|, `norm` at least |w| and |w'|. What floats round, in the exact chains (width / 16 + 4 terms)
// and in the screen's few operations, is in proportion to |w| |x|.
#pragma once

#include "head.h"

// What a screened row of activations has besides its bytes.
struct ScreenRow {
    float unit;  // 1 / factor
    float size;  // at least |x|
    float error; // at least |x - x'| and what floats round
};

const int SCREEN_RANGE = 127 * 256;

DEVICE float screen_factor(float amax) { return amax > 1e-30f && amax < 1e30f ? (float)SCREEN_RANGE / amax : 0.0f; }

// A row that is 0 or hardly more, or no number, has factor 0: its bytes are 0, and its size tells how far off that is.
DEVICE ScreenRow screen_row(double squares, float factor, int width) {
    float size = sqrtf((float)squares) * 1.0001f, width_root = sqrtf((float)width);
    float rounded = (float)(width / 16 + 32) * 1.3e-7f * size;
    return {factor > 0.0f ? 1.0f / factor : 0.0f, size, factor > 0.0f ? width_root * 0.503f / factor + rounded : size * 1.01f};
}

// The upper and the lower byte of each of four values, as words.
DEVICE uint2 screen_bytes(const float4& v, float factor) {
    float scaled[4] = {v.x * factor, v.y * factor, v.z * factor, v.w * factor};
    uint2 words = {0, 0};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int q = (int)(bits_of_float(scaled[j] + 12582912.0f) & 0x007fffffu) - 0x00400000, high = (q + 128) >> 8;
        words.x |= (unsigned)(high & 255) << (8 * j);
        words.y |= (unsigned)((q - 256 * high) & 255) << (8 * j);
    }
    return words;
}

struct Bounds {
    float lower, upper;
};

// `row` is the matrix's: scale, error, norm.
DEVICE Bounds screen_bounds(int high, int low, const float4& row, const ScreenRow& x) {
    float middle = ((float)high * 256.0f + (float)low) * x.unit * row.x;
    float off = (row.y * x.size + row.z * x.error) * 1.0001f + 1e-30f;
    return {middle - off, middle + off};
}

// 0 for what is no number.
DEVICE unsigned lower_key(float lower) { return lower > -INFINITE ? ordered(lower) : 0; }

// Exact logit of one row by a warp, in the order of kernels/src/dense; x in shared memory. `at(i)` is 16 bytes of this
// thread's in shared memory, RING_DEPTH of them, 32 lanes side by side.
template <class Place> DEVICE float exact_logit(const Phase& p, int row, const float* x, const Place& at) {
    const unsigned char* from = (const unsigned char*)p.weights + (long long)(row / 32) * p.cols * 64 + row % 32 * 32;
    float sum = 0.0f;
    // A pass is as many columns as the place holds.
#pragma unroll 1
    for (int start = 0; start < p.cols; start += RING_DEPTH * 256) {
        __syncwarp();
#pragma unroll 1
        for (int i = 0; i < RING_DEPTH; i++) {
            int chunk = start / 8 + i * 32 + lane_id();
            if (chunk * 8 < p.cols) copy_async(at(i, lane_id()), from + (long long)(chunk / 2) * 1024 + chunk % 2 * 16);
        }
        copy_commit();
        copy_wait<0>();
        __syncwarp();
        int k = lane_id() % 16, end = min(p.cols - start, RING_DEPTH * 256);
#pragma unroll 8
        for (int i = 0; i < end; i += 16) {
            int chunk = i / 8 + k / 8;
            unsigned short w = ((const unsigned short*)at(chunk / 32, chunk % 32))[k % 8];
            sum = fused(float_of_half(w), x[start + i + k], sum);
        }
    }
    for (int mask = 8; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    return sum;
}

// Rows of up to 32 in a row from `first` on whose upper bound is not below `lower`: their exact keys; the greatest.
template <class Place>
DEVICE unsigned long long choose_rows(const Phase& p, const float* upper, float lower, int first, int count, const float* x,
                                      const Place& at) {
    unsigned long long best = 0;
    bool live = lane_id() < count && !(upper[min(lane_id(), count - 1)] < lower);
#pragma unroll 1
    for (unsigned left = warp_ballot(live); left != 0; left &= left - 1) {
        int row = first + lowest_bit(left);
        unsigned long long key = greedy_key(exact_logit(p, row, x, at), row);
        best = key > best ? key : best;
    }
    return best;
}

DEVICE float lower_of_key(unsigned key) { return key ? unordered(key) : -INFINITE; }

// The matrix's bytes and rows, made of its halves once: a block for each 16 rows, a warp for each.
DEVICE void pack_screen_rows(const Phase& p) {
    const int row = blockIdx.x * 16 + warp_id(), width = (p.cols + 127) / 128 * 128, g = warp_id() % 8, high = warp_id() / 8;
    const unsigned short* halves = (const unsigned short*)p.weights + (long long)(row / 32) * p.cols * 32 + row % 32 * 16;
    auto value = [&](int k) { return k < p.cols && row < p.rows ? float_of_half(halves[k / 16 * 512 + k % 16]) : 0.0f; };
    float amax = 0.0f;
    for (int k = lane_id(); k < width; k += 32) amax = fmaxf(amax, fabsf(value(k)));
    amax = float_of_bits(warp_max(bits_of_float(amax)));
    float scale = amax / 127.0f, factor = amax > 0.0f ? 127.0f / amax : 0.0f;
    double error = 0.0, size = 0.0, rounded = 0.0;
    unsigned* out = (unsigned*)p.output + (long long)blockIdx.x * width * 4;
    for (int k = lane_id() * 4; k < width; k += 128) {
        int q[4];
        for (int j = 0; j < 4; j++) {
            float w = value(k + j);
            q[j] = nearest(w * factor);
            double off = (double)w - (double)scale * q[j];
            error += off * off;
            size += (double)w * (double)w;
            rounded += (double)scale * q[j] * ((double)scale * q[j]);
        }
        out[(k / 32 * 32 + g * 4 + k % 16 / 4) * 4 + k % 32 / 16 * 2 + high] = pack(q[0], q[1], q[2], q[3]);
    }
    for (int mask = 16; mask > 0; mask >>= 1) {
        error += shuffle_xor(error, mask);
        size += shuffle_xor(size, mask);
        rounded += shuffle_xor(rounded, mask);
    }
    // A row with what is no number has no bound: its error is none either.
    if (lane_id() == 0) {
        float norm = sqrtf((float)(size > rounded ? size : rounded)) * 1.0001f;
        ((float4*)p.scales)[row] = float4{scale, sqrtf((float)error) * 1.0001f + 1e-30f, norm + (float)(size - size), 0.0f};
    }
}
