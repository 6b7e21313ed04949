//! API keys: what a client presents is hashed and compared with the hashes that the operator configured, all of them
//! every time.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::error::{ApiError, Code};
use crate::http::Request;

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Models, their state, receipts.
    ModelRead,
    /// Loading models.
    ModelWrite,
    /// Swapping and removing models.
    ModelManage,
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ModelRead => "model:read",
            Self::ModelWrite => "model:write",
            Self::ModelManage => "model:manage",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A configured key, written `NAME=SHA256:SCOPE,SCOPE`; the hash is 64 hexadecimal digits of the key's SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    pub name: String,
    hash: [u8; 32],
    scopes: u8,
}

/// Why a text is no key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a key is written NAME=SHA256:SCOPE,SCOPE with 64 hexadecimal digits and scopes model:read, model:write and model:manage"
)]
pub struct NoKey;

impl FromStr for Key {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let (name, rest) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or(NoKey)?;
        let (hash, scopes) = rest.split_once(':').ok_or(NoKey)?;
        let hash = parse_sha256(hash).ok_or(NoKey)?;
        let mut bits = 0;
        for scope in scopes.split(',') {
            let known = [Scope::ModelRead, Scope::ModelWrite, Scope::ModelManage];
            bits |= known.into_iter().find(|known| known.as_str() == scope.trim()).ok_or(NoKey)?.bit();
        }
        Ok(Self { name: name.to_owned(), hash, scopes: bits })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

/// 64 hexadecimal digits as bytes.
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != hash.len() || !rest.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    for (out, pair) in hash.iter_mut().zip(pairs) {
        *out = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(hash)
}

/// Whether `request` carries one of `keys`, and one with `scope` where that is asked for.
///
/// # Errors
/// 401 without a key or with an unknown one, 403 where the key lacks the scope.
pub fn check(keys: &[Key], request: &Request, scope: Option<Scope>) -> Result<(), ApiError> {
    let mut presented = request.headers().filter_map(|(name, value)| credential(name, value));
    let Some(secret) = presented.next() else {
        return Err(unauthenticated("an API key is needed: Authorization: Bearer KEY"));
    };
    if presented.next().is_some() {
        return Err(unauthenticated("more than one API key was sent"));
    }
    let hash: [u8; 32] = Sha256::digest(secret).into();
    let mut scopes = None;
    for key in keys {
        let difference = key.hash.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b));
        if difference == 0 {
            scopes = Some(key.scopes);
        }
    }
    let scopes = scopes.ok_or_else(|| unauthenticated("the API key is not known"))?;
    match scope {
        Some(scope) if scopes & scope.bit() == 0 => Err(ApiError::new(
            403,
            Code::AuthorizationFailed,
            format!("the API key lacks the scope {}", scope.as_str()),
        )),
        _ => Ok(()),
    }
}

/// 403 for endpoints that need a key where none is configured.
pub fn off() -> ApiError {
    let message = "this endpoint is off: no API key with its scope is configured";
    ApiError::new(403, Code::AuthorizationFailed, message)
}

fn unauthenticated(message: &'static str) -> ApiError {
    ApiError::new(401, Code::AuthenticationRequired, message)
}

fn credential<'r>(name: &str, value: &'r [u8]) -> Option<&'r [u8]> {
    if name.eq_ignore_ascii_case("x-api-key") {
        return Some(value);
    }
    if !name.eq_ignore_ascii_case("authorization") {
        return None;
    }
    let (scheme, rest) = value.split_at_checked("Bearer ".len())?;
    Some(if scheme.eq_ignore_ascii_case(b"Bearer ") { rest.trim_ascii() } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Connection, Limits};

    // printf %s secret | sha256sum
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn request(headers: &str) -> Request {
        let mut connection = Connection::new(Limits::default());
        connection.receive(format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n").as_bytes()).unwrap();
        connection.next().unwrap().unwrap()
    }

    fn refusal(headers: &str, scope: Option<Scope>) -> (u16, &'static str) {
        let keys = [format!("ops={SECRET}:model:read,model:write").parse().unwrap()];
        check(&keys, &request(headers), scope).map_or_else(|e| (e.status, e.code.as_str()), |()| (200, ""))
    }

    #[test]
    fn a_known_key_passes_with_its_scopes_only() {
        for header in ["Authorization: Bearer secret\r\n", "authorization: bearer  secret\r\n", "X-API-Key: secret\r\n"]
        {
            assert_eq!(refusal(header, None).0, 200, "{header}");
            assert_eq!(refusal(header, Some(Scope::ModelWrite)).0, 200);
            assert_eq!(refusal(header, Some(Scope::ModelManage)), (403, "AUTHORIZATION_FAILED"));
        }
    }

    #[test]
    fn anything_else_is_401() {
        let twice = "Authorization: Bearer secret\r\nX-API-Key: secret\r\n";
        for header in
            ["", "Authorization: Bearer Secret\r\n", "Authorization: Basic secret\r\n", "X-API-Key:\r\n", twice]
        {
            assert_eq!(refusal(header, None), (401, "AUTHENTICATION_REQUIRED"), "{header}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let short = &SECRET[1..];
        for text in [
            "",
            SECRET,
            &format!("={SECRET}:model:read"),
            &format!("a={SECRET}"),
            &format!("a={SECRET}:"),
            &format!("a={SECRET}:model:all"),
            &format!("a={short}:model:read"),
            &format!("a={short}g:model:read"),
        ] {
            assert_eq!(text.parse::<Key>(), Err(NoKey), "{text}");
        }
    }
}
