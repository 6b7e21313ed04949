//! Speed of the linear layers beside the limits of one core, measured in the same run: GB/s of weights against plain
//! reads, GOPS against `vpdpbusd` (ternary) or fused multiply-adds (dense). Each answer is checked before it is timed.
//!
//! `cargo run --release -p kernels --example throughput [-- ISA [SECTION]]`, SECTION one of ternary, gemv, dense, screen,
//! other.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use kernels::Isa;
use kernels::dense::{self, DenseKind, DenseMatrix, DenseScratch};
use kernels::screen::{self, GROUP_ROWS, ScreenInput, ScreenMatrix, ScreenRows};
use kernels::ternary::{
    self, Activations, ColumnMatrix, Columns, Factored, LiveColumns, PANEL_UNIT_ROWS, PanelScratch, Panels, Product,
    RowActivations, RowMatrix, TernaryMatrix,
};

fn main() {
    let mut args = std::env::args().skip(1);
    let name = args.next();
    let isa = match &name {
        Some(name) => name.parse().expect("this machine has that instruction set"),
        None => Isa::detect(),
    };
    let section = args.next();
    let wanted = |name: &str| section.as_deref().is_none_or(|section| section == name);

    let limits = Limits::measure();
    println!("isa {}, 1 thread, shortest of many runs, thread time", isa.name());
    println!("limits: read {:.1} GB/s, {}", limits.read / 1e9, limits.units());
    if wanted("ternary") {
        ternary_table(isa, &limits);
    }
    if wanted("gemv") {
        gemv_table(isa, &limits);
    }
    if wanted("dense") {
        dense_table(isa, &limits);
    }
    if wanted("screen") {
        screen_table(isa, &limits);
    }
    if wanted("other") {
        other_table(isa);
    }
}

/// Shortest of many runs within about `budget`, in seconds of this thread: other programs may take the core away, what
/// they take of its caches and of the memory's bandwidth is not seen.
fn best(budget: Duration, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || start.elapsed() < budget {
        let before = thread_seconds();
        run();
        best = best.min(thread_seconds() - before);
        runs += 1;
    }
    best
}

#[cfg(unix)]
fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(done, 0, "threads have a clock");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

struct Limits {
    /// Bytes per second.
    read: f64,
    /// int8 operations (two a product) per second; none where there is no VNNI.
    int8: Option<f64>,
    /// f32 operations per second, 512-bit FMA.
    float: Option<f64>,
}

impl Limits {
    fn measure() -> Self {
        let buffer = Memory::new(READ_BYTES);
        let read = READ_BYTES as f64
            / best(BUDGET * 4, || {
                black_box(read_all(buffer.bytes()));
            });
        drop(buffer);
        #[cfg(target_arch = "x86_64")]
        if let Some(proof) = kernels::Avx512Vnni::detect() {
            return Self { read, int8: Some(x86::int8_peak(proof)), float: Some(x86::float_peak(proof)) };
        }
        Self { read, int8: None, float: None }
    }

    fn units(&self) -> String {
        match (self.int8, self.float) {
            (Some(int8), Some(float)) => format!("vpdpbusd {:.0} GOPS, fma {:.0} GFLOPS", int8 / 1e9, float / 1e9),
            _ => "no 512-bit units".into(),
        }
    }
}

/// Measured beside each line: clocks rise and fall.
fn int8_peak() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    return kernels::Avx512Vnni::detect().map(x86::int8_peak);
    #[cfg(not(target_arch = "x86_64"))]
    None
}

fn read_all(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(proof) = kernels::Avx512Vnni::detect() {
        return x86::read_all(proof, bytes);
    }
    bytes.as_chunks().0.iter().fold(0, |sum: u64, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The machine's own limits in plain loops.

    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_reduce_add_epi64,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_xor_si512,
    };
    use std::hint::black_box;

    use kernels::Avx512Vnni;

    /// 256 bytes a turn with a prefetch ahead.
    pub(crate) fn read_all(_: Avx512Vnni, bytes: &[u8]) -> u64 {
        #[target_feature(enable = "avx512f")]
        fn body(bytes: &[u8]) -> u64 {
            let mut sums = [_mm512_setzero_si512(); 4];
            for line in bytes.as_chunks::<256>().0 {
                for (sum, part) in sums.iter_mut().zip(line.as_chunks::<64>().0) {
                    // SAFETY: 64 readable bytes.
                    let v = unsafe { _mm512_loadu_si512(part.as_ptr().cast()) };
                    _mm_prefetch::<_MM_HINT_T0>(part.as_ptr().wrapping_add(2048).cast());
                    *sum = _mm512_xor_si512(*sum, v);
                }
            }
            let sum = _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
            _mm512_reduce_add_epi64(sum).cast_unsigned()
        }
        // SAFETY: the token proves that AVX-512 F exists.
        unsafe { body(bytes) }
    }

    pub(crate) fn int8_peak(_: Avx512Vnni) -> f64 {
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn body() {
            let (a, b) = (_mm512_set1_epi32(black_box(0x0102_0102)), _mm512_set1_epi32(black_box(0x0102_0304)));
            let mut sums = [_mm512_setzero_si512(); 16];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, a, b);
                }
            }
            black_box(sums);
        }
        // SAFETY: the token proves that VNNI exists.
        (ROUNDS * 16 * 128) as f64 / super::best(super::BUDGET / 4, || unsafe { body() })
    }

    pub(crate) fn float_peak(_: Avx512Vnni) -> f64 {
        #[target_feature(enable = "avx512f")]
        fn body() {
            let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
            let mut sums = [_mm512_setzero_ps(); 16];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(a, b, *sum);
                }
            }
            black_box(sums);
        }
        // SAFETY: the token proves that AVX-512 F exists.
        (ROUNDS * 16 * 32) as f64 / super::best(super::BUDGET, || unsafe { body() })
    }

    const ROUNDS: usize = 100_000;
}

/// Zeroed memory aligned to 2 MiB, on huge pages where the machine gives them.
struct Memory {
    words: Vec<u8>,
    start: usize,
    len: usize,
}

impl Memory {
    fn new(len: usize) -> Self {
        let mut words = vec![0; len + HUGE];
        let start = words.as_ptr().align_offset(HUGE);
        huge_pages(&mut words[start..]);
        words.fill(1);
        Self { words, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.words[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.words[self.start..self.start + self.len]
    }
}

#[cfg(target_os = "linux")]
fn huge_pages(bytes: &mut [u8]) {
    // SAFETY: the range is ours; the advice changes how it is backed, not what it holds.
    unsafe { libc::madvise(bytes.as_mut_ptr().cast(), bytes.len() / HUGE * HUGE, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn huge_pages(_: &mut [u8]) {}

fn noise(i: usize) -> u8 {
    ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn ternary_table(isa: Isa, limits: &Limits) {
    println!("ternary: rows x cols, n | GB/s of weights, of read limit | GOPS, of int8 limit");
    for (rows, cols) in [(2560, 2560), (6912, 2560), (2560, 6912)] {
        // Enough copies that no call finds its weights in a cache.
        let bytes = ternary::packed_bytes(rows, cols);
        let copies = COPIES_BYTES.div_ceil(bytes);
        let mut memory = Memory::new(bytes * copies);
        let codes: Vec<u8> = (0..rows * cols).map(|i| noise(i) % 3).collect();
        let mut packed = vec![0; bytes];
        ternary::pack_codes(&codes, cols, &mut packed).expect("codes are 0 to 2");
        for copy in memory.bytes_mut().chunks_exact_mut(bytes) {
            copy.copy_from_slice(&packed);
        }
        for n in TOKENS {
            let stride = ternary::activation_stride(cols);
            let mut q = vec![0_i8; n * stride];
            let (mut scale, mut sum) = (vec![0.0; n], vec![0; n]);
            for t in 0..n {
                let x: Vec<f32> = (0..cols).map(|k| f32::from(noise(k + t * 7)) - 127.5).collect();
                let q = &mut q[t * stride..][..ternary::padded_cols(cols)];
                let found = ternary::quantize(isa, &x, q);
                (scale[t], sum[t]) = (found.scale, found.sum);
            }
            let x = Activations { q: &q, stride, scale: &scale, sum: &sum };
            let mut out = vec![0.0; n * CHUNK_ROWS];
            check_ternary(isa, &memory.bytes()[..bytes], (rows, cols), x, &codes);

            let mut copy = 0;
            let seconds = if ternary::prefers_panels(isa, n) {
                let panels = in_panels(x, cols);
                let x = Panels { q: &panels, scale: &scale, sum: &sum };
                let mut out = vec![Cell::new(0.0); n * rows];
                let mut scratch = PanelScratch::new(cols, n);
                best(BUDGET, || {
                    copy = (copy + 1) % copies;
                    let bytes = &memory.bytes()[copy * bytes..][..bytes];
                    let matrix = TernaryMatrix::new(bytes, rows, cols, 0.5).expect("packed");
                    for first in (0..rows).step_by(PANEL_UNIT_ROWS) {
                        let chunk = first..(first + PANEL_UNIT_ROWS).min(rows);
                        let product = Product::Plain(Factored { matrix, factor: 1.0 });
                        let to = Columns { cells: &out[first..], stride: rows };
                        ternary::linear_panels(isa, product, chunk, x, to, &mut scratch);
                    }
                    black_box(&mut out);
                })
            } else {
                best(BUDGET, || {
                    copy = (copy + 1) % copies;
                    let bytes = &memory.bytes()[copy * bytes..][..bytes];
                    let w = TernaryMatrix::new(bytes, rows, cols, 0.5).expect("packed");
                    for first in (0..rows).step_by(CHUNK_ROWS) {
                        let chunk = first..(first + CHUNK_ROWS).min(rows);
                        let out = &mut out[..n * chunk.len()];
                        ternary::linear(isa, w, chunk, x, out);
                    }
                    black_box(&out);
                })
            };
            let (rate, ops) = (bytes as f64 / seconds, (2 * rows * cols * n) as f64 / seconds);
            let of_int8 = int8_peak().map_or("-".into(), |peak| format!("{:3.0} %", 100.0 * ops / peak));
            println!(
                "{rows:6} x {cols:4}, {n:3} | {:5.1} {:3.0} % | {:6.0} {of_int8} | {:8.1} us",
                rate / 1e9,
                100.0 * rate / limits.read,
                ops / 1e9,
                seconds * 1e6
            );
        }
    }
}

/// One row of activations against matrices that no cache holds, whole passes over all of them: everything, chosen rows,
/// columns that aren't zero.
fn gemv_table(isa: Isa, limits: &Limits) {
    println!("gemv: rows x cols, live share | us | GB/s of all weights, of read limit");
    for (rows, cols) in [(2560, 2560), (6912, 2560), (2560, 6912)] {
        let codes: Vec<u8> = (0..rows * cols).map(|i| noise(i) % 3).collect();
        let mut packed = vec![0; ternary::packed_bytes(rows, cols)];
        ternary::pack_codes(&codes, cols, &mut packed).expect("codes are 0 to 2");
        let tiles = TernaryMatrix::new(&packed, rows, cols, 0.5).expect("packed");
        let row = |what: &str, share: f64, bytes: usize, seconds: f64| {
            let rate = bytes as f64 / seconds;
            println!(
                "{rows:6} x {cols:4}, {what:<10} {share:4.2} | {:7.1} | {:5.1} {:3.0} %",
                seconds * 1e6,
                rate / 1e9,
                100.0 * rate / limits.read
            );
        };
        let mut out = vec![0.0; rows];
        let q: Vec<i8> = (0..ternary::padded_cols(cols)).map(|k| if k < cols { noise(k) as i8 } else { 0 }).collect();
        let sum = q.iter().map(|&q| i32::from(q)).sum();
        let x = Activations { q: &q, stride: q.len(), scale: &[1.0], sum: &[sum] };
        let copies = Copies::new(&packed);
        let seconds = copies.each(|bytes| {
            let w = TernaryMatrix::new(bytes, rows, cols, 0.5).expect("packed");
            ternary::linear(isa, w, 0..rows, x, &mut out);
        });
        row("all", 1.0, packed.len(), seconds);

        let mut form = vec![0; ternary::row_bytes(rows, cols)];
        ternary::pack_rows(tiles, &mut form);
        let copies = Copies::new(&form);
        let mut permuted = vec![0; ternary::permuted_cols(cols)];
        ternary::permute_row(&q[..cols], &mut permuted);
        let x = RowActivations { q: &permuted, scale: 1.0, sum };
        for share in SHARES {
            let live: Vec<u32> = (0..rows).filter(|&i| chosen(i, share)).map(|i| i as u32).collect();
            let seconds = copies.each(|bytes| {
                let w = RowMatrix::new(bytes, rows, cols, 0.5).expect("packed");
                ternary::linear_rows(isa, w, 0, &live, x, &mut out);
            });
            row("rows", share, packed.len(), seconds);
        }
        for lines in [1, 2, 5] {
            let mut form = vec![0; ternary::column_bytes(rows, cols, lines)];
            ternary::pack_columns(tiles, lines, &mut form);
            let copies = Copies::new(&form);
            let mut live = LiveColumns::with_capacity(cols);
            for share in SHARES {
                let some: Vec<i8> = (0..cols).map(|k| if chosen(k, share) { q[k] | 1 } else { 0 }).collect();
                let seconds = copies.each(|bytes| {
                    let w = ColumnMatrix::new(bytes, rows, cols, lines, 0.5).expect("packed");
                    live.find(&some);
                    ternary::linear_columns(isa, w, 0..rows, &live, (1.0, sum), &mut out);
                });
                row(&format!("columns/{lines}"), share, packed.len(), seconds);
            }
        }
    }
}

fn chosen(i: usize, share: f64) -> bool {
    f64::from(noise(i.wrapping_mul(31).wrapping_add(7))) < share * 256.0
}

/// Copies of one matrix, more than caches hold.
struct Copies {
    memory: Memory,
    each: usize,
}

impl Copies {
    fn new(bytes: &[u8]) -> Self {
        let count = COPIES_BYTES.div_ceil(bytes.len());
        let mut memory = Memory::new(bytes.len() * count);
        for copy in memory.bytes_mut().chunks_exact_mut(bytes.len()) {
            copy.copy_from_slice(bytes);
        }
        Self { memory, each: bytes.len() }
    }

    /// Seconds of one call, from the shortest pass over all copies.
    fn each(&self, mut call: impl FnMut(&[u8])) -> f64 {
        let copies = self.memory.bytes().chunks_exact(self.each);
        let count = copies.len() as f64;
        best(Duration::ZERO, || copies.clone().for_each(&mut call)) / count
    }
}

/// The same activations, in panels.
fn in_panels(x: Activations<'_>, cols: usize) -> Vec<i8> {
    let (n, width) = (x.scale.len(), ternary::padded_cols(cols));
    let rows: Vec<i8> = x.q.chunks(x.stride).flat_map(|row| &row[..width]).copied().collect();
    let mut panels = vec![0; n * width];
    for index in 0..ternary::panel_count(n) {
        let part = ternary::panel_rows(n, index);
        let bytes = part.start * width..part.end * width;
        ternary::interleave(&rows[bytes.clone()], part.len(), &mut panels[bytes]);
    }
    panels
}

fn check_ternary(isa: Isa, bytes: &[u8], (rows, cols): (usize, usize), x: Activations<'_>, codes: &[u8]) {
    let w = TernaryMatrix::new(bytes, rows, cols, 0.5).expect("packed");
    let mut raw = vec![0; x.sum.len() * 32];
    ternary::linear_raw(isa, w, 32..64, x, &mut raw);
    for (t, raw) in raw.chunks(32).enumerate() {
        for (r, &raw) in raw.iter().enumerate() {
            let (codes, q) = (&codes[(32 + r) * cols..][..cols], &x.q[t * x.stride..]);
            let want: i32 = codes.iter().zip(q).map(|(&w, &q)| (i32::from(w) - 1) * i32::from(q)).sum();
            assert_eq!(raw, want, "wrong answer at row {r}, token {t}");
        }
    }
}

fn dense_table(isa: Isa, limits: &Limits) {
    println!("dense head {HEAD_ROWS} x {HEAD_COLS}: kind, n | GB/s of weights, of read limit | GFLOPS, of fma limit");
    for kind in [DenseKind::F16, DenseKind::Q8_0, DenseKind::Q6K] {
        let bytes = kind.row_bytes(HEAD_COLS) * HEAD_ROWS;
        let mut memory = Memory::new(bytes);
        fill_dense(kind, memory.bytes_mut());
        let w = DenseMatrix::new(kind, memory.bytes(), HEAD_ROWS, HEAD_COLS).expect("whole rows");
        for n in [1, 2, 4, 8, 16, 32] {
            let x: Vec<f32> = (0..n * HEAD_COLS).map(|i| f32::from(noise(i)) / 128.0 - 1.0).collect();
            let mut scratch = DenseScratch::new(n);
            let (mut want, mut out) = (vec![0.0; n * 32], vec![0.0; n * CHUNK_ROWS]);
            dense::linear(Isa::Portable, w, 64..96, &x, &mut want, &mut scratch);
            dense::linear(isa, w, 64..96, &x, &mut out[..n * 32], &mut scratch);
            assert_eq!(out[..n * 32], want, "wrong answer");
            // A part of the head is enough where the arithmetic takes long.
            let rows = (HEAD_ROWS * 2 / (n + 1)).min(HEAD_ROWS) / CHUNK_ROWS * CHUNK_ROWS;
            let seconds = best(BUDGET, || {
                for first in (0..rows).step_by(CHUNK_ROWS) {
                    dense::linear(isa, w, first..first + CHUNK_ROWS, &x, &mut out, &mut scratch);
                }
                black_box(&out);
            });
            let rate = (kind.row_bytes(HEAD_COLS) * rows) as f64 / seconds;
            let ops = (2 * rows * HEAD_COLS * n) as f64 / seconds;
            let of_float = limits.float.map_or("-".into(), |peak| format!("{:3.0} %", 100.0 * ops / peak));
            println!(
                "{kind:?}, {n:3} | {:5.1} {:3.0} % | {:6.1} {of_float}",
                rate / 1e9,
                100.0 * rate / limits.read,
                ops / 1e9
            );
        }
    }
}

/// Any finite weights.
fn fill_dense(kind: DenseKind, bytes: &mut [u8]) {
    for (i, block) in bytes.chunks_exact_mut(kind.block_bytes()).enumerate() {
        for (j, byte) in block.iter_mut().enumerate() {
            *byte = noise(i * 210 + j);
        }
        let half = (0x2400 | u16::from(noise(i))).to_le_bytes();
        match kind {
            DenseKind::Q6K => block[208..].copy_from_slice(&half),
            _ => block[..2].copy_from_slice(&half),
        }
    }
}

/// The int8 screen of an F16 head: all bounds for `n` rows of one or two planes.
fn screen_table(isa: Isa, limits: &Limits) {
    println!("screen of {HEAD_ROWS} x {HEAD_COLS}: n x planes | GB/s of codes, of read limit | GOPS, of int8 limit");
    let kind = DenseKind::F16;
    let mut memory = Memory::new(kind.row_bytes(HEAD_COLS) * HEAD_ROWS);
    fill_dense(kind, memory.bytes_mut());
    let w = DenseMatrix::new(kind, memory.bytes(), HEAD_ROWS, HEAD_COLS).expect("whole rows");
    let mut copy = Memory::new(screen::packed_bytes(HEAD_ROWS, HEAD_COLS));
    let groups = HEAD_ROWS / GROUP_ROWS;
    let start = thread_seconds();
    let (out, greatest) = copy.bytes_mut().split_at_mut(groups * screen::group_bytes(HEAD_COLS));
    let weight_max = screen::pack(isa, w, 0..groups, out, greatest);
    println!("packed in {:.2} s", thread_seconds() - start);
    let matrix = ScreenMatrix::new(copy.bytes(), &w, weight_max).expect("finite weights");
    for (n, planes) in [(1, 1), (1, 2), (2, 2), (4, 2), (8, 1), (8, 2), (16, 1), (32, 1), (32, 2)] {
        let stride = 2 * screen::plane_stride(HEAD_COLS);
        let mut values = vec![0; n * stride];
        let x: Vec<f32> = (0..HEAD_COLS).map(|i| f32::from(noise(i)) / 128.0 - 1.0).collect();
        let rows: Vec<_> = values.chunks_mut(stride).map(|values| screen::split(isa, &x, planes, values)).collect();
        let mut x = ScreenInput::default();
        x.set(HEAD_COLS, ScreenRows { planes: &values, rows: &rows });
        let (mut want, mut out) = (vec![0.0; n * GROUP_ROWS], vec![0.0; n * CHUNK_ROWS]);
        screen::lower_bounds(Isa::Portable, matrix, 1..2, &mut x, &mut want);
        screen::lower_bounds(isa, matrix, 1..2, &mut x, &mut out[..n * GROUP_ROWS]);
        assert_eq!(out[..n * GROUP_ROWS], want, "wrong answer");
        let seconds = best(BUDGET, || {
            for first in (0..groups).step_by(CHUNK_ROWS / GROUP_ROWS) {
                screen::lower_bounds(isa, matrix, first..first + CHUNK_ROWS / GROUP_ROWS, &mut x, &mut out);
            }
            black_box(&out);
        });
        let rate = copy.bytes().len() as f64 / seconds;
        let ops = (2 * HEAD_ROWS * HEAD_COLS * n * planes) as f64 / seconds;
        let of_int8 = limits.int8.map_or("-".into(), |peak| format!("{:3.0} %", 100.0 * ops / peak));
        println!(
            "{n:2} x {planes} | {:5.1} {:3.0} % | {:6.1} {of_int8} | {:.2} ms",
            rate / 1e9,
            100.0 * rate / limits.read,
            ops / 1e9,
            seconds * 1e3
        );
    }
}

fn other_table(isa: Isa) {
    let x: Vec<f32> = (0..6912).map(|k| f32::from(noise(k)) - 127.5).collect();
    let mut q = vec![0; ternary::padded_cols(x.len())];
    let seconds = best(BUDGET, || {
        black_box(ternary::quantize(isa, black_box(&x), &mut q));
    });
    println!("quantize 6912: {:.2} us, {:.1} GB/s of input", seconds * 1e6, x.len() as f64 * 4.0 / seconds / 1e9);

    let (rows, cols) = (6912, 2560);
    let data = vec![0b01_10_00_01; rows * cols / 4];
    let mut out = vec![0; ternary::packed_bytes(rows, cols)];
    let seconds = best(BUDGET, || {
        ternary::pack_i2s(black_box(&data), 0..rows, cols, &mut out).expect("codes are 0 to 2");
    });
    println!("pack_i2s {rows} x {cols}: {:.2} GB/s of packed bytes", out.len() as f64 / seconds / 1e9);
}

const BUDGET: Duration = Duration::from_millis(400);
const READ_BYTES: usize = 512 << 20;
/// More than third-level caches hold.
const COPIES_BYTES: usize = 768 << 20;
const HUGE: usize = 2 << 20;
/// Rows of a call, as a worker makes them.
const CHUNK_ROWS: usize = 256;
const TOKENS: [usize; 10] = [1, 2, 4, 8, 12, 16, 24, 32, 128, 512];
/// Shares of rows and columns that count.
const SHARES: [f64; 4] = [0.21, 0.46, 0.75, 1.0];
const HEAD_ROWS: usize = 128_256;
const HEAD_COLS: usize = 2560;
