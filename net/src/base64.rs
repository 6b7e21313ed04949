//! Base64 (RFC 4648): the standard alphabet out, the one for URLs in.

/// Appends `bytes` in the standard alphabet, padded.
pub fn encode(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| chunk.get(at).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let letter = STANDARD[(bits >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= chunk.len() { letter } else { b'=' });
        }
    }
}

/// The bytes of a text in the alphabet for URLs, without padding; `None` for any other text, also for one whose last
/// letter has bits that stand for nothing.
pub(crate) fn decode_url(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut bits = 0;
        for at in 0..4 {
            bits = bits << 6 | chunk.get(at).map_or(Some(0), |&letter| value_url(letter))?;
        }
        let count = match chunk.len() {
            4 => 3,
            3 if bits & 0xff == 0 => 2,
            2 if bits & 0xffff == 0 => 1,
            _ => return None,
        };
        bytes.extend_from_slice(&bits.to_be_bytes()[1..=count]);
    }
    Some(bytes)
}

fn value_url(letter: u8) -> Option<u32> {
    let value = match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    };
    Some(value.into())
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_rfc() {
        for (text, wanted) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            encode(&mut out, text.as_bytes());
            assert_eq!(str::from_utf8(&out), Ok(wanted));
            let bare = wanted.trim_end_matches('=');
            assert_eq!(decode_url(bare.as_bytes()).as_deref(), Some(text.as_bytes()), "{bare}");
        }
        assert_eq!(decode_url(b"-_-_"), Some(vec![0xfb, 0xff, 0xbf]));
    }

    #[test]
    fn what_is_no_url_text_is_refused() {
        for text in ["A", "AAAAA", "Zg==", "Zm8=", "Zh", "Zm9", "+/+/", "Zm 9", "Zm9v\n", "\u{e9}\u{e9}"] {
            assert_eq!(decode_url(text.as_bytes()), None, "{text:?}");
        }
    }
}
