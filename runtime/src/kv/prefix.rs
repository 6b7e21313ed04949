//! Which blocks hold the keys and values of which tokens: an index of full blocks by what they and all before them hold.
//!
//! A block is found by a hash chained over its tokens and those before, and then compared: it counts only where its
//! own tokens are the same and the block before it is the very block that the seeker has already. So no collision can
//! mix two contexts. Blocks that no sequence uses stay until their place is wanted, the longest unused first. A
//! sequence that uses a block uses all before it and lets go of later ones first, so a block outlives those behind it.

use std::sync::Arc;

use kernels::attention::BLOCK;

use super::known::{BlockTokens, KnownBlocks, START, chain};

/// Links of a block in the index; all lists are made of block numbers, so that nothing is ever allocated.
#[derive(Clone, Debug)]
struct Entry {
    /// The block before it, [`NONE`] at the start of a context.
    parent: u32,
    /// Over its tokens and its parent's hash.
    hash: u64,
    tokens: BlockTokens,
    /// Whether it is in the index.
    known: bool,
    /// The next block of its bucket.
    next: u32,
    /// Neighbours among the unused: longer and shorter unused.
    older: u32,
    newer: u32,
    /// The sweep since which it is unused.
    since: u32,
}

/// The index over all blocks of a cache.
#[derive(Debug)]
pub(super) struct PrefixIndex {
    /// Of each block up to the last one that was ever known; there is room for all, untouched.
    entries: Vec<Entry>,
    blocks: usize,
    buckets: Box<[u32]>,
    /// Ends of the list of unused blocks.
    oldest: u32,
    newest: u32,
    unused: usize,
    /// Sweeps so far.
    sweeps: u32,
    /// Where others read what is known.
    published: Option<Arc<KnownBlocks>>,
}

impl PrefixIndex {
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            entries: Vec::with_capacity(blocks),
            blocks,
            buckets: vec![NONE; blocks.next_power_of_two()].into(),
            oldest: NONE,
            newest: NONE,
            unused: 0,
            sweeps: 0,
            published: None,
        }
    }

    /// The same, and others read in `known` what it knows.
    pub(super) fn published_in(self, known: Arc<KnownBlocks>) -> Self {
        Self { published: Some(known), ..self }
    }

    /// One that knows nothing, in its place.
    pub(super) fn cleared(self) -> Self {
        if let Some(known) = &self.published {
            known.clear();
        }
        Self { published: self.published, ..Self::new(self.blocks) }
    }

    /// Known blocks that no sequence uses.
    pub(super) fn unused(&self) -> usize {
        self.unused
    }

    pub(super) fn is_known(&self, block: u32) -> bool {
        self.entries.get(block as usize).is_some_and(|entry| entry.known)
    }

    /// The block that holds `tokens` behind `parent`.
    pub(super) fn find(&self, parent: Option<u32>, tokens: &BlockTokens) -> Option<u32> {
        let (parent, hash) = (parent.unwrap_or(NONE), self.hash(parent, tokens));
        let mut at = self.buckets[self.bucket(hash)];
        while at != NONE {
            let entry = &self.entries[at as usize];
            if entry.hash == hash && entry.parent == parent && entry.tokens == *tokens {
                return Some(at);
            }
            at = entry.next;
        }
        None
    }

    /// Makes `block`, which a sequence uses, known for its tokens behind `parent`, which is known.
    pub(super) fn insert(&mut self, block: u32, parent: Option<u32>, tokens: &BlockTokens) {
        assert!(!self.is_known(block) && parent.is_none_or(|parent| self.is_known(parent)), "a chain has no gap");
        let hash = self.hash(parent, tokens);
        let bucket = self.bucket(hash);
        if self.entries.len() <= block as usize {
            self.entries.resize(block as usize + 1, NOTHING);
        }
        let entry = &mut self.entries[block as usize];
        (entry.parent, entry.hash, entry.tokens, entry.known) = (parent.unwrap_or(NONE), hash, *tokens, true);
        entry.next = std::mem::replace(&mut self.buckets[bucket], block);
        if let Some(known) = &self.published {
            known.insert(hash);
        }
    }

    /// No sequence uses the known `block` any more.
    pub(super) fn rest(&mut self, block: u32) {
        let before = std::mem::replace(&mut self.newest, block);
        let entry = &mut self.entries[block as usize];
        (entry.older, entry.newer, entry.since) = (before, NONE, self.sweeps);
        match before {
            NONE => self.oldest = block,
            before => self.entries[before as usize].newer = block,
        }
        self.unused += 1;
    }

    /// A sequence uses `block`, which was unused, again.
    pub(super) fn wake(&mut self, block: u32) {
        let Entry { older, newer, .. } = self.entries[block as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        self.unused -= 1;
    }

    /// Blocks that were unused before [`SWEEPS_KEPT`] sweeps are old from now on.
    pub(super) fn sweep(&mut self) {
        self.sweeps = self.sweeps.wrapping_add(1);
    }

    /// Forgets an old block, and gives it away.
    pub(super) fn evict_old(&mut self) -> Option<u32> {
        let oldest = self.entries.get(self.oldest as usize)?;
        let age = self.sweeps.wrapping_sub(oldest.since);
        if age > SWEEPS_KEPT { self.evict() } else { None }
    }

    /// Forgets the block that was unused for longest, and gives it away.
    pub(super) fn evict(&mut self) -> Option<u32> {
        let block = (self.oldest != NONE).then_some(self.oldest)?;
        self.wake(block);
        let Entry { hash, next, .. } = self.entries[block as usize];
        self.entries[block as usize].known = false;
        if let Some(known) = &self.published {
            known.remove(hash);
        }
        let bucket = self.bucket(hash);
        if self.buckets[bucket] == block {
            self.buckets[bucket] = next;
            return Some(block);
        }
        let mut at = self.buckets[bucket] as usize;
        while self.entries[at].next != block {
            at = self.entries[at].next as usize;
        }
        self.entries[at].next = next;
        Some(block)
    }

    fn hash(&self, parent: Option<u32>, tokens: &BlockTokens) -> u64 {
        chain(parent.map_or(START, |parent| self.entries[parent as usize].hash), tokens)
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked to the number of buckets")]
    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }
}

/// Sweeps that a block outlives unused.
pub const SWEEPS_KEPT: u32 = 4;
/// No block.
const NONE: u32 = u32::MAX;
/// Of a block that was never known.
const NOTHING: Entry =
    Entry { parent: NONE, hash: 0, tokens: [0; BLOCK], known: false, next: NONE, older: NONE, newer: NONE, since: 0 };
