//! Merges neighbouring symbols, best pair first: the loop shared by both kinds of BPE.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A part of the text: `start..end` in bytes, and the id of the token or symbol it is (`NO_ID` if none).
#[derive(Clone, Copy)]
pub(super) struct Symbol {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) id: u32,
}

/// What merging two neighbours gives: the smaller `key` goes first.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Merge {
    pub(super) key: u32,
    pub(super) id: u32,
}

/// No merge.
pub(super) const NO_MERGE: Merge = Merge { key: u32::MAX, id: NO_ID };
/// No token.
pub(super) const NO_ID: u32 = u32::MAX;

/// Reusable space for the symbols of one word.
#[derive(Default)]
pub(super) struct Merger {
    pub(super) symbols: Vec<Symbol>,
    /// `merges[i]` joins symbol i and the one after it.
    merges: Vec<Merge>,
    links: Vec<Links>,
    queue: BinaryHeap<Reverse<(u32, u32)>>,
}

#[derive(Clone, Copy)]
struct Links {
    previous: u32,
    next: u32,
}

impl Merger {
    /// Merges `symbols` until no pair is left: smallest key first, of equal keys the leftmost.
    pub(super) fn run(&mut self, lookup: impl Fn(&Symbol, &Symbol) -> Merge) {
        let Self { symbols, merges, .. } = self;
        merges.clear();
        merges.extend(symbols.windows(2).map(|pair| lookup(&pair[0], &pair[1])));
        if symbols.len() <= SCAN_MAX { self.scan(lookup) } else { self.heap(lookup) }
    }

    /// Quadratic, and the fastest for words.
    fn scan(&mut self, lookup: impl Fn(&Symbol, &Symbol) -> Merge) {
        let Self { symbols, merges, .. } = self;
        while let Some((i, &merge)) = merges.iter().enumerate().min_by_key(|(_, merge)| merge.key) {
            if merge == NO_MERGE {
                return;
            }
            symbols[i].end = symbols[i + 1].end;
            symbols[i].id = merge.id;
            symbols.remove(i + 1);
            merges.remove(i);
            if i > 0 {
                merges[i - 1] = lookup(&symbols[i - 1], &symbols[i]);
            }
            if i < merges.len() {
                merges[i] = lookup(&symbols[i], &symbols[i + 1]);
            }
        }
    }

    /// O(n log n), for whatever a hostile text holds. An entry of the queue is stale when its key is no longer its pair's.
    fn heap(&mut self, lookup: impl Fn(&Symbol, &Symbol) -> Merge) {
        let Self { symbols, merges, links, queue } = self;
        let count = u32::try_from(symbols.len()).expect("a text is far below 4 GiB");
        merges.push(NO_MERGE);
        links.clear();
        links.extend((0..count).map(|i| Links { previous: i.wrapping_sub(1), next: i + 1 }));
        queue.clear();
        queue.extend((0..count).zip(merges.iter()).filter(|(_, m)| **m != NO_MERGE).map(|(i, m)| Reverse((m.key, i))));
        while let Some(Reverse((key, left))) = queue.pop() {
            let i = left as usize;
            let merge = merges[i];
            if merge == NO_MERGE || merge.key != key {
                continue;
            }
            let right = links[i].next as usize;
            symbols[i].end = symbols[right].end;
            symbols[i].id = merge.id;
            symbols[right].end = symbols[right].start; // gone
            merges[right] = NO_MERGE;
            let after = links[right].next;
            links[i].next = after;
            merges[i] = NO_MERGE;
            if after < count {
                links[after as usize].previous = left;
                merges[i] = lookup(&symbols[i], &symbols[after as usize]);
                if merges[i] != NO_MERGE {
                    queue.push(Reverse((merges[i].key, left)));
                }
            }
            let before = links[i].previous;
            if before < count {
                let b = before as usize;
                merges[b] = lookup(&symbols[b], &symbols[i]);
                if merges[b] != NO_MERGE {
                    queue.push(Reverse((merges[b].key, before)));
                }
            }
        }
        symbols.retain(|symbol| symbol.start < symbol.end);
    }
}

/// Most symbols that are merged by scanning.
const SCAN_MAX: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn heap_and_scan_agree(letters in prop::collection::vec(0u32..3, 0..80), salt in 0u32..1000) {
            // A made-up merge table over ids: any two ids below 40 may join.
            let lookup = |left: &Symbol, right: &Symbol| {
                let mixed = (left.id * 31 + right.id * 17 + salt).wrapping_mul(0x9e37_79b9) >> 16;
                if left.id > 40 || right.id > 40 || mixed.is_multiple_of(3) { return NO_MERGE; }
                Merge { key: mixed % 16, id: left.id + right.id + 3 }
            };
            let symbols: Vec<Symbol> = (0u32..).zip(&letters).map(|(i, &id)| Symbol { start: i, end: i + 1, id }).collect();
            let mut scanned = Merger { symbols: symbols.clone(), ..Merger::default() };
            scanned.merges.extend(symbols.windows(2).map(|pair| lookup(&pair[0], &pair[1])));
            scanned.scan(lookup);
            let mut queued = Merger { symbols: symbols.clone(), ..Merger::default() };
            queued.merges.extend(symbols.windows(2).map(|pair| lookup(&pair[0], &pair[1])));
            queued.heap(lookup);
            let flat = |m: &Merger| m.symbols.iter().map(|s| (s.start, s.end, s.id)).collect::<Vec<_>>();
            prop_assert_eq!(flat(&scanned), flat(&queued));
        }
    }
}
