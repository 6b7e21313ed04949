//! Mutated valid requests: no panic, no hang, no unbounded buffer, and the split never matters.

use net::http::{Connection, Limits};

/// xorshift64*, seeded: a failure names its iteration and comes again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

const SEEDS: &[&[u8]] = &[
    b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 13\r\n\r\n{\"prompt\":\"\"}",
    b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{\"input\":\"ab\"}DELETE /v1/responses/resp_1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n\
      4;a=\"b\"\r\nabcd\r\n0\r\nX: 1\r\n\r\nGET / HTTP/1.0\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: [::1]\r\nConnection: keep-alive\r\n\r\nOPTIONS * HTTP/1.1\r\nHost:\r\n\r\n",
];
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"HTTP/1.1",
    b"\xff",
    b";",
    b"\"",
    b"99999999999999999999",
];

fn mutate(random: &mut Random) -> Vec<u8> {
    let mut stream = SEEDS[random.below(SEEDS.len())].to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(stream.len());
        match random.below(6) {
            0 if at < stream.len() => stream[at] ^= 1 << random.below(8),
            1 if at < stream.len() => stream[at] = random.next() as u8,
            2 => stream.truncate(at),
            3 => drop(stream.drain(at..(at + random.below(9)).min(stream.len()))),
            4 => drop(stream.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())),
            _ => stream.extend_from_within(at..),
        }
    }
    stream
}

/// What came of a stream: bodies and targets in order, and the error.
fn outcome<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<(String, Vec<u8>)>, Option<u16>) {
    let mut connection = Connection::new(Limits { head_bytes_max: 4096, ..Limits::default() });
    let mut requests = Vec::new();
    for piece in pieces {
        if let Err(error) = connection.receive(piece) {
            return (requests, Some(error.status()));
        }
        loop {
            match connection.next() {
                Ok(Some(request)) => {
                    assert!(request.headers().count() <= 64);
                    requests.push((format!("{} {:?}", request.path(), request.query()), request.body.clone()));
                    connection.recycle(request);
                }
                Ok(None) => break,
                Err(error) => {
                    assert!((400..=505).contains(&error.status()) && error.status() != 500);
                    return (requests, Some(error.status()));
                }
            }
        }
        connection.wants_continue();
    }
    (requests, None)
}

#[test]
fn mutated_requests_never_panic_and_splits_agree() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for iteration in 0..100_000 {
        let stream = mutate(&mut random);
        let whole = outcome([stream.as_slice()]);
        let (first, second) = stream.split_at(random.below(stream.len() + 1));
        assert_eq!(outcome([first, second]), whole, "iteration {iteration}: {}", stream.escape_ascii());
        if iteration % 16 == 0 {
            assert_eq!(outcome(stream.chunks(1)), whole, "iteration {iteration}: {}", stream.escape_ascii());
        }
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(7);
    for _ in 0..20_000 {
        let stream: Vec<u8> = (0..random.below(300)).map(|_| random.next() as u8).collect();
        let (requests, _) = outcome([stream.as_slice()]);
        assert!(requests.is_empty());
    }
}
