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
    arena: Vec<u8>,
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    index: Index,
    len: usize,
    bytes_max: usize,
}

impl Vocabulary {
    /// An empty vocabulary with room for `tokens` tokens.
    pub(super) fn with_capacity(tokens: usize) -> Self {
        Self {
            arena: Vec::with_capacity(tokens * 8),
            ends: Vec::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
            index: Index::with_capacity(tokens),
            len: 0,
            bytes_max: 0,
        }
    }

    /// Adds the next token. `indexed` tokens are found by their bytes; of two with equal bytes the later one is.
    pub(super) fn push(&mut self, bytes: &[u8], kind: TokenKind, indexed: bool) {
        assert_eq!(self.len, self.ends.len(), "tokens come before symbols");
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
        self.arena.extend_from_slice(bytes);
        let id = u32::try_from(self.ends.len()).expect("ids fit u32: the file's arrays are bounded");
        self.ends.push(u32::try_from(self.arena.len()).expect("the text of a vocabulary is far below 4 GiB"));
        self.bytes_max = self.bytes_max.max(bytes.len());
        id
    }

    fn insert(&mut self, id: u32) {
        if self.index.is_full() {
            let mut index = Index::with_capacity(self.index.len * 2);
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
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.arena[start as usize..end as usize]
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

/// Open addressing over ids; the bytes stay in the arena. The hash is keyed per process so that no file can aim at one chain.
#[derive(Default)]
struct Index {
    slots: Vec<u32>,
    len: usize,
    key: u64,
}

impl Index {
    fn with_capacity(entries: usize) -> Self {
        let slots = (entries.max(8) * 2).next_power_of_two();
        Self { slots: vec![EMPTY; slots], len: 0, key: RandomState::new().hash_one(0u8) | 1 }
    }

    fn is_full(&self) -> bool {
        self.len * 4 >= self.slots.len() * 3
    }

    fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().copied().filter(|&id| id != EMPTY)
    }

    #[inline]
    fn find<'a>(&self, bytes: &[u8], bytes_of: impl Fn(u32) -> &'a [u8]) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut slot = keyed_hash(self.key, bytes) & mask;
        loop {
            match self.slots[slot] {
                EMPTY => return None,
                id if bytes_of(id) == bytes => return Some(id),
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    fn insert<'a>(&mut self, bytes: &[u8], id: u32, bytes_of: impl Fn(u32) -> &'a [u8]) {
        let mask = self.slots.len() - 1;
        let mut slot = keyed_hash(self.key, bytes) & mask;
        while self.slots[slot] != EMPTY {
            if bytes_of(self.slots[slot]) == bytes {
                self.slots[slot] = id;
                return;
            }
            slot = (slot + 1) & mask;
        }
        self.slots[slot] = id;
        self.len += 1;
    }
}

/// Multiply-and-fold over 8-byte words.
#[inline]
fn keyed_hash(key: u64, bytes: &[u8]) -> usize {
    let mut state = key ^ bytes.len() as u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state = fold(state ^ u64::from_le_bytes(*word), key ^ 0x9e37_79b9_7f4a_7c15);
    }
    let mut tail = 0u64;
    for &byte in rest {
        tail = tail << 8 | u64::from(byte);
    }
    fold_index(fold(state ^ tail, key ^ 0xd1b5_4a32_d192_ed03))
}

/// High and low half of the product, combined.
#[inline]
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let bytes = product.to_le_bytes();
    let (halves, _) = bytes.as_chunks::<8>();
    u64::from_le_bytes(halves[0]) ^ u64::from_le_bytes(halves[1])
}

/// A hash as an index; callers mask it.
#[inline]
pub(super) fn fold_index(hash: u64) -> usize {
    usize::try_from(hash & 0xffff_ffff).expect("32 bits fit usize")
}

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
}
