//! Attention from outside, over both types of cache: against f64, across ISAs, and however queries and splits are cut
//! into calls.

use std::cell::Cell;

use kernels::attention::{
    BLOCK, KvLayout, KvPool, KvType, KvView, Parts, Queries, Reading, RowState, SPLIT, Scratch, Shape, Then, attend,
    attend_splits, merge, part_vectors, store,
};
use kernels::math::{f16_to_f32, f32_to_f16};
use kernels::{Columns, Isa};

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
    layout: KvLayout,
    pool: Vec<u16>,
    table: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    q: Vec<f32>,
    q_stride: usize,
}

impl Case {
    fn new(draw: &mut Draw, kv_type: KvType, head_dim: usize, group: usize, positions: usize) -> Self {
        let layout = KvLayout { kv_type, head_dim, heads: 2 };
        let blocks = positions.div_ceil(BLOCK);
        let mut table: Vec<u32> = (0..blocks as u32).collect();
        for i in (1..blocks).rev() {
            table.swap(i, draw.below(i + 1));
        }
        // What no position has written is NaN: it must not matter.
        let mut pool = vec![0x7e01; layout.pool_len(blocks)];
        let (keys, values) = (draw.floats(positions * head_dim, 3.0), draw.floats(positions * head_dim, 1.0));
        for p in 0..positions {
            let start = layout.start(table[p / BLOCK] as usize, 1);
            let row = p * head_dim..(p + 1) * head_dim;
            let block = &mut pool[start..start + layout.head_block_len()];
            store(Isa::Portable, &layout, block, p % BLOCK, &keys[row.clone()], &values[row]);
        }
        let q_stride = group * head_dim + 3;
        let shape = Shape { head_dim, group, scale: 1.0 / (head_dim as f32).sqrt() };
        let q = draw.floats(positions * q_stride, 2.0);
        Self { shape, layout, pool, table, keys, values, q, q_stride }
    }

    fn view(&self) -> KvView<'_> {
        KvView { pool: KvPool::from(&self.pool[..]), table: &self.table, layout: self.layout, head: 1 }
    }

    fn queries(&self, first_position: usize, count: usize) -> Queries<'_> {
        Queries { first_position, count, values: &self.q[first_position * self.q_stride..], stride: self.q_stride }
    }

    fn attend(&self, isa: Isa, first: usize, queries: usize, scratch: &mut Scratch) -> Vec<f32> {
        let width = self.shape.group * self.shape.head_dim;
        let mut out = vec![f32::NAN; queries * width];
        let view = self.view();
        let cache = Some(Reading { kv: view, start: 0, end: first + queries });
        let then = Then { cache, queries: &self.q };
        attend(isa, self.shape, (view, then), self.queries(first, queries), columns(&mut out, width), scratch);
        out
    }

    /// The same by `cut` splits at a time, in a shuffled order.
    fn attend_in_parts(&self, isa: Isa, (first, queries): (usize, usize), cut: usize, draw: &mut Draw) -> Vec<f32> {
        let Shape { head_dim, group, .. } = self.shape;
        let (queries, rows, vectors) = (self.queries(first, queries), queries * group, part_vectors(head_dim));
        let splits = queries.splits();
        let mut states = vec![RowState::default(); splits * rows];
        let mut outputs = vec![[f32::NAN; 16]; splits * rows * vectors];
        let mut starts: Vec<usize> = (0..splits).step_by(cut).collect();
        for i in (1..starts.len()).rev() {
            starts.swap(i, draw.below(i + 1));
        }
        for start in starts {
            let range = start..splits.min(start + cut);
            let part = range.start * rows..range.end * rows;
            let parts = Parts {
                states: &mut states[part.clone()],
                outputs: &mut outputs[part.start * vectors..part.end * vectors],
            };
            let scratch = &mut Scratch::new(head_dim);
            attend_splits(isa, self.shape, (self.view(), None), queries, (range, parts), scratch);
        }
        let mut out = vec![f32::NAN; rows * head_dim];
        let parts = Parts { states: &mut states, outputs: &mut outputs };
        merge(isa, self.shape, queries, parts, columns(&mut out, group * head_dim));
        out
    }

    /// Some values as the cache gives them back.
    fn kept(&self, values: &[f32]) -> Vec<f64> {
        match self.layout.kv_type {
            KvType::F16 => values.iter().map(|&x| f64::from(f16_to_f32(f32_to_f16(x)))).collect(),
            KvType::Int8 => {
                let step = f16_to_f32(f32_to_f16(values.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0));
                let whole = |x: &f32| (x * (1.0 / step)).round_ties_even().clamp(-127.0, 127.0);
                values.iter().map(|x| f64::from(whole(x)) * f64::from(step)).collect()
            }
        }
    }

    /// One head of one query in f64, on the rounded inputs; also the sum of the weighted magnitudes.
    fn truth(&self, position: usize, head: usize) -> Vec<(f64, f64)> {
        let Shape { head_dim, scale, .. } = self.shape;
        let q = &self.q[position * self.q_stride + head * head_dim..][..head_dim];
        let q: Vec<f64> = match self.layout.kv_type {
            KvType::F16 => self.kept(q),
            KvType::Int8 => q.iter().map(|&q| f64::from(q)).collect(),
        };
        let scores: Vec<f64> = (0..=position)
            .map(|p| {
                let k = self.kept(&self.keys[p * head_dim..][..head_dim]);
                q.iter().zip(k).map(|(&q, k)| q * k).sum::<f64>() * f64::from(scale)
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut out = vec![(0.0, 0.0); head_dim];
        for (p, score) in scores.iter().enumerate() {
            let weight = (score - max).exp() / sum;
            for (out, v) in out.iter_mut().zip(self.kept(&self.values[p * head_dim..][..head_dim])) {
                out.0 += weight * v;
                out.1 += weight * v.abs();
            }
        }
        out
    }
}

fn columns(out: &mut [f32], stride: usize) -> Columns<'_> {
    Columns { cells: Cell::from_mut(out).as_slice_of_cells(), stride }
}

fn same_bits(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "{what} at {i}: {a} is not {b}");
    }
}

const TYPES: [KvType; 2] = [KvType::F16, KvType::Int8];

#[test]
fn result_is_near_f64() {
    let mut draw = Draw(1);
    // Over int8 queries and weights have 15 bits, steps of the greatest of them.
    for (kv_type, most, floor) in [(KvType::F16, 2e-6, 0.0), (KvType::Int8, 1.5e-4, 1.0)] {
        let mut worst = 0.0f64;
        for (head_dim, group, positions) in
            [(128, 4, 700), (64, 1, 300), (100, 3, 80), (80, 2, 257), (256, 1, 65), (16, 5, 40), (17, 2, 40)]
        {
            let case = Case::new(&mut draw, kv_type, head_dim, group, positions);
            let mut scratch = Scratch::new(head_dim);
            let out = case.attend(Isa::detect(), 0, positions, &mut scratch);
            for position in [0, 1, 15, 16, 31, 32, positions / 2, positions - 1] {
                for head in 0..group {
                    let got = &out[(position * group + head) * head_dim..][..head_dim];
                    for (got, (truth, magnitude)) in got.iter().zip(case.truth(position, head)) {
                        worst = worst.max((f64::from(*got) - truth).abs() / (magnitude + floor));
                    }
                }
            }
        }
        assert!(worst < most, "{kv_type:?}: {worst} of the weighted magnitudes");
    }
}

#[test]
fn every_isa_gives_the_bits_of_portable() {
    let mut draw = Draw(2);
    let mut scratch = Scratch::new(256);
    for kv_type in TYPES {
        for head_dim in [16, 17, 31, 64, 80, 96, 100, 128, 256] {
            for group in [1, 2, 3, 4, 5, 7, 8] {
                let positions = match group {
                    // Around the borders of vectors, blocks and splits.
                    1 => [15, 16, 17, 31, 32, 33][draw.below(6)],
                    4 => [255, 256, 257, 513][draw.below(4)],
                    3 => 1 + draw.below(600),
                    _ => 1 + draw.below(90),
                };
                let case = Case::new(&mut draw, kv_type, head_dim, group, positions);
                let queries = (1 + draw.below(12)).min(positions);
                let expected = case.attend(Isa::Portable, positions - queries, queries, &mut scratch);
                assert!(expected.iter().all(|x| x.is_finite()));
                for isa in Isa::available() {
                    let got = case.attend(isa, positions - queries, queries, &mut scratch);
                    same_bits(&got, &expected, &format!("{} {kv_type:?} {head_dim} {group} {positions}", isa.name()));
                }
            }
        }
    }
}

#[test]
fn one_by_one_gives_the_bits_of_all_at_once() {
    let mut draw = Draw(3);
    for (kv_type, (head_dim, group, positions)) in TYPES
        .into_iter()
        .flat_map(|kv_type| [(64, 4, 530), (128, 3, 300), (100, 1, 70), (80, 20, 40)].map(|shape| (kv_type, shape)))
    {
        let case = Case::new(&mut draw, kv_type, head_dim, group, positions);
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
fn splits_by_themselves_give_the_bits_of_all_together() {
    let mut draw = Draw(5);
    for kv_type in TYPES {
        for (head_dim, group, positions) in [(64, 4, 1100), (80, 1, 256), (128, 8, 257), (17, 3, 20)] {
            let case = Case::new(&mut draw, kv_type, head_dim, group, positions);
            let mut scratch = Scratch::new(head_dim);
            for isa in Isa::available() {
                // The first of these queries see a split less than the last.
                for queries in [1, 3] {
                    let first = positions - queries;
                    let whole = case.attend(isa, first, queries, &mut scratch);
                    for cut in [1, 2, 3, positions.div_ceil(SPLIT)] {
                        let parts = case.attend_in_parts(isa, (first, queries), cut, &mut draw);
                        same_bits(&parts, &whole, &format!("{} {kv_type:?} {positions} by {cut}", isa.name()));
                    }
                }
            }
        }
    }
}

#[test]
fn great_scores_do_not_overflow() {
    let mut draw = Draw(4);
    for (kv_type, most) in [(KvType::F16, 1e-3), (KvType::Int8, 0.5)] {
        let mut case = Case::new(&mut draw, kv_type, 64, 2, 300);
        case.q.iter_mut().for_each(|q| *q *= 1000.0);
        let mut scratch = Scratch::new(64);
        let out = case.attend(Isa::detect(), 299, 1, &mut scratch);
        for (got, (truth, magnitude)) in out[..64].iter().zip(case.truth(299, 0)) {
            assert!((f64::from(*got) - truth).abs() < most * magnitude, "{got} {truth}");
        }
    }
}

#[test]
fn no_queries_write_nothing() {
    let layout = KvLayout { kv_type: KvType::F16, head_dim: 64, heads: 1 };
    let kv = KvView { pool: KvPool::from(&[][..] as &[u16]), table: &[], layout, head: 0 };
    let shape = Shape { head_dim: 64, group: 4, scale: 0.125 };
    let none = Queries { first_position: 0, count: 0, values: &[], stride: 0 };
    attend(Isa::detect(), shape, (kv, Then::NOTHING), none, columns(&mut [], 0), &mut Scratch::new(64));
}
