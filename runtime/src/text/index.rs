//! Maps from what the caller can compare to ids, four bytes a slot.

use std::hash::{BuildHasher, RandomState};

/// Open addressing over ids; what has them stays elsewhere. Hashes are keyed per process so that no file can aim at one chain.
#[derive(Default)]
pub(super) struct Index {
    /// An id in the low bits, of the hash as many as there is room for above them: others are rarely looked at.
    slots: Vec<u32>,
    id_mask: u32,
    len: usize,
    key: u64,
}

impl Index {
    /// Room for `entries` entries, and for ids below.
    pub(super) fn with_capacity(entries: usize) -> Self {
        let entries = entries.max(8);
        let id_mask = u32::try_from((entries + 1).next_power_of_two() - 1).expect("ids fit u32");
        let slots = vec![EMPTY; entries / 3 * 4 + 4];
        Self { slots, id_mask, len: 0, key: RandomState::new().hash_one(0u8) | 1 }
    }

    /// Whether it has to be made anew before `id` goes in.
    pub(super) fn is_full_for(&self, id: u32) -> bool {
        self.len * 4 >= self.slots.len() * 3 || id >= self.id_mask
    }

    /// All that are in it.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().filter(|&&slot| slot != EMPTY).map(|slot| slot & self.id_mask)
    }

    /// How many are in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What goes into hashes.
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    /// The slot of the id that `is_it`, or the empty one where it would go, and the hash as it stands in slots.
    #[inline]
    fn slot(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> (usize, u32) {
        let mut slot = scaled(hash >> 32, self.slots.len());
        let tag = u32::try_from(hash & 0xffff_ffff).expect("32 bits") & !self.id_mask;
        loop {
            let found = self.slots[slot];
            if found == EMPTY || (found & !self.id_mask == tag && is_it(found & self.id_mask)) {
                return (slot, tag);
            }
            slot = if slot + 1 == self.slots.len() { 0 } else { slot + 1 };
        }
    }

    /// The id with this hash that `is_it`.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let found = self.slots[self.slot(hash, is_it).0];
        (found != EMPTY).then_some(found & self.id_mask)
    }

    /// Puts `id` in, in place of one that `is_it`.
    pub(super) fn insert(&mut self, hash: u64, id: u32, is_it: impl Fn(u32) -> bool) {
        debug_assert!(!self.is_full_for(id), "there is room");
        let (slot, tag) = self.slot(hash, is_it);
        self.len += usize::from(self.slots[slot] == EMPTY);
        self.slots[slot] = tag | id;
    }
}

/// High and low half of the product, combined.
#[inline]
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let bytes = product.to_le_bytes();
    let (halves, _) = bytes.as_chunks::<8>();
    u64::from_le_bytes(halves[0]) ^ u64::from_le_bytes(halves[1])
}

/// A number below `length` that follows from 32 bits of a hash, all as likely.
#[inline]
fn scaled(hash: u64, length: usize) -> usize {
    usize::try_from((hash * length as u64) >> 32).expect("below a length")
}

/// No id is as great: see [`Index::is_full_for`].
const EMPTY: u32 = u32::MAX;
