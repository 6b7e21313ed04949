//! The reference products.

use super::bounds::{Planes, Sums};
use super::layout::Tile;

pub(super) fn products(w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]) {
    for (tiles, sums) in w.into_iter().zip(sums.chunks_exact_mut(planes.len())) {
        for part in planes.parts(1) {
            let mut all = [0; _];
            for (tile, x) in tiles.iter().zip(part.dwords.iter().step_by(part.stride)) {
                for (sum, codes) in all.iter_mut().zip(tile.as_chunks::<4>().0) {
                    for (code, x) in codes.iter().zip(x) {
                        *sum += i32::from(*code) * i32::from(*x);
                    }
                }
            }
            sums[part.start] = all;
        }
    }
}
