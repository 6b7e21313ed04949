//! Reports of big files that have not changed since: told apart by device, inode, size and times.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::InspectOptions;
use crate::model::TILES_FILE;

/// The place of one report in the cache.
pub(super) struct Place(PathBuf);

impl Place {
    /// Where the report of the file at `path` is or would be, as it is now; `None` where it is made in no time.
    pub(super) fn of(folder: &Path, path: &Path, options: InspectOptions) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        if file.len() < FILE_BYTES_MIN {
            return None;
        }
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(env!("CARGO_PKG_VERSION").as_bytes());
        add(path.as_os_str().as_encoded_bytes());
        add(&identity(&file));
        // What lies beside says how TL1 and TL2 are to be read.
        add(&fs::metadata(path.with_file_name(TILES_FILE)).map_or_else(|_| Vec::new(), |tiles| identity(&tiles)));
        add(&[options.json, options.strict, options.tensors, options.colour].map(u8::from));
        let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Self(folder.join("inspect").join(name)))
    }

    /// Text and exit code.
    pub(super) fn find(&self) -> Option<(String, u8)> {
        let kept = fs::read_to_string(&self.0).ok()?;
        let (code, text) = kept.split_once('\n')?;
        Some((text.to_owned(), code.parse().ok()?))
    }

    /// Keeps a report. Where that is not possible, the next one is made anew.
    pub(super) fn keep(&self, text: &str, code: u8) {
        let folder = self.0.parent().expect("a place lies in a folder");
        let partial = self.0.with_extension(std::process::id().to_string());
        let written = fs::create_dir_all(folder)
            .and_then(|()| fs::write(&partial, format!("{code}\n{text}")))
            .and_then(|()| fs::rename(&partial, &self.0));
        if written.is_ok() {
            forget_oldest(folder);
        }
    }
}

fn identity(file: &Metadata) -> Vec<u8> {
    let times = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()].map(i64::cast_unsigned);
    let numbers = [file.dev(), file.ino(), file.size()];
    numbers.iter().chain(&times).flat_map(|number| number.to_le_bytes()).collect()
}

fn forget_oldest(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let age = |entry: &fs::DirEntry| entry.metadata().and_then(|metadata| metadata.modified()).ok();
    let mut entries: Vec<_> = entries.flatten().map(|entry| (age(&entry), entry.path())).collect();
    entries.sort();
    for (_, path) in entries.iter().take(entries.len().saturating_sub(REPORTS_MAX)) {
        // What stays is one report more.
        let _ = fs::remove_file(path);
    }
}

/// Smaller files are read and hashed in a tenth of a second.
const FILE_BYTES_MIN: u64 = 64 << 20;
const REPORTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_found_until_the_file_or_what_lies_beside_it_changes() {
        let folder = std::env::temp_dir().join(format!("bitnetd-inspect-cache-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("m.gguf");
        let set_len = |bytes| fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let place = |options| Place::of(&folder, &file, options);
        let plain = InspectOptions::default();
        set_len(FILE_BYTES_MIN - 1);
        assert!(place(plain).is_none());
        set_len(FILE_BYTES_MIN);
        assert!(place(plain).unwrap().find().is_none());
        place(plain).unwrap().keep("two\nlines\n", 3);
        assert_eq!(place(plain).unwrap().find(), Some(("two\nlines\n".to_owned(), 3)));
        assert!(place(InspectOptions { json: true, ..plain }).unwrap().find().is_none());
        fs::write(folder.join(TILES_FILE), "").unwrap();
        assert!(place(plain).unwrap().find().is_none());
        fs::remove_file(folder.join(TILES_FILE)).unwrap();
        assert!(place(plain).unwrap().find().is_some());
        set_len(FILE_BYTES_MIN + 1);
        assert!(place(plain).unwrap().find().is_none());
        for number in 0..2 * REPORTS_MAX {
            Place(folder.join("inspect").join(number.to_string())).keep("", 0);
        }
        assert_eq!(fs::read_dir(folder.join("inspect")).unwrap().count(), REPORTS_MAX);
        fs::remove_dir_all(&folder).unwrap();
    }
}
