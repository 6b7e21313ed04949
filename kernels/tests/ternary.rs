//! Ternary linear layers: every ISA against a plain sum, and against vectors of bitnet.cpp.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::ops::Range;
use std::path::{Path, PathBuf};

use kernels::ternary::{
    Activations, Factored, Gating, PanelOrder, PanelScratch, Panels, Product, TernaryMatrix, activation_stride,
    interleave, linear, linear_panels, linear_raw, pack_codes, pack_i2s, packed_bytes, padded_cols, panel_count,
    panel_rows, quantize,
};
use kernels::{Columns, Isa, activation};
use proptest::prelude::*;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

struct Case {
    rows: usize,
    cols: usize,
    codes: Vec<u8>,
    packed: Vec<u8>,
    stride: usize,
    q: Vec<i8>,
    scale: Vec<f32>,
    sum: Vec<i32>,
}

impl Case {
    /// `extreme` puts the largest codes against the largest activations.
    fn new(rows: usize, cols: usize, n: usize, extreme: bool, random: &mut Random) -> Self {
        let codes: Vec<u8> = (0..rows * cols).map(|_| if extreme { 2 } else { random.below(3) as u8 }).collect();
        let mut packed = vec![0; packed_bytes(rows, cols)];
        pack_codes(&codes, cols, &mut packed).unwrap();
        let stride = activation_stride(cols);
        let mut q = vec![0; n * stride];
        for (t, row) in q.chunks_mut(stride).enumerate() {
            let sign = if t % 2 == 0 { -128 } else { 127 };
            row[..cols].fill_with(|| if extreme { sign } else { random.next() as i8 });
        }
        let sum = q.chunks(stride).map(|row| row.iter().map(|&q| i32::from(q)).sum()).collect();
        let scale = (0..n).map(|_| 0.5 + random.below(1000) as f32).collect();
        Self { rows, cols, codes, packed, stride, q, scale, sum }
    }

    fn check(&self, rows: Range<usize>) {
        let matrix = TernaryMatrix::new(&self.packed, self.rows, self.cols, 0.37).unwrap();
        let x = Activations { q: &self.q, stride: self.stride, scale: &self.scale, sum: &self.sum };
        let mut want = Vec::new();
        for q in self.q.chunks(self.stride) {
            for row in rows.clone() {
                let codes = &self.codes[row * self.cols..(row + 1) * self.cols];
                want.push(codes.iter().zip(q).map(|(&w, &q)| (i32::from(w) - 1) * i32::from(q)).sum::<i32>());
            }
        }
        for isa in Isa::available() {
            let what = format!("{} {rows:?} of {}x{}, n {}", isa.name(), self.rows, self.cols, self.sum.len());
            let mut raw = vec![i32::MIN; want.len()];
            linear_raw(isa, matrix, rows.clone(), x, &mut raw);
            assert_eq!(raw, want, "{what}");
            let mut out = vec![f32::NAN; want.len()];
            linear(isa, matrix, rows.clone(), x, &mut out);
            for (i, (out, want)) in out.iter().zip(&want).enumerate() {
                assert_eq!(out.to_bits(), (*want as f32 / self.scale[i / rows.len()] * 0.37).to_bits(), "{what}");
            }
            self.check_panels(isa, matrix, rows.clone(), &out, &what);
        }
    }

    /// Panels must give the bits of rows, write their own columns only, and add or gate as the functions that do so
    /// one by one.
    fn check_panels(&self, isa: Isa, matrix: TernaryMatrix<'_>, rows: Range<usize>, plain: &[f32], what: &str) {
        let (n, width) = (self.sum.len(), padded_cols(self.cols));
        let mut q = vec![1; n * width];
        for index in 0..panel_count(n) {
            let part = panel_rows(n, index);
            let rows = &self.q[part.start * self.stride..];
            interleave(isa, rows, self.stride, (part.len(), n), &mut q[part.start * width..part.end * width]);
        }
        let interleaved = Panels { q: &q, order: PanelOrder::Interleaved, scale: &self.scale, sum: &self.sum };
        let as_they_are = Panels { q: &self.q, order: PanelOrder::Rows { stride: self.stride }, ..interleaved };
        let mut scratch = PanelScratch::new(self.cols, n);
        let (factor, stride) = (1.7, rows.len() + 3);
        let w = Factored { matrix, factor };
        let factored: Vec<f32> = plain.iter().map(|y| y * factor).collect();
        let mut gated = vec![0.0; plain.len()];
        activation::relu2_mul(isa, plain, &factored, &mut gated);
        let mut silu = vec![0.0; plain.len()];
        activation::silu_mul(isa, plain, &factored, &mut silu);
        let gate = Factored { matrix, factor: 1.0 };
        // Only read ahead, whatever it is.
        let next = [0, 16, rows.end, usize::MAX][n % 4];
        let cases = [
            (Product::Plain(w), factored.clone()),
            (Product::Added(w), factored.iter().map(|y| y + 9.5).collect()),
            (Product::Gated { gate, up: w, gating: Gating::SquaredRelu }, gated),
            (Product::Gated { gate, up: w, gating: Gating::Silu }, silu),
        ];
        let orders = [interleaved, as_they_are];
        for (case, ((product, want), x)) in cases.iter().flat_map(|case| orders.map(|x| (case, x))).enumerate() {
            let out = vec![Cell::new(9.5_f32); n * stride];
            linear_panels(isa, *product, rows.clone(), next, x, Columns { cells: &out, stride }, &mut scratch);
            for (t, row) in out.chunks(stride).enumerate() {
                let (own, others) = row.split_at(rows.len());
                for (own, want) in own.iter().zip(&want[t * rows.len()..]) {
                    assert_eq!(own.get().to_bits(), want.to_bits(), "{what}, case {case} row {t}");
                }
                assert!(others.iter().all(|other| other.get() == 9.5), "{what}: columns of others");
            }
        }
    }
}

#[test]
fn every_isa_gives_the_plain_sums_around_tile_shapes() {
    let random = &mut Random(1);
    for rows in [1, 15, 16, 17, 31, 32, 33, 48, 65] {
        for cols in [1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 300] {
            let n = 1 + random.below(6);
            let case = Case::new(rows, cols, n, false, random);
            case.check(0..rows);
            case.check(rows / 16 * 16..rows);
            case.check(0..rows.min(16) - 1);
        }
    }
}

#[test]
fn every_isa_gives_the_plain_sums_for_1_to_70_tokens() {
    let random = &mut Random(2);
    for n in 0..=70 {
        Case::new(53, 200, n, false, random).check(0..53);
    }
}

#[test]
fn panels_by_fields_agree() {
    let random = &mut Random(6);
    for (n, cols) in
        [(5, 1024), (6, 1000), (7, 1024), (8, 1023), (13, 1100), (12, 3456), (9, 3457), (24, 3500), (11, 7000)]
            .into_iter()
            .chain([(14, 1024), (26, 1100), (28, 2048), (29, 2048), (42, 3457), (43, 1024)])
    {
        Case::new(37, cols, n, false, random).check(0..37);
        Case::new(33, cols, n, true, random).check(0..33);
    }
}

/// Each way that many rows of activations are taken, by as few weights as it takes: for processors that are emulated.
#[test]
fn few_weights_by_many_rows_agree() {
    for n in [14, 28, 35, 70] {
        Case::new(35, 264, n, false, &mut Random(9)).check(0..35);
    }
}

#[test]
fn many_row_blocks_agree() {
    Case::new(16 * 40 + 3, 2048, 13, false, &mut Random(3)).check(32..16 * 40 + 3);
}

#[test]
fn activations_that_are_asked_for_ahead_agree() {
    Case::new(35, 2048, 520, false, &mut Random(7)).check(0..35);
}

#[test]
fn many_rows_in_larger_blocks_agree() {
    let random = &mut Random(8);
    for (rows, cols, n) in [(35, 5200, 256), (69, 2700, 260), (33, 2624, 255)] {
        Case::new(rows, cols, n, false, random).check(0..rows);
    }
    Case::new(33, 5200, 256, true, random).check(0..33);
}

#[test]
fn largest_codes_and_activations_do_not_wrap() {
    for (cols, n) in [
        (4096, 2),
        (6912, 5),
        (6912, 8),
        (6912, 28),
        (6912, 35),
        (kernels::ternary::COLS_MAX, 1),
        (kernels::ternary::COLS_MAX, 2),
    ] {
        Case::new(3, cols, n, true, &mut Random(4)).check(0..3);
    }
}

#[test]
fn an_empty_row_range_and_no_tokens_write_nothing() {
    let random = &mut Random(5);
    Case::new(32, 64, 3, false, random).check(16..16);
    Case::new(32, 64, 0, false, random).check(0..32);
}

proptest! {
    #[test]
    fn any_shape_and_row_range_agree(
        rows in 1_usize..80,
        cols in 1_usize..700,
        n in 0_usize..14,
        first in 0_usize..5,
        extreme: bool,
        seed: u64,
    ) {
        let first = (16 * first).min(rows / 16 * 16);
        let random = &mut Random(seed);
        Case::new(rows, cols, n, extreme, random).check(first..rows - random.below(rows - first + 1));
    }
}

/// Little-endian values of a version 1 `.npy` file.
fn npy<const N: usize>(folder: &Path, name: &str) -> Option<Vec<[u8; N]>> {
    let bytes = std::fs::read(folder.join(name)).ok()?;
    assert_eq!(bytes[..8], *b"\x93NUMPY\x01\x00", "{name}");
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    Some(bytes[data..].as_chunks().0.to_vec())
}

fn check_vectors(folder: &Path, k: &str) {
    const ROWS: usize = 8;
    const TOKENS: usize = 5;
    let file = |part: &str| format!("i2s_{k}.{part}.npy");
    let f32s = |part| npy(folder, &file(part)).map(|v| v.into_iter().map(f32::from_le_bytes).collect::<Vec<_>>());
    let i32s = |part| npy(folder, &file(part)).unwrap().into_iter().map(i32::from_le_bytes).collect::<Vec<_>>();

    let data: Vec<u8> = npy(folder, &file("packed")).unwrap().into_iter().map(u8::from_le_bytes).collect();
    let act: Vec<i8> = npy(folder, &file("act_i8")).unwrap().into_iter().map(i8::from_le_bytes).collect();
    let (scale, sum) = (f32s("act_scale").unwrap(), i32s("act_sum"));
    let cols = act.len() / TOKENS;
    assert_eq!(padded_cols(cols), cols);

    let (codes, tail) = data.split_at(ROWS * cols / 4);
    let wscale = f32::from_le_bytes(tail[..4].try_into().unwrap());
    let mut packed = vec![0; packed_bytes(ROWS, cols)];
    pack_i2s(codes, 0..ROWS, cols, &mut packed).unwrap();
    let matrix = TernaryMatrix::new(&packed, ROWS, cols, wscale).unwrap();

    let (exact, kernel, want) = (i32s("raw_exact_i32"), f32s("raw_kernel").unwrap(), f32s("out_f32").unwrap());
    for isa in Isa::available() {
        if let Some(x) = f32s("x_f32") {
            for (t, x) in x.chunks(cols).enumerate() {
                let mut q = vec![0; cols];
                let found = quantize(isa, x, &mut q);
                assert_eq!(q, act[t * cols..(t + 1) * cols], "{k} {}", isa.name());
                assert_eq!((found.scale.to_bits(), found.sum), (scale[t].to_bits(), sum[t]));
            }
        }
        let x = Activations { q: &act, stride: cols, scale: &scale, sum: &sum };
        let (mut raw, mut out) = (vec![0; ROWS * TOKENS], vec![0.0; ROWS * TOKENS]);
        linear_raw(isa, matrix, 0..ROWS, x, &mut raw);
        linear(isa, matrix, 0..ROWS, x, &mut out);
        for i in 0..ROWS * TOKENS {
            assert_eq!(raw[i] + sum[i / ROWS], exact[i], "{k} {}", isa.name());
            // bitnet.cpp's AVX2 kernel wraps 16-bit sums in the overflow vectors: there only the integers are right.
            if exact[i] as f32 == kernel[i] {
                assert_eq!(out[i].to_bits(), want[i].to_bits(), "{k} {}", isa.name());
            }
        }
    }
}

#[test]
fn vectors_of_bitnet_cpp_are_reproduced() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/i2s");
    for k in ["K128", "K256", "K4096_ovf"] {
        check_vectors(&folder, k);
    }
}

#[test]
fn all_oracle_vectors_are_reproduced() {
    #[expect(clippy::disallowed_methods, reason = "a test against data outside the repository")]
    let Some(folder) = std::env::var_os("KERNELS_ORACLE_DIR") else {
        eprintln!("skipped: KERNELS_ORACLE_DIR does not name the folder of the i2s_*.npy vectors");
        return;
    };
    for k in ["K128", "K256", "K384", "K2560", "K4096", "K4096_ovf", "K4224", "K6912", "K6912_ovf"] {
        check_vectors(Path::new(&folder), k);
    }
}
