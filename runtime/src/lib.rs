//! The serving runtime of bitnetd.
#![deny(unsafe_code)]
