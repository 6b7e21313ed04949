//! Throughput of the float kernels beside the limits measured in the same run, one thread.
//!
//! `cargo run --release -p kernels --example float_throughput [isa [cached|memory|prefill|elementwise]]`

use kernels::Isa;
use kernels::attention::{BLOCK, KvView, Scratch, Shape, attend, head_block_len, store};
use kernels::rope::{RopeKind, RopeTable};
use kernels::{activation, norm, rope, softmax};
use std::hint::black_box;
use std::time::Instant;

const HEAD_DIM: usize = 128;
const GROUP: usize = 4;
const KV_HEADS: usize = 5;
/// Caches are rotated through until this many bytes, so that a decode step finds its own in memory.
const COLD_BYTES: usize = 384 << 20;

fn main() {
    let isa = match std::env::args().nth(1) {
        Some(name) => name.parse().expect("an instruction set of this machine"),
        None => Isa::detect(),
    };
    let (read, fma) = (read_gb_s(isa), fma_gflops(isa));
    println!("isa {}  limits: read {read:.1} GB/s, fma {fma:.0} GFLOP/s", isa.name());
    let part = std::env::args().nth(2);
    let chosen = |name: &str| part.as_deref().is_none_or(|part| part == name);
    for context in [128, 1024, 4096] {
        let bytes = context * HEAD_DIM * 2 * 2;
        for (name, count) in [("cached", 1), ("memory", COLD_BYTES / bytes)] {
            if chosen(name) {
                decode(isa, context, name, count, read);
            }
        }
        if chosen("prefill") {
            prefill(isa, context, fma);
        }
    }
    if chosen("elementwise") {
        elementwise(isa);
    }
}

/// Median seconds of one call, over a second or so.
fn seconds(mut call: impl FnMut()) -> f64 {
    call();
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (start.elapsed().as_secs_f64() < 0.8 && times.len() < 20_000) {
        let begin = Instant::now();
        call();
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Caches of several sequences in one pool.
struct Caches {
    pool: Vec<u16>,
    blocks: usize,
    count: usize,
}

impl Caches {
    fn new(isa: Isa, context: usize, count: usize) -> Self {
        let blocks = context.div_ceil(BLOCK);
        let mut pool = vec![0; count * blocks * head_block_len(HEAD_DIM)];
        for (b, block) in pool.chunks_mut(head_block_len(HEAD_DIM)).enumerate() {
            let row: Vec<f32> = (0..HEAD_DIM).map(|d| ((b * 31 + d * 7) % 64) as f32 / 32.0 - 1.0).collect();
            for slot in 0..BLOCK {
                store(isa, block, HEAD_DIM, slot, &row, &row);
            }
        }
        Self { pool, blocks, count }
    }

    fn view<'a>(&'a self, table: &'a [u32], index: usize) -> KvView<'a> {
        let len = self.blocks * head_block_len(HEAD_DIM);
        let pool = &self.pool[index % self.count * len..][..len];
        KvView { pool, table, block_stride: head_block_len(HEAD_DIM), offset: 0 }
    }
}

const SHAPE: Shape = Shape { head_dim: HEAD_DIM, group: GROUP, scale: 0.088_388_35 };

fn decode(isa: Isa, context: usize, name: &str, count: usize, read: f64) {
    let bytes = context * HEAD_DIM * 2 * 2;
    let caches = Caches::new(isa, context, count);
    let table: Vec<u32> = (0..caches.blocks as u32).collect();
    let q = vec![0.25; GROUP * HEAD_DIM];
    let mut out = vec![0.0; GROUP * HEAD_DIM];
    let mut scratch = Scratch::new(HEAD_DIM);
    let mut index = 0;
    let time = seconds(|| {
        for _ in 0..KV_HEADS {
            let kv = caches.view(&table, index);
            index += 1;
            attend(isa, SHAPE, kv, context - 1, 1, &q, q.len(), &mut out, q.len(), &mut scratch);
        }
    });
    let rate = (KV_HEADS * bytes) as f64 / time / 1e9;
    println!(
        "attention queries   1 context {context:4} {name}: {:8.1} us  {rate:6.1} GB/s  {:3.0} % of read",
        time * 1e6,
        100.0 * rate / read
    );
}

fn prefill(isa: Isa, context: usize, fma: f64) {
    let queries = context.min(256);
    let first = context - queries;
    let caches = Caches::new(isa, context, KV_HEADS);
    let table: Vec<u32> = (0..caches.blocks as u32).collect();
    let stride = GROUP * KV_HEADS * HEAD_DIM;
    let q: Vec<f32> = (0..queries * stride).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
    let mut out = vec![0.0; queries * stride];
    let mut scratch = Scratch::new(HEAD_DIM);
    let time = seconds(|| {
        for head in 0..KV_HEADS {
            let start = head * GROUP * HEAD_DIM;
            let kv = caches.view(&table, head);
            attend(isa, SHAPE, kv, first, queries, &q[start..], stride, &mut out[start..], stride, &mut scratch);
        }
    });
    let pairs: usize = (first..context).map(|position| (position + 1) * GROUP * KV_HEADS).sum();
    let rate = (4 * HEAD_DIM * pairs) as f64 / time / 1e9;
    println!(
        "attention queries {queries:3} context {context:4}: {:8.2} ms  {rate:6.1} GFLOP/s  {:3.0} % of fma",
        time * 1e3,
        100.0 * rate / fma
    );
}

fn elementwise(isa: Isa) {
    let n = 6912;
    let (x, y): (Vec<f32>, Vec<f32>) = (0..n).map(|i| ((i % 61) as f32 - 30.0, (i % 7) as f32)).unzip();
    let mut out = vec![0.0; n];
    let report = |name: &str, values: usize, bytes: usize, time: f64| {
        println!("{name:12} {values:6} values: {:7.2} us  {:6.1} GB/s", time * 1e6, bytes as f64 / time / 1e9);
    };
    let time = seconds(|| norm::rms_norm(isa, black_box(&x[..2560]), &y[..2560], 1e-5, &mut out[..2560]));
    report("rms_norm", 2560, 2560 * 12, time);
    let time = seconds(|| norm::rms_norm(isa, black_box(&x), &y, 1e-5, &mut out));
    report("rms_norm", n, n * 12, time);
    let time = seconds(|| activation::relu2_mul(isa, black_box(&x), &y, &mut out));
    report("relu2_mul", n, n * 12, time);
    let time = seconds(|| activation::silu_mul(isa, black_box(&x), &y, &mut out));
    report("silu_mul", n, n * 12, time);
    let time = seconds(|| activation::add_assign(isa, &mut out[..2560], black_box(&y[..2560])));
    report("add_assign", 2560, 2560 * 12, time);
    let table = RopeTable::new(HEAD_DIM, HEAD_DIM, 5e5, 1.0, None, 4096);
    let mut head = vec![0.5; HEAD_DIM * (GROUP + 1) * KV_HEADS];
    for kind in [RopeKind::Neox, RopeKind::Norm] {
        let time = seconds(|| {
            for head in head.chunks_mut(HEAD_DIM) {
                rope::apply(isa, &table, kind, black_box(77), head);
            }
        });
        report(if kind == RopeKind::Neox { "rope neox" } else { "rope norm" }, head.len(), head.len() * 8, time);
    }
    let logits: Vec<f32> = (0..128_256).map(|i| (i * 7919 % 1000) as f32 / 50.0).collect();
    let time = seconds(|| {
        black_box(softmax::argmax(isa, black_box(&logits)));
    });
    report("argmax", logits.len(), logits.len() * 4, time);
    let time = seconds(|| {
        black_box(softmax::max_and_sum_exp(isa, black_box(&logits), 1.0));
    });
    report("sum_exp", logits.len(), logits.len() * 4, time);
}

/// Bandwidth of summing a buffer far larger than the caches.
fn read_gb_s(isa: Isa) -> f64 {
    let buffer = vec![3u64; COLD_BYTES / 8];
    let time = seconds(|| {
        black_box(sum(isa, black_box(&buffer)));
    });
    COLD_BYTES as f64 / time / 1e9
}

#[inline(always)]
fn sum_words(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 64];
    for chunk in words.as_chunks::<64>().0 {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

const FMA_ROUNDS: usize = 20_000;

/// Independent chains of fused products, enough to fill the pipes.
#[inline(always)]
fn fma_chains<const N: usize>() -> f32 {
    let mut sums = [black_box(1.0f32); N];
    let (a, b) = (black_box(0.999f32), black_box(1e-3f32));
    for _ in 0..FMA_ROUNDS {
        for sum in &mut sums {
            *sum = sum.mul_add(a, b);
        }
    }
    sums.iter().sum()
}

/// Peak of fused multiply-adds, two operations each.
fn fma_gflops(isa: Isa) -> f64 {
    let lanes = match isa {
        Isa::Portable => 16,
        Isa::Avx2(_) | Isa::AvxVnni(_) => 96,
        Isa::Avx512Bw(_) | Isa::Avx512Vnni(_) => 256,
    };
    let time = seconds(|| {
        black_box(chains(isa));
    });
    (2 * lanes * FMA_ROUNDS) as f64 / time / 1e9
}

#[cfg(target_arch = "x86_64")]
mod limits {
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn chains_avx2() -> f32 {
        super::fma_chains::<96>()
    }

    #[target_feature(enable = "avx512f,fma")]
    pub(crate) fn chains_avx512() -> f32 {
        super::fma_chains::<256>()
    }

    #[target_feature(enable = "avx2")]
    pub(crate) fn sum_avx2(words: &[u64]) -> u64 {
        super::sum_words(words)
    }
}

#[cfg(target_arch = "x86_64")]
fn chains(isa: Isa) -> f32 {
    match isa {
        Isa::Portable => fma_chains::<16>(),
        // SAFETY: the token proves AVX2 and FMA.
        Isa::Avx2(_) | Isa::AvxVnni(_) => unsafe { limits::chains_avx2() },
        // SAFETY: the token proves AVX-512 F and FMA.
        Isa::Avx512Bw(_) | Isa::Avx512Vnni(_) => unsafe { limits::chains_avx512() },
    }
}

#[cfg(target_arch = "x86_64")]
fn sum(isa: Isa, words: &[u64]) -> u64 {
    match isa {
        Isa::Portable => sum_words(words),
        // SAFETY: the tokens prove AVX2.
        Isa::Avx2(_) | Isa::AvxVnni(_) | Isa::Avx512Bw(_) | Isa::Avx512Vnni(_) => unsafe { limits::sum_avx2(words) },
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn chains(_isa: Isa) -> f32 {
    fma_chains::<64>()
}

#[cfg(not(target_arch = "x86_64"))]
fn sum(_isa: Isa, words: &[u64]) -> u64 {
    sum_words(words)
}
