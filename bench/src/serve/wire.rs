//! The way to the server under load: a socket, and TLS over it where the url says https.
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::epoll;

/// Where the server is, and as whom it must show itself.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    address: SocketAddr,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// A connection to it.
#[derive(Debug)]
pub(crate) enum Wire {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Place {
    pub(crate) fn clear(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    /// One whose certificate is for `host` and signed by an authority of that PEM file. Connections are resumed by tickets.
    ///
    /// # Errors
    /// When the file can't be read or has no certificate, or the host has no name that a certificate can have.
    pub(crate) fn secure(address: SocketAddr, host: &str, authorities: &Path) -> Result<Self, String> {
        let say = |error: &dyn std::fmt::Display| format!("{}: {error}", authorities.display());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authorities).map_err(|error| say(&error))? {
            roots.add(certificate.map_err(|error| say(&error))?).map_err(|error| say(&error))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| say(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|error| format!("{host}: {error}"))?;
        Ok(Self { address, tls: Some((Arc::new(config), name)) })
    }

    /// Begins to connect, and never blocks.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open(&self) -> io::Result<Wire> {
        self.wire(epoll::connect(&self.address)?)
    }

    /// Connects, and blocks for `timeout` at most, here and later.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn connect(&self, timeout: Duration) -> io::Result<Wire> {
        let socket = TcpStream::connect_timeout(&self.address, timeout)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        self.wire(socket)
    }

    fn wire(&self, socket: TcpStream) -> io::Result<Wire> {
        let Some((config, name)) = &self.tls else { return Ok(Wire::Clear(socket)) };
        let connection = ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?;
        Ok(Wire::Tls(Box::new(StreamOwned::new(connection, socket))))
    }
}

impl Wire {
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Clear(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
