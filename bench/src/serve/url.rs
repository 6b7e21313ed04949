//! The address of the server under load.
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use super::Error;

/// `http://host[:port][/prefix]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    /// As the `Host` header carries it.
    pub(crate) authority: String,
    /// Put before each path; without a slash at its end.
    pub(crate) prefix: String,
}

impl Url {
    /// # Errors
    /// [`Error::Resolve`] if the host has no address.
    pub(crate) fn resolve(&self) -> Result<SocketAddr, Error> {
        let failed = |source| Error::Resolve { host: self.authority.clone(), source };
        let has_port = self.authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { self.authority.clone() } else { format!("{}:80", self.authority) };
        let mut addresses = with_port.to_socket_addrs().map_err(failed)?;
        addresses.next().ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").ok_or("url does not start with http://")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let clean = |part: &str| part.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.is_empty() || !clean(authority) || !clean(path) {
            return Err("url has no host, or characters that a url cannot have".to_owned());
        }
        let path = path.trim_end_matches('/');
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { authority: authority.to_owned(), prefix })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_apart() {
        let url: Url = "http://localhost:8080/api/".parse().unwrap();
        assert_eq!((url.authority.as_str(), url.prefix.as_str()), ("localhost:8080", "/api"));
        assert_eq!("http://[::1]:80".parse::<Url>().unwrap().resolve().unwrap(), "[::1]:80".parse().unwrap());
        assert_eq!("http://127.0.0.1".parse::<Url>().unwrap().resolve().unwrap().port(), 80);
    }

    #[test]
    fn other_urls_are_refused() {
        for text in ["https://x", "x:80", "http://", "http:///v1", "http://a b"] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }
}
