//! The reference products.

use super::layout::Tile;
use super::lower::{Planes, Sums};

pub(super) fn products(w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]) {
    for (tiles, sums) in w.into_iter().zip(sums.chunks_exact_mut(planes.len())) {
        for (plane, sums) in sums.iter_mut().enumerate() {
            *sums = [0; _];
            for (tile, x) in tiles.iter().zip(planes.dwords(plane)) {
                for (sum, codes) in sums.iter_mut().zip(tile.as_chunks::<4>().0) {
                    for (code, x) in codes.iter().zip(x) {
                        *sum += i32::from(*code) * i32::from(*x);
                    }
                }
            }
        }
    }
}
