//! Whom a request comes from, as fairness among clients counts: an API key, else an address.

use std::mem::ManuallyDrop;
use std::net::{IpAddr, TcpStream};
use std::os::fd::{FromRawFd, RawFd};

use net::auth;
use net::http::Request;

use super::Shard;
use super::peer::Peer;
use crate::schedule::ClientId;

/// The client of a request that came over `peer`.
pub(super) fn client_of(shard: &Shard, peer: &Peer, request: &Request) -> ClientId {
    let terms = shard.terms();
    let keys = &terms.keys.api_keys;
    let key = if keys.is_empty() { None } else { auth::find(keys, request) };
    match key {
        Some(key) => ClientId(u64::from(key.fingerprint())),
        None => {
            let address = *peer.address.get_or_init(|| address(peer.fd));
            address.map_or(NOBODY, |address| client_at(shard.config.proxies.client_of(address, request)))
        }
    }
}

#[expect(unsafe_code, reason = "the standard library asks through a socket that it owns")]
fn address(fd: RawFd) -> Option<IpAddr> {
    // SAFETY: the connection keeps the descriptor open, and this socket is never dropped.
    let socket = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(fd) });
    Some(socket.peer_addr().ok()?.ip().to_canonical())
}

/// Whoever has a network of IPv6 addresses has all of them.
fn client_at(address: IpAddr) -> ClientId {
    match address {
        IpAddr::V4(address) => ClientId(u64::from(address.to_bits()) + ADDRESSES_START),
        IpAddr::V6(address) => ClientId((address.to_bits() >> 64) as u64 ^ ADDRESSES_START),
    }
}

const NOBODY: ClientId = ClientId(ADDRESSES_START - 1);
/// Above the fingerprints of keys.
const ADDRESSES_START: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let client = |text: &str| client_at(text.parse().unwrap());
        assert_ne!(client("127.0.0.1"), client("127.0.0.2"));
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:1"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_ne!(client("::1"), client("0.0.0.1"));
    }

    #[test]
    fn a_socket_knows_its_address_and_stays_open() {
        use std::os::fd::AsRawFd;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for _ in 0..2 {
            assert_eq!(address(stream.as_raw_fd()), Some(IpAddr::from([127, 0, 0, 1])));
        }
    }
}
