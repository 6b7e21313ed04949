//! Valid requests through the connection: framing, reuse, keep-alive, and the same answer for every split.

use net::http::{Connection, HttpError, Limits, Method, Phase, Request};

const POST: &[u8] = b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: a.example:8080\r\nX-Empty:\r\ncontent-length: 13\r\n\
    Accept: \t text/event-stream \t\r\n\r\n{\"prompt\":\"\"}";
const CHUNKED: &[u8] =
    b"\r\nPOST http://h.example/v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n\
    4\r\n{\"pr\r\n0009;a=1;b=\"q\\\"\";c\r\nompt\":\"\"}\r\n00\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n";
const GET: &[u8] = b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
const LAST: &[u8] = b"OPTIONS * HTTP/1.1\r\nHost:\r\nConnection: x, Close\r\n\r\n";

/// One request, written out for comparison.
fn describe(request: &Request) -> String {
    let headers: Vec<_> = request.headers().map(|(name, value)| format!("{name}={}", value.escape_ascii())).collect();
    let body = request.body.escape_ascii();
    let (method, path, query) = (request.method(), request.path(), request.query());
    format!("{method:?} {path} {query:?} {headers:?} keep={} body={body}", request.keep_alive())
}

/// Feeds `stream` in the given pieces and returns all requests and the error, if one came.
fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Option<HttpError>, Phase) {
    let mut connection = Connection::new(Limits::default());
    let mut requests = Vec::new();
    for piece in pieces {
        if let Err(error) = connection.receive(piece) {
            return (requests, Some(error), connection.phase());
        }
        loop {
            match connection.next() {
                Ok(Some(request)) => {
                    requests.push(describe(&request));
                    connection.recycle(request);
                }
                Ok(None) => break,
                Err(error) => return (requests, Some(error), connection.phase()),
            }
        }
    }
    (requests, None, connection.phase())
}

#[test]
fn pipelined_requests_come_in_order() {
    let (requests, error, phase) = feed([[POST, CHUNKED, GET, LAST].concat().as_slice()]);
    assert_eq!((requests.len(), error, phase), (4, None, Phase::Closed));
    assert!(requests[0].starts_with("Post /v1/completions Some(\"x=1\")"), "{}", requests[0]);
    assert!(requests[0].contains("\"X-Empty=\""), "{}", requests[0]);
    assert!(requests[0].contains("\"Accept=text/event-stream\""), "{}", requests[0]);
    assert!(requests[1].starts_with("Post /v1/completions None"), "{}", requests[1]);
    for request in &requests[..2] {
        assert!(request.ends_with("keep=true body={\\\"prompt\\\":\\\"\\\"}"), "{request}");
    }
    assert!(requests[2].starts_with("Get /health None") && requests[2].contains("keep=true"), "{}", requests[2]);
    assert!(requests[3].starts_with("Options * None") && requests[3].contains("keep=false"), "{}", requests[3]);
}

#[test]
fn every_split_gives_the_same_requests() {
    let stream = [POST, CHUNKED, GET, POST, LAST].concat();
    let whole = feed([stream.as_slice()]);
    for at in 0..=stream.len() {
        let (first, second) = stream.split_at(at);
        assert_eq!(feed([first, second]), whole, "split at {at}");
    }
    assert_eq!(feed(stream.chunks(1)), whole);
    assert_eq!(feed(stream.chunks(7)), whole);
}

#[test]
fn keep_alive_follows_version_and_connection() {
    let cases: [(&[u8], bool); 7] = [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n", false),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nConnection: CLOSE\r\n\r\n", false),
        (b"GET / HTTP/1.0\r\n\r\n", false),
        (b"GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n", true),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", false),
    ];
    for (head, keep_alive) in cases {
        let mut connection = Connection::new(Limits::default());
        connection.receive(head).unwrap();
        let request = connection.next().unwrap().unwrap();
        assert_eq!(request.keep_alive(), keep_alive, "{}", head.escape_ascii());
        assert_eq!(connection.phase(), if keep_alive { Phase::Idle } else { Phase::Closed });
    }
}

#[test]
fn phases_follow_the_bytes() {
    let mut connection = Connection::new(Limits::default());
    assert_eq!(connection.phase(), Phase::Idle);
    connection.receive(b"P").unwrap();
    assert!(connection.next().unwrap().is_none());
    assert_eq!(connection.phase(), Phase::Head);
    connection.receive(b"OST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n").unwrap();
    assert!(connection.next().unwrap().is_none());
    assert_eq!((connection.phase(), connection.body_bytes()), (Phase::Body, 0));
    connection.receive(b"{").unwrap();
    assert!(connection.next().unwrap().is_none());
    assert_eq!((connection.phase(), connection.body_bytes()), (Phase::Body, 1));
    connection.receive(b"}").unwrap();
    assert_eq!(connection.next().unwrap().unwrap().body, b"{}");
    assert_eq!(connection.phase(), Phase::Idle);
}

#[test]
fn continue_is_wanted_once_and_only_before_the_body() {
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
    let mut connection = Connection::new(Limits::default());
    connection.receive(head).unwrap();
    assert!(connection.next().unwrap().is_none());
    assert!(connection.wants_continue());
    assert!(!connection.wants_continue());
    connection.receive(b"{}").unwrap();
    assert!(connection.next().unwrap().is_some());

    connection.receive(&[head.as_slice(), b"{"].concat()).unwrap();
    assert!(connection.next().unwrap().is_none());
    assert!(!connection.wants_continue(), "the body is already coming");
}

#[test]
fn input_is_bounded_while_nobody_takes_it() {
    let limits = Limits { pipelined_bytes_max: 1000, head_bytes_max: 500, ..Limits::default() };
    let mut connection = Connection::new(limits);
    connection.receive(&[b'a'; 1000]).unwrap();
    assert_eq!(connection.room(), 500);
    assert_eq!(connection.receive(&[b'a'; 501]), Err(HttpError::PipelineOverflow));
    assert_eq!(connection.next().unwrap_err(), HttpError::PipelineOverflow);
    assert_eq!(connection.phase(), Phase::Closed);
}

#[test]
fn a_body_longer_than_the_input_buffer_passes() {
    let limits = Limits::default();
    let mut connection = Connection::new(limits);
    let body = vec![b' '; limits.body_bytes_max];
    connection
        .receive(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())
        .unwrap();
    assert!(connection.next().unwrap().is_none());
    connection.receive(&body).unwrap();
    let request = connection.next().unwrap().unwrap();
    assert_eq!((request.method(), request.body.len()), (Method::Post, body.len()));
}

#[test]
fn recycled_buffers_serve_the_next_request() {
    let mut connection = Connection::new(Limits::default());
    let mut body = None;
    for _ in 0..3 {
        connection.receive(POST).unwrap();
        let request = connection.next().unwrap().unwrap();
        let at = request.body.as_ptr();
        assert_eq!(*body.get_or_insert(at), at);
        connection.recycle(request);
    }
}
