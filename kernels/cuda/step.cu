// The step kernel: walks a list of phases with all blocks in step. One launch is a whole decode token, or any part of it.
#include "attention.h"
#include "head.h"

// One block for each row: quantised rows for the LINEAR phases that follow.
DEVICE void quantize_phase(const Phase& p, const Step& s, const RowArea& area, Reduced* reduced) {
    for (int t = blockIdx.x; t < s.tokens; t += gridDim.x) {
        signed char* out = s.quantized + (long long)(t / 8) * ((p.cols + 127) / 128) * 1024;
        const float* row = p.input + (long long)t * p.cols;
        Quantized q = quantize_row(area, row, p.cols, p.eps, out, t % 8, 32, reduced);
        if (threadIdx.x == 0) {
            s.quantized_scale[t] = q.scale;
            s.quantized_sum[t] = q.sum;
        }
        __syncthreads();
    }
}

// With gamma the block prepares its only row itself: cheaper than one more meeting of all blocks.
template <int NT>
DEVICE void linear_phase(const Phase& p, const Step& s, Ring& ring, unsigned char* work, const RowArea& area,
                         Reduced* reduced) {
    int* sums = (int*)work;
    if (!p.gamma) {
        linear<NT>(p, {s.quantized, s.quantized_scale, s.quantized_sum, s.tokens, false}, ring, sums);
        return;
    }
    if (NT > 1) return;
    signed char* row = (signed char*)(area.gamma + p.cols / 4);
    Quantized q = quantize_row(area, p.input, p.cols, p.eps, row, 0, 4, reduced);
    linear<NT>(p, {row, &q.scale, &q.sum, 1, true}, ring, sums);
}

template <int NT> DEVICE void run_step(const Phase* phases, int count, const Step& s) {
    Stream* streams = Ring::streams();
    Reduced* reduced = (Reduced*)((unsigned char*)streams + (count * (int)sizeof(Stream) + 15) / 16 * 16);
    unsigned char* work = (unsigned char*)(reduced + 1);
    float4* rows = (float4*)(work + ROUND_TILES * NT * 512);
    for (int i = threadIdx.x; i < count; i += THREADS) {
        bool loads = phases[i].kind == PHASE_LINEAR || phases[i].kind == PHASE_HEAD;
        streams[i] = {(const char*)phases[i].weights, loads ? phases[i].tiles : 0, phases[i].items,
                      phases[i].first_block, phases[i].kind == PHASE_HEAD};
    }
    __syncthreads();
    Ring ring;
    ring.start(count, (s.tokens + s.head_tokens - 1) / s.head_tokens);
    bool rows_first = phases[0].kind == PHASE_LINEAR || phases[0].kind == PHASE_QUANTIZE;
    if (rows_first && phases[0].gamma) {
        load_gamma({rows, rows + phases[0].cols / 4}, phases[0].gamma, phases[0].cols);
    }
    for (int i = 0; i < count; i++) {
        const Phase& p = phases[i];
        RowArea area = {rows, rows + p.cols / 4};
        switch (p.kind) {
        case PHASE_EMBED: embed(p, s); break;
        case PHASE_QUANTIZE: quantize_phase(p, s, area, reduced); break;
        case PHASE_LINEAR: linear_phase<NT>(p, s, ring, work, area, reduced); break;
        case PHASE_ATTEND: attend(s, p.rows, work); break;
        case PHASE_HEAD: head(p, s, ring, work, reduced); break;
        default: greedy(s); break;
        }
        if (i + 1 == count) break;
        if (s.trace && blockIdx.x == 0 && threadIdx.x == 0) s.trace[2 * i] = clock_now();
        unsigned ticket = barrier_arrive(s.barrier);
        // What does not depend on other blocks, while they arrive.
        const Phase& next = phases[i + 1];
        bool prepares = next.kind == PHASE_LINEAR || next.kind == PHASE_QUANTIZE;
        if (prepares && next.gamma) load_gamma({rows, rows + next.cols / 4}, next.gamma, next.cols);
        barrier_wait(s.barrier, ticket);
        if (s.trace && blockIdx.x == 0 && threadIdx.x == 0) s.trace[2 * i + 1] = clock_now();
    }
}

KERNEL void __launch_bounds__(THREADS) step_8(const Phase* phases, int count, const GRID_CONSTANT Step step) {
    run_step<1>(phases, count, step);
}
KERNEL void __launch_bounds__(THREADS) step_16(const Phase* phases, int count, const GRID_CONSTANT Step step) {
    run_step<2>(phases, count, step);
}
KERNEL void __launch_bounds__(THREADS) step_32(const Phase* phases, int count, const GRID_CONSTANT Step step) {
    run_step<4>(phases, count, step);
}
KERNEL void __launch_bounds__(THREADS) step_64(const Phase* phases, int count, const GRID_CONSTANT Step step) {
    run_step<8>(phases, count, step);
}
