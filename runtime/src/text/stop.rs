//! Stop strings: ends a text at the first of several, whatever pieces it comes in.

/// Watches one text for several stop strings (Knuth-Morris-Pratt, one state a string).
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// Whether the stop string that ends the text is part of it.
    shows: bool,
    /// Text not let out yet: it may be the beginning of a stop string.
    held: String,
    done: bool,
}

#[derive(Clone, Debug)]
struct Stop {
    index: usize,
    bytes: Box<[u8]>,
    /// `fallback[n]`: length of the longest proper prefix that is a suffix of the first n bytes.
    fallback: Box<[u32]>,
    matched: u32,
}

impl StopMatcher {
    /// Empty strings never match.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops: Vec<Stop> = stops
            .iter()
            .enumerate()
            .filter(|(_, text)| !text.as_ref().is_empty())
            .map(|(index, text)| Stop::new(index, text.as_ref().as_bytes()))
            .collect();
        let bytes_max = stops.iter().map(|stop| stop.bytes.len()).max().unwrap_or(0);
        Self {
            held: String::with_capacity(if bytes_max > 0 { bytes_max + PIECE_BYTES } else { 0 }),
            stops,
            shows: false,
            done: false,
        }
    }

    /// One that lets the stop string out too, if `shows`.
    #[must_use]
    pub fn showing(self, shows: bool) -> Self {
        Self { shows, ..self }
    }

    /// Takes in `text` and appends to `out` what cannot be part of a stop string any more.
    ///
    /// The answer is the index of the stop string that is complete first (of those complete at one place the longest);
    /// it (unless it is shown) and all that follows stay out of `out`, also in later calls.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        if self.done {
            return None;
        }
        if self.stops.is_empty() {
            out.push_str(text);
            return None;
        }
        let before = self.held.len();
        self.held.push_str(text);
        for end in before..self.held.len() {
            let byte = self.held.as_bytes()[end];
            let mut complete: Option<&Stop> = None;
            for stop in &mut self.stops {
                if stop.advance(byte) && complete.is_none_or(|other| other.bytes.len() < stop.bytes.len()) {
                    complete = Some(stop);
                }
            }
            if let Some(stop) = complete {
                let hidden = if self.shows { 0 } else { stop.bytes.len() };
                out.push_str(&self.held[..end + 1 - hidden]);
                let index = stop.index;
                self.held.clear();
                self.done = true;
                return Some(index);
            }
        }
        let keep = self.stops.iter().map(|stop| stop.matched as usize).max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - keep));
        None
    }

    /// The end of the text: what was held back goes out.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.done = true;
    }
}

impl Stop {
    fn new(index: usize, bytes: &[u8]) -> Self {
        let mut fallback = vec![0u32; bytes.len() + 1];
        let mut length = 0usize;
        for at in 1..bytes.len() {
            while length > 0 && bytes[at] != bytes[length] {
                length = fallback[length] as usize;
            }
            length += usize::from(bytes[at] == bytes[length]);
            fallback[at + 1] = u32::try_from(length).expect("stop strings are bounded by the request");
        }
        Self { index, bytes: bytes.into(), fallback: fallback.into(), matched: 0 }
    }

    /// Takes one more byte; true when the string is complete.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched as usize] != byte {
            self.matched = self.fallback[self.matched as usize];
        }
        self.matched += u32::from(self.bytes[self.matched as usize] == byte);
        self.matched as usize == self.bytes.len()
    }
}

/// Room for a usual piece beside what is held back.
const PIECE_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], text: &str, step: usize) -> (String, Option<usize>) {
        let (mut matcher, mut out) = (StopMatcher::new(stops), String::new());
        let chars: Vec<char> = text.chars().collect();
        let mut stopped = None;
        for piece in chars.chunks(step) {
            stopped = stopped.or(matcher.push(&piece.iter().collect::<String>(), &mut out));
        }
        matcher.finish(&mut out);
        (out, stopped)
    }

    #[test]
    fn a_beginning_is_held_back_until_it_is_none() {
        let (mut matcher, mut out) = (StopMatcher::new(&["</s>"]), String::new());
        assert_eq!(matcher.push("a <", &mut out), None);
        assert_eq!(out, "a ");
        assert_eq!(matcher.push("/b", &mut out), None);
        assert_eq!(out, "a </b");
        assert_eq!(matcher.push("</s> more", &mut out), Some(0));
        assert_eq!(matcher.push("more", &mut out), None);
        matcher.finish(&mut out);
        assert_eq!(out, "a </b");
    }

    #[test]
    fn the_first_complete_wins_and_of_equal_ends_the_longest() {
        assert_eq!(run(&["b", "ab"], "xabc", 1), ("x".into(), Some(1)));
        assert_eq!(run(&["abcd", "bc"], "xabcd", 2), ("xa".into(), Some(1)));
        assert_eq!(run(&["", "\n"], "é\n", 1), ("é".into(), Some(1)));
        assert_eq!(run(&[], "é\n", 1), ("é\n".into(), None));
    }

    #[test]
    fn a_stop_string_is_shown_if_it_should() {
        for (stops, text, shown) in [(&["b", "ab"][..], "xabc", "xab"), (&["</s>"], "a </b </s>é", "a </b </s>")] {
            for step in 1..5 {
                let (mut matcher, mut out) = (StopMatcher::new(stops).showing(true), String::new());
                let chars: Vec<char> = text.chars().collect();
                for piece in chars.chunks(step) {
                    matcher.push(&piece.iter().collect::<String>(), &mut out);
                }
                matcher.finish(&mut out);
                assert_eq!(out, shown);
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,30}", stops in prop::collection::vec("[abé]{1,4}", 0..4), step in 1usize..5) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (out, stopped) = run(&stops, &text, step);
            let first = (0..=text.len())
                .filter(|&end| text.is_char_boundary(end))
                .find_map(|end| stops.iter().filter(|stop| text[..end].ends_with(*stop)).max_by_key(|stop| stop.len()).map(|stop| end - stop.len()));
            prop_assert_eq!(stopped.is_some(), first.is_some());
            prop_assert_eq!(out, &text[..first.unwrap_or(text.len())]);
        }
    }
}
