//! The `bitnetd` binary.
fn main() {}
