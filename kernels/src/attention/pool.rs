//! A pool of head blocks, of which other threads may write some while one reads others.
#![expect(unsafe_code, reason = "slices of the head blocks that are read, in memory that others write elsewhere")]

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

/// A pool as the kernels read it: only the head blocks that they compute with become slices, and only while they do, so
/// that others may write any others meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct KvPool<'a> {
    first: *const u16,
    len: usize,
    elements: PhantomData<&'a [Cell<u16>]>,
}

impl<'a> From<&'a [u16]> for KvPool<'a> {
    fn from(elements: &'a [u16]) -> Self {
        Self { first: elements.as_ptr(), len: elements.len(), elements: PhantomData }
    }
}

/// Whoever makes the cells vouches that no thread writes what a call reads.
impl<'a> From<&'a [Cell<u16>]> for KvPool<'a> {
    fn from(elements: &'a [Cell<u16>]) -> Self {
        Self { first: elements.as_ptr().cast(), len: elements.len(), elements: PhantomData }
    }
}

impl<'a> KvPool<'a> {
    /// Elements of a head block that a call computes with; they are not kept beyond it.
    #[inline(always)]
    pub(super) fn read(self, range: Range<usize>) -> &'a [u16] {
        let run = self.run(range);
        // SAFETY: within the pool. It is of elements that nobody writes or of cells: this thread writes none of them during
        // a call of this module, whose results are floats elsewhere, and other threads by the word of who made the cells.
        unsafe { std::slice::from_raw_parts(run.first, run.len) }
    }

    /// Elements to be asked for.
    #[inline(always)]
    pub(super) fn run(self, range: Range<usize>) -> Run<'a> {
        assert!(range.start <= range.end && range.end <= self.len, "elements {range:?} of {}", self.len);
        Run { first: self.first.wrapping_add(range.start), len: range.len(), elements: PhantomData }
    }
}

/// Elements of a pool that are asked for and not read: what is in them, and who writes it, does not matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    first: *const u16,
    len: usize,
    elements: PhantomData<&'a [Cell<u16>]>,
}

impl Run<'_> {
    #[inline(always)]
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// The first `len` elements, as far as there are any, and the rest.
    #[inline(always)]
    pub(super) fn split_at(self, len: usize) -> (Self, Self) {
        let len = len.min(self.len);
        (Self { len, ..self }, Self { first: self.first.wrapping_add(len), len: self.len - len, ..self })
    }

    /// Where element `at` is.
    #[inline(always)]
    pub(super) fn place(self, at: usize) -> *const u16 {
        self.first.wrapping_add(at)
    }
}
