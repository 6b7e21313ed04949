// RMS norm of a row and its rounding to int8 as in norm.h, the same bits, by blocks that keep the row in registers: three
// meetings of a block and some ten instructions a value. The norm's weights come to shared memory before the row is there.
#pragma once

#include "norm.h"

enum { ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32 };

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
        if (threadIdx.x < WARPS - ROW_WARPS) reduced->squares[ROW_WARPS + threadIdx.x] = 0.0;
        __syncthreads();
    }
    // Scales the values and returns the greatest magnitude of the row (NaN counts as 0). `odd`: something is no finite number.
    DEVICE float scale(float by, Reduced* reduced, bool& odd) {
        float greatest = 0.0f, zero = 0.0f;
        copy_wait<0>();
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            float4& v = values[j];
            const float4 w = place(j) < width / 4 ? gamma()[place(j)] : float4{0.0f, 0.0f, 0.0f, 0.0f};
            v = float4{v.x * by * w.x, v.y * by * w.y, v.z * by * w.z, v.w * by * w.w};
            greatest = fmaxf(fmaxf(fmaxf(greatest, fabsf(v.x)), fmaxf(fabsf(v.y), fabsf(v.z))), fabsf(v.w));
            zero = fused(v.x, 0.0f, fused(v.y, 0.0f, fused(v.z, 0.0f, fused(v.w, 0.0f, zero))));
        }
        const unsigned of_warp = warp_max(bits_of_float(greatest));
        if (lane_id() == 0) reduced->greatest[warp_id()] = of_warp;
        __syncthreads();
        odd = zero != 0.0f;
        return float_of_bits(warp_max(reduced->greatest[lane_id() % ROW_WARPS]));
    }
    // Bytes in B operand order, and their sum. The greatest magnitude becomes 127, so that nothing needs a limit: the low bytes
    // of x + 1.5 * 2^23 are those of x rounded half to even.
    DEVICE int round(float factor, bool odd, signed char* out, int g, int gathered) const {
        int sum = 0;
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            if (place(j) >= (width + 127) / 128 * 32) break;
            const float x[4] = {values[j].x * factor, values[j].y * factor, values[j].z * factor, values[j].w * factor};
            unsigned word;
            if (odd) {
                word = pack(nearest(x[0]), nearest(x[1]), nearest(x[2]), nearest(x[3]));
            } else {
                const float magic = 12582912.0f;
                word = low_bytes(bits_of_float(x[0] + magic), bits_of_float(x[1] + magic), bits_of_float(x[2] + magic),
                                 bits_of_float(x[3] + magic));
            }
            sum = sum_bytes(word, sum);
            *(unsigned*)(out + (gathered ? gathered_offset(4 * place(j), g, gathered) : fragment_offset(4 * place(j), g))) = word;
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
    wait_prior();
    kept.load(row);
    float scale = 1.0f;
    if (!p.plain) {
        kept.sum_squares(reduced);
        scale = scale_of_row(width, p.eps, 1.0 / (double)width, reduced, [=](int i) { return row[i]; });
    }
    bool odd;
    const float factor = quantizing_factor(kept.scale(scale, reduced, odd));
    const int items = (width + 127) / 128;
    const int gathered = gathered_block(s.tokens);
    signed char* out = s.quantized + (gathered ? gathered_row(t, items, gathered) : (long long)(t / 8) * items * 1024);
    int sum = warp_sum(kept.round(factor, odd, out, t % 8, gathered));
    if (lane_id() == 0) reduced->sum[warp_id()] = sum;
    __syncthreads();
    if (warp_id() > 0) return;
    sum = warp_sum(lane_id() < ROW_WARPS ? reduced->sum[lane_id()] : 0);
    if (lane_id() == 0) {
        s.quantized_scale[t] = factor;
        s.quantized_sum[t] = sum;
    }
}
