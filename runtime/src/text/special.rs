//! Finds special tokens in text before it is split: the longest token first, as llama.cpp's partition does.

use std::collections::HashMap;

use super::vocabulary::{TokenKind, Vocabulary};

/// A part of a text: what lies between special tokens, or one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// The tokens that are looked for: control, unknown and user-defined ones, in a byte trie.
pub(super) struct SpecialTokens {
    /// (node, byte) -> node; node 0 is the root.
    edges: HashMap<(u32, u8), u32>,
    /// The token that ends at a node.
    tokens: Vec<Option<u32>>,
    first_bytes: [bool; 256],
    any_user_defined: bool,
}

impl SpecialTokens {
    pub(super) fn new(vocabulary: &Vocabulary) -> Self {
        let mut specials =
            Self { edges: HashMap::new(), tokens: vec![None], first_bytes: [false; 256], any_user_defined: false };
        for id in special_ids(vocabulary) {
            let text = vocabulary.bytes(id);
            if !text.is_empty() && std::str::from_utf8(text).is_ok() {
                specials.insert(text, id);
                specials.any_user_defined |= vocabulary.kind(id) == TokenKind::UserDefined;
            }
        }
        specials
    }

    /// Bytes of all texts that [`new`](Self::new) puts into the trie.
    pub(super) fn text_bytes(vocabulary: &Vocabulary) -> usize {
        special_ids(vocabulary).map(|id| vocabulary.bytes(id).len()).sum()
    }

    fn insert(&mut self, text: &[u8], id: u32) {
        self.first_bytes[text[0] as usize] = true;
        let mut node = 0;
        for &byte in text {
            let fresh = u32::try_from(self.tokens.len()).expect("the text of a vocabulary is far below 4 GiB");
            node = *self.edges.entry((node, byte)).or_insert(fresh);
            if node == fresh {
                self.tokens.push(None);
            }
        }
        self.tokens[node as usize].get_or_insert(id);
    }

    /// Calls `visit` with the fragments of `text` in order. Control and unknown tokens are found only if `parse_special`.
    ///
    /// Longer tokens are found before shorter ones wherever they stand, of equal length the smaller id, of one token
    /// the leftmost place. Time: text length times the longest special token at worst, plus sorting what was found.
    pub(super) fn partition<'t>(
        &self,
        vocabulary: &Vocabulary,
        text: &'t str,
        parse_special: bool,
        mut visit: impl FnMut(Fragment<'t>),
    ) {
        let mut found = if parse_special || self.any_user_defined {
            self.find(vocabulary, text.as_bytes(), parse_special)
        } else {
            Vec::new()
        };
        drop_overlaps(&mut found);
        let mut at = 0;
        for place in found {
            if place.start > at {
                visit(Fragment::Text(&text[at..place.start]));
            }
            visit(Fragment::Token(place.id));
            at = place.end;
        }
        if at < text.len() {
            visit(Fragment::Text(&text[at..]));
        }
    }

    fn find(&self, vocabulary: &Vocabulary, bytes: &[u8], parse_special: bool) -> Vec<Place> {
        let mut found = Vec::new();
        for start in (0..bytes.len()).filter(|&start| self.first_bytes[bytes[start] as usize]) {
            let mut node = 0;
            for (offset, &byte) in bytes[start..].iter().enumerate() {
                let Some(&next) = self.edges.get(&(node, byte)) else { break };
                node = next;
                if let Some(id) = self.tokens[node as usize]
                    && (parse_special || vocabulary.kind(id) == TokenKind::UserDefined)
                {
                    found.push(Place { start, end: start + offset + 1, id });
                }
            }
        }
        found
    }
}

fn special_ids(vocabulary: &Vocabulary) -> impl Iterator<Item = u32> + '_ {
    let is_special = |kind| matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined);
    vocabulary.ids().filter(move |&id| is_special(vocabulary.kind(id)))
}

#[derive(Clone, Copy)]
struct Place {
    start: usize,
    end: usize,
    id: u32,
}

/// Keeps of overlapping places the one that comes first by length, id and start; the rest ends up in order of start.
fn drop_overlaps(found: &mut Vec<Place>) {
    if found.windows(2).all(|pair| pair[0].end <= pair[1].start) {
        return;
    }
    found.sort_unstable_by_key(|place| (usize::MAX - (place.end - place.start), place.id, place.start));
    let mut taken = std::collections::BTreeMap::new();
    found.retain(|place| {
        let before = taken.range(..place.end).next_back();
        let free = before.is_none_or(|(_, &end)| end <= place.start);
        if free {
            taken.insert(place.start, place.end);
        }
        free
    });
    found.sort_unstable_by_key(|place| place.start);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specials(texts: &[(&str, TokenKind)]) -> (Vocabulary, SpecialTokens) {
        let mut vocabulary = Vocabulary::with_capacity(4);
        for (text, kind) in texts {
            vocabulary.push(text.as_bytes(), *kind, true);
        }
        let specials = SpecialTokens::new(&vocabulary);
        (vocabulary, specials)
    }

    fn fragments<'t>(of: &(Vocabulary, SpecialTokens), text: &'t str, parse: bool) -> Vec<Fragment<'t>> {
        let mut out = Vec::new();
        of.1.partition(&of.0, text, parse, |fragment| out.push(fragment));
        out
    }

    use Fragment::{Text, Token};
    use TokenKind::{Control, Normal, UserDefined};

    #[test]
    fn control_tokens_are_found_only_when_asked_for() {
        let of = specials(&[("<a>", Control), ("<b>", UserDefined), ("x", Normal)]);
        assert_eq!(fragments(&of, "x<a>é<b>", true), [Text("x"), Token(0), Text("é"), Token(1)]);
        assert_eq!(fragments(&of, "x<a>é<b>", false), [Text("x<a>é"), Token(1)]);
        assert_eq!(fragments(&of, "", true), []);
    }

    #[test]
    fn longer_tokens_win_wherever_they_stand() {
        let of = specials(&[("ab", Control), ("bcd", Control), ("abc", Control), ("d", Control)]);
        assert_eq!(fragments(&of, "abcd", true), [Text("a"), Token(1)]);
        assert_eq!(fragments(&of, "abc", true), [Token(2)]);
        assert_eq!(fragments(&of, "abab", true), [Token(0), Token(0)]);
    }

    #[test]
    fn repeated_beginnings_stay_linear() {
        let of = specials(&[("aaaaaaaaaaaaaaab", Control), ("aa", Control)]);
        let text = "a".repeat(1 << 16);
        assert_eq!(fragments(&of, &text, true).len(), 1 << 15);
    }
}
