//! Any bytes as a checkpoint's one file: its table is refused, or every tensor that it names can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runtime::cli::convert;

fuzz_target!(|bytes: &[u8]| {
    // The reader takes files only; those of one process go over each other.
    let folder = std::env::temp_dir().join(format!("bitnetd-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    std::fs::write(folder.join("model.safetensors"), bytes).expect("the temporary folder can be written");
    // What is read is checked within: a panic is a finding.
    let _ = convert::check(&folder);
});
