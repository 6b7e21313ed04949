//! Quantised rows in the order of a panel: runs of four columns change places with rows.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "loads, stores and a call of a function with target features")
)]

use super::super::layout::TILE_COLS;
use super::{PANEL_ROWS_MAX, Runs};
use crate::Isa;

/// Puts `count` quantised rows of `n` in all, which start `stride` apart in `rows`, in the order of a panel.
///
/// # Panics
/// Where they are more than [`PANEL_ROWS_MAX`], or `panel` is not `count` rows of whole runs of 4 columns, or longer ones
/// than `rows` holds.
pub fn interleave(isa: Isa, rows: &[i8], stride: usize, (count, n): (usize, usize), panel: &mut [i8]) {
    assert!(count <= PANEL_ROWS_MAX && panel.len().is_multiple_of(4 * count), "rows of whole runs");
    let width = panel.len() / count;
    assert!(width <= stride && rows.len() >= (count - 1) * stride + width, "rows hold the panel's columns");
    let (panel, runs) = (panel.as_chunks_mut::<4>().0, Runs::of(isa, n, width / TILE_COLS));
    let done = match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the token proves that these instructions exist.
        Isa::Avx512Vnni(proof) => unsafe { x86::blocks(proof.bw(), (rows, stride), count, runs, panel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AmxInt8(proof) => unsafe { x86::blocks(proof.vnni().bw(), (rows, stride), count, runs, panel) },
        _ => 0,
    };
    if done * count == panel.len() {
        return;
    }
    for t in 0..count {
        let row = rows[t * stride..][..width].as_chunks::<4>().0;
        for (run, values) in row.iter().enumerate().skip(done) {
            panel[runs.place(run) * count + t] = *values;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4,
        _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };

    use super::super::Runs;
    use crate::Avx512Bw;

    /// Runs that are turned together: as many as a register holds.
    const RUNS: usize = 16;

    /// The first runs of each row, as many as make whole blocks; how many these are.
    #[target_feature(enable = "avx512f")]
    pub(super) fn blocks(
        _: Avx512Bw,
        (rows, stride): (&[i8], usize),
        count: usize,
        runs: Runs,
        panel: &mut [[i8; 4]],
    ) -> usize {
        for block in runs.blocks() {
            for first in block.clone().step_by(RUNS / 4) {
                let mut lines = [_mm512_setzero_si512(); RUNS];
                for (t, line) in lines.iter_mut().enumerate() {
                    if t < count {
                        *line = load(&rows[t * stride..].as_chunks().0[first / (RUNS / 4)]);
                    }
                }
                let (places, step) = runs.places(&block, first);
                for (run, line) in turn(lines).into_iter().enumerate() {
                    store(line, &mut panel[(places[run % 4] + run / 4 * step) * count..][..count]);
                }
            }
        }
        panel.len() / count / RUNS * RUNS
    }

    /// Dword `t` of line `r` becomes dword `r` of line `t`.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn turn(lines: [__m512i; RUNS]) -> [__m512i; RUNS] {
        let (mut twos, mut fours) = (lines, lines);
        for i in (0..RUNS).step_by(2) {
            twos[i] = _mm512_unpacklo_epi32(lines[i], lines[i + 1]);
            twos[i + 1] = _mm512_unpackhi_epi32(lines[i], lines[i + 1]);
        }
        // Of lines 4 i ..+ 4: in each quarter q of `fours[4 i + j]` the dwords `4 q + j`.
        for i in (0..RUNS).step_by(4) {
            for j in 0..2 {
                fours[i + 2 * j] = _mm512_unpacklo_epi64(twos[i + j], twos[i + 2 + j]);
                fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(twos[i + j], twos[i + 2 + j]);
            }
        }
        let mut turned = lines;
        for j in 0..4 {
            let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
            let (even, odd) = (
                [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)],
                [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)],
            );
            turned[j] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
            turned[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
            turned[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
            turned[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
        }
        turned
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load(runs: &[i8; 64]) -> __m512i {
        // SAFETY: 64 readable bytes; the load has no alignment requirement.
        unsafe { _mm512_loadu_si512(runs.as_ptr().cast()) }
    }

    /// The first dwords, as many as `out` has: at most 16.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn store(line: __m512i, out: &mut [[i8; 4]]) {
        let mask = (1_u16 << out.len()) - 1;
        // SAFETY: the mask leaves out what is past the slice; the store has no alignment requirement.
        unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), mask, line) }
    }
}
