//! Kernels that read less than everything: chosen rows, columns that aren't zero, and the screen of the head.

use kernels::Isa;
use kernels::dense::{DenseKind, DenseMatrix};
use kernels::screen::{self, GROUP_ROWS, Precision, ScreenInput, ScreenMatrix, ScreenRows};
use kernels::ternary::{self, ColumnMatrix, LiveColumns, RowActivations, RowMatrix, TernaryMatrix};
use tuning::memory::Arena;

use super::linear::{fill, noise};
use super::timing::{Bench, Case, Work};
use super::{Failure, Shape};

/// One row of activations against the up projection by rows and the down projection by columns, with some of them
/// live. Bytes are those of the whole matrix: beyond the read limit is what leaving out gains.
pub(super) fn skips(bench: &mut Bench, shape: &Shape) -> Result<(), Failure> {
    let (hidden, ffn) = (shape.hidden, shape.feed_forward);
    rows(bench, shape.name, ffn, hidden)?;
    columns(bench, shape.name, hidden, ffn)
}

fn rows(bench: &mut Bench, name: &str, height: usize, width: usize) -> Result<(), Failure> {
    let tiles = packed(height, width)?;
    let tiles = TernaryMatrix::new(&tiles, height, width, 0.5)?;
    let bytes = ternary::row_bytes(height, width);
    let (memory, copies) = copies_of(bench, bytes, |form| ternary::pack_rows(tiles, form))?;
    let (q, sum) = activations(width);
    let mut permuted = vec![0; ternary::permuted_cols(width)];
    ternary::permute_row(&q, &mut permuted);
    let x = RowActivations { q: &permuted, scale: 1.0, sum };
    for percent in LIVE_PERCENT {
        let live: Vec<u32> = (0..u32::try_from(height)?).filter(|&i| is_live(i as usize, percent)).collect();
        let run = |isa, call: usize, out: &mut [f32]| {
            let form = &memory.as_slice()[call % copies * bytes..][..bytes];
            let w = RowMatrix::new(form, height, width, 0.5).expect("packed for this shape");
            ternary::linear_rows(isa, w, 0, &live, x, out);
        };
        time_skip(bench, format!("{name} up {height}x{width} {percent} % of rows"), (height, bytes), &run)?;
    }
    Ok(())
}

fn columns(bench: &mut Bench, name: &str, height: usize, width: usize) -> Result<(), Failure> {
    let tiles = packed(height, width)?;
    let tiles = TernaryMatrix::new(&tiles, height, width, 0.5)?;
    let bytes = ternary::column_bytes(height, width, 1);
    let (memory, copies) = copies_of(bench, bytes, |form| ternary::pack_columns(tiles, 1, form))?;
    let (q, sum) = activations(width);
    for percent in LIVE_PERCENT {
        let some: Vec<i8> = (0..width).map(|k| if is_live(k, percent) { q[k] | 1 } else { 0 }).collect();
        let mut live = LiveColumns::with_capacity(width);
        live.find(&some);
        let run = |isa, call: usize, out: &mut [f32]| {
            let form = &memory.as_slice()[call % copies * bytes..][..bytes];
            let w = ColumnMatrix::new(form, height, width, 1, 0.5).expect("packed for this shape");
            ternary::linear_columns(isa, w, 0..height, &live, (1.0, sum), out);
        };
        time_skip(bench, format!("{name} down {height}x{width} {percent} % of columns"), (height, bytes), &run)?;
    }
    Ok(())
}

/// Whole products, one worker each: what shares them out is not what is measured.
fn time_skip(
    bench: &mut Bench,
    name: String,
    (height, bytes): (usize, usize),
    run: &(dyn Fn(Isa, usize, &mut [f32]) + Sync),
) -> Result<(), Failure> {
    let answer = |isa| {
        let mut out = vec![0.0; height];
        run(isa, 0, &mut out);
        out
    };
    bench.check(&name, &answer)?;
    let (isa, workers) = (bench.isa, bench.workers());
    let case = Case { family: "skips", name, bytes: bytes * workers, work: Work::Float(0) };
    bench.time(case, &|member, call| {
        let mut out = vec![0.0; height];
        run(isa, call * workers + member.index, &mut out);
    });
    Ok(())
}

/// Lower bounds of all logits from the int8 copy of an F16 head, or of as much of it as keeps a call short.
pub(super) fn screen(bench: &mut Bench, shape: &Shape, rows: &[usize]) -> Result<(), Failure> {
    let (height, width) = (shape.vocab.min(HEAD_ROWS_MAX) / GROUP_ROWS * GROUP_ROWS, shape.hidden);
    let mut weights = vec![0; DenseKind::F16.row_bytes(width) * height];
    fill(DenseKind::F16, &mut weights);
    let head = DenseMatrix::new(DenseKind::F16, &weights, height, width)?;
    let (bytes, groups) = (screen::packed_bytes(height, width), height / GROUP_ROWS);
    let mut weight_max = 0.0;
    let (memory, copies) = copies_of(bench, bytes, |copy| {
        let (out, greatest) = copy.split_at_mut(groups * screen::group_bytes(width));
        weight_max = screen::pack(Isa::detect(), head, 0..groups, out, greatest);
    })?;
    let matrix = |copy: usize| {
        let bytes = &memory.as_slice()[copy % copies * bytes..][..bytes];
        ScreenMatrix::new(bytes, &head, weight_max).expect("finite weights")
    };
    let stride = screen::planes_len(width);
    for &n in rows.iter().filter(|&&n| n <= HEAD_TOKENS_MAX) {
        let ways = [(Precision::Two, 2), (Precision::Outliers, 1), (Precision::Refined, 1), (Precision::Raced, 2)];
        for (precision, planes) in ways {
            let x: Vec<f32> = (0..width).map(|i| f32::from(noise(i)) / 128.0 - 1.0).collect();
            let input = |isa| {
                let mut values = vec![0; n * stride];
                let split: Vec<_> =
                    values.chunks_mut(stride).map(|values| screen::split(isa, &x, precision, values)).collect();
                let mut input = ScreenInput::default();
                input.set(isa, width, ScreenRows { planes: &values, rows: &split });
                input
            };
            let name = format!("{} {height}x{width} n={n} {precision:?}", shape.name);
            let answer = |isa| {
                let (mut out, mut greatest) = (vec![0.0; n * GROUP_ROWS], vec![0.0; n]);
                screen::bounds(isa, matrix(0), (0..1, 1), &mut input(isa), (&mut out, &mut greatest));
                out
            };
            bench.check(&name, &answer)?;
            let work = Work::Int8(2 * height * width * n * planes);
            let (isa, input) = (bench.isa, input(bench.isa));
            bench.time(Case { family: "screen", name, bytes, work }, &|member, call| {
                let (mut input, mut out) = (input.clone(), vec![0.0; n * GROUPS_PER_UNIT * GROUP_ROWS]);
                let mut greatest = vec![0.0; n * GROUPS_PER_UNIT];
                while let Some(claimed) = member.claim(0, groups.div_ceil(GROUPS_PER_UNIT)) {
                    let part = claimed * GROUPS_PER_UNIT..groups.min((claimed + 1) * GROUPS_PER_UNIT);
                    let out = &mut out[..n * part.len() * GROUP_ROWS];
                    let greatest = &mut greatest[..n * part.len()];
                    let next = part.end + (member.team_size() - 1) * GROUPS_PER_UNIT;
                    screen::bounds(isa, matrix(call), (part, next), &mut input, (out, greatest));
                }
            });
        }
    }
    Ok(())
}

/// A ternary matrix of noise.
fn packed(height: usize, width: usize) -> Result<Vec<u8>, Failure> {
    let codes: Vec<u8> = (0..height * width).map(|i| noise(i) % 3).collect();
    let mut bytes = vec![0; ternary::packed_bytes(height, width)];
    ternary::pack_codes(&codes, width, &mut bytes)?;
    Ok(bytes)
}

/// As many copies of what `pack` writes as keep every call's own out of the caches.
fn copies_of(bench: &Bench, bytes: usize, pack: impl FnOnce(&mut [u8])) -> Result<(Arena, usize), Failure> {
    let copies = bench.copies(bytes);
    let mut memory = Arena::zeroed(bytes * copies, None)?;
    let (first, others) = memory.as_mut_slice().split_at_mut(bytes);
    pack(first);
    others.chunks_exact_mut(bytes).for_each(|copy| copy.copy_from_slice(first));
    Ok((memory, copies))
}

/// Int8 activations and their sum.
fn activations(width: usize) -> (Vec<i8>, i32) {
    let q: Vec<i8> = (0..width).map(|k| noise(k).cast_signed()).collect();
    let sum = q.iter().map(|&q| i32::from(q)).sum();
    (q, sum)
}

fn is_live(i: usize, percent: usize) -> bool {
    usize::from(noise(i.wrapping_mul(31).wrapping_add(7))) * 100 < percent * 256
}

/// Down of the default model, its gate, and more.
const LIVE_PERCENT: [usize; 4] = [21, 46, 75, 100];
const HEAD_ROWS_MAX: usize = 16_384;
const HEAD_TOKENS_MAX: usize = 32;
const GROUPS_PER_UNIT: usize = 4;
