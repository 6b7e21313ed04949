//! Many rows of one pass: which positions they see, and where their queries and results are.

use std::cell::Cell;

use super::{Queries, SPLIT};
use crate::Columns;

/// Most rows of one pass: 256 KiB of weights and 128 KiB each of queries and outputs (`head_dim` 128) in a second-level
/// cache, where widening costs 2 % of the products.
pub(super) const WIDE_ROWS_MAX: usize = 256;

/// Where a row belongs: worked out once, since a division by the group takes as long as 20 products.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RowPlace {
    position: usize,
    /// First value of its query, and of its results.
    query: usize,
    result: usize,
}

/// Rows of ascending positions: row i is head `(first + i) % group` of query `(first + i) / group`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) head_dim: usize,
    group: usize,
    first: usize,
    queries: Queries<'a>,
    out: Columns<'a>,
    places: &'a [RowPlace],
}

impl<'a> Rows<'a> {
    /// As many as there are `places` to note them in.
    #[inline(always)]
    pub(super) fn new(
        (head_dim, group): (usize, usize),
        first: usize,
        queries: Queries<'a>,
        out: Columns<'a>,
        places: &'a mut [RowPlace],
    ) -> Self {
        let (mut query, mut head) = (first / group, first % group);
        for place in &mut *places {
            let at = head * head_dim;
            let (position, result) = (queries.first_position + query, query * out.stride + at);
            *place = RowPlace { position, query: query * queries.stride + at, result };
            head += 1;
            if head == group {
                (query, head) = (query + 1, 0);
            }
        }
        Self { head_dim, group, first, queries, out, places }
    }

    #[inline(always)]
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    #[inline(always)]
    pub(super) fn position(&self, row: usize) -> usize {
        self.places[row].position
    }

    #[inline(always)]
    pub(super) fn query(&self, row: usize) -> &'a [f32] {
        &self.queries.values[self.places[row].query..][..self.head_dim]
    }

    /// Where the results of a row belong.
    #[inline(always)]
    pub(super) fn result(&self, row: usize) -> &'a [Cell<f32>] {
        &self.out.cells[self.places[row].result..][..self.head_dim]
    }

    /// As much of the queries `next`, which are read after these, as lies where this row's part from `start` on is.
    #[inline(always)]
    pub(super) fn following<'q>(&self, next: &'q [f32], row: usize, start: usize) -> &'q [f32] {
        next.get(self.places[row].query.saturating_sub(self.places[0].query) + start..).unwrap_or(&[])
    }

    /// Positions of the split that a row sees.
    #[inline(always)]
    pub(super) fn seen(&self, row: usize, split: usize) -> usize {
        (self.position(row) + 1).saturating_sub(split * SPLIT).min(SPLIT)
    }

    /// Splits that the last row sees a part of.
    #[inline(always)]
    pub(super) fn splits(&self) -> usize {
        self.position(self.count() - 1) / SPLIT + 1
    }

    /// The first row that sees `position`, which the last one does.
    #[inline(always)]
    pub(super) fn first_that_sees(&self, position: usize) -> usize {
        (position.saturating_sub(self.queries.first_position) * self.group).saturating_sub(self.first)
    }
}
