//! Certificate and key of TLS, read from their files at the start and whenever the configuration is read again.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use net::tls::{Identity, IdentityError};

use crate::log::{info, warning};

/// Where certificate and key are, both as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why there is no TLS by these files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("TLS: can't read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("TLS: {path} has more than {PEM_BYTES_MAX} bytes")]
    TooLong { path: PathBuf },
    #[error("TLS by the certificate in {certificate} and the key in {key}: {source}")]
    Identity { certificate: PathBuf, key: PathBuf, source: IdentityError },
}

impl TlsFiles {
    /// Reads them, and says what is remarkable about them.
    ///
    /// # Errors
    /// When they can't be read, or are no certificate and key that belong together.
    pub fn read(&self) -> Result<Arc<Identity>, Error> {
        let (certificate, _) = read(&self.certificate)?;
        let (key, mode) = read(&self.key)?;
        let identity = Identity::from_pem(&certificate, &key).map_err(|source| Error::Identity {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })?;
        if mode & READABLE_BY_OTHERS != 0 {
            warning!("TLS: every user can read the key in {} (its mode is {mode:o})", self.key.display());
        }
        let certificate = self.certificate.display();
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match identity.not_after_unix_s() {
            Some(end) if end <= now_s => {
                warning!("TLS: the certificate in {certificate} ended on {}, clients will refuse it", date(end));
            }
            Some(end) => info!("TLS: the certificate in {certificate} holds until {}", date(end)),
            None => warning!("TLS: the certificate in {certificate} doesn't say until when it holds"),
        }
        Ok(Arc::new(identity))
    }
}

/// A file, and its permissions.
fn read(path: &Path) -> Result<(Vec<u8>, u32), Error> {
    let fail = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(fail)?;
    let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o7777;
    let mut bytes = Vec::new();
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(Error::TooLong { path: path.to_owned() });
    }
    Ok((bytes, mode))
}

fn date(unix_s: u64) -> String {
    let mut out = Vec::new();
    net::date::write_http_date(&mut out, unix_s);
    String::from_utf8_lossy(&out).into_owned()
}

/// Far more than the longest chains have.
const PEM_BYTES_MAX: u64 = 1 << 20;
const READABLE_BY_OTHERS: u32 = 0o004;
