//! Splits text into the words inside which byte-level BPE merges.
//!
//! Each splitter is the hand-written form of the regular expressions named beside it (those of llama.cpp's
//! `llm_tokenizer_bpe`), in one pass without backtracking: time is linear whatever the text.

use super::char_class::{Class, LETTER, NUMBER, OTHER, PUNCTUATION, SPACE, class_at};

/// The splitting rule that `tokenizer.ggml.pre` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// What llama.cpp falls back to: punctuation runs, GPT-2, `\p{N}+`, `[0-9][0-9][0-9]`.
    Default,
    /// GPT-2's own expression.
    Gpt2,
    /// Llama 3 (`llama-bpe`): numbers in groups of three.
    Llama3,
    /// Qwen 2: as Llama 3, each digit alone.
    Qwen2,
    /// Falcon: punctuation runs, GPT-2, `[0-9][0-9][0-9]`.
    Falcon,
    /// Falcon 3 and Falcon-E: punctuation runs, GPT-2, each ASCII digit alone.
    Falcon3,
}

impl PreTokenizer {
    /// The rule with the name used in GGUF files; `None` for one that is not known here.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "default" => Self::Default,
            "gpt-2" | "gpt2" => Self::Gpt2,
            "llama3" | "llama-v3" | "llama-bpe" => Self::Llama3,
            "qwen2" => Self::Qwen2,
            "falcon" => Self::Falcon,
            "falcon3" | "falcon_e" => Self::Falcon3,
            _ => return None,
        })
    }

    /// Whether a word that is a token stays whole even if the merges would not build it.
    pub(super) fn ignores_merges(self) -> bool {
        self == Self::Llama3
    }

    /// Calls `word` with every part of `text`, in order; the parts concatenated are `text`.
    pub(super) fn split<'t>(self, text: &'t str, word: &mut impl FnMut(&'t str)) {
        match self {
            Self::Gpt2 => gpt2(text, word),
            Self::Llama3 => llama3(text, 3, word),
            Self::Qwen2 => llama3(text, 1, word),
            Self::Default => punctuation_runs(text, b"$+<=>^~|", &mut |part| {
                gpt2(part, &mut |part| number_runs(part, &mut |part| digit_groups(part, 3, word)));
            }),
            Self::Falcon => punctuation_runs(text, b"$+<=>^~|`", &mut |part| {
                gpt2(part, &mut |part| digit_groups(part, 3, word));
            }),
            Self::Falcon3 => punctuation_runs(text, b"$+<=>^~|`", &mut |part| {
                gpt2(part, &mut |part| digit_groups(part, 1, word));
            }),
        }
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn gpt2<'t>(text: &'t str, word: &mut impl FnMut(&'t str)) {
    let bytes = text.as_bytes();
    let mut pos = 0;
    while pos < bytes.len() {
        let start = pos;
        let (own_class, own_len) = class_at(text, pos);
        let contraction = contraction_len(&bytes[pos..], false);
        if contraction > 0 {
            pos += contraction;
        } else {
            let space_len = usize::from(bytes[pos] == b' ');
            let (class, _) = if space_len > 0 { class_at(text, pos + 1) } else { (own_class, own_len) };
            let run = match class {
                LETTER => LETTER,
                NUMBER => NUMBER,
                PUNCTUATION | OTHER => PUNCTUATION | OTHER,
                _ => 0,
            };
            pos =
                if run == 0 { whitespace_end(text, pos, own_len, false) } else { run_end(text, pos + space_len, run) };
        }
        word(&text[start..pos]);
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn llama3<'t>(text: &'t str, digits_max: usize, word: &mut impl FnMut(&'t str)) {
    let bytes = text.as_bytes();
    let mut pos = 0;
    while pos < bytes.len() {
        let start = pos;
        let byte = bytes[pos];
        let (own_class, own_len) = class_at(text, pos);
        let contraction = contraction_len(&bytes[pos..], true);
        if contraction > 0 {
            pos += contraction;
        } else if own_class == LETTER {
            pos = run_end(text, pos + own_len, LETTER);
        } else if own_class == NUMBER {
            for _ in 0..digits_max {
                let (class, len) = class_at(text, pos);
                pos += if class == NUMBER { len } else { 0 };
            }
        } else {
            let (next_class, _) = class_at(text, pos + own_len);
            let space_len = usize::from(byte == b' ');
            let class = if space_len > 0 { next_class } else { own_class };
            if next_class == LETTER && byte != b'\r' && byte != b'\n' {
                pos = run_end(text, pos + own_len, LETTER);
            } else if class & (PUNCTUATION | OTHER) != 0 {
                pos = run_end(text, pos + space_len, PUNCTUATION | OTHER);
                pos += bytes[pos..].iter().take_while(|&&b| b == b'\r' || b == b'\n').count();
            } else {
                pos = whitespace_end(text, pos, own_len, true);
            }
        }
        word(&text[start..pos]);
    }
}

/// Length of `'s 't 'm 'd 're 've 'll` at the start of `bytes`, or 0.
fn contraction_len(bytes: &[u8], any_case: bool) -> usize {
    if bytes[0] != b'\'' {
        return 0;
    }
    let fold = |byte: Option<&u8>| match byte {
        Some(&byte) if any_case => byte.to_ascii_lowercase(),
        Some(&byte) => byte,
        None => 0,
    };
    match (fold(bytes.get(1)), fold(bytes.get(2))) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r' | b'v', b'e') | (b'l', b'l') => 3,
        _ => 0,
    }
}

/// End of the run of characters whose class is in `set`, from `pos`.
#[inline]
fn run_end(text: &str, mut pos: usize, set: Class) -> usize {
    loop {
        let (class, len) = class_at(text, pos);
        if class & set == 0 {
            return pos;
        }
        pos += len;
    }
}

/// `\s*[\r\n]+` (if `lines`), else `\s+(?!\S)`, else `\s+`, at `pos`, where a white-space character of `own_len` bytes stands.
fn whitespace_end(text: &str, pos: usize, own_len: usize, lines: bool) -> usize {
    let mut end = pos;
    let mut last_start = pos;
    let mut line_end = pos;
    loop {
        let (class, len) = class_at(text, end);
        if class != SPACE {
            break;
        }
        last_start = end;
        end += len;
        if lines && matches!(text.as_bytes()[last_start], b'\r' | b'\n') {
            line_end = end;
        }
    }
    if line_end > pos {
        line_end
    } else if end < text.len() && last_start > pos {
        last_start // the last space belongs to the word after it
    } else {
        end.max(pos + own_len)
    }
}

/// Runs of `[\p{P}symbols]+` and the gaps between them.
fn punctuation_runs<'t>(text: &'t str, symbols: &[u8], word: &mut impl FnMut(&'t str)) {
    let bytes = text.as_bytes();
    alternate(text, |pos| class_at(text, pos).0 == PUNCTUATION || symbols.contains(&bytes[pos]), word);
}

/// Runs of `\p{N}+` and the gaps between them.
fn number_runs<'t>(text: &'t str, word: &mut impl FnMut(&'t str)) {
    alternate(text, |pos| class_at(text, pos).0 == NUMBER, word);
}

/// Cuts `text` wherever `inside` changes.
fn alternate<'t>(text: &'t str, inside: impl Fn(usize) -> bool, word: &mut impl FnMut(&'t str)) {
    let mut start = 0;
    let mut state = false;
    for (pos, _) in text.char_indices() {
        let now = inside(pos);
        if now != state && pos > start {
            word(&text[start..pos]);
            start = pos;
        }
        state = now;
    }
    if start < text.len() {
        word(&text[start..]);
    }
}

/// Groups of exactly `len` ASCII digits, found from the left, and the gaps between them.
fn digit_groups<'t>(text: &'t str, len: usize, word: &mut impl FnMut(&'t str)) {
    let bytes = text.as_bytes();
    let (mut gap, mut pos) = (0, 0);
    while pos + len <= bytes.len() {
        if bytes[pos..pos + len].iter().all(u8::is_ascii_digit) {
            if gap < pos {
                word(&text[gap..pos]);
            }
            word(&text[pos..pos + len]);
            pos += len;
            gap = pos;
        } else {
            pos += 1;
        }
    }
    if gap < text.len() {
        word(&text[gap..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(rule: PreTokenizer, text: &str) -> Vec<&str> {
        let mut out = Vec::new();
        rule.split(text, &mut |word| out.push(word));
        out
    }

    #[test]
    fn llama3_splits_as_its_expression() {
        let split = |text| words(PreTokenizer::Llama3, text);
        assert_eq!(
            split("Hello world, it's 1234567!"),
            ["Hello", " world", ",", " it", "'s", " ", "123", "456", "7", "!"]
        );
        assert_eq!(split("a  b   \n\n c\n"), ["a", " ", " b", "   \n\n", " c", "\n"]);
        assert_eq!(split("We'LL (x)"), ["We", "'LL", " (", "x", ")"]);
        assert_eq!(split("{\r\n\tkey"), ["{\r\n", "\tkey"]);
        assert_eq!(split("   "), ["   "]);
        assert_eq!(split(" \u{3000}x"), [" ", "\u{3000}x"]);
        assert_eq!(split("\n\u{301}e"), ["\n", "\u{301}e"]);
        assert_eq!(split("½५²3"), ["½५²", "3"]);
    }

    #[test]
    fn gpt2_keeps_numbers_with_their_space() {
        assert_eq!(words(PreTokenizer::Gpt2, "I've 1234 'S"), ["I", "'ve", " 1234", " '", "S"]);
        assert_eq!(words(PreTokenizer::Gpt2, "a \n\n  b "), ["a", " \n\n ", " b", " "]);
    }

    #[test]
    fn punctuation_first_rules_differ_in_digits() {
        let text = "a`b$1 12345";
        assert_eq!(words(PreTokenizer::Default, text), ["a", "`", "b", "$", "1", " ", "123", "45"]);
        assert_eq!(words(PreTokenizer::Falcon, text), ["a", "`", "b", "$", "1", " ", "123", "45"]);
        assert_eq!(words(PreTokenizer::Falcon3, text), ["a", "`", "b", "$", "1", " ", "1", "2", "3", "4", "5"]);
        assert_eq!(words(PreTokenizer::Falcon, " 12"), [" 12"]);
        assert_eq!(words(PreTokenizer::Default, " 12"), [" ", "12"]);
        assert_eq!(words(PreTokenizer::Falcon, "!`?"), ["!`?"]);
        assert_eq!(words(PreTokenizer::Default, "!`?"), ["!", "`", "?"]);
    }

    #[test]
    fn qwen2_splits_digits() {
        assert_eq!(words(PreTokenizer::Qwen2, "in 2024"), ["in", " ", "2", "0", "2", "4"]);
    }

    proptest! {
        #[test]
        fn parts_concatenate_to_the_text(text in "(\\PC|[ \t\r\n'0-9]|\\p{Zs}|\\p{Mn}){0,60}") {
            for rule in [PreTokenizer::Default, PreTokenizer::Gpt2, PreTokenizer::Llama3, PreTokenizer::Qwen2,
                         PreTokenizer::Falcon, PreTokenizer::Falcon3] {
                let parts = words(rule, &text);
                prop_assert!(parts.iter().all(|part| !part.is_empty()));
                prop_assert_eq!(parts.concat(), text.as_str());
            }
        }
    }
}
