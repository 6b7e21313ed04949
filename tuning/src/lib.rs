//! The machine: topology, placement, pinning and memory.
#![deny(unsafe_code)]
