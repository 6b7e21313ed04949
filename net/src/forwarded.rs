//! Whom a request comes from behind proxies: X-Forwarded-For and Forwarded (RFC 7239), as far as those who wrote them are known.

use std::net::{IpAddr, SocketAddr};

use crate::http::Request;

/// The networks of proxies whose word is taken for whom they speak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies(Vec<Network>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    /// As IPv6; IPv4 ones are mapped.
    bits: u128,
    prefix: u32,
}

/// It is no ADDRESS or ADDRESS/PREFIX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoNetwork;

impl Proxies {
    /// # Errors
    /// The index of the first text that is no network.
    pub fn parse<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, (&'t str, NoNetwork)> {
        let networks = texts.into_iter().map(|text| Network::parse(text).ok_or((text, NoNetwork)));
        networks.collect::<Result<_, _>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The address that `request` comes from, which `peer` has sent: that of the peer, unless it is a proxy; else the last
    /// address in the fields that is none. What is no address ends the search, since nobody knows who wrote what stands before.
    /// A proxy writes one of the two fields and may let the other pass as its client sent it: where they differ, neither counts.
    pub fn client_of(&self, peer: IpAddr, request: &Request) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.has(peer) {
            return peer;
        }
        let older = self.client_by(peer, request, "x-forwarded-for", |hop| Some(hop));
        let newer = self.client_by(peer, request, "forwarded", forwarded_for);
        match (older, newer) {
            (Some(older), Some(newer)) if older != newer => peer,
            (older, newer) => older.or(newer).unwrap_or(peer),
        }
    }

    /// What the fields of one name say; `None` where there are none.
    fn client_by(
        &self,
        peer: IpAddr,
        request: &Request,
        name: &str,
        hop_of: fn(&str) -> Option<&str>,
    ) -> Option<IpAddr> {
        let fields = request.headers().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        let fields: Vec<&[u8]> = fields.map(|(_, value)| value).collect();
        if fields.is_empty() {
            return None;
        }
        let mut client = peer;
        for value in fields.into_iter().rev() {
            let Ok(value) = str::from_utf8(value) else { return Some(client) };
            for hop in value.rsplit(',') {
                let Some(address) = hop_of(hop).and_then(address) else { return Some(client) };
                client = address;
                if !self.has(client) {
                    return Some(client);
                }
            }
        }
        Some(client)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.has(address))
    }
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
            None => width,
        };
        let network = Self { bits: bits(address), prefix: 128 - width + prefix };
        // Bits behind the prefix are a slip of the pen.
        (prefix <= width && network.bits & !network.mask() == 0).then_some(network)
    }

    fn mask(self) -> u128 {
        u128::MAX.checked_shl(128 - self.prefix).unwrap_or(0)
    }

    fn has(self, address: IpAddr) -> bool {
        bits(address) & self.mask() == self.bits
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The value of `for` in one element of Forwarded.
fn forwarded_for(element: &str) -> Option<&str> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    let value = value.trim();
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// An address with or without a port, of IPv6 with or without brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Connection, Limits};

    fn client(proxies: &str, peer: &str, fields: &str) -> String {
        let mut connection = Connection::new(Limits::default());
        connection.receive(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).unwrap();
        let request = connection.next().unwrap().unwrap();
        let proxies = Proxies::parse(proxies.split(' ').filter(|text| !text.is_empty())).unwrap();
        proxies.client_of(peer.parse().unwrap(), &request).to_string()
    }

    #[test]
    fn only_the_word_of_known_proxies_counts() {
        let forged = "X-Forwarded-For: 1.2.3.4\r\n";
        assert_eq!(client("", "9.9.9.9", forged), "9.9.9.9");
        assert_eq!(client("10.0.0.0/8", "9.9.9.9", forged), "9.9.9.9");
        assert_eq!(client("10.0.0.0/8", "10.1.2.3", forged), "1.2.3.4");
        assert_eq!(client("10.0.0.0/8", "::ffff:10.1.2.3", forged), "1.2.3.4");
        // What a client wrote itself stands left of what the proxy adds.
        assert_eq!(client("10.0.0.1", "10.0.0.1", "X-Forwarded-For: 1.2.3.4, 5.6.7.8\r\n"), "5.6.7.8");
        let fields = "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8, 10.0.0.2\r\n";
        assert_eq!(client("10.0.0.0/30", "10.0.0.1", fields), "5.6.7.8");
        assert_eq!(client("10.0.0.0/30 5.6.7.8", "10.0.0.1", fields), "1.2.3.4");
        assert_eq!(client("::/0 0.0.0.0/0", "10.0.0.1", fields), "1.2.3.4", "all are proxies: the first");
        assert_eq!(client("10.0.0.1", "10.0.0.1", ""), "10.0.0.1");
    }

    #[test]
    fn what_is_no_address_ends_the_search() {
        for value in ["unknown", "", "1.2.3.4, ", "1.2.3.4, evil", "1.2.3.4, 10.0.0.300", "1.2.3.4;5.6.7.8"] {
            assert_eq!(client("10.0.0.1", "10.0.0.1", &format!("X-Forwarded-For: {value}\r\n")), "10.0.0.1", "{value}");
        }
        assert_eq!(client("10.0.0.1", "10.0.0.1", "X-Forwarded-For: [2001:db8::1]:80\r\n"), "2001:db8::1");
        assert_eq!(client("10.0.0.1", "10.0.0.1", "X-Forwarded-For: 2001:db8::1\r\n"), "2001:db8::1");
        assert_eq!(client("10.0.0.1", "10.0.0.1", "X-Forwarded-For: 5.6.7.8:1234\r\n"), "5.6.7.8");
    }

    #[test]
    fn a_field_that_the_proxy_lets_pass_gives_nobody_a_new_name() {
        let of = |fields| client("10.0.0.1", "10.0.0.1", fields);
        assert_eq!(of("Forwarded: for=2.2.2.2, For=\"[2001:db8::7]:4711\";proto=https\r\n"), "2001:db8::7");
        assert_eq!(of("X-Forwarded-For: 1.1.1.1\r\nForwarded: for=2.2.2.2\r\n"), "10.0.0.1");
        assert_eq!(of("X-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\n"), "1.1.1.1");
        assert_eq!(of("Forwarded: by=3.3.3.3;for=_hidden\r\n"), "10.0.0.1");
        assert_eq!(of("Forwarded: proto=http\r\n"), "10.0.0.1");
    }

    #[test]
    fn networks_are_checked() {
        for text in ["10.0.0.0/33", "10.0.0.1/8", "::1/129", "a", "10.0.0.0/", "10.0.0.0/+8", "10.0.0", ""] {
            assert!(Proxies::parse([text]).is_err(), "{text}");
        }
        assert!(Proxies::parse(["10.0.0.0/8", "fd00::/8", "127.0.0.1"]).is_ok());
    }
}
