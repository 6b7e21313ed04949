//! Settings of who may do what: keys, proxies that are believed, pages of other origins.

use net::auth::{Keys, Secret};
use net::cors::{NoOrigin, Origins};
use net::forwarded::Proxies;

use super::{Error, invalid};

pub(super) fn parse_keys(api_keys: &[String], jwt_secret: Option<&str>) -> Result<Keys, Error> {
    // A text that is no key may be a key in clear, so it is not repeated.
    let parse = |text: &String| text.parse().map_err(|error| invalid("api_keys", "...", &format!("keys: {error}")));
    let jwt = jwt_secret
        .map(|secret| Secret::new(secret).map_err(|error| invalid("jwt_secret", "...", &format!("secrets: {error}"))));
    Ok(Keys { api_keys: api_keys.iter().map(parse).collect::<Result<_, _>>()?, jwt: jwt.transpose()? })
}

pub(super) fn parse_proxies(texts: &[String]) -> Result<Proxies, Error> {
    Proxies::parse(texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty())).map_err(|(text, _)| {
        invalid("trusted_proxies", text, "ADDRESS or ADDRESS/PREFIX with nothing behind the prefix")
    })
}

pub(super) fn parse_origins(texts: &[String]) -> Result<Origins, Error> {
    let refused = |(text, reason): (&str, NoOrigin)| invalid("allowed_origins", text, &format!("origins: {reason}"));
    Origins::parse(texts.iter().map(String::as_str)).map_err(refused)
}

pub(super) fn require_authentication(wanted: Option<bool>, keys: &Keys) -> Result<bool, Error> {
    match wanted.unwrap_or(false) {
        true if keys.is_empty() => {
            Err(invalid("require_authentication", "true", "false without `api_keys` and `jwt_secret`"))
        }
        wanted => Ok(wanted),
    }
}
