//! Until when a certificate holds: the one field of X.509 (RFC 5280 section 4.1) that is wanted and rustls keeps to itself.

use crate::date::unix_seconds;

/// `notAfter` of a certificate in DER, as Unix time; what is before 1970 is 0.
pub(super) fn not_after(certificate: &[u8]) -> Option<u64> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (fields, _) = element(certificate, SEQUENCE)?;
    let mut rest = element(fields, VERSION).map_or(fields, |(_, rest)| rest);
    for serial_algorithm_issuer in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, rest) = element(rest, serial_algorithm_issuer)?;
    }
    let (validity, _) = element(rest, SEQUENCE)?;
    let (_, _, not_after) = read(validity)?;
    match read(not_after)? {
        (UTC_TIME, [tens, ones, rest @ ..], _) => {
            // RFC 5280 section 4.1.2.5.1: two digits stand for 1950 to 2049.
            let century = if *tens < b'5' { b"20" } else { b"19" };
            unix_time(&[&century[..], &[*tens, *ones], rest].concat())
        }
        (GENERALIZED_TIME, time, _) => unix_time(time),
        _ => None,
    }
}

/// Of `YYYYMMDDHHMMSSZ`.
fn unix_time(text: &[u8]) -> Option<u64> {
    let digits =
        text.strip_suffix(b"Z").filter(|digits| digits.len() == 14 && digits.iter().all(u8::is_ascii_digit))?;
    let number =
        |at: std::ops::Range<usize>| digits[at].iter().fold(0, |sum, digit| 10 * sum + u64::from(digit - b'0'));
    let (year, month, day) = (number(0..4), number(4..6), number(6..8));
    let (hour, minute, second) = (number(8..10), number(10..12), number(12..14));
    let is_date = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
    is_date.then(|| unix_seconds(year, month, day, hour * 3600 + minute * 60 + second))
}

/// Content and rest of an element that has that tag.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    read(bytes).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// Tag, content and rest of the first element.
fn read(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, length, rest) = match bytes {
        [tag, length @ ..=0x7f, rest @ ..] => (*tag, usize::from(*length), rest),
        [tag, 0x81, length, rest @ ..] => (*tag, usize::from(*length), rest),
        [tag, 0x82, high, low, rest @ ..] => (*tag, usize::from(u16::from_be_bytes([*high, *low])), rest),
        // No certificate of 64 KiB.
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`, which certificates of version 1 leave out.
const VERSION: u8 = 0xa0;

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        let head = if length < 0x80 { vec![tag, length] } else { vec![tag, 0x81, length] };
        [head, content.to_vec()].concat()
    }

    fn certificate(version: &[u8], not_after: &[u8]) -> Vec<u8> {
        let before = tagged(UTC_TIME, b"250101000000Z");
        let validity = tagged(SEQUENCE, &[&before, not_after].concat());
        let issuer = tagged(SEQUENCE, &[0; 100]);
        let fields = [version, &tagged(INTEGER, &[1]), &tagged(SEQUENCE, &[]), &issuer, &validity].concat();
        tagged(SEQUENCE, &tagged(SEQUENCE, &fields))
    }

    #[test]
    fn both_forms_of_a_time_are_read_and_nothing_else() {
        let version = tagged(VERSION, &tagged(INTEGER, &[2]));
        let of = |not_after: &[u8]| super::not_after(&certificate(&version, not_after));
        assert_eq!(of(&tagged(UTC_TIME, b"491231235959Z")), Some(2_524_607_999));
        assert_eq!(of(&tagged(UTC_TIME, b"700101000001Z")), Some(1));
        assert_eq!(of(&tagged(UTC_TIME, b"500101000000Z")), Some(0));
        assert_eq!(of(&tagged(GENERALIZED_TIME, b"20500101000000Z")), Some(2_524_608_000));
        assert_eq!(of(&tagged(GENERALIZED_TIME, b"99991231235959Z")), Some(253_402_300_799));
        for wrong in [&b"20501301000000Z"[..], b"20500101240000Z", b"205001010000000", b"2050010100000Z", b"", b"Z"] {
            assert_eq!(of(&tagged(GENERALIZED_TIME, wrong)), None);
            assert_eq!(of(&tagged(UTC_TIME, wrong)), None);
        }
        assert_eq!(of(&tagged(INTEGER, b"20500101000000Z")), None);
    }

    #[test]
    fn a_cut_certificate_is_none_wherever_it_is_cut() {
        let whole = certificate(&[], &tagged(UTC_TIME, b"491231235959Z"));
        assert!(not_after(&whole).is_some());
        for end in 0..whole.len() {
            assert_eq!(not_after(&whole[..end]), None, "{end}");
        }
    }
}
