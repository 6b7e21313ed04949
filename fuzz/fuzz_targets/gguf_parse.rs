//! Any bytes: the reader refuses them, or everything it hands out can be read.
#![no_main]

use gguf::{Error, Gguf, Value, blocks, ternary};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file_bytes = bytes.len() as u64;
    // As the beginning of a longer file: never a claim that the file ends.
    if let Err(Error::NeedMore { at_least }) = Gguf::parse(bytes, file_bytes.saturating_mul(2)) {
        assert!(at_least > file_bytes && at_least <= 2 * file_bytes);
    }
    let Ok(gguf) = Gguf::parse(bytes, file_bytes) else { return };
    for (key, value) in gguf.metadata().iter() {
        assert!(gguf.metadata().get(key).is_some());
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
        }
    }
    for tensor in gguf.tensors() {
        let data = gguf.data(tensor).expect("extents are within the file");
        assert_eq!(data.len() as u64, tensor.bytes);
        let Ok(elements) = usize::try_from(tensor.elements()) else { continue };
        if tensor.kind == gguf::TensorType::I2S {
            let mut codes = vec![0; elements];
            ternary::i2s_codes(data, 0, &mut codes);
            let _ = ternary::i2s_scale(data, elements);
        } else {
            let row_bytes = data.len() / tensor.rows() as usize;
            let mut row = vec![0.0; tensor.cols() as usize];
            let _ = blocks::dequantize_row(tensor.kind, &data[..row_bytes], row.len(), &mut row);
        }
    }
});
