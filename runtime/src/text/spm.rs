//! SentencePiece BPE ("llama"): characters of the text, merged by the score of the token they give.

use super::merge::{Merge, Merger, NO_ID, NO_MERGE, Symbol};
use super::vocabulary::{TokenKind, Vocabulary};

/// The scores of a SentencePiece vocabulary.
pub(super) struct Spm {
    /// Merge keys by token id: the better the score, the smaller.
    keys: Vec<u32>,
    /// Tokens of single bytes; the unknown token where a byte has none, `NO_ID` where that is absent too.
    byte_ids: [u32; 256],
    /// No token has a space after something else: a merge never crosses the start of a word, so words are encoded alone.
    words_apart: bool,
}

impl Spm {
    pub(super) fn new(vocabulary: &Vocabulary, scores: &[f32], unknown: Option<u32>) -> Self {
        let keys = vocabulary.ids().map(|id| merge_key(scores.get(id as usize).copied().unwrap_or(0.0))).collect();
        let mut byte_ids: [u32; 256] = std::array::from_fn(|byte| {
            let byte = u8::try_from(byte).expect("an index below 256");
            vocabulary.find_token(&[byte]).or(unknown).unwrap_or(NO_ID)
        });
        for id in vocabulary.ids().filter(|&id| vocabulary.kind(id) == TokenKind::Byte) {
            if let [byte] = vocabulary.bytes(id) {
                byte_ids[*byte as usize] = id;
            }
        }
        let words_apart = vocabulary.ids().all(|id| {
            let mut inner = vocabulary.bytes(id).iter().skip_while(|&&byte| byte == b' ');
            !inner.any(|&byte| byte == b' ')
        });
        Self { keys, byte_ids, words_apart }
    }

    /// Appends the tokens of `text`, in which spaces are spaces.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        if !self.words_apart {
            self.encode_word(vocabulary, text, merger, out);
            return;
        }
        let bytes = text.as_bytes();
        let mut start = 0;
        for at in 1..bytes.len() {
            if bytes[at] == b' ' && bytes[at - 1] != b' ' {
                self.encode_word(vocabulary, &text[start..at], merger, out);
                start = at;
            }
        }
        self.encode_word(vocabulary, &text[start..], merger, out);
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        let bytes = word.as_bytes();
        merger.symbols.clear();
        let end = u32::try_from(bytes.len()).expect("a text is far below 4 GiB");
        for (at, byte) in (0..end).zip(bytes) {
            match merger.symbols.last_mut() {
                Some(symbol) if byte & 0xc0 == 0x80 => symbol.end = at + 1,
                _ => merger.symbols.push(Symbol { start: at, end: at + 1, id: NO_ID }),
            }
        }
        let text_of = |symbol: &Symbol| &bytes[symbol.start as usize..symbol.end as usize];
        merger.run(|left, right| {
            vocabulary
                .find_token(&bytes[left.start as usize..right.end as usize])
                .map_or(NO_MERGE, |id| Merge { key: self.keys[id as usize], id })
        });
        for symbol in &merger.symbols {
            match if symbol.id == NO_ID { vocabulary.find_token(text_of(symbol)) } else { Some(symbol.id) } {
                Some(id) => out.push(id),
                None => {
                    let ids = text_of(symbol).iter().map(|&byte| self.byte_ids[byte as usize]);
                    out.extend(ids.filter(|&id| id != NO_ID));
                }
            }
        }
    }
}

/// A key that is the smaller the higher the score, and never that of `NO_MERGE`; NaN is the lowest score.
fn merge_key(score: f32) -> u32 {
    let score = if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 };
    let bits = score.to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fall_as_scores_rise() {
        let scores = [f32::NEG_INFINITY, -1e9, -2.0, -0.0, 1e-9, 3.0, f32::INFINITY];
        assert!(scores.windows(2).all(|pair| merge_key(pair[0]) > merge_key(pair[1])));
        assert_eq!(merge_key(0.0), merge_key(-0.0));
        assert_eq!(merge_key(f32::NAN), merge_key(f32::NEG_INFINITY));
        assert!(merge_key(f32::NAN) < u32::MAX);
    }
}
