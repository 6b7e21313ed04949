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

// The row in shared memory, padded to whole groups of 128 columns, becomes its norm. put(i, words) gets the bytes of the
// columns 4 i .. + 4.
template <class Put> DEVICE ScreenRow prepare_screen(const Phase& p, float* x, Reduced* reduced, const Put& put) {
    const int width = (p.cols + 127) / 128 * 128;
    RowArea area = {(float4*)x, nullptr};
    double mine = 0.0;
    for (int i = threadIdx.x; i < p.cols / 4; i += THREADS) mine += squares(area.values[i]);
    put_sum(mine, reduced->squares);
    __syncthreads();
    float scale = scale_of_row(area, p.cols, p.eps, 1.0 / (double)p.cols, reduced), greatest = 0.0f;
    mine = 0.0;
    for (int i = threadIdx.x; i < width / 4; i += THREADS) {
        float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
        if (i < p.cols / 4) {
            v = area.values[i];
            float4 w = ((const float4*)p.gamma)[i];
            v = float4{v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w};
        }
        area.values[i] = v;
        greatest = fmaxf(fmaxf(fmaxf(greatest, fabsf(v.x)), fmaxf(fabsf(v.y), fabsf(v.z))), fabsf(v.w));
        mine += squares(v);
    }
    unsigned most = warp_max(bits_of_float(greatest));
    if (lane_id() == 0) reduced->greatest[warp_id()] = most;
    __syncthreads();
    put_sum(mine, reduced->squares);
    __syncthreads();
    float factor = screen_factor(float_of_bits(warp_max(reduced->greatest[lane_id() % WARPS])));
    for (int i = threadIdx.x; i < width / 4; i += THREADS) put(i, screen_bytes(area.values[i], factor));
    return screen_row(sum_of_warps(reduced->squares), factor, p.cols);
}

struct Bounds {
    float lower, upper;
};

// `row` is the matrix's: scale, error, norm.
DEVICE float screen_distance(const float4& row, const ScreenRow& x) { return (row.y * x.size + row.z * x.error) * 1.0001f + 1e-30f; }
DEVICE Bounds screen_bounds(int high, int low, const float4& row, const ScreenRow& x) {
    float middle = ((float)high * 256.0f + (float)low) * x.unit * row.x, off = screen_distance(row, x);
    return {middle - off, middle + off};
}

// 0 for what is no number.
DEVICE unsigned lower_key(float lower) { return lower > -INFINITE ? ordered(lower) : 0; }

// Exact logit of one row by a warp, in the order of kernels/src/dense. `at(offset)` is shared memory for DEPTH * 512 bytes of the row, in
// pieces of 16 bytes.
template <int DEPTH, class Place> DEVICE float exact_logit(const Phase& p, int row, const float* x, const Place& at) {
    // Decided here, not outside: code for each of both makes registers spill.
    const bool wide = p.wide != 0;
    const int size = wide ? 4 : 2, pass = DEPTH * 512 / size; // bytes of a column, columns that have room
    float sum = 0.0f;
#pragma unroll 1
    for (int start = 0; start < p.cols; start += pass) {
        const unsigned char* from = (const unsigned char*)p.weights + piece_offset(p, row, start + lane_id() * 16 / size);
        const int end = min(p.cols - start, pass);
        __syncwarp();
        // 512 bytes of a row are in 16384 of pieces, of halves as of floats.
#pragma unroll 1
        for (int offset = lane_id() * 16; offset < end * size; offset += 512, from += 16384) copy_async(at(offset), from);
        copy_commit();
        copy_wait<0>();
        __syncwarp();
        const int k = lane_id() % 16;
        const float* values = x + start + k;
#pragma unroll 8
        for (int i = 0; i < end; i += 16) {
            const unsigned char* place = at((i + k) * size);
            float w = wide ? *(const float*)place : float_of_half(*(const unsigned short*)place);
            sum = fused(w, values[i], sum);
        }
    }
    for (int mask = 8; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    return sum;
}

// Hands over the exact logits of the rows `first` + the bits of `left`.
template <int DEPTH, class Place, class Take>
DEVICE void choose_rows(const Phase& p, unsigned left, int first, const float* x, const Place& at, const Take& take) {
#pragma unroll 1
    for (; left != 0; left &= left - 1) {
        int row = first + lowest_bit(left);
        take(exact_logit<DEPTH>(p, row, x, at), row);
    }
}

// Where the screen keeps only the bounds of those 16 rows that may have the best: behind all bounds, the greatest of each 16
// rows of a token.
DEVICE bool keeps_tops(int tokens) { return WARPGROUPS && tokens > 8; }
DEVICE float* screen_tops(float* bounds, int tokens, int rows, int t) {
    return bounds + (long long)tokens * rows + (long long)t * ((rows + 15) / 16);
}

// Of a draw: behind these, the greatest lower bound of each 16 rows of a token.
DEVICE float* screen_lows(float* bounds, int tokens, int rows, int t) { return screen_tops(bounds, tokens, rows, tokens + t); }

DEVICE float lower_of_key(unsigned key) { return key ? unordered(key) : -INFINITE; }

// The matrix's bytes and rows, made of its pieces once: a block for each 16 rows, a warp for each.
DEVICE void pack_screen_rows(const Phase& p) {
    const int row = blockIdx.x * 16 + warp_id(), width = (p.cols + 127) / 128 * 128, g = warp_id() % 8, high = warp_id() / 8;
    auto value = [&](int k) { return k < p.cols && row < p.rows ? piece_value(p, row, k) : 0.0f; };
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

// Batch kernels. A row's norm, its bytes and what they leave out, by a block.
DEVICE void screen_batch_row(const Phase& p, const Step& s, int t) {
    Reduced* reduced = (Reduced*)shared_arena();
    float* x = (float*)(shared_arena() + REDUCED_BYTES);
    const int items = (p.cols + 127) / 128;
    const float4* from = (const float4*)(p.input + (long long)picked_row(s, t) * p.cols);
    for (int i = threadIdx.x; i < p.cols / 4; i += THREADS) ((float4*)x)[i] = from[i];
    __syncthreads();
    const bool gathered = keeps_tops(s.tokens);
    const int block = s.tokens <= 32 ? 64 : s.tokens <= 64 ? 128 : 256;
    signed char* out = s.screened + (gathered ? gathered_row(2 * t, items, block) : (long long)(2 * t / 8) * items * 1024);
    ScreenRow row = prepare_screen(p, x, reduced, [&](int i, const uint2& words) {
        const int slot = 2 * t % 8;
        *(unsigned*)(out + (gathered ? gathered_offset(4 * i, slot, block) : fragment_offset(4 * i, slot))) = words.x;
        *(unsigned*)(out + (gathered ? 128 + gathered_offset(4 * i, slot + 1, block) : fragment_offset(4 * i, slot + 1))) = words.y;
    });
    for (int i = threadIdx.x; i < p.cols / 4; i += THREADS) ((float4*)(s.normed + (long long)t * p.cols))[i] = ((float4*)x)[i];
    if (threadIdx.x == 0) ((float4*)s.screen_rows)[t] = float4{row.unit, row.size, row.error, s.draws ? s.draws[t].factor : 0.0f};
}

struct FinishScreen {
    const Phase& p;
    const Step& s;
    int first_row, first_token; // of the block
    float4* facts;              // in shared memory: the screen's of each row, then each token's

    DEVICE void begin() const {
        if (threadIdx.x < 128) copy_async_kept(facts + threadIdx.x, (const float4*)p.scales + min(first_row + (int)threadIdx.x, p.tiles * 16 - 1));
    }
    DEVICE void follow(int count) const {
        int t = first_token + (int)threadIdx.x;
        if ((int)threadIdx.x < count && t < s.tokens) facts[128 + threadIdx.x] = ((const float4*)s.screen_rows)[t];
    }
    // Bounds of a pair of sums: even lanes have a token's upper bytes, odd ones the lower. The first of both takes row g, the
    // other row g + 8.
    DEVICE void pair(int tile, int g, int token, int low, int high) const {
        int other_low = shuffle_xor(low, 1), other_high = shuffle_xor(high, 1), t = token / 2, row = tile * 16 + g + token % 2 * 8;
        unsigned key = 0;
        const float4 x = facts[128 + min(t, s.tokens - 1) - first_token];
        if (t < s.tokens && row < p.rows) {
            Bounds bounds = screen_bounds(token % 2 ? other_high : low, token % 2 ? high : other_low, facts[row - first_row],
                                          {x.x, x.y, x.z});
            p.output[(long long)t * p.rows + row] = bounds.upper;
            key = lower_key(bounds.lower);
        }
        for (int mask : {1, 4, 8, 16}) key = max(key, shuffle_xor(key, mask));
        if ((lane_id() & 29) != 0 || t >= s.tokens) return;
        // A draw's scores have bounds of their own. What another block wrote since may be missed: then the addition is for nothing.
        if (x.w != 0.0f) {
            if (tile < (p.rows + 15) / 16) screen_lows(p.output, s.tokens, p.rows, t)[tile] = lower_of_key(key);
        } else if (key > s.lower[t]) {
            atomicMax(&s.lower[t], key);
        }
    }
    template <int COUNT>
    DEVICE void operator()(int tile, int g, int token, int stride, const int (&low)[COUNT], const int (&high)[COUNT]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) pair(tile, g, token + i * stride, low[i], high[i]);
    }
};

enum { CHOOSE_THREADS = 128, CHOOSE_ROWS = 2048, CHOOSE_DEPTH = 10 };

// A normed row to shared memory, by a block; before the next meeting of the block each thread waits for its copies.
template <int COUNT> DEVICE void load_normed(float* to, const Phase& p, const Step& s, int t) {
    const float* from = s.normed + (long long)t * p.cols;
    for (int i = threadIdx.x; i < p.cols / 4; i += COUNT) copy_async_kept(to + 4 * i, from + 4 * i);
    copy_commit();
}
