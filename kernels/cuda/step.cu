// The step kernel: walks a list of phases with all blocks in step. One launch is a whole decode token, or any part of it.
#include "attention.h"
#include "head.h"
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#include "token.h"
#endif

template <int NT>
DEVICE void linear_phase(const Phase& p, const Stream& stream, const Step& s, Ring& ring, unsigned char* work,
                         Reduced* reduced, float residual) {
    int* sums = (int*)work;
    clear_sums(sums, stream.tiles * NT * 128);
    __syncthreads();
    linear<NT>(p, stream, {s.quantized, s.quantized_scale, s.quantized_sum, s.tokens}, ring, sums, reduced->scales, residual);
}

// One phase's description, to shared memory.
DEVICE void describe(const Phase* from, Phase* to) {
    if (threadIdx.x < (int)sizeof(Phase) / 8) ((long long*)to)[threadIdx.x] = ((const long long*)from)[threadIdx.x];
}

// Of the phase to come, what does not depend on other blocks or only on phases before this one: loaded while blocks arrive.
template <int NT>
DEVICE void look_ahead(const Phase& p, const Stream& stream, const Step& s, float4* rows, Reduced* reduced,
                       unsigned char* work, const FirstUnit* first_unit, float& residual, UnitKeys& keys) {
    residual = 0.0f;
    keys = {};
    if (p.kind == PHASE_ATTEND) attend_ahead(s, p.rows, work, first_unit, keys);
    if (p.kind != PHASE_LINEAR && p.kind != PHASE_QUANTIZE) return;
    if (p.kind == PHASE_LINEAR) {
        if ((int)threadIdx.x < 4 * stream.tiles) {
            int tile = first_tile(p) + (int)threadIdx.x / 4 * (int)gridDim.x;
            reduced->scales[threadIdx.x] = p.scales[tile * 4 + threadIdx.x % 4];
        }
        residual = load_residual<NT>(p, stream.tiles, s.tokens);
    }
    if (p.gamma) load_gamma({rows, rows + p.cols / 4}, p.gamma, p.cols);
}

template <int NT> DEVICE void run_step(const Phase* phases, int count, const Step& s) {
    Stream* streams = Ring::streams();
    Reduced* reduced = (Reduced*)((unsigned char*)streams + count * (int)sizeof(Stream));
    FirstUnit* first_unit = (FirstUnit*)((unsigned char*)reduced + REDUCED_BYTES);
    unsigned char* work = (unsigned char*)first_unit + FIRST_UNIT_BYTES;
    float4* rows = (float4*)(work + TILES_MAX * NT * 512);
    for (int i = threadIdx.x; i < count; i += THREADS) streams[i] = make_stream(phases[i]);
    if (threadIdx.x == 0) find_first_unit(s, first_unit);
    // No block gets past its first meeting before this one arrives there: the bit is that before it.
    unsigned bit = load_relaxed(s.barrier);
    describe(phases, &reduced->phases[0]);
    if (count > 1) describe(phases + 1, &reduced->phases[1]);
    __syncthreads();
    Ring ring;
    ring.start(count, (s.tokens + s.head_tokens - 1) / s.head_tokens);
    float residual;
    UnitKeys keys;
    look_ahead<NT>(reduced->phases[0], streams[0], s, rows, reduced, work, first_unit, residual, keys);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        const Phase& p = reduced->phases[i & 3];
        RowArea area = {rows, rows + p.cols / 4};
        switch (p.kind) {
        case PHASE_EMBED: embed(p, s); break;
        case PHASE_QUANTIZE: quantize_phase(p, s, area, 0, reduced); break;
        case PHASE_LINEAR: linear_phase<NT>(p, streams[i], s, ring, work, reduced, residual); break;
        case PHASE_ATTEND: attend(s, p.rows, work, first_unit, keys, UnitSource<false>{0}); break;
        case PHASE_HEAD: head(p, s, ring, work, reduced); break;
        default: greedy(s); break;
        }
        if (i + 1 == count) break;
        note_time(s, 2 * i);
        barrier_arrive(s.barrier);
        if (i + 2 < count) describe(phases + i + 2, &reduced->phases[(i + 2) & 3]);
        look_ahead<NT>(reduced->phases[(i + 1) & 3], streams[i + 1], s, rows, reduced, work, first_unit, residual, keys);
        barrier_wait(s.barrier, bit);
        bit ^= 0x80000000u;
        note_time(s, 2 * i + 1);
    }
}

// One row; devices before 9.0 have too little shared memory for it and take step_8.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
KERNEL void __launch_bounds__(THREADS) step_1(const Phase* phases, int count, const GRID_CONSTANT Step step) {
    run_token<false>(phases, count, step);
}
// The same over an int8 cache.
KERNEL void __launch_bounds__(THREADS) step_1_bytes(const Phase* phases, int count, const GRID_CONSTANT Step step) {
    run_token<true>(phases, count, step);
}
#endif
KERNEL void __launch_bounds__(THREADS) step_8(const Phase* phases, int count, const GRID_CONSTANT Step step) {
    run_step<1>(phases, count, step);
}
KERNEL void __launch_bounds__(THREADS) step_16(const Phase* phases, int count, const GRID_CONSTANT Step step) {
    run_step<2>(phases, count, step);
}
KERNEL void __launch_bounds__(THREADS) step_32(const Phase* phases, int count, const GRID_CONSTANT Step step) {
    run_step<4>(phases, count, step);
}
