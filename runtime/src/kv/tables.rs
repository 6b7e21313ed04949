//! Which blocks the sequences of a device hold, which they share, and which are free.

use std::sync::Arc;

use kernels::attention::BLOCK;

use super::blocks_for;
use super::known::{BlockTokens, KnownBlocks};
use super::prefix::PrefixIndex;

/// The block tables of the slots of a device: a slot's table names the block of each run of [`BLOCK`] positions. Blocks
/// are taken as positions are about to be computed.
///
/// With [`BlockTables::with_prefixes`], full blocks are known by their tokens once they are computed: sequences that
/// begin alike share them, and they are kept after their last sequence until their place is wanted.
#[derive(Debug)]
pub struct BlockTables {
    tables: Vec<u32>,
    held: Vec<u32>,
    /// Leading blocks of each slot that the index knows.
    published: Vec<u32>,
    /// Slots that hold each block.
    users: Vec<u32>,
    /// Free blocks that have memory, and those that have none (any more).
    free: Vec<u32>,
    untouched: Vec<u32>,
    /// How many from the start of `free` nobody has wanted since the last sweep, and how many of these are to lose
    /// their memory.
    idle: usize,
    leaving: usize,
    index: Option<PrefixIndex>,
    /// Most known blocks that are kept unused.
    kept_max: usize,
    blocks_per_slot: usize,
}

/// Fewer blocks are free than a sequence needs.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfBlocks {
    pub wanted: usize,
    pub free: usize,
}

impl BlockTables {
    /// Tables of `slots` sequences of at most `context` positions over `blocks` blocks in all.
    #[must_use]
    pub fn new(context: usize, slots: usize, blocks: usize) -> Self {
        let blocks_per_slot = blocks_for(context);
        let count = u32::try_from(blocks).expect("block ids are 32 bits");
        Self {
            tables: vec![0; slots * blocks_per_slot],
            held: vec![0; slots],
            published: vec![0; slots],
            users: vec![0; blocks],
            free: Vec::with_capacity(blocks),
            untouched: (0..count).rev().collect(),
            idle: 0,
            leaving: 0,
            index: None,
            kept_max: blocks,
            blocks_per_slot,
        }
    }

    /// The same, with blocks that are kept and shared by their tokens.
    #[must_use]
    pub fn with_prefixes(self) -> Self {
        Self { index: Some(PrefixIndex::new(self.users.len())), ..self }
    }

    /// The same, but at most so many known blocks are kept while nobody uses them.
    #[must_use]
    pub fn keeping_at_most(self, blocks: usize) -> Self {
        Self { kept_max: blocks, ..self }
    }

    /// The same, and others read in `known` which blocks it knows.
    #[must_use]
    pub fn published_in(self, known: Arc<KnownBlocks>) -> Self {
        Self { index: self.index.map(|index| index.published_in(known)), ..self }
    }

    /// Forgets everything: no slot holds a block, and none is known. All of them may have memory still.
    pub fn clear(&mut self) {
        let (index, kept_max) = (self.index.take().map(PrefixIndex::cleared), self.kept_max);
        let fresh = Self::new(self.blocks_per_slot * BLOCK, self.held.len(), self.users.len());
        *self = Self { index, kept_max, free: fresh.untouched, untouched: fresh.free, ..fresh };
    }

    /// Takes the blocks for `positions` positions of `slot`, which holds none.
    ///
    /// # Errors
    /// When too few are free; nothing is taken then.
    pub fn reserve(&mut self, slot: usize, positions: usize) -> Result<(), OutOfBlocks> {
        assert!(self.held[slot] == 0, "a slot is reserved once");
        self.extend(slot, positions)
    }

    /// Takes what `slot` lacks of the blocks for its first `positions` positions.
    ///
    /// # Errors
    /// When too few are free; nothing is taken then.
    pub fn extend(&mut self, slot: usize, positions: usize) -> Result<(), OutOfBlocks> {
        let (held, wanted) = (self.held(slot), blocks_for(positions));
        assert!(wanted <= self.blocks_per_slot, "positions are within the context");
        let (wanted_more, free) = (wanted.saturating_sub(held), self.blocks_free());
        if wanted_more > free {
            return Err(OutOfBlocks { wanted: wanted_more, free });
        }
        for _ in 0..wanted_more {
            let block = self.take_free().expect("counted above");
            self.users[block as usize] = 1;
            self.push(slot, block);
        }
        Ok(())
    }

    fn take_free(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| self.untouched.pop());
        (self.idle, self.leaving) = (self.idle.min(self.free.len()), self.leaving.min(self.free.len()));
        block.or_else(|| self.index.as_mut().and_then(PrefixIndex::evict))
    }

    /// Begins a sweep: the memory of what nobody has wanted since the last one may go, see [`BlockTables::take_idle`].
    pub fn sweep(&mut self) {
        (self.leaving, self.idle) = (self.idle, self.free.len());
        if let Some(index) = &mut self.index {
            index.sweep();
        }
    }

    /// The next block whose memory nobody needs: a free one that was not wanted between two sweeps, or a known one that
    /// was unused for some. It has none from now on, which is the caller's to do.
    pub fn take_idle(&mut self) -> Option<u32> {
        let block = match self.index.as_mut().and_then(PrefixIndex::evict_old) {
            Some(block) => block,
            None => {
                self.leaving = self.leaving.checked_sub(1)?;
                let all = self.idle == self.free.len();
                let block = self.free.swap_remove(self.leaving);
                // The last one came to its place, which was wanted meanwhile unless all are idle.
                self.idle = if all { self.free.len() } else { self.idle.min(self.leaving) };
                block
            }
        };
        self.untouched.push(block);
        Some(block)
    }

    /// Blocks that have memory.
    #[must_use]
    pub fn resident(&self) -> usize {
        self.users.len() - self.untouched.len()
    }

    /// Gives back everything that `slot` holds; known blocks are kept as long as nobody needs their place.
    pub fn release(&mut self, slot: usize) {
        self.published[slot] = 0;
        // Later blocks first, so that they are also given away before those that they build on.
        for at in (0..std::mem::take(&mut self.held[slot]) as usize).rev() {
            self.drop_user(self.tables[slot * self.blocks_per_slot + at]);
        }
    }

    /// Lets `slot` go on with known blocks: those that hold `tokens` behind what it holds, all of it full and known.
    /// How many positions they have.
    pub fn adopt(&mut self, slot: usize, tokens: &[u32]) -> usize {
        let mut adopted = 0;
        for tokens in tokens.as_chunks().0 {
            let Some(block) = self.find_next(slot, tokens) else { break };
            if self.users[block as usize] == 0 {
                self.index.as_mut().expect("it found the block").wake(block);
            }
            self.users[block as usize] += 1;
            self.push(slot, block);
            self.published[slot] += 1;
            adopted += BLOCK;
        }
        adopted
    }

    /// Makes the full blocks of `slot` known; all positions of `tokens` are computed. A block that is known already is
    /// taken in place of the slot's own: the same tokens give the same bits.
    pub fn publish(&mut self, slot: usize, tokens: &[u32]) {
        let (Some(index), start) = (&mut self.index, slot * self.blocks_per_slot) else { return };
        let blocks = tokens.as_chunks::<BLOCK>().0;
        for (at, tokens) in blocks.iter().enumerate().skip(self.published[slot] as usize) {
            let parent = at.checked_sub(1).map(|before| self.tables[start + before]);
            let own = self.tables[start + at];
            match index.find(parent, tokens) {
                None => index.insert(own, parent, tokens),
                Some(known) => {
                    if self.users[known as usize] == 0 {
                        index.wake(known);
                    }
                    self.users[known as usize] += 1;
                    self.tables[start + at] = known;
                    self.users[own as usize] = 0;
                    self.free.push(own);
                }
            }
        }
        self.published[slot] = u32::try_from(blocks.len()).expect("bounded by the context");
    }

    /// Blocks of `slot` that are known by their tokens.
    #[must_use]
    pub fn published(&self, slot: usize) -> usize {
        self.published[slot] as usize
    }

    /// Whether blocks are kept and shared by their tokens.
    #[must_use]
    pub fn shares(&self) -> bool {
        self.index.is_some()
    }

    /// All blocks, free or not.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.users.len()
    }

    /// Blocks that no slot holds, those included that are only kept.
    #[must_use]
    pub fn blocks_free(&self) -> usize {
        self.free.len() + self.untouched.len() + self.index.as_ref().map_or(0, PrefixIndex::unused)
    }

    /// The blocks of `slot`, in order of positions.
    #[must_use]
    pub fn table(&self, slot: usize) -> &[u32] {
        &self.tables[slot * self.blocks_per_slot..][..self.held(slot)]
    }

    fn held(&self, slot: usize) -> usize {
        self.held[slot] as usize
    }

    fn push(&mut self, slot: usize, block: u32) {
        let at = slot * self.blocks_per_slot + self.held(slot);
        self.tables[at] = block;
        self.held[slot] += 1;
    }

    fn find_next(&self, slot: usize, tokens: &BlockTokens) -> Option<u32> {
        assert!(self.held[slot] == self.published[slot] || self.index.is_none(), "only behind known blocks");
        self.index.as_ref()?.find(self.table(slot).last().copied(), tokens)
    }

    fn drop_user(&mut self, block: u32) {
        let users = &mut self.users[block as usize];
        *users -= 1;
        if *users > 0 {
            return;
        }
        match &mut self.index {
            Some(index) if index.is_known(block) => {
                index.rest(block);
                if index.unused() > self.kept_max {
                    self.free.extend(index.evict());
                }
            }
            _ => self.free.push(block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::prefix::SWEEPS_KEPT;
    use super::*;

    fn tables(slots: usize, blocks: usize) -> BlockTables {
        BlockTables::new(256, slots, blocks).with_prefixes()
    }

    fn text(seed: u32, blocks: usize) -> Vec<u32> {
        (0..(blocks * BLOCK) as u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(seed) % 1000).collect()
    }

    fn compute(tables: &mut BlockTables, slot: usize, tokens: &[u32]) {
        tables.extend(slot, tokens.len()).unwrap();
        tables.publish(slot, tokens);
    }

    #[test]
    fn blocks_come_as_positions_do_and_too_few_take_nothing() {
        let mut tables = BlockTables::new(256, 2, 3);
        tables.extend(0, 1).unwrap();
        tables.extend(0, BLOCK).unwrap();
        assert_eq!((tables.table(0).len(), tables.blocks_free()), (1, 2));
        tables.extend(0, BLOCK + 1).unwrap();
        assert_eq!(tables.extend(1, 2 * BLOCK), Err(OutOfBlocks { wanted: 2, free: 1 }));
        assert_eq!((tables.table(1).len(), tables.blocks_free()), (0, 1));
        tables.release(0);
        assert_eq!(tables.blocks_free(), 3);
    }

    #[test]
    fn a_sequence_begins_where_another_has_been_and_only_with_full_equal_blocks() {
        let (mut tables, text) = (tables(4, 16), text(1, 3));
        compute(&mut tables, 0, &text[..2 * BLOCK + 5]);
        assert_eq!(tables.adopt(1, &text), 2 * BLOCK);
        assert_eq!(tables.table(1), &tables.table(0)[..2]);
        let mut other = text.clone();
        other[BLOCK + 3] += 1;
        assert_eq!(tables.adopt(2, &other), BLOCK);
        other[0] += 1;
        assert_eq!(tables.adopt(3, &other), 0);
        // Held once or thrice, a block is taken once.
        assert_eq!(tables.blocks_free(), 16 - 3);
    }

    #[test]
    fn the_same_tokens_behind_other_tokens_are_another_block() {
        let (mut tables, a, b) = (tables(2, 16), text(1, 1), text(2, 1));
        compute(&mut tables, 0, &[&a[..], &b[..]].concat());
        assert_eq!(tables.adopt(1, &b), 0);
        assert_eq!(tables.adopt(1, &[&a[..], &a[..]].concat()), BLOCK);
    }

    #[test]
    fn what_two_computed_at_once_is_kept_once() {
        let (mut tables, text) = (tables(2, 8), text(3, 2));
        tables.extend(0, 2 * BLOCK).unwrap();
        tables.extend(1, 2 * BLOCK).unwrap();
        tables.publish(0, &text);
        tables.publish(1, &text);
        assert_eq!((tables.table(0), tables.blocks_free()), (tables.table(1), 6));
        tables.release(0);
        tables.release(1);
        assert_eq!(tables.blocks_free(), 8);
        assert_eq!(tables.adopt(0, &text), 2 * BLOCK);
    }

    #[test]
    fn the_longest_unused_goes_first_and_never_before_what_builds_on_it() {
        let mut tables = tables(2, 4);
        let (a, b) = (text(1, 2), text(2, 2));
        compute(&mut tables, 0, &a);
        tables.release(0);
        compute(&mut tables, 0, &b);
        tables.release(0);
        // One place is wanted: it is the second block of the first text.
        tables.extend(1, 1).unwrap();
        assert_eq!((tables.adopt(0, &a), tables.blocks_free()), (BLOCK, 2));
        tables.release(0);
        assert_eq!(tables.adopt(0, &b), 2 * BLOCK);
        tables.release(0);
        tables.release(1);
        tables.extend(1, 4 * BLOCK).unwrap();
        assert_eq!(tables.adopt(0, &a) + tables.adopt(0, &b), 0, "all places were wanted");
    }

    #[test]
    fn others_read_what_is_known_until_its_place_is_wanted() {
        let (known, text) = (Arc::new(KnownBlocks::new(4)), text(1, 3));
        let hashes: Vec<u64> = crate::kv::block_hashes(&text).collect();
        let mut tables = tables(2, 4).published_in(Arc::clone(&known));
        compute(&mut tables, 0, &text[..2 * BLOCK + 7]);
        assert_eq!(known.positions(&hashes), 2 * BLOCK);
        tables.release(0);
        assert_eq!(known.positions(&hashes), 2 * BLOCK, "it is kept");
        tables.extend(1, 3 * BLOCK).unwrap();
        assert_eq!(known.positions(&hashes), BLOCK, "the last one was given away");
        compute(&mut tables, 1, &text);
        tables.clear();
        assert_eq!(known.positions(&hashes), 0);
        compute(&mut tables, 0, &text);
        assert_eq!(known.positions(&hashes), 3 * BLOCK, "it is still read");
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        let mut tables = tables(2, 8).keeping_at_most(3);
        let (a, b) = (text(1, 2), text(2, 2));
        for text in [&a, &b] {
            compute(&mut tables, 0, text);
            tables.release(0);
        }
        assert_eq!((tables.adopt(0, &b), tables.adopt(1, &a)), (2 * BLOCK, BLOCK), "the oldest is forgotten");
        assert_eq!(tables.blocks_free(), 5);
        let mut nothing = BlockTables::new(256, 1, 8).with_prefixes().keeping_at_most(0);
        compute(&mut nothing, 0, &a);
        nothing.release(0);
        assert_eq!((nothing.adopt(0, &a), nothing.blocks_free()), (0, 8));
    }

    #[test]
    fn memory_goes_back_when_nobody_has_wanted_it_for_long() {
        let (mut tables, text) = (tables(2, 8), text(1, 2));
        let swept = |tables: &mut BlockTables| {
            tables.sweep();
            std::iter::from_fn(|| tables.take_idle()).count()
        };
        assert_eq!((tables.resident(), swept(&mut tables)), (0, 0));
        compute(&mut tables, 0, &text);
        tables.extend(1, 3 * BLOCK).unwrap();
        assert_eq!(tables.resident(), 5);
        tables.release(1);
        assert_eq!(swept(&mut tables), 0, "three are free, but not for long");
        tables.extend(1, BLOCK).unwrap();
        tables.release(1);
        assert_eq!((swept(&mut tables), tables.resident()), (2, 3), "one of them was wanted");
        assert_eq!((swept(&mut tables), swept(&mut tables)), (1, 0));
        tables.release(0);
        assert_eq!((0..SWEEPS_KEPT).map(|_| swept(&mut tables)).sum::<usize>(), 0, "kept for a while");
        assert_eq!(tables.adopt(0, &text), 2 * BLOCK);
        tables.release(0);
        assert_eq!((0..SWEEPS_KEPT).map(|_| swept(&mut tables)).sum::<usize>(), 0, "and used again");
        assert_eq!((swept(&mut tables), tables.resident(), tables.blocks_free()), (2, 0, 8));
        assert_eq!(tables.adopt(0, &text), 0);
        compute(&mut tables, 0, &text);
        assert_eq!(tables.resident(), 2);
    }

    #[test]
    fn without_prefixes_nothing_is_shared_or_kept() {
        let (mut tables, text) = (BlockTables::new(256, 2, 8), text(1, 2));
        compute(&mut tables, 0, &text);
        assert_eq!((tables.adopt(1, &text), tables.published(0)), (0, 0));
        tables.release(0);
        assert_eq!(tables.blocks_free(), 8);
    }

    /// Random use, checked against what the tables say of themselves.
    #[test]
    fn no_block_is_lost_or_in_two_places() {
        let mut random = 7_u64;
        let mut below = |limit: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % limit
        };
        let (slots, blocks) = (5, 12);
        let mut tables = tables(slots, blocks).keeping_at_most(blocks / 2);
        let mut texts: Vec<Vec<u32>> = vec![Vec::new(); slots];
        for _ in 0..20_000 {
            let slot = below(slots);
            if texts[slot].is_empty() {
                // Few texts, so that many begin alike.
                let length = 1 + below(8 * BLOCK - 1);
                texts[slot] = text(below(3) as u32, 8)[..length].to_vec();
                let change = below(2 * length);
                if let Some(token) = texts[slot].get_mut(change) {
                    *token = 1000;
                }
                let adopted = tables.adopt(slot, &texts[slot]);
                if tables.extend(slot, length).is_err() {
                    tables.release(slot);
                    texts[slot].clear();
                } else {
                    assert!(adopted <= length);
                }
            } else if below(3) == 0 {
                tables.release(slot);
                texts[slot].clear();
            } else {
                let computed = below(texts[slot].len() + 1).max(tables.published(slot) * BLOCK);
                tables.publish(slot, &texts[slot][..computed]);
            }
            if below(20) == 0 {
                tables.sweep();
                for _ in 0..below(4) {
                    tables.take_idle();
                }
            }
            let mut users = vec![0; blocks];
            for slot in 0..slots {
                tables.table(slot).iter().for_each(|block| users[*block as usize] += 1);
            }
            assert_eq!(users, tables.users);
            assert_eq!(users.iter().filter(|users| **users == 0).count(), tables.blocks_free());
            let mut free = [&tables.free[..], &tables.untouched].concat();
            free.sort_unstable();
            free.dedup();
            assert_eq!(free.len(), tables.free.len() + tables.untouched.len());
            assert!(free.iter().all(|block| users[*block as usize] == 0));
            // Whatever two slots share, they have the same tokens up to its end.
            for (a, b) in (0..slots).flat_map(|a| (0..a).map(move |b| (a, b))) {
                let shared = tables.table(a).iter().zip(tables.table(b)).take_while(|(a, b)| a == b).count();
                assert_eq!(texts[a][..shared * BLOCK], texts[b][..shared * BLOCK]);
                let (a, b) = (&tables.table(a)[shared..], &tables.table(b)[shared..]);
                assert!(a.iter().all(|block| !b.contains(block)));
            }
        }
    }
}
