//! The tokens of a model: bytes in one arena, their kinds, and a map from bytes to id.

use std::hash::{BuildHasher, RandomState};

/// `tokenizer.ggml.token_type` of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what cannot be encoded.
    Unknown,
    /// Never shown: begin, end, headers.
    Control,
    /// Added to the vocabulary; found in the text before anything else.
    UserDefined,
    /// A place that no text uses.
    Unused,
    /// One byte of a character that has no token.
    Byte,
}

impl TokenKind {
    /// The kind with GGUF's number `code`; numbers that are not defined count as normal.
    pub(super) fn from_code(code: i32) -> Self {
        match code {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }

    /// Kinds that give no output text.
    pub(super) fn is_silent(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }
}

/// Tokens by id and by bytes. Ids from `len()` on are symbols that merges pass through but that are no tokens.
pub(super) struct Vocabulary {
    texts: Texts,
    kinds: Vec<TokenKind>,
    index: Index,
    len: usize,
    bytes_max: usize,
}

impl Vocabulary {
    /// An empty vocabulary with room for `tokens` tokens.
    pub(super) fn with_capacity(tokens: usize) -> Self {
        Self {
            texts: Texts::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
            index: Index::with_capacity(tokens),
            len: 0,
            bytes_max: 0,
        }
    }

    /// Adds the next token. `indexed` tokens are found by their bytes; of two with equal bytes the later one is.
    pub(super) fn push(&mut self, bytes: &[u8], kind: TokenKind, indexed: bool) {
        assert_eq!(self.len, self.texts.len(), "tokens come before symbols");
        let id = self.append(bytes);
        self.kinds.push(kind);
        self.len += 1;
        if indexed {
            self.insert(id);
        }
    }

    /// The id of `bytes`, as a token or as a symbol that is added if there is none.
    pub(super) fn intern(&mut self, bytes: &[u8]) -> u32 {
        self.find(bytes).unwrap_or_else(|| {
            let id = self.append(bytes);
            self.insert(id);
            id
        })
    }

    fn append(&mut self, bytes: &[u8]) -> u32 {
        self.bytes_max = self.bytes_max.max(bytes.len());
        self.texts.push(bytes)
    }

    fn insert(&mut self, id: u32) {
        if self.index.is_full_for(id) {
            let mut index = Index::with_capacity((self.index.len * 2).max(id as usize + 1));
            for old in self.index.ids() {
                index.insert(self.bytes(old), old, |other| self.bytes(other));
            }
            self.index = index;
        }
        let mut index = std::mem::take(&mut self.index);
        index.insert(self.bytes(id), id, |other| self.bytes(other));
        self.index = index;
    }

    /// The token or symbol with these bytes.
    #[inline]
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.bytes_max {
            return None;
        }
        self.index.find(bytes, |id| self.bytes(id))
    }

    /// The token with these bytes.
    pub(super) fn find_token(&self, bytes: &[u8]) -> Option<u32> {
        self.find(bytes).filter(|&id| (id as usize) < self.len)
    }

    /// Bytes of a token or symbol; empty for an id that is neither.
    #[inline]
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        self.texts.get(id)
    }

    /// Kind of a token; `Unused` for an id that is none.
    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    pub(super) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        self.kinds[id as usize] = kind;
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Ids of all tokens.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        0..u32::try_from(self.len).expect("ids fit u32")
    }
}

/// Byte strings by number, one behind the other: of a real vocabulary a byte and a quarter for each beside its text.
#[derive(Default)]
struct Texts {
    arena: Vec<u8>,
    /// Length of each, or [`LONG`].
    lengths: Vec<u8>,
    /// Where every [`GROUP`]th begins.
    groups: Vec<u32>,
    /// Lengths of those that are longer, by number.
    long: Vec<(u32, u32)>,
}

impl Texts {
    fn with_capacity(texts: usize) -> Self {
        Self {
            arena: Vec::with_capacity(texts * 8),
            lengths: Vec::with_capacity(texts),
            groups: Vec::with_capacity(texts / GROUP + 1),
            long: Vec::new(),
        }
    }

    fn len(&self) -> usize {
        self.lengths.len()
    }

    /// The number that `bytes` gets.
    fn push(&mut self, bytes: &[u8]) -> u32 {
        let number = u32::try_from(self.len()).expect("ids fit u32: the file's arrays are bounded");
        if self.len().is_multiple_of(GROUP) {
            self.groups.push(self.end());
        }
        self.arena.extend_from_slice(bytes);
        let _ = self.end();
        self.lengths.push(u8::try_from(bytes.len()).unwrap_or(LONG));
        if bytes.len() >= usize::from(LONG) {
            self.long.push((number, u32::try_from(bytes.len()).expect("no longer than all")));
        }
        number
    }

    fn end(&self) -> u32 {
        u32::try_from(self.arena.len()).expect("the text of a vocabulary is far below 4 GiB")
    }

    fn length(&self, number: usize) -> usize {
        match self.lengths[number] {
            LONG => {
                let at = self.long.binary_search_by_key(&number, |&(number, _)| number as usize);
                self.long[at.expect("a long text's length is kept")].1 as usize
            }
            length => usize::from(length),
        }
    }

    /// Empty for a number that is none.
    #[inline]
    fn get(&self, number: u32) -> &[u8] {
        let number = number as usize;
        if number >= self.len() {
            return &[];
        }
        let before: usize = (number / GROUP * GROUP..number).map(|other| self.length(other)).sum();
        let start = self.groups[number / GROUP] as usize + before;
        &self.arena[start..start + self.length(number)]
    }
}

/// Texts whose beginnings follow from that of the first.
const GROUP: usize = 16;
/// Stands for a length that is kept elsewhere.
const LONG: u8 = u8::MAX;

/// Open addressing over ids; the bytes stay elsewhere. The hash is keyed per process so that no file can aim at one chain.
#[derive(Default)]
struct Index {
    /// An id in the low bits, of the hash as many as there is room for above them: others' bytes are rarely looked at.
    slots: Vec<u32>,
    id_mask: u32,
    len: usize,
    key: u64,
}

impl Index {
    /// Room for `entries` entries, and for ids below.
    fn with_capacity(entries: usize) -> Self {
        let entries = entries.max(8);
        let id_mask = u32::try_from((entries + 1).next_power_of_two() - 1).expect("ids fit u32");
        let slots = vec![EMPTY; entries / 3 * 4 + 4];
        Self { slots, id_mask, len: 0, key: RandomState::new().hash_one(0u8) | 1 }
    }

    fn is_full_for(&self, id: u32) -> bool {
        self.len * 4 >= self.slots.len() * 3 || id >= self.id_mask
    }

    fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().filter(|&&slot| slot != EMPTY).map(|slot| slot & self.id_mask)
    }

    /// The slot of `bytes`, or the empty one where they would go, and their hash as it stands in slots.
    #[inline]
    fn slot<'a>(&self, bytes: &[u8], bytes_of: impl Fn(u32) -> &'a [u8]) -> (usize, u32) {
        let hash = keyed_hash(self.key, bytes);
        let mut slot = scaled(hash >> 32, self.slots.len());
        let tag = u32::try_from(hash & 0xffff_ffff).expect("32 bits") & !self.id_mask;
        loop {
            let found = self.slots[slot];
            if found == EMPTY || (found & !self.id_mask == tag && bytes_of(found & self.id_mask) == bytes) {
                return (slot, tag);
            }
            slot = if slot + 1 == self.slots.len() { 0 } else { slot + 1 };
        }
    }

    #[inline]
    fn find<'a>(&self, bytes: &[u8], bytes_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        let found = self.slots[self.slot(bytes, bytes_of).0];
        (found != EMPTY).then_some(found & self.id_mask)
    }

    fn insert<'a>(&mut self, bytes: &[u8], id: u32, bytes_of: impl Fn(u32) -> &'a [u8]) {
        let (slot, tag) = self.slot(bytes, bytes_of);
        self.len += usize::from(self.slots[slot] == EMPTY);
        self.slots[slot] = tag | id;
    }
}

/// Multiply-and-fold over 8-byte words.
#[inline]
fn keyed_hash(key: u64, bytes: &[u8]) -> u64 {
    let mut state = key ^ bytes.len() as u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = fold(state ^ u64::from_le_bytes(*word), key ^ 0x9e37_79b9_7f4a_7c15);
    }
    let mut tail = 0u64;
    for &byte in rest {
        tail = tail << 8 | u64::from(byte);
    }
    fold(state ^ tail, key ^ 0xd1b5_4a32_d192_ed03)
}

/// High and low half of the product, combined.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_by_bytes_and_the_later_of_two_wins() {
        let mut vocabulary = Vocabulary::with_capacity(2);
        for i in 0..1000u32 {
            vocabulary.push(format!("t{}", i % 900).as_bytes(), TokenKind::Normal, true);
        }
        assert_eq!(vocabulary.find(b"t950"), None);
        assert_eq!(vocabulary.find(b"t5"), Some(905));
        assert_eq!(vocabulary.find(b"t500"), Some(500));
        assert_eq!(vocabulary.intern(b"t500"), 500);
        let symbol = vocabulary.intern(b"longer than a word of eight bytes");
        assert_eq!(symbol, 1000);
        assert_eq!(vocabulary.find(b"longer than a word of eight bytes"), Some(symbol));
        assert_eq!(vocabulary.find_token(b"longer than a word of eight bytes"), None);
        assert_eq!(vocabulary.bytes(5000), b"");
        assert_eq!(vocabulary.len(), 1000);
    }

    #[test]
    fn texts_of_any_length_keep_their_bytes() {
        let lengths = [0, 1, 254, 255, 256, 70_000, 3, 0];
        let text = |i: usize| vec![u8::try_from(i % 251).unwrap(); lengths[i % lengths.len()]];
        let mut vocabulary = Vocabulary::with_capacity(0);
        for i in 0..100 {
            vocabulary.push(&text(i), TokenKind::Normal, !i.is_multiple_of(3));
        }
        for i in 0..100 {
            assert_eq!(vocabulary.bytes(u32::try_from(i).unwrap()), text(i), "{i}");
            let found = vocabulary.find(&text(i)).map(|id| vocabulary.bytes(id));
            assert!(found.is_none_or(|bytes| bytes == text(i)), "{i}");
        }
    }

    /// Ids grow past what an index was made for, by tokens that it does not hold.
    #[test]
    fn ids_far_above_the_number_of_entries_are_found() {
        let mut vocabulary = Vocabulary::with_capacity(0);
        for i in 0..5000u32 {
            vocabulary.push(&i.to_le_bytes(), TokenKind::Normal, i.is_multiple_of(500));
        }
        for i in 0..5000u32 {
            assert_eq!(vocabulary.find(&i.to_le_bytes()), i.is_multiple_of(500).then_some(i));
        }
    }
}
