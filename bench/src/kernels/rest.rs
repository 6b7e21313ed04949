//! Work between the matrices: normalise and quantise a row, activate, score; and what a barrier costs.

use std::hint::black_box;

use kernels::{Isa, activation, norm, softmax, ternary};

use super::linear::noise;
use super::timing::{Bench, Case, Work};
use super::{Failure, Shape};

/// Every worker does the same to a row of its own; bytes are those that a row reads and writes, from the caches.
pub(super) fn rows(bench: &mut Bench, shape: &Shape) -> Result<(), Failure> {
    let isa = bench.isa;
    for width in [shape.hidden, shape.feed_forward] {
        let (x, y) = (floats(width, 1), floats(width, 2));
        let case = case(&format!("{} norm + quantise {width}", shape.name), width * 13);
        let answer = |isa| {
            let (mut out, mut q) = (vec![0.0; width], vec![0; ternary::padded_cols(width)]);
            let greatest = norm::rms_norm_ahead(isa, &x, &y, 1e-5, &mut out, &[]);
            let found = ternary::quantize_within(isa, &out, greatest, &mut q);
            out.extend(q.iter().map(|&q| f32::from(q)));
            out.extend([found.scale, found.sum as f32]);
            out
        };
        bench.check(&case.name, &answer)?;
        bench.time(case, &|_, _| {
            let (mut out, mut q) = (vec![0.0; width], vec![0; ternary::padded_cols(width)]);
            for _ in 0..ROWS_PER_CALL {
                let greatest = norm::rms_norm_ahead(isa, black_box(&x), &y, 1e-5, &mut out, &x);
                black_box(ternary::quantize_within(isa, &out, greatest, &mut q));
            }
        });
    }
    let width = shape.feed_forward;
    let (x, y) = (floats(width, 1), floats(width, 2));
    for (name, activate) in [("relu2", activation::relu2_mul as Activate), ("silu", activation::silu_mul)] {
        let case = case(&format!("{} {name} {width}", shape.name), width * 12);
        let answer = |isa| {
            let mut out = vec![0.0; width];
            activate(isa, &x, &y, &mut out);
            out
        };
        bench.check(&case.name, &answer)?;
        bench.time(case, &|_, _| {
            let mut out = vec![0.0; width];
            for _ in 0..ROWS_PER_CALL {
                activate(isa, black_box(&x), &y, black_box(&mut out));
            }
        });
    }
    let logits = floats(shape.vocab, 3);
    let case = case(&format!("{} sum of exp {}", shape.name, shape.vocab), shape.vocab * 4);
    let answer = |isa| {
        let (max, sum) = softmax::max_and_sum_exp(isa, &logits, 0.7);
        let bits = sum.to_bits().to_le_bytes();
        let (halves, _) = bits.as_chunks::<4>();
        vec![max, f32::from_le_bytes(halves[0]), f32::from_le_bytes(halves[1])]
    };
    bench.check(&case.name, &answer)?;
    bench.time(case, &|_, _| {
        for _ in 0..ROWS_PER_CALL {
            black_box(softmax::max_and_sum_exp(isa, black_box(&logits), 0.7));
        }
    });
    Ok(())
}

type Activate = fn(Isa, &[f32], &[f32], &mut [f32]);

/// A job of many barriers, and one of none: the hand-over to the workers and back.
pub(super) fn barrier(bench: &mut Bench) -> Result<(), Failure> {
    let case = |name: &str| Case { family: "barrier", name: name.to_owned(), bytes: 0, work: Work::None };
    bench.time(case(&format!("{BARRIERS} barriers")), &|member, _| {
        for _ in 0..BARRIERS {
            member.barrier();
        }
    });
    bench.time(case("empty job"), &|_, _| {});
    Ok(())
}

fn case(name: &str, bytes: usize) -> Case {
    Case { family: "rows", name: format!("{name} x{ROWS_PER_CALL}"), bytes: bytes * ROWS_PER_CALL, work: Work::None }
}

fn floats(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| f32::from(noise(i * 3 + seed)) / 32.0 - 4.0).collect()
}

/// A row takes about a microsecond, which is what the hand-over to a team takes too.
const ROWS_PER_CALL: usize = 100;
const BARRIERS: usize = 1000;
