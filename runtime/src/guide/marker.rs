//! Looks out, token by token, for the place of a free answer where a call begins.

use llguidance::toktrie::{TokEnv, TokTrie};

use super::Guide;

/// How much of a marker has come.
#[derive(Clone)]
pub(super) struct Marker {
    words: TokEnv,
    open: &'static str,
    matched: usize,
}

impl Marker {
    pub(super) fn new(words: TokEnv, open: &'static str) -> Self {
        Self { words, open, matched: 0 }
    }

    /// Takes in the next token of the answer; whether a call has begun. `guide` has what came of it in that token then.
    pub(super) fn ends_with(&mut self, token: u32, guide: &mut Guide) -> bool {
        let bytes = self.words.tok_trie().token(token);
        if let [TokTrie::SPECIAL_TOKEN_MARKER, name @ ..] = bytes
            && !name.is_empty()
        {
            // A control token is no text, but some models have one for this.
            return name == self.open.as_bytes();
        }
        let marker = self.open.as_bytes();
        let mut matched = self.matched;
        for (at, byte) in bytes.iter().enumerate() {
            // Nothing of the marker but its first byte begins it anew.
            matched = if marker[matched] == *byte { matched + 1 } else { usize::from(marker[0] == *byte) };
            if matched == marker.len() {
                // What follows in the same token may be no call: then this is text like any.
                if guide.takes(&bytes[at + 1..], &self.words) {
                    return true;
                }
                matched = 0;
            }
        }
        self.matched = matched;
        false
    }
}
