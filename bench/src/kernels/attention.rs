//! Attention over a cache of some length: one query, as in decoding, and a tile of them, as in a prompt.

use std::cell::Cell;

use kernels::attention::{
    BLOCK, KvLayout, KvPool, KvType, KvView, Queries, Reading, Scratch, Shape as Heads, Then, attend, store,
};
use kernels::{Columns, Isa};

use super::linear::noise;
use super::timing::{Bench, Case, Work};
use super::{Failure, Shape};

pub(super) fn all(bench: &mut Bench, shape: &Shape) -> Result<(), Failure> {
    for kv_type in [KvType::F16, KvType::Int8] {
        for context in CONTEXTS {
            for queries in QUERIES {
                one(bench, shape, kv_type, (context, queries))?;
            }
        }
    }
    Ok(())
}

/// The last `queries` positions of `context` over all KV heads of some layers, a unit each.
fn one(bench: &mut Bench, shape: &Shape, kv_type: KvType, (context, queries): (usize, usize)) -> Result<(), Failure> {
    let (group, dim) = (shape.heads / shape.kv_heads, shape.head_dim);
    #[expect(clippy::cast_precision_loss, reason = "head_dim is small")]
    let heads = Heads { head_dim: dim, group, scale: 1.0 / (dim as f32).sqrt() };
    let blocks = context.div_ceil(BLOCK);
    // Enough layers that the blocks of a head lie as far apart as a model's: that is for the clock only.
    let layers = if bench.only_checks() { 2 } else { LAYERS };
    let layout = KvLayout { kv_type, head_dim: dim, heads: layers * shape.kv_heads };
    let bytes = shape.kv_heads * context.div_ceil(BLOCK) * layout.head_block_len() * size_of::<u16>();
    let sequences = bench.copies(layout.pool_len(blocks) * size_of::<u16>());
    let pool = cache(layout, sequences * blocks);
    let table: Vec<u32> = (0..u32::try_from(sequences * blocks)?).collect();
    // A call is a layer of one of the sequences.
    let view = |call: usize, head: usize| KvView {
        pool: KvPool::from(&pool[..]),
        table: &table[call / layers % sequences * blocks..][..blocks],
        layout,
        head: call % layers * shape.kv_heads + head,
    };
    let width = group * dim;
    let q: Vec<f32> = (0..queries * width).map(|i| f32::from(noise(i)) / 128.0 - 1.0).collect();
    let asked = Queries { first_position: context - queries, count: queries, values: &q, stride: width };
    let run = |isa, (call, head): (usize, usize), then: Then<'_>, out: &mut [f32], scratch: &mut Scratch| {
        let out = Columns { cells: Cell::from_mut(out).as_slice_of_cells(), stride: width };
        attend(isa, heads, (view(call, head), then), asked, out, scratch);
    };
    // A call of several workers is as many layers.
    let workers = bench.workers();
    let pairs: usize = (context - queries..context).map(|position| (position + 1) * shape.heads).sum();
    let case = Case {
        family: "attention",
        name: format!("{} {} context {context} queries {queries}", shape.name, kv_type.name()),
        bytes: bytes * workers,
        work: Work::Float(4 * dim * pairs * workers),
    };
    let answer = |isa| {
        let mut out = vec![0.0; queries * width];
        run(isa, (1, 0), Then::NOTHING, &mut out, &mut Scratch::new(dim));
        out
    };
    bench.check(&case.name, &answer)?;
    let isa = bench.isa;
    bench.time(case, &|member, call| {
        let mut area = AREA.take().filter(|area| area.dim == dim && area.out.len() == queries * width);
        let Area { out, scratch, .. } =
            area.get_or_insert_with(|| Area { dim, out: vec![0.0; queries * width], scratch: Scratch::new(dim) });
        let heads = shape.kv_heads;
        while let Some(unit) = member.claim(0, heads * member.team_size()) {
            let place = |unit: usize| (call * member.team_size() + unit / heads, unit % heads);
            let next = place(unit + member.team_size());
            let cache = Some(Reading { kv: view(next.0, next.1), start: 0, end: context });
            let then = Then { cache, queries: &q };
            run(isa, place(unit), then, out, scratch);
        }
        AREA.set(area);
    });
    Ok(())
}

/// So many blocks of keys and values, in pages as a server's cache has.
fn cache(layout: KvLayout, blocks: usize) -> Vec<u16> {
    let (dim, len) = (layout.head_dim, layout.head_block_len());
    let mut pool = vec![0; layout.pool_len(blocks)];
    tuning::memory::prefer_huge_pages(&mut pool);
    let (one, others) = pool.split_at_mut(len);
    for slot in 0..BLOCK {
        let row: Vec<f32> = (0..dim).map(|d| f32::from(noise(slot * 31 + d * 7)) / 64.0 - 2.0).collect();
        store(Isa::Portable, &layout, one, slot, &row, &row);
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

const CONTEXTS: [usize; 5] = [128, 512, 1024, 2048, 4096];
const QUERIES: [usize; 2] = [1, 64];
/// Of the model that the cache is of.
const LAYERS: usize = 30;
