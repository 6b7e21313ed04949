//! Byte-level BPE ("gpt2"): words of bytes, merged by rank.

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
        let mut pairs = Vec::with_capacity(merges.len());
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
            pairs.push((left, right, Merge { key: rank, id }));
        }
        Self { pre, byte_ids, pairs: PairTable::new(pairs) }
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

/// Pairs of ids to merges, in order: with some 280,000 merges, as many as vocabularies of 128,000 tokens have, 4 MB where a
/// table of hashes takes 8, and no file can aim at one chain.
struct PairTable {
    /// Where the pairs of each left id begin; behind the last one where they end.
    firsts: Vec<u32>,
    rights: Vec<u32>,
    merges: Vec<Merge>,
}

impl PairTable {
    /// Of two equal pairs the one of the smaller key stays.
    fn new(mut pairs: Vec<(u32, u32, Merge)>) -> Self {
        pairs.sort_unstable_by_key(|&(left, right, merge)| (left, right, merge.key));
        pairs.dedup_by_key(|&mut (left, right, _)| (left, right));
        let lefts = pairs.last().map_or(0, |&(left, ..)| left as usize + 1);
        let mut firsts = Vec::with_capacity(lefts + 1);
        for (at, &(left, ..)) in (0u32..).zip(&pairs) {
            firsts.resize(left as usize + 1, at);
        }
        firsts.resize(lefts + 1, u32::try_from(pairs.len()).expect("ranks fit u32"));
        Self {
            firsts,
            rights: pairs.iter().map(|&(_, right, _)| right).collect(),
            merges: pairs.iter().map(|&(.., merge)| merge).collect(),
        }
    }

    #[inline]
    fn find(&self, left: u32, right: u32) -> Merge {
        let left = left as usize;
        let (Some(&first), Some(&end)) = (self.firsts.get(left), self.firsts.get(left + 1)) else { return NO_MERGE };
        let rights = &self.rights[first as usize..end as usize];
        rights.binary_search(&right).map_or(NO_MERGE, |at| self.merges[first as usize + at])
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
        let merge = |key: u32| Merge { key, id: key + 100 };
        let table = PairTable::new(vec![(5, 1, merge(0)), (2, 9, merge(1)), (5, 0, merge(2)), (5, 1, merge(3))]);
        let found = |left, right| table.find(left, right).key;
        assert_eq!([found(5, 1), found(2, 9), found(5, 0)], [0, 1, 2]);
        for (left, right) in [(0, 0), (2, 8), (2, 10), (3, 9), (4, 1), (5, 2), (6, 0), (u32::MAX, u32::MAX)] {
            assert!(table.find(left, right) == NO_MERGE, "{left} {right}");
        }
        assert!(PairTable::new(Vec::new()).find(0, 0) == NO_MERGE);
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
