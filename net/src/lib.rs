//! Bytes to typed requests and events, and back; no I/O, no clock.
#![forbid(unsafe_code)]
