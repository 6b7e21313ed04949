//! The serving runtime of bitnetd.
#![deny(unsafe_code)]

pub mod sampler;
pub mod text;
