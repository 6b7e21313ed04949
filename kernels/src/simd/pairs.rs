//! Sums of products of pairs of whole numbers in 16 lanes, and its dispatch: what differs between the ISAs with and
//! without VNNI.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "instructions of AVX2, AVX-512 and VNNI, and loads"))]

use super::{LANES, Portable, Simd};
#[cfg(target_arch = "aarch64")]
use crate::FloatIsa;
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::{Avx2, Avx512Bw, Avx512Vnni, AvxVnni};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps,
    _mm256_dpwssd_avx_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm512_add_epi32, _mm512_cvtepi8_epi16, _mm512_cvtepi32_ps, _mm512_dpwssd_epi32,
    _mm512_loadu_si512, _mm512_madd_epi16, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
};

/// Products of pairs, exact while the sums stay within 32 bits, beside the float lanes of the same machine. As for
/// [`Simd`], everything must be `#[inline(always)]`.
pub(crate) trait Pairs: Copy {
    type Floats: Simd;
    /// 16 sums of 32 bits, or 16 pairs of 16 bits.
    type I: Copy;

    /// The float operations.
    fn floats(self) -> Self::Floats;
    /// As [`Simd::apart`].
    fn apart_pairs<K: PairKernel>(self, kernel: K) -> K::Output;
    fn zero(self) -> Self::I;
    fn load_sums(self, x: &[i32; LANES]) -> Self::I;
    fn store_sums(self, v: Self::I, out: &mut [i32; LANES]);
    /// 16 pairs of bytes.
    fn load_pairs(self, x: &[u16; LANES]) -> Self::I;
    /// The same pair of 16 bits in all lanes, the first number in the lower half.
    fn splat_pair(self, pair: u32) -> Self::I;
    /// `sum` and both products of `a` and `b` in each lane.
    fn add_products(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// The nearest floats.
    fn to_floats(self, v: Self::I) -> <Self::Floats as Simd>::F;
}

/// A computation written once over [`Pairs`]; `run` must be `#[inline(always)]`.
pub(crate) trait PairKernel {
    type Output;
    fn run<P: Pairs>(self, pairs: P) -> Self::Output;
}

/// Runs `kernel` compiled for `isa`: the one branch of an operation.
#[cfg(target_arch = "x86_64")]
pub(crate) fn dispatch_pairs<K: PairKernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        Isa::Portable => kernel.run(Portable),
        // SAFETY: the token proves that AVX2, FMA and F16C exist.
        Isa::Avx2(proof) => unsafe { run_avx2(proof, kernel) },
        // SAFETY: the token proves that AVX-VNNI exists, and what AVX2's proves.
        Isa::AvxVnni(proof) => unsafe { run_avx_vnni(proof, kernel) },
        // SAFETY: the token proves that AVX-512 F, BW, DQ and VL exist, and those of AVX2.
        Isa::Avx512Bw(proof) => unsafe { run_avx512(proof, kernel) },
        // SAFETY: the token proves that AVX-512 VNNI exists, and those of AVX-512 BW.
        Isa::Avx512Vnni(proof) => unsafe { run_avx512_vnni(proof, kernel) },
        // SAFETY: the token proves that AVX-512 VNNI exists, and what that proves.
        Isa::AmxInt8(proof) => unsafe { run_avx512_vnni(proof.vnni(), kernel) },
        Isa::NeonDotprod(_) | Isa::NeonI8mm(_) => unreachable!("no proof exists on this machine"),
    }
}

/// Runs `kernel` compiled for `isa`; NEON multiplies pairs as it is.
#[cfg(target_arch = "aarch64")]
pub(crate) fn dispatch_pairs<K: PairKernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.floats() {
        FloatIsa::Neon(proof) => kernel.run(proof),
        _ => kernel.run(Portable),
    }
}

/// Runs `kernel`; no other ISA has a token here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn dispatch_pairs<K: PairKernel>(_isa: Isa, kernel: K) -> K::Output {
    kernel.run(Portable)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn run_avx2<K: PairKernel>(proof: Avx2, kernel: K) -> K::Output {
    kernel.run(proof)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline(never)]
fn run_avx_vnni<K: PairKernel>(proof: AvxVnni, kernel: K) -> K::Output {
    kernel.run(proof)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
fn run_avx512<K: PairKernel>(proof: Avx512Bw, kernel: K) -> K::Output {
    kernel.run(proof)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)]
fn run_avx512_vnni<K: PairKernel>(proof: Avx512Vnni, kernel: K) -> K::Output {
    kernel.run(proof)
}

impl Pairs for Portable {
    type Floats = Self;
    type I = [i32; LANES];

    #[inline(always)]
    fn floats(self) -> Self {
        self
    }

    #[inline(never)]
    fn apart_pairs<K: PairKernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
        [0; LANES]
    }

    #[inline(always)]
    fn load_sums(self, x: &[i32; LANES]) -> Self::I {
        *x
    }

    #[inline(always)]
    fn store_sums(self, v: Self::I, out: &mut [i32; LANES]) {
        *out = v;
    }

    #[inline(always)]
    fn load_pairs(self, x: &[u16; LANES]) -> Self::I {
        std::array::from_fn(|l| {
            let [low, high] = x[l].to_le_bytes().map(|byte| i16::from(byte.cast_signed()));
            pair(low, high).cast_signed()
        })
    }

    #[inline(always)]
    fn splat_pair(self, pair: u32) -> Self::I {
        [pair.cast_signed(); LANES]
    }

    #[inline(always)]
    fn add_products(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|l| {
            let ([a_low, a_high], [b_low, b_high]) = (unpair(a[l]), unpair(b[l]));
            sum[l].wrapping_add(a_low * b_low).wrapping_add(a_high * b_high)
        })
    }

    #[inline(always)]
    fn to_floats(self, v: Self::I) -> [f32; LANES] {
        v.map(|sum| sum as f32)
    }
}

/// Two numbers of 16 bits as one of 32.
#[inline(always)]
pub(crate) fn pair(low: i16, high: i16) -> u32 {
    u32::from(low.cast_unsigned()) | u32::from(high.cast_unsigned()) << 16
}

/// The two numbers of a pair.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
fn unpair(pair: i32) -> [i32; 2] {
    [i32::from(pair as i16), pair >> 16]
}

/// The ISAs of 256 bits: `$sums` adds the products.
#[cfg(target_arch = "x86_64")]
macro_rules! pairs_of_256_bits {
    ($token:ty, $run:ident, $floats:expr, |$sum:ident, $a:ident, $b:ident| $sums:expr) => {
        impl Pairs for $token {
            type Floats = Avx2;
            type I = [__m256i; 2];

            #[inline(always)]
            fn floats(self) -> Avx2 {
                $floats(self)
            }

            #[inline(always)]
            fn apart_pairs<K: PairKernel>(self, kernel: K) -> K::Output {
                // SAFETY: self proves what the function is compiled for.
                unsafe { $run(self, kernel) }
            }

            #[inline(always)]
            fn zero(self) -> Self::I {
                // SAFETY: self proves AVX.
                [unsafe { _mm256_setzero_si256() }; 2]
            }

            #[inline(always)]
            fn load_sums(self, x: &[i32; LANES]) -> Self::I {
                // SAFETY: the first 8 of 16 readable numbers; self proves AVX.
                let low = unsafe { _mm256_loadu_si256(x[..8].as_ptr().cast()) };
                // SAFETY: the last 8 of 16 readable numbers; self proves AVX.
                let high = unsafe { _mm256_loadu_si256(x[8..].as_ptr().cast()) };
                [low, high]
            }

            #[inline(always)]
            fn store_sums(self, v: Self::I, out: &mut [i32; LANES]) {
                // SAFETY: the first 8 of 16 writable numbers; self proves AVX.
                unsafe { _mm256_storeu_si256(out[..8].as_mut_ptr().cast(), v[0]) };
                // SAFETY: the last 8 of 16 writable numbers; self proves AVX.
                unsafe { _mm256_storeu_si256(out[8..].as_mut_ptr().cast(), v[1]) };
            }

            #[inline(always)]
            fn load_pairs(self, x: &[u16; LANES]) -> Self::I {
                // SAFETY: the first 16 of 32 readable bytes.
                let low = unsafe { _mm_loadu_si128(x[..8].as_ptr().cast()) };
                // SAFETY: the last 16 of 32 readable bytes.
                let high = unsafe { _mm_loadu_si128(x[8..].as_ptr().cast()) };
                // SAFETY: self proves AVX2.
                let low = unsafe { _mm256_cvtepi8_epi16(low) };
                // SAFETY: self proves AVX2.
                let high = unsafe { _mm256_cvtepi8_epi16(high) };
                [low, high]
            }

            #[inline(always)]
            fn splat_pair(self, pair: u32) -> Self::I {
                // SAFETY: self proves AVX.
                [unsafe { _mm256_set1_epi32(pair.cast_signed()) }; 2]
            }

            #[inline(always)]
            fn add_products(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
                let mut all = sum;
                for half in 0..2 {
                    let ($sum, $a, $b) = (sum[half], a[half], b[half]);
                    all[half] = $sums;
                }
                all
            }

            #[inline(always)]
            fn to_floats(self, v: Self::I) -> <Avx2 as Simd>::F {
                // SAFETY: self proves AVX.
                let low = unsafe { _mm256_cvtepi32_ps(v[0]) };
                // SAFETY: self proves AVX.
                let high = unsafe { _mm256_cvtepi32_ps(v[1]) };
                [low, high]
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pairs_of_256_bits!(Avx2, run_avx2, |proof: Self| proof, |sum, a, b| {
    // SAFETY: self proves AVX2.
    let products = unsafe { _mm256_madd_epi16(a, b) };
    // SAFETY: self proves AVX2.
    unsafe { _mm256_add_epi32(sum, products) }
});

#[cfg(target_arch = "x86_64")]
pairs_of_256_bits!(AvxVnni, run_avx_vnni, Self::avx2, |sum, a, b| {
    // SAFETY: self proves AVX-VNNI.
    unsafe { _mm256_dpwssd_avx_epi32(sum, a, b) }
});

/// The ISAs of 512 bits.
#[cfg(target_arch = "x86_64")]
macro_rules! pairs_of_512_bits {
    ($token:ty, $run:ident, $floats:expr, |$sum:ident, $a:ident, $b:ident| $sums:expr) => {
        impl Pairs for $token {
            type Floats = Avx512Bw;
            type I = __m512i;

            #[inline(always)]
            fn floats(self) -> Avx512Bw {
                $floats(self)
            }

            #[inline(always)]
            fn apart_pairs<K: PairKernel>(self, kernel: K) -> K::Output {
                // SAFETY: self proves what the function is compiled for.
                unsafe { $run(self, kernel) }
            }

            #[inline(always)]
            fn zero(self) -> __m512i {
                // SAFETY: self proves AVX-512 F.
                unsafe { _mm512_setzero_si512() }
            }

            #[inline(always)]
            fn load_sums(self, x: &[i32; LANES]) -> __m512i {
                // SAFETY: 16 readable numbers; self proves AVX-512 F.
                unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
            }

            #[inline(always)]
            fn store_sums(self, v: __m512i, out: &mut [i32; LANES]) {
                // SAFETY: 16 writable numbers; self proves AVX-512 F.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) };
            }

            #[inline(always)]
            fn load_pairs(self, x: &[u16; LANES]) -> __m512i {
                // SAFETY: 32 readable bytes; self proves AVX.
                let bytes = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
                // SAFETY: self proves AVX-512 BW.
                unsafe { _mm512_cvtepi8_epi16(bytes) }
            }

            #[inline(always)]
            fn splat_pair(self, pair: u32) -> __m512i {
                // SAFETY: self proves AVX-512 F.
                unsafe { _mm512_set1_epi32(pair.cast_signed()) }
            }

            #[inline(always)]
            fn add_products(self, $sum: __m512i, $a: __m512i, $b: __m512i) -> __m512i {
                $sums
            }

            #[inline(always)]
            fn to_floats(self, v: __m512i) -> __m512 {
                // SAFETY: self proves AVX-512 F.
                unsafe { _mm512_cvtepi32_ps(v) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pairs_of_512_bits!(Avx512Bw, run_avx512, |proof: Self| proof, |sum, a, b| {
    // SAFETY: self proves AVX-512 BW.
    let products = unsafe { _mm512_madd_epi16(a, b) };
    // SAFETY: self proves AVX-512 F.
    unsafe { _mm512_add_epi32(sum, products) }
});

#[cfg(target_arch = "x86_64")]
pairs_of_512_bits!(Avx512Vnni, run_avx512_vnni, Self::bw, |sum, a, b| {
    // SAFETY: self proves AVX-512 VNNI.
    unsafe { _mm512_dpwssd_epi32(sum, a, b) }
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Draw;

    struct Probe<'a>(&'a [u16; LANES], &'a [[i16; 2]], &'a [i32; LANES]);

    impl PairKernel for Probe<'_> {
        type Output = ([i32; LANES], [f32; LANES]);
        fn run<P: Pairs>(self, p: P) -> Self::Output {
            let mut sums = p.load_sums(self.2);
            for [low, high] in self.1 {
                sums = p.add_products(sums, p.load_pairs(self.0), p.splat_pair(pair(*low, *high)));
            }
            let (mut whole, mut floats) = ([0; LANES], [0.0; LANES]);
            p.store_sums(sums, &mut whole);
            p.floats().store(p.to_floats(sums), &mut floats);
            (whole, floats)
        }
    }

    #[test]
    fn sums_are_exact_on_every_isa() {
        let mut draw = Draw::new(5);
        for round in 0..500 {
            let bytes: [[i8; 2]; LANES] =
                std::array::from_fn(|_| std::array::from_fn(|_| (draw.below(255) as i32 - 127) as i8));
            let lanes = bytes.map(|[low, high]| u16::from_le_bytes([low.cast_unsigned(), high.cast_unsigned()]));
            let numbers: Vec<[i16; 2]> =
                (0..round % 9).map(|_| std::array::from_fn(|_| (draw.below(65_535) as i32 - 32_767) as i16)).collect();
            let start = std::array::from_fn(|_| draw.below(1 << 20) as i32 - (1 << 19));
            let expected: [i32; LANES] = std::array::from_fn(|l| {
                let products = numbers.iter().flat_map(|number| number.iter().zip(bytes[l]));
                start[l] + products.map(|(n, byte)| i32::from(*n) * i32::from(byte)).sum::<i32>()
            });
            for isa in Isa::available() {
                let (whole, floats) = dispatch_pairs(isa, Probe(&lanes, &numbers, &start));
                assert_eq!(whole, expected, "{}", isa.name());
                assert_eq!(floats, expected.map(|sum| sum as f32), "{}", isa.name());
            }
        }
    }
}
