//! Slices in, slices out: the arithmetic of ternary models on CPUs.
#![deny(unsafe_code)]
