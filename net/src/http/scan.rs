//! Finds the empty line that ends a field section, byte by byte in order, so that where the stream was split never
//! changes the answer.

use super::HttpError;

/// Progress over one section; offsets count from the section's first byte.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Bytes looked at.
    seen: usize,
    line_start: usize,
    /// Whole lines so far.
    lines: usize,
}

/// What the scan has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// More bytes are needed.
    Partial,
    /// A line of `..len` bytes without its CR LF, the section's first, has just ended.
    FirstLine { len: usize },
    /// The section ends before byte `end`, its empty line included.
    End { end: usize },
}

impl Scan {
    /// Looks at `section` from where the last call stopped, up to byte `limit`; reaching `limit` is `too_large`.
    pub(super) fn advance(&mut self, section: &[u8], limit: usize, too_large: HttpError) -> Result<Scanned, HttpError> {
        let section = &section[..section.len().min(limit)];
        while let Some(run) = plain_run(&section[self.seen..]) {
            let at = self.seen + run;
            match section[at] {
                b'\n' => return Err(HttpError::BareLineEnd),
                b'\r' => {}
                _ => return Err(HttpError::ControlCharacter),
            }
            let Some(&next) = section.get(at + 1) else {
                self.seen = at;
                return if section.len() == limit { Err(too_large) } else { Ok(Scanned::Partial) };
            };
            if next != b'\n' {
                return Err(HttpError::BareLineEnd);
            }
            let len = at - self.line_start;
            self.seen = at + 2;
            self.line_start = self.seen;
            self.lines += 1;
            if len == 0 {
                return Ok(Scanned::End { end: self.seen });
            }
            if self.lines == 1 {
                return Ok(Scanned::FirstLine { len });
            }
        }
        self.seen = section.len();
        if section.len() == limit { Err(too_large) } else { Ok(Scanned::Partial) }
    }
}

/// Index of the first byte that is not plain. Eight bytes at a time while all of them surely are: most of a head.
fn plain_run(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let (words, _) = bytes.as_chunks::<8>();
    let maybe_control = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        let delete = word ^ (ONES * 0x7f);
        let below_space = word.wrapping_sub(ONES * 0x20) & !word;
        (below_space | (delete.wrapping_sub(ONES) & !delete)) & HIGH != 0
    };
    let mut at = 8 * words.iter().position(maybe_control).unwrap_or(words.len());
    while let Some(&byte) = bytes.get(at) {
        if !PLAIN[byte as usize] {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Bytes that may stand inside a line: HTAB, visible ASCII, space, obs-text.
static PLAIN: [bool; 256] = {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = byte == b'\t' as usize;
        byte += 1;
    }
    table[0x7f] = false;
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place_is_seen_as_the_table_says() {
        for byte in 0..=255_u8 {
            for at in 0..20 {
                let mut bytes = [b'a'; 20];
                bytes[at] = byte;
                assert_eq!(plain_run(&bytes), (!PLAIN[byte as usize]).then_some(at), "{byte:#x} at {at}");
            }
        }
    }
}
