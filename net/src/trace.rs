//! The trace that a request belongs to, as W3C Trace Context has it (`traceparent`, `tracestate`).

use crate::http::Request;

/// What a client says of its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Not 0.
    pub trace_id: u128,
    /// The client's span; not 0.
    pub parent_id: u64,
    /// Whether the client keeps its part.
    pub sampled: bool,
    /// What tracing systems have left there, unread; empty if there is none.
    pub state: String,
}

impl TraceContext {
    /// The context of `request`; `None` where there is none, or one that is not well-formed.
    pub fn of(request: &Request) -> Option<Self> {
        let mut parents = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case("traceparent"));
        let (_, parent) = parents.next()?;
        if parents.next().is_some() {
            return None;
        }
        let states = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case("tracestate"));
        let states: Vec<&str> = states.filter_map(|(_, value)| str::from_utf8(value).ok()).collect();
        let state = states.join(",");
        let plain = state.len() <= STATE_BYTES_MAX && state.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        Some(Self { state: if plain { state } else { String::new() }, ..Self::parse(parent)? })
    }

    /// `version-trace-parent-flags` in lower-case hexadecimal digits; a later version may have more behind that.
    fn parse(text: &[u8]) -> Option<Self> {
        let (known, more) = text.split_at_checked(KNOWN_BYTES)?;
        let [a, b, b'-', ids @ .., b'-', flags_high, flags_low] = known else { return None };
        let version = number(&[*a, *b])?;
        if version == 0xff || (version == 0 && !more.is_empty()) || more.first().is_some_and(|first| *first != b'-') {
            return None;
        }
        let (trace_id, parent_id) = (number(&ids[..32])?, number(&ids[33..])?);
        let flags = number(&[*flags_high, *flags_low])?;
        let parent_id = u64::try_from(parent_id).ok()?;
        let whole = ids[32] == b'-' && trace_id != 0 && parent_id != 0;
        whole.then(|| Self { trace_id, parent_id, sampled: flags & 1 == 1, state: String::new() })
    }
}

fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

/// Of version 00.
const KNOWN_BYTES: usize = 55;
/// What a system must be able to pass on.
const STATE_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Connection, Limits};

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn context(fields: &str) -> Option<TraceContext> {
        let mut connection = Connection::new(Limits::default());
        connection.receive(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).unwrap();
        TraceContext::of(&connection.next().unwrap().unwrap())
    }

    #[test]
    fn what_is_not_well_formed_is_no_context() {
        for text in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
            "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736a00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
        ] {
            assert_eq!(context(&format!("traceparent: {text}\r\n")), None, "{text}");
        }
        assert_eq!(context(&format!("traceparent: {GOOD}\r\ntraceparent: {GOOD}\r\n")), None);
        assert_eq!(context(""), None);
    }

    #[test]
    fn a_context_is_read_with_its_flag_and_its_state() {
        let got = context(&format!("TraceParent: {GOOD}\r\ntracestate: a=1\r\ntracestate: b=2\r\n")).unwrap();
        assert_eq!((got.trace_id, got.parent_id), (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7));
        assert!(got.sampled && got.state == "a=1,b=2");
        let off = format!("traceparent: {}02\r\n", &GOOD[..GOOD.len() - 2]);
        assert!(!context(&off).unwrap().sampled);
        let later = format!("traceparent: cc{}-more\r\ntracestate: {}\r\n", &GOOD[2..], "x".repeat(600));
        assert_eq!(context(&later).map(|context| (context.sampled, context.state)), Some((true, String::new())));
    }
}
