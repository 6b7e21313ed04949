//! Byte-level BPE ("gpt2"): words of bytes, merged by rank.

use super::index::{Index, fold};
use super::merge::{Merge, Merger, NO_MERGE, Symbol};
use super::pretokenize::PreTokenizer;
use super::vocabulary::Vocabulary;

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
        for line in merges {
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
            pairs.push(Pair { left, right, id });
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

/// Pairs of ids to merges: of a vocabulary with 280,000 merges 5 MB.
struct PairTable {
    /// Best first.
    pairs: Vec<Pair>,
    index: Index,
}

/// Two ids, and that of what they become.
#[derive(Clone, Copy)]
struct Pair {
    left: u32,
    right: u32,
    id: u32,
}

impl PairTable {
    fn with_capacity(pairs: usize) -> Self {
        Self { pairs: Vec::with_capacity(pairs), index: Index::with_capacity(pairs) }
    }

    /// The pair that `left` and `right` are, by number.
    #[inline]
    fn number(&self, left: u32, right: u32) -> (u64, Option<u32>) {
        let hash = fold(u64::from(left) << 32 | u64::from(right), self.index.key());
        let is_it = |number: u32| {
            let pair = &self.pairs[number as usize];
            (pair.left, pair.right) == (left, right)
        };
        (hash, self.index.find(hash, is_it))
    }

    #[inline]
    fn find(&self, left: u32, right: u32) -> Merge {
        let number = self.number(left, right).1;
        number.map_or(NO_MERGE, |key| Merge { key, id: self.pairs[key as usize].id })
    }

    /// Adds a pair after all better ones. Of two equal ones the first stays.
    fn push(&mut self, pair: Pair) {
        if let (hash, None) = self.number(pair.left, pair.right) {
            let number = u32::try_from(self.pairs.len()).expect("the file's arrays are bounded");
            self.pairs.push(pair);
            self.index.insert(hash, number, |_| false);
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
    fn pairs_are_found_and_the_first_of_equal_ones_wins() {
        let pairs = [(5, 1), (2, 9), (5, 0), (5, 1), (1, 5)];
        let mut table = PairTable::with_capacity(pairs.len());
        (100..).zip(pairs).for_each(|(id, (left, right))| table.push(Pair { left, right, id }));
        let found = |left, right| (table.find(left, right).key, table.find(left, right).id);
        assert_eq!([found(5, 1), found(2, 9), found(5, 0), found(1, 5)], [(0, 100), (1, 101), (2, 102), (3, 104)]);
        for (left, right) in [(0, 0), (2, 8), (2, 10), (3, 9), (9, 2), (5, 2), (6, 0), (u32::MAX, u32::MAX)] {
            assert!(table.find(left, right) == NO_MERGE, "{left} {right}");
        }
        assert!(PairTable::with_capacity(0).find(0, 0) == NO_MERGE);
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
