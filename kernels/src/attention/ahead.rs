//! Which part of the cache is wanted next: what a tile asks for while it computes with what it has.
//!
//! Blocks of keys and of values alternate by split, so the machine's own prefetching ends at every block, and alone it is
//! too late at the start of a page. Memory is kept busy by asking in that order, all the time, in eight pieces of up to a
//! page side by side, each an eighth behind the one before: a request of ours holds one of the few that a first-level cache
//! may have until the line is there, unless the machine, which follows each page, has asked before, and so only one of the
//! pages is one that it does not follow yet.

use super::{BLOCK, KvView, SPLIT};
use crate::simd::Simd;

/// Keys and values of a sequence that are read, split by split.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    pub kv: KvView<'a>,
    /// First position, the start of a split, and the one behind the last.
    pub start: usize,
    pub end: usize,
}

/// What is asked for while one piece is read: an eighth of each of the eight that follow it, the last one of the first and
/// the first one of the last.
pub(super) struct Ahead<'a> {
    order: Order<'a>,
    /// What is read afterwards.
    then: Option<Reading<'a>>,
    /// Where the eighths are, in a ring, and which is the first piece's.
    places: Places,
    first: usize,
    /// Elements of the piece that have been read.
    read: usize,
}

/// Where each of the pieces is asked for, and the line, of them in turn, that comes next.
#[derive(Clone, Copy)]
pub(super) struct Asks<'p> {
    places: &'p Places,
    line: usize,
}

type Places = [*const u16; STREAMS];

impl<'a> Ahead<'a> {
    /// For a reader of `now` when whoever came before has asked as if it had read on; `then` is likely to be read next.
    #[inline(always)]
    pub(super) fn new<S: Simd>(s: S, now: Reading<'a>, then: Option<Reading<'a>>) -> Self {
        let mut ahead = Self { order: Order::of(now), then, ..Self::nothing(now.kv) };
        ahead.piece(s);
        for at in 0..STREAMS {
            ahead.places[at] = ahead.piece(s).wrapping_add((STREAMS - 1 - at) * ahead.order.eighth);
        }
        ahead
    }

    /// Asks for what has been read.
    pub(super) fn nothing(kv: KvView<'a>) -> Self {
        let order = Order::of(Reading { kv, start: 0, end: 0 });
        Self { places: [order.last; STREAMS], order, then: None, first: 0, read: 0 }
    }

    /// What is to be asked for while `len` elements are read: as many. What goes beyond the piece is asked for out of turn.
    #[inline(always)]
    pub(super) fn take<S: Simd>(&mut self, s: S, len: usize) -> Asks<'_> {
        while self.read >= self.order.piece_len {
            self.read -= self.order.piece_len;
            self.advance(s);
        }
        let line = self.read / LINE;
        self.read += len;
        Asks { places: &self.places, line }
    }

    /// What was asked for before, which is no longer far.
    #[inline(always)]
    pub(super) fn again(&self) -> Asks<'_> {
        Asks { places: &self.places, line: 0 }
    }

    /// Asks for `len` elements at once.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&mut self, s: S, len: usize) {
        let mut left = len;
        while left > 0 {
            let part = left.min(self.order.piece_len - self.read % self.order.piece_len);
            self.take(s, part).all(s, part);
            left -= part;
        }
    }

    /// The next eighth of each piece.
    fn advance<S: Simd>(&mut self, s: S) {
        for place in &mut self.places {
            *place = place.wrapping_add(self.order.eighth);
        }
        self.places[self.first] = self.piece(s);
        self.first = (self.first + 1) % STREAMS;
    }

    /// The piece that comes next; the last one again where none does, which is no longer far.
    fn piece<S: Simd>(&mut self, s: S) -> *const u16 {
        if self.order.is_at_end()
            && let Some(then) = self.then.take()
        {
            self.order = Order::of(then);
        }
        self.order.next(s)
    }
}

impl Asks<'_> {
    /// Asks for a line.
    #[inline(always)]
    pub(super) fn line<S: Simd>(&self, s: S, nth: usize) {
        s.prefetch(self.place(nth));
    }

    #[inline(always)]
    fn place(&self, nth: usize) -> *const u16 {
        let line = self.line + nth;
        self.places[line % STREAMS].wrapping_add(line / STREAMS * LINE)
    }

    /// Asks for what step `step` of a loop is to ask for that reads W times 32 bytes in a step: as many.
    #[inline(always)]
    pub(super) fn step<S: Simd, const W: usize>(&self, s: S, step: usize) {
        if W > 1 || step.is_multiple_of(2) {
            for nth in 0..W.div_ceil(2) {
                self.line(s, step * W / 2 + nth);
            }
        }
    }

    /// Asks for `len` elements.
    #[inline(always)]
    pub(super) fn all<S: Simd>(&self, s: S, len: usize) {
        for nth in 0..len.div_ceil(LINE) {
            self.line(s, nth);
        }
    }
}

/// Keys and values in the order in which tiles read them, in pieces of up to a page.
struct Order<'a> {
    kv: KvView<'a>,
    end: usize,
    /// First position of the block that comes next, whether its values are meant, and which piece of them.
    position: usize,
    values: bool,
    piece: usize,
    piece_len: usize,
    /// Whole lines that make an eighth of a piece.
    eighth: usize,
    last: *const u16,
}

impl<'a> Order<'a> {
    fn of(Reading { kv, start, end }: Reading<'a>) -> Self {
        let end = end.min(kv.table.len() * BLOCK);
        let half = kv.half_len();
        let piece_len = half.div_ceil(half.div_ceil(PIECE)).next_multiple_of(LINE);
        let eighth = piece_len.div_ceil(STREAMS).next_multiple_of(LINE);
        let last = kv.half(0, false).0.place(0);
        Self { kv, end, position: start, values: false, piece: 0, piece_len, eighth, last }
    }

    fn is_at_end(&self) -> bool {
        self.position >= self.end
    }

    fn next<S: Simd>(&mut self, s: S) -> *const u16 {
        if self.is_at_end() {
            return self.last;
        }
        let (half, scales) = self.kv.half(self.position / BLOCK, self.values);
        if self.piece == 0 && scales.len() > 0 {
            s.prefetch(scales.place(0));
        }
        let piece = half.place(self.piece * self.piece_len);
        self.piece += 1;
        if self.piece * self.piece_len >= half.len() {
            self.piece = 0;
            self.next_block();
        }
        self.last = piece;
        piece
    }

    fn next_block(&mut self) {
        let split_start = self.position / SPLIT * SPLIT;
        self.position += BLOCK;
        if self.position >= self.end.min(split_start + SPLIT) {
            self.values = !self.values;
            if self.values {
                self.position = split_start;
            }
        }
    }
}

/// Pieces that are asked for in turn.
const STREAMS: usize = 8;
/// Elements of a page.
const PIECE: usize = 2048;
/// Elements of a cache line.
pub(super) const LINE: usize = 32;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{KvLayout, KvPool, KvType};
    use super::*;
    use crate::simd::Portable;

    /// Lines of the keys and values of a reading, in order of reading.
    fn lines(Reading { kv, start, end }: Reading<'_>) -> Vec<usize> {
        let mut lines = Vec::new();
        for split in (start..end).step_by(SPLIT) {
            for values in [false, true] {
                for position in (split..end.min(split + SPLIT)).step_by(BLOCK) {
                    let half = kv.half(position / BLOCK, values).0;
                    lines.extend((0..half.len()).step_by(LINE).map(|at| half.place(at).addr()));
                }
            }
        }
        lines
    }

    #[test]
    fn every_line_is_asked_for_once_and_before_it_is_read() {
        for (kv_type, head_dim) in [(KvType::F16, 128), (KvType::F16, 64), (KvType::F16, 256), (KvType::Int8, 128)] {
            let layout = KvLayout { kv_type, head_dim, heads: 3 };
            let pool = vec![0; layout.pool_len(40)];
            let table: Vec<u32> = (0..40).rev().collect();
            let view = |head| KvView { pool: KvPool::from(&pool[..]), table: &table, layout, head };
            let now = Reading { kv: view(1), start: SPLIT, end: 3 * SPLIT + 70 };
            let then = Reading { kv: view(2), start: 0, end: SPLIT };
            let (mut ahead, read) = (Ahead::new(Portable, now, Some(then)), lines(now));
            let mut asked = BTreeMap::new();
            for at in 0..read.len() {
                let place = ahead.take(Portable, LINE).place(0).addr();
                assert_eq!(asked.insert(place, at), None, "{} {head_dim}", kv_type.name());
            }
            // Whoever came before has asked for the first ones, in part.
            let window = STREAMS * ahead.order.piece_len / LINE;
            for (at, line) in read.iter().enumerate().skip(window) {
                assert!(asked[line] < at, "{} {head_dim}: line {at}", kv_type.name());
            }
            let mut known = [read, lines(then)].concat();
            known.sort_unstable();
            assert!(asked.keys().all(|line| known.binary_search(line).is_ok()), "{} {head_dim}", kv_type.name());
        }
    }
}
