//! JSON web tokens signed with HMAC-SHA256 (RFC 7519, RFC 7515): the only kind that is taken, whatever a token says.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use sha2::Sha256;

use super::{Scope, ScopeSet};
use crate::base64;

/// The shared secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Why a text is no secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret has at least {SECRET_BYTES_MIN} bytes (RFC 7518, section 3.2)")]
pub struct NoSecret;

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the token is no JSON web token")]
    Malformed,
    #[error("the token is not signed with HS256")]
    Algorithm,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has no time at which it expires")]
    NoExpiry,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is meant for others")]
    Audience,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    /// Extensions that a reader must understand.
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    nbf: Option<f64>,
    aud: Option<OneOrMany>,
    /// Scopes in one text, parted by spaces (RFC 8693).
    scope: Option<String>,
    scopes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Secret {
    /// # Errors
    /// For one that is too short.
    pub fn new(text: &str) -> Result<Self, NoSecret> {
        if text.len() < SECRET_BYTES_MIN { Err(NoSecret) } else { Ok(Self(text.as_bytes().to_vec())) }
    }

    /// The scopes of `token` at `unix_s`. Nothing of the claims is looked at before the signature is right.
    ///
    /// # Errors
    /// Why the token opens nothing.
    pub(super) fn scopes(&self, token: &[u8], unix_s: u64) -> Result<ScopeSet, Refused> {
        let mut parts = token.split(|&byte| byte == b'.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refused::Malformed);
        };
        let signed = &token[..header.len() + 1 + claims.len()];
        let header: Header = part(header)?;
        if header.alg != "HS256" || header.crit.is_some() {
            return Err(Refused::Algorithm);
        }
        if header.typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT") && !typ.eq_ignore_ascii_case("at+jwt")) {
            return Err(Refused::Malformed);
        }
        let signature = base64::decode_url(signature).ok_or(Refused::Malformed)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(signed);
        // In constant time.
        mac.verify_slice(&signature).map_err(|_| Refused::Signature)?;
        part::<Claims>(claims)?.scopes(unix_s)
    }
}

impl Claims {
    #[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^53")]
    fn scopes(self, unix_s: u64) -> Result<ScopeSet, Refused> {
        let now = unix_s as f64;
        match self.exp {
            None => return Err(Refused::NoExpiry),
            Some(exp) if now < exp + LEEWAY_S => {}
            Some(_) => return Err(Refused::Expired),
        }
        if self.nbf.is_some_and(|nbf| nbf > now + LEEWAY_S) {
            return Err(Refused::NotYet);
        }
        let ours = |aud: &OneOrMany| match aud {
            OneOrMany::One(one) => one == AUDIENCE,
            OneOrMany::Many(many) => many.iter().any(|one| one == AUDIENCE),
        };
        if self.aud.is_some_and(|aud| !ours(&aud)) {
            return Err(Refused::Audience);
        }
        let listed = self.scopes.unwrap_or_default();
        let spaced = self.scope.unwrap_or_default();
        // Others may be another service's.
        let known = listed.iter().map(String::as_str).chain(spaced.split(' ')).filter_map(Scope::by_name);
        Ok(known.collect())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

fn part<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, Refused> {
    let bytes = base64::decode_url(text).ok_or(Refused::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Refused::Malformed)
}

/// As long as the hash.
const SECRET_BYTES_MIN: usize = 32;
/// What the clocks of signer and server may differ by.
const LEEWAY_S: f64 = 30.0;
/// The name that a token's `aud` must hold, where it has one.
const AUDIENCE: &str = "bitnetd";

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::auth) const SECRET: &str = "a secret of more than 32 bytes, for tests";
    const NOW: u64 = 1_800_000_000;

    fn encode(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        base64::encode(&mut out, bytes);
        let text = String::from_utf8(out).unwrap();
        text.trim_end_matches('=').replace('+', "-").replace('/', "_")
    }

    /// A token over these texts, signed with `secret`.
    pub(in crate::auth) fn signed(header: &str, claims: &str, secret: &str) -> String {
        let text = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(text.as_bytes());
        format!("{text}.{}", encode(&mac.finalize().into_bytes()))
    }

    pub(in crate::auth) const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    fn scopes(token: &str) -> Result<Vec<Scope>, Refused> {
        let set = Secret::new(SECRET).unwrap().scopes(token.as_bytes(), NOW)?;
        Ok(Scope::ALL.into_iter().filter(|scope| set.has(*scope)).collect())
    }

    fn of_claims(claims: &str) -> Result<Vec<Scope>, Refused> {
        scopes(&signed(HS256, claims, SECRET))
    }

    #[test]
    fn the_example_of_the_rfc_has_its_signature() {
        // RFC 7515, appendix A.1.
        let key = base64::decode_url(
            b"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
        );
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt\
                     cGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let secret = Secret(key.unwrap());
        assert_eq!(secret.scopes(token.as_bytes(), 1_300_819_380 - 1), Ok(ScopeSet::default()));
        assert_eq!(secret.scopes(token.as_bytes(), 1_300_819_380 + 31), Err(Refused::Expired));
        let changed = token.replace("dBjf", "dBjg");
        assert_eq!(secret.scopes(changed.as_bytes(), 0), Err(Refused::Signature));
    }

    #[test]
    fn scopes_come_as_text_or_list_and_unknown_ones_open_nothing() {
        let both = r#"{"exp":1800000060,"scope":"model:read email","scopes":["model:manage","model:all"]}"#;
        assert_eq!(of_claims(both), Ok(vec![Scope::ModelRead, Scope::ModelManage]));
        assert_eq!(of_claims(r#"{"exp":1800000060.5}"#), Ok(vec![]));
    }

    #[test]
    fn times_and_audience_are_kept_to() {
        for (claims, refused) in [
            (r#"{"scope":"model:read"}"#, Refused::NoExpiry),
            (r#"{"exp":1799999970}"#, Refused::Expired),
            (r#"{"exp":-1e300}"#, Refused::Expired),
            (r#"{"exp":1800000060,"nbf":1800000031}"#, Refused::NotYet),
            (r#"{"exp":1800000060,"aud":"other"}"#, Refused::Audience),
            (r#"{"exp":1800000060,"aud":[]}"#, Refused::Audience),
            (r#"{"exp":"1800000060"}"#, Refused::Malformed),
            (r#"{"exp":1800000060,"exp":1900000000}"#, Refused::Malformed),
            (r#"{"exp":1e999}"#, Refused::Malformed),
            ("[]", Refused::Malformed),
            ("", Refused::Malformed),
        ] {
            assert_eq!(of_claims(claims), Err(refused), "{claims}");
        }
        for claims in [
            r#"{"exp":1799999971}"#,
            r#"{"exp":1800000060,"nbf":1800000030}"#,
            r#"{"exp":1800000060,"aud":"bitnetd"}"#,
            r#"{"exp":1800000060,"aud":["other","bitnetd"]}"#,
        ] {
            assert!(of_claims(claims).is_ok(), "{claims}");
        }
    }

    #[test]
    fn no_other_algorithm_is_taken() {
        let claims = r#"{"exp":1800000060,"scope":"model:manage"}"#;
        for alg in ["none", "None", "hs256", "HS384", "HS512", "RS256", "ES256", "EdDSA", ""] {
            let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
            assert_eq!(scopes(&signed(&header, claims, SECRET)), Err(Refused::Algorithm), "{alg}");
            let text = format!("{}.{}.", encode(header.as_bytes()), encode(claims.as_bytes()));
            assert_eq!(scopes(&text), Err(Refused::Algorithm), "{alg} without a signature");
        }
        for header in [r#"{"typ":"JWT"}"#, r#"{"alg":"HS256","alg":"none"}"#, r#"{"alg":"HS256","typ":"JWE"}"#, "{}"] {
            assert_eq!(scopes(&signed(header, claims, SECRET)), Err(Refused::Malformed), "{header}");
        }
        let critical = r#"{"alg":"HS256","crit":["exp"]}"#;
        assert_eq!(scopes(&signed(critical, claims, SECRET)), Err(Refused::Algorithm));
    }

    #[test]
    fn another_secret_and_every_changed_letter_are_refused() {
        let claims = r#"{"exp":1800000060,"scope":"model:manage"}"#;
        assert_eq!(scopes(&signed(HS256, claims, "another secret of more than 32 bytes!")), Err(Refused::Signature));
        let good = signed(HS256, claims, SECRET);
        assert!(scopes(&good).is_ok());
        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            assert!(scopes(str::from_utf8(&bad).unwrap()).is_err(), "{at}");
            assert!(scopes(&good[..at]).is_err(), "{at}");
        }
        assert!(scopes(&format!("{good}.")).is_err() && scopes(&format!("{good}=")).is_err());
    }

    #[test]
    fn a_short_secret_is_none() {
        assert_eq!(Secret::new(&"x".repeat(31)), Err(NoSecret));
        assert_eq!(format!("{:?}", Secret::new(&"x".repeat(32)).unwrap()), "Secret");
    }
}
