//! Pieces of one sequence to text: whole code points only.

/// Holds back the bytes of an unfinished code point between pieces.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    held: [u8; 4],
    held_len: usize,
    strip_space: bool,
}

impl Detokenizer {
    /// For pieces that follow other text, such as generated ones: nothing is stripped.
    pub fn new() -> Self {
        Self::default()
    }

    /// For pieces from the start of a text: one leading space is dropped if the tokenizer had put it there
    /// ([`adds_space_prefix`](super::Tokenizer::adds_space_prefix)).
    pub fn from_start(adds_space_prefix: bool) -> Self {
        Self { strip_space: adds_space_prefix, ..Self::default() }
    }

    /// Appends to `out` the code points that are complete with `piece`; what can no longer become one gives U+FFFD,
    /// as in `String::from_utf8_lossy`.
    pub fn push(&mut self, piece: &[u8], out: &mut String) {
        let mut rest = piece;
        if self.strip_space && !rest.is_empty() {
            self.strip_space = false;
            rest = rest.strip_prefix(b" ").unwrap_or(rest);
        }
        while self.held_len > 0 {
            let Some((&byte, tail)) = rest.split_first() else { return };
            rest = tail;
            self.held[self.held_len] = byte;
            let (held, len) = (self.held, self.held_len + 1);
            self.held_len = 0;
            self.decode(&held[..len], out);
        }
        self.decode(rest, out);
    }

    fn decode(&mut self, bytes: &[u8], out: &mut String) {
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            out.push_str(chunk.valid());
            let invalid = chunk.invalid();
            let unfinished =
                chunks.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if unfinished {
                self.held[..invalid.len()].copy_from_slice(invalid);
                self.held_len = invalid.len();
            } else if !invalid.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    /// The end of the sequence: an unfinished code point gives U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if self.held_len > 0 {
            self.held_len = 0;
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_emoji_in_four_tokens_comes_out_whole() {
        let (mut detokenizer, mut out) = (Detokenizer::new(), String::new());
        for byte in "a😀".as_bytes() {
            detokenizer.push(&[*byte], &mut out);
            assert!(out == "a" || out == "a😀");
        }
        detokenizer.finish(&mut out);
        assert_eq!(out, "a😀");
    }

    #[test]
    fn only_the_first_space_is_stripped() {
        let (mut detokenizer, mut out) = (Detokenizer::from_start(true), String::new());
        for piece in [&b""[..], b" Hi", b" there"] {
            detokenizer.push(piece, &mut out);
        }
        assert_eq!(out, "Hi there");
    }

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_equals_lossy_decoding(
            bytes in prop::collection::vec(prop_oneof![Just(0xf0u8), Just(0x9f), Just(0xe4), Just(0x80), Just(0xc3), any::<u8>()], 0..40),
            step in 1usize..6,
        ) {
            let (mut detokenizer, mut out) = (Detokenizer::new(), String::new());
            for piece in bytes.chunks(step) {
                detokenizer.push(piece, &mut out);
            }
            detokenizer.finish(&mut out);
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }
    }
}
