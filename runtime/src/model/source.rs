//! Where the bytes of a model file come from: the binary itself or a file that is read, never mapped.
//!
//! A file is read into owned memory, since one that is cut under a mapping would kill the process.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gguf::Gguf;
use gguf::ternary::{INI_BYTES_MAX, TileTable};

use super::{Error, Reading};

/// The bytes of a model file.
pub enum Source {
    /// Part of the binary.
    Embedded(&'static [u8]),
    /// An open file of that many bytes.
    File { file: File, bytes: u64, path: PathBuf, reading: Reading },
}

impl Source {
    /// The model that is part of the binary.
    #[must_use]
    pub fn embedded() -> Self {
        Self::Embedded(DEFAULT_MODEL)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// When it can't be opened or is no regular file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::Io { what: path.display().to_string(), source };
        // A pipe must not hold up the opening.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(fail(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file")));
        }
        Ok(Self::File { bytes: metadata.len(), file, path: path.to_owned(), reading: Reading::Auto })
    }

    /// The same, to be read in this way; the model that is part of the binary is there already.
    #[must_use]
    pub fn read_by(self, wanted: Reading) -> Self {
        match self {
            Self::Embedded(bytes) => Self::Embedded(bytes),
            Self::File { file, bytes, path, .. } => Self::File { file, bytes, path, reading: wanted },
        }
    }

    /// Size of the whole file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Embedded(bytes) => bytes.len() as u64,
            Self::File { bytes, .. } => *bytes,
        }
    }

    /// The front of the file, long enough for its header, metadata and tensor table.
    ///
    /// # Errors
    /// When it can't be read or is malformed.
    pub fn header(&self) -> Result<Vec<u8>, Error> {
        let mut header = Vec::new();
        let mut wanted = HEADER_FIRST_BYTES.min(self.bytes());
        loop {
            let start = header.len();
            let length = usize::try_from(wanted).map_err(|_| Error::BadShape("the header is too long".into()))?;
            header.resize(length, 0);
            self.read_at(start as u64, &mut header[start..])?;
            match Gguf::parse(&header, self.bytes()) {
                Ok(_) => return Ok(header),
                Err(gguf::Error::NeedMore { at_least }) if wanted < self.bytes() => {
                    wanted = at_least.max(wanted * 2).min(self.bytes());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Fills `out` from byte `offset` on.
    ///
    /// # Errors
    /// When the file can't be read or ends before.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::Embedded(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let part = bytes.get(start..).and_then(|rest| rest.get(..out.len()));
                let part = part.ok_or_else(|| Error::Io {
                    what: "the embedded model".into(),
                    source: std::io::ErrorKind::UnexpectedEof.into(),
                })?;
                out.copy_from_slice(part);
                Ok(())
            }
            Self::File { file, path, .. } => {
                file.read_exact_at(out, offset).map_err(|source| Error::Io { what: path.display().to_string(), source })
            }
        }
    }

    /// The tile sizes in [`TILES_FILE`] beside the file, `None` where there is no such file.
    ///
    /// # Errors
    /// When it can't be read or means nothing.
    pub fn tiles_beside(&self) -> Result<Option<TileTable>, Error> {
        let Self::File { path, .. } = self else { return Ok(None) };
        let path = path.with_file_name(TILES_FILE);
        let fail = |source| Error::Io { what: path.display().to_string(), source };
        let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let mut text = String::new();
        file.take(INI_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(fail)?;
        let table = TileTable::parse_ini(&text);
        table.map(Some).map_err(|source| Error::Tiles { what: path.display().to_string(), source })
    }
}

/// bitnetd-tiny: a 42 M parameter BitNet b1.58 model trained for this project (docs/MODEL_CARD.md).
static DEFAULT_MODEL: &[u8] = include_bytes!("../../assets/bitnetd-tiny-i2_s.gguf");

/// Where bitnet.cpp writes the tile sizes of TL1 and TL2.
pub const TILES_FILE: &str = "kernel_config.ini";
/// Holds the header of most models in one read.
const HEADER_FIRST_BYTES: u64 = 1 << 20;
