//! Attention from outside: against f64, across ISAs, and however the queries are cut into calls.

use kernels::Isa;
use kernels::attention::{BLOCK, KvView, Scratch, Shape, attend, head_block_len, store};
use kernels::math::{f16_to_f32, f32_to_f16};

struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn floats(&mut self, n: usize, span: f32) -> Vec<f32> {
        (0..n).map(|_| (self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * span).collect()
    }
}

/// One KV head of a sequence in a pool of two layers, its blocks in a shuffled order.
struct Case {
    shape: Shape,
    pool: Vec<u16>,
    table: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    q: Vec<f32>,
    q_stride: usize,
}

impl Case {
    fn new(draw: &mut Draw, head_dim: usize, group: usize, positions: usize) -> Self {
        let head_block = head_block_len(head_dim);
        let blocks = positions.div_ceil(BLOCK);
        let mut table: Vec<u32> = (0..blocks as u32).collect();
        for i in (1..blocks).rev() {
            table.swap(i, draw.below(i + 1));
        }
        // What no position has written is NaN: it must not matter.
        let mut pool = vec![0x7e01; blocks * 2 * head_block];
        let (keys, values) = (draw.floats(positions * head_dim, 3.0), draw.floats(positions * head_dim, 1.0));
        for p in 0..positions {
            let start = (table[p / BLOCK] as usize * 2 + 1) * head_block;
            let row = p * head_dim..(p + 1) * head_dim;
            let block = &mut pool[start..start + head_block];
            store(Isa::Portable, block, head_dim, p % BLOCK, &keys[row.clone()], &values[row]);
        }
        let q_stride = group * head_dim + 3;
        let shape = Shape { head_dim, group, scale: 1.0 / (head_dim as f32).sqrt() };
        let q = draw.floats(positions * q_stride, 2.0);
        Self { shape, pool, table, keys, values, q, q_stride }
    }

    fn attend(&self, isa: Isa, first: usize, queries: usize, scratch: &mut Scratch) -> Vec<f32> {
        let Shape { head_dim, group, .. } = self.shape;
        let stride = 2 * head_block_len(head_dim);
        let kv = KvView { pool: &self.pool, table: &self.table, block_stride: stride, offset: stride / 2 };
        let mut out = vec![f32::NAN; queries * group * head_dim];
        let q = &self.q[first * self.q_stride..];
        attend(isa, self.shape, kv, first, queries, q, self.q_stride, &mut out, group * head_dim, scratch);
        out
    }

    /// One head of one query in f64, on the rounded inputs; also the sum of the weighted magnitudes.
    fn truth(&self, position: usize, head: usize) -> Vec<(f64, f64)> {
        let Shape { head_dim, scale, .. } = self.shape;
        let half = |x: f32| f64::from(f16_to_f32(f32_to_f16(x)));
        let q = &self.q[position * self.q_stride + head * head_dim..][..head_dim];
        let scores: Vec<f64> = (0..=position)
            .map(|p| {
                let k = &self.keys[p * head_dim..][..head_dim];
                q.iter().zip(k).map(|(&q, &k)| half(q) * half(k)).sum::<f64>() * f64::from(scale)
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut out = vec![(0.0, 0.0); head_dim];
        for (p, score) in scores.iter().enumerate() {
            let weight = (score - max).exp() / sum;
            for (out, &v) in out.iter_mut().zip(&self.values[p * head_dim..][..head_dim]) {
                out.0 += weight * half(v);
                out.1 += weight * half(v).abs();
            }
        }
        out
    }
}

fn same_bits(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "{what} at {i}: {a} is not {b}");
    }
}

#[test]
fn result_is_near_f64() {
    let mut draw = Draw(1);
    let mut worst = 0.0f64;
    for (head_dim, group, positions) in
        [(128, 4, 700), (64, 1, 300), (100, 3, 80), (80, 2, 257), (256, 1, 65), (16, 5, 40)]
    {
        let case = Case::new(&mut draw, head_dim, group, positions);
        let mut scratch = Scratch::new(head_dim);
        let out = case.attend(Isa::detect(), 0, positions, &mut scratch);
        for position in [0, 1, 15, 16, 31, 32, positions / 2, positions - 1] {
            for head in 0..group {
                let got = &out[(position * group + head) * head_dim..][..head_dim];
                for (got, (truth, magnitude)) in got.iter().zip(case.truth(position, head)) {
                    worst = worst.max((f64::from(*got) - truth).abs() / magnitude);
                }
            }
        }
    }
    assert!(worst < 2e-6, "{worst} of the weighted magnitudes");
}

#[test]
fn every_isa_gives_the_bits_of_portable() {
    let mut draw = Draw(2);
    let mut scratch = Scratch::new(256);
    for head_dim in [16, 17, 31, 64, 80, 100, 128, 256] {
        for group in [1, 2, 3, 4, 5, 7, 8] {
            let positions = 1 + draw.below(if group == 3 { 600 } else { 90 });
            let case = Case::new(&mut draw, head_dim, group, positions);
            let queries = (1 + draw.below(12)).min(positions);
            let expected = case.attend(Isa::Portable, positions - queries, queries, &mut scratch);
            assert!(expected.iter().all(|x| x.is_finite()));
            for isa in Isa::available() {
                let got = case.attend(isa, positions - queries, queries, &mut scratch);
                same_bits(&got, &expected, &format!("{} {head_dim} {group} {positions}", isa.name()));
            }
        }
    }
}

#[test]
fn one_by_one_gives_the_bits_of_all_at_once() {
    let mut draw = Draw(3);
    for (head_dim, group, positions) in [(64, 4, 530), (128, 3, 300), (100, 1, 70), (80, 20, 40)] {
        let case = Case::new(&mut draw, head_dim, group, positions);
        let mut scratch = Scratch::new(head_dim);
        let row = group * head_dim;
        for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Portable || positions < 100) {
            let all = case.attend(isa, 0, positions, &mut scratch);
            for position in 0..positions {
                let one = case.attend(isa, position, 1, &mut scratch);
                same_bits(&one, &all[position * row..][..row], &format!("{} position {position}", isa.name()));
            }
            let mut first = 0;
            while first < positions {
                let queries = (1 + draw.below(64)).min(positions - first);
                let part = case.attend(isa, first, queries, &mut scratch);
                same_bits(&part, &all[first * row..][..queries * row], &format!("{} chunk at {first}", isa.name()));
                first += queries;
            }
        }
    }
}

#[test]
fn great_scores_do_not_overflow() {
    let mut draw = Draw(4);
    let mut case = Case::new(&mut draw, 64, 2, 300);
    case.q.iter_mut().for_each(|q| *q *= 1000.0);
    let mut scratch = Scratch::new(64);
    let out = case.attend(Isa::detect(), 299, 1, &mut scratch);
    for (got, (truth, magnitude)) in out[..64].iter().zip(case.truth(299, 0)) {
        assert!((f64::from(*got) - truth).abs() < 1e-3 * magnitude, "{got} {truth}");
    }
}

#[test]
fn no_queries_write_nothing() {
    let kv = KvView { pool: &[], table: &[], block_stride: 0, offset: 0 };
    let shape = Shape { head_dim: 64, group: 4, scale: 0.125 };
    attend(Isa::detect(), shape, kv, 0, 0, &[], 0, &mut [], 0, &mut Scratch::new(64));
}
