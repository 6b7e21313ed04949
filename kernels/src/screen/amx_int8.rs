//! AMX: tiles of 16 planes x 64 columns meet 16 tiles of the copy as they are.
#![expect(unsafe_code, reason = "instructions without intrinsics, and calls of functions with target features")]

use std::arch::asm;

use super::avx512_vnni::{few, fine};
use super::bounds::{Job, Planes, Sums, TILE_COLS};
use super::layout::Tile;
use crate::AmxInt8;
use crate::tiles::{TILE_ROWS, Tiles, tile_rows};

pub(super) fn run(proof: AmxInt8, job: Job<'_>, sums: &mut [Sums]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn body(tiles: &Tiles, job: Job<'_>, sums: &mut [Sums]) {
        job.run(
            sums,
            |w, planes, sums| products(tiles, w, planes, sums),
            |w, outliers| few(w, outliers),
            |w, planes, sums| fine(w, planes, sums),
        );
    }
    let tiles = Tiles::new(proof, tile_rows(job.planes()));
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(&tiles, job, sums) }
}

/// Groups of up to 32 planes; a last one that would be short begins earlier, and finds the same sums once more.
fn products(tiles: &Tiles, w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]) {
    let (count, [first, second]) = (planes.len(), tiles.rows());
    let (low, high) = sums.split_at_mut(count);
    let steps = w[0].len() / TILE_RUNS;
    let stride = planes.lines.len() / count;
    assert!(steps > 0 && w[0].len().is_multiple_of(TILE_RUNS) && w[1].len() == w[0].len(), "whole tiles");
    assert!(stride >= steps * TILE_COLS && high.len() == count, "planes hold all columns, and there are sums for each");
    let rows = first + second;
    let mut start = 0;
    loop {
        let from = start.min(count - rows);
        let operands = Operands {
            w: [w[0].as_ptr(), w[1].as_ptr()],
            x: planes.lines[from * stride..].as_ptr(),
            stride,
            sums: [low[from..].as_mut_ptr(), high[from..].as_mut_ptr()],
            steps,
        };
        if second == 0 {
            // SAFETY: `rows` planes and sums from `from` on are there, of as many columns as the steps take; the tiles are
            // configured for so many.
            unsafe { one_tile(&operands) }
        } else {
            // SAFETY: as above.
            unsafe { two_tiles(&operands) }
        }
        start += rows;
        if start >= count {
            return;
        }
    }
}

/// What tiles read and write.
struct Operands {
    w: [*const Tile; 2],
    x: *const i8,
    stride: usize,
    sums: [*mut Sums; 2],
    steps: usize,
}

/// Asks for the 32 lines that lie at `ahead`.
macro_rules! prefetch {
    () => {
        ".irp at,0,64,128,192,256,320,384,448,512,576,640,704,768,832,896,960,1024,1088,1152,1216,1280,1344,1408,1472,1536,\
         1600,1664,1728,1792,1856,1920,1984\nprefetcht1 [{ahead} + \\at]\n.endr"
    };
}

/// Sums of both tile rows with two tiles of planes; meanwhile asks for the two tile rows behind these.
///
/// # Safety
/// Tiles are configured, and what they read and write in so many steps, at least 1, is there.
#[inline]
unsafe fn two_tiles(o: &Operands) {
    // SAFETY: as the caller says; flags and tiles are clobbered, memory is written at `sums` only.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{low} + {line}*1]",
            "tileloadd tmm4, [{x} + {stride}*1]",
            "tileloadd tmm7, [{high} + {line}*1]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{y} + {stride}*1]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            prefetch!(),
            "add {x}, 64",
            "add {y}, 64",
            "add {low}, 1024",
            "add {high}, 1024",
            "add {ahead}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{low_sums} + {line}*1], tmm0",
            "tilestored [{high_sums} + {line}*1], tmm1",
            "tilestored [{low_sums} + {line}*1 + 1024], tmm2",
            "tilestored [{high_sums} + {line}*1 + 1024], tmm3",
            low = inout(reg) o.w[0] => _,
            high = inout(reg) o.w[1] => _,
            ahead = inout(reg) o.w[0].wrapping_add(2 * o.steps * TILE_RUNS) => _,
            line = in(reg) size_of::<Tile>(),
            x = inout(reg) o.x => _,
            y = inout(reg) o.x.wrapping_add(TILE_ROWS * o.stride) => _,
            stride = in(reg) o.stride,
            steps = inout(reg) o.steps => _,
            low_sums = in(reg) o.sums[0],
            high_sums = in(reg) o.sums[1],
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The same with one tile of planes.
///
/// # Safety
/// As [`two_tiles`].
#[inline]
unsafe fn one_tile(o: &Operands) {
    // SAFETY: as the caller says; flags and tiles are clobbered, memory is written at `sums` only.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm6, [{low} + {line}*1]",
            "tileloadd tmm4, [{x} + {stride}*1]",
            "tileloadd tmm7, [{high} + {line}*1]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tdpbsud tmm1, tmm4, tmm7",
            prefetch!(),
            "add {x}, 64",
            "add {low}, 1024",
            "add {high}, 1024",
            "add {ahead}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{low_sums} + {line}*1], tmm0",
            "tilestored [{high_sums} + {line}*1], tmm1",
            low = inout(reg) o.w[0] => _,
            high = inout(reg) o.w[1] => _,
            ahead = inout(reg) o.w[0].wrapping_add(2 * o.steps * TILE_RUNS) => _,
            line = in(reg) size_of::<Tile>(),
            x = inout(reg) o.x => _,
            stride = in(reg) o.stride,
            steps = inout(reg) o.steps => _,
            low_sums = in(reg) o.sums[0],
            high_sums = in(reg) o.sums[1],
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

// `line` is the distance of tiles of the copy and of sums; 1024 bytes are 16 of either.
const _: () = assert!(size_of::<Tile>() == 64 && size_of::<Sums>() == 64 && TILE_RUNS == TILE_ROWS);

/// Tiles of the copy, four columns each, that make one here.
const TILE_RUNS: usize = TILE_COLS / 4;
