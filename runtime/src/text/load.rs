//! Reads the vocabulary of a GGUF file: tokens to bytes, kinds, special ids.

use gguf::Metadata;

use super::bpe::Alphabet;
use super::pretokenize::PreTokenizer;
use super::tokenizer::{Note, TokenizerError};
use super::vocabulary::{TokenKind, Vocabulary};

pub(super) fn pre_tokenizer(metadata: &Metadata<'_>, notes: &mut Vec<Note>) -> Result<PreTokenizer, TokenizerError> {
    let Some(name) = metadata.str("tokenizer.ggml.pre")? else {
        notes.push(Note::PreTokenizerMissing);
        return Ok(PreTokenizer::Llama3);
    };
    PreTokenizer::from_name(name).ok_or_else(|| TokenizerError::PreTokenizer { found: name.chars().take(64).collect() })
}

/// Reads tokens and kinds; `decode(text, kind, out)` gives a token's bytes and says whether text can become it.
pub(super) fn read_vocabulary(
    metadata: &Metadata<'_>,
    decode: impl Fn(&[u8], TokenKind, &mut Vec<u8>) -> bool,
) -> Result<Vocabulary, TokenizerError> {
    let tokens = metadata.strings(TOKENS)?.ok_or(TokenizerError::Missing { key: TOKENS })?;
    let count = tokens.len();
    if count == 0 || count > TOKENS_MAX {
        return Err(TokenizerError::TokenCount { found: count });
    }
    let kinds = metadata.i32s(KINDS)?;
    if let Some(kinds) = &kinds {
        check_length(KINDS, kinds.len(), count)?;
    }
    let mut kinds = kinds.iter().flat_map(|kinds| kinds.iter());
    let mut vocabulary = Vocabulary::with_capacity(count);
    let mut bytes = Vec::with_capacity(256);
    for text in tokens {
        let kind = kinds.next().map_or(TokenKind::Normal, TokenKind::from_code);
        bytes.clear();
        let indexed = decode(text, kind, &mut bytes);
        vocabulary.push(&bytes, kind, indexed);
    }
    Ok(vocabulary)
}

/// GPT-2's alphabet to bytes. Special tokens stand for their own text.
pub(super) fn byte_level_token() -> impl Fn(&[u8], TokenKind, &mut Vec<u8>) -> bool {
    let alphabet = Alphabet::new();
    move |text, kind, out| {
        let decoded = std::str::from_utf8(text).is_ok_and(|text| alphabet.decode(text, out));
        let special = matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined);
        if decoded && !special {
            return true;
        }
        let same = decoded && out == text;
        out.clear();
        out.extend_from_slice(text);
        same
    }
}

/// U+2581 to spaces and `<0x0A>` to bytes; a token with a plain space is never met, since text has none by then.
pub(super) fn sentencepiece_token(text: &[u8], kind: TokenKind, out: &mut Vec<u8>) -> bool {
    match kind {
        TokenKind::Byte => {
            match byte_name(text) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(text),
            }
            false
        }
        TokenKind::Normal | TokenKind::Unused => {
            let mut rest = text;
            while let Some((&first, tail)) = rest.split_first() {
                rest = match rest.strip_prefix(SPACE_MARK.as_bytes()) {
                    Some(tail) => {
                        out.push(b' ');
                        tail
                    }
                    None => {
                        out.push(first);
                        tail
                    }
                };
            }
            !text.contains(&b' ')
        }
        TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined => {
            out.extend_from_slice(text);
            !text.contains(&b' ')
        }
    }
}

/// The byte that a token named `<0xHH>` stands for.
fn byte_name(text: &[u8]) -> Option<u8> {
    let hex = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    if hex.len() != 2 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
}

/// The merge lines of a byte-level BPE file.
pub(super) fn read_merges<'a>(metadata: &Metadata<'a>) -> Result<gguf::Strings<'a>, TokenizerError> {
    let merges = metadata.strings(MERGES)?.ok_or(TokenizerError::Missing { key: MERGES })?;
    if merges.len() > MERGES_MAX {
        return Err(TokenizerError::MergeCount { found: merges.len() });
    }
    Ok(merges)
}

/// The scores of a SentencePiece file, empty where it has none.
pub(super) fn read_scores(metadata: &Metadata<'_>, tokens: usize) -> Result<Vec<f32>, TokenizerError> {
    let scores: Vec<f32> = metadata.f32s(SCORES)?.map(|scores| scores.iter().collect()).unwrap_or_default();
    check_length(SCORES, scores.len(), tokens)?;
    Ok(scores)
}

/// The tokens that end a generation, ascending; those known by their text become control tokens.
pub(super) fn end_tokens(vocabulary: &mut Vocabulary, ids: [Option<u32>; 3]) -> Vec<u32> {
    let mut ends: Vec<u32> = ids.into_iter().flatten().collect();
    for text in TURN_ENDS {
        if let Some(id) = vocabulary.find_token(text.as_bytes()) {
            vocabulary.set_kind(id, TokenKind::Control);
            ends.push(id);
        }
    }
    // Ordinary text in some vocabularies: these end a generation only as control tokens.
    for text in TEXT_ENDS {
        ends.extend(vocabulary.find_token(text.as_bytes()).filter(|&id| vocabulary.kind(id) == TokenKind::Control));
    }
    ends.sort_unstable();
    ends.dedup();
    ends
}

pub(super) fn token_id(
    metadata: &Metadata<'_>,
    key: &'static str,
    tokens: usize,
    notes: &mut Vec<Note>,
) -> Result<Option<u32>, TokenizerError> {
    match metadata.u32(key)? {
        Some(id) if id as usize >= tokens => {
            notes.push(Note::TokenIdOutOfRange { key, id, tokens });
            Ok(None)
        }
        id => Ok(id),
    }
}

fn check_length(key: &'static str, found: usize, tokens: usize) -> Result<(), TokenizerError> {
    if found == 0 || found == tokens { Ok(()) } else { Err(TokenizerError::Length { key, found, tokens }) }
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
/// Tokens that end a turn or a message, by their text.
pub(super) const TURN_ENDS: [&str; 7] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>"];
/// Tokens that end a text, where they are control tokens.
const TEXT_ENDS: [&str; 2] = ["</s>", "<|return|>"];
/// Most tokens of a vocabulary; the largest in use have 262,144.
pub(super) const TOKENS_MAX: usize = 1 << 21;
/// SentencePiece's space.
pub(super) const SPACE_MARK: &str = "\u{2581}";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
/// Most merges; Llama 3 has 280,147.
pub(super) const MERGES_MAX: usize = 1 << 22;
/// Most bytes of special tokens' texts; each costs a node of a trie.
pub(super) const SPECIAL_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::super::tokenizer::Tokenizer;
    use super::*;

    /// A metadata-only file: keys with their values as they stand in a file, type id first.
    fn file(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend((entries.len() as u64).to_le_bytes());
        for (key, value) in entries {
            bytes.extend((key.len() as u64).to_le_bytes());
            bytes.extend(key.as_bytes());
            bytes.extend(value);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes
    }

    fn string(text: &str) -> Vec<u8> {
        [&8u32.to_le_bytes()[..], &(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn strings(texts: &[&str]) -> Vec<u8> {
        let mut value = [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &(texts.len() as u64).to_le_bytes()].concat();
        texts.iter().for_each(|text| value.extend(&string(text)[4..]));
        value
    }

    fn i32s(values: &[i32]) -> Vec<u8> {
        let mut value = [&9u32.to_le_bytes()[..], &5u32.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|v| value.extend(v.to_le_bytes()));
        value
    }

    fn load(entries: &[(&str, Vec<u8>)]) -> Result<Tokenizer, TokenizerError> {
        let bytes = file(entries);
        let file = gguf::Gguf::parse(&bytes, bytes.len() as u64).unwrap();
        Tokenizer::from_gguf(file.metadata())
    }

    fn ids(tokenizer: &Tokenizer, text: &str, special: bool) -> Vec<u32> {
        let mut out = Vec::new();
        tokenizer.encode(text, special, special, &mut out);
        out
    }

    const MODEL: &str = "tokenizer.ggml.model";

    #[test]
    fn each_fault_has_its_error() {
        type E = TokenizerError;
        assert!(matches!(load(&[]), Err(E::Missing { key: MODEL })));
        assert!(matches!(load(&[(MODEL, string("t5"))]), Err(E::Model { found }) if found == "t5"));
        assert!(matches!(load(&[(MODEL, i32s(&[1]))]), Err(E::Metadata(_))));
        let gpt2 = |more: &[(&'static str, Vec<u8>)]| {
            let mut entries = vec![(MODEL, string("gpt2")), (TOKENS, strings(&["a", "b"]))];
            entries.extend_from_slice(more);
            load(&entries).map(|tokenizer| tokenizer.notes().to_vec())
        };
        assert!(matches!(gpt2(&[]), Err(E::Missing { key: MERGES })));
        assert!(
            matches!(gpt2(&[("tokenizer.ggml.pre", string("nope"))]), Err(E::PreTokenizer { found }) if found == "nope")
        );
        assert!(matches!(gpt2(&[(KINDS, i32s(&[1]))]), Err(E::Length { found: 1, tokens: 2, .. })));
        let bos = [&4u32.to_le_bytes()[..], &7u32.to_le_bytes()].concat();
        let notes = gpt2(&[(MERGES, strings(&[])), ("tokenizer.ggml.bos_token_id", bos)]).unwrap();
        let out_of_range = Note::TokenIdOutOfRange { key: "tokenizer.ggml.bos_token_id", id: 7, tokens: 2 };
        assert_eq!(notes, [Note::PreTokenizerMissing, out_of_range]);
        assert!(matches!(load(&[(MODEL, string("llama")), (TOKENS, strings(&[]))]), Err(E::TokenCount { found: 0 })));
    }

    #[test]
    fn merges_through_symbols_that_are_no_tokens_give_their_bytes() {
        let tokenizer = load(&[
            (MODEL, string("gpt2")),
            (TOKENS, strings(&["a", "b", "c", "abc", "bc", "Ġ"])),
            (MERGES, strings(&["b c", "x y", "a b", "bad", "Ġ a", "日 a"])),
        ])
        .unwrap();
        assert_eq!(ids(&tokenizer, "bc", false), [4]);
        assert_eq!(ids(&tokenizer, "ab", false), [0, 1]); // `ab` is no token
        assert_eq!(ids(&tokenizer, "abab", false), [0, 1, 0, 1]);
        assert_eq!(ids(&tokenizer, "abc", false), [3]); // llama-bpe takes a word that is a token whole
        assert_eq!(ids(&tokenizer, "xy a", false), [5, 0]); // bytes without a token are dropped
        assert_eq!(tokenizer.piece(5), b" ");
        assert_eq!(tokenizer.piece(6), b"");
    }

    #[test]
    fn sentencepiece_falls_back_to_bytes_and_unknown() {
        let tokens = ["<unk>", "<s>", "</s>", "<0xC3>", "\u{2581}", "a", "\u{2581}a", "<x>", "\u{2581}a\u{2581}a"];
        let tokenizer =
            load(&[(MODEL, string("llama")), (TOKENS, strings(&tokens)), (KINDS, i32s(&[2, 3, 3, 6, 1, 1, 1, 4, 1]))])
                .unwrap();
        assert_eq!(ids(&tokenizer, "a", true), [1, 6]);
        assert_eq!(ids(&tokenizer, "a a", false), [8]); // a merge across words, which this vocabulary has
        assert_eq!(ids(&tokenizer, "é", false), [4, 3, 0]);
        assert_eq!(ids(&tokenizer, "a<x>a", false), [6, 7, 6]);
        assert_eq!(ids(&tokenizer, "</s>a", true), [1, 2, 6]);
        assert_eq!((tokenizer.piece(3), tokenizer.piece(6), tokenizer.piece(2)), (&b"\xc3"[..], &b" a"[..], &b""[..]));
        assert!(tokenizer.is_end_of_generation(2) && !tokenizer.is_end_of_generation(1));
    }
}
