//! The Unix socket beside the port, or in its place.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A listening Unix socket, whose file goes with it.
pub struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of its file: another server's file is not ours to remove.
    file: (u64, u64),
}

impl LocalSocket {
    /// Listens on `path`, whose file gets `mode` before anyone can connect. A file that an ended server has left is
    /// replaced; that of a server that runs, and any other file, is not.
    ///
    /// # Errors
    /// When the path is taken or can't be written.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        // The kernel takes the rings of a killed server down after its end, and its socket only then.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = remove_stale(path) {
            if error.kind() != io::ErrorKind::AddrInUse || Instant::now() >= deadline {
                return Err(error);
            }
            pause(ASKED_EVERY);
        }
        // Under another name first, so that no client gets in before the mode is set.
        let mut hidden = path.as_os_str().to_owned();
        hidden.push(format!(".{}", std::process::id()));
        let hidden = PathBuf::from(hidden);
        let _ = fs::remove_file(&hidden);
        let bound = UnixListener::bind(&hidden).and_then(|listener| {
            fs::set_permissions(&hidden, fs::Permissions::from_mode(mode))?;
            let metadata = fs::symlink_metadata(&hidden)?;
            fs::rename(&hidden, path)?;
            Ok(Self { listener, path: path.to_owned(), file: (metadata.dev(), metadata.ino()) })
        });
        if bound.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&hidden);
        }
        bound
    }

    /// Another descriptor of it, to accept clients by.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn listener(&self) -> io::Result<OwnedFd> {
        self.listener.try_clone().map(OwnedFd::from)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if ours {
            // One that stays behind is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "no shard runs yet")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Makes room where nobody listens any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    let taken = |message| Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => return taken("a file that is no socket is there"),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => taken("a server listens there"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// How long a socket may stay with a server that was killed.
const PATIENCE: Duration = Duration::from_secs(1);
const ASKED_EVERY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("bitnetd-listen-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            // A folder that is left over harms nobody.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_socket_has_its_mode_and_its_file_goes_with_it() {
        let folder = Folder::new("mode");
        let path = folder.0.join("s");
        let socket = LocalSocket::bind(&path, 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert!(UnixStream::connect(&path).is_ok());
        let files = || fs::read_dir(&folder.0).unwrap().count();
        assert_eq!((socket.path(), files()), (&*path, 1));
        drop(socket);
        assert_eq!(files(), 0);
    }

    #[test]
    fn only_what_an_ended_server_left_is_replaced() {
        let folder = Folder::new("stale");
        let path = folder.0.join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the file");
        let socket = LocalSocket::bind(&path, 0o600).unwrap();
        let error = LocalSocket::bind(&path, 0o600).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(UnixStream::connect(&path).is_ok());
        // Another server's file is not removed with ours.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
        drop(other);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(LocalSocket::bind(&path, 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(LocalSocket::bind(&folder.0.join("no/s"), 0o600).is_err());
    }
}
