//! Any bytes: recorded logits are refused, or every sequence has a row of logits for each of its tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runtime::crossval::Recorded;

fuzz_target!(|bytes: &[u8]| {
    // What is read is checked within: a panic is a finding.
    let _ = Recorded::parse(bytes);
});
