//! TLS of the server's side against rustls' client, and against what no client should send.
#![expect(clippy::unwrap_used, reason = "whatever fails here fails the test")]

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use net::tls::{Identity, IdentityError, Received, Refusal, Session};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates").join(name)).unwrap()
}

fn identity(name: &str) -> Identity {
    Identity::from_pem(&file(&format!("{name}.pem")), &file(&format!("{name}.key"))).unwrap()
}

fn trusting(names: &[&str], version: &'static SupportedProtocolVersion) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for name in names {
        roots.add(CertificateDer::from_pem_slice(&file(name)).unwrap()).unwrap();
    }
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn config(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    Arc::new(trusting(&["ca.pem"], version))
}

/// A client and the session that it has.
struct Pair {
    client: ClientConnection,
    session: Session,
    /// What the server got to read.
    plain: Vec<u8>,
    received: Result<Received, Refusal>,
    /// What the client got to read.
    answer: Vec<u8>,
}

impl Pair {
    fn new(config: &Arc<ClientConfig>, identity: &Identity) -> Self {
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(Arc::clone(config), name).unwrap();
        let received = Ok(Received::More);
        Self { client, session: identity.session(), plain: Vec::new(), received, answer: Vec::new() }
    }

    /// What the client wants to send.
    fn flight(&mut self) -> Vec<u8> {
        let mut flight = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut flight).unwrap();
        }
        flight
    }

    fn deliver(&mut self, flight: &[u8], part_bytes: usize) {
        for part in flight.chunks(part_bytes) {
            if self.received != Ok(Received::More) {
                return;
            }
            self.received = self.session.receive(&mut part.to_vec(), &mut self.plain);
        }
    }

    /// Carries everything over in both directions, in parts, until nothing is left; the first error of the client.
    fn settle(&mut self, part_bytes: usize) -> Result<(), rustls::Error> {
        loop {
            let flight = self.flight();
            self.deliver(&flight, part_bytes);
            let records = self.session.take_records();
            if flight.is_empty() && records.is_empty() {
                return Ok(());
            }
            for mut part in records.chunks(part_bytes) {
                while !part.is_empty() {
                    self.client.read_tls(&mut part).unwrap();
                    self.client.process_new_packets()?;
                    // Where nothing waits, it would block; after the end it is at an end.
                    let _ = self.client.reader().read_to_end(&mut self.answer);
                }
            }
            self.session.give_back(records);
        }
    }
}

#[test]
fn both_versions_carry_everything_however_it_is_split() {
    let request = vec![b'q'; 40_000];
    let answer: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
    for (version, name) in [(&TLS13, "ecdsa"), (&TLS12, "ecdsa"), (&TLS13, "rsa"), (&TLS12, "rsa")] {
        for part_bytes in [1, 2, 5, 333, 8 << 10, usize::MAX] {
            let mut pair = Pair::new(&config(version), &identity(name));
            assert!(!pair.session.is_open() && !pair.session.has_records());
            pair.settle(part_bytes).unwrap();
            assert!(pair.session.is_open() && !pair.session.is_resumed() && !pair.client.is_handshaking());
            pair.client.writer().write_all(&request).unwrap();
            pair.settle(part_bytes).unwrap();
            assert!(pair.plain == request, "{name} in parts of {part_bytes}");
            for size in [1, 15, 16 << 10, (16 << 10) + 1, answer.len()] {
                pair.answer.clear();
                pair.session.seal(&answer[..size]).unwrap();
                pair.settle(part_bytes).unwrap();
                assert!(pair.answer == answer[..size], "{name}: {size} in parts of {part_bytes}");
            }
            assert_eq!(pair.received, Ok(Received::More));
        }
    }
}

#[test]
fn a_request_may_come_with_the_end_of_the_handshake() {
    let mut pair = Pair::new(&config(&TLS13), &identity("ecdsa"));
    pair.client.writer().write_all(b"GET / HTTP/1.1\r\n").unwrap();
    pair.settle(usize::MAX).unwrap();
    assert_eq!(pair.plain, b"GET / HTTP/1.1\r\n");
}

#[test]
fn a_client_comes_back_by_its_ticket_until_the_identity_changes() {
    for version in [&TLS13, &TLS12] {
        let (config, before) = (config(version), identity("ecdsa"));
        let resumes = |identity: &Identity| {
            let mut pair = Pair::new(&config, identity);
            pair.settle(usize::MAX).unwrap();
            assert!(pair.session.is_open());
            pair.session.is_resumed()
        };
        assert!(!resumes(&before) && resumes(&before) && resumes(&before));
        let after = identity("ecdsa");
        assert!(!resumes(&after) && resumes(&after));
    }
}

#[test]
fn the_end_is_told_and_understood() {
    for version in [&TLS13, &TLS12] {
        let mut pair = Pair::new(&config(version), &identity("ecdsa"));
        pair.settle(usize::MAX).unwrap();
        pair.session.seal(b"bye").unwrap();
        pair.session.close();
        assert!(pair.session.seal(b"more").is_err());
        pair.settle(usize::MAX).unwrap();
        let mut rest = Vec::new();
        assert_eq!((&pair.answer[..], pair.client.reader().read_to_end(&mut rest).unwrap()), (&b"bye"[..], 0));

        let mut pair = Pair::new(&config(version), &identity("ecdsa"));
        pair.settle(usize::MAX).unwrap();
        pair.client.writer().write_all(b"last words").unwrap();
        pair.client.send_close_notify();
        pair.settle(usize::MAX).unwrap();
        assert_eq!((pair.received, &pair.plain[..]), (Ok(Received::End), &b"last words"[..]));
        pair.session.seal(b"said all the same").unwrap();
        pair.settle(usize::MAX).unwrap();
        assert_eq!(pair.answer, b"said all the same");
    }
}

#[test]
fn keys_change_under_a_session_and_it_goes_on() {
    let mut pair = Pair::new(&config(&TLS13), &identity("ecdsa"));
    pair.settle(usize::MAX).unwrap();
    for round in 0..20_u8 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.client.writer().write_all(&[round]).unwrap();
        pair.settle(7).unwrap();
        pair.session.seal(&[round]).unwrap();
        pair.settle(7).unwrap();
    }
    let rounds: Vec<u8> = (0..20).collect();
    assert_eq!((&pair.plain, &pair.answer), (&rounds, &rounds));
}

/// A client's hello of a version, with a cipher suite of that time and nothing else.
fn old_hello(version: [u8; 2]) -> Vec<u8> {
    let hello = [&version[..], &[7; 32], &[0, 0, 2, 0xc0, 0x13, 1, 0]].concat();
    let length = u8::try_from(hello.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length], &hello[..]].concat()
}

#[test]
fn what_is_no_tls_of_ours_is_refused_by_its_reason() {
    let endless = [&[22, 3, 3, 0x40, 0, 1, 0, 0xff, 0xff][..], &[0; 0x3ffc], &[22, 3, 3, 0x40, 0]].concat();
    let endless: Vec<u8> =
        endless.into_iter().chain((0..9).flat_map(|_| [&[22, 3, 3, 0x40, 0][..], &[0; 0x4000]].concat())).collect();
    let cases: [(&str, Refusal, Vec<u8>); 12] = [
        ("HTTP in clear", Refusal::Clear, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("a letter of it", Refusal::Clear, b"P".to_vec()),
        ("SSL 3.0", Refusal::Incompatible, old_hello([3, 0])),
        ("TLS 1.0", Refusal::Incompatible, old_hello([3, 1])),
        ("TLS 1.1", Refusal::Incompatible, old_hello([3, 2])),
        ("SSL 2.0", Refusal::Malformed, vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80]),
        ("noise", Refusal::Malformed, vec![0xa5; 5000]),
        ("zeros", Refusal::Malformed, vec![0; 5000]),
        ("a record beyond the most", Refusal::Malformed, vec![22, 3, 3, 0xff, 0xff, 1]),
        ("data before a key", Refusal::Malformed, vec![23, 3, 3, 0, 2, 1, 2]),
        ("a hello of no kind", Refusal::Malformed, vec![22, 3, 3, 0, 4, 99, 0, 0, 0]),
        ("a hello without an end", Refusal::Malformed, endless),
    ];
    for (what, refusal, bytes) in cases {
        for part_bytes in [1, 4000, usize::MAX] {
            let mut pair = Pair::new(&config(&TLS13), &identity("ecdsa"));
            pair.deliver(&bytes, part_bytes);
            let is_so = |got| got == Err(refusal) || what.contains("without") && got == Err(Refusal::TooLong);
            assert!(is_so(pair.received), "{what}: {:?}", pair.received);
            let alert = pair.session.take_records();
            let is_told = !matches!(pair.received, Err(Refusal::Clear | Refusal::TooLong));
            assert_eq!((alert.first() == Some(&21), alert.len()), (is_told, if is_told { 7 } else { 0 }), "{what}");
            assert!(pair.plain.is_empty() && pair.session.seal(b"secret").is_err());
            pair.session.close();
            assert!(!pair.session.has_records());
        }
    }
}

#[test]
fn clients_that_want_something_else_are_told() {
    for version in [&TLS13, &TLS12] {
        let mut other = trusting(&["ca.pem"], version);
        other.alpn_protocols = vec![b"h2".to_vec()];
        let mut pair = Pair::new(&Arc::new(other.clone()), &identity("ecdsa"));
        let told = pair.settle(usize::MAX).unwrap_err();
        assert_eq!(pair.received, Err(Refusal::Protocol));
        assert!(
            matches!(told, rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)),
            "{told}"
        );
        other.alpn_protocols.push(b"http/1.1".to_vec());
        let mut pair = Pair::new(&Arc::new(other), &identity("ecdsa"));
        pair.settle(usize::MAX).unwrap();
        assert_eq!(pair.client.alpn_protocol(), Some(&b"http/1.1"[..]));

        // One that does not know the authority.
        let mut pair = Pair::new(&Arc::new(trusting(&["rsa.pem"], version)), &identity("ecdsa"));
        let told = pair.settle(usize::MAX).unwrap_err();
        let flight = pair.flight();
        pair.deliver(&flight, usize::MAX);
        assert!(matches!(told, rustls::Error::InvalidCertificate(_)), "{told}");
        assert_eq!(pair.received, Err(Refusal::Alert));
    }
}

#[test]
fn a_changed_byte_anywhere_opens_nothing_it_should_not() {
    let identity = identity("ecdsa");
    let length = Pair::new(&config(&TLS13), &identity).flight().len();
    for at in 0..length {
        let mut pair = Pair::new(&config(&TLS13), &identity);
        let mut flight = pair.flight();
        flight[at] ^= 1 << (at % 8);
        pair.deliver(&flight, usize::MAX);
        // The hello is part of what the keys are made of, so that no changed one comes to an end.
        let _ = pair.settle(usize::MAX);
        assert!(!pair.session.is_open() || at < 3, "byte {at}");
    }
    // Records of an open session.
    for at in 0..30 {
        let mut pair = Pair::new(&config(&TLS13), &identity);
        pair.settle(usize::MAX).unwrap();
        pair.client.writer().write_all(b"secret").unwrap();
        let mut flight = pair.flight();
        if let Some(byte) = flight.get_mut(at) {
            *byte ^= 1 << (at % 8);
        }
        pair.deliver(&flight, usize::MAX);
        assert!(pair.plain.is_empty() || at >= flight.len() || at < 3, "byte {at}");
    }
}

#[test]
fn files_that_are_no_identity_say_why() {
    let (certificate, key) = (file("ecdsa.pem"), file("ecdsa.key"));
    let error = |certificate: &[u8], key: &[u8]| Identity::from_pem(certificate, key).unwrap_err();
    assert!(matches!(error(b"", &key), IdentityError::NoCertificate));
    assert!(matches!(error(&key, &certificate), IdentityError::NoCertificate));
    assert!(matches!(error(&certificate[..200], &key), IdentityError::CertificatePem(_)));
    let damaged = String::from_utf8(certificate.clone()).unwrap().replacen("MII", "AAA", 1);
    assert!(matches!(error(damaged.as_bytes(), &key), IdentityError::Certificate(_)));
    assert!(matches!(error(&certificate, b"no key"), IdentityError::NoKey));
    assert!(matches!(error(&certificate, &certificate), IdentityError::NoKey));
    assert!(matches!(error(&certificate, &key[..60]), IdentityError::KeyPem));
    assert!(matches!(error(&certificate, &file("p521.key")), IdentityError::Key));
    assert!(matches!(error(&certificate, &file("rsa.key")), IdentityError::Mismatch));
    assert!(matches!(error(&certificate, &file("encrypted.key")), IdentityError::EncryptedKey));
    let old = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    assert!(matches!(error(&certificate, old), IdentityError::EncryptedKey));
    // A chain whose first is another's.
    let chain = [file("ca.pem"), certificate.clone()].concat();
    assert!(matches!(error(&chain, &key), IdentityError::Mismatch));
    let whole = [certificate.clone(), file("ca.pem")].concat();
    let whole = Identity::from_pem(&whole, &key).unwrap();
    assert_eq!(whole.not_after_unix_s(), Some(4_733_510_400));
    let expired = Identity::from_pem(&file("expired.pem"), &key).unwrap();
    assert_eq!(expired.not_after_unix_s(), Some(1_609_459_200));
    // Nothing of a key is shown.
    let secret = String::from_utf8(key.clone()).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    let shown = format!("{whole:?} {:?} {}", error(&certificate, &key[..60]), error(&certificate, &key[..60]));
    assert!(!shown.contains(&secret[..20]));
}
