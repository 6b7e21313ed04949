// A GPU's blocks and warps on one CPU thread: a fiber for each GPU thread, all blocks of a launch alive at once, so that they
// may wait for each other. Results are those of the instructions' definitions; nothing is timed.
#pragma once

#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define DEVICE inline
#define KERNEL inline
#define GRID_CONSTANT
#ifndef WARPGROUPS
#define WARPGROUPS 1
#endif
#define __launch_bounds__(...)

struct uint4 {
    unsigned x, y, z, w;
};
struct int4 {
    int x, y, z, w;
};
struct int2 {
    int x, y;
};
struct uint2 {
    unsigned x, y;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

// Arrivals and bytes that the phase yet waits for.
struct Gate {
    int16_t count, left;
    int32_t bytes : 31, phase : 1;
};
static_assert(sizeof(Gate) == 8);

namespace emulator {

struct Index {
    int x;
};

struct Thread;

// Threads that meet again and again: the last to come lets the others go on.
struct Meeting {
    int size = 0;
    std::vector<Thread*> here;
};

// What lanes exchange has two places in turn: who writes the next words may be ahead of who reads the last ones.
struct Warp {
    Meeting meeting;
    uint32_t lanes[2][32][6];
};

struct Block {
    std::vector<unsigned char> arena;
    std::vector<Warp> warps;
    Meeting meeting, groups[4];
    Index index;
};

// A bulk copy that has not landed.
struct Bulk {
    Gate* gate;
    void* to;
    const void* from;
    int bytes;
};

struct Copy {
    void* to;
    const void* from; // null: zeros
    int group;
};

// Where a fiber stopped. Switching costs two system calls by ucontext, and some twenty instructions by hand.
#ifdef __x86_64__
struct Context {
    void* stack = nullptr;
};

// Keeps what a call must keep on the stack of `from`, then goes on where `to` stopped.
extern "C" void emulator_switch(Context* from, const Context* to);
asm(R"(
.weak emulator_switch
.type emulator_switch, @function
emulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov (%rsi), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
    // As if the fiber had been stopped before the first instruction of `entry`, which never returns.
    void** top = (void**)(((uintptr_t)stack + bytes) / 16 * 16) - 1;
    *--top = (void*)entry;
    context.stack = top - 6;
}
#else
using Context = ucontext_t;

inline void emulator_switch(Context* from, const Context* to) { swapcontext(from, to); }
inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

// A product of a warpgroup that has not been waited for.
struct Product {
    void (*compute)(const Product&);
    void* sum;
    uint32_t a[32][4];
    long base;
    int step;
};

// First in, first out. Keeps its memory.
template <class T> struct Line {
    std::vector<T> items;
    size_t first = 0;

    bool empty() const { return first == items.size(); }
    size_t size() const { return items.size() - first; }
    T& front() { return items[first]; }
    void push_back(const T& item) { items.push_back(item); }
    void pop_front() {
        if (++first == items.size()) clear();
    }
    void clear() { items.clear(), first = 0; }
};

struct Thread {
    Context context;
    Line<Copy> copies;
    std::vector<Product> products;
    Line<size_t> commits; // each: products before its end
    size_t done;
    int groups;
    unsigned exchanges; // modulo 2
    std::unique_ptr<char[]> stack;
    Block* block;
    Index index;
};

// Threads, blocks and stacks stay for the launches that follow, with the memory that they have come to.
struct Machine {
    std::vector<Thread> threads;
    std::vector<Block> blocks;
    std::vector<std::unique_ptr<char[]>> stacks; // of no thread
    std::vector<Thread*> ready;                  // a ring of a power of two, more than there are threads
    size_t first_ready = 0, past_ready = 0;
    Thread* current = nullptr;
    size_t done = 0;
    Context scheduler;
    std::function<void()> body;
    int grid = 0, threads_per_block = 0, cluster = 1, shared_bytes = 0, begun = 0; // begun: blocks
    std::vector<Meeting> clusters;
    std::vector<Bulk> bulks;
};

inline Machine machine;

inline Thread& self() { return *machine.current; }
inline Warp& warp() { return self().block->warps[self().index.x / 32]; }
void begin_cluster();

inline void make_ready(Thread* thread) { machine.ready[machine.past_ready++ & (machine.ready.size() - 1)] = thread; }

// Who goes on now, null if nobody can.
inline Thread* next_ready() {
    Machine& m = machine;
    if (m.first_ready == m.past_ready) begin_cluster();
    return m.first_ready == m.past_ready ? nullptr : m.ready[m.first_ready++ & (m.ready.size() - 1)];
}

inline void go_on(Context& here, Thread* next) {
    machine.current = next;
    emulator_switch(&here, next ? &next->context : &machine.scheduler);
}

inline void stop() {
    Thread* here = machine.current;
    Thread* next = next_ready();
    if (next != here) go_on(here->context, next);
}

// What it waits for may come from blocks that have not begun.
inline void yield() {
    begin_cluster();
    make_ready(machine.current);
    stop();
}

inline void meet(Meeting& meeting) {
    if ((int)meeting.here.size() + 1 == meeting.size) {
        for (Thread* thread : meeting.here) make_ready(thread);
        meeting.here.clear();
        return;
    }
    meeting.here.push_back(machine.current);
    stop();
}

inline void enter() {
    machine.body();
    machine.done++;
    Thread* here = machine.current;
    Thread* next = next_ready();
    // Free for others from the switch on: no thread is made before.
    machine.stacks.push_back(std::move(here->stack));
    go_on(here->context, next);
}

inline void make_thread(Thread& thread, Block& block, int index) {
    const size_t stack_bytes = 64 << 10;
    thread.block = &block;
    thread.index.x = index;
    thread.copies.clear();
    thread.products.clear();
    thread.commits.clear();
    thread.done = 0;
    thread.groups = 0;
    thread.exchanges = 0;
    if (machine.stacks.empty()) machine.stacks.emplace_back(new char[stack_bytes]);
    thread.stack = std::move(machine.stacks.back());
    machine.stacks.pop_back();
    make_context(thread.context, thread.stack.get(), stack_bytes, enter);
}

// Begins the next cluster's threads, if there is one. Shared memory starts as garbage.
inline void begin_cluster() {
    Machine& m = machine;
    const int end = m.begun == m.grid ? m.begun : m.begun + m.cluster;
    for (; m.begun < end; m.begun++) {
        Block& block = m.blocks[m.begun];
        block.arena.assign(m.shared_bytes, 0xa5);
        block.warps.resize(m.threads_per_block / 32);
        for (Warp& warp : block.warps) warp.meeting.size = 32;
        block.meeting.size = m.threads_per_block;
        for (Meeting& group : block.groups) group.size = 128;
        block.index.x = m.begun;
        for (int t = 0; t < m.threads_per_block; t++) {
            Thread& thread = m.threads[m.begun * m.threads_per_block + t];
            make_thread(thread, block, t);
            make_ready(&thread);
        }
    }
}

// Runs `body` as every thread of a grid; a cluster begins when no thread of those before can go on or one of them waits for
// memory to change, so that few stacks are needed at a time. Aborts where no thread can go on.
inline void launch(int grid, int cluster, int threads, int shared_bytes, std::function<void()> body) {
    Machine& m = machine;
    const size_t all = (size_t)grid * threads;
    m.body = std::move(body);
    m.grid = grid;
    m.threads_per_block = threads;
    m.cluster = cluster;
    m.shared_bytes = shared_bytes;
    m.begun = 0;
    m.clusters = std::vector<Meeting>(grid / cluster);
    for (Meeting& meeting : m.clusters) meeting.size = cluster * threads;
    if ((int)m.blocks.size() < grid) m.blocks.resize(grid);
    if (m.threads.size() < all) m.threads.resize(all);
    m.first_ready = m.past_ready = 0;
    while (m.ready.size() <= all) m.ready.resize(std::max<size_t>(1, 2 * m.ready.size()));
    m.done = 0;
    go_on(m.scheduler, next_ready());
    if (m.done < all) {
        std::fprintf(stderr, "emulator: threads wait for each other for ever\n");
        std::abort();
    }
}

// Every lane's words, exchanged.
template <class Read> auto exchange(const void* mine, size_t bytes, Read read) {
    Warp& w = warp();
    auto& lanes = w.lanes[self().exchanges++ % 2];
    std::memcpy(lanes[self().index.x % 32], mine, bytes);
    meet(w.meeting);
    return read(lanes);
}

// Products of 32 bytes each.
template <class A, class B> int dot(const A (&a)[32], const B (&b)[32]) {
    int sum = 0;
    for (int k = 0; k < 32; k++) sum += (int)a[k] * (int)b[k];
    return sum;
}

} // namespace emulator

DEVICE unsigned char* shared_arena() { return emulator::self().block->arena.data(); }

#define threadIdx (emulator::self().index)
#define blockIdx (emulator::self().block->index)
#define gridDim (emulator::Index{emulator::machine.grid})

using std::max;
using std::min;

inline void __syncthreads() { emulator::meet(emulator::self().block->meeting); }
inline void __syncwarp() { emulator::meet(emulator::warp().meeting); }
inline void __threadfence() {}
template <class T> T __ldcg(const T* at) { return *at; }
template <class T, class V> T atomicAdd(T* at, V value) {
    T old = *at;
    *at = old + (T)value;
    return old;
}
template <class T> T atomicMax(T* at, T value) {
    T old = *at;
    *at = std::max(old, value);
    return old;
}
template <class T> T atomicMin(T* at, T value) {
    T old = *at;
    *at = std::min(old, value);
    return old;
}

DEVICE float fused(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE float float_of_bits(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
DEVICE float greater_or_nan(float a, float b) { return a != a || a > b ? a : b; }
DEVICE unsigned bits_of_float(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

DEVICE unsigned long long bits_of_double(double x) {
    unsigned long long bits;
    std::memcpy(&bits, &x, 8);
    return bits;
}

inline float float_of_half_bits(unsigned short half) {
    const unsigned magnitude = (half & 0x7fffu) << 13;
    const float x = magnitude < 0x0f800000u ? float_of_bits(magnitude) * 0x1p112f : float_of_bits(magnitude | 0x7f800000u);
    return half & 0x8000 ? -x : x;
}
DEVICE float float_of_one(unsigned short half) { return float_of_half_bits(half); }
DEVICE float2 floats_of_halves(unsigned word) {
    return {float_of_half_bits((unsigned short)word), float_of_half_bits((unsigned short)(word >> 16))};
}
DEVICE float power_of_two(float x) {
    const float y = std::exp2(x);
    return y < 0x1p-126f ? 0.0f : y;
}
DEVICE unsigned short half_of_float(float x) {
    unsigned bits = bits_of_float(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (unsigned short)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (unsigned short)(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        return (unsigned short)(sign | (unsigned)std::nearbyint(std::ldexp(float_of_bits(magnitude), 24)));
    }
    return (unsigned short)(sign | ((magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13));
}
DEVICE unsigned halves_of_floats(float low, float high) { return half_of_float(low) | (unsigned)half_of_float(high) << 16; }

template <class T> T shuffle(T x, int lane) {
    return emulator::exchange(&x, sizeof x, [lane](const uint32_t (*lanes)[6]) {
        T other;
        std::memcpy(&other, lanes[lane & 31], sizeof other);
        return other;
    });
}
template <class T> T shuffle_xor(T x, int mask) { return shuffle(x, (emulator::self().index.x % 32) ^ mask); }
DEVICE unsigned warp_max(unsigned x) {
    return emulator::exchange(&x, 4, [](const uint32_t (*lanes)[6]) {
        unsigned greatest = 0;
        for (int l = 0; l < 32; l++) greatest = std::max(greatest, lanes[l][0]);
        return greatest;
    });
}
DEVICE unsigned warp_ballot(bool x) {
    unsigned mine = x;
    return emulator::exchange(&mine, 4, [](const uint32_t (*lanes)[6]) {
        unsigned bits = 0;
        for (int l = 0; l < 32; l++) bits |= (lanes[l][0] & 1) << l;
        return bits;
    });
}
DEVICE int lowest_bit(unsigned x) { return __builtin_ctz(x); }
DEVICE int warp_sum(int x) {
    return emulator::exchange(&x, 4, [](const uint32_t (*lanes)[6]) {
        uint32_t sum = 0;
        for (int l = 0; l < 32; l++) sum += lanes[l][0];
        return (int)sum;
    });
}

DEVICE unsigned low_bytes(unsigned a, unsigned b, unsigned c, unsigned d) {
    return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | d << 24;
}
DEVICE int sum_bytes(unsigned word, int more) {
    return more + (int8_t)word + (int8_t)(word >> 8) + (int8_t)(word >> 16) + (int8_t)(word >> 24);
}

// By the operand maps of the PTX manual for m16n8k32 with 8-bit integers.
template <class A, class B = int8_t> void mma_of(int (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    emulator::exchange(mine, sizeof mine, [&sum](const uint32_t (*lanes)[6]) {
        int lane = emulator::self().index.x % 32;
        A rows[2][32];
        B columns[2][32];
        for (int i = 0; i < 2; i++) {
            for (int q = 0; q < 8; q++) {
                std::memcpy(rows[i] + 4 * q, &lanes[lane / 4 * 4 + q % 4][i + q / 4 * 2], 4);
                std::memcpy(columns[i] + 4 * q, &lanes[(lane % 4 * 2 + i) * 4 + q % 4][4 + q / 4], 4);
            }
        }
        for (int c = 0; c < 4; c++) sum[c] += emulator::dot(rows[c >> 1], columns[c & 1]);
        return 0;
    });
}

DEVICE void mma(int (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { mma_of<uint8_t>(sum, a, b0, b1); }
DEVICE void mma_signed(int (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    mma_of<int8_t>(sum, a, b0, b1);
}
DEVICE void mma_by_unsigned(int (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    mma_of<int8_t, uint8_t>(sum, a, b0, b1);
}

// By the operand maps of the PTX manual for m16n8k16 with halves. Each sum is rounded once, what devices don't promise.
DEVICE void mma_halves(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    emulator::exchange(mine, sizeof mine, [&sum](const uint32_t (*lanes)[6]) {
        const int lane = emulator::self().index.x % 32;
        float2 rows[2][8], columns[2][8];
        for (int i = 0; i < 2; i++) {
            for (int q = 0; q < 8; q++) {
                rows[i][q] = floats_of_halves(lanes[lane / 4 * 4 + q % 4][i + q / 4 * 2]);
                columns[i][q] = floats_of_halves(lanes[(lane % 4 * 2 + i) * 4 + q % 4][4 + q / 4]);
            }
        }
        for (int c = 0; c < 4; c++) {
            double total = sum[c];
            for (int q = 0; q < 8; q++) {
                const float2 a = rows[c >> 1][q], b = columns[c & 1][q];
                total += (double)a.x * (double)b.x;
                total += (double)a.y * (double)b.y;
            }
            sum[c] = (float)total;
        }
        return 0;
    });
}
// By the maps of the PTX manual for ldmatrix: a lane's 32 bits of the matrix are halves `low` and `high`.
template <class Place> void load_halves(unsigned (&to)[4], int offset, Place place) {
    emulator::exchange(&offset, sizeof offset, [&to, place](const uint32_t (*lanes)[6]) {
        const int lane = emulator::self().index.x % 32;
        for (int m = 0; m < 4; m++) {
            unsigned short halves[2];
            for (int i = 0; i < 2; i++) {
                const auto [row, column] = place(lane, i);
                std::memcpy(&halves[i], shared_arena() + lanes[8 * m + row][0] + 2 * column, 2);
            }
            to[m] = halves[0] | (unsigned)halves[1] << 16;
        }
        return 0;
    });
}
DEVICE void load_matrices(unsigned (&to)[4], int offset) {
    load_halves(to, offset, [](int lane, int i) { return std::pair(lane / 4, lane % 4 * 2 + i); });
}
DEVICE void load_transposed(unsigned (&to)[4], int offset) {
    load_halves(to, offset, [](int lane, int i) { return std::pair(lane % 4 * 2 + i, lane / 4); });
}

// By the operand maps of the PTX manual for wgmma m64nNk32 with A in registers and B in shared memory, its rows of columns
// swizzled by 128 bytes. Operands are read as late as they may be, so that a missing wait shows.
DEVICE void gather_begin() {}
template <class A, int NT> void gather_now(const emulator::Product& product) {
    auto& sum = *(int(*)[NT][4])product.sum;
    const int lane = emulator::self().index.x % 32;
    A rows[2][32];
    for (int i = 0; i < 2; i++) {
        for (int q = 0; q < 8; q++) std::memcpy(rows[i] + 4 * q, &product.a[lane / 4 * 4 + q % 4][i + q / 4 * 2], 4);
    }
    for (int n = 0; n < NT * 2; n++) {
        int8_t column[32];
        for (int half = 0; half < 2; half++) {
            const long at = product.base + (n / 2 * 8 + lane % 4 * 2 + n % 2) * 128 + product.step * 32 + half * 16;
            std::memcpy(column + half * 16, shared_arena() + (at ^ (at >> 7 & 7) << 4), 16);
        }
        for (int i = 0; i < 2; i++) sum[n / 2][i * 2 + n % 2] += emulator::dot(rows[i], column);
    }
}
template <class A, int NT> void gather_of(int (&sum)[NT][4], const unsigned (&a)[4], const void* b, int step) {
    emulator::Product& product = emulator::self().products.emplace_back();
    product.compute = gather_now<A, NT>;
    product.sum = &sum;
    product.base = (const unsigned char*)b - shared_arena();
    product.step = step;
    emulator::exchange(a, sizeof a, [&product](const uint32_t (*lanes)[6]) {
        for (int l = 0; l < 32; l++) std::memcpy(product.a[l], lanes[l], sizeof product.a[l]);
        return 0;
    });
}
template <int NT> DEVICE void gather_mma(int (&sum)[NT][4], const unsigned (&a)[4], const void* b, int step) {
    gather_of<uint8_t>(sum, a, b, step);
}
template <int NT> DEVICE void gather_mma_signed(int (&sum)[NT][4], const unsigned (&a)[4], const void* b, int step) {
    gather_of<int8_t>(sum, a, b, step);
}
DEVICE void gather_commit() { emulator::self().commits.push_back(emulator::self().products.size()); }
template <int PENDING> DEVICE void gather_wait() {
    emulator::Thread& thread = emulator::self();
    while ((int)thread.commits.size() > PENDING) {
        for (; thread.done < thread.commits.front(); thread.done++) thread.products[thread.done].compute(thread.products[thread.done]);
        thread.commits.pop_front();
    }
    if (thread.commits.empty()) thread.products.clear(), thread.done = 0;
}
DEVICE void show_to_tensor_cores() {}

// A copy may land at any time up to the wait that asks for it. Here it lands as late as it may, so that a missing wait shows.
DEVICE void copy_async(void* to, const void* from) {
    emulator::self().copies.push_back({to, from, emulator::self().groups});
}
DEVICE void copy_commit() { emulator::self().groups++; }
template <int PENDING> DEVICE void copy_wait() {
    emulator::Thread& thread = emulator::self();
    while (!thread.copies.empty() && thread.copies.front().group < thread.groups - PENDING) {
        const emulator::Copy& copy = thread.copies.front();
        if (copy.from) std::memcpy(copy.to, copy.from, 16);
        if (!copy.from) std::memset(copy.to, 0, 16);
        thread.copies.pop_front();
    }
}

DEVICE void fence_host() {}
DEVICE void store_for_host(unsigned long long* at, unsigned long long value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
DEVICE void prefetch(const void*) {}
DEVICE void pause() {}
DEVICE void copy_async_kept(void* to, const void* from) { copy_async(to, from); }
DEVICE void copy_async_or_zero(void* to, const void* from, bool there) { copy_async(to, there ? from : nullptr); }

DEVICE int cluster_size() { return emulator::machine.cluster; }
DEVICE int cluster_rank() { return blockIdx.x % emulator::machine.cluster; }
DEVICE void cluster_meet() { emulator::meet(emulator::machine.clusters[blockIdx.x / emulator::machine.cluster]); }
DEVICE void cluster_leave() { cluster_meet(); }
DEVICE void cluster_arrive() {}
DEVICE void cluster_wait() { cluster_meet(); }
DEVICE int4 load_of_block(const int4* at, int rank) {
    const int first = blockIdx.x / emulator::machine.cluster * emulator::machine.cluster;
    int4 value;
    std::memcpy(&value, emulator::machine.blocks[first + rank].arena.data() + ((const unsigned char*)at - shared_arena()), sizeof value);
    return value;
}
DEVICE void wait_prior() {}

// Bulk copies land when somebody waits at their gate.
DEVICE void gate_open(Gate* gate, int arrivals) { *gate = {(int16_t)arrivals, (int16_t)arrivals, 0, 0}; }
DEVICE void gates_opened() {}
inline void gate_pass(Gate* gate) {
    if (gate->left != 0 || gate->bytes != 0) return;
    gate->left = gate->count;
    gate->phase = ~gate->phase;
}
DEVICE void gate_arrive(Gate* gate) {
    gate->left--;
    gate_pass(gate);
}
template <class T> T* of_block(T* at, int rank) {
    const int first = blockIdx.x / emulator::machine.cluster * emulator::machine.cluster;
    return (T*)(emulator::machine.blocks[first + rank].arena.data() + ((unsigned char*)at - shared_arena()));
}
DEVICE void gate_arrive_at(Gate* gate, int rank) { gate_arrive(of_block(gate, rank)); }
DEVICE void gate_expect(Gate* gate, int bytes) {
    gate->bytes += bytes;
    gate_arrive(gate);
}
DEVICE void gate_wait(Gate* gate, int parity) {
    while ((gate->phase & 1) == parity) {
        auto& bulks = emulator::machine.bulks;
        for (size_t i = 0; i < bulks.size();) {
            if (bulks[i].gate != gate) {
                i++;
                continue;
            }
            std::memcpy(bulks[i].to, bulks[i].from, bulks[i].bytes);
            gate->bytes -= bulks[i].bytes;
            bulks.erase(bulks.begin() + i);
            gate_pass(gate);
        }
        emulator::yield();
    }
}
DEVICE void copy_bulk(void* to, const void* from, int bytes, Gate* gate) { emulator::machine.bulks.push_back({gate, to, from, bytes}); }
DEVICE void copy_bulk_once(void* to, const void* from, int bytes, Gate* gate) { copy_bulk(to, from, bytes, gate); }
DEVICE void copy_bulk_to_all(void* to, const void* from, int bytes, Gate* gate, int blocks) {
    for (int rank = 0; rank < blocks; rank++) copy_bulk(of_block((char*)to, rank), from, bytes, of_block(gate, rank));
}
DEVICE void store_to_block(int4* at, int rank, const int4& v, Gate* gate) {
    *of_block(at, rank) = v;
    gate = of_block(gate, rank);
    gate->bytes -= (int)sizeof v;
    gate_pass(gate);
}
template <int COUNT> DEVICE void give_registers() {}
template <int COUNT> DEVICE void take_registers() {}
DEVICE void group_meet(int which) { emulator::meet(emulator::self().block->groups[which]); }
DEVICE void launch_next() {}

DEVICE unsigned load_relaxed(const unsigned* at) {
    unsigned value = *at;
    emulator::yield();
    return value;
}
DEVICE void store_tagged(unsigned long long* at, float value, unsigned tag) {
    *at = (unsigned long long)tag << 32 | bits_of_float(value);
}
DEVICE void load_tagged(const unsigned long long* at, unsigned long long (&words)[2]) {
    words[0] = at[0];
    words[1] = at[1];
    emulator::yield();
}
DEVICE unsigned long long load_tagged(const unsigned long long* at) {
    unsigned long long word = *at;
    emulator::yield();
    return word;
}
DEVICE void add_release(unsigned* at, unsigned value) { *at += value; }
DEVICE void fence() {}
DEVICE long long clock_now() { return 0; }
DEVICE void keep_order() {}
template <class T> void settle(T&) {}
DEVICE float4 load_zeros(const float* at) { return *(const float4*)at; }
