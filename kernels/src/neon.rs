//! What NEON kernels share: instructions that the standard library has no stable function for, loads, stores, prefetches.
#![expect(unsafe_code, reason = "instructions without intrinsics, loads and stores")]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, uint16x4_t, vld1q_s8, vld1q_s32, vld1q_u8, vst1q_s32, vst1q_u8,
};
use std::arch::asm;

/// The type and name of an instruction that adds the products of `a` and `b` to `sum`.
macro_rules! products {
    ($(#[$doc:meta])* $name:ident($features:literal, $a:ty), $instruction:literal) => {
        $(#[$doc])*
        #[target_feature(enable = $features)]
        #[inline]
        pub(crate) fn $name(sum: int32x4_t, a: $a, b: int8x16_t) -> int32x4_t {
            let mut sum = sum;
            // SAFETY: registers only; the features of this function hold the instruction.
            unsafe {
                asm!(
                    concat!($instruction, " {sum:v}.4s, {a:v}.16b, {b:v}.16b"),
                    sum = inout(vreg) sum,
                    a = in(vreg) a,
                    b = in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            sum
        }
    };
}

products!(
    /// Four products in each lane.
    dot("neon,dotprod", int8x16_t),
    "sdot"
);
products!(
    /// Four products of bytes without sign in each lane.
    dot_unsigned("neon,i8mm", uint8x16_t),
    "usdot"
);
products!(
    /// Two rows of eight numbers times two rows of eight, `a`'s rows being those of the sums.
    matrix("neon,i8mm", int8x16_t),
    "smmla"
);

/// [`dot`] with dword `LANE` of `b` in all lanes.
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub(crate) fn dot_lane<const LANE: usize>(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: registers only; the features of this function hold the instruction.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Exact floats of four halves.
#[target_feature(enable = "neon")]
#[inline]
pub(crate) fn widen(halves: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: registers only; the instruction is part of NEON.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = out(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    wide
}

/// The nearest halves, ties to even, overflow to infinity.
#[target_feature(enable = "neon")]
#[inline]
pub(crate) fn narrow(wide: float32x4_t) -> uint16x4_t {
    let halves: uint16x4_t;
    // SAFETY: registers only; the instruction is part of NEON.
    unsafe {
        asm!(
            "fcvtn {halves:v}.4h, {wide:v}.4s",
            halves = out(vreg) halves,
            wide = in(vreg) wide,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

#[target_feature(enable = "neon")]
#[inline]
pub(crate) fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 readable bytes; the load has no alignment requirement.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(crate) fn load_signed(bytes: &[i8; 16]) -> int8x16_t {
    // SAFETY: 16 readable bytes; the load has no alignment requirement.
    unsafe { vld1q_s8(bytes.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(crate) fn store(v: uint8x16_t, bytes: &mut [u8; 16]) {
    // SAFETY: 16 writable bytes; the store has no alignment requirement.
    unsafe { vst1q_u8(bytes.as_mut_ptr(), v) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(crate) fn load_sums(sums: &[i32; 4]) -> int32x4_t {
    // SAFETY: 16 readable bytes.
    unsafe { vld1q_s32(sums.as_ptr()) }
}

#[target_feature(enable = "neon")]
#[inline]
pub(crate) fn store_sums(v: int32x4_t, sums: &mut [i32; 4]) {
    // SAFETY: 16 writable bytes.
    unsafe { vst1q_s32(sums.as_mut_ptr(), v) }
}

/// Asks for the cache line `ahead` bytes behind the start of `bytes`, into L1.
#[inline(always)]
pub(crate) fn prefetch<T>(bytes: &[T], ahead: usize) {
    let line = bytes.as_ptr().cast::<u8>().wrapping_add(ahead);
    // SAFETY: a prefetch reads nothing that a program can see and never faults.
    unsafe { asm!("prfm pldl1keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly)) }
}

/// The same into L2.
#[inline(always)]
pub(crate) fn prefetch_far<T>(bytes: *const T, ahead: usize) {
    let line = bytes.cast::<u8>().wrapping_add(ahead);
    // SAFETY: as above.
    unsafe { asm!("prfm pldl2keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly)) }
}
