//! What is asked for ahead of its use, while a call computes with what is there.
//!
//! In eight pages side by side, each an eighth behind the one before, a line of each in turn: a request of ours holds one of the
//! few that a first-level cache may have until the line is there, unless the machine, which follows each page, has asked before,
//! and so only one of the pages is one that it does not follow yet.
#![expect(unsafe_code, reason = "prefetches")]

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

use crate::isa::is_amd;

/// Asks for a line long before it is wanted: into the second-level cache, or where AMD made it into the first-level one.
#[inline(always)]
pub(crate) fn ask_far<T>(line: *const T) {
    if is_amd() {
        // SAFETY: a prefetch reads nothing that a program can see and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    } else {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
}

/// A cache line.
pub(crate) type Line = [u8; 64];

/// Pages, or pieces as long, in the order in which they are read; never without a next one.
pub(crate) trait Pages {
    /// Where the next one begins; the last one again where none is left, which is no longer far.
    fn next(&mut self) -> *const Line;
}

/// What is asked for while one page is read: an eighth of each of eight, the last one of the first and the first one of the last.
pub(crate) struct Ahead<P> {
    pages: P,
    /// Where the eighths are, in a ring, and which is that of the first page.
    places: [*const Line; STREAMS],
    first: usize,
    /// Lines of these eighths so far.
    asked: usize,
}

impl<P: Pages> Ahead<P> {
    /// For a call that begins, as if whoever came before had asked for its first pages, `near` and those of which a part is asked
    /// for next.
    pub(crate) fn new(mut pages: P, near: usize) -> Self {
        for _ in 0..near {
            pages.next();
        }
        let mut places = [std::ptr::null(); STREAMS];
        for (at, place) in places.iter_mut().enumerate() {
            *place = pages.next().wrapping_add((STREAMS - 1 - at) * EIGHTH);
        }
        Self { pages, places, first: 0, asked: 0 }
    }

    /// Asks for so many lines.
    #[inline(always)]
    pub(crate) fn ask<const LINES: usize>(&mut self) {
        const { assert!(LINES.is_power_of_two() && LINES <= STREAMS) };
        let line = self.asked / STREAMS;
        for nth in 0..LINES {
            let place = self.places[(self.asked + nth) % STREAMS].wrapping_add(line);
            ask_far(place);
        }
        self.asked += LINES;
        if self.asked >= STREAMS * EIGHTH {
            self.advance();
        }
    }

    /// The next eighth of each page.
    fn advance(&mut self) {
        for place in &mut self.places {
            *place = place.wrapping_add(EIGHTH);
        }
        self.places[self.first] = self.pages.next();
        (self.first, self.asked) = ((self.first + 1) % STREAMS, 0);
    }
}

/// Pages side by side, and the lines of an eighth of each.
pub(crate) const STREAMS: usize = 8;
const EIGHTH: usize = PAGE_LINES / STREAMS;
/// Lines of a page.
pub(crate) const PAGE_LINES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    struct Rest<'a>(&'a [Line]);

    impl Pages for Rest<'_> {
        fn next(&mut self) -> *const Line {
            let place = self.0.as_ptr();
            self.0 = &self.0[PAGE_LINES..];
            place
        }
    }

    /// Behind the pages that a call begins with, each line is asked for once.
    #[test]
    fn eighths_make_whole_pages() {
        let lines = vec![[0; 64]; 40 * PAGE_LINES];
        let mut ahead = Ahead::new(Rest(&lines), 1);
        let mut found = Vec::new();
        for _ in 0..30 {
            for nth in 0..EIGHTH {
                found.extend(ahead.places.map(|place| (place.addr() - lines.as_ptr().addr()) / 64 + nth));
            }
            for _ in 0..EIGHTH {
                ahead.ask::<STREAMS>();
            }
        }
        found.sort_unstable();
        let (from, to) = ((1 + STREAMS) * PAGE_LINES, 30 * PAGE_LINES);
        let whole: Vec<_> = found.into_iter().filter(|line| (from..to).contains(line)).collect();
        assert!(whole.into_iter().eq(from..to));
    }
}
