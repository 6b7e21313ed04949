//! The address of the server under load.
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use super::Error;

/// `http://host[:port][/prefix]`, or the same with `https`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) is_secure: bool,
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
        let usual = if self.is_secure { 443 } else { 80 };
        let with_port = match self.host() == self.authority {
            true => format!("{}:{usual}", self.authority),
            false => self.authority.clone(),
        };
        let mut addresses = with_port.to_socket_addrs().map_err(failed)?;
        addresses.next().ok_or_else(|| failed(std::io::ErrorKind::AddrNotAvailable.into()))
    }

    /// Name or address without the port.
    pub(crate) fn host(&self) -> &str {
        match self.authority.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => host,
            _ => &self.authority,
        }
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (is_secure, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("url does not start with http:// or https://".to_owned()),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let clean = |part: &str| part.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.is_empty() || !clean(authority) || !clean(path) {
            return Err("url has no host, or characters that a url cannot have".to_owned());
        }
        let path = path.trim_end_matches('/');
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { is_secure, authority: authority.to_owned(), prefix })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.prefix)
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
        let url: Url = "https://127.0.0.1/v1".parse().unwrap();
        assert_eq!(
            (url.resolve().unwrap().port(), url.host(), url.to_string()),
            (443, "127.0.0.1", "https://127.0.0.1/v1".into())
        );
        assert_eq!("https://[::1]:8443".parse::<Url>().unwrap().host(), "[::1]");
    }

    #[test]
    fn other_urls_are_refused() {
        for text in ["ftp://x", "x:80", "http://", "http:///v1", "http://a b"] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }
}
