//! Which weights are wanted next: what a call asks for while it multiplies with those that it has.
//!
//! In eight pieces of a page side by side, each an eighth behind the one before, a line of each in turn: a request of ours holds
//! one of the few that a first-level cache may have until the line is there, unless the machine, which follows each page, has
//! asked before, and so only one of the pages is one that it does not follow yet.
#![expect(unsafe_code, reason = "prefetches")]

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use super::super::layout::Tile;
use super::PanelJob;

/// What is asked for while one piece is read: an eighth of each of eight, the last one of the first and the first one of the
/// last.
pub(super) struct Ahead<'a> {
    pieces: Pieces<'a>,
    /// Where the eighths are, in a ring, and which is that of the first piece.
    places: [*const Tile; STREAMS],
    first: usize,
    /// Lines of these eighths so far.
    asked: usize,
}

impl<'a> Ahead<'a> {
    /// For a call that begins, as if whoever came before had asked for what it reads first.
    pub(super) fn new(job: &PanelJob<'a>) -> Self {
        let mut pieces = Pieces::of(job);
        // Two rows of tiles that lie one behind the other are read side by side.
        let before = if job.gated() { PAIR_PIECES } else { 1 + job.tiles_per_row().div_ceil(PIECE) };
        for _ in 0..before {
            pieces.next();
        }
        let mut places = [pieces.last; STREAMS];
        for (at, place) in places.iter_mut().enumerate() {
            *place = pieces.next().wrapping_add((STREAMS - 1 - at) * EIGHTH);
        }
        Self { pieces, places, first: 0, asked: 0 }
    }

    /// Asks for so many lines.
    #[inline(always)]
    pub(super) fn ask<const LINES: usize>(&mut self) {
        const { assert!(LINES.is_power_of_two() && LINES <= STREAMS) };
        let line = self.asked / STREAMS;
        for nth in 0..LINES {
            let place = self.places[(self.asked + nth) % STREAMS].wrapping_add(line);
            // SAFETY: a prefetch reads nothing that a program can see and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) }
        }
        self.asked += LINES;
        if self.asked >= STREAMS * EIGHTH {
            self.advance();
        }
    }

    /// The next eighth of each piece.
    fn advance(&mut self) {
        for place in &mut self.places {
            *place = place.wrapping_add(EIGHTH);
        }
        self.places[self.first] = self.pieces.next();
        (self.first, self.asked) = ((self.first + 1) % STREAMS, 0);
    }
}

/// Weights in the order in which they are read, a page at a time, of gate and up in turn.
struct Pieces<'a> {
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

    /// Where the next one begins; the last one again where none is left, which is no longer far.
    fn next(&mut self) -> *const Tile {
        if self.left[self.side].is_empty() {
            self.left[self.side] = std::mem::take(&mut self.then[self.side]);
        }
        let left = &mut self.left[self.side];
        if !left.is_empty() {
            self.last = left.as_ptr();
            *left = &left[PIECE.min(left.len())..];
        }
        self.side = usize::from(self.gated) - self.side;
        self.last
    }
}

/// Pieces side by side, and the lines of an eighth of each.
const STREAMS: usize = 8;
const EIGHTH: usize = PIECE / STREAMS;
/// Lines of a piece: a page.
const PIECE: usize = 64;
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

    /// Behind the pieces that a call begins with, each line is asked for once.
    #[test]
    fn eighths_make_whole_pieces() {
        let tiles = vec![[0; 64]; 40 * PIECE];
        let at = |index: usize| tiles[index..].as_ptr();
        let mut pieces = Pieces { left: [&tiles, &[]], then: [&[], &[]], gated: false, side: 0, last: at(0) };
        let mut places = [at(0); STREAMS];
        for (index, place) in places.iter_mut().enumerate() {
            *place = pieces.next().wrapping_add((STREAMS - 1 - index) * EIGHTH);
        }
        let mut ahead = Ahead { pieces, places, first: 0, asked: 0 };
        let mut lines = Vec::new();
        for _ in 0..30 * STREAMS {
            for nth in 0..EIGHTH {
                lines.extend(ahead.places.map(|place| (place.addr() - at(0).addr()) / 64 + nth));
            }
            for _ in 0..EIGHTH {
                ahead.ask::<STREAMS>();
            }
        }
        lines.sort_unstable();
        let whole: Vec<_> = lines.iter().copied().filter(|line| (STREAMS * PIECE..30 * PIECE).contains(line)).collect();
        assert!(whole.iter().copied().eq(STREAMS * PIECE..30 * PIECE));
    }
}
