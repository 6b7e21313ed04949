//! By which certificate and key a server is known, and on which terms it speaks TLS.

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{Error, InconsistentKeys, ServerConfig};

use super::Session;
use super::validity::not_after;

/// A certificate with its key, and the keys of the tickets by which its clients come back.
///
/// Tickets are good for 12 hours; what seals them changes every 6, and with every identity, so that who comes back after a
/// change of certificate is shown the new one.
#[derive(Debug)]
pub struct Identity {
    config: Arc<ServerConfig>,
    not_after_unix_s: Option<u64>,
}

/// Why two files are no identity. Nothing of the key is repeated.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the certificate's file has no `BEGIN CERTIFICATE`")]
    NoCertificate,
    #[error("the certificate's file is no PEM: {0}")]
    CertificatePem(pem::Error),
    #[error("the certificate can't be read: {0}")]
    Certificate(Error),
    #[error("the key's file has no `BEGIN PRIVATE KEY`")]
    NoKey,
    #[error(
        "the key is encrypted, and nobody is there to give its password; `openssl pkey -in KEY` writes it in clear"
    )]
    EncryptedKey,
    #[error("the key's file is no PEM")]
    KeyPem,
    #[error("the key is none that can be used: RSA of 2048 to 8192 bits, ECDSA on P-256 or P-384, or Ed25519")]
    Key,
    #[error("the key is not that of the certificate, which must be the first of its file")]
    Mismatch,
    #[error("tickets have no keys: {0}")]
    Tickets(Error),
}

impl Identity {
    /// The identity of a chain of certificates, its own first, and a key, both as PEM.
    ///
    /// # Errors
    /// What is wrong with either, or with both together.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let chain = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(IdentityError::CertificatePem)?;
        let first = chain.first().ok_or(IdentityError::NoCertificate)?;
        let not_after_unix_s = not_after(first);
        let provider = Arc::new(ring::default_provider());
        let key = provider.key_provider.load_private_key(parse_key(key)?).map_err(|_| IdentityError::Key)?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(Error::InconsistentKeys(_)) => return Err(IdentityError::Mismatch),
            Err(error) => return Err(IdentityError::Certificate(error)),
        }
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("the provider has suites of both")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Sessions are with the clients, in tickets: nothing that a flood of them could fill, or shards would share.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().map_err(IdentityError::Tickets)?;
        Ok(Self { config: Arc::new(config), not_after_unix_s })
    }

    /// When the certificate ends, in Unix time; `None` where it doesn't say that as it should.
    #[must_use]
    pub fn not_after_unix_s(&self) -> Option<u64> {
        self.not_after_unix_s
    }

    /// The session of a client that has just connected.
    ///
    /// # Panics
    /// Never: only a limit of record sizes could be wrong, and none is set.
    #[must_use]
    pub fn session(&self) -> Session {
        Session::new(Arc::clone(&self.config)).expect("no limit of record sizes is set")
    }
}

fn parse_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let has = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(IdentityError::EncryptedKey);
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => IdentityError::NoKey,
        _ => IdentityError::KeyPem,
    })
}
