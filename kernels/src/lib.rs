//! Slices in, slices out: the arithmetic of ternary models on CPUs.
//!
//! Each operation takes an [`Isa`] and gives the same bits whichever it is: integer sums are exact, float
//! reductions run in 16 virtual lanes merged by one fixed tree, products and sums are fused (`mul_add`) where
//! the definition says so and nowhere else.
#![deny(unsafe_code)]

pub mod activation;
#[cfg(target_arch = "x86_64")]
mod ahead;
pub mod attention;
mod columns;
pub mod dense;
pub mod draw;
mod isa;
pub mod limits;
pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod norm;
pub mod rope;
pub mod screen;
mod simd;
pub mod softmax;
pub mod ternary;
#[cfg(test)]
mod testing;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod zeros;

pub use columns::Columns;
pub(crate) use isa::FloatIsa;
pub use isa::{AmxInt8, Avx2, Avx512Bw, Avx512Vnni, AvxVnni, Isa, Neon, NeonDotprod, NeonI8mm, NoSuchIsa};
