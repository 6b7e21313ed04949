//! The tokens of a model: bytes in one arena, their kinds, and a map from bytes to id.

use std::ops::Range;

use super::index::{Index, fold};

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
            let mut index = Index::with_capacity((self.index.len() * 2).max(id as usize + 1));
            for old in self.index.ids() {
                let bytes = self.bytes(old);
                index.insert(hash_of(&index, bytes), old, |other| self.bytes(other) == bytes);
            }
            self.index = index;
        }
        let mut index = std::mem::take(&mut self.index);
        let bytes = self.bytes(id);
        index.insert(hash_of(&index, bytes), id, |other| self.bytes(other) == bytes);
        self.index = index;
    }

    /// The token or symbol with these bytes.
    #[inline]
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.bytes_max {
            return None;
        }
        self.index.find(hash_of(&self.index, bytes), |id| self.bytes(id) == bytes)
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

/// Byte strings by number, one behind the other: a byte and a half for each beside its text.
#[derive(Default)]
struct Texts {
    arena: Vec<u8>,
    groups: Vec<Group>,
    len: usize,
    /// Those longer than [`LENGTH_MAX`], by number, and by how much.
    long: Vec<(u32, u32)>,
}

/// Texts in a row: where the first one begins, and their lengths, [`LENGTH_MAX`] at most.
struct Group {
    start: u32,
    lengths: [u8; GROUP],
}

impl Texts {
    fn with_capacity(texts: usize) -> Self {
        Self {
            arena: Vec::with_capacity(texts * 8),
            groups: Vec::with_capacity(texts.div_ceil(GROUP)),
            ..Self::default()
        }
    }

    fn len(&self) -> usize {
        self.len
    }

    /// The number that `bytes` gets.
    fn push(&mut self, bytes: &[u8]) -> u32 {
        let number = u32::try_from(self.len).expect("ids fit u32: the file's arrays are bounded");
        let size = |bytes: usize| u32::try_from(bytes).expect("the text of a vocabulary is far below 4 GiB");
        if self.len.is_multiple_of(GROUP) {
            self.groups.push(Group { start: size(self.arena.len()), lengths: [0; GROUP] });
        }
        self.arena.extend_from_slice(bytes);
        // All of it is within reach of a group's start, whoever comes next.
        size(self.arena.len());
        let group = self.groups.last_mut().expect("a group for this number");
        group.lengths[self.len % GROUP] = u8::try_from(bytes.len()).unwrap_or(LENGTH_MAX);
        if bytes.len() > LENGTH_MAX.into() {
            self.long.push((number, size(bytes.len() - usize::from(LENGTH_MAX))));
        }
        self.len += 1;
        number
    }

    /// By how much texts of these numbers are longer than [`LENGTH_MAX`], all together.
    #[cold]
    fn excess(&self, numbers: Range<usize>) -> usize {
        let before = |number: usize| self.long.partition_point(|&(long, _)| (long as usize) < number);
        self.long[before(numbers.start)..before(numbers.end)].iter().map(|&(_, excess)| excess as usize).sum()
    }

    /// Empty for a number that is none.
    #[inline]
    fn get(&self, number: u32) -> &[u8] {
        let number = number as usize;
        let (Some(group), at) = (self.groups.get(number / GROUP), number % GROUP) else { return &[] };
        let before = sum_of_bytes(u64::from_le_bytes(group.lengths) & ((1 << (8 * at)) - 1));
        let (mut start, mut length) = (group.start as usize + before, usize::from(group.lengths[at]));
        if !self.long.is_empty() {
            start += self.excess(number - at..number);
            length += self.excess(number..number + 1);
        }
        &self.arena[start..start + length]
    }
}

#[inline]
fn sum_of_bytes(bytes: u64) -> usize {
    let pairs = (bytes & 0x00ff_00ff_00ff_00ff) + ((bytes >> 8) & 0x00ff_00ff_00ff_00ff);
    usize::try_from(pairs.wrapping_mul(0x0001_0001_0001_0001) >> 48).expect("16 bits")
}

/// Texts whose beginnings follow from that of the first.
const GROUP: usize = 8;
const LENGTH_MAX: u8 = u8::MAX;

/// Multiply-and-fold over 8-byte words.
#[inline]
fn hash_of(index: &Index, bytes: &[u8]) -> u64 {
    let key = index.key();
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
