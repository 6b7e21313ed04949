//! Which weights are wanted next: what a call asks for while it multiplies with those that it has.

use super::super::layout::Tile;
use super::PanelJob;
use crate::ahead::{Ahead, PAGE_LINES, Pages};

/// What a call that begins asks for, as if whoever came before had asked for what it reads first.
pub(super) fn of<'a>(job: &PanelJob<'a>) -> Ahead<Pieces<'a>> {
    // Two rows of tiles that lie one behind the other are read side by side.
    let near = if job.gated() { PAIR_PIECES } else { 1 + job.tiles_per_row().div_ceil(PAGE_LINES) };
    Ahead::new(Pieces::of(job), near)
}

/// Weights in the order in which they are read, a page at a time, of gate and up in turn.
pub(super) struct Pieces<'a> {
    left: [&'a [Tile]; 2],
    /// What is likely to be read afterwards.
    then: [&'a [Tile]; 2],
    gated: bool,
    side: usize,
    /// Where the last one began.
    last: *const Tile,
}

impl<'a> Pieces<'a> {
    fn of(job: &PanelJob<'a>) -> Self {
        let second = |[first, second]: [&'a [Tile]; 2]| [first, if job.gated() { second } else { &[] }];
        let last = job.tiles[0].as_ptr();
        Self { left: second(job.tiles), then: second(job.following), gated: job.gated(), side: 0, last }
    }
}

impl Pages for Pieces<'_> {
    fn next(&mut self) -> *const Tile {
        if self.left[self.side].is_empty() {
            self.left[self.side] = std::mem::take(&mut self.then[self.side]);
        }
        let left = &mut self.left[self.side];
        if !left.is_empty() {
            self.last = left.as_ptr();
            *left = &left[PAGE_LINES.min(left.len())..];
        }
        self.side = usize::from(self.gated) - self.side;
        self.last
    }
}

/// Of gate and up a piece each.
const PAIR_PIECES: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_pages_of_both_matrices_in_turn_and_of_what_follows() {
        let tiles = vec![[0; 64]; 600];
        let at = |index: usize| tiles[index..].as_ptr();
        let (left, then) = ([&tiles[..130], &tiles[200..330]], [&tiles[400..500], &tiles[500..]]);
        let mut pieces = Pieces { left, then, gated: true, side: 0, last: at(0) };
        for expected in [0, 200, 64, 264, 128, 328, 400, 500, 464, 564, 564, 564] {
            assert_eq!(pieces.next(), at(expected));
        }
        let mut pieces = Pieces { left: [&tiles[..65], &[]], then: [&[], &[]], gated: false, side: 0, last: at(0) };
        for expected in [0, 64, 64] {
            assert_eq!(pieces.next(), at(expected));
        }
    }
}
