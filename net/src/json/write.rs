//! JSON values appended to a byte buffer: strings escaped, numbers finite.

use std::io::Write as _;

/// Appends `text` in quotes, escaped as RFC 8259 section 7 asks.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    write_escaped(out, text.as_bytes());
    out.push(b'"');
}

/// Appends `bytes` in quotes; what is not UTF-8 becomes U+FFFD.
pub fn write_string_lossy(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        write_escaped(out, chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}

/// Appends `value` in decimal.
pub fn write_u64(out: &mut Vec<u8>, mut value: u64) {
    if value < 10 {
        return out.push(b'0' + value as u8);
    }
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Appends the shortest decimal that reads back as `value`; JSON has no infinity, so what is not finite becomes 0
/// or the largest magnitude.
pub fn write_f32(out: &mut Vec<u8>, value: f32) {
    let value = if value.is_nan() { 0.0 } else { value.clamp(f32::MIN, f32::MAX) };
    write!(out, "{value:?}").expect("a Vec takes every write");
}

/// As [`write_f32`].
pub fn write_f64(out: &mut Vec<u8>, value: f64) {
    let value = if value.is_nan() { 0.0 } else { value.clamp(f64::MIN, f64::MAX) };
    write!(out, "{value:?}").expect("a Vec takes every write");
}

/// Appends what stands between the quotes. Copies runs of plain bytes whole: a token's piece rarely holds anything to escape.
pub(crate) fn write_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| ESCAPE[byte as usize] != 0) {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain);
        let byte = tail[0];
        match ESCAPE[byte as usize] {
            b'u' => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[(byte >> 4) as usize]);
                out.push(HEX[(byte & 15) as usize]);
            }
            short => out.extend_from_slice(&[b'\\', short]),
        }
        rest = &tail[1..];
    }
    out.extend_from_slice(rest);
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// 0: plain; `u`: \u00xx; else the letter after the backslash. DEL is escaped too, for terminals' sake.
static ESCAPE: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x7f] = b'u';
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn any_string_reads_back(text in any::<String>()) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }

        #[test]
        fn any_bytes_read_back_as_their_lossy_string(bytes in any::<Vec<u8>>()) {
            let mut out = Vec::new();
            write_string_lossy(&mut out, &bytes);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_number_reads_back(integer in any::<u64>(), float in any::<f32>(), double in any::<f64>()) {
            let mut out = b"[".to_vec();
            write_u64(&mut out, integer);
            out.push(b',');
            write_f32(&mut out, float);
            out.push(b',');
            write_f64(&mut out, double);
            out.push(b']');
            let text = str::from_utf8(&out).unwrap();
            assert!(serde_json::from_str::<[serde_json::Number; 3]>(text).is_ok());
            // The standard parser is exact; serde_json's may be off by some units in the last place.
            let numbers: Vec<_> = text[1..text.len() - 1].split(',').collect();
            assert_eq!(numbers[0].parse(), Ok(integer));
            if float.is_finite() {
                assert_eq!(numbers[1].parse(), Ok(float));
            }
            if double.is_finite() {
                assert_eq!(numbers[2].parse(), Ok(double));
            }
        }
    }

    #[test]
    fn every_control_character_is_escaped() {
        let text: String = (0..=0x7f_u8).map(char::from).collect();
        let mut out = Vec::new();
        write_string(&mut out, &text);
        assert!(out.iter().all(|byte| (0x20..0x7f).contains(byte)));
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
    }

    #[test]
    fn what_is_not_finite_becomes_a_number() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut out = Vec::new();
            write_f32(&mut out, value);
            assert!(serde_json::from_slice::<f64>(&out).unwrap().is_finite());
        }
    }
}
