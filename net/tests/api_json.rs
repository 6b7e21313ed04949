//! Hostile JSON bodies: 400 with INVALID_REQUEST or VALIDATION_FAILED, never a panic, and the reader works on.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use net::api::{DetokenizeRequest, Endpoint, GenerateRequest, TokenizeRequest};
use net::error::Code;
use net::json::Reader;

const ENDPOINTS: [Endpoint; 5] =
    [Endpoint::Chat, Endpoint::Responses, Endpoint::Completion, Endpoint::Inference, Endpoint::InferenceStream];

fn refuse(reader: &mut Reader, body: &[u8], code: Code) {
    for endpoint in ENDPOINTS {
        let error = GenerateRequest::parse(endpoint, reader, &mut body.to_vec()).unwrap_err();
        let shown = body[..body.len().min(80)].escape_ascii();
        assert_eq!((error.status, error.code), (400, code), "{endpoint:?} {shown}: {}", error.message);
        assert!(error.message.len() < 400, "{}", error.message);
    }
    assert_eq!(TokenizeRequest::parse(reader, &mut body.to_vec()).unwrap_err().status, 400);
    assert_eq!(DetokenizeRequest::parse(reader, &mut body.to_vec()).unwrap_err().status, 400);
    let good = GenerateRequest::parse(Endpoint::Inference, reader, &mut b"{\"prompt\":\"a\"}".to_vec());
    assert!(good.is_ok(), "the reader lives on");
}

#[test]
fn what_is_not_an_object_is_an_invalid_request() {
    let bodies: &[&[u8]] = &[
        b"",
        b" ",
        b"\0",
        b"null",
        b"true",
        b"1",
        b"\"a\"",
        b"[]",
        b"[{}]",
        b"{",
        b"}",
        b"{}}",
        b"{}{}",
        b"{} x",
        b"{\"prompt\"}",
        b"{\"prompt\":}",
        b"{\"prompt\":\"a\",}",
        b"{\"prompt\":\"a\" \"n\":1}",
        b"{prompt:\"a\"}",
        b"{'prompt':'a'}",
        b"{\"prompt\":'a'}",
        b"{\"prompt\":\"a}",
        b"{\"prompt\":\"a\nb\"}",
        b"{\"prompt\":\"a\0b\"}",
        b"{\"prompt\":\"\\x41\"}",
        b"{\"prompt\":\"\\u12\"}",
        b"{\"prompt\":\"\\uD800\"}",
        b"{\"prompt\":\"\\uDC00\"}",
        b"{\"prompt\":\"\\uD800\\uD800\"}",
        b"{\"prompt\":\"\\uDC00\\uD800\"}",
        b"{\"prompt\":\"\\uD800x\"}",
        b"{\"prompt\":\"\xff\xfe\"}",
        b"{\"prompt\":\"\xc0\xaf\"}",
        b"{\"prompt\":\"\xed\xa0\x80\"}",
        b"{\"prompt\":\"\xf4\x90\x80\x80\"}",
        b"{\"prompt\":\"\xe2\x82\"}",
        b"\xef\xbb\xbf{\"prompt\":\"a\"}",
        b"\xff\xfe{\0}\0",
        b"{\"prompt\":\"a\",\"seed\":NaN}",
        b"{\"prompt\":\"a\",\"seed\":Infinity}",
        b"{\"prompt\":\"a\",\"seed\":-Infinity}",
        b"{\"prompt\":\"a\",\"seed\":01}",
        b"{\"prompt\":\"a\",\"seed\":+1}",
        b"{\"prompt\":\"a\",\"seed\":.5}",
        b"{\"prompt\":\"a\",\"seed\":1.}",
        b"{\"prompt\":\"a\",\"seed\":1e}",
        b"{\"prompt\":\"a\",\"seed\":0x1}",
        b"{\"prompt\":\"a\",\"seed\":-}",
        b"{\"prompt\":\"a\",\"stream\":True}",
        b"{\"prompt\":\"a\",\"stream\":tru}",
        b"{\"prompt\":\"a\",/**/\"n\":1}",
        b"{\"prompt\":\"a\",\"prompt\":\"b\"}",
        b"{\"prompt\":\"a\",\"pr\\u006fmpt\":\"b\"}",
        b"{\"x\":1,\"x\":1}",
    ];
    let mut reader = Reader::new();
    for body in bodies {
        refuse(&mut reader, body, Code::InvalidRequest);
    }
}

#[test]
fn depth_bombs_are_refused_without_recursion() {
    let mut reader = Reader::new();
    for depth in [65, 1000, 100_000, 1_000_000] {
        refuse(&mut reader, &b"[".repeat(depth), Code::InvalidRequest);
        refuse(&mut reader, &b"{\"a\":".repeat(depth), Code::InvalidRequest);
        refuse(&mut reader, &[b"[".repeat(depth), b"]".repeat(depth)].concat(), Code::InvalidRequest);
        let inner = [b"{\"prompt\":".to_vec(), b"[".repeat(depth), b"]".repeat(depth), b"}".to_vec()].concat();
        refuse(&mut reader, &inner, Code::InvalidRequest);
    }
}

#[test]
fn numbers_beyond_their_type_are_refused() {
    let mut reader = Reader::new();
    for number in ["1e999", "-1e999", "1e400", "99999999999999999999999999", "-99999999999999999999", "1e309"] {
        for field in ["temperature", "seed", "max_tokens", "top_p", "n", "logit_bias"] {
            let body = format!("{{\"prompt\":\"a\",\"{field}\":{number}}}");
            let error = GenerateRequest::parse(Endpoint::Completion, &mut reader, &mut body.into_bytes()).unwrap_err();
            assert_eq!(error.status, 400, "{field} {number}");
        }
    }
}

#[test]
fn too_many_fields_are_refused() {
    let fields: Vec<_> = (0..1000).map(|index| format!("\"f{index}\":0")).collect();
    let body = format!("{{{}}}", fields.join(","));
    refuse(&mut Reader::new(), body.as_bytes(), Code::InvalidRequest);
}

#[test]
fn a_huge_field_name_is_not_repeated_in_the_answer() {
    let body = format!("{{\"{}\":1}}", "x\\u0007".repeat(100_000));
    let error = GenerateRequest::parse(Endpoint::Inference, &mut Reader::new(), &mut body.into_bytes()).unwrap_err();
    assert!(error.message.len() < 400 && error.param.unwrap().len() < 100);
}

#[test]
fn mutated_bodies_never_panic() {
    let seeds: [&[u8]; 4] = [
        br#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a\u00e9\ud83d\ude00"}]}],"n":2}"#,
        br#"{"prompt":[[1,2],[3]],"max_tokens":5,"logit_bias":{"1":-1.5e0},"stop":["a","b"],"stream":true}"#,
        br#"{"prompt":"hello","temperature":0.5,"seed":7,"stop_sequences":["x"],"priority":"low"}"#,
        br#"{"content":"a\\b\"c","with_pieces":true,"tokens":[1,2,3]}"#,
    ];
    let mut state = 1_u64;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let alphabet = b"{}[]\",:\\u0123456789.eE+-truefalsn \xff\x00\xf0";
    let mut reader = Reader::new();
    for _ in 0..100_000 {
        let mut body = seeds[below(seeds.len())].to_vec();
        for _ in 0..=below(4) {
            let at = below(body.len());
            match below(4) {
                0 => body[at] = alphabet[below(alphabet.len())],
                1 => body.insert(at, alphabet[below(alphabet.len())]),
                2 => drop(body.remove(at)),
                _ => body[at] ^= 1 << below(8),
            }
        }
        for endpoint in ENDPOINTS {
            if let Err(error) = GenerateRequest::parse(endpoint, &mut reader, &mut body.clone()) {
                assert_eq!(error.status, 400);
            }
        }
        drop(TokenizeRequest::parse(&mut reader, &mut body.clone()));
        drop(DetokenizeRequest::parse(&mut reader, &mut body));
    }
}
