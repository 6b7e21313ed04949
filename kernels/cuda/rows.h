// RMS norm of a row and its rounding to int8 as in norm.h, the same bits, by blocks that keep the row in registers: three
// meetings of a block and some ten instructions a value. The norm's weights come to shared memory before the row is there.
#pragma once

#include "norm.h"

enum { ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32 };

// Of all warps, without a shuffle.
DEVICE double sum_of_few(const double* slots) {
    static_assert(ROW_WARPS == 8, "a tree of three levels");
    return ((slots[0] + slots[1]) + (slots[2] + slots[3])) + ((slots[4] + slots[5]) + (slots[6] + slots[7]));
}

// Four values each thread, COUNT times: rows of up to COUNT * 4 * ROW_THREADS columns.
template <int COUNT> struct KeptRow {
    float4 values[COUNT];
    int width;

    DEVICE static int place(int j) { return j * ROW_THREADS + (int)threadIdx.x; }
    DEVICE void load(const float* from) {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            values[j] = float4{0.0f, 0.0f, 0.0f, 0.0f};
            if (place(j) < width / 4) values[j] = ((const float4*)from)[place(j)];
        }
    }
    // Each thread reads back what it copied itself.
    DEVICE static float4* gamma() { return (float4*)(shared_arena() + REDUCED_BYTES); }
    DEVICE void load_gamma(const float* from) const {
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            if (place(j) < width / 4) copy_async_kept(gamma() + place(j), from + 4 * place(j));
        }
        copy_commit();
    }
    DEVICE void sum_squares(Reduced* reduced) const {
        double mine = 0.0;
#pragma unroll
        for (int j = 0; j < COUNT; j++) mine += squares(values[j]);
        put_sum(mine, reduced->squares);
        __syncthreads();
    }
    // Scales the values and returns the greatest magnitude of the row (NaN counts as 0). `odd`: something is no finite number.
    DEVICE float scale(float by, Reduced* reduced, bool& odd) {
        float greatest = 0.0f;
        copy_wait<0>();
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            float4& v = values[j];
            const float4 w = place(j) < width / 4 ? gamma()[place(j)] : float4{0.0f, 0.0f, 0.0f, 0.0f};
            v = float4{v.x * by * w.x, v.y * by * w.y, v.z * by * w.z, v.w * by * w.w};
            const float low = greater_or_nan(fabsf(v.x), fabsf(v.y)), high = greater_or_nan(fabsf(v.z), fabsf(v.w));
            greatest = greater_or_nan(greatest, greater_or_nan(low, high));
        }
        odd = !(greatest < INFINITE);
        if (seldom(odd)) greatest = odd_greatest();
        const unsigned of_warp = warp_max(bits_of_float(greatest));
        if (lane_id() == 0) reduced->greatest[warp_id()] = of_warp;
        __syncthreads();
        return float_of_bits(warp_max(reduced->greatest[lane_id() % ROW_WARPS]));
    }
    DEVICE float odd_greatest() const {
        float greatest = 0.0f;
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            const float4& v = values[j];
            greatest = fmaxf(fmaxf(fmaxf(greatest, fabsf(v.x)), fmaxf(fabsf(v.y), fabsf(v.z))), fabsf(v.w));
        }
        return greatest;
    }
    // Bytes to `out`, `apart` from one four to the next, and their sum. The greatest magnitude becomes 127, so that nothing needs a limit:
    // the low bytes of x + 1.5 * 2^23 are those of x rounded half to even.
    DEVICE int round(float factor, bool odd, signed char* out, int apart) const {
        if (seldom(odd)) {
            return round_as(out, apart, [=](const float4& v) {
                return pack(nearest(v.x * factor), nearest(v.y * factor), nearest(v.z * factor), nearest(v.w * factor));
            });
        }
        return round_as(out, apart, [=](const float4& v) {
            const float magic = 12582912.0f;
            return low_bytes(bits_of_float(v.x * factor + magic), bits_of_float(v.y * factor + magic), bits_of_float(v.z * factor + magic),
                             bits_of_float(v.w * factor + magic));
        });
    }
    template <class Word> DEVICE int round_as(signed char* out, int apart, const Word& word_of) const {
        int sum = 0;
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            if (place(j) >= (width + 127) / 128 * 32) break;
            const unsigned word = word_of(values[j]);
            sum = sum_bytes(word, sum);
            *(unsigned*)(out + j * apart) = word;
        }
        return sum;
    }
};

template <int COUNT> DEVICE void norm_kept_row(const Phase& p, const Step& s) {
    Reduced* reduced = (Reduced*)shared_arena();
    const int width = p.cols, t = blockIdx.x;
    const float* row = p.input + (long long)t * width;
    KeptRow<COUNT> kept;
    kept.width = width;
    // The next one's weights come from now on, where its blocks have room beside these.
    if (s.tokens <= EARLY_ROWS_MAX) launch_next();
    kept.load_gamma(p.gamma);
    // What does not depend on the row is there before it.
    const int items = (width + 127) / 128, gathered = gathered_block(s.tokens);
    long long at = gathered ? gathered_row(t, items, gathered) : (long long)(t / 8) * items * 1024;
    at += gathered ? gathered_offset(4 * (int)threadIdx.x, t % 8, gathered) : fragment_offset(4 * (int)threadIdx.x, t % 8);
    int apart = ROW_THREADS / 32 * (gathered ? gathered * 128 : 1024); // of 4 * ROW_THREADS columns
    double share = 1.0 / (double)width;
    settle(at);
    settle(apart);
    settle(share);
    wait_prior();
    kept.load(row);
    float scale = 1.0f;
    if (!p.plain) {
        kept.sum_squares(reduced);
        scale = scale_of_row(width, p.eps, share, sum_of_few(reduced->squares), reduced, [=](int i) { return row[i]; });
    }
    bool odd;
    const float factor = quantizing_factor(kept.scale(scale, reduced, odd));
    int sum = warp_sum(kept.round(factor, odd, s.quantized + at, apart));
    if (lane_id() == 0) reduced->sum[warp_id()] = sum;
    __syncthreads();
    if (warp_id() > 0) return;
    sum = warp_sum(lane_id() < ROW_WARPS ? reduced->sum[lane_id()] : 0);
    if (lane_id() == 0) {
        s.quantized_scale[t] = factor;
        s.quantized_sum[t] = sum;
    }
}
