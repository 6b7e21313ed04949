// Draws among the best few logits (top-k, and top-p and min-p of these), by the screen: the token of runtime/src/sampler.
//
// The k-th greatest of the greatest lower bounds of whole groups of rows is reached by k rows at least. Of each of k groups that
// reach it the row with the greatest upper bound is computed exactly: what all of these reach, k rows reach too, and it is
// closer to the k-th best than any bound. The greater of both is `lower`. Rows whose upper bound is below it are none of the k best,
// and choose_rows puts exact logits in place of the bounds of all others. So what reaches it afterwards is exact, and holds the k
// best.
#pragma once

#include "draw.h"

enum { RANK_LOOKS = 16 };

// The k-th greatest of the keys of all threads, bit by bit; 0 where there are fewer. `counts` has room for two of each warp.
DEVICE unsigned kth_greatest(const unsigned (&keys)[RANK_LOOKS], int k, int* counts) {
    unsigned found = 0;
#pragma unroll 1
    for (int bit = 31; bit >= 0; bit--) {
        const unsigned trial = found | 1u << bit;
        int reaching = 0;
#pragma unroll
        for (int i = 0; i < RANK_LOOKS; i++) reaching += keys[i] >= trial;
        reaching = warp_sum(reaching);
        int* of_warps = counts + bit % 2 * WARPS;
        if (lane_id() == 0) of_warps[warp_id()] = reaching;
        __syncthreads();
        if (warp_sum(lane_id() < WARPS ? of_warps[lane_id() % WARPS] : 0) >= k) found = trial;
    }
    return found;
}

struct RankArea {
    unsigned char weights[WARPS][CHOOSE_DEPTH * 512]; // of a row that is computed
    int counts[2 * WARPS], groups[RANKED_MAX], count;
    unsigned least, unused[2];
    float x[1]; // the row
};

// What `k` rows reach that are the best by their bounds, of groups that reach `found`: the least of their exact logits.
DEVICE unsigned reached_exactly(const Phase& p, int t, unsigned found, int k, const float* lows, RankArea& area) {
    if (threadIdx.x == 0) {
        area.count = 0;
        area.least = ~0u;
    }
    copy_wait<0>();
    __syncthreads();
    for (int at = threadIdx.x; at < (p.rows + 15) / 16; at += THREADS) {
        if (lower_key(lows[at]) < found) continue;
        const int place = atomicAdd(&area.count, 1);
        if (place < k) area.groups[place] = at;
    }
    __syncthreads();
    auto at = [&](int offset) { return area.weights[warp_id()] + offset; };
    const float* upper = p.input + (long long)t * p.rows;
#pragma unroll 1
    for (int i = warp_id(); i < k; i += WARPS) {
        const int first = area.groups[i] * 16, row = first + lane_id() % 16;
        const unsigned key = row < p.rows ? lower_key(upper[row]) : 0;
        const int best = first + lowest_bit(warp_ballot(key == warp_max(key)));
        const float logit = exact_logit<CHOOSE_DEPTH>(p, best, area.x, at);
        if (lane_id() == 0) atomicMin(&area.least, lower_key(logit));
    }
    __syncthreads();
    return area.least;
}

// What the best few of a token reach; where there are very many groups of 16 rows, by groups of several of them. `p` is CHOOSE.
DEVICE void rank_batch_row(const Phase& p, const Step& s, int t) {
    const int k = min(s.draws[t].count, (int)RANKED_MAX), groups = (p.rows + 15) / 16;
    if (k == 0) return;
    RankArea& area = *(RankArea*)shared_arena();
    load_normed<THREADS>(area.x, p, s, t);
    const float* lows = screen_lows((float*)p.input, s.tokens, p.rows, t);
    unsigned keys[RANK_LOOKS];
    float low[RANK_LOOKS];
#pragma unroll
    for (int i = 0; i < RANK_LOOKS; i++) {
        const int at = i * THREADS + (int)threadIdx.x;
        low[i] = at < groups ? lows[at] : -INFINITE;
    }
#pragma unroll
    for (int i = 0; i < RANK_LOOKS; i++) {
        keys[i] = lower_key(low[i]);
        for (int at = (RANK_LOOKS + i) * THREADS + (int)threadIdx.x; at < groups; at += RANK_LOOKS * THREADS) keys[i] = max(keys[i], lower_key(lows[at]));
    }
    const unsigned found = kth_greatest(keys, k, area.counts);
    const unsigned exact = found ? reached_exactly(p, t, found, k, lows, area) : 0;
    if (threadIdx.x == 0) s.lower[t] = max(found, exact);
}

// e^x for x <= 0, the bits of runtime/src/sampler/exp.rs: nothing fused.
DEVICE float weight_of(float x) {
    const float round = 12582912.0f;
    const bool inside = x >= -87.0f;
    x = inside ? x : -87.0f;
    const float shifted = x * 1.44269504088896340736f + round, n = shifted - round;
    const float r = (x - n * 0.6933594f) - n * -2.1219444e-4f;
    float p = 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return inside ? float_of_bits(bits_of_float(p) + (bits_of_float(shifted) << 23)) : 0.0f;
}

// A number in [0, 1) with 53 random bits: runtime/src/sampler/philox.rs.
DEVICE double uniform_of(const Draw& draw) {
    unsigned words[4] = {draw.position[0], draw.position[1], 0, 0};
    philox(words, draw.seed[0], draw.seed[1]);
    return ((double)(words[0] >> 5) * 67108864.0 + (double)(words[1] >> 6)) / 9007199254740992.0;
}

// Of `kept` weights, the greatest first, that of the draw.
DEVICE int pick(const float* weights, int kept, const Draw& draw) {
    if (draw.top_p < 1.0f) {
        double total = 0.0, sum = 0.0;
        for (int i = 0; i < kept; i++) total += (double)weights[i];
        const double mass = (double)draw.top_p * total;
        for (int i = 0; i < kept; i++) {
            sum += (double)weights[i];
            if (sum >= mass) kept = i + 1;
        }
    }
    const float least = draw.min_p > 0.0f ? fminf(draw.min_p, 1.0f) : 0.0f;
    double total = 0.0, sum = 0.0;
    for (int i = 0; i < kept; i++) total += weights[i] >= least ? (double)weights[i] : 0.0;
    const double target = uniform_of(draw) * total;
    int last = 0;
    for (int i = 0; i < kept && !(sum > target); i++) {
        if (!(weights[i] >= least && weights[i] > 0.0f)) continue;
        sum += (double)weights[i];
        last = i;
    }
    return last;
}

// PICK_PORTION rows and the best of those before fit PICK_ROOM.
enum { PICK_ROOM = 4096, PICK_PORTION = 2048, PICK_LOOKS = 8 };

struct PickArea {
    unsigned long long keys[PICK_ROOM], best[RANKED_MAX];
    float weights[RANKED_MAX];
    int count;

    // Adds those of PICK_LOOKS logits that reach `lower`, from row `first` on and `step` apart, as far as there is room.
    DEVICE void look(const float* logits, float lower, int first, int step, int to) {
        float logit[PICK_LOOKS];
#pragma unroll
        for (int i = 0; i < PICK_LOOKS; i++) logit[i] = first + i * step < to ? logits[first + i * step] : -INFINITE;
#pragma unroll
        for (int i = 0; i < PICK_LOOKS; i++) {
            if (!(logit[i] >= lower && logit[i] > -INFINITE)) continue;
            const int place = atomicAdd(&count, 1);
            if (place < PICK_ROOM) keys[place] = greedy_key(fminf(logit[i], 3.402823466e38f), first + i * step);
        }
    }
    // Of the rows `from` .. `to`.
    DEVICE void gather(const float* logits, float lower, int from, int to) {
#pragma unroll 1
        for (int first = from + (int)threadIdx.x; first < to; first += PICK_LOOKS * THREADS) look(logits, lower, first, THREADS, to);
        __syncthreads();
    }
    // The same of all rows by what the greatest bounds of each 16 rows leave.
    DEVICE void gather_by_tops(const float* logits, float lower, const float* tops, int rows) {
        const int groups = (rows + 15) / 16;
#pragma unroll 1
        for (int first = threadIdx.x; first < groups; first += 32 * THREADS) {
            unsigned live = 0;
#pragma unroll 8
            for (int i = 0; i < 32; i++) {
                if (first + i * THREADS < groups && !(tops[first + i * THREADS] < lower)) live |= 1u << i;
            }
#pragma unroll 1
            for (; live != 0; live &= live - 1) {
                const int row = (first + lowest_bit(live) * THREADS) * 16;
#pragma unroll 1
                for (int half = 0; half < 16; half += PICK_LOOKS) look(logits, lower, row + half, 1, rows);
            }
        }
        __syncthreads();
    }
    // Puts the best `most` of `gathered` keys in order, which are unlike each other.
    DEVICE void rank(int gathered, int most) {
        for (int i = threadIdx.x; i < gathered; i += THREADS) {
            const unsigned long long key = keys[i];
            int greater = 0;
            for (int j = 0; j < gathered; j++) greater += keys[j] > key;
            if (greater < most) best[greater] = key;
        }
        __syncthreads();
    }
};

// What `k` of those logits that reach `lower` do reach.
DEVICE float reached_by(const float* logits, int rows, float lower, int k, int* counts) {
    unsigned keys[RANK_LOOKS];
#pragma unroll
    for (int i = 0; i < RANK_LOOKS; i++) {
        keys[i] = 0;
        for (int at = i * THREADS + (int)threadIdx.x; at < rows; at += RANK_LOOKS * THREADS) {
            if (logits[at] >= lower) keys[i] = max(keys[i], lower_key(logits[at]));
        }
    }
    return lower_of_key(kth_greatest(keys, k, counts));
}

// The token of a draw among the best few becomes the next input: a block for each row. Should more logits reach `lower` than there
// is room for, it becomes what the best of these reach; where that does not help, since many are equal, they are taken in
// portions.
DEVICE void pick_batch_row(const Phase& p, const Step& s, int t) {
    const Draw draw = s.draws[t];
    if (draw.count == 0) return;
    PickArea& area = *(PickArea*)shared_arena();
    const float* logits = p.input + (long long)t * p.rows;
    const float* tops = keeps_tops(s.tokens) ? screen_tops((float*)p.input, s.tokens, p.rows, t) : nullptr;
    float lower = lower_of_key(s.lower[t]);
    const int most = min(draw.count, (int)RANKED_MAX);
    int kept = 0, portion = p.rows;
    bool exact = false;
    if (threadIdx.x == 0) area.count = 0;
    __syncthreads();
#pragma unroll 1
    for (int from = 0; from < p.rows;) {
        if (tops && portion == p.rows) {
            area.gather_by_tops(logits, lower, tops, p.rows);
        } else {
            area.gather(logits, lower, from, min(from + portion, p.rows));
        }
        const int gathered = area.count;
        const bool fits = gathered <= PICK_ROOM;
        if (fits) area.rank(gathered, most);
        kept = fits ? min(gathered, most) : 0;
        from = fits ? from + portion : 0;
        if (!fits) {
            if (exact) portion = PICK_PORTION;
            lower = max(lower, reached_by(logits, p.rows, lower, most, (int*)area.best));
            exact = true;
        }
        for (int i = threadIdx.x; i < kept; i += THREADS) area.keys[i] = area.best[i];
        __syncthreads();
        if (threadIdx.x == 0) area.count = kept;
        __syncthreads();
    }
    const float greatest = unordered((unsigned)(area.keys[0] >> 32));
    for (int i = threadIdx.x; i < kept; i += THREADS) {
        area.weights[i] = weight_of((unordered((unsigned)(area.keys[i] >> 32)) - greatest) * draw.factor);
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    const int row = picked_row(s, t);
    s.token_ids[row] = kept > 0 ? (int)~(unsigned)area.keys[pick(area.weights, kept, draw)] : (int)NO_TOKEN;
    s.positions[row] += 1;
    s.lower[t] = 0;
}
