//! Byte-level BPE ("gpt2"): words of bytes, merged by rank.

use std::hash::{BuildHasher, RandomState};

use super::merge::{Merge, Merger, NO_MERGE, Symbol};
use super::pretokenize::PreTokenizer;
use super::vocabulary::{Vocabulary, fold, fold_index};

/// The merge table of a byte-level BPE vocabulary.
pub(super) struct Bpe {
    pre: PreTokenizer,
    byte_ids: [u32; 256],
    pairs: PairTable,
}

impl Bpe {
    /// Builds the table from lines `left right` in the file's alphabet, best first. Lines without two parts are skipped,
    /// as llama.cpp does; a pair that stands twice keeps its first rank.
    pub(super) fn new<'m>(
        vocabulary: &mut Vocabulary,
        merges: impl ExactSizeIterator<Item = &'m [u8]>,
        pre: PreTokenizer,
    ) -> Self {
        let byte_ids =
            std::array::from_fn(|byte| vocabulary.intern(&[u8::try_from(byte).expect("an index below 256")]));
        let mut pairs = PairTable::with_capacity(merges.len());
        let alphabet = Alphabet::new();
        let mut text = Vec::with_capacity(64);
        for (rank, line) in (0u32..).zip(merges) {
            let Some((left, right)) = std::str::from_utf8(line).ok().and_then(cut) else { continue };
            text.clear();
            if !alphabet.decode(left, &mut text) {
                continue;
            }
            let split = text.len();
            if !alphabet.decode(right, &mut text) {
                continue;
            }
            let left = vocabulary.intern(&text[..split]);
            let right = vocabulary.intern(&text[split..]);
            let id = vocabulary.intern(&text);
            pairs.insert(left, right, Merge { key: rank, id });
        }
        Self { pre, byte_ids, pairs }
    }

    /// Whether files of this kind begin texts with a token unless they say otherwise, as in llama.cpp.
    pub(super) fn adds_bos(&self) -> bool {
        self.pre == PreTokenizer::Llama3
    }

    /// Appends the tokens of `text`, which holds no special tokens.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        self.pre.split(text, &mut |word| {
            if self.pre.ignores_merges()
                && let Some(id) = vocabulary.find_token(word.as_bytes())
            {
                out.push(id);
                return;
            }
            self.encode_word(vocabulary, word.as_bytes(), merger, out);
        });
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &[u8], merger: &mut Merger, out: &mut Vec<u32>) {
        merger.symbols.clear();
        merger.symbols.extend((0u32..).zip(word).map(|(at, &byte)| Symbol {
            start: at,
            end: at + 1,
            id: self.byte_ids[byte as usize],
        }));
        merger.run(|left, right| self.pairs.find(left.id, right.id));
        let is_token = |id: u32| (id as usize) < vocabulary.len();
        for symbol in &merger.symbols {
            if is_token(symbol.id) {
                out.push(symbol.id);
                continue;
            }
            // A merge result that is no token: its bytes, those that are tokens.
            let bytes = &word[symbol.start as usize..symbol.end as usize];
            out.extend(bytes.iter().map(|&byte| self.byte_ids[byte as usize]).filter(|&id| is_token(id)));
        }
    }
}

/// The two parts of a merge line; the first may itself begin with a space.
fn cut(line: &str) -> Option<(&str, &str)> {
    let skip = line.chars().next()?.len_utf8();
    let at = skip + line[skip..].find(' ')?;
    Some((&line[..at], &line[at + 1..]))
}

/// GPT-2's printable stand-ins for bytes: bytes that print stand for themselves, the others for U+0100 and up, in order.
pub(super) struct Alphabet {
    bytes: [Option<u8>; 0x144],
}

impl Alphabet {
    pub(super) fn new() -> Self {
        let mut bytes = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=255u8 {
            let at = if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                usize::from(byte)
            } else {
                next += 1;
                next - 1
            };
            bytes[at] = Some(byte);
        }
        Self { bytes }
    }

    /// Appends the bytes that `text` stands for; false if a character stands for none (then `out` holds a part).
    pub(super) fn decode(&self, text: &str, out: &mut Vec<u8>) -> bool {
        text.chars().all(|c| {
            let byte = self.bytes.get(c as usize).copied().flatten();
            out.extend(byte);
            byte.is_some()
        })
    }
}

/// Pairs of ids to merges, open addressing; keyed per process so that no file can aim at one chain.
struct PairTable {
    slots: Vec<Pair>,
    key: u64,
}

#[derive(Clone, Copy)]
struct Pair {
    left: u32,
    right: u32,
    merge: Merge,
}

impl PairTable {
    fn with_capacity(pairs: usize) -> Self {
        let slots = (pairs.max(8) * 3 / 2).next_power_of_two();
        let empty = Pair { left: 0, right: 0, merge: NO_MERGE };
        Self { slots: vec![empty; slots], key: RandomState::new().hash_one(1u8) | 1 }
    }

    /// The slot of the pair, or the empty one where it would go.
    #[inline]
    fn slot(&self, left: u32, right: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = fold_index(fold(u64::from(left) << 32 | u64::from(right), self.key)) & mask;
        loop {
            let pair = &self.slots[slot];
            if pair.merge == NO_MERGE || (pair.left == left && pair.right == right) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    #[inline]
    fn find(&self, left: u32, right: u32) -> Merge {
        self.slots[self.slot(left, right)].merge
    }

    fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let slot = self.slot(left, right);
        if self.slots[slot].merge == NO_MERGE {
            self.slots[slot] = Pair { left, right, merge };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_covers_every_byte_once() {
        let alphabet = Alphabet::new();
        let mut seen = [false; 256];
        for byte in alphabet.bytes.iter().flatten() {
            assert!(!std::mem::replace(&mut seen[*byte as usize], true));
        }
        assert!(seen.iter().all(|&s| s));
        let mut out = Vec::new();
        assert!(alphabet.decode("Ġhé", &mut out));
        assert_eq!(out, b" h\xe9");
        assert!(!alphabet.decode("日", &mut out));
        assert!(!alphabet.decode("a b", &mut out));
    }

    #[test]
    fn merge_lines_are_cut_at_the_first_inner_space() {
        assert_eq!(cut("a b"), Some(("a", "b")));
        assert_eq!(cut("  b"), Some((" ", "b")));
        assert_eq!(cut("é x y"), Some(("é", "x y")));
        assert_eq!(cut("ab"), None);
        assert_eq!(cut(""), None);
    }
}
