//! What this machine can do at most, as loops without a purpose: kernels are judged beside them in the same run.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "loads and calls of functions with target features"))]

use crate::Isa;

/// Reads every byte once, as fast as one thread can; the result depends on all of them.
#[must_use]
pub fn read(isa: Isa, bytes: &[u8]) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => x86::read(proof, bytes),
        _ => bytes.as_chunks().0.iter().fold(0, |sum: u64, word| sum ^ u64::from_le_bytes(*word)),
    }
}

/// Does [`INT8_OPERATIONS`] int8 operations (a product and a sum are two) in registers, or nothing and `false` where
/// there is no such unit.
#[must_use]
pub fn int8(isa: Isa) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => {
            x86::int8(proof);
            true
        }
        _ => false,
    }
}

/// Operations of one call of [`int8`].
pub const INT8_OPERATIONS: usize = ROUNDS * SUMS * 128;

const ROUNDS: usize = 100_000;
const SUMS: usize = 16;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_reduce_add_epi64, _mm512_set1_epi32,
        _mm512_setzero_si512, _mm512_xor_si512,
    };
    use std::hint::black_box;

    use super::{ROUNDS, SUMS};
    use crate::Avx512;

    pub(super) fn read(_: Avx512, bytes: &[u8]) -> u64 {
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

    pub(super) fn int8(_: Avx512) {
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn body() {
            let (a, b) = (_mm512_set1_epi32(black_box(0x0102_0102)), _mm512_set1_epi32(black_box(0x0102_0304)));
            let mut sums = [_mm512_setzero_si512(); SUMS];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, a, b);
                }
            }
            black_box(sums);
        }
        // SAFETY: the token proves that VNNI exists.
        unsafe { body() }
    }

    const PREFETCH_BYTES: usize = 2048;
}
