//! Ternary tensor data: packed bytes to codes and back.
//!
//! A code is the weight plus one: 0, 1, 2 for -1, 0, +1. Two-bit layouts can hold a code 3, which means nothing in a
//! sound file; [`has_code3`] finds it.
//!
//! **I2_S** (bitnet.cpp): the flat row-major index is cut in blocks of 128 elements in 32 bytes; element j of a block is
//! in byte j % 32 at bit 6 - 2 (j / 32). After all blocks come one f32 scale and 28 unused bytes. Rows whose length
//! is no multiple of 128 share blocks.
//!
//! **TL1** and **TL2** (bitnet.cpp): see [`Tiled`].
//!
//! **TQ2_0** (ggml): 256 elements in 64 bytes, then an f16 scale; element 128 h + 32 r + l is in byte 32 h + l at bit 2 r.
//!
//! **TQ1_0** (ggml): 256 elements in 52 bytes, then an f16 scale. A byte holds five base 3 digits (the last four bytes
//! four), first element most significant, as the fraction digits / 243 of 256, rounded up. Bytes 0..32 hold elements
//! 32 n + m, bytes 32..48 elements 160 + 16 n + m, bytes 48..52 elements 240 + 4 n + m for digit n of byte m.

mod table;
mod tiles;

pub use table::{INI_BYTES_MAX, TILES_KEY, TableError, TileTable};
pub use tiles::{BAND_ROWS, TileError, TileShape, Tiled};

use crate::TensorType;
use crate::blocks::{RowError, check_row, f16_to_f32, f32_to_f16};

/// Elements of an I2_S block.
pub const I2S_BLOCK_ELEMENTS: usize = 128;
/// Bytes of an I2_S block.
pub const I2S_BLOCK_BYTES: usize = 32;
/// Bytes behind the blocks of an I2_S tensor: f32 scale and 28 unused ones.
pub const I2S_TAIL_BYTES: usize = 32;
/// Elements of a TQ1_0 or TQ2_0 block.
pub const TQ_BLOCK_ELEMENTS: usize = 256;

/// Unpacks the codes of elements `first_element..first_element + out.len()` of an I2_S tensor, by flat index.
///
/// Row r of K columns starts at element r * K, whatever K is. Codes are 0 to 3.
///
/// # Panics
/// If `bytes` does not hold these elements.
pub fn i2s_codes(bytes: &[u8], first_element: usize, out: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks::<I2S_BLOCK_BYTES>();
    let mut blocks = blocks[first_element / I2S_BLOCK_ELEMENTS..].iter();
    let mut next = || blocks.next().expect("bytes hold the elements asked for");
    let mut whole = [0; I2S_BLOCK_ELEMENTS];
    let skipped = first_element % I2S_BLOCK_ELEMENTS;
    let head = if skipped == 0 { 0 } else { out.len().min(I2S_BLOCK_ELEMENTS - skipped) };
    let (head, rest) = out.split_at_mut(head);
    if !head.is_empty() {
        i2s_block(next(), &mut whole);
        head.copy_from_slice(&whole[skipped..skipped + head.len()]);
    }
    let (body, tail) = rest.as_chunks_mut::<I2S_BLOCK_ELEMENTS>();
    for out in body {
        i2s_block(next(), out);
    }
    if !tail.is_empty() {
        i2s_block(next(), &mut whole);
        tail.copy_from_slice(&whole[..tail.len()]);
    }
}

#[inline]
fn i2s_block(block: &[u8; I2S_BLOCK_BYTES], out: &mut [u8; I2S_BLOCK_ELEMENTS]) {
    let (quarters, _) = out.as_chunks_mut::<I2S_BLOCK_BYTES>();
    for (quarter, out) in quarters.iter_mut().enumerate() {
        for (code, &byte) in out.iter_mut().zip(block) {
            *code = (byte >> (6 - 2 * quarter)) & 3;
        }
    }
}

/// The packed codes of an I2_S tensor of `elements` elements, without the tail.
///
/// # Panics
/// If `bytes` is shorter.
pub fn i2s_packed(bytes: &[u8], elements: usize) -> &[u8] {
    &bytes[..elements / 4]
}

/// The scale of an I2_S tensor of `elements` elements; not checked to be finite.
///
/// # Panics
/// If `bytes` ends before the scale.
pub fn i2s_scale(bytes: &[u8], elements: usize) -> f32 {
    f32::from_le_bytes(*bytes[elements / 4..].first_chunk().expect("the tail holds the scale"))
}

/// Packs a whole I2_S tensor; `out` has `codes.len() / 4 + 32` bytes.
///
/// # Panics
/// If the codes are not whole blocks or `out` is not of that length.
pub fn i2s_pack(codes: &[u8], scale: f32, out: &mut [u8]) {
    let (packed, tail) = out.split_at_mut(codes.len() / 4);
    i2s_pack_codes(codes, packed);
    tail.copy_from_slice(&i2s_tail(scale));
}

/// Packs whole I2_S blocks, a piece of a tensor; `out` has `codes.len() / 4` bytes. Codes above 3 lose their high bits.
///
/// # Panics
/// If the codes are not whole blocks or `out` is not of that length.
pub fn i2s_pack_codes(codes: &[u8], out: &mut [u8]) {
    let (blocks, rest) = codes.as_chunks::<I2S_BLOCK_ELEMENTS>();
    let (packed, packed_rest) = out.as_chunks_mut::<I2S_BLOCK_BYTES>();
    assert!(
        rest.is_empty() && packed_rest.is_empty() && blocks.len() == packed.len(),
        "whole blocks, a quarter as long"
    );
    for (codes, packed) in blocks.iter().zip(packed) {
        *packed = [0; I2S_BLOCK_BYTES];
        for quarter in codes.as_chunks::<I2S_BLOCK_BYTES>().0 {
            for (byte, code) in packed.iter_mut().zip(quarter) {
                *byte = (*byte << 2) | (code & 3);
            }
        }
    }
}

/// What follows the blocks of an I2_S tensor.
pub fn i2s_tail(scale: f32) -> [u8; I2S_TAIL_BYTES] {
    let mut tail = [0; I2S_TAIL_BYTES];
    tail[..4].copy_from_slice(&scale.to_le_bytes());
    tail
}

/// True if any of the two-bit codes packed in `packed` is 3, whatever their order. Give it no scales.
pub fn has_code3(packed: &[u8]) -> bool {
    packed.chunks(PIECE_BYTES).any(any_three)
}

/// How many of the two-bit codes packed in `packed` are 3; as fast as [`has_code3`] where there are none.
pub fn code3_count(packed: &[u8]) -> u64 {
    let suspects = packed.chunks(PIECE_BYTES).filter(|piece| any_three(piece));
    suspects.flatten().map(|&byte| u64::from(threes(byte).count_ones())).sum()
}

const PIECE_BYTES: usize = 4096;

fn any_three(piece: &[u8]) -> bool {
    piece.iter().fold(0, |any, &byte| any | threes(byte)) != 0
}

/// One bit for each code that is 3.
fn threes(byte: u8) -> u8 {
    byte & (byte >> 1) & 0x55
}

/// Unpacks whole blocks of TQ1_0 or TQ2_0: 256 codes and one scale for each. TQ2_0 codes may be 3.
pub fn tq_unpack(kind: TensorType, bytes: &[u8], codes: &mut [u8], scales: &mut [f32]) -> Result<(), RowError> {
    check_row(kind, bytes.len(), codes.len())?;
    let (codes, _) = codes.as_chunks_mut::<TQ_BLOCK_ELEMENTS>();
    if codes.len() != scales.len() {
        return Err(RowError::Elements { found: scales.len(), wanted: codes.len() });
    }
    let outs = codes.iter_mut().zip(scales);
    match kind {
        TensorType::Tq1_0 => {
            for (block, (codes, scale)) in bytes.as_chunks().0.iter().zip(outs) {
                *scale = tq1_0_block(block, codes);
            }
        }
        TensorType::Tq2_0 => {
            for (block, (codes, scale)) in bytes.as_chunks().0.iter().zip(outs) {
                *scale = tq2_0_block(block, codes);
            }
        }
        _ => return Err(RowError::NotDecodable(kind.name())),
    }
    Ok(())
}

/// Packs whole blocks of TQ1_0 or TQ2_0, the inverse of [`tq_unpack`]; scales are rounded to f16, codes are 0 to 2.
pub fn tq_pack(kind: TensorType, codes: &[u8], scales: &[f32], out: &mut [u8]) -> Result<(), RowError> {
    check_row(kind, out.len(), codes.len())?;
    let (codes, _) = codes.as_chunks::<TQ_BLOCK_ELEMENTS>();
    if codes.len() != scales.len() {
        return Err(RowError::Elements { found: scales.len(), wanted: codes.len() });
    }
    let blocks = codes.iter().zip(scales).zip(out.chunks_exact_mut(kind.block_bytes() as usize));
    for ((codes, &scale), block) in blocks {
        let (packed, tail) = block.split_at_mut(block.len() - 2);
        match kind {
            TensorType::Tq1_0 => tq1_0_pack(codes, packed),
            TensorType::Tq2_0 => tq2_0_pack(codes, packed),
            _ => return Err(RowError::NotEncodable(kind.name())),
        }
        tail.copy_from_slice(&f32_to_f16(scale).to_le_bytes());
    }
    Ok(())
}

const POWERS_OF_3: [u8; 5] = [1, 3, 9, 27, 81];
/// First byte, bytes, digits a byte, first element of the three parts of a TQ1_0 block.
const TQ1_0_PARTS: [(usize, usize, usize, usize); 3] = [(0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)];
const TQ1_0_SCALE_AT: usize = 52;
const TQ2_0_SCALE_AT: usize = 64;

/// The codes of one TQ1_0 block, always 0 to 2; its scale.
pub(crate) fn tq1_0_block(block: &[u8; 54], codes: &mut [u8; TQ_BLOCK_ELEMENTS]) -> f32 {
    for (byte_at, bytes, digits, element_at) in TQ1_0_PARTS {
        for (n, power) in POWERS_OF_3[..digits].iter().enumerate() {
            let out = &mut codes[element_at + n * bytes..][..bytes];
            for (code, byte) in out.iter_mut().zip(&block[byte_at..byte_at + bytes]) {
                // Earlier digits overflow out of the fraction; three times what is left has the next one in front.
                *code = ((u16::from(byte.wrapping_mul(*power)) * 3) >> 8) as u8;
            }
        }
    }
    f16_to_f32(u16::from_le_bytes([block[TQ1_0_SCALE_AT], block[TQ1_0_SCALE_AT + 1]]))
}

/// The codes of one TQ2_0 block; its scale.
pub(crate) fn tq2_0_block(block: &[u8; 66], codes: &mut [u8; TQ_BLOCK_ELEMENTS]) -> f32 {
    for (group, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, r) = (group / 4, group % 4);
        for (code, byte) in codes.iter_mut().zip(&block[32 * half..]) {
            *code = (byte >> (2 * r)) & 3;
        }
    }
    f16_to_f32(u16::from_le_bytes([block[TQ2_0_SCALE_AT], block[TQ2_0_SCALE_AT + 1]]))
}

fn tq1_0_pack(codes: &[u8; TQ_BLOCK_ELEMENTS], packed: &mut [u8]) {
    for (byte_at, bytes, digits, element_at) in TQ1_0_PARTS {
        for (m, byte) in packed[byte_at..byte_at + bytes].iter_mut().enumerate() {
            let number: u16 = (0..digits)
                .map(|n| u16::from(codes[element_at + n * bytes + m].min(2)) * u16::from(POWERS_OF_3[4 - n]))
                .sum();
            *byte = (number * 256).div_ceil(243) as u8;
        }
    }
}

fn tq2_0_pack(codes: &[u8; TQ_BLOCK_ELEMENTS], packed: &mut [u8]) {
    packed.fill(0);
    for (group, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for (byte, code) in packed[32 * (group / 4)..].iter_mut().zip(codes) {
            *byte |= (code & 3) << (2 * (group % 4));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(seed: u64, count: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % 3) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn i2s_element_lies_where_the_layout_says() {
        let codes = codes(1, 384);
        let mut packed = vec![0; 384 / 4 + I2S_TAIL_BYTES];
        i2s_pack(&codes, 0.75, &mut packed);
        for (i, &code) in codes.iter().enumerate() {
            let (block, j) = (i / 128, i % 128);
            assert_eq!((packed[block * 32 + j % 32] >> (6 - 2 * (j / 32))) & 3, code, "element {i}");
        }
        assert_eq!(i2s_scale(&packed, 384), 0.75);
    }

    #[test]
    fn i2s_ranges_of_any_start_and_length_unpack_alike() {
        let codes = codes(2, 128 * 5);
        let mut packed = vec![0; codes.len() / 4];
        i2s_pack_codes(&codes, &mut packed);
        for start in (0..codes.len()).step_by(7).chain([127, 128, 129]) {
            for length in [0, 1, 31, 127, 128, 129, 200, 300, codes.len() - start] {
                let length = length.min(codes.len() - start);
                let mut out = vec![9; length];
                i2s_codes(&packed, start, &mut out);
                assert_eq!(out, codes[start..start + length], "{start} + {length}");
            }
        }
    }

    #[test]
    fn rows_of_100_columns_share_blocks() {
        let codes = codes(3, 128 * 25);
        let mut packed = vec![0; codes.len() / 4];
        i2s_pack_codes(&codes, &mut packed);
        for (row, wanted) in codes.chunks(100).enumerate() {
            let mut out = [0; 100];
            i2s_codes(&packed, row * 100, &mut out);
            assert_eq!(out, wanted);
        }
    }

    #[test]
    fn code_3_is_found_wherever_it_is() {
        let mut packed = vec![0b10_01_10_00; 10_000];
        assert!(!has_code3(&packed));
        assert_eq!(code3_count(&packed), 0);
        for (at, shift) in [(0, 0), (4095, 2), (4096, 4), (9999, 6)] {
            packed[at] |= 3 << shift;
            assert!(has_code3(&packed));
            packed[at] = 0b10_01_10_00;
        }
        assert_eq!(code3_count(&[0xff, 0b11_10_01_11]), 6);
    }

    #[test]
    fn ternary_quants_come_back() {
        for kind in [TensorType::Tq1_0, TensorType::Tq2_0] {
            let codes = codes(4, 4 * 256);
            let scales = [0.5, 2.0, 0.25, 1.5];
            let mut packed = vec![0; 4 * kind.block_bytes() as usize];
            tq_pack(kind, &codes, &scales, &mut packed).unwrap();
            let (mut codes_back, mut scales_back) = (vec![9; codes.len()], [0.0; 4]);
            tq_unpack(kind, &packed, &mut codes_back, &mut scales_back).unwrap();
            assert_eq!((codes_back, scales_back), (codes, scales), "{}", kind.name());
        }
    }

    #[test]
    fn every_tq1_0_byte_gives_codes_up_to_2() {
        for byte in 0..=255 {
            let mut codes = [9; 256];
            tq1_0_block(&[byte; 54], &mut codes);
            assert!(codes.iter().all(|&code| code <= 2));
        }
    }

    #[test]
    fn tq_lengths_are_checked() {
        let (mut codes, mut scales) = ([0; 256], [0.0; 2]);
        assert!(tq_unpack(TensorType::Tq1_0, &[0; 53], &mut codes, &mut scales[..1]).is_err());
        assert!(tq_unpack(TensorType::Tq1_0, &[0; 54], &mut codes, &mut scales).is_err());
        assert!(tq_unpack(TensorType::Q6_K, &[0; 210], &mut codes, &mut scales[..1]).is_err());
    }
}
