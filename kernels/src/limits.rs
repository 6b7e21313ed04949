//! What this machine can do at most, as loops without a purpose: kernels are judged beside them in the same run.
#![cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "loads and calls of functions with target features")
)]

use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use crate::FloatIsa;
use crate::Isa;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Reads every byte once, as fast as one thread can; the result depends on all of them.
#[must_use]
pub fn read(isa: Isa, bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    match isa.floats() {
        FloatIsa::Avx2(proof) => return x86::read_256(proof, bytes),
        FloatIsa::Avx512Bw(proof) => return x86::read_512(proof, bytes),
        FloatIsa::Portable | FloatIsa::Neon(_) => {}
    }
    let _ = isa;
    bytes.as_chunks().0.iter().fold(0, |sum: u64, word| sum ^ u64::from_le_bytes(*word))
}

/// Multiplies and sums int8 in registers, the best way that `isa` has, and returns the number of operations (a product
/// and a sum are two); `None` where there is no such unit.
#[must_use]
pub fn int8(isa: Isa) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Portable | Isa::NeonDotprod(_) | Isa::NeonI8mm(_) => {}
        Isa::Avx2(proof) => return Some(x86::maddubs_256(proof)),
        Isa::AvxVnni(proof) => return Some(x86::dpbusd_256(proof)),
        Isa::Avx512Bw(proof) => return Some(x86::maddubs_512(proof)),
        Isa::Avx512Vnni(proof) => return Some(x86::dpbusd_512(proof)),
        Isa::AmxInt8(proof) => return Some(crate::tiles::peak(proof, ROUNDS)),
    }
    #[cfg(target_arch = "aarch64")]
    match isa {
        Isa::NeonDotprod(proof) => return Some(arm::dots(proof)),
        Isa::NeonI8mm(proof) => return Some(arm::matrices(proof)),
        _ => {}
    }
    let _ = isa;
    None
}

/// Fused multiply-adds of f32 in registers; returns the number of operations, two each.
#[must_use]
pub fn fma(isa: Isa) -> usize {
    dispatch(isa, Chains)
}

/// As many independent sums as registers hold and as keep two units of five cycles busy.
struct Chains;

impl Kernel for Chains {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let (a, b) = (simd.splat(black_box(0.999)), simd.splat(black_box(1e-3)));
        let mut sums = [simd.splat(1.0); FMA_SUMS];
        let count = FMA_SUMS.min(S::TILE_ROWS * S::TILE_WIDTH);
        for _ in 0..ROUNDS {
            for sum in &mut sums[..count] {
                *sum = simd.fma(*sum, a, b);
            }
        }
        let mut lanes = [0.0; LANES];
        for sum in sums {
            simd.store(sum, &mut lanes);
            black_box(&lanes);
        }
        ROUNDS * count * 2 * LANES
    }
}

const ROUNDS: usize = 100_000;
const FMA_SUMS: usize = 10;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm256_add_epi16, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_maddubs_epi16,
        _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256, _mm256_xor_si256, _mm512_add_epi16,
        _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_maddubs_epi16, _mm512_reduce_add_epi64, _mm512_set1_epi32,
        _mm512_setzero_si512, _mm512_xor_si512,
    };
    use std::hint::black_box;

    use super::ROUNDS;
    use crate::{Avx2, Avx512Bw, Avx512Vnni, AvxVnni};

    pub(super) fn read_512(_: Avx512Bw, bytes: &[u8]) -> u64 {
        #[target_feature(enable = "avx512f")]
        fn body(bytes: &[u8]) -> u64 {
            let mut sums = [_mm512_setzero_si512(); 4];
            for line in bytes.as_chunks::<256>().0 {
                let parts = line.as_chunks::<64>().0;
                for i in 0..4 {
                    // SAFETY: 64 readable bytes.
                    let v = unsafe { _mm512_loadu_si512(parts[i].as_ptr().cast()) };
                    _mm_prefetch::<_MM_HINT_T0>(parts[i].as_ptr().wrapping_add(PREFETCH_BYTES).cast());
                    sums[i] = _mm512_xor_si512(sums[i], v);
                }
            }
            let sum = _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
            _mm512_reduce_add_epi64(sum).cast_unsigned()
        }
        // SAFETY: the token proves that AVX-512 F exists.
        unsafe { body(bytes) }
    }

    pub(super) fn read_256(_: Avx2, bytes: &[u8]) -> u64 {
        #[target_feature(enable = "avx2")]
        fn body(bytes: &[u8]) -> u64 {
            let mut sums = [_mm256_setzero_si256(); 8];
            for line in bytes.as_chunks::<256>().0 {
                let parts = line.as_chunks::<32>().0;
                for i in 0..8 {
                    // SAFETY: 32 readable bytes.
                    let v = unsafe { _mm256_loadu_si256(parts[i].as_ptr().cast()) };
                    if i % 2 == 0 {
                        _mm_prefetch::<_MM_HINT_T0>(parts[i].as_ptr().wrapping_add(PREFETCH_BYTES).cast());
                    }
                    sums[i] = _mm256_xor_si256(sums[i], v);
                }
            }
            let mut sum = sums[0];
            for other in &sums[1..] {
                sum = _mm256_xor_si256(sum, *other);
            }
            let mut words = [0_u64; 4];
            // SAFETY: 32 writable bytes.
            unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), sum) };
            words.into_iter().fold(0, u64::wrapping_add)
        }
        // SAFETY: the token proves that AVX2 exists.
        unsafe { body(bytes) }
    }

    /// A function of `ROUNDS` times `SUMS` steps of independent sums; it returns the operations in them.
    macro_rules! int8 {
        ($name:ident($proof:ty, $features:literal, $bytes:literal, $zero:ident, $splat:ident), $step:expr) => {
            pub(super) fn $name(_: $proof) -> usize {
                #[target_feature(enable = $features)]
                fn body() {
                    let (a, b) = ($splat(black_box(0x0102_0102)), $splat(black_box(0x0102_0304)));
                    let mut sums = [$zero(); SUMS];
                    for _ in 0..ROUNDS {
                        for sum in &mut sums {
                            *sum = $step(*sum, a, b);
                        }
                    }
                    black_box(sums);
                }
                // SAFETY: the token proves that these instructions exist.
                unsafe { body() }
                ROUNDS * SUMS * 2 * $bytes
            }
        };
    }

    int8!(dpbusd_256(AvxVnni, "avx2,avxvnni", 32, _mm256_setzero_si256, _mm256_set1_epi32), _mm256_dpbusd_avx_epi32);
    int8!(
        dpbusd_512(Avx512Vnni, "avx512f,avx512vnni", 64, _mm512_setzero_si512, _mm512_set1_epi32),
        _mm512_dpbusd_epi32
    );
    // The sum itself is an operand: a product of constants would move out of the loop.
    int8!(maddubs_256(Avx2, "avx2", 32, _mm256_setzero_si256, _mm256_set1_epi32), |sum, _, b| {
        _mm256_add_epi16(sum, _mm256_maddubs_epi16(sum, b))
    });
    int8!(maddubs_512(Avx512Bw, "avx512f,avx512bw", 64, _mm512_setzero_si512, _mm512_set1_epi32), |sum, _, b| {
        _mm512_add_epi16(sum, _mm512_maddubs_epi16(sum, b))
    });

    const SUMS: usize = 12;
    const PREFETCH_BYTES: usize = 2048;
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{vdupq_n_s8, vdupq_n_s32};
    use std::hint::black_box;

    use super::ROUNDS;
    use crate::{NeonDotprod, NeonI8mm, neon};

    /// A function of `ROUNDS` times `SUMS` steps of independent sums; it returns the operations in them.
    macro_rules! int8 {
        ($name:ident($proof:ty, $features:literal, $products:literal), $step:path) => {
            pub(super) fn $name(_: $proof) -> usize {
                #[target_feature(enable = $features)]
                fn body() {
                    let (a, b) = (vdupq_n_s8(black_box(1)), vdupq_n_s8(black_box(2)));
                    let mut sums = [vdupq_n_s32(0); SUMS];
                    for _ in 0..ROUNDS {
                        for sum in &mut sums {
                            *sum = $step(*sum, a, b);
                        }
                    }
                    black_box(sums);
                }
                // SAFETY: the token proves that these instructions exist.
                unsafe { body() }
                ROUNDS * SUMS * 2 * $products
            }
        };
    }

    int8!(dots(NeonDotprod, "neon,dotprod", 16), neon::dot);
    int8!(matrices(NeonI8mm, "neon,i8mm", 32), neon::matrix);

    const SUMS: usize = 24;
}
