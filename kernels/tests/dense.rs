//! Dense linear layers: every ISA against the definition, bit for bit.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kernels::Isa;
use kernels::dense::{DenseKind, DenseMatrix, DenseScratch, dequantize_row, linear};

const KINDS: [DenseKind; 6] =
    [DenseKind::F32, DenseKind::F16, DenseKind::Bf16, DenseKind::Q8_0, DenseKind::Q6K, DenseKind::Q4_0];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1 .. 1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / f32::from(1_u16 << 12).powi(2) * 2.0 - 1.0
    }

    /// A finite half of magnitude 2^-11 to 1, with a subnormal or zero here and there.
    fn half(&mut self) -> u16 {
        let bits = self.next() as u16;
        if self.next().is_multiple_of(16) { bits & 0x83ff } else { bits & 0x83ff | (4 + bits % 11) << 10 }
    }
}

/// Bytes of one row, any finite content.
fn row(kind: DenseKind, cols: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..kind.row_bytes(cols)).map(|_| random.next() as u8).collect();
    match kind {
        DenseKind::F32 => bytes.chunks_mut(4).for_each(|b| b.copy_from_slice(&random.float().to_le_bytes())),
        DenseKind::Bf16 => bytes.chunks_mut(2).for_each(|b| b.copy_from_slice(&random.float().to_le_bytes()[2..])),
        DenseKind::F16 => bytes.chunks_mut(2).for_each(|b| b.copy_from_slice(&random.half().to_le_bytes())),
        DenseKind::Q8_0 | DenseKind::Q4_0 => {
            bytes.chunks_mut(kind.block_bytes()).for_each(|b| b[..2].copy_from_slice(&random.half().to_le_bytes()));
        }
        DenseKind::Q6K => bytes.chunks_mut(210).for_each(|b| b[208..].copy_from_slice(&random.half().to_le_bytes())),
    }
    bytes
}

fn half(bytes: &[u8]) -> f32 {
    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    let magnitude =
        if exponent == 0 { mantissa * 2_f32.powi(-24) } else { (1024.0 + mantissa) * 2_f32.powi(exponent - 25) };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// Element `k` as ggml's reference dequantisers define it.
fn element(kind: DenseKind, row: &[u8], k: usize) -> f32 {
    let block = &row[k / kind.block_cols() * kind.block_bytes()..][..kind.block_bytes()];
    let i = k % kind.block_cols();
    match kind {
        DenseKind::F32 => f32::from_le_bytes(block.try_into().unwrap()),
        DenseKind::F16 => half(block),
        DenseKind::Bf16 => f32::from_le_bytes([0, 0, block[0], block[1]]),
        DenseKind::Q8_0 => half(block) * f32::from(block[2 + i].cast_signed()),
        DenseKind::Q4_0 => half(block) * (f32::from(block[2 + i % 16] >> (i / 16 * 4) & 15) - 8.0),
        DenseKind::Q6K => {
            let (half_block, j, l) = (i / 128, i % 128 / 32, i % 32);
            let nibble = block[64 * half_block + 32 * (j % 2) + l] >> (j / 2 * 4) & 15;
            let pair = block[128 + 32 * half_block + l] >> (2 * j) & 3;
            let scale = f32::from(block[192 + i / 16].cast_signed());
            (half(&block[208..]) * scale) * (f32::from(pair << 4 | nibble) - 32.0)
        }
    }
}

fn definition(weights: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for (k, (w, x)) in weights.iter().zip(x).enumerate() {
        lanes[k % 16] = w.mul_add(*x, lanes[k % 16]);
    }
    let eight: Vec<f32> = (0..8).map(|l| lanes[l] + lanes[l + 8]).collect();
    let four: Vec<f32> = (0..4).map(|l| eight[l] + eight[l + 4]).collect();
    (four[0] + four[2]) + (four[1] + four[3])
}

fn check(kind: DenseKind, rows: usize, cols: usize, tokens: &[usize], scratch: &mut DenseScratch) {
    let random = &mut Random((rows * 1000 + cols) as u64);
    let bytes: Vec<u8> = (0..rows).flat_map(|_| row(kind, cols, random)).collect();
    // Off by one from any alignment.
    let shifted: Vec<u8> = std::iter::once(0).chain(bytes).collect();
    let matrix = DenseMatrix::new(kind, &shifted[1..], rows, cols).unwrap();
    let weights: Vec<Vec<f32>> = shifted[1..]
        .chunks(kind.row_bytes(cols))
        .map(|row| (0..cols).map(|k| element(kind, row, k)).collect())
        .collect();
    for isa in Isa::available() {
        for (row, weights) in weights.iter().enumerate() {
            let mut out = vec![f32::NAN; cols];
            dequantize_row(isa, matrix, row, &mut out);
            assert_eq!(out, *weights, "{kind:?} {} row {row} of {rows}x{cols}", isa.name());
        }
    }
    for &n in tokens {
        let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
        for range in [0..rows, rows / 3..rows, rows..rows] {
            let want: Vec<u32> = x
                .chunks(cols)
                .flat_map(|x| weights[range.clone()].iter().map(|w| definition(w, x).to_bits()).collect::<Vec<_>>())
                .collect();
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; want.len()];
                linear(isa, matrix, range.clone(), &x, &mut out, scratch);
                let got: Vec<u32> = out.iter().map(|y| y.to_bits()).collect();
                assert_eq!(got, want, "{kind:?} {} {range:?} of {rows}x{cols}, n {n}", isa.name());
            }
        }
    }
}

#[test]
fn every_isa_gives_the_defined_bits_around_tile_shapes() {
    let scratch = &mut DenseScratch::default();
    for kind in KINDS {
        let block = kind.block_cols();
        let widths: &[usize] = if block == 1 { &[1, 15, 16, 17, 33, 100, 511, 512, 513] } else { &[1, 2, 3, 5, 17] };
        for &width in widths {
            for rows in [1, 3, 4, 5, 7, 8, 9, 13] {
                check(kind, rows, width * block, &[0, 1, 2, 3], scratch);
            }
        }
    }
}

#[test]
fn every_isa_gives_the_defined_bits_for_1_to_40_tokens() {
    let scratch = &mut DenseScratch::new(40);
    for kind in KINDS {
        let cols = if kind.block_cols() == 1 { 50 } else { kind.block_cols() };
        check(kind, 13, cols, &(1..=40).collect::<Vec<_>>(), scratch);
    }
}
