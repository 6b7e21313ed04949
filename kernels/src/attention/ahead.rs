//! Which part of the cache is wanted next: what a tile asks for while it computes with what it has.
//!
//! Blocks of keys and of values alternate by split, so the machine's own prefetching ends at every block. Memory is kept
//! busy only by asking in that order, all the time, a block ahead.

use super::{BLOCK, KvView, SPLIT};
use crate::simd::Simd;

/// The keys and values of a sequence in the order in which its tiles read them.
pub(super) struct Ahead<'a> {
    kv: KvView<'a>,
    /// Positions that are read, from the start of a split on.
    end: usize,
    /// First position of the block that is asked for.
    position: usize,
    /// Whether it is its values.
    values: bool,
    /// What is left of its two halves.
    rest: [&'a [u16]; 2],
    /// First keys of what is read afterwards.
    then: &'a [u16],
}

impl<'a> Ahead<'a> {
    /// Behind the first keys of `split`, up to position `end`; `then` is likely to be read after that.
    pub(super) fn new(kv: KvView<'a>, split: usize, end: usize, then: &'a [u16]) -> Self {
        Self { kv, end, position: split * SPLIT, values: false, rest: [&[]; 2], then }
    }

    /// Asks for nothing.
    pub(super) fn nothing(kv: KvView<'a>) -> Self {
        Self::new(kv, 0, 0, &[])
    }

    /// The next `len` elements in order, half of them from each half of a block, so that the machine follows two pages at
    /// once; fewer at the end of a block.
    #[inline(always)]
    pub(super) fn take<S: Simd>(&mut self, s: S, len: usize) -> [&'a [u16]; 2] {
        if self.rest[0].is_empty() {
            self.advance(s);
        }
        let [first, second] = self.rest;
        let half = (len / 2).max(LINE);
        let (first, first_rest) = first.split_at(half.min(first.len()));
        let (second, second_rest) = second.split_at(half.min(second.len()));
        self.rest = [first_rest, second_rest];
        [first, second]
    }

    fn advance<S: Simd>(&mut self, s: S) {
        if self.position < self.end {
            let split_end = (self.position / SPLIT * SPLIT + SPLIT).min(self.end);
            self.position += BLOCK;
            if self.position >= split_end {
                self.values = !self.values;
                if self.values {
                    // Back to the start of the split, for its values.
                    self.position = (split_end - 1) / SPLIT * SPLIT;
                }
            }
        }
        let next = if self.position < self.end {
            let (next, scales) = self.kv.half(self.position / BLOCK, self.values);
            s.prefetch(scales);
            next
        } else {
            std::mem::take(&mut self.then)
        };
        let (first, second) = next.split_at((next.len() / 2).next_multiple_of(LINE).min(next.len()));
        self.rest = [first, second];
    }
}

/// Asks for what step `step` of a loop is to ask for that reads W times 32 bytes in a step.
#[inline(always)]
pub(super) fn ask<S: Simd, const W: usize>(s: S, next: [&[u16]; 2], step: usize) {
    if (step * W).is_multiple_of(4) {
        for half in next {
            if let Some(line) = half.get(step * W / 4 * LINE..) {
                s.prefetch(line);
            }
        }
    }
}

/// Elements of a cache line.
pub(super) const LINE: usize = 32;
