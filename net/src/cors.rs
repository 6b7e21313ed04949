//! Which web pages may use the server from a browser: CORS as the Fetch standard has it. No answer ever allows
//! credentials of the browser; keys that a page sends itself are a matter of [`crate::auth`].

use std::net::Ipv6Addr;

use crate::error::{ApiError, Code};
use crate::http::{Method, Request, is_host, is_token};

/// The origins that were configured. Without any, nothing is answered about origins and other sites may change nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins {
    any: bool,
    listed: Box<[Box<str>]>,
}

/// Why a text is no origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoOrigin {
    #[error("`*` stands alone: it allows every origin")]
    NotAlone,
    #[error("`null` is what any sandboxed page calls itself")]
    Null,
    #[error("an origin is written SCHEME://HOST or SCHEME://HOST:PORT, without wildcard, path or `/` at the end")]
    Malformed,
}

impl Origins {
    /// Reads origins as they are configured: `*` alone, or each with scheme, host and, unless it is the scheme's own, port.
    ///
    /// # Errors
    /// The first text that is no origin, with the reason.
    pub fn parse<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, (&'t str, NoOrigin)> {
        let mut origins = Self::default();
        let mut listed = Vec::new();
        let mut last = "";
        for text in texts.into_iter().map(str::trim).filter(|text| !text.is_empty()) {
            last = text;
            match text {
                "*" => origins.any = true,
                _ => listed.push(normal_form(text).map_err(|reason| (text, reason))?.into_boxed_str()),
            }
        }
        if origins.any && !listed.is_empty() {
            return Err((last, NoOrigin::NotAlone));
        }
        origins.listed = listed.into();
        Ok(origins)
    }

    /// Whether none is configured.
    pub fn is_off(&self) -> bool {
        !self.any && self.listed.is_empty()
    }

    /// Puts into `request` what every answer to it says about its origin, errors included.
    pub fn mark(&self, request: &mut Request) {
        if self.is_off() {
            return;
        }
        if !self.any {
            request.add_answer_field("Vary", "Origin");
        }
        let Some(origin) = origin(request).filter(|origin| self.allow(origin)) else { return };
        let allowed = if self.any { "*" } else { origin }.to_owned();
        request.add_answer_field("Access-Control-Allow-Origin", &allowed);
        request.add_answer_field("Access-Control-Expose-Headers", EXPOSED);
    }

    /// Puts into `request`, an OPTIONS that a browser may have sent ahead of another, which of `allow` (the methods of
    /// its path) and which fields that other one may have.
    pub fn mark_preflight(&self, request: &mut Request, allow: &str) {
        let asks = request.header("access-control-request-method").is_some();
        if self.is_off() || !asks {
            return;
        }
        request.add_answer_field("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers");
        if !origin(request).is_some_and(|origin| self.allow(origin)) {
            return;
        }
        request.add_answer_field("Access-Control-Allow-Methods", allow);
        let wanted = request.header_str("access-control-request-headers").filter(|wanted| is_list_of_names(wanted));
        if let Some(wanted) = wanted.map(str::to_owned) {
            request.add_answer_field("Access-Control-Allow-Headers", &wanted);
        }
        request.add_answer_field("Access-Control-Max-Age", MAX_AGE_SECONDS);
    }

    /// Refuses what the page of another site wants done. Such a page can't read the answer, yet it would be computed:
    /// a browser asks beforehand only where the request is not a plain one.
    ///
    /// # Errors
    /// 403 where the browser says that the request is another site's, and its origin is not allowed.
    pub fn check(&self, request: &Request) -> Result<(), ApiError> {
        let harmless = matches!(request.method(), Method::Get | Method::Head | Method::Options);
        let from_elsewhere =
            request.header("sec-fetch-site").is_some_and(|site| site == b"cross-site" || site == b"same-site");
        if harmless || !from_elsewhere {
            return Ok(());
        }
        match origin(request) {
            Some(origin) if self.allow(origin) => Ok(()),
            origin => {
                let origin = origin.unwrap_or("null");
                let message = format!("pages of origin `{origin:.128}` may not use this server: see allowed_origins");
                Err(ApiError::new(403, Code::AuthorizationFailed, message))
            }
        }
    }

    fn allow(&self, origin: &str) -> bool {
        self.any || self.listed.iter().any(|listed| **listed == *origin)
    }
}

/// The origin that `request` names, if it names one.
fn origin(request: &Request) -> Option<&str> {
    let mut named = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case("origin"));
    let (_, origin) = named.next()?;
    // More than one is nothing that a browser sends.
    if named.next().is_some() { None } else { str::from_utf8(origin).ok() }
}

/// An origin as browsers write it: lower case, and no port where it is the scheme's own.
fn normal_form(text: &str) -> Result<String, NoOrigin> {
    if text == "null" {
        return Err(NoOrigin::Null);
    }
    let text = text.to_ascii_lowercase();
    let (scheme, authority) = text.split_once("://").ok_or(NoOrigin::Malformed)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(plain) {
        return Err(NoOrigin::Malformed);
    }
    if !is_host(authority.as_bytes()) || authority.contains(['*', '%']) {
        return Err(NoOrigin::Malformed);
    }
    let host_end = authority.rfind(']').map_or(0, |end| end + 1);
    let (host, port) = match authority[host_end..].split_once(':') {
        Some((rest, port)) => (&authority[..host_end + rest.len()], Some(port)),
        None => (authority, None),
    };
    let port = port.map(|port| port.parse::<u16>().map_err(|_| NoOrigin::Malformed)).transpose()?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(literal) => {
            let address: Ipv6Addr = literal.parse().map_err(|_| NoOrigin::Malformed)?;
            format!("[{address}]")
        }
        None if host.is_empty() => return Err(NoOrigin::Malformed),
        None => host.to_owned(),
    };
    Ok(match port {
        Some(port) if !matches!((scheme, port), ("http", 80) | ("https", 443)) => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    })
}

fn is_list_of_names(text: &str) -> bool {
    text.split(',').map(str::trim).all(|name| !name.is_empty() && name.bytes().all(is_token))
}

/// Fields of an answer that a page may read beyond those that it always may.
const EXPOSED: &str =
    "x-request-id, Retry-After, retry-after-ms, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset";
/// How long a browser need not ask again; some take no more than two hours.
const MAX_AGE_SECONDS: &str = "7200";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Connection, Limits};

    fn request(method: &str, fields: &str) -> Request {
        let mut connection = Connection::new(Limits::default());
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        connection.receive(format!("{method} / HTTP/1.1\r\nHost: a\r\n{length}{fields}\r\n").as_bytes()).unwrap();
        connection.next().unwrap().unwrap()
    }

    fn marks(origins: &Origins, method: &str, fields: &str) -> String {
        let mut request = request(method, fields);
        origins.mark(&mut request);
        if method == "OPTIONS" {
            origins.mark_preflight(&mut request, "POST, OPTIONS");
        }
        String::from_utf8(request.answer_fields().to_vec()).unwrap()
    }

    fn listed() -> Origins {
        Origins::parse(["https://a.example", "http://[::1]:3000"]).unwrap()
    }

    #[test]
    fn what_is_no_origin_is_refused_with_the_reason() {
        for text in [
            "a.example",
            "https:a.example",
            "https://",
            "https://a.example/",
            "https://a.example/page",
            "https://*.example",
            "https://user@a.example",
            "https://a.example:",
            "https://a.example:99999",
            "https://a.example:x",
            "https://a example",
            "https://a.example,https://b.example",
            "https://ä.example",
            "https://[::1",
            "https://[1.2]",
            "1http://a",
            "http://a\r\nx: y",
        ] {
            assert_eq!(Origins::parse([text]), Err((text, NoOrigin::Malformed)), "{text:?}");
        }
        assert_eq!(Origins::parse(["null"]), Err(("null", NoOrigin::Null)));
        assert_eq!(Origins::parse(["*", "https://a.example"]), Err(("https://a.example", NoOrigin::NotAlone)));
        assert!(Origins::parse([""]).unwrap().is_off() && Origins::parse([]).unwrap().is_off());
    }

    #[test]
    fn origins_are_kept_as_browsers_write_them() {
        for (text, kept) in [
            ("HTTPS://A.Example:443", "https://a.example"),
            ("http://a.example:80", "http://a.example"),
            ("https://a.example:80", "https://a.example:80"),
            (" http://localhost:3000 ", "http://localhost:3000"),
            ("http://[0:0::1]:8080", "http://[::1]:8080"),
            ("http://[::1]", "http://[::1]"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ] {
            assert_eq!(*Origins::parse([text]).unwrap().listed, [Box::from(kept)], "{text}");
        }
    }

    #[test]
    fn only_an_origin_that_is_listed_exactly_may_read() {
        let allowed = "Access-Control-Allow-Origin: https://a.example\r\n";
        assert!(marks(&listed(), "GET", "Origin: https://a.example\r\n").contains(allowed));
        for origin in [
            "",
            "Origin: http://a.example\r\n",
            "Origin: https://a.example:8443\r\n",
            "Origin: https://a.example.evil\r\n",
            "Origin: https://evil.a.example\r\n",
            "Origin: https://a.example/\r\n",
            "Origin: HTTPS://a.example\r\n",
            "Origin: null\r\n",
            "Origin: *\r\n",
            "Origin: \r\n",
            "Origin: https://a.example\r\nOrigin: https://a.example\r\n",
        ] {
            assert_eq!(marks(&listed(), "GET", origin), "Vary: Origin\r\n", "{origin}");
            assert_eq!(marks(&Origins::default(), "GET", origin), "", "{origin}");
        }
    }

    #[test]
    fn every_origin_may_read_only_where_that_is_written_and_never_with_credentials() {
        let any = Origins::parse(["*"]).unwrap();
        let got = marks(&any, "OPTIONS", "Origin: null\r\nAccess-Control-Request-Method: POST\r\n");
        assert!(got.contains("Access-Control-Allow-Origin: *\r\n"), "{got}");
        assert!(!got.to_ascii_lowercase().contains("credentials"), "{got}");
    }

    #[test]
    fn a_preflight_names_methods_fields_and_how_long_that_holds() {
        let ask =
            "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,x-stainless-os\r\n";
        let got = marks(&listed(), "OPTIONS", &format!("Origin: http://[::1]:3000\r\n{ask}"));
        for field in [
            "Access-Control-Allow-Origin: http://[::1]:3000\r\n",
            "Access-Control-Allow-Methods: POST, OPTIONS\r\n",
            "Access-Control-Allow-Headers: authorization,x-stainless-os\r\n",
            "Access-Control-Max-Age: 7200\r\n",
            "Vary: Origin\r\n",
        ] {
            assert!(got.contains(field), "{field} is not in {got}");
        }
        let unlisted = marks(&listed(), "OPTIONS", &format!("Origin: https://b.example\r\n{ask}"));
        assert!(!unlisted.contains("Access-Control-Allow"), "{unlisted}");
        let plain = marks(&listed(), "OPTIONS", "Origin: https://a.example\r\n");
        assert!(!plain.contains("Access-Control-Allow-Methods"), "{plain}");
        for wanted in ["a b", "a;b", "a,,b", "", "\u{e4}"] {
            let ask = format!("Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: {wanted}\r\n");
            let got = marks(&listed(), "OPTIONS", &format!("Origin: https://a.example\r\n{ask}"));
            assert!(!got.contains("Allow-Headers"), "{wanted}: {got}");
        }
    }

    #[test]
    fn other_sites_pages_may_have_nothing_done() {
        let status = |origins: &Origins, method: &str, fields: &str| {
            origins.check(&request(method, fields)).map_err(|error| error.status)
        };
        let off = Origins::default();
        for site in ["cross-site", "same-site"] {
            let fields = format!("Sec-Fetch-Site: {site}\r\nOrigin: https://b.example\r\n");
            assert_eq!(status(&off, "POST", &fields), Err(403));
            assert_eq!(status(&listed(), "DELETE", &fields), Err(403));
            assert_eq!(status(&listed(), "POST", &fields.replace("b.example", "a.example")), Ok(()));
            assert_eq!(status(&off, "GET", &fields), Ok(()), "following a link is no harm");
            assert_eq!(status(&off, "POST", &format!("Sec-Fetch-Site: {site}\r\n")), Err(403));
        }
        // Its own page, also behind a proxy that changes Host, and whatever is no browser.
        assert_eq!(status(&off, "POST", "Sec-Fetch-Site: same-origin\r\nOrigin: https://chat.example\r\n"), Ok(()));
        assert_eq!(status(&off, "POST", "Origin: https://b.example\r\n"), Ok(()));
    }
}
