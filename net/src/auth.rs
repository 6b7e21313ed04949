//! API keys and tokens. A key that a client presents is hashed and compared with the hashes that the operator configured,
//! all of them every time; a token must be signed with the operator's secret.

mod jwt;

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::error::{ApiError, Code};
use crate::http::Request;

pub use jwt::{NoSecret, Secret};

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

/// Some of the scopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScopeSet(u8);

impl ScopeSet {
    /// Whether `scope` is among them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

/// Everything that opens endpoints.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    pub api_keys: Vec<Key>,
    /// Tokens signed with it are taken.
    pub jwt: Option<Secret>,
}

impl Keys {
    /// Whether nothing is configured.
    pub fn is_empty(&self) -> bool {
        self.api_keys.is_empty() && self.jwt.is_none()
    }
}

impl Scope {
    pub(crate) const ALL: [Self; 3] = [Self::ModelRead, Self::ModelWrite, Self::ModelManage];

    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }

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
    scopes: ScopeSet,
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
        let scopes = scopes.split(',').map(|scope| Scope::by_name(scope.trim()).ok_or(NoKey));
        Ok(Self { name: name.to_owned(), hash, scopes: scopes.collect::<Result<_, _>>()? })
    }
}

impl Key {
    /// A number that stays with the key whatever others are configured; two have the same by chance alone.
    pub fn fingerprint(&self) -> u32 {
        u32::from_le_bytes([self.hash[0], self.hash[1], self.hash[2], self.hash[3]])
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

/// Whether `request` carries one of `keys` or a token, and one with `scope` where that is asked for. `unix_s` is now.
///
/// # Errors
/// 401 without a key or with an unknown one, or with a token that opens nothing; 403 where the scope is lacking.
pub fn check(keys: &Keys, request: &Request, scope: Option<Scope>, unix_s: u64) -> Result<(), ApiError> {
    let mut presented = request.headers().filter_map(|(name, value)| credential(name, value));
    let Some(secret) = presented.next() else {
        return Err(unauthenticated("an API key or a token is needed: Authorization: Bearer KEY"));
    };
    if presented.next().is_some() {
        return Err(unauthenticated("more than one API key was sent"));
    }
    let scopes = match (position(&keys.api_keys, secret), &keys.jwt) {
        (Some(index), _) => keys.api_keys[index].scopes,
        (None, Some(jwt)) => jwt.scopes(secret, unix_s).map_err(|refused| unauthenticated(refused.to_string()))?,
        (None, None) => return Err(unauthenticated("the API key is not known")),
    };
    match scope {
        Some(scope) if !scopes.has(scope) => Err(ApiError::new(
            403,
            Code::AuthorizationFailed,
            format!("the API key or token lacks the scope {}", scope.as_str()),
        )),
        _ => Ok(()),
    }
}

/// Which of `keys` the request carries, if it is one.
pub fn find<'k>(keys: &'k [Key], request: &Request) -> Option<&'k Key> {
    let secret = request.headers().find_map(|(name, value)| credential(name, value))?;
    position(keys, secret).map(|index| &keys[index])
}

fn position(keys: &[Key], secret: &[u8]) -> Option<usize> {
    let hash: [u8; 32] = Sha256::digest(secret).into();
    let mut found = None;
    for (index, key) in keys.iter().enumerate() {
        let difference = key.hash.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b));
        if difference == 0 {
            found = Some(index);
        }
    }
    found
}

/// 403 for endpoints that need a key where none is configured.
pub fn off() -> ApiError {
    let message = "this endpoint is off: no API key or token secret is configured";
    ApiError::new(403, Code::AuthorizationFailed, message)
}

fn unauthenticated(message: impl Into<std::borrow::Cow<'static, str>>) -> ApiError {
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
        let api_keys = vec![format!("ops={SECRET}:model:read,model:write").parse().unwrap()];
        let keys = Keys { api_keys, jwt: Some(Secret::new(jwt::tests::SECRET).unwrap()) };
        check(&keys, &request(headers), scope, 1000).map_or_else(|e| (e.status, e.code.as_str()), |()| (200, ""))
    }

    #[test]
    fn a_token_opens_what_its_scopes_say() {
        let token = |claims: &str| jwt::tests::signed(jwt::tests::HS256, claims, jwt::tests::SECRET);
        let bearer = |claims: &str| format!("Authorization: Bearer {}\r\n", token(claims));
        let reads = bearer(r#"{"exp":2000,"scope":"model:read"}"#);
        assert_eq!(refusal(&reads, Some(Scope::ModelRead)).0, 200);
        assert_eq!(refusal(&reads, None).0, 200);
        assert_eq!(refusal(&reads, Some(Scope::ModelWrite)), (403, "AUTHORIZATION_FAILED"));
        let expired = bearer(r#"{"exp":900,"scope":"model:read"}"#);
        assert_eq!(refusal(&expired, None), (401, "AUTHENTICATION_REQUIRED"));
        // A key keeps its own scopes beside.
        assert_eq!(refusal("Authorization: Bearer secret\r\n", Some(Scope::ModelWrite)).0, 200);
        let keys = Keys { api_keys: vec![format!("a={SECRET}:model:read").parse().unwrap()], jwt: None };
        let error = check(&keys, &request(&reads), None, 1000).unwrap_err();
        assert_eq!((error.status, &*error.message), (401, "the API key is not known"));
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
