//! Which part of the cache is wanted next: what a tile asks for while it computes with what it has.
//!
//! Blocks of keys and of values alternate by split, so the machine's own prefetching ends at every block, and alone it is
//! too late at the start of a page. Memory is kept busy by asking in that order, all the time, some blocks ahead, in four
//! pages at once: a request of ours holds one of the few that a first-level cache may have until the line is there,
//! unless the machine, which follows each page, has asked before.

use super::pool::Run;
use super::{BLOCK, KvView, SPLIT};
use crate::simd::Simd;

/// Runs of the cache's elements (F16, or two bytes of an int8 cache) that are asked for side by side, each up to a page long.
pub type Streams<'a> = [Run<'a>; STREAMS];

/// Nothing to be asked for.
pub const NOTHING: Streams<'_> = [Run::NOTHING; STREAMS];

/// The keys and values of a sequence in the order in which its tiles read them.
pub(super) struct Ahead<'a> {
    kv: KvView<'a>,
    /// Positions that are read, from the start of a split on.
    end: usize,
    /// First position of the blocks after `next`, and whether their values are meant.
    position: usize,
    values: bool,
    /// What is left of the blocks that are asked for.
    rest: Streams<'a>,
    /// The blocks after them, of which the first lines have been asked for.
    next: Streams<'a>,
    /// First keys of what is read afterwards.
    then: Streams<'a>,
}

impl<'a> Ahead<'a> {
    /// Behind the first keys of `split`, up to position `end`; `then` is likely to be read after that.
    #[inline(always)]
    pub(super) fn new<S: Simd>(s: S, kv: KvView<'a>, (split, end): (usize, usize), then: Streams<'a>) -> Self {
        let mut ahead = Self { kv, end, position: split * SPLIT, values: false, rest: NOTHING, next: NOTHING, then };
        if ahead.position < end {
            ahead.following(s);
            ahead.next = ahead.following(s);
        }
        ahead
    }

    /// Asks for nothing.
    pub(super) fn nothing(kv: KvView<'a>) -> Self {
        Self { kv, end: 0, position: 0, values: false, rest: NOTHING, next: NOTHING, then: NOTHING }
    }

    /// The next `len` elements in order, a quarter of them from each stream; fewer at the end of a group of blocks.
    #[inline(always)]
    pub(super) fn take<S: Simd>(&mut self, s: S, len: usize) -> Streams<'a> {
        if self.rest[0].len() == 0 {
            self.advance(s);
        }
        let part = (len / STREAMS).max(2 * LINE);
        let mut taken = NOTHING;
        for (taken, rest) in taken.iter_mut().zip(&mut self.rest) {
            (*taken, *rest) = rest.split_at(part);
        }
        taken
    }

    fn advance<S: Simd>(&mut self, s: S) {
        self.rest = std::mem::replace(&mut self.next, NOTHING);
        self.next = self.following(s);
        // Their pages are looked up meanwhile: a machine that is emulated by another one has small ones.
        for stream in self.next {
            s.prefetch(stream.place(0));
        }
    }

    /// The blocks from `position` on that are read together.
    fn following<S: Simd>(&mut self, s: S) -> Streams<'a> {
        if self.position >= self.end {
            return std::mem::replace(&mut self.then, NOTHING);
        }
        let split_end = (self.position / SPLIT * SPLIT + SPLIT).min(self.end);
        let (first, last) = (self.position / BLOCK, split_end.div_ceil(BLOCK));
        let count = self.kv.together().min(last - first);
        let streams = self.kv.streams(first, count, self.values);
        for block in first..first + count {
            let scales = self.kv.half(block, self.values).1;
            if scales.len() > 0 {
                s.prefetch(scales.place(0));
            }
        }
        self.position += count * BLOCK;
        if self.position >= split_end {
            self.values = !self.values;
            if self.values {
                // Back to the start of the split, for its values.
                self.position = (split_end - 1) / SPLIT * SPLIT;
            }
        }
        streams
    }
}

impl<'a> KvView<'a> {
    /// What is read first from `position` on, the start of a split.
    #[must_use]
    pub fn first_keys(&self, position: usize) -> Streams<'a> {
        let first = position / BLOCK;
        if first >= self.table.len() {
            return NOTHING;
        }
        self.streams(first, self.together().min(self.table.len() - first), false)
    }

    /// Blocks whose keys, or values, are asked for together.
    fn together(&self) -> usize {
        (TOGETHER / self.half(0, false).0.len()).clamp(1, STREAMS)
    }

    /// The keys or values of up to [`STREAMS`] blocks, in as many parts.
    fn streams(&self, first: usize, count: usize, values: bool) -> Streams<'a> {
        let mut streams = NOTHING;
        let of_each = if count == 3 { 1 } else { STREAMS / count };
        for (block, parts) in (first..first + count).zip(streams.chunks_mut(of_each)) {
            let mut rest = self.half(block, values).0;
            let len = (rest.len() / of_each).next_multiple_of(LINE);
            for part in parts {
                (*part, rest) = rest.split_at(len);
            }
        }
        streams
    }
}

/// Asks for what step `step` of a loop is to ask for that reads W times 32 bytes in a step: two lines for every two read.
#[inline(always)]
pub(super) fn ask<S: Simd, const W: usize>(s: S, next: &Streams<'_>, step: usize) {
    if (step * W).is_multiple_of(4) {
        let pair = step * W / 4;
        let first = pair / STREAMS * 2 * LINE;
        let run = next[pair % STREAMS];
        if first + 2 * LINE <= run.len() {
            s.prefetch(run.place(first));
            s.prefetch(run.place(first + LINE));
        }
    }
}

/// Parts that are asked for in turn.
const STREAMS: usize = 4;
/// Elements of the blocks that are asked for together: four pages.
const TOGETHER: usize = 8192;
/// Elements of a cache line.
pub(super) const LINE: usize = 32;
