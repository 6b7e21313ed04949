//! Which files may be loaded on request: those below the allowed directories, whatever links say.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use net::error::{ApiError, Code};

use crate::model::{Reading, Source};

/// Directories that models may be loaded from, links resolved.
#[derive(Clone, Debug, Default)]
pub struct AllowedDirectories(Vec<PathBuf>);

impl AllowedDirectories {
    /// Resolves the links of `directories`.
    ///
    /// # Errors
    /// The first that is no directory, and why.
    pub fn new(directories: &[PathBuf]) -> Result<Self, (PathBuf, std::io::Error)> {
        let resolve = |path: &PathBuf| {
            let real = path.canonicalize().map_err(|error| (path.clone(), error))?;
            if real.is_dir() { Ok(real) } else { Err((path.clone(), std::io::ErrorKind::NotADirectory.into())) }
        };
        directories.iter().map(resolve).collect::<Result<_, _>>().map(Self)
    }

    /// Opens the model file at `path`, and says where it really lies.
    ///
    /// # Errors
    /// 400 for a path that is not absolute or climbs, 403 for one outside, 404 where there is no file.
    pub fn open(&self, path: &str, field: &'static str) -> Result<(Source, PathBuf), ApiError> {
        let asked = Path::new(path);
        if !asked.is_absolute() || asked.components().any(|part| matches!(part, Component::ParentDir)) {
            return Err(ApiError::validation(field, "must be an absolute path without `..`"));
        }
        let outside = || {
            let message = format!("`{field}` lies outside the allowed model directories");
            ApiError::new(403, Code::AuthorizationFailed, message).with_param(field)
        };
        let missing = |error: std::io::Error| {
            ApiError::new(404, Code::ModelNotFound, format!("`{field}` can't be opened: {error}")).with_param(field)
        };
        // What exists elsewhere is nobody's business.
        let holds = |path: &Path| self.0.iter().any(|directory| path.starts_with(directory));
        let parent = asked.parent().and_then(|parent| parent.canonicalize().ok());
        if !holds(asked) && !parent.as_deref().is_some_and(holds) {
            return Err(outside());
        }
        let real = asked.canonicalize().map_err(missing)?;
        if !holds(&real) {
            return Err(outside());
        }
        // A pipe must not hold up the opening, and a link that was put here meanwhile is not followed.
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&real).map_err(missing)?;
        let opened = opened_path(&file).map_err(missing)?;
        if !holds(&opened) {
            return Err(outside());
        }
        let metadata = file.metadata().map_err(missing)?;
        if !metadata.is_file() {
            return Err(ApiError::validation(field, "names no regular file"));
        }
        let (bytes, path) = (metadata.len(), opened.clone());
        Ok((Source::File { bytes, file, path, reading: Reading::Auto }, opened))
    }
}

/// Where an open file lies now.
fn opened_path(file: &File) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_files_that_really_lie_below_an_allowed_directory_open() {
        let root = std::env::temp_dir().join(format!("bitnetd-paths-{}", std::process::id()));
        let (allowed, secret) = (root.join("allowed"), root.join("secret"));
        fs::create_dir_all(allowed.join("sub")).unwrap();
        fs::create_dir_all(&secret).unwrap();
        fs::write(allowed.join("sub/a.gguf"), b"a").unwrap();
        fs::write(secret.join("b.gguf"), b"b").unwrap();
        symlink(secret.join("b.gguf"), allowed.join("link.gguf")).unwrap();
        symlink(&secret, allowed.join("way")).unwrap();
        symlink(allowed.join("sub/a.gguf"), allowed.join("inner.gguf")).unwrap();
        symlink(&allowed, root.join("alias")).unwrap();
        let fifo = allowed.join("pipe").display().to_string();
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let directories = AllowedDirectories::new(std::slice::from_ref(&allowed)).unwrap();
        let status = |path: &Path| {
            directories.open(&path.display().to_string(), "model_path").map_or_else(|error| error.status, |_| 200)
        };
        for (path, wanted) in [
            (allowed.join("sub/a.gguf"), 200),
            (allowed.join("inner.gguf"), 200),
            (root.join("alias/sub/a.gguf"), 200),
            (allowed.join("none.gguf"), 404),
            (allowed.join("sub"), 400),
            (fifo.into(), 400),
            (allowed.join("link.gguf"), 403),
            (allowed.join("way/b.gguf"), 403),
            (secret.join("b.gguf"), 403),
            (secret.join("none.gguf"), 403),
            (allowed.join("../secret/b.gguf"), 400),
            ("a.gguf".into(), 400),
            (root.join("allowed-not/a.gguf"), 403),
        ] {
            assert_eq!(status(&path), wanted, "{}", path.display());
        }
        let none = AllowedDirectories::default();
        assert_eq!(none.open("/etc/passwd", "model_path").err().map(|error| error.status), Some(403));
        assert!(AllowedDirectories::new(&[allowed.join("sub/a.gguf")]).is_err());
        fs::remove_dir_all(&root).unwrap();
    }
}
