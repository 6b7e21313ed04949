// Draws from the softmax as the best of perturbed logits, by the screen: the bits of kernels/src/draw.rs.
#pragma once

#include "screen.h"

// Philox4x32-10.
DEVICE void philox(unsigned (&counter)[4], unsigned first_key, unsigned second_key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned long long first = 0xd2511f53ull * counter[0], second = 0xcd9e8d57ull * counter[2];
        counter[0] = (unsigned)(second >> 32) ^ counter[1] ^ first_key;
        counter[1] = (unsigned)second;
        counter[2] = (unsigned)(first >> 32) ^ counter[3] ^ second_key;
        counter[3] = (unsigned)first;
        first_key += 0x9e3779b9u;
        second_key += 0xbb67ae85u;
    }
}

// x = 2^exponent (1 + mantissa), the mantissa in -0.5 .. 0.
DEVICE void float_parts(float x, float& exponent, float& mantissa) {
    unsigned bits = bits_of_float(x);
    exponent = (float)((int)(bits >> 23) - 126);
    mantissa = float_of_bits((bits & 0x007fffffu) | 0x3f000000u) - 1.0f;
}

DEVICE float logarithm(float exponent, float mantissa) {
    float z = mantissa / (2.0f + mantissa), square = z * z, sum = 1.0f / 15.0f;
    sum = sum * square + 1.0f / 13.0f;
    sum = sum * square + 1.0f / 11.0f;
    sum = sum * square + 1.0f / 9.0f;
    sum = sum * square + 1.0f / 7.0f;
    sum = sum * square + 1.0f / 5.0f;
    sum = sum * square + 1.0f / 3.0f;
    return exponent * 0.693147180559945309417f + 2.0f * (z + z * square * sum);
}

// -ln(-ln(1 - v)) for v = (word + 1/2) / 2^32.
DEVICE float gumbel(unsigned word) {
    const float unit = 2.3283064365386963e-10f;
    float v = ((float)word + 0.5f) * unit, rest = ((float)~word + 0.5f) * unit, exponent, mantissa;
    float_parts(rest, exponent, mantissa);
    bool small = v <= 0.5f;
    float exponential = -logarithm(small ? 0.0f : exponent, small ? -v : mantissa);
    float_parts(exponential, exponent, mantissa);
    return -logarithm(exponent, mantissa);
}

// Words of the noise of the tokens `token` + 0, 16, 32, 48, where token % 64 is below 16.
DEVICE void noise_words(const Draw& draw, int token, unsigned (&words)[4]) {
    words[0] = draw.position[0];
    words[1] = draw.position[1];
    words[2] = (unsigned)(token / 64 * 16 + token % 16);
    words[3] = 1;
    philox(words, draw.seed[0], draw.seed[1]);
}

DEVICE float noise_of(const Draw& draw, int token) {
    unsigned words[4];
    noise_words(draw, token, words);
    int part = token % 64 / 16;
    return gumbel(part == 0 ? words[0] : part == 1 ? words[1] : part == 2 ? words[2] : words[3]);
}

// The place of a draw's score in the order of integers; 0 where the logit gives the token no chance.
DEVICE unsigned long long drawn_key(float logit, const Draw& draw, int token) {
    if (!(logit > -INFINITE)) return 0;
    float finite = logit < 3.402823466e38f ? logit : 3.402823466e38f;
    double score = (double)finite * (double)draw.factor + (double)noise_of(draw, token) + 0.0;
    unsigned long long bits = bits_of_double(score);
    return bits >> 63 ? ~bits : bits | 1ull << 63;
}

enum { DRAW_ROWS = 2048 };

// Of DRAW_ROWS rows, for one token: upper bounds of logits become upper bounds of scores, whose greatest lower bound is
// noted. What floats round is below 2^-22 of a score's parts; noise is below 24.
DEVICE void draw_batch_rows(const Phase& p, const Step& s, int t, int chunk) {
    const Draw draw = s.draws[t];
    if (draw.factor == 0.0f || draw.count != 0) return;
    const float4 x = ((const float4*)s.screen_rows)[t];
    const int first = chunk * DRAW_ROWS + (int)threadIdx.x / 16 * 64 + (int)threadIdx.x % 16;
    unsigned words[4], best = 0;
    noise_words(draw, first, words);
    float *at = p.output + (long long)t * p.rows + first, top[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        top[i] = -INFINITE;
        if (first + 16 * i >= p.rows) continue;
        const float4 row = ((const float4*)p.scales)[first + 16 * i];
        float noise = gumbel(words[i]), upper = at[16 * i], off = screen_distance(row, {x.x, x.y, x.z});
        float high = upper * draw.factor, low = (upper - 2.00001f * off) * draw.factor;
        at[16 * i] = high = high + noise + (fabsf(high) + 32.0f) * 1e-6f;
        top[i] = high == high ? high : INFINITE;
        best = max(best, lower_key(low + noise - (fabsf(low) + 32.0f) * 1e-6f));
    }
    if (keeps_tops(s.tokens)) {
        float* tops = screen_tops(p.output, s.tokens, p.rows, t) + first / 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            for (int mask = 8; mask > 0; mask >>= 1) top[i] = fmaxf(top[i], shuffle_xor(top[i], mask));
            if (lane_id() % 16 == 0 && first + 16 * i < p.rows) tops[i] = top[i];
        }
    }
    best = warp_max(best);
    if (lane_id() == 0 && best > s.lower[t]) atomicMax(&s.lower[t], best);
}

// The choice among some tokens: the greatest key, the lowest token of equal ones.
DEVICE void take_better(Chosen& best, unsigned long long key, int token) {
    if (key > best.key || (key == best.key && token < best.token)) best = Chosen{key, token, 0};
}
DEVICE void take_best_of_lanes(Chosen& best) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        unsigned long long key = shuffle_xor(best.key, mask);
        int token = shuffle_xor(best.token, mask);
        take_better(best, key, token);
    }
}

// Exact logits of what may be the best among CHOOSE_ROWS rows, for one token: the best of them. Few blocks have more than one
// such row, whose warp they wait for: so their warps are few.
DEVICE void choose_batch_rows(const Phase& p, const Step& s, int t, int chunk) {
    const float lower = lower_of_key(s.lower[t]), *upper = p.input + (long long)t * p.rows;
    Chosen best = {0, 0x7fffffff, 0};
    // The row, a word, then a place for weights of each warp.
    float* x = (float*)shared_arena();
    int* any = (int*)(x + p.cols);
    auto at = [=](int offset) { return (unsigned char*)(any + 4) + warp_id() * CHOOSE_DEPTH * 512 + offset; };
    // All bounds are looked at before anything is done about one. Lane i keeps the i-th 32 of the warp.
    enum { LOOKS = CHOOSE_ROWS / CHOOSE_THREADS };
    const bool tops = keeps_tops(s.tokens);
    const int first = chunk * CHOOSE_ROWS + warp_id() * 32, tile = chunk * CHOOSE_THREADS + (int)threadIdx.x;
    bool live[LOOKS];
    unsigned kept = 0, tiles = 0;
    if (tops) {
        tiles = warp_ballot(tile * 16 < p.rows && !(screen_tops((float*)p.input, s.tokens, p.rows, t)[tile] < lower));
    } else {
#pragma unroll
        for (int i = 0; i < LOOKS; i++) {
            int row = first + i * CHOOSE_THREADS + lane_id();
            live[i] = row < p.rows && !(upper[row] < lower);
        }
#pragma unroll
        for (int i = 0; i < LOOKS; i++) {
            unsigned all = warp_ballot(live[i]);
            if (lane_id() == i) kept = all;
        }
    }
    if (threadIdx.x == 0) *any = 0;
    __syncthreads();
    if (kept | tiles) *any = 1;
    __syncthreads();
    if (*any) {
        load_normed<CHOOSE_THREADS>(x, p, s, t);
        copy_wait<0>();
        __syncthreads();
    }
#pragma unroll 1
    for (int i = 0; tops ? tiles != 0 : i < LOOKS; i++) {
        int from = first + i * CHOOSE_THREADS;
        unsigned left = shuffle(kept, i);
        if (tops) {
            from = (tile - lane_id() + lowest_bit(tiles)) * 16;
            tiles &= tiles - 1;
            left = warp_ballot(lane_id() < 16 && from + lane_id() < p.rows && !(upper[from + lane_id()] < lower));
        }
        choose_rows<CHOOSE_DEPTH>(p, left, from, x, at, [&](float logit, int row) {
            // For draws among the best few, which read what takes the place of the bounds; see rank.h.
            if (lane_id() == 0) ((float*)upper)[row] = logit;
            const bool drawn = s.draws && s.draws[t].factor != 0.0f;
            take_better(best, drawn ? drawn_key(logit, s.draws[t], row) : greedy_key(logit, row), row);
        });
    }
    __syncthreads();
    Chosen* of_warps = (Chosen*)shared_arena();
    if (lane_id() == 0) of_warps[warp_id()] = best;
    __syncthreads();
    if (warp_id() > 0) return;
    best = of_warps[lane_id() % (CHOOSE_THREADS / 32)];
    take_best_of_lanes(best);
    if (lane_id() == 0) s.chosen[t * ((p.rows + CHOOSE_ROWS - 1) / CHOOSE_ROWS) + chunk] = best;
}

// The best token becomes the next input: a warp for each row.
DEVICE void take_chosen(const Step& s, int t) {
    const int chunks = (s.vocab + CHOOSE_ROWS - 1) / CHOOSE_ROWS;
    if (t >= s.tokens || (s.draws && s.draws[t].count != 0)) return;
    Chosen best = {0, 0x7fffffff, 0};
    for (int i = lane_id(); i < chunks; i += 32) {
        Chosen chosen = s.chosen[t * chunks + i];
        take_better(best, chosen.key, chosen.token);
    }
    take_best_of_lanes(best);
    if (lane_id() > 0) return;
    int row = picked_row(s, t);
    s.token_ids[row] = is_token(best.key) ? best.token : NO_TOKEN;
    s.positions[row] += 1;
    s.lower[t] = 0;
}
