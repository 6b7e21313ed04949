//! The screen against the full product: whatever the weights and activations, no row that matters is left out, and every
//! ISA finds the same rows.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kernels::Isa;
use kernels::dense::{DenseKind, DenseMatrix, DenseScratch, linear, linear_rows};
use kernels::draw::{Draw, draw};
use kernels::screen::{self, GROUP_ROWS, Precision, ScreenInput, ScreenMatrix, ScreenRows, SelectScratch, Sought};
use proptest::prelude::*;

const PRECISIONS: [Precision; 3] = [Precision::One, Precision::Two, Precision::Outliers];
const RACING: [Precision; 2] = [Precision::Refined, Precision::Raced];

/// A matrix in some kind, and its copy.
struct Head {
    kind: DenseKind,
    bytes: Vec<u8>,
    rows: usize,
    cols: usize,
    copy: Vec<u8>,
    weight_max: f32,
}

impl Head {
    fn new(kind: DenseKind, bytes: Vec<u8>, rows: usize, cols: usize) -> Self {
        let w = DenseMatrix::new(kind, &bytes, rows, cols).unwrap();
        let mut copy = vec![0; screen::packed_bytes(rows, cols)];
        let groups = rows.div_ceil(GROUP_ROWS);
        let (out, greatest) = copy.split_at_mut(groups * screen::group_bytes(cols));
        let weight_max = screen::pack(Isa::detect(), w, 0..groups, out, greatest);
        Self { kind, bytes, rows, cols, copy, weight_max }
    }

    fn of_floats(weights: &[f32], cols: usize) -> Self {
        let bytes = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        Self::new(DenseKind::F32, bytes, weights.len() / cols, cols)
    }

    fn dense(&self) -> DenseMatrix<'_> {
        DenseMatrix::new(self.kind, &self.bytes, self.rows, self.cols).unwrap()
    }

    fn screen(&self) -> Option<ScreenMatrix<'_>> {
        ScreenMatrix::new(&self.copy, &self.dense(), self.weight_max)
    }

    fn full(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / self.cols * self.rows];
        linear(Isa::detect(), self.dense(), 0..self.rows, x, &mut out, &mut DenseScratch::default());
        out
    }

    /// Lower bounds of all rows, computed `step` groups at a time.
    fn lower(&self, isa: Isa, x: &[f32], planes: &[usize], step: usize) -> (Vec<screen::ScreenRow>, Vec<f32>) {
        let screen = self.screen().unwrap();
        let stride = screen::planes_len(self.cols);
        let mut values = vec![0; planes.len() * stride];
        let rows: Vec<_> = (x.chunks(self.cols).zip(values.chunks_mut(stride)).zip(planes))
            .map(|((x, values), planes)| screen::split(isa, x, PRECISIONS[*planes - 1], values))
            .collect();
        let mut all = vec![f32::NAN; planes.len() * self.rows];
        let groups = self.rows.div_ceil(GROUP_ROWS);
        let mut input = ScreenInput::default();
        input.set(isa, self.cols, ScreenRows { planes: &values, rows: &rows });
        for first in (0..groups).step_by(step) {
            let part = first * GROUP_ROWS..self.rows.min((first + step) * GROUP_ROWS);
            let mut out = vec![f32::NAN; planes.len() * part.len()];
            let mut greatest = vec![f32::NAN; planes.len() * (groups.min(first + step) - first)];
            let own = first..groups.min(first + step);
            screen::bounds(isa, screen, (own, first + 2 * step), &mut input, (&mut out, &mut greatest));
            for (all, out) in all.chunks_mut(self.rows).zip(out.chunks(part.len())) {
                all[part.clone()].copy_from_slice(out);
            }
        }
        (rows, all)
    }

    /// What the screen finds for each activation row, after all that must hold of it was checked.
    fn check(&self, x: &[f32], planes: &[usize], count: usize, distance: f32, also: &[u32]) -> Vec<Option<usize>> {
        let full = self.full(x);
        let want = self.lower(Isa::Portable, x, planes, usize::MAX >> 8);
        for isa in Isa::available() {
            for step in [1, 3] {
                let same = bits(&self.lower(isa, x, planes, step).1) == bits(&want.1);
                assert!(same, "{}: other bounds", isa.name());
            }
        }
        let (rows, lower) = want;
        let mut found = vec![u32::MAX; self.rows];
        let mut scratch = SelectScratch::new(self.rows);
        let each = rows.iter().zip(lower.chunks(self.rows)).zip(full.chunks(self.rows)).zip(x.chunks(self.cols));
        each.map(|(((row, lower), full), x)| {
            if full.iter().all(|f| f.is_finite()) && x.iter().all(|x| x.is_finite()) && lower[0].is_finite() {
                for (r, (lower, full)) in lower.iter().zip(full).enumerate() {
                    assert!(lower <= full, "row {r}: the bound {lower} is above {full}");
                }
            }
            let sought = Sought { count, distance, draw: None, also };
            let mut answers = Isa::available().into_iter().map(|isa| {
                let mut bounds = lower.to_vec();
                let screen = self.screen().unwrap();
                let answer = screen::select(isa, screen, row, sought, &mut bounds, &mut found, &mut scratch);
                if answer.is_some() {
                    assert!(bounds.iter().all(|bound| *bound == f32::NEG_INFINITY), "bounds are cleared");
                }
                answer.map(|count| found[..count].to_vec())
            });
            let answer = answers.next().unwrap();
            answers.for_each(|other| assert_eq!(answer, other));
            let found = answer?;
            self.is_enough(&found, x, full, sought);
            self.check_draws(row, lower, full, also);
            Some(found.len())
        })
        .collect()
    }

    /// A draw from what the screen leaves is the draw from everything.
    fn check_draws(&self, row: &screen::ScreenRow, lower: &[f32], full: &[f32], also: &[u32]) {
        let (mut found, mut scratch) = (vec![0; self.rows], SelectScratch::new(self.rows));
        for (position, factor) in [(0, 1.0), (1, 0.25), (2, 40.0), (3, 1e-4)] {
            let drawn = Draw { seed: 5, position, factor };
            let sought = Sought { count: 1, distance: 0.0, draw: Some(drawn), also };
            let mut answers = Isa::available().into_iter().map(|isa| {
                let mut bounds = lower.to_vec();
                let screen = self.screen().unwrap();
                let count = screen::select(isa, screen, row, sought, &mut bounds, &mut found, &mut scratch);
                count.map(|count| found[..count].to_vec())
            });
            let answer = answers.next().unwrap();
            answers.for_each(|other| assert_eq!(answer, other));
            if let Some(found) = answer {
                let mut left = vec![f32::NEG_INFINITY; self.rows];
                for &row in &found {
                    left[row as usize] = full[row as usize];
                }
                assert_eq!(draw(Isa::detect(), drawn, &left), draw(Isa::detect(), drawn, full), "factor {factor}");
            }
        }
    }

    /// What is found for rows that race for what is within `distance`, by the scores of a draw where there is one, where groups
    /// come `step` at a time in the given order, to two threads in turn.
    fn raced(
        &self,
        (isa, precision): (Isa, Precision),
        x: &[f32],
        seek: (Option<Draw>, f32),
        order: &[usize],
        step: usize,
    ) -> Vec<Option<Vec<u32>>> {
        let (screen, stride) = (self.screen().unwrap(), screen::planes_len(self.cols));
        let n = x.len() / self.cols;
        let mut values = vec![0; n * stride];
        let planes = x.chunks(self.cols).zip(values.chunks_mut(stride));
        let rows: Vec<_> = planes.map(|(x, planes)| screen::split(isa, x, precision, planes)).collect();
        let mut inputs = [(); 2].map(|()| {
            let mut input = ScreenInput::default();
            input.set(isa, self.cols, ScreenRows { planes: &values, rows: &rows });
            (0..n).for_each(|t| input.seek(t, seek.0, seek.1));
            input
        });
        let groups = self.rows.div_ceil(GROUP_ROWS);
        let (mut upper, mut greatest) = (vec![f32::NAN; n * self.rows], vec![f32::NAN; n * groups]);
        for (turn, &first) in order.iter().enumerate() {
            let part = first..groups.min(first + step);
            let columns = part.start * GROUP_ROWS..self.rows.min(part.end * GROUP_ROWS);
            let (mut out, mut most) = (vec![f32::NAN; n * columns.len()], vec![f32::NAN; n * part.len()]);
            screen::bounds(isa, screen, (part.clone(), part.end), &mut inputs[turn % 2], (&mut out, &mut most));
            for t in 0..n {
                upper[t * self.rows..][columns.clone()].copy_from_slice(&out[t * columns.len()..][..columns.len()]);
                greatest[t * groups..][part.clone()].copy_from_slice(&most[t * part.len()..][..part.len()]);
                // Now and then one hears what the other knows.
                if turn % 3 == 2 {
                    let known = inputs[0].least(t);
                    inputs[1].learn(t, known);
                }
            }
        }
        let mut found = vec![0; self.rows];
        let each = rows.iter().enumerate().zip(upper.chunks(self.rows).zip(greatest.chunks(groups)));
        each.map(|((t, row), (upper, greatest))| {
            let bound = inputs[0].least(t).max(inputs[1].least(t));
            // A result as well, for every second row.
            let reached = screen::likeliest(upper, greatest).filter(|_| t % 2 == 0).map(|row| {
                let mut value = [0.0];
                linear_rows(isa, self.dense(), &[row], &x[t * self.cols..][..self.cols], &mut value);
                screen::score(seek.0, row, value[0])
            });
            let least = reached.map_or(bound, |score| bound.max(score));
            let count = screen::select_raced(screen, row, (seek.0, seek.1, least), (upper, greatest), &mut found)?;
            Some(found[..count].to_vec())
        })
        .collect()
    }

    /// Rows that race find all that matters, the same whatever the instruction set and the order.
    fn check_raced(&self, precision: Precision, x: &[f32], distance: f32, random: &mut Random) -> Vec<Option<usize>> {
        let full = self.full(x);
        let groups = self.rows.div_ceil(GROUP_ROWS);
        let draws = [None, Some(1.0), Some(0.25), Some(40.0), Some(1e-4)].into_iter().enumerate();
        let mut counts = Vec::new();
        for (position, factor) in draws {
            let drawn = factor.map(|factor| Draw { seed: 5, position: position as u64, factor });
            let seek = (drawn, if drawn.is_some() { 0.0 } else { distance });
            let in_order: Vec<usize> = (0..groups).collect();
            let answers = self.raced((Isa::Portable, precision), x, seek, &in_order, 1);
            for isa in Isa::available() {
                for step in [1, 3] {
                    let mut order: Vec<usize> = (0..groups).step_by(step).collect();
                    (1..order.len()).for_each(|i| order.swap(i, random.next() as usize % (i + 1)));
                    let same = self.raced((isa, precision), x, seek, &order, step) == answers;
                    assert!(same, "{}: other rows by steps of {step}, {drawn:?}", isa.name());
                }
            }
            for ((answer, full), x) in answers.iter().zip(full.chunks(self.rows)).zip(x.chunks(self.cols)) {
                let Some(found) = answer else { continue };
                let Some(drawn) = drawn else {
                    self.is_enough(found, x, full, Sought { count: 1, distance, draw: None, also: &[] });
                    continue;
                };
                let mut left = vec![f32::NEG_INFINITY; self.rows];
                found.iter().for_each(|&row| left[row as usize] = full[row as usize]);
                assert_eq!(draw(Isa::detect(), drawn, &left), draw(Isa::detect(), drawn, full), "{drawn:?}");
            }
            if drawn.is_none() {
                counts = answers.iter().map(|answer| answer.as_ref().map(Vec::len)).collect();
            }
        }
        counts
    }

    /// `found` holds every row that matters, once, and single rows have the bits of the full product.
    fn is_enough(&self, found: &[u32], x: &[f32], full: &[f32], sought: Sought<'_>) {
        let mut once = found.to_vec();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), found.len(), "each row once");
        let mut exact = vec![f32::NAN; found.len()];
        for isa in Isa::available() {
            linear_rows(isa, self.dense(), found, x, &mut exact);
            let same = found.iter().zip(&exact).all(|(&row, f)| full[row as usize].to_bits() == f.to_bits());
            assert!(same, "{}", isa.name());
        }
        let is_found = |row: u32| once.binary_search(&row).is_ok();
        let inside = |row: &&u32| (**row as usize) < self.rows;
        assert!(sought.also.iter().filter(inside).all(|&row| is_found(row)), "rows asked for are there");
        let mut others: Vec<u32> = (0..self.rows as u32).filter(|row| !sought.also.contains(row)).collect();
        others.sort_by(|&a, &b| full[b as usize].total_cmp(&full[a as usize]));
        let Some(&last) = others.get(sought.count - 1) else { panic!("fewer rows than sought were decided") };
        let bar = full[last as usize] - sought.distance;
        for &row in others.iter().filter(|&&row| full[row as usize] >= bar) {
            assert!(is_found(row), "row {row} with {} is left out, bar {bar}", full[row as usize]);
        }
    }
}

/// Whatever NaN it is, it is one.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }).collect()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Near enough to a normal distribution.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / 16_777_216.0).sum::<f32>() - 6.0
    }

    fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// Weights that are hard on a screen.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Normal,
    /// Every row the same: all tie.
    Equal,
    /// Small integers: many ties, also with equal sums.
    Integers,
    /// A few elements a thousand times the others.
    Spiked,
    /// Rows of very different lengths, some zero, some tiny.
    Mixed,
}

fn weights(shape: Shape, rows: usize, cols: usize, random: &mut Random) -> Vec<f32> {
    let mut w = random.normals(rows * cols);
    match shape {
        Shape::Normal => {}
        Shape::Equal => {
            for r in 1..rows {
                w.copy_within(..cols, r * cols);
            }
        }
        Shape::Integers => w.iter_mut().for_each(|w| *w = w.round()),
        Shape::Spiked => w.iter_mut().step_by(37).for_each(|w| *w *= 1000.0),
        Shape::Mixed => {
            for row in w.chunks_mut(cols) {
                let size = [0.0, 1e-38, 1e-30, 1e-12, 1.0, 1.0, 30.0, 1e10][(random.next() % 8) as usize];
                row.iter_mut().for_each(|w| *w *= size);
            }
        }
    }
    w
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn no_row_that_matters_is_left_out(
        seed in any::<u64>(),
        shape in prop::sample::select(vec![Shape::Normal, Shape::Equal, Shape::Integers, Shape::Spiked, Shape::Mixed]),
        rows in prop::sample::select(vec![1_usize, 15, 63, 64, 65, 129, 500, 1000]),
        cols in prop::sample::select(vec![1_usize, 7, 16, 33, 64, 100, 192, 260, 700]),
        planes in prop::collection::vec(1_usize..=3, 1..30),
        count in prop::sample::select(vec![1_usize, 2, 5, 16, 1000]),
        distance in prop::sample::select(vec![0.0_f32, 0.5, 20.0]),
        also in prop::collection::vec(0_u32..1100, 0..20),
        spike in prop::sample::select(vec![1.0_f32, 1.0, 100.0]),
    ) {
        let mut random = Random(seed);
        let head = Head::of_floats(&weights(shape, rows, cols, &mut random), cols);
        let mut x = random.normals(cols * planes.len());
        x.iter_mut().step_by(29).for_each(|x| *x *= spike);
        head.check(&x, &planes, count, distance, &also);
        for precision in RACING {
            head.check_raced(precision, &x[..cols * planes.len().min(11)], distance, &mut random);
        }
    }
}

#[test]
fn rows_that_race_leave_as_few_as_two_planes() {
    let mut random = Random(21);
    let (rows, cols) = (20_000, 256);
    let head = Head::of_floats(&random.normals(rows * cols), cols);
    let x = random.normals(3 * cols);
    for precision in RACING {
        let counts = head.check_raced(precision, &x, 0.0, &mut random);
        for (raced, two) in counts.into_iter().zip(head.check(&x, &[2, 2, 2], 1, 0.0, &[])) {
            assert!(raced.unwrap() <= two.unwrap(), "{precision:?} {raced:?} {two:?}");
        }
    }
}

#[test]
fn racing_rows_that_are_not_finite_or_too_long_are_not_decided() {
    let mut random = Random(22);
    let cols = 40;
    let head = Head::of_floats(&random.normals(300 * cols), cols);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, 3e38] {
        let mut x = random.normals(2 * cols);
        x[cols + 3] = bad;
        for precision in RACING {
            let answers = head.check_raced(precision, &x, 0.0, &mut random);
            assert!(answers[0].is_some() && answers[1].is_none(), "{bad} {precision:?}: {answers:?}");
        }
    }
}

#[test]
fn heads_of_every_kind_are_screened() {
    let mut random = Random(11);
    let (rows, cols) = (300, 512);
    for (kind, tail) in [
        (DenseKind::F16, None),
        (DenseKind::Bf16, None),
        (DenseKind::Q8_0, Some(0)),
        (DenseKind::Q6K, Some(208)),
        (DenseKind::Q4_0, Some(0)),
    ] {
        let mut bytes: Vec<u8> = (0..rows * kind.row_bytes(cols)).map(|_| random.next() as u8).collect();
        match tail {
            // Plain halves and bfloat16s of magnitude near 1.
            None => bytes.chunks_mut(2).for_each(|b| b[1] = b[1] & 0x80 | 0x3c | b[1] & 3),
            Some(at) => bytes.chunks_mut(kind.block_bytes()).for_each(|b| b[at..at + 2].copy_from_slice(&[0, 0x24])),
        }
        let head = Head::new(kind, bytes, rows, cols);
        let answers = head.check(&random.normals(3 * cols), &[2, 1, 3], 1, 0.0, &[]);
        for answer in answers {
            let found = answer.unwrap();
            assert!(found < rows / 3, "{kind:?}: {found} of {rows} rows are left");
        }
    }
}

#[test]
fn a_clear_best_row_is_alone_and_a_thousand_best_are_few() {
    let mut random = Random(1);
    let (rows, cols) = (100_000, 64);
    let mut w = random.normals(rows * cols);
    let x = random.normals(cols);
    for (w, x) in w[777 * cols..].iter_mut().zip(&x) {
        *w = *x;
    }
    let head = Head::of_floats(&w, cols);
    assert_eq!(head.check(&x, &[2], 1, 0.0, &[]), [Some(1)]);
    assert_eq!(head.check(&x, &[1], 1, 0.0, &[5, 777, 99_999]).len(), 1);
    let found = head.check(&x, &[2], 1000, 0.0, &[])[0].unwrap();
    assert!((1000..6000).contains(&found), "{found}");
}

#[test]
fn rows_that_are_not_finite_or_too_long_are_not_decided() {
    let mut random = Random(2);
    let cols = 40;
    let head = Head::of_floats(&random.normals(300 * cols), cols);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, 3e38] {
        let mut x = random.normals(2 * cols);
        x[cols + 3] = bad;
        let answers = head.check(&x, &[2, 2], 1, 0.0, &[]);
        assert!(answers[0].is_some() && answers[1].is_none(), "{bad}: {answers:?}");
    }
    let mut w = random.normals(300 * cols);
    w[cols * 70] = f32::NAN;
    assert!(Head::of_floats(&w, cols).screen().is_none());
}

#[test]
fn more_than_there_is_room_for_is_not_decided() {
    let mut random = Random(3);
    let cols = 16;
    let head = Head::of_floats(&weights(Shape::Equal, 500, cols, &mut random), cols);
    let x = random.normals(cols);
    let (rows, lower) = head.lower(Isa::detect(), &x, &[2], 8);
    let mut scratch = SelectScratch::new(500);
    let mut select = |count, room, also: &[u32]| {
        let sought = Sought { count, distance: 0.0, draw: None, also };
        let (mut lower, mut found) = (lower.clone(), vec![0; room]);
        let screen = head.screen().unwrap();
        screen::select(Isa::detect(), screen, &rows[0], sought, &mut lower, &mut found, &mut scratch)
    };
    assert_eq!(select(1, 500, &[]), Some(500));
    assert_eq!(select(1, 499, &[]), None);
    assert_eq!(select(1, 2, &[7, 8, 9]), None);
    assert_eq!(select(8, 500, &[]), Some(500));
    assert_eq!(select(9, 500, &[]), None);
    let all: Vec<u32> = (0..500).collect();
    assert_eq!(select(1, 500, &all), None);
}
