//! Classes of characters that the pre-tokenizers tell apart.

use unicode_general_category::{GeneralCategory, get_general_category};

/// A set of class bits; every character has exactly one of them, the end of the text none.
pub(super) type Class = u8;

pub(super) const END: Class = 0;
/// `\p{L}`
pub(super) const LETTER: Class = 1;
/// `\p{N}`
pub(super) const NUMBER: Class = 2;
/// `\s`: the White_Space property.
pub(super) const SPACE: Class = 4;
/// `\p{P}`
pub(super) const PUNCTUATION: Class = 8;
/// Marks, symbols, controls, unassigned.
pub(super) const OTHER: Class = 16;

/// Class and length in bytes of the character that starts at `pos`; `(END, 0)` at the end.
#[inline]
pub(super) fn class_at(text: &str, pos: usize) -> (Class, usize) {
    match text.as_bytes().get(pos) {
        None => (END, 0),
        Some(&byte) if byte < 128 => (ASCII[byte as usize], 1),
        Some(_) => match text[pos..].chars().next() {
            Some(c) => (wide_class(c), c.len_utf8()),
            None => (END, 0),
        },
    }
}

fn wide_class(c: char) -> Class {
    use GeneralCategory as G;
    if c.is_whitespace() {
        return SPACE;
    }
    match get_general_category(c) {
        G::UppercaseLetter | G::LowercaseLetter | G::TitlecaseLetter | G::ModifierLetter | G::OtherLetter => LETTER,
        G::DecimalNumber | G::LetterNumber | G::OtherNumber => NUMBER,
        G::ConnectorPunctuation
        | G::DashPunctuation
        | G::OpenPunctuation
        | G::ClosePunctuation
        | G::InitialPunctuation
        | G::FinalPunctuation
        | G::OtherPunctuation => PUNCTUATION,
        _ => OTHER,
    }
}

static ASCII: [Class; 128] = ascii_classes();

const fn ascii_classes() -> [Class; 128] {
    let mut classes = [OTHER; 128];
    let mut byte = 0u8;
    while byte < 128 {
        classes[byte as usize] = match byte {
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            b'0'..=b'9' => NUMBER,
            9..=13 | b' ' => SPACE,
            b'$' | b'+' | b'<' | b'=' | b'>' | b'^' | b'`' | b'|' | b'~' => OTHER,
            33..=126 => PUNCTUATION,
            _ => OTHER,
        };
        byte += 1;
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_table_agrees_with_unicode() {
        for byte in 0..128u8 {
            assert_eq!(ASCII[byte as usize], wide_class(char::from(byte)), "byte {byte}");
        }
    }

    #[test]
    fn wide_characters_have_their_class() {
        for (text, class) in [
            ("é", LETTER),
            ("你", LETTER),
            ("½", NUMBER),
            ("५", NUMBER),
            ("\u{a0}", SPACE),
            ("。", PUNCTUATION),
            ("\u{301}", OTHER),
            ("😀", OTHER),
        ] {
            assert_eq!(class_at(text, 0), (class, text.len()), "{text}");
        }
        assert_eq!(class_at("", 0), (END, 0));
    }
}
