//! Linear layers: ternary ones at the shapes of a block, dense ones at the shape of the head.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use kernels::dense::{self, DenseKind, DenseMatrix, DenseScratch};
use kernels::ternary::{self, Activations, Factored, PanelOrder, PanelScratch, Panels, Product, TernaryMatrix};
use kernels::{Columns, Isa};
use tuning::memory::Arena;

use super::timing::{Bench, Case, Work};
use super::{Failure, Shape};

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::default();
}

/// Outputs and scratch of a worker; panels for so many columns and rows.
#[derive(Default)]
struct Worker {
    out: Vec<f32>,
    dense: DenseScratch,
    panels: Option<((usize, usize), PanelScratch)>,
}

/// Queries, key or value, gate or up, and down, with each number of activation rows.
pub(super) fn ternary(bench: &mut Bench, shape: &Shape, rows: &[usize]) -> Result<(), Failure> {
    let layers = [
        ("q", shape.heads * shape.head_dim, shape.hidden),
        ("kv", shape.kv_heads * shape.head_dim, shape.hidden),
        ("gate", shape.feed_forward, shape.hidden),
        ("down", shape.hidden, shape.feed_forward),
    ];
    for (layer, height, width) in layers {
        let bytes = ternary::packed_bytes(height, width);
        let copies = bench.copies(bytes);
        let mut memory = Arena::zeroed(bytes * copies, None)?;
        let codes: Vec<u8> = (0..height * width).map(|i| noise(i) % 3).collect();
        let (first, others) = memory.as_mut_slice().split_at_mut(bytes);
        ternary::pack_codes(&codes, width, first)?;
        others.chunks_exact_mut(bytes).for_each(|copy| copy.copy_from_slice(first));
        let matrix = |copy: usize| {
            let bytes = &memory.as_slice()[copy % copies * bytes..][..bytes];
            TernaryMatrix::new(bytes, height, width, 0.5).expect("packed for this shape")
        };
        for &n in rows {
            let case = Case {
                family: "ternary",
                name: format!("{} {layer} {height}x{width} n={n}", shape.name),
                bytes,
                work: Work::Int8(2 * height * width * n),
            };
            let input = Quantized::new(n, width);
            for part in ends(height) {
                let linear = |isa| {
                    let mut out = vec![0.0; n * part.len()];
                    ternary::linear(isa, matrix(0), part.clone(), input.view(), &mut out);
                    out
                };
                let want = bench.check(&case.name, &linear)?;
                bench.check_against(&want, &case.name, &|isa| {
                    let mut out = vec![0.0; n * part.len()];
                    let mut scratch = PanelScratch::new(width, n);
                    in_panels(isa, matrix(0), (part.clone(), 0), (&input, 0..n), &mut out, &mut scratch);
                    out
                })?;
            }
            // As a forward pass does it.
            let (isa, unit, panels) =
                (bench.isa, unit_rows(height, bench.workers()), ternary::prefers_panels(bench.isa, n));
            let (units, at_once) = (height.div_ceil(unit), ternary::rows_at_once(isa, n, width));
            bench.time(case, &|member, call| {
                while let Some(claimed) = member.claim(0, n.div_ceil(at_once) * units) {
                    let (first, claimed) = (claimed / units * at_once, claimed % units);
                    let rows = first..n.min(first + at_once);
                    let part = claimed * unit..height.min((claimed + 1) * unit);
                    with_worker(rows.len() * part.len(), |out, worker| {
                        if panels {
                            let scratch = worker.panels_for(width, n);
                            let next = part.start + unit * member.team_size();
                            in_panels(isa, matrix(call), (part.clone(), next), (&input, rows), out, scratch);
                        } else {
                            ternary::linear(isa, matrix(call), part.clone(), input.view(), out);
                        }
                    });
                }
            });
        }
    }
    Ok(())
}

/// The head, or as much of it as keeps a call short, in the kinds that heads come in.
pub(super) fn dense(bench: &mut Bench, shape: &Shape, rows: &[usize]) -> Result<(), Failure> {
    for kind in [DenseKind::F16, DenseKind::Q8_0, DenseKind::Q6K] {
        let width = shape.hidden;
        if !width.is_multiple_of(kind.block_cols()) {
            continue;
        }
        let height = shape.vocab.min(HEAD_ROWS_MAX);
        let bytes = kind.row_bytes(width) * height;
        let copies = bench.copies(bytes);
        let mut memory = Arena::zeroed(bytes * copies, None)?;
        fill(kind, memory.as_mut_slice());
        let matrix = |copy: usize| {
            let bytes = &memory.as_slice()[copy % copies * bytes..][..bytes];
            DenseMatrix::new(kind, bytes, height, width).expect("whole rows")
        };
        for &n in rows.iter().filter(|&&n| n <= HEAD_TOKENS_MAX) {
            let case = Case {
                family: "dense",
                name: format!("{} head {kind:?} {height}x{width} n={n}", shape.name),
                bytes,
                work: Work::Float(2 * height * width * n),
            };
            let x: Vec<f32> = (0..n * width).map(|i| f32::from(noise(i)) / 128.0 - 1.0).collect();
            for part in ends(height) {
                let linear = |isa| {
                    let mut out = vec![0.0; n * part.len()];
                    dense::linear(isa, matrix(0), part.clone(), &x, &mut out, &mut DenseScratch::new(n));
                    out
                };
                bench.check(&case.name, &linear)?;
            }
            let (isa, unit) = (bench.isa, unit_rows(height, bench.workers()));
            bench.time(case, &|member, call| {
                while let Some(claimed) = member.claim(0, height.div_ceil(unit)) {
                    let part = claimed * unit..height.min((claimed + 1) * unit);
                    with_worker(n * part.len(), |out, worker| {
                        dense::linear(isa, matrix(call), part.clone(), &x, out, &mut worker.dense);
                    });
                }
            });
        }
    }
    Ok(())
}

/// The rows `range` with some rows of the input in panels; the worker goes on with row `next`.
fn in_panels(
    isa: Isa,
    matrix: TernaryMatrix<'_>,
    (range, next): (Range<usize>, usize),
    (input, rows): (&Quantized, Range<usize>),
    out: &mut [f32],
    scratch: &mut PanelScratch,
) {
    let (product, stride) = (Product::Plain(Factored { matrix, factor: 1.0 }), range.len());
    let (scale, sum) = (input.scale.as_slice(), input.sum.as_slice());
    let x = if ternary::prefers_rows(isa, scale.len(), matrix.cols()) {
        Panels { q: input.rows(), order: PanelOrder::Rows { stride: input.stride }, scale, sum }
    } else {
        Panels { q: &input.panels, order: PanelOrder::Interleaved, scale, sum }
    };
    let out = Columns { cells: Cell::from_mut(out).as_slice_of_cells(), stride };
    ternary::linear_panels(isa, product, range, next, x.part(rows), out, scratch);
}

/// Quantised activations, in rows and in panels.
struct Quantized {
    q: Vec<i8>,
    /// Where in these the rows begin: with a cache line, as a forward pass has them.
    first: usize,
    panels: Vec<i8>,
    stride: usize,
    scale: Vec<f32>,
    sum: Vec<i32>,
}

impl Quantized {
    fn new(n: usize, width: usize) -> Self {
        let stride = ternary::activation_stride(width);
        let padded = ternary::padded_cols(width);
        let (q, panels) = (vec![0; LINE_BYTES + n * stride], vec![0; n * padded]);
        let first = line_start(&q);
        let mut made = Self { q, first, panels, stride, scale: Vec::new(), sum: Vec::new() };
        for (t, q) in made.q[first..].chunks_exact_mut(stride).take(n).enumerate() {
            let x: Vec<f32> = (0..width).map(|k| f32::from(noise(k + t * 7)) - 127.5).collect();
            let found = ternary::quantize(Isa::Portable, &x, &mut q[..ternary::padded_cols(width)]);
            made.scale.push(found.scale);
            made.sum.push(found.sum);
        }
        for index in 0..ternary::panel_count(n) {
            let rows = ternary::panel_rows(n, index);
            let panel = &mut made.panels[rows.start * padded..rows.end * padded];
            ternary::interleave(Isa::detect(), &made.q[first + rows.start * stride..], stride, (rows.len(), n), panel);
        }
        made
    }

    fn rows(&self) -> &[i8] {
        &self.q[self.first..]
    }

    fn view(&self) -> Activations<'_> {
        Activations { q: self.rows(), stride: self.stride, scale: &self.scale, sum: &self.sum }
    }
}

impl Worker {
    fn panels_for(&mut self, cols: usize, n: usize) -> &mut PanelScratch {
        let fits = self.panels.as_ref().is_some_and(|(sizes, _)| *sizes == (cols, n));
        if !fits {
            self.panels = Some(((cols, n), PanelScratch::new(cols, n)));
        }
        &mut self.panels.as_mut().expect("just made").1
    }
}

fn with_worker(len: usize, run: impl FnOnce(&mut [f32], &mut Worker)) {
    WORKER.with_borrow_mut(|worker| {
        let mut out = std::mem::take(&mut worker.out);
        let spare = LINE_BYTES / size_of::<f32>();
        if out.len() < len + spare {
            out.resize(len + spare, 0.0);
        }
        let first = line_start(&out);
        run(&mut out[first..first + len], worker);
        worker.out = out;
    });
}

/// Where in `values` the first cache line begins.
fn line_start<T>(values: &[T]) -> usize {
    values.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / size_of::<T>())
}

/// The first rows and the last ones, from a row tile on: portable code would take minutes for all.
fn ends(height: usize) -> [Range<usize>; 2] {
    let last = height.saturating_sub(CHECKED_ROWS) / ternary::TILE_ROWS * ternary::TILE_ROWS;
    [0..height.min(CHECKED_ROWS), last..height]
}

/// As the forward pass cuts its matrices.
pub(super) fn unit_rows(height: usize, workers: usize) -> usize {
    height.div_ceil(workers * UNITS_PER_WORKER).next_multiple_of(2 * ternary::TILE_ROWS).min(UNIT_ROWS_MAX)
}

/// Any finite weights.
pub(super) fn fill(kind: DenseKind, bytes: &mut [u8]) {
    for (i, block) in bytes.chunks_exact_mut(kind.block_bytes()).enumerate() {
        for (j, byte) in block.iter_mut().enumerate() {
            *byte = noise(i * 211 + j);
        }
        // A half between 2^-6 and 2^-5, where a block has its scale.
        let half = (0x2400 | u16::from(noise(i))).to_le_bytes();
        match kind {
            DenseKind::Q6K => block[208..].copy_from_slice(&half),
            _ => block[..2].copy_from_slice(&half),
        }
    }
}

pub(super) fn noise(i: usize) -> u8 {
    ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

const LINE_BYTES: usize = 64;
const UNITS_PER_WORKER: usize = 6;
const UNIT_ROWS_MAX: usize = 256;
const CHECKED_ROWS: usize = 32;
const HEAD_ROWS_MAX: usize = 16_384;
/// A step scores few rows: one for each sequence that decodes.
const HEAD_TOKENS_MAX: usize = 32;
