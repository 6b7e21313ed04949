//! AMX's tiles: their configuration, which a thread holds for as long as a call takes.
#![expect(unsafe_code, reason = "instructions without intrinsics")]

use std::arch::asm;

use crate::AmxInt8;

/// Rows of a tile, 64 bytes each.
pub(crate) const TILE_ROWS: usize = 16;

/// Steps, each two by two products of tiles, after which something is stored: the first store of a tile for more than some 2200
/// cycles takes 850 cycles more than others, where a step takes 64 or more. Which tile is stored does not matter; stores of
/// vectors do not help.
pub(crate) const STEPS_BETWEEN_STORES: usize = 16;

/// The tiles of this thread while they are configured: 0 and 1 hold the sums of the first tile of activations, 2 and 3 those of
/// the second, 4 and 5 activations, 6 and 7 what both meet.
pub(crate) struct Tiles {
    rows: [usize; 2],
}

impl Tiles {
    /// For so many rows in the first and in the second tile of activations. This and the end take 80 ns.
    pub(crate) fn new(_: AmxInt8, rows: [usize; 2]) -> Self {
        let config = Config::new(rows);
        // SAFETY: the token proves that tiles exist and that the kernel lets this process use them; the configuration is 64
        // readable bytes, and valid: palette 1, at most 16 rows of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags, readonly)) };
        Self { rows }
    }

    pub(crate) fn rows(&self) -> [usize; 2] {
        self.rows
    }
}

impl Drop for Tiles {
    /// Tiles without contents are nothing that a switch of threads has to save, nor keep a core from sleeping deeply.
    fn drop(&mut self) {
        // SAFETY: `new` had the proof that the instruction exists; nothing is expected in tiles between calls.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Rows of the first and of the second tile of activations, for `n` in all.
pub(crate) fn tile_rows(n: usize) -> [usize; 2] {
    [n.min(TILE_ROWS), n.saturating_sub(TILE_ROWS).min(TILE_ROWS)]
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Config>() == 64);

impl Config {
    fn new([first, second]: [usize; 2]) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let of_tiles = [first, first, second, second, first, second, TILE_ROWS, TILE_ROWS];
        for (tile, rows) in of_tiles.into_iter().enumerate() {
            assert!(rows <= TILE_ROWS, "a tile has 16 rows");
            config.rows[tile] = u8::try_from(rows).expect("as asserted");
            config.row_bytes[tile] = if rows == 0 { 0 } else { 64 };
        }
        config
    }
}

/// Products and sums of whole tiles in registers, `rounds` times four; returns the number of operations.
pub(crate) fn peak(proof: AmxInt8, rounds: usize) -> usize {
    let _tiles = Tiles::new(proof, [TILE_ROWS; 2]);
    for _ in 0..rounds {
        // SAFETY: tiles are configured; the instructions touch nothing but them.
        unsafe {
            asm!(
                "tdpbsud tmm0, tmm4, tmm6",
                "tdpbsud tmm1, tmm4, tmm7",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }
    rounds * 4 * TILE_ROWS * TILE_ROWS * 64 * 2
}

/// What the instructions do, by their definition, on slices: it never reads or writes past them.
#[cfg(test)]
pub(crate) mod emulated {
    use super::{Config, TILE_ROWS};

    pub(crate) type Tile = [[u8; 64]; TILE_ROWS];
    pub(crate) type Sums = [[i32; 16]; TILE_ROWS];

    pub(crate) struct Emulated {
        config: Config,
    }

    impl Emulated {
        pub(crate) fn new(rows: [usize; 2]) -> Self {
            Self { config: Config::new(rows) }
        }

        pub(crate) fn rows(&self, tile: usize) -> usize {
            usize::from(self.config.rows[tile])
        }

        /// `tileloadd`.
        pub(crate) fn load(&self, tile: usize, memory: &[u8], line: usize) -> Tile {
            let (mut loaded, bytes) = ([[0; 64]; TILE_ROWS], usize::from(self.config.row_bytes[tile]));
            for (row, loaded) in loaded.iter_mut().take(self.rows(tile)).enumerate() {
                loaded[..bytes].copy_from_slice(&memory[row * line..][..bytes]);
            }
            loaded
        }

        /// `tdpbsud`.
        pub(crate) fn dot(&self, sums: &mut Sums, a: (usize, &Tile), b: (usize, &Tile)) {
            let (m, k) = (self.rows(a.0), usize::from(self.config.row_bytes[a.0]) / 4);
            assert_eq!(self.rows(b.0), k, "a fault of the processor otherwise");
            for (sums, a) in sums.iter_mut().zip(a.1).take(m) {
                for (run, b) in a.as_chunks::<4>().0.iter().zip(b.1).take(k) {
                    for (sum, b) in sums.iter_mut().zip(b.as_chunks::<4>().0) {
                        for (a, b) in run.iter().zip(b) {
                            *sum = sum.wrapping_add(i32::from(a.cast_signed()) * i32::from(*b));
                        }
                    }
                }
            }
        }
    }
}
