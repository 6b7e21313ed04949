// Instructions that the kernels use, each as one function: the GPU's own here, the emulator's in emulator/cuda.h.
//
// WARPGROUPS: the tensor cores of 9.0 multiply for four warps at once, with operands from shared memory.
//
// Compiled without contraction (--fmad=false): a product and a sum fuse where the source says fused() and nowhere else.
#pragma once

#ifdef CUDA_EMULATOR
#include "emulator/cuda.h"
#else
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__
#define GRID_CONSTANT __grid_constant__
#if __CUDA_ARCH__ >= 900
#define WARPGROUPS 1
#else
#define WARPGROUPS 0
#endif

DEVICE unsigned char* shared_arena() {
    extern __shared__ __align__(1024) unsigned char arena[];
    return arena;
}

DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float float_of_bits(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned bits_of_float(float x) { return __float_as_uint(x); }
// NaN where one is.
DEVICE float greater_or_nan(float a, float b) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
}
DEVICE unsigned long long bits_of_double(double x) { return (unsigned long long)__double_as_longlong(x); }

// Exact; both halves of a word.
DEVICE float2 floats_of_halves(unsigned word) {
    float2 out;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(out.x), "=f"(out.y) : "r"(word));
    return out;
}

// The same of one half, without a mask before it.
DEVICE float float_of_one(unsigned short half) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(half));
    return out;
}

// To nearest, ties to even.
DEVICE unsigned short half_of_float(float x) {
    unsigned short out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}

// The first is the low one.
DEVICE unsigned halves_of_floats(float low, float high) {
    unsigned out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
// 2^x, relative error below 2^-22; results below 2^-126 are zero.
DEVICE float power_of_two(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

template <class T> DEVICE T shuffle_xor(T x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
template <class T> DEVICE T shuffle(T x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEVICE unsigned warp_max(unsigned x) { return __reduce_max_sync(0xffffffffu, x); }
DEVICE unsigned warp_ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
DEVICE int lowest_bit(unsigned x) { return __ffs((int)x) - 1; }
DEVICE int warp_sum(int x) { return __reduce_add_sync(0xffffffffu, x); }

// The lowest bytes of four words; the sum of a word's signed bytes and more.
DEVICE unsigned low_bytes(unsigned a, unsigned b, unsigned c, unsigned d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
DEVICE int sum_bytes(unsigned word, int more) { return __dp4a((int)word, 0x01010101, more); }

// sum (16 x 8, int32) += a (16 x 32, unsigned bytes) * b (32 x 8, signed bytes).
DEVICE void mma(int (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same with signed bytes in `a`.
DEVICE void mma_signed(int (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same with unsigned bytes in `b`.
DEVICE void mma_by_unsigned(int (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sum (16 x 8, floats) += a (16 x 16, halves) * b (16 x 8, halves): exact products, added in an order and with a rounding of the
// device's own, the same for every row and column.
DEVICE void mma_halves(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Four matrices of 8 x 8 halves at offsets into shared memory: lane l names row l % 8 of matrix l / 8, and gets of each the columns
// 2 (l % 4) and + 1 of row l / 4, or of the matrix's transpose.
DEVICE void load_matrices(unsigned (&to)[4], int offset) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(shared_arena()) + offset;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}
DEVICE void load_transposed(unsigned (&to)[4], int offset) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(shared_arena()) + offset;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// Asynchronous copies of 16 bytes to shared memory; wait returns when at most `pending` groups of this thread are not
// done. Weights are read once: they leave L2 first.
DEVICE void copy_async(void* to, const void* from) {
    unsigned shared = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("{.reg .b64 p; createpolicy.fractional.L2::evict_first.b64 p, 1.0;"
                 " cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, p;}"
                 ::"r"(shared), "l"(from) : "memory");
}
// The same for what other blocks read too.
DEVICE void copy_async_kept(void* to, const void* from) {
    unsigned shared = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
}
// The same of what is there, else zeros.
DEVICE void copy_async_or_zero(void* to, const void* from, bool there) {
    unsigned shared = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// Into L2, if it likes.
DEVICE void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

DEVICE unsigned load_relaxed(const unsigned* at) {
    unsigned value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}
// Everything that the block did before its last __syncthreads is seen by who sees the sum and fences.
DEVICE void add_release(unsigned* at, unsigned value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
// The same for the host, which sees the value after all that was written before the fences of a block that has met since.
DEVICE void fence_host() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
DEVICE void store_for_host(unsigned long long* at, unsigned long long value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
// A value and its tag in 8 bytes, read and written whole: who finds the tag has the value, without a fence.
DEVICE void store_tagged(unsigned long long* at, float value, unsigned tag) {
    unsigned long long word = (unsigned long long)tag << 32 | __float_as_uint(value);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(word) : "memory");
}
DEVICE void load_tagged(const unsigned long long* at, unsigned long long (&words)[2]) {
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(words[0]), "=l"(words[1]) : "l"(at) : "memory");
}
DEVICE unsigned long long load_tagged(const unsigned long long* at) {
    unsigned long long word;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(at) : "memory");
    return word;
}
// Between two looks at what is not there yet: many that look delay the one who writes.
DEVICE void pause() { asm volatile("nanosleep.u32 20;"); }
DEVICE long long clock_now() { return clock64(); }

#if __CUDA_ARCH__ >= 900
// Blocks of a cluster see each other's shared memory; all of them meet.
DEVICE int cluster_size() {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
    return (int)size;
}
DEVICE int cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
}
DEVICE void cluster_meet() {
    asm volatile("fence.acq_rel.cluster; barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Shared memory stays until all blocks have read what they need.
DEVICE void cluster_leave() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::: "memory");
}
// The same in two parts: what a thread does in between waits for nobody.
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
DEVICE int4 load_of_block(const int4* at, int rank) {
    unsigned local = (unsigned)__cvta_generic_to_shared(at), remote;
    int4 v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    asm volatile("ld.shared::cluster.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(remote) : "memory");
    return v;
}
// Launches that overlap the one before them: what that one wrote is seen after the wait. The next launch may start its
// blocks once all blocks here have called launch_next or ended.
DEVICE void wait_prior() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void launch_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Products of a warpgroup: each of its warps has 16 rows in `a`, and all of them 8 NT tokens of 128 bytes at `b` (swizzled by
// 128 bytes), of which step q takes 32. They are under way from begin to commit, and done when at most PENDING commits are
// not: until then nobody touches sums, operands and `b`.
DEVICE void gather_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void gather_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void gather_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// Values stay where they are across what the compiler does not see.
template <int NT> DEVICE void settle(int (&sum)[NT][4]) {
#pragma unroll
    for (int i = 0; i < NT * 4; i++) asm volatile("" : "+r"(sum[i / 4][i % 4])::"memory");
}
// As the instruction wants it: address, 8 rows every 1024 bytes, swizzle.
DEVICE unsigned long long gathered_rows(const void* at) {
    unsigned shared = (unsigned)__cvta_generic_to_shared(at);
    return (unsigned long long)(shared >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
DEVICE void gather_mma(int (&sum)[16][4], const unsigned (&a)[4], const void* b, int step) {
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "{%64,%65,%66,%67}, %68, p;}"
        : "+r"(sum[0][0]), "+r"(sum[0][1]), "+r"(sum[0][2]), "+r"(sum[0][3]), "+r"(sum[1][0]), "+r"(sum[1][1]), "+r"(sum[1][2]), "+r"(sum[1][3]),
          "+r"(sum[2][0]), "+r"(sum[2][1]), "+r"(sum[2][2]), "+r"(sum[2][3]), "+r"(sum[3][0]), "+r"(sum[3][1]), "+r"(sum[3][2]), "+r"(sum[3][3]),
          "+r"(sum[4][0]), "+r"(sum[4][1]), "+r"(sum[4][2]), "+r"(sum[4][3]), "+r"(sum[5][0]), "+r"(sum[5][1]), "+r"(sum[5][2]), "+r"(sum[5][3]),
          "+r"(sum[6][0]), "+r"(sum[6][1]), "+r"(sum[6][2]), "+r"(sum[6][3]), "+r"(sum[7][0]), "+r"(sum[7][1]), "+r"(sum[7][2]), "+r"(sum[7][3]),
          "+r"(sum[8][0]), "+r"(sum[8][1]), "+r"(sum[8][2]), "+r"(sum[8][3]), "+r"(sum[9][0]), "+r"(sum[9][1]), "+r"(sum[9][2]), "+r"(sum[9][3]),
          "+r"(sum[10][0]), "+r"(sum[10][1]), "+r"(sum[10][2]), "+r"(sum[10][3]), "+r"(sum[11][0]), "+r"(sum[11][1]), "+r"(sum[11][2]), "+r"(sum[11][3]),
          "+r"(sum[12][0]), "+r"(sum[12][1]), "+r"(sum[12][2]), "+r"(sum[12][3]), "+r"(sum[13][0]), "+r"(sum[13][1]), "+r"(sum[13][2]), "+r"(sum[13][3]),
          "+r"(sum[14][0]), "+r"(sum[14][1]), "+r"(sum[14][2]), "+r"(sum[14][3]), "+r"(sum[15][0]), "+r"(sum[15][1]), "+r"(sum[15][2]), "+r"(sum[15][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(gathered_rows(b) + 2 * step));
}
DEVICE void gather_mma(int (&sum)[8][4], const unsigned (&a)[4], const void* b, int step) {
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, p;}"
        : "+r"(sum[0][0]), "+r"(sum[0][1]), "+r"(sum[0][2]), "+r"(sum[0][3]), "+r"(sum[1][0]), "+r"(sum[1][1]), "+r"(sum[1][2]), "+r"(sum[1][3]),
          "+r"(sum[2][0]), "+r"(sum[2][1]), "+r"(sum[2][2]), "+r"(sum[2][3]), "+r"(sum[3][0]), "+r"(sum[3][1]), "+r"(sum[3][2]), "+r"(sum[3][3]),
          "+r"(sum[4][0]), "+r"(sum[4][1]), "+r"(sum[4][2]), "+r"(sum[4][3]), "+r"(sum[5][0]), "+r"(sum[5][1]), "+r"(sum[5][2]), "+r"(sum[5][3]),
          "+r"(sum[6][0]), "+r"(sum[6][1]), "+r"(sum[6][2]), "+r"(sum[6][3]), "+r"(sum[7][0]), "+r"(sum[7][1]), "+r"(sum[7][2]), "+r"(sum[7][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(gathered_rows(b) + 2 * step));
}
DEVICE void gather_mma(int (&sum)[4][4], const unsigned (&a)[4], const void* b, int step) {
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
        "{%16,%17,%18,%19}, %20, p;}"
        : "+r"(sum[0][0]), "+r"(sum[0][1]), "+r"(sum[0][2]), "+r"(sum[0][3]), "+r"(sum[1][0]), "+r"(sum[1][1]), "+r"(sum[1][2]), "+r"(sum[1][3]), "+r"(sum[2][0]), "+r"(sum[2][1]), "+r"(sum[2][2]), "+r"(sum[2][3]), "+r"(sum[3][0]), "+r"(sum[3][1]), "+r"(sum[3][2]), "+r"(sum[3][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(gathered_rows(b) + 2 * step));
}
// The same with signed bytes in `a`.
DEVICE void gather_mma_signed(int (&sum)[32][4], const unsigned (&a)[4], const void* b, int step) {
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
        "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"
        "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
        "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"
        "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
        "{%128,%129,%130,%131}, %132, p;}"
        : "+r"(sum[0][0]), "+r"(sum[0][1]), "+r"(sum[0][2]), "+r"(sum[0][3]), "+r"(sum[1][0]), "+r"(sum[1][1]), "+r"(sum[1][2]), "+r"(sum[1][3]), "+r"(sum[2][0]), "+r"(sum[2][1]), "+r"(sum[2][2]), "+r"(sum[2][3]), "+r"(sum[3][0]), "+r"(sum[3][1]), "+r"(sum[3][2]), "+r"(sum[3][3]),
          "+r"(sum[4][0]), "+r"(sum[4][1]), "+r"(sum[4][2]), "+r"(sum[4][3]), "+r"(sum[5][0]), "+r"(sum[5][1]), "+r"(sum[5][2]), "+r"(sum[5][3]), "+r"(sum[6][0]), "+r"(sum[6][1]), "+r"(sum[6][2]), "+r"(sum[6][3]), "+r"(sum[7][0]), "+r"(sum[7][1]), "+r"(sum[7][2]), "+r"(sum[7][3]),
          "+r"(sum[8][0]), "+r"(sum[8][1]), "+r"(sum[8][2]), "+r"(sum[8][3]), "+r"(sum[9][0]), "+r"(sum[9][1]), "+r"(sum[9][2]), "+r"(sum[9][3]), "+r"(sum[10][0]), "+r"(sum[10][1]), "+r"(sum[10][2]), "+r"(sum[10][3]), "+r"(sum[11][0]), "+r"(sum[11][1]), "+r"(sum[11][2]), "+r"(sum[11][3]),
          "+r"(sum[12][0]), "+r"(sum[12][1]), "+r"(sum[12][2]), "+r"(sum[12][3]), "+r"(sum[13][0]), "+r"(sum[13][1]), "+r"(sum[13][2]), "+r"(sum[13][3]), "+r"(sum[14][0]), "+r"(sum[14][1]), "+r"(sum[14][2]), "+r"(sum[14][3]), "+r"(sum[15][0]), "+r"(sum[15][1]), "+r"(sum[15][2]), "+r"(sum[15][3]),
          "+r"(sum[16][0]), "+r"(sum[16][1]), "+r"(sum[16][2]), "+r"(sum[16][3]), "+r"(sum[17][0]), "+r"(sum[17][1]), "+r"(sum[17][2]), "+r"(sum[17][3]), "+r"(sum[18][0]), "+r"(sum[18][1]), "+r"(sum[18][2]), "+r"(sum[18][3]), "+r"(sum[19][0]), "+r"(sum[19][1]), "+r"(sum[19][2]), "+r"(sum[19][3]),
          "+r"(sum[20][0]), "+r"(sum[20][1]), "+r"(sum[20][2]), "+r"(sum[20][3]), "+r"(sum[21][0]), "+r"(sum[21][1]), "+r"(sum[21][2]), "+r"(sum[21][3]), "+r"(sum[22][0]), "+r"(sum[22][1]), "+r"(sum[22][2]), "+r"(sum[22][3]), "+r"(sum[23][0]), "+r"(sum[23][1]), "+r"(sum[23][2]), "+r"(sum[23][3]),
          "+r"(sum[24][0]), "+r"(sum[24][1]), "+r"(sum[24][2]), "+r"(sum[24][3]), "+r"(sum[25][0]), "+r"(sum[25][1]), "+r"(sum[25][2]), "+r"(sum[25][3]), "+r"(sum[26][0]), "+r"(sum[26][1]), "+r"(sum[26][2]), "+r"(sum[26][3]), "+r"(sum[27][0]), "+r"(sum[27][1]), "+r"(sum[27][2]), "+r"(sum[27][3]),
          "+r"(sum[28][0]), "+r"(sum[28][1]), "+r"(sum[28][2]), "+r"(sum[28][3]), "+r"(sum[29][0]), "+r"(sum[29][1]), "+r"(sum[29][2]), "+r"(sum[29][3]), "+r"(sum[30][0]), "+r"(sum[30][1]), "+r"(sum[30][2]), "+r"(sum[30][3]), "+r"(sum[31][0]), "+r"(sum[31][1]), "+r"(sum[31][2]), "+r"(sum[31][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(gathered_rows(b) + 2 * step));
}
DEVICE void gather_mma_signed(int (&sum)[16][4], const unsigned (&a)[4], const void* b, int step) {
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "{%64,%65,%66,%67}, %68, p;}"
        : "+r"(sum[0][0]), "+r"(sum[0][1]), "+r"(sum[0][2]), "+r"(sum[0][3]), "+r"(sum[1][0]), "+r"(sum[1][1]), "+r"(sum[1][2]), "+r"(sum[1][3]), "+r"(sum[2][0]), "+r"(sum[2][1]), "+r"(sum[2][2]), "+r"(sum[2][3]), "+r"(sum[3][0]), "+r"(sum[3][1]), "+r"(sum[3][2]), "+r"(sum[3][3]),
          "+r"(sum[4][0]), "+r"(sum[4][1]), "+r"(sum[4][2]), "+r"(sum[4][3]), "+r"(sum[5][0]), "+r"(sum[5][1]), "+r"(sum[5][2]), "+r"(sum[5][3]), "+r"(sum[6][0]), "+r"(sum[6][1]), "+r"(sum[6][2]), "+r"(sum[6][3]), "+r"(sum[7][0]), "+r"(sum[7][1]), "+r"(sum[7][2]), "+r"(sum[7][3]),
          "+r"(sum[8][0]), "+r"(sum[8][1]), "+r"(sum[8][2]), "+r"(sum[8][3]), "+r"(sum[9][0]), "+r"(sum[9][1]), "+r"(sum[9][2]), "+r"(sum[9][3]), "+r"(sum[10][0]), "+r"(sum[10][1]), "+r"(sum[10][2]), "+r"(sum[10][3]), "+r"(sum[11][0]), "+r"(sum[11][1]), "+r"(sum[11][2]), "+r"(sum[11][3]),
          "+r"(sum[12][0]), "+r"(sum[12][1]), "+r"(sum[12][2]), "+r"(sum[12][3]), "+r"(sum[13][0]), "+r"(sum[13][1]), "+r"(sum[13][2]), "+r"(sum[13][3]), "+r"(sum[14][0]), "+r"(sum[14][1]), "+r"(sum[14][2]), "+r"(sum[14][3]), "+r"(sum[15][0]), "+r"(sum[15][1]), "+r"(sum[15][2]), "+r"(sum[15][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(gathered_rows(b) + 2 * step));
}
DEVICE void gather_mma_signed(int (&sum)[8][4], const unsigned (&a)[4], const void* b, int step) {
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, p;}"
        : "+r"(sum[0][0]), "+r"(sum[0][1]), "+r"(sum[0][2]), "+r"(sum[0][3]), "+r"(sum[1][0]), "+r"(sum[1][1]), "+r"(sum[1][2]), "+r"(sum[1][3]), "+r"(sum[2][0]), "+r"(sum[2][1]), "+r"(sum[2][2]), "+r"(sum[2][3]), "+r"(sum[3][0]), "+r"(sum[3][1]), "+r"(sum[3][2]), "+r"(sum[3][3]),
          "+r"(sum[4][0]), "+r"(sum[4][1]), "+r"(sum[4][2]), "+r"(sum[4][3]), "+r"(sum[5][0]), "+r"(sum[5][1]), "+r"(sum[5][2]), "+r"(sum[5][3]), "+r"(sum[6][0]), "+r"(sum[6][1]), "+r"(sum[6][2]), "+r"(sum[6][3]), "+r"(sum[7][0]), "+r"(sum[7][1]), "+r"(sum[7][2]), "+r"(sum[7][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(gathered_rows(b) + 2 * step));
}
// What this thread wrote or copied to shared memory, the tensor cores see after the next barrier.
DEVICE void show_to_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Gates: barriers in shared memory that count arrivals and the bytes of bulk copies. A phase of a gate ends when all have come,
// and the next begins; who waits names the phase's parity.
struct Gate {
    unsigned long long state;
};
DEVICE unsigned shared_address(const void* at) { return (unsigned)__cvta_generic_to_shared(at); }
DEVICE void gate_open(Gate* gate, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(gate)), "r"(arrivals) : "memory");
}
// By who opened gates, before others of the cluster meet.
DEVICE void gates_opened() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void gate_arrive(Gate* gate) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(gate)) : "memory");
}
// The same gate of a block of the cluster, for who has only read: with the scope of the cluster it would wait for all that this
// thread wrote, 1 us.
DEVICE void gate_arrive_at(Gate* gate, int rank) {
    asm volatile("{.reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;"
                 " mbarrier.arrive.shared::cluster.b64 _, [remote];}"
                 ::"r"(shared_address(gate)), "r"(rank) : "memory");
}
// Arrives, and the phase waits for so many bytes too.
DEVICE void gate_expect(Gate* gate, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(gate)), "r"(bytes) : "memory");
}
DEVICE void gate_wait(Gate* gate, int parity) {
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra done; bra again; done:}"
                 ::"r"(shared_address(gate)), "r"(parity) : "memory");
}
// Copies of a multiple of 16 bytes that count at a gate; of every block of the cluster to the same place of each.
DEVICE void copy_bulk(void* to, const void* from, int bytes, Gate* gate) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(gate)) : "memory");
}
// The same for weights, which leave L2 first.
DEVICE void copy_bulk_once(void* to, const void* from, int bytes, Gate* gate) {
    asm volatile("{.reg .b64 p; createpolicy.fractional.L2::evict_first.b64 p, 1.0;"
                 " cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], p;}"
                 ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(gate)) : "memory");
}
DEVICE void copy_bulk_to_all(void* to, const void* from, int bytes, Gate* gate, int blocks) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                 ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(gate)), "h"((unsigned short)((1 << blocks) - 1))
                 : "memory");
}
// A value for a block of the cluster, which counts at its gate.
DEVICE void store_to_block(int4* at, int rank, const int4& v, Gate* gate) {
    asm volatile("{.reg .b32 to, of; mapa.shared::cluster.u32 to, %0, %2; mapa.shared::cluster.u32 of, %1, %2;"
                 " st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [to], {%3, %4, %5, %6}, [of];}"
                 ::"r"(shared_address(at)), "r"(shared_address(gate)), "r"(rank), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
// A warpgroup's share of the registers, a multiple of 8 a thread.
template <int COUNT> DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
// A warpgroup meets; `which` from 1 on.
DEVICE void group_meet(int which) { asm volatile("bar.sync %0, 128;" ::"r"(which) : "memory"); }
#else
DEVICE int cluster_size() { return 1; }
DEVICE int cluster_rank() { return 0; }
DEVICE void cluster_meet() {}
DEVICE void cluster_leave() {}
DEVICE void cluster_arrive() {}
DEVICE void cluster_wait() {}
struct Gate {
    unsigned long long state;
};
DEVICE void gate_open(Gate*, int) {}
DEVICE void gates_opened() {}
DEVICE void gate_expect(Gate*, int) {}
DEVICE void gate_wait(Gate*, int) {}
DEVICE void store_to_block(int4* at, int, const int4& v, Gate*) { *at = v; }
DEVICE int4 load_of_block(const int4* at, int) { return *at; }
DEVICE void wait_prior() {}
DEVICE void launch_next() {}
DEVICE void show_to_tensor_cores() {}
#endif
// Memory accesses before stay before: fewer values in registers at once.
DEVICE void keep_order() { asm volatile("" ::: "memory"); }
// Arithmetic on these values stays in the order of the calls, likewise.
DEVICE void settle(float4& v) { asm volatile("" : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w)); }
DEVICE void settle(double& v) { asm volatile("" : "+d"(v)); }
// Zeros that the compiler does not know to be such, from shared memory, into four successive registers.
DEVICE float4 load_zeros(const float* at) {
    float4 zero;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(zero.x), "=f"(zero.y), "=f"(zero.z), "=f"(zero.w)
                 : "r"((unsigned)__cvta_generic_to_shared(at)));
    return zero;
}
DEVICE void settle(int& v) { asm volatile("" : "+r"(v)); }
// The compiler's addresses of copies, of a lane's and what is the same for all, trap in large kernels: such ones are a lane's own.
DEVICE void settle(unsigned char*& v) { asm volatile("" : "+l"(v)); }
DEVICE void settle(long long& v) { asm volatile("" : "+l"(v)); }
#endif

#define INFINITE float_of_bits(0x7f800000u)

// So that what follows if it is true does not lie where everybody passes.
DEVICE bool seldom(bool x) { return __builtin_expect(x, false); }

DEVICE unsigned pack(int a, int b, int c, int d) {
    return (unsigned)(a & 255) | (unsigned)(b & 255) << 8 | (unsigned)(c & 255) << 16 | (unsigned)(d & 255) << 24;
}

DEVICE int lane_id() { return threadIdx.x & 31; }
DEVICE int warp_id() { return threadIdx.x >> 5; }

// Waits for two tagged values side by side.
DEVICE void take_pair(const unsigned long long* at, unsigned tag, float* to) {
    unsigned long long words[2];
    load_tagged(at, words);
    while ((unsigned)(words[0] >> 32) != tag || (unsigned)(words[1] >> 32) != tag) {
        pause();
        load_tagged(at, words);
    }
    to[0] = float_of_bits((unsigned)words[0]);
    to[1] = float_of_bits((unsigned)words[1]);
}

// e^x, the bits of kernels/src/math.rs: Cody-Waite reduction, polynomial of degree 6, two exact powers of two.
DEVICE float exp_exact(float x) {
    const float round = 12582912.0f;
    x = 89.0f < x ? 89.0f : x;
    x = -104.0f > x ? -104.0f : x;
    float n = fused(x, 1.44269504088896340736f, round) - round;
    float r = fused(n, 1.9046542e-9f, fused(n, -0.693147180559945309417f, x));
    float p = 0.0013814538f;
    p = fused(p, r, 0.008368745f);
    p = fused(p, r, 0.04166839f);
    p = fused(p, r, 0.16666521f);
    p = fused(p, r, 0.49999994f);
    p = fused(r * r, p, r) + 1.0f;
    int whole = (int)n, first = whole >> 1;
    return p * float_of_bits((unsigned)(first + 127) << 23) * float_of_bits((unsigned)(whole - first + 127) << 23);
}

// All blocks meet. Bit 31 flips when the last has come, so the counter needs no reset; as in cooperative groups. The bit
// before is known, so that nothing waits for the answer of the addition. By the first thread of each block.
DEVICE void barrier_arrive(unsigned* counter) {
    __syncthreads();
    if (threadIdx.x == 0) add_release(counter, blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u);
}
DEVICE void barrier_wait(const unsigned* counter, unsigned bit) {
    if (threadIdx.x == 0) {
        while (((bit ^ load_relaxed(counter)) & 0x80000000u) == 0) {
        }
        fence();
    }
    __syncthreads();
}
