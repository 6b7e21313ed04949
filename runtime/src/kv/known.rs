//! What a shard's cache knows, as other shards read it: hashes of its blocks, in words that its leader alone writes.
//!
//! Readers take no lock: a word is one whole hash. What they read may be late, and a full line forgets a block; either
//! only costs the computing of what could have been found. A hash is over the tokens of a block and all before it.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use kernels::attention::BLOCK;

/// The tokens of a full block.
pub(super) type BlockTokens = [u32; BLOCK];

/// The hashes of the blocks that one cache knows.
#[derive(Debug)]
pub struct KnownBlocks {
    lines: Box<[Line]>,
}

/// Places of the hashes that share some bits; 0 is a free one.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; WAYS]);

impl KnownBlocks {
    /// For a cache of `blocks` blocks, with twice the places.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        let lines = (2 * blocks).div_ceil(WAYS).next_power_of_two();
        Self { lines: (0..lines).map(|_| Line::default()).collect() }
    }

    /// Positions of the leading blocks with `hashes` that are known.
    #[must_use]
    pub fn positions(&self, hashes: &[u64]) -> usize {
        hashes.iter().take_while(|hash| self.place(**hash, **hash).is_some()).count() * BLOCK
    }

    pub(super) fn insert(&self, hash: u64) {
        let ways = &self.line(hash).0;
        let place = self.place(hash, hash).or_else(|| self.place(hash, FREE));
        // Any other is as likely to be asked for again.
        let place = place.unwrap_or(&ways[usize::try_from(hash % WAYS as u64).expect("few ways")]);
        place.store(hash, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, hash: u64) {
        if let Some(place) = self.place(hash, hash) {
            place.store(FREE, Ordering::Relaxed);
        }
    }

    pub(super) fn clear(&self) {
        self.lines.iter().flat_map(|line| &line.0).for_each(|place| place.store(FREE, Ordering::Relaxed));
    }

    /// The place of the line of `hash` that holds `wanted`.
    fn place(&self, hash: u64, wanted: u64) -> Option<&AtomicU64> {
        self.line(hash).0.iter().find(|place| place.load(Ordering::Relaxed) == wanted)
    }

    fn line(&self, hash: u64) -> &Line {
        &self.lines[(hash >> 32) as usize & (self.lines.len() - 1)]
    }
}

/// The hashes of the full blocks of `tokens`, the same on every shard of this process.
pub fn block_hashes(tokens: &[u32]) -> impl Iterator<Item = u64> {
    tokens.as_chunks().0.iter().scan(START, |before, tokens| {
        *before = chain(*before, tokens);
        Some(*before)
    })
}

/// The hash of a block behind one with the hash `before`, [`START`] where there is none.
pub(super) fn chain(before: u64, tokens: &BlockTokens) -> u64 {
    // Seeded by the process, so that nobody can choose tokens that share a place.
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEYS.hash_one((before, tokens))
}

/// Before the first block.
pub(super) const START: u64 = 0;
/// What a place without a hash holds.
const FREE: u64 = 0;
/// Words of a cache line.
const WAYS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(seed: u32, blocks: usize) -> Vec<u64> {
        let tokens: Vec<u32> = (0..(blocks * BLOCK) as u32).map(|i| i ^ seed << 16).collect();
        block_hashes(&tokens).collect()
    }

    #[test]
    fn a_hash_is_over_all_tokens_before_and_full_blocks_only() {
        let tokens: Vec<u32> = (0..3 * BLOCK as u32).collect();
        let all: Vec<u64> = block_hashes(&tokens).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(block_hashes(&tokens[..2 * BLOCK + 31]).collect::<Vec<_>>(), all[..2]);
        let mut other = tokens.clone();
        other[3] += 1;
        assert!(block_hashes(&other).zip(&all).all(|(a, b)| a != *b));
        assert_eq!(block_hashes(&tokens[..31]).count(), 0);
    }

    #[test]
    fn the_known_beginning_ends_at_the_first_gap() {
        let (known, hashes) = (KnownBlocks::new(64), hashes(1, 5));
        for at in [0, 1, 3, 4] {
            known.insert(hashes[at]);
        }
        assert_eq!(known.positions(&hashes), 2 * BLOCK);
        known.insert(hashes[2]);
        assert_eq!(known.positions(&hashes), 5 * BLOCK);
        known.remove(hashes[0]);
        assert_eq!(known.positions(&hashes), 0);
        known.insert(hashes[0]);
        known.clear();
        assert_eq!(known.positions(&hashes), 0);
    }

    #[test]
    fn a_table_of_any_size_takes_all_blocks_of_its_cache_but_a_few() {
        for blocks in [1, 8, 100, 5000] {
            let known = KnownBlocks::new(blocks);
            let all: Vec<u64> = (0..blocks as u32).flat_map(|seed| hashes(seed, 1)).collect();
            all.iter().for_each(|hash| known.insert(*hash));
            let found = all.iter().filter(|hash| known.positions(&[**hash]) == BLOCK).count();
            assert!(found * 10 >= blocks * 9, "{found} of {blocks}");
            // What was put in twice is taken out at once.
            known.insert(all[0]);
            known.remove(all[0]);
            assert_eq!(known.positions(&all[..1]), 0);
        }
    }
}
