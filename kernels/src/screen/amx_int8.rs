//! AMX: tiles of 16 planes x 64 columns meet 16 tiles of the copy as they are.
#![expect(unsafe_code, reason = "instructions without intrinsics, and calls of functions with target features")]

use std::arch::asm;

use super::avx512_vnni::{few, fine};
use super::bounds::{Job, Planes, Sums, TILE_COLS};
use super::layout::Tile;
use crate::AmxInt8;
use crate::tiles::{STEPS_BETWEEN_STORES, TILE_ROWS, Tiles, tile_rows};

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

/// What multiplies.
trait Multiply {
    /// Planes of the first and of the second tile, in every group.
    fn rows(&self) -> [usize; 2];

    fn multiply(&self, group: Group<'_>);
}

/// As many planes as tiles hold, and two tile rows.
struct Group<'a> {
    w: [&'a [Tile]; 2],
    /// From the first plane on.
    x: &'a [i8],
    stride: usize,
    /// Of each plane, for both tile rows.
    sums: [&'a mut [Sums]; 2],
}

impl Group<'_> {
    /// Pairs of tiles, each 64 columns; there are so many of everything.
    fn steps(&self, rows: usize) -> usize {
        let steps = self.w[0].len() / TILE_RUNS;
        assert!(steps > 0 && self.w.iter().all(|w| w.len() == steps * TILE_RUNS), "whole tiles");
        assert!(rows > 0 && self.sums.iter().all(|sums| sums.len() == rows), "sums for each plane");
        assert!(self.stride >= steps * TILE_COLS, "planes do not overlap");
        assert!(self.x.len() >= (rows - 1) * self.stride + steps * TILE_COLS, "planes hold all columns");
        steps
    }
}

/// Groups of up to 32 planes; a last one that would be short begins earlier, and finds the same sums once more.
fn products(unit: &impl Multiply, w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]) {
    let (count, rows) = (planes.len(), unit.rows().iter().sum());
    let (low, high) = sums.split_at_mut(count);
    let stride = planes.lines.len() / count;
    for start in (0..count).step_by(rows) {
        let from = start.min(count - rows);
        let sums = [&mut low[from..from + rows], &mut high[from..from + rows]];
        unit.multiply(Group { w, x: &planes.lines[from * stride..], stride, sums });
    }
}

impl Multiply for Tiles {
    fn rows(&self) -> [usize; 2] {
        self.rows()
    }

    fn multiply(&self, group: Group<'_>) {
        let [first, second] = self.rows();
        let steps = group.steps(first + second);
        let Group { w, x, stride, sums } = group;
        let operands = Operands {
            w: [w[0].as_ptr(), w[1].as_ptr()],
            x: x.as_ptr(),
            stride,
            sums: sums.map(<[Sums]>::as_mut_ptr),
            steps,
        };
        if second == 0 {
            // SAFETY: `steps` has checked that planes and sums for the configured rows are there, of as many columns as the
            // steps take; `new` had the proof that the instructions exist.
            unsafe { one_tile(&operands) }
        } else {
            // SAFETY: as above.
            unsafe { two_tiles(&operands) }
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

/// Asks for the tiles behind the next ones of both tile rows, and stores something from time to time ([`STEPS_BETWEEN_STORES`]):
/// the sums of the first plane, which are not known yet.
///
/// So near and in the order of the loads, the machine's own prefetching helps: loops of such steps on one core read 16.7 GB/s of
/// 16.0 to 16.4, with the two tile rows behind these asked for as one stream 12.5, as two 15.4, with nothing asked for 13.0.
macro_rules! between {
    () => {
        ".irp at,2048,2112,2176,2240,2304,2368,2432,2496,2560,2624,2688,2752,2816,2880,2944,3008\nprefetcht0 [{low} + \\at]\n\
         prefetcht0 [{high} + \\at]\n.endr\n\
         test {steps:e}, 15\njnz 3f\ntilestored [{low_sums} + {same}*1], tmm6\n3:"
    };
}

/// Sums of both tile rows with two tiles of planes.
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
            between!(),
            "add {x}, 64",
            "add {y}, 64",
            "add {low}, 1024",
            "add {high}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{low_sums} + {line}*1], tmm0",
            "tilestored [{high_sums} + {line}*1], tmm1",
            "tilestored [{low_sums} + {line}*1 + 1024], tmm2",
            "tilestored [{high_sums} + {line}*1 + 1024], tmm3",
            low = inout(reg) o.w[0] => _,
            high = inout(reg) o.w[1] => _,
            same = in(reg) 0_usize,
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
            between!(),
            "add {x}, 64",
            "add {low}, 1024",
            "add {high}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{low_sums} + {line}*1], tmm0",
            "tilestored [{high_sums} + {line}*1], tmm1",
            low = inout(reg) o.w[0] => _,
            high = inout(reg) o.w[1] => _,
            same = in(reg) 0_usize,
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
const _: () = assert!(STEPS_BETWEEN_STORES == 16, "as `between` counts");

/// Tiles of the copy, four columns each, that make one here.
const TILE_RUNS: usize = TILE_COLS / 4;

#[cfg(test)]
mod tests {
    use super::super::activations::{Precision, ScreenRows, plane_stride, planes_len, split};
    use super::super::bounds::ScreenInput;
    use super::super::portable;
    use super::*;
    use crate::Isa;
    use crate::testing::Draw;
    use crate::tiles::emulated::Emulated;

    impl Multiply for Emulated {
        fn rows(&self) -> [usize; 2] {
            [self.rows(4), self.rows(5)]
        }

        fn multiply(&self, group: Group<'_>) {
            let rows = Multiply::rows(self);
            let steps = group.steps(rows[0] + rows[1]);
            let x: Vec<u8> = group.x.iter().map(|q| q.cast_unsigned()).collect();
            for (side, (w, memory)) in group.w.into_iter().zip(group.sums).enumerate() {
                for half in (0..2).filter(|&half| rows[half] > 0) {
                    let (own, mut sums) = (half * TILE_ROWS, [[0; 16]; TILE_ROWS]);
                    for step in 0..steps {
                        let a = self.load(4 + half, &x[own * group.stride + step * TILE_COLS..], group.stride);
                        let codes = w[step * TILE_RUNS..][..TILE_RUNS].as_flattened();
                        let b = self.load(6 + side, codes, size_of::<Tile>());
                        self.dot(&mut sums, (4 + half, &a), (6 + side, &b));
                    }
                    memory[own..own + rows[half]].copy_from_slice(&sums[..rows[half]]);
                }
            }
        }
    }

    /// Order, groups and what is read of planes, with tiles that are emulated, so that they are tested where none exist.
    #[test]
    fn emulated_tiles_give_the_sums_of_the_definition() {
        let mut draw = Draw::new(8);
        for (at, n) in [9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 97].into_iter().enumerate() {
            let cols = [64, 192, 448][at % 3];
            let x = draw.floats(n * cols, 3.0);
            let mut values = vec![0; n * planes_len(cols)];
            let each = x.chunks(cols).zip(values.chunks_mut(planes_len(cols))).enumerate();
            // Some rows with two whole planes.
            let precision = |t: usize| if (t + at).is_multiple_of(4) { Precision::Two } else { Precision::Refined };
            let rows: Vec<_> = each.map(|(t, (x, values))| split(Isa::Portable, x, precision(t), values)).collect();
            let mut input = ScreenInput::new(n, cols);
            let x = ScreenRows { planes: &values, rows: &rows };
            input.set(Isa::Portable, cols, x);
            input.lay_in_lines(cols, x);
            let planes = input.planes();
            assert_eq!(planes.lines.len(), planes.len() * plane_stride(cols));
            let mut tile_rows_of = || -> Vec<Tile> {
                (0..cols / 4).map(|_| std::array::from_fn(|_| u8::try_from(1 + draw.below(255)).unwrap())).collect()
            };
            let w = [tile_rows_of(), tile_rows_of()];
            let w = [w[0].as_slice(), w[1].as_slice()];
            let mut want = vec![[7; 16]; 2 * planes.len()];
            let mut got = vec![[9; 16]; 2 * planes.len()];
            portable::products(w, planes, &mut want);
            products(&Emulated::new(tile_rows(planes.len())), w, planes, &mut got);
            assert_eq!(got, want, "{n} rows of {cols}");
        }
    }
}
