//! I2_S, TL1 and TL2 as bitnet.cpp packs them: `data/i2s_K256.*` are 8 rows of 256 weights and what its quantize_i2_s made
//! of them, `data/tl*` matrices of -1, 0 and +1 and what its converter made of them.

use gguf::TensorType;
use gguf::ternary::{self, BAND_ROWS, TileShape, Tiled};

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

/// Weights in row order and what bitnet.cpp's converter made of them, in tiles of this shape.
fn check_tiles(kind: TensorType, shape: (usize, usize), tile: TileShape, weights: &[u8], packed: &[u8]) {
    let (rows, cols) = shape;
    let layout = Tiled::new(kind, rows, cols, tile).expect("the tiles fit");
    let wanted: Vec<u8> = weights.iter().map(|weight| (weight.cast_signed() + 1).cast_unsigned()).collect();
    assert_eq!(wanted.len(), rows * cols);
    // The vectors end with their last byte of weights, a tensor of a file is padded and has a scale.
    let mut data = packed.to_vec();
    data.resize(layout.bytes(), 0);
    let mut codes = vec![9; wanted.len()];
    for (band, out) in codes.chunks_exact_mut(BAND_ROWS * cols).enumerate() {
        layout.codes(&data, band, out);
    }
    assert!(codes == wanted, "{} {rows} {cols}", kind.name());
    let again = layout.pack(&codes, layout.scale(&data));
    assert!(again[..again.len() - 28] == data[..data.len() - 28], "{} {rows} {cols} packed again", kind.name());
}

#[test]
fn tl1_packed_by_bitnet_cpp_unpacks_and_packs_bit_for_bit() {
    check_tiles(
        TensorType::Tl1,
        (256, 256),
        TileShape { rows: 128, cols: 64, group_rows: 32 },
        npy(include_bytes!("data/tl1_M256_K256_BM128_BK64_bm32.w_i8.npy")),
        npy(include_bytes!("data/tl1_M256_K256_BM128_BK64_bm32.packed.npy")),
    );
    check_tiles(
        TensorType::Tl1,
        (256, 768),
        TileShape { rows: 128, cols: 64, group_rows: 64 },
        npy(include_bytes!("data/tl1_M256_K768_BM128_BK64_bm64.w_i8.npy")),
        npy(include_bytes!("data/tl1_M256_K768_BM128_BK64_bm64.packed.npy")),
    );
}

#[test]
fn tl2_packed_by_bitnet_cpp_unpacks_and_packs_bit_for_bit() {
    let tile = TileShape { rows: 128, cols: 96, group_rows: 32 };
    check_tiles(
        TensorType::Tl2,
        (128, 256),
        tile,
        npy(include_bytes!("data/tl2_M128_K256.w_i8.npy")),
        npy(include_bytes!("data/tl2_M128_K256.packed.npy")),
    );
    check_tiles(
        TensorType::Tl2,
        (256, 768),
        tile,
        npy(include_bytes!("data/tl2_M256_K768.w_i8.npy")),
        npy(include_bytes!("data/tl2_M256_K768.packed.npy")),
    );
}
