//! Attention over a cache of some length: one query, as in decoding, and a tile of them, as in a prompt.

use std::cell::Cell;

use kernels::Isa;
use kernels::attention::{BLOCK, KvView, Scratch, Shape as Heads, attend, head_block_len, store};

use super::linear::noise;
use super::timing::{Bench, Case, Work};
use super::{Failure, Shape};

pub(super) fn all(bench: &mut Bench, shape: &Shape) -> Result<(), Failure> {
    for context in CONTEXTS {
        for queries in QUERIES {
            one(bench, shape, context, queries)?;
        }
    }
    Ok(())
}

/// The last `queries` positions of `context` over all KV heads, a unit each.
fn one(bench: &mut Bench, shape: &Shape, context: usize, queries: usize) -> Result<(), Failure> {
    let (group, dim) = (shape.heads / shape.kv_heads, shape.head_dim);
    #[expect(clippy::cast_precision_loss, reason = "head_dim is small")]
    let heads = Heads { head_dim: dim, group, scale: 1.0 / (dim as f32).sqrt() };
    let (blocks, len) = (context.div_ceil(BLOCK), head_block_len(dim));
    let bytes = shape.kv_heads * blocks * len * size_of::<u16>();
    let copies = bench.copies(bytes);
    let pool = cache(copies * shape.kv_heads * blocks, dim);
    let table: Vec<u32> = (0..u32::try_from(blocks)?).collect();
    let view = |index: usize| KvView {
        pool: &pool[index % (copies * shape.kv_heads) * blocks * len..][..blocks * len],
        table: &table,
        block_stride: len,
        offset: 0,
    };
    let width = group * dim;
    let q: Vec<f32> = (0..queries * width).map(|i| f32::from(noise(i)) / 128.0 - 1.0).collect();
    let first = context - queries;
    let run = |isa, index, out: &mut [f32], scratch: &mut Scratch| {
        attend(isa, heads, view(index), first, queries, &q, width, out, width, scratch);
    };
    let pairs: usize = (first..context).map(|position| (position + 1) * shape.heads).sum();
    let case = Case {
        family: "attention",
        name: format!("{} context {context} queries {queries}", shape.name),
        bytes,
        work: Work::Float(4 * dim * pairs),
    };
    let answer = |isa| {
        let mut out = vec![0.0; queries * width];
        run(isa, 1, &mut out, &mut Scratch::new(dim));
        out
    };
    bench.check(&case.name, &answer(bench.isa), &answer(Isa::Portable))?;
    let isa = bench.isa;
    bench.time(case, &|member, call| {
        let mut area = AREA.take().filter(|area| area.dim == dim && area.out.len() == queries * width);
        let Area { out, scratch, .. } =
            area.get_or_insert_with(|| Area { dim, out: vec![0.0; queries * width], scratch: Scratch::new(dim) });
        while let Some(head) = member.claim(0, shape.kv_heads) {
            run(isa, call * shape.kv_heads + head, out, scratch);
        }
        AREA.set(area);
    });
    Ok(())
}

/// So many blocks of keys and values.
fn cache(blocks: usize, dim: usize) -> Vec<u16> {
    let len = head_block_len(dim);
    let mut pool = vec![0; blocks * len];
    let (one, others) = pool.split_at_mut(len);
    for slot in 0..BLOCK {
        let row: Vec<f32> = (0..dim).map(|d| f32::from(noise(slot * 31 + d * 7)) / 64.0 - 2.0).collect();
        store(Isa::Portable, one, dim, slot, &row, &row);
    }
    others.chunks_exact_mut(len).for_each(|block| block.copy_from_slice(one));
    pool
}

/// What a worker keeps from call to call.
struct Area {
    dim: usize,
    out: Vec<f32>,
    scratch: Scratch,
}

thread_local! {
    static AREA: Cell<Option<Area>> = const { Cell::new(None) };
}

const CONTEXTS: [usize; 4] = [128, 1024, 4096, 16_384];
const QUERIES: [usize; 2] = [1, 64];
