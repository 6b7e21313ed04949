//! Skipping rows and columns: every ISA gives what the product with everything gives.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kernels::Isa;
use kernels::ternary::{
    Activations, ColumnMatrix, LiveColumns, RowActivations, RowMatrix, TernaryMatrix, column_bytes, linear,
    linear_columns, linear_rows, pack_codes, pack_columns, pack_rows, packed_bytes, padded_cols, permute_row,
    permuted_cols, row_bytes,
};
use proptest::prelude::{Just, any, prop, prop_oneof, proptest};

struct Case {
    rows: usize,
    cols: usize,
    packed: Vec<u8>,
    q: Vec<i8>,
    want: Vec<f32>,
}

const SCALE: f32 = 3.25;

impl Case {
    fn new((rows, cols): (usize, usize), code: impl Fn(usize) -> u8, q: impl Fn(usize) -> i8) -> Self {
        let codes: Vec<u8> = (0..rows * cols).map(code).collect();
        let mut packed = vec![0; packed_bytes(rows, cols)];
        pack_codes(&codes, cols, &mut packed).unwrap();
        let q: Vec<i8> = (0..padded_cols(cols)).map(|k| if k < cols { q(k) } else { 0 }).collect();
        let want = codes
            .chunks_exact(cols)
            .map(|codes| {
                let sum: i32 = codes.iter().zip(&q).map(|(&w, &q)| (i32::from(w) - 1) * i32::from(q)).sum();
                sum as f32 / SCALE * 0.5
            })
            .collect();
        Self { rows, cols, packed, q, want }
    }

    fn sum(&self) -> i32 {
        self.q.iter().map(|&q| i32::from(q)).sum()
    }

    fn matrix(&self) -> TernaryMatrix<'_> {
        TernaryMatrix::new(&self.packed, self.rows, self.cols, 0.5).unwrap()
    }

    fn check_all(&self) {
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; self.rows];
            let x = Activations { q: &self.q, stride: self.q.len(), scale: &[SCALE], sum: &[self.sum()] };
            linear(isa, self.matrix(), 0..self.rows, x, &mut out);
            assert_eq!(out, self.want, "{isa:?} {}x{}", self.rows, self.cols);
        }
    }

    /// Rows `first ..` of which those are wanted for which `live` says so.
    fn check_rows(&self, first: usize, live: impl Fn(usize) -> bool) {
        let mut bytes = vec![0xff; row_bytes(self.rows, self.cols)];
        pack_rows(self.matrix(), &mut bytes);
        let w = RowMatrix::new(&bytes, self.rows, self.cols, 0.5).unwrap();
        let mut q = vec![99; permuted_cols(self.cols)];
        permute_row(&self.q[..self.cols], &mut q);
        let x = RowActivations { q: &q, scale: SCALE, sum: self.sum() };
        let len = self.rows - first;
        let list: Vec<u32> = (0..len).filter(|&row| live(row)).map(|row| row as u32).collect();
        let want: Vec<f32> = (0..len).map(|i| if live(i) { self.want[first + i] } else { -77.0 }).collect();
        for isa in Isa::available() {
            let mut out = vec![-77.0; len];
            linear_rows(isa, w, first, &list, x, &mut out);
            assert_eq!(out, want, "{isa:?} {}x{} from {first}", self.rows, self.cols);
        }
    }

    fn check_columns(&self, lines: usize) {
        let mut bytes = vec![0xff; column_bytes(self.rows, self.cols, lines)];
        pack_columns(self.matrix(), lines, &mut bytes);
        let w = ColumnMatrix::new(&bytes, self.rows, self.cols, lines, 0.5).unwrap();
        let mut live = LiveColumns::with_capacity(self.cols);
        // What an earlier row left must not matter.
        live.find(&vec![3; self.cols]);
        live.find(&self.q[..self.cols]);
        assert_eq!(live.count(), self.q.iter().filter(|&&q| q != 0).count());
        for isa in Isa::available() {
            for start in (0..self.rows).step_by(w.block_rows()) {
                for end in [self.rows, self.rows.min(start + w.block_rows()), (start + 1).min(self.rows)] {
                    let mut out = vec![f32::NAN; end - start];
                    linear_columns(isa, w, start..end, &live, (SCALE, self.sum()), &mut out);
                    assert_eq!(out, self.want[start..end], "{isa:?} {}x{} / {lines}", self.rows, self.cols);
                }
            }
        }
    }

    fn check(&self) {
        self.check_all();
        for first in [0, self.rows / 2, self.rows - 1, self.rows] {
            self.check_rows(first, |_| true);
            self.check_rows(first, |_| false);
            self.check_rows(first, |row| row % 3 == 1);
        }
        for lines in [1, 2, 3] {
            self.check_columns(lines);
        }
    }
}

/// A number that looks random, from two.
fn mix(seed: u64, i: usize) -> u64 {
    let mut z = seed.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn case(shape: (usize, usize), seed: u64, live_percent: u64) -> Case {
    let q = |k| if mix(seed ^ 1, k) % 100 < live_percent { mix(seed ^ 2, k) as i8 } else { 0 };
    Case::new(shape, |i| (mix(seed, i) >> 20) as u8 % 3, q)
}

#[test]
fn shapes_around_lines_and_blocks_agree() {
    for rows in [1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 513] {
        for cols in [1, 3, 4, 5, 63, 64, 65, 128, 255, 256, 257, 320] {
            case((rows, cols), (rows * cols) as u64, 40).check();
        }
    }
}

#[test]
fn no_column_one_column_and_all_columns_count() {
    for cols in [1, 7, 300] {
        for live in [0, 1, 100] {
            case((270, cols), 9, live).check();
        }
        for k in [0, cols / 2, cols - 1] {
            Case::new((40, cols), |i| (i % 3) as u8, |column| if column == k { -128 } else { 0 }).check();
        }
    }
}

#[test]
fn extremes_do_not_wrap() {
    for q in [-128, 127] {
        Case::new((20, 6912), |_| 2, |_| q).check();
        Case::new((2, kernels::ternary::COLUMN_COLS_MAX), |_| 2, |_| q).check();
    }
}

#[test]
fn forms_of_other_lengths_are_refused() {
    assert!(RowMatrix::new(&[0; 64], 1, 257, 1.0).is_err());
    assert!(RowMatrix::new(&[0; 128], 1, 257, 1.0).is_ok());
    assert!(ColumnMatrix::new(&[0; 64], 257, 1, 1, 1.0).is_err());
    assert!(ColumnMatrix::new(&[0; 128], 257, 1, 1, 1.0).is_ok());
    assert!(ColumnMatrix::new(&[], 0, kernels::ternary::COLUMN_COLS_MAX + 1, 1, 1.0).is_err());
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn any_shape_and_any_share_agree(
        rows in 1_usize..600,
        cols in 1_usize..900,
        seed in any::<u64>(),
        live in prop_oneof![Just(0), Just(100), 1_u64..100],
        lines in 1_usize..4,
        picked in prop::collection::vec(any::<bool>(), 600),
    ) {
        let case = case((rows, cols), seed, live);
        case.check_all();
        case.check_rows(rows / 3, |row| picked[row]);
        case.check_columns(lines);
    }
}
