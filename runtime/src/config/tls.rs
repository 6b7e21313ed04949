//! Settings of TLS.

use super::{Error, Settings, invalid};
use crate::certificate::TlsFiles;

impl Settings {
    /// Certificate and key, of a server that has a port or not.
    pub(super) fn tls(&self, has_port: bool) -> Result<Option<TlsFiles>, Error> {
        let (certificate, key) = match (&self.tls_cert, &self.tls_key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => return Err(invalid("tls_key", "", "the file of the key of `tls_cert`")),
            (None, Some(_)) => return Err(invalid("tls_cert", "", "the file of the certificate of `tls_key`")),
        };
        if !has_port {
            let allowed = "none without a port: the Unix socket, whose file says who may, has no TLS";
            return Err(invalid("tls_cert", &certificate.display().to_string(), allowed));
        }
        Ok(Some(TlsFiles { certificate: certificate.clone(), key: key.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_and_key_come_together_and_with_a_port() {
        let (certificate, key) = (Some("/c".into()), Some("/k".into()));
        let both = Settings { tls_cert: certificate.clone(), tls_key: key.clone(), ..Settings::default() };
        let files = Some(TlsFiles { certificate: "/c".into(), key: "/k".into() });
        assert_eq!(both.clone().validate().unwrap().tls, files);
        assert_eq!(Settings::default().validate().unwrap().tls, None);
        let error = |settings: Settings| settings.validate().unwrap_err().to_string();
        let one = error(Settings { tls_cert: certificate, ..Settings::default() });
        assert_eq!(one, "`tls_key` is ``, allowed are the file of the key of `tls_cert`");
        assert!(error(Settings { tls_key: key, ..Settings::default() }).starts_with("`tls_cert`"));
        let local = Settings { listen_unix: Some("/s".into()), ..both };
        assert!(error(local.clone()).contains("`tls_cert` is `/c`") && error(local.clone()).contains("without a port"));
        assert_eq!(Settings { port: Some(1), ..local }.validate().unwrap().tls, files);
    }
}
