//! I2_S as bitnet.cpp packs it: `data/i2s_K256.*` are 8 rows of 256 weights and what its quantize_i2_s made of them.

use gguf::ternary;

/// The data of an NPY file of version 1.
fn npy(file: &'static [u8]) -> &'static [u8] {
    let header_bytes = usize::from(u16::from_le_bytes([file[8], file[9]]));
    &file[10 + header_bytes..]
}

#[test]
fn weights_packed_by_bitnet_cpp_unpack_to_their_codes() {
    let weights: Vec<f32> = npy(include_bytes!("data/i2s_K256.w_f32.npy"))
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect();
    let packed = npy(include_bytes!("data/i2s_K256.packed.npy"));
    assert_eq!((weights.len(), packed.len()), (8 * 256, 8 * 256 / 4 + 32));
    let scale = ternary::i2s_scale(packed, weights.len());
    assert!(!ternary::has_code3(ternary::i2s_packed(packed, weights.len())));
    let mut codes = vec![0; weights.len()];
    ternary::i2s_codes(packed, 0, &mut codes);
    for (index, (&weight, &code)) in weights.iter().zip(&codes).enumerate() {
        assert_eq!((f32::from(code) - 1.0) * scale, weight, "weight {index}");
    }
    let mut again = vec![0; packed.len()];
    ternary::i2s_pack(&codes, scale, &mut again);
    assert_eq!(again[..again.len() - 28], packed[..packed.len() - 28]);
}
