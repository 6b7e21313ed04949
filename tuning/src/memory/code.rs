//! The pages of the program's own file and of the C library's.
#![expect(unsafe_code, reason = "pages of this process are taken out of its page tables")]
use std::io;
use std::path::Path;
use std::ptr::NonNull;

use super::syscalls::{self, Range};

/// Takes code and constants of the program and its C library out of its memory: only the start has run most of these
/// megabytes, and an embedded model is read once. What is used again comes back from the page cache at the next touch, 16
/// pages at a time. How many bytes of them were resident.
///
/// # Errors
/// The kernel's, and where it does not tell what is mapped.
pub fn give_back_program() -> io::Result<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/self/smaps"))?;
    let here: fn() -> io::Result<u64> = give_back_program;
    let mut bytes = 0;
    for mapping in unchanged_mappings_of(&text, &[here as usize, libc::malloc as *const () as usize]) {
        let start = NonNull::new(std::ptr::with_exposed_provenance_mut(mapping.start)).expect("code is never at 0");
        // SAFETY: both files are mapped there for as long as the program runs, and no page differs from theirs, so that the next
        // touch finds the same bytes.
        unsafe { syscalls::discard(Range { start, bytes: mapping.end - mapping.start }) }?;
        bytes += mapping.resident_bytes;
    }
    Ok(bytes)
}

/// A line of `smaps` and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    end: usize,
    resident_bytes: u64,
}

/// The mappings of the files that `addresses` are of which nobody may write and no page is a copy: relocated tables and pages
/// with a debugger's breakpoints are.
fn unchanged_mappings_of(smaps: &str, addresses: &[usize]) -> Vec<Mapping> {
    let mut all: Vec<(Mapping, &str, bool)> = Vec::new();
    for line in smaps.lines() {
        let mut fields = line.split_whitespace();
        let Some(first) = fields.next() else { continue };
        if let Some((start, end)) = range(first) {
            let kind = fields.next().unwrap_or_default();
            // Behind offset, device and inode.
            let file = fields.nth(3).unwrap_or_default();
            all.push((Mapping { start, end, resident_bytes: 0 }, file, kind.starts_with("r-") && kind.ends_with('p')));
        } else if let (Some((mapping, _, unchanged)), Some(kib)) =
            (all.last_mut(), fields.next().and_then(|kib| kib.parse::<u64>().ok()))
        {
            match first {
                "Rss:" => mapping.resident_bytes = kib << 10,
                "Anonymous:" => *unchanged &= kib == 0,
                _ => {}
            }
        }
    }
    let holds_one = |mapping: &Mapping| addresses.iter().any(|at| (mapping.start..mapping.end).contains(at));
    let held = all.iter().filter(|(mapping, file, _)| file.starts_with('/') && holds_one(mapping));
    let files: Vec<&str> = held.map(|(_, file, _)| *file).collect();
    all.into_iter().filter(|(_, file, same)| *same && files.contains(file)).map(|(mapping, ..)| mapping).collect()
}

/// `7f12-7f34` as numbers.
fn range(text: &str) -> Option<(usize, usize)> {
    let (start, end) = text.split_once('-')?;
    let parse = |text: &str| usize::from_str_radix(text, 16).ok();
    Some((parse(start)?, parse(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_the_file_is_given_back() {
        let mapping = |range: &str, kind: &str, file: &str, kib: [u64; 2]| {
            let [resident, anonymous] = kib;
            format!(
                "{range} {kind} 00000000 fe:00 77 {file}\nSize: 99 kB\nRss: {resident} kB\nAnonymous: {anonymous} kB\n\
                 VmFlags: rd mr\n"
            )
        };
        let (own, other) = ("/usr/bin/server", "/usr/lib/libc.so.6");
        let text = [
            mapping("1000-3000", "r--p", own, [8, 0]),
            mapping("3000-9000", "r-xp", own, [12, 0]),
            mapping("9000-a000", "r--p", own, [4, 4]),
            mapping("a000-b000", "rw-p", own, [4, 0]),
            mapping("b000-c000", "rw-p", "", [4, 4]),
            mapping("c000-d000", "r-xp", other, [4, 0]),
            mapping("d000-e000", "r--s", own, [4, 0]),
        ]
        .concat();
        let found = |address| unchanged_mappings_of(&text, &[address]);
        let kept = [(0x1000, 0x3000, 8 << 10), (0x3000, 0x9000, 12 << 10)];
        let kept = kept.map(|(start, end, resident_bytes)| Mapping { start, end, resident_bytes });
        assert_eq!(found(0x3000), kept);
        assert_eq!(found(0x8fff), kept);
        // Memory that is no file's has no name; an address that nothing holds finds nothing.
        assert_eq!((found(0xb000), found(0x10000)), (vec![], vec![]));
        assert_eq!(unchanged_mappings_of(&text, &[0x8fff, 0xc000]).len(), 3);
        assert_eq!(unchanged_mappings_of("rubbish\n-\n12-34\nRss: many kB\n", &[0x20]), []);
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        static CONSTANTS: [u8; 1 << 16] = [3; 1 << 16];
        let before = sum(std::hint::black_box(&CONSTANTS));
        let bytes = give_back_program().unwrap();
        // A page at least: this very code.
        assert!(bytes >= 4096, "{bytes}");
        assert_eq!(sum(std::hint::black_box(&CONSTANTS)), before);
    }
}
