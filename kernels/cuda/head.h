// The head y = W x in f32 and the embedding, both of pieces; the bits of kernels/src/dense: element k of a row goes to
// lane k % 16 of its sum by fused multiply-add, lanes merge by the tree + 8, + 4, + 2, + 1.
#pragma once

#include "linear.h"

DEVICE int picked_row(const Step& s, int t) { return s.picked ? s.picked[t] : t; }

// Byte offset of column k of a row in pieces.
DEVICE long long piece_offset(const Phase& p, int row, int k) {
    long long tile = row / 32;
    if (!p.wide) return tile * p.cols * 64 + k / 16 * 1024 + row % 32 * 32 + k % 16 * 2;
    return tile * p.cols * 128 + k / 16 * 2048 + row % 32 / 16 * 1024 + k % 8 / 4 * 512 + row % 16 * 32 + k % 16 / 8 * 16 + k % 4 * 4;
}

DEVICE float piece_value(const Phase& p, int row, int k) {
    const unsigned char* at = (const unsigned char*)p.weights + piece_offset(p, row, k);
    return p.wide ? *(const float*)at : float_of_half(*(const unsigned short*)at);
}

DEVICE void open_piece(const uint4& piece, float (&out)[8]) {
    unsigned words[4] = {piece.x, piece.y, piece.z, piece.w};
    for (int j = 0; j < 4; j++) {
        float2 pair = floats_of_halves(words[j]);
        out[2 * j] = pair.x;
        out[2 * j + 1] = pair.y;
    }
}

DEVICE void open_wide(const uint4& low, const uint4& high, float (&out)[8]) {
    unsigned words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    for (int j = 0; j < 8; j++) out[j] = float_of_bits(words[j]);
}

// The token of row t.
DEVICE int token_of(const Step& s, int t) {
    int id = s.token_ids[t];
    if (id < 0) id = s.earlier[~id];
    return id < s.vocab ? id : 0;
}

// The embedding of every row's token.
DEVICE void embed(const Phase& p, const Step& s) {
    int per_row = s.hidden / 8;
#pragma unroll 1
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < s.tokens * per_row; i += gridDim.x * THREADS) {
        int t = i / per_row, k = i % per_row, id = token_of(s, t);
        const unsigned char* at = (const unsigned char*)p.weights + piece_offset(p, id, k * 8);
        float values[8];
        if (p.wide) {
            open_wide(*(const uint4*)at, *(const uint4*)(at + 512), values);
        } else {
            open_piece(*(const uint4*)at, values);
        }
        for (int j = 0; j < 8; j++) p.output[(long long)t * s.hidden + k * 8 + j] = values[j];
    }
}

// A logit's place in the order of greedy choice: NaN as -inf, -0 as 0, the lowest id of equals first.
DEVICE unsigned long long greedy_key(float logit, int id) {
    float x = logit != logit ? -INFINITE : logit + 0.0f;
    unsigned bits = bits_of_float(x);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ((unsigned long long)bits << 32) | (unsigned)~id;
}
// Whether a key, of greedy choice or of a draw, is that of a logit above minus infinity.
DEVICE bool is_token(unsigned long long key) { return key >> 32 > 0x007fffff; }

// Lane L holds the 8 lane sums k % 16 = 8 (L % 2) ..+ 8 of row L / 2.
DEVICE float merge_lanes(const float (&sum)[8]) {
    float eight[8];
    for (int j = 0; j < 8; j++) eight[j] = sum[j] + shuffle_xor(sum[j], 1);
    return ((eight[0] + eight[4]) + (eight[2] + eight[6])) + ((eight[1] + eight[5]) + (eight[3] + eight[7]));
}

// T rows of activations from `first` on against the row tiles of this warp. A lane meets each activation for two rows of
// weights, 16 apart: the activations' way from shared memory is the narrowest.
template <int T, bool WIDE>
DEVICE void head_rows(const Phase& p, const Step& s, Ring& ring, const float* x, unsigned long long* best, int first,
                      int rows) {
    int sharing = (int)gridDim.x / ring.groups, tile = (int)blockIdx.x / ring.groups * WARPS + warp_id();
    if ((int)blockIdx.x / ring.groups >= sharing) tile = p.tiles;
#pragma unroll 1
    for (; tile < p.tiles; tile += sharing * WARPS) {
        float sum[2][T][8] = {};
#pragma unroll 1
        for (int column = 0; column < p.cols; column += 16) {
            float w[2][8];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint4 piece = ring.front();
                ring.advance();
                if (WIDE) {
                    uint4 more = ring.front();
                    ring.advance();
                    open_wide(piece, more, w[half]);
                } else {
                    open_piece(piece, w[half]);
                }
            }
            const float4* at = (const float4*)(x + column + (lane_id() & 1) * 8);
#pragma unroll
            for (int t = 0; t < T; t++) {
                float4 a = at[t * (s.hidden / 4)], b = at[t * (s.hidden / 4) + 1];
                float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    sum[0][t][j] = fused(w[0][j], v[j], sum[0][t][j]);
                    sum[1][t][j] = fused(w[1][j], v[j], sum[1][t][j]);
                }
                keep_order();
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * T; i++) {
            int t = i / 2, row = tile * 32 + i % 2 * 16 + lane_id() / 2;
            float logit = merge_lanes(sum[i % 2][t]);
            bool live = t < rows && row < p.rows;
            if (live && (lane_id() & 1) == 0) p.output[(long long)(first + t) * p.rows + row] = logit;
            unsigned long long key = live ? greedy_key(logit, row) : 0;
            for (int mask = 16; mask > 1; mask >>= 1) {
                unsigned long long other = shuffle_xor(key, mask);
                key = other > key ? other : key;
            }
            if (lane_id() == 0) atomicMax(&best[t], key);
            keep_order();
        }
    }
    __syncthreads();
    if ((int)threadIdx.x < rows) atomicMax(&s.best[first + threadIdx.x], best[threadIdx.x]);
}

// Blocks of one index modulo `groups` serve one group of head_tokens rows; the groups of neighbours read the same weights
// at about the same time, so that memory gives them once.
DEVICE void head(const Phase& p, const Step& s, Ring& ring, unsigned char* work, Reduced* reduced) {
    int first = (int)blockIdx.x % ring.groups * s.head_tokens, rows = min(s.tokens - first, s.head_tokens);
    float* x = (float*)work;
    RowArea area = {(float4*)(x + s.head_tokens * s.hidden), (float4*)(x + (s.head_tokens + 1) * s.hidden)};
    load_gamma(area, p.gamma, s.hidden);
#pragma unroll 1
    for (int t = 0; t < rows; t++) {
        float scale = row_scale(area, p.input + (long long)picked_row(s, first + t) * s.hidden, s.hidden, p.eps, reduced);
#pragma unroll 1
        for (int i = threadIdx.x; i < s.hidden / 4; i += THREADS) {
            ((float4*)x)[t * (s.hidden / 4) + i] = scaled_values(area, i, scale);
        }
        __syncthreads();
    }
    if (threadIdx.x < HEAD_TOKENS_MAX) reduced->best[threadIdx.x] = 0;
#pragma unroll 1
    for (int i = rows * s.hidden + threadIdx.x; i < s.head_tokens * s.hidden; i += THREADS) x[i] = 0.0f;
    __syncthreads();
    if (p.wide) {
        head_rows<HEAD_TOKENS_MAX, true>(p, s, ring, x, reduced->best, first, rows);
    } else if (s.head_tokens == 1) {
        head_rows<1, false>(p, s, ring, x, reduced->best, first, rows);
    } else {
        head_rows<HEAD_TOKENS_MAX, false>(p, s, ring, x, reduced->best, first, rows);
    }
}

// The greatest logit's token becomes the next input.
DEVICE void greedy(const Step& s) {
    if (blockIdx.x > 0) return;
    for (int t = threadIdx.x; t < s.tokens; t += THREADS) {
        s.token_ids[picked_row(s, t)] = is_token(s.best[t]) ? (int)~(unsigned)s.best[t] : NO_TOKEN;
        s.positions[picked_row(s, t)] += 1;
        s.best[t] = 0;
        s.lower[t] = 0;
    }
}
