//! Settings of traces for an OpenTelemetry collector.

use net::api::percent_decode;

use super::{Error, Settings, invalid, within};
use crate::otlp::{Headers, OtlpConfig};

impl Settings {
    /// Fills what is unset from the variable that programs share for it.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
    pub fn or_shared_environment(self) -> Self {
        let endpoint = || std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        Self { otlp_endpoint: self.otlp_endpoint.or_else(endpoint), ..self }
    }

    /// Where traces go; `None` where no endpoint is set.
    pub(super) fn otlp(&self) -> Result<Option<OtlpConfig>, Error> {
        let sample_ratio = within("otlp_sample_ratio", self.otlp_sample_ratio.unwrap_or(1.0), 0.0, 1.0)?;
        let headers = parse_headers(self.otlp_headers.as_deref().unwrap_or_default())?;
        let Some(text) = self.otlp_endpoint.as_deref().map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let endpoint = text.parse().map_err(|allowed: crate::otlp::NoEndpoint| {
            invalid("otlp_endpoint", text, &format!("endpoints of the form {allowed}"))
        })?;
        let service_name = self.otlp_service_name.clone().filter(|name| !name.is_empty());
        let service_name = service_name.unwrap_or_else(|| "bitnetd".to_owned());
        Ok(Some(OtlpConfig { endpoint, headers, service_name, sample_ratio }))
    }
}

/// NAME=VALUE, several parted by `,`, values percent-encoded. What is wrong is not repeated: it may be a secret.
fn parse_headers(text: &str) -> Result<Headers, Error> {
    let wrong = || invalid("otlp_headers", "...", "NAME=VALUE,NAME=VALUE, with values percent-encoded");
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let headers = parts.map(|part| {
        let (name, value) = part.split_once('=').ok_or_else(wrong)?;
        let (name, value) = (name.trim(), percent_decode(value.trim()).ok_or_else(wrong)?);
        let token = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if token && value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            Ok((name.to_owned(), value.into_owned()))
        } else {
            Err(wrong())
        }
    });
    headers.collect::<Result<_, _>>().map(Headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_off_without_an_endpoint_and_tls_is_refused() {
        let with = |endpoint: &str| Settings { otlp_endpoint: Some(endpoint.into()), ..Settings::default() };
        assert!(Settings::default().validate().unwrap().otlp.is_none() && with("").validate().unwrap().otlp.is_none());
        let otlp = with("http://localhost:4318").validate().unwrap().otlp.unwrap();
        assert_eq!((otlp.service_name.as_str(), otlp.sample_ratio), ("bitnetd", 1.0));
        let error = with("https://collector:4318").validate().unwrap_err().to_string();
        assert!(error.contains("otlp_endpoint") && error.contains("TLS is not built in"), "{error}");
        assert!(with("collector:4317").validate().is_err());
        for ratio in [-0.1, 1.1, f64::NAN] {
            let settings = Settings { otlp_sample_ratio: Some(ratio), ..with("http://a") };
            assert!(settings.validate().unwrap_err().to_string().contains("otlp_sample_ratio"), "{ratio}");
        }
    }

    #[test]
    fn headers_are_decoded_and_never_shown() {
        let headers = |text: &str| parse_headers(text);
        let got = headers("api-key=se%20cret, x-tenant=a=b,").unwrap();
        assert_eq!(got.0, [("api-key".into(), "se cret".into()), ("x-tenant".into(), "a=b".into())]);
        assert!(!format!("{got:?}").contains("cret"));
        for text in ["hidden", "=hidden", "a b=hidden", "a=hidden%0d%0ax: y", "a=hidden%zz", "a=hidden\u{e4}"] {
            let error = headers(text).unwrap_err().to_string();
            assert!(error.contains("otlp_headers") && !error.contains("hidden"), "{text}: {error}");
        }
        let settings = Settings { otlp_headers: Some("api-key=hidden".into()), ..Settings::default() };
        assert!(!toml::to_string(&settings).unwrap().contains("hidden"));
    }
}
