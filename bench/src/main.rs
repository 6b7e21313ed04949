//! The `bitnetd-bench` binary.
fn main() {}
