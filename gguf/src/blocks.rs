//! Rows of block types to f32 and back; layouts are those of ggml's block structures, little endian.
//!
//! | type  | elements | bytes | layout |
//! |-------|------|-----|------------------------------------------------------------------------|
//! | Q4_0  | 32   | 18  | f16 d; 16 bytes: element j in the low, j + 16 in the high nibble; d (q - 8) |
//! | Q8_0  | 32   | 34  | f16 d; 32 i8; d q |
//! | Q6_K  | 256  | 210 | 128 bytes of low, 64 of high bits, 16 i8 scales s, f16 d (q6_k.rs); d s (q - 32) |
//! | TQ1_0, TQ2_0 | 256 | 54, 66 | see [`crate::ternary`] |

mod float;
mod q6_k;

pub use float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

use crate::{TensorType, ternary};

/// Why a row cannot be decoded or encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("rows of type {0} cannot be decoded")]
    NotDecodable(&'static str),
    #[error("rows of type {0} cannot be encoded")]
    NotEncodable(&'static str),
    #[error("row of {elements} elements in blocks of {block_elements}")]
    PartialBlock { elements: usize, block_elements: usize },
    #[error("row has {found} bytes, its elements take {wanted}")]
    Bytes { found: usize, wanted: usize },
    #[error("row of {wanted} elements for an output of {found}")]
    Elements { found: usize, wanted: usize },
}

/// Decodes one row of `cols` elements: `bytes` is exactly the row, `out` has `cols` elements.
///
/// Also right for several rows at once, where each is whole blocks. F32, F16, BF16, Q4_0, Q8_0, Q6_K, TQ1_0 and TQ2_0.
pub fn dequantize_row(kind: TensorType, bytes: &[u8], cols: usize, out: &mut [f32]) -> Result<(), RowError> {
    if out.len() != cols {
        return Err(RowError::Elements { found: out.len(), wanted: cols });
    }
    check_row(kind, bytes.len(), cols)?;
    match kind {
        TensorType::F32 => convert(bytes, out, f32::from_le_bytes),
        TensorType::F16 => convert(bytes, out, |half| f16_to_f32(u16::from_le_bytes(half))),
        TensorType::BF16 => convert(bytes, out, |half| bf16_to_f32(u16::from_le_bytes(half))),
        TensorType::Q4_0 => each_block(bytes, out, q4_0_decode),
        TensorType::Q8_0 => each_block(bytes, out, q8_0_decode),
        TensorType::Q6_K => each_block(bytes, out, q6_k::decode),
        TensorType::Tq1_0 => each_block(bytes, out, |block, out| ternary_decode(ternary::tq1_0_block, block, out)),
        TensorType::Tq2_0 => each_block(bytes, out, |block, out| ternary_decode(ternary::tq2_0_block, block, out)),
        _ => return Err(RowError::NotDecodable(kind.name())),
    }
    Ok(())
}

/// Encodes one row; `out` is exactly as long as the row. F32, F16, BF16, Q8_0 and Q6_K.
///
/// Q8_0 gives the bytes of ggml's reference. Q6_K picks the scale of each 16 elements by least squares.
pub fn quantize_row(kind: TensorType, row: &[f32], out: &mut [u8]) -> Result<(), RowError> {
    check_row(kind, out.len(), row.len())?;
    match kind {
        TensorType::F32 => convert_back(row, out, f32::to_le_bytes),
        TensorType::F16 => convert_back(row, out, |value| f32_to_f16(value).to_le_bytes()),
        TensorType::BF16 => convert_back(row, out, |value| f32_to_bf16(value).to_le_bytes()),
        TensorType::Q8_0 => each_block_back(row, out, q8_0_encode),
        TensorType::Q6_K => each_block_back(row, out, q6_k::encode),
        _ => return Err(RowError::NotEncodable(kind.name())),
    }
    Ok(())
}

/// Refuses unless `elements` are whole blocks of `kind` and take `bytes` bytes.
pub(crate) fn check_row(kind: TensorType, bytes: usize, elements: usize) -> Result<(), RowError> {
    let (block_elements, block_bytes) = (kind.block_elements() as usize, kind.block_bytes() as usize);
    if block_elements == 0 {
        return Err(RowError::NotDecodable(kind.name()));
    }
    if !elements.is_multiple_of(block_elements) {
        return Err(RowError::PartialBlock { elements, block_elements });
    }
    // The elements are in memory as at least one byte each and no block is larger than 8 bytes an element.
    let wanted = (elements / block_elements).saturating_mul(block_bytes);
    if bytes == wanted { Ok(()) } else { Err(RowError::Bytes { found: bytes, wanted }) }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (value, &element) in out.iter_mut().zip(bytes.as_chunks().0) {
        *value = decode(element);
    }
}

fn convert_back<const N: usize>(row: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for (element, &value) in out.as_chunks_mut().0.iter_mut().zip(row) {
        *element = encode(value);
    }
}

fn each_block<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

fn each_block_back<const BYTES: usize, const ELEMENTS: usize>(
    row: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; ELEMENTS], &mut [u8; BYTES]),
) {
    for (values, block) in row.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        encode(values, block);
    }
}

fn q4_0_decode(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    for (j, &pair) in block[2..].iter().enumerate() {
        out[j] = d * (f32::from(pair & 15) - 8.0);
        out[j + 16] = d * (f32::from(pair >> 4) - 8.0);
    }
}

fn q8_0_decode(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    for (value, &q) in out.iter_mut().zip(&block[2..]) {
        *value = d * f32::from(q.cast_signed());
    }
}

fn q8_0_encode(values: &[f32; 32], block: &mut [u8; 34]) {
    let magnitude_max = values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let d = magnitude_max / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    block[..2].copy_from_slice(&f32_to_f16(d).to_le_bytes());
    for (q, value) in block[2..].iter_mut().zip(values) {
        *q = ((value * inverse).round() as i8).cast_unsigned();
    }
}

fn ternary_decode<const BYTES: usize>(
    unpack: impl Fn(&[u8; BYTES], &mut [u8; 256]) -> f32,
    block: &[u8; BYTES],
    out: &mut [f32; 256],
) {
    let mut codes = [0; 256];
    let d = unpack(block, &mut codes);
    for (value, &code) in out.iter_mut().zip(&codes) {
        *value = d * (f32::from(code) - 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 24) as f32
        };
        (0..count).map(|_| (next() + next() + next() + next() - 2.0) * 0.3).collect()
    }

    /// Relative RMS error of an encoded and decoded row.
    fn round_trip_error(kind: TensorType, row: &[f32]) -> f32 {
        let bytes = row.len() / kind.block_elements() as usize * kind.block_bytes() as usize;
        let (mut packed, mut back) = (vec![0; bytes], vec![0.0; row.len()]);
        quantize_row(kind, row, &mut packed).unwrap();
        dequantize_row(kind, &packed, row.len(), &mut back).unwrap();
        let error: f32 = row.iter().zip(&back).map(|(a, b)| (a - b) * (a - b)).sum();
        (error / row.iter().map(|a| a * a).sum::<f32>()).sqrt()
    }

    #[test]
    fn encoded_rows_come_back_within_the_precision_of_their_type() {
        let row = noise(7, 4096);
        assert_eq!(round_trip_error(TensorType::F32, &row), 0.0);
        for (kind, limit) in
            [(TensorType::F16, 3e-4), (TensorType::BF16, 2.5e-3), (TensorType::Q8_0, 6e-3), (TensorType::Q6_K, 2e-2)]
        {
            let error = round_trip_error(kind, &row);
            assert!(error > 0.0 && error < limit, "{}: {error}", kind.name());
        }
    }

    #[test]
    fn rows_of_zeros_stay_zero() {
        for kind in [TensorType::Q8_0, TensorType::Q6_K] {
            let bytes = 512 / kind.block_elements() as usize * kind.block_bytes() as usize;
            let (mut packed, mut back) = (vec![0xff; bytes], vec![1.0; 512]);
            quantize_row(kind, &[0.0; 512], &mut packed).unwrap();
            dequantize_row(kind, &packed, 512, &mut back).unwrap();
            assert!(back.iter().all(|&value| value == 0.0), "{}", kind.name());
        }
    }

    #[test]
    fn q4_0_elements_lie_half_a_block_apart() {
        let mut block = [0u8; 18];
        block[..2].copy_from_slice(&f32_to_f16(0.5).to_le_bytes());
        block[2..].fill(0x88);
        block[2 + 3] = 0xf1;
        let mut out = [1.0; 32];
        dequantize_row(TensorType::Q4_0, &block, 32, &mut out).unwrap();
        assert_eq!((out[3], out[19]), (-3.5, 3.5));
        assert_eq!(out.iter().filter(|&&value| value != 0.0).count(), 2);
    }

    #[test]
    fn rows_of_wrong_length_or_type_are_refused() {
        let mut out = [0.0; 32];
        assert_eq!(
            dequantize_row(TensorType::Q8_0, &[0; 33], 32, &mut out),
            Err(RowError::Bytes { found: 33, wanted: 34 })
        );
        assert_eq!(
            dequantize_row(TensorType::Q8_0, &[0; 34], 31, &mut out[..31]),
            Err(RowError::PartialBlock { elements: 31, block_elements: 32 })
        );
        assert_eq!(
            dequantize_row(TensorType::F32, &[0; 128], 33, &mut out),
            Err(RowError::Elements { found: 32, wanted: 33 })
        );
        assert_eq!(dequantize_row(TensorType::Tl2, &[], 0, &mut []), Err(RowError::NotDecodable("TL2")));
        let q4_k = TensorType::from_id(12).unwrap();
        assert_eq!(dequantize_row(q4_k, &[0; 144], 256, &mut [0.0; 256]), Err(RowError::NotDecodable("Q4_K")));
        assert_eq!(quantize_row(TensorType::Q4_0, &[0.0; 32], &mut [0; 18]), Err(RowError::NotEncodable("Q4_0")));
    }
}
