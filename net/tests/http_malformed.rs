//! Malformed and ambiguous requests: each is refused with its status, whole or byte by byte, and ends the connection.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use net::http::{Connection, Limits, Phase};

/// Status of the refusal, or None and the number of requests that passed.
fn outcome<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (usize, Option<u16>) {
    let mut connection = Connection::new(limits());
    let mut requests = 0;
    for piece in pieces {
        let mut result = connection.receive(piece).map(|()| true);
        while let Ok(true) = result {
            result = connection.next().map(|request| {
                requests += usize::from(request.is_some());
                request.is_some()
            });
        }
        if let Err(error) = result {
            assert_eq!(connection.phase(), Phase::Closed);
            assert!(connection.next().is_err(), "an error stays");
            return (requests, Some(error.status()));
        }
    }
    (requests, None)
}

fn limits() -> Limits {
    Limits { body_bytes_max: 1000, target_bytes_max: 200, head_bytes_max: 2000, headers_max: 16, ..Limits::default() }
}

/// (status, stream) of streams whose first request is at fault.
fn refused() -> Vec<(u16, Vec<u8>)> {
    let mut cases: Vec<(u16, Vec<u8>)> = REFUSED.iter().map(|&(status, text)| (status, text.to_vec())).collect();
    for (status, target) in TARGETS {
        cases.push((*status, [b"GET ", *target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat()));
    }
    for (status, field) in FIELDS {
        cases.push((*status, [b"POST / HTTP/1.1\r\nHost: a\r\n", *field, b"\r\n\r\n0\r\n\r\n"].concat()));
    }
    for (status, host) in HOSTS {
        cases.push((*status, [b"GET / HTTP/1.1\r\n", *host, b"\r\n\r\n"].concat()));
    }
    for (status, body) in CHUNKS {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        cases.push((*status, [head, *body].concat()));
    }
    let long = |count: usize| vec![b'a'; count];
    cases.push((414, [b"GET /", long(200).as_slice(), b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat()));
    cases.push((414, [b"GET /", long(300).as_slice()].concat()));
    cases.push((414, long(300)));
    cases.push((431, [b"GET / HTTP/1.1\r\nHost: a\r\nX: ", long(2000).as_slice()].concat()));
    cases.push((431, [b"GET / HTTP/1.1\r\nHost: a\r\n", long(2000).as_slice(), b": x\r\n\r\n"].concat()));
    cases.push((431, [b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec(), b"X: y\r\n".repeat(16), b"\r\n".to_vec()].concat()));
    cases.push((431, [b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec(), b"X: yyyyyyyy\r\n".repeat(200)].concat()));
    let chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    cases.push((400, [chunked.clone(), b"1;".to_vec(), long(1100), b"\r\n".to_vec()].concat()));
    cases.push((400, [chunked.clone(), b"0\r\nX: ".to_vec(), long(5000)].concat()));
    cases.push((400, [chunked.clone(), b"0\r\n".to_vec(), b"X: y\r\n".repeat(17), b"\r\n".to_vec()].concat()));
    cases.push((413, [chunked, b"64\r\n".to_vec(), long(100), b"\r\n".to_vec()].concat()));
    cases.last_mut().unwrap().1.extend(b"385\r\n");
    cases
}

#[test]
fn each_is_refused_with_its_status() {
    let cases = refused();
    assert!(cases.len() >= 200, "{} cases", cases.len());
    for (status, stream) in &cases {
        let whole = outcome([stream.as_slice()]);
        assert_eq!(whole, (0, Some(*status)), "{}", stream.escape_ascii());
    }
}

#[test]
fn the_split_does_not_change_the_refusal() {
    for (_, stream) in &refused() {
        let whole = outcome([stream.as_slice()]);
        assert_eq!(outcome(stream.chunks(1)), whole, "byte by byte: {}", stream.escape_ascii());
        for at in 0..stream.len().min(400) {
            let (first, second) = stream.split_at(at);
            assert_eq!(outcome([first, second]), whole, "split at {at}: {}", stream.escape_ascii());
        }
    }
}

#[test]
fn a_valid_request_before_a_malformed_one_still_passes() {
    for (status, stream) in &refused() {
        let stream = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", stream.as_slice()].concat();
        assert_eq!(outcome([stream.as_slice()]), (1, Some(*status)), "{}", stream.escape_ascii());
    }
}

#[test]
fn odd_but_valid_requests_pass() {
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3E8\r\n";
    let full = [head.as_slice(), &[b'a'; 1000], b"\r\n0\r\n\r\n"].concat();
    assert_eq!(outcome([full.as_slice()]), (1, None), "a body of exactly the limit");
    for stream in VALID {
        assert_eq!(outcome([*stream]), (1, None), "{}", stream.escape_ascii());
        assert_eq!(outcome(stream.chunks(1)), (1, None), "{}", stream.escape_ascii());
    }
}

/// A smuggled second request must never be seen: the first one's framing is refused, or the rest is its body.
#[test]
fn smuggled_requests_are_not_seen() {
    let smuggled = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    for field in [
        &b"Content-Length: 6\r\nTransfer-Encoding: chunked"[..],
        b"Transfer-Encoding: chunked\r\nContent-Length: 6",
        b"Content-Length: 0\r\nContent-Length: 33",
        b"Content-Length: 0, 33",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"X: y\nTransfer-Encoding: chunked",
        b"X: y\rTransfer-Encoding: chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Content-Length: +33",
    ] {
        let stream = [b"POST / HTTP/1.1\r\nHost: a\r\n", field, b"\r\n\r\n0\r\n\r\n", smuggled].concat();
        let (requests, status) = outcome([stream.as_slice()]);
        assert_eq!((requests, status), (0, Some(400)), "{}", stream.escape_ascii());
    }
}

const REFUSED: &[(u16, &[u8])] = &[
    // Request line.
    (400, b"GET\r\n\r\n"),
    (400, b"GET /\r\n\r\n"),
    (400, b"GET / \r\n\r\n"),
    (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    (400, b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET /\tHTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET / a HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"/ GET HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\n\r\n"),
    (400, b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"G\x80T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"\"GET\" / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/1\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/1.\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/.1\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/01.1\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/1.1x\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP 1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/1,1\r\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/-1.1\r\nHost: a\r\n\r\n"),
    (400, b"GET / FTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"\0GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"\xef\xbb\xbfGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    (400, b"{\"model\":\"x\"}\r\n"),
    (505, b"GET / HTTP/0.9\r\n\r\n"),
    (505, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    (505, b"GET / HTTP/3.0\r\nHost: a\r\n\r\n"),
    (505, b"GET / HTTP/9.9\r\nHost: a\r\n\r\n"),
    (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    (501, b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (501, b"get / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (501, b"Get / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (501, b"GETT / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (501, b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
    // Line ends.
    (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    (400, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"),
    (400, b"GET / HTTP/1.1\rHost: a\r\r"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\n\rX"),
    // Framing.
    (411, b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (411, b"PUT / HTTP/1.0\r\n\r\n"),
    (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
];

const TARGETS: &[(u16, &[u8])] = &[
    (400, b"a"),
    (400, b"a/b"),
    (400, b"?"),
    (400, b"*"),
    (400, b"/#f"),
    (400, b"/%"),
    (400, b"/%1"),
    (400, b"/%zz"),
    (400, b"/%-1"),
    (400, b"/\\"),
    (400, b"/\""),
    (400, b"/<a>"),
    (400, b"/{a}"),
    (400, b"/|"),
    (400, b"/^"),
    (400, b"/`"),
    (400, b"/\xc3\xa9"),
    (400, b"/\x7f"),
    (400, b"/\x00"),
    (400, b"/\x1b[0m"),
    (400, b"/a?b#c"),
    (400, b"/a?%"),
    (400, b"http:///a"),
    (400, b"http://"),
    (400, b"http://u@h/"),
    (400, b"http://h:x/"),
    (400, b"http:/a"),
    (400, b"ftp://h/"),
    (400, b"file:///etc/passwd"),
    (400, b"h:80"),
    (400, b"://h/"),
];

const HOSTS: &[(u16, &[u8])] = &[
    (400, b"X: y"),
    (400, b"Host: a\r\nHost: a"),
    (400, b"Host: a\r\nhost: b"),
    (400, b"HOST:\r\nHost:"),
    (400, b"Host : a"),
    (400, b"Host: a b"),
    (400, b"Host: a, b"),
    (400, b"Host: a,b"),
    (400, b"Host: a/b"),
    (400, b"Host: u@a"),
    (400, b"Host: http://a"),
    (400, b"Host: a:b"),
    (400, b"Host: a:80:80"),
    (400, b"Host: a:999999"),
    (400, b"Host: [::1"),
    (400, b"Host: ::1"),
    (400, b"Host: []"),
    (400, b"Host: [::1]x"),
    (400, b"Host: a\xff"),
    (400, b"Host: a?b"),
    (400, b"Host: a#b"),
    (400, b"Host: a\\b"),
    (400, b"Host: a\0"),
];

/// Fields of a POST whose body looks like an empty chunked one.
const FIELDS: &[(u16, &[u8])] = &[
    // Syntax.
    (400, b"X"),
    (400, b"X y"),
    (400, b": y"),
    (400, b"X : y"),
    (400, b"X\t: y"),
    (400, b" X: y"),
    (400, b"\tX: y"),
    (400, b"X: y\r\n folded"),
    (400, b"X: y\r\n\tfolded"),
    (400, b"X: a\0b"),
    (400, b"X: a\rb"),
    (400, b"X: a\nb"),
    (400, b"X: a\x0bb"),
    (400, b"X: a\x7fb"),
    (400, b"X: \x1b[0m"),
    (400, b"X\0: y"),
    (400, b"X(: y"),
    (400, b"X\xc3\xa9: y"),
    (400, b"X[]: y"),
    (400, b"\"X\": y"),
    (400, b"X;: y"),
    // Content-Length.
    (400, b"Content-Length:"),
    (400, b"Content-Length: -1"),
    (400, b"Content-Length: +1"),
    (400, b"Content-Length: 1.0"),
    (400, b"Content-Length: 0x1"),
    (400, b"Content-Length: 1e1"),
    (400, b"Content-Length: a"),
    (400, b"Content-Length: 1 1"),
    (400, b"Content-Length: 1,1"),
    (400, b"Content-Length: 1, 1"),
    (400, b"Content-Length: \"1\""),
    (400, b"Content-Length: 1;"),
    (400, b"Content-Length: \xd9\xa1"),
    (400, b"Content-Length: 18446744073709551616"),
    (400, b"Content-Length: 99999999999999999999999999999999"),
    (400, b"Content-Length: 5\r\nContent-Length: 5"),
    (400, b"Content-Length: 5\r\nContent-Length: 6"),
    (400, b"content-length: 5\r\nCONTENT-LENGTH: 5"),
    (400, b"Content-Length : 5"),
    (400, b"Content-Length\t: 5"),
    (413, b"Content-Length: 1001"),
    (413, b"Content-Length: 67108864"),
    (413, b"Content-Length: 18446744073709551615"),
    (413, b"Expect: 100-continue\r\nContent-Length: 1001"),
    (417, b"Expect: 200-ok\r\nContent-Length: 5"),
    // Transfer-Encoding.
    (400, b"Transfer-Encoding: chunked\r\nContent-Length: 5"),
    (400, b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
    (400, b"Content-Length: 0\r\nTransfer-Encoding: identity"),
    (400, b"Transfer-Encoding:"),
    (400, b"Transfer-Encoding: identity"),
    (400, b"Transfer-Encoding: gzip"),
    (400, b"Transfer-Encoding: xchunked"),
    (400, b"Transfer-Encoding: chunkedx"),
    (400, b"Transfer-Encoding: chunked, gzip"),
    (400, b"Transfer-Encoding: chunked, identity"),
    (400, b"Transfer-Encoding: chunked, chunked"),
    (400, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    (400, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip"),
    (400, b"Transfer-Encoding: chunked,"),
    (400, b"Transfer-Encoding: chunked;q=1"),
    (400, b"Transfer-Encoding: \"chunked\""),
    (400, b"Transfer-Encoding: chun ked"),
    (400, b"Transfer-Encoding: \x0bchunked"),
    (400, b"Transfer-Encoding:\x0cchunked"),
    (400, b"Transfer-Encoding : chunked"),
    (400, b"Transfer-Encoding\0: chunked"),
    (400, b"Transfer-Encoding: chunked\r\n chunked"),
    (501, b"Transfer-Encoding: gzip, chunked"),
    (501, b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"),
    (501, b"Transfer-Encoding: identity, chunked"),
    (501, b"Transfer-Encoding: , chunked"),
];

const CHUNKS: &[(u16, &[u8])] = &[
    (400, b"\r\n"),
    (400, b"x\r\n"),
    (400, b"0x1\r\na\r\n0\r\n\r\n"),
    (400, b"-1\r\na\r\n0\r\n\r\n"),
    (400, b"+1\r\na\r\n0\r\n\r\n"),
    (400, b" 1\r\na\r\n0\r\n\r\n"),
    (400, b"1 \r\na\r\n0\r\n\r\n"),
    (400, b"1\t\r\na\r\n0\r\n\r\n"),
    (400, b"1 ;a\r\na\r\n0\r\n\r\n"),
    (400, b"1; a\r\na\r\n0\r\n\r\n"),
    (400, b"1;\r\na\r\n0\r\n\r\n"),
    (400, b"1;=b\r\na\r\n0\r\n\r\n"),
    (400, b"1;a=\r\na\r\n0\r\n\r\n"),
    (400, b"1;a=\"b\r\na\r\n0\r\n\r\n"),
    (400, b"1;a=\"b\"c\r\na\r\n0\r\n\r\n"),
    (400, b"1;a\n\r\na\r\n0\r\n\r\n"),
    (400, b"1;a\0\r\na\r\n0\r\n\r\n"),
    (400, b"1\na\n0\n\n"),
    (400, b"1\r\na\n0\r\n\r\n"),
    (400, b"1\r\nab\r\n0\r\n\r\n"),
    (400, b"1\r\na0\r\n\r\n"),
    (400, b"2\r\na\r\n0\r\n\r\n"),
    (400, b"1\ra\r\n0\r\n\r\n"),
    (400, b"1\r\na\r0\r\n\r\n"),
    (400, b"1.0\r\na\r\n0\r\n\r\n"),
    (400, b"1_0\r\na\r\n0\r\n\r\n"),
    (400, b"00000000000000000\r\n\r\n"),
    (400, b"\xef\xbc\x91\r\na\r\n0\r\n\r\n"),
    (413, b"3e9\r\n"),
    (413, b"ffffffff\r\n"),
    (413, b"ffffffffffffffff\r\n"),
    (413, b"10000000000000000\r\n"),
    (400, b"0\n\r\n"),
    (400, b"0\r\n\n"),
    (400, b"0\r\n\rX"),
    (400, b"0\r\nX\r\n\r\n"),
    (400, b"0\r\nX : y\r\n\r\n"),
    (400, b"0\r\n X: y\r\n\r\n"),
    (400, b"0\r\nX: y\r\n z\r\n\r\n"),
    (400, b"0\r\nX: \0\r\n\r\n"),
    (400, b"0\r\nX: y\n\r\n"),
    (400, b"0\r\nContent-Length: 1\r\n\r\n"),
    (400, b"0\r\ntransfer-encoding: chunked\r\n\r\n"),
    (400, b"0\r\nHost: b\r\n\r\n"),
    (400, b"0\r\nAuthorization: x\r\n\r\n"),
];

const VALID: &[&[u8]] = &[
    b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:a\r\n\r\n",
    b"GET / HTTP/1.1\r\nhOST: \t a \t\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
    b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET HTTPS://a?x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://[::1]:80/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET //a/../b;c=d?e=f&g=%20?/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \xff\xfe\r\nZ: a\tb\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 000\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 9\r\nContent-Length: 1\r\n\r\na",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0000000000000001;x;y=z;q=\" \\\" \"\r\na\r\n0;end\r\n\r\n",
];
