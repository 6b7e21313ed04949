//! Handcrafted bad files: each is refused with the error that names its fault, at once and without memory.

use std::time::{Duration, Instant};

use gguf::{Error, Gguf, Part, ShapeError};

const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U32: u32 = 4;
const F32: u32 = 0;

/// A file put together by hand, so that nothing in it need be right.
struct Raw {
    magic: [u8; 4],
    version: u32,
    tensor_count: Option<u64>,
    entry_count: Option<u64>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data_bytes: usize,
    alignment: usize,
}

fn raw() -> Raw {
    Raw {
        magic: *b"GGUF",
        version: 3,
        tensor_count: None,
        entry_count: None,
        entries: vec![],
        tensors: vec![],
        data_bytes: 0,
        alignment: 32,
    }
}

impl Raw {
    fn entry(mut self, key: &[u8], kind: u32, value: &[u8]) -> Self {
        self.entries.push([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    fn tensor(mut self, name: &[u8], dims: &[u64], kind: u32, offset: u64) -> Self {
        let mut entry = string(name);
        entry.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| entry.extend(dim.to_le_bytes()));
        entry.extend(kind.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data_bytes = bytes;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        bytes.extend(self.entries.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment) + self.data_bytes, 0);
        bytes
    }

    #[track_caller]
    fn refused(&self) -> Error {
        let bytes = self.bytes();
        let started = Instant::now();
        let error = Gguf::parse(&bytes, bytes.len() as u64).expect_err("a bad file was taken");
        assert!(started.elapsed() < Duration::from_millis(100), "took {:?}", started.elapsed());
        assert!(error.to_string().len() < 400, "{error}");
        error
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

fn name() -> String {
    "t".to_owned()
}

#[test]
fn the_builder_makes_good_files_too() {
    let good = raw().entry(b"k", U32, &[1, 0, 0, 0]).tensor(b"t", &[8, 2], F32, 0).data(64).bytes();
    assert_eq!(Gguf::parse(&good, good.len() as u64).unwrap().tensors()[0].bytes, 64);
}

#[test]
fn other_magic_is_refused() {
    assert_eq!(Raw { magic: *b"GGML", ..raw() }.refused(), Error::Magic { found: *b"GGML" });
    assert_eq!(Raw { magic: *b"FUGG", ..raw() }.refused(), Error::Magic { found: *b"FUGG" });
}

#[test]
fn other_versions_are_refused() {
    for version in [0, 1, 4, 1000, u32::MAX] {
        let error = Raw { version, ..raw() }.refused();
        assert_eq!(error, Error::Version { version });
        assert_eq!(error.is_unsupported(), version != 0);
    }
    assert_eq!(Raw { version: 3u32.swap_bytes(), ..raw() }.refused(), Error::BigEndian);
}

#[test]
fn counts_beyond_the_file_are_refused() {
    for count in [u64::MAX, u64::MAX / 33, 1 << 32, gguf::TENSOR_COUNT_MAX + 1] {
        assert_eq!(Raw { tensor_count: Some(count), ..raw() }.refused(), Error::TensorCount { count });
        assert_eq!(Raw { entry_count: Some(count), ..raw() }.refused(), Error::MetadataCount { count });
    }
    assert_eq!(
        Raw { tensor_count: Some(60_000), entry_count: Some(60_000), ..raw() }.refused(),
        Error::Counts { metadata: 60_000, tensors: 60_000, file_bytes: 32 }
    );
    assert!(matches!(
        Raw { tensor_count: Some(2), ..raw().tensor(b"t", &[8], F32, 0).data(64) }.refused(),
        Error::TensorNameLength { index: 1, bytes: 0 }
    ));
}

#[test]
fn bad_keys_are_refused() {
    assert_eq!(raw().entry(b"", U32, &[0; 4]).refused(), Error::KeyLength { index: 0, bytes: 0 });
    let long = vec![b'k'; 1 << 16];
    assert_eq!(raw().entry(&long, U32, &[0; 4]).refused(), Error::KeyLength { index: 0, bytes: 1 << 16 });
    assert_eq!(raw().entry(b"\xff\xfe", U32, &[0; 4]).refused(), Error::KeyUtf8 { index: 0 });
    assert_eq!(
        raw().entry(b"k", U32, &[0; 4]).entry(b"j", U32, &[0; 4]).entry(b"k", STRING, &string(b"v")).refused(),
        Error::DuplicateKey { key: "k".into() }
    );
    // The longest key allowed, twice: its error is still short.
    let longest = &long[1..];
    raw().entry(longest, U32, &[0; 4]).entry(longest, U32, &[0; 4]).refused();
}

#[test]
fn key_length_beyond_the_file_is_refused() {
    let mut bytes = raw().entry(b"k", U32, &[0; 4]).bytes();
    bytes[24..32].copy_from_slice(&60_000u64.to_le_bytes());
    let file_bytes = bytes.len() as u64;
    assert_eq!(
        Gguf::parse(&bytes, file_bytes).unwrap_err(),
        Error::Truncated { part: Part::Key(0), end_bytes: 60_032, file_bytes }
    );
}

#[test]
fn bad_value_types_are_refused() {
    for id in [13, 255, u32::MAX] {
        assert_eq!(raw().entry(b"k", id, &[0; 64]).refused(), Error::ValueType { key: "k".into(), id });
        let array = [&id.to_le_bytes()[..], &[0; 64]].concat();
        assert_eq!(raw().entry(b"k", ARRAY, &array).refused(), Error::ValueType { key: "k".into(), id });
    }
    assert_eq!(raw().entry(b"k", 7, &[2]).refused(), Error::BoolValue { key: "k".into(), found: 2 });
    let bools = [&7u32.to_le_bytes()[..], &3u64.to_le_bytes(), &[0, 1, 7]].concat();
    assert_eq!(raw().entry(b"k", ARRAY, &bools).refused(), Error::BoolValue { key: "k".into(), found: 7 });
}

#[test]
fn values_beyond_memory_are_refused() {
    for bytes in [u64::MAX, i64::MAX as u64, 1 << 40, 1000] {
        let error = raw().entry(b"k", STRING, &bytes.to_le_bytes()).refused();
        assert!(matches!(error, Error::Truncated { part: Part::Value(_), .. }), "{error}");
    }
    for kind in [0u32, 4, 8, 12] {
        for count in [u64::MAX, u64::MAX / 8 + 1, u64::MAX / 8, 1 << 61, 1 << 40, 1000] {
            let array = [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
            let error = raw().entry(b"k", ARRAY, &array).refused();
            assert!(matches!(error, Error::ArrayLength { count: found, .. } if found == count), "{error}");
        }
    }
    // Count right, a string in it too long.
    let strings = [&STRING.to_le_bytes()[..], &2u64.to_le_bytes(), &string(b"a"), &[0xff; 8]].concat();
    let error = raw().entry(b"k", ARRAY, &strings).data(64).refused();
    assert!(matches!(error, Error::Truncated { part: Part::Value(_), .. }), "{error}");
}

#[test]
fn arrays_of_arrays_are_refused_whatever_their_depth() {
    let nested = [ARRAY.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat().repeat(10_000);
    let error = raw().entry(b"k", ARRAY, &nested).refused();
    assert_eq!(error, Error::NestedArray { key: "k".into() });
    assert!(error.is_unsupported());
}

#[test]
fn bad_alignment_is_refused() {
    for found in [0u32, 1, 4, 24, 33, 1 << 21, 1 << 31, u32::MAX] {
        let error = raw().entry(b"general.alignment", U32, &found.to_le_bytes()).refused();
        assert_eq!(error, Error::Alignment { found: found.into() });
    }
    assert_eq!(
        raw().entry(b"general.alignment", 10, &32u64.to_le_bytes()).refused(),
        Error::AlignmentType { found: "u64" }
    );
    assert_eq!(
        raw().entry(b"general.alignment", STRING, &string(b"32")).refused(),
        Error::AlignmentType { found: "string" }
    );
}

#[test]
fn bad_tensor_names_are_refused() {
    let tensor = |name: &[u8]| raw().tensor(name, &[8], F32, 0).data(32);
    assert_eq!(tensor(b"").refused(), Error::TensorNameLength { index: 0, bytes: 0 });
    assert_eq!(tensor(&[b't'; 65]).refused(), Error::TensorNameLength { index: 0, bytes: 65 });
    assert_eq!(tensor(b"\xc3\x28").refused(), Error::TensorNameUtf8 { index: 0 });
    assert_eq!(
        tensor(b"t").tensor(b"u", &[8], F32, 32).tensor(b"t", &[8], F32, 64).data(96).refused(),
        Error::DuplicateTensor { name: name() }
    );
}

#[test]
fn bad_dimensions_are_refused() {
    let tensor = |dims: &[u64]| raw().tensor(b"t", dims, F32, 0).data(64).refused();
    let shape = |source| Error::Shape { name: name(), source };
    assert_eq!(tensor(&[]), Error::DimCount { name: name(), count: 0 });
    assert_eq!(tensor(&[1; 5]), Error::DimCount { name: name(), count: 5 });
    assert_eq!(tensor(&[0]), shape(ShapeError::ZeroDim { index: 0 }));
    assert_eq!(tensor(&[4, 0, 4]), shape(ShapeError::ZeroDim { index: 1 }));
    // Negative as i64; products that wrap to something small, to zero, and to exactly 2^63.
    assert_eq!(tensor(&[u64::MAX]), shape(ShapeError::ElementsOverflow));
    assert_eq!(tensor(&[(-8i64) as u64, 2]), shape(ShapeError::ElementsOverflow));
    assert_eq!(tensor(&[1 << 32, 1 << 32]), shape(ShapeError::ElementsOverflow));
    assert_eq!(tensor(&[(1 << 32) + 1, 1 << 32, 1, 1]), shape(ShapeError::ElementsOverflow));
    assert_eq!(tensor(&[1 << 16; 4]), shape(ShapeError::ElementsOverflow));
    assert_eq!(tensor(&[1 << 62, 2]), shape(ShapeError::ElementsOverflow));
}

#[test]
fn sizes_that_wrap_are_refused() {
    let shape = |source| Error::Shape { name: name(), source };
    let tensor = |dims: &[u64], kind| raw().tensor(b"t", dims, kind, 0).data(64).refused();
    // 2^62 f32 are 2^64 bytes.
    assert_eq!(tensor(&[1 << 62], F32), shape(ShapeError::BytesOverflow));
    assert_eq!(tensor(&[1 << 31, 1 << 31], F32), shape(ShapeError::BytesOverflow));
    // One element less, so that only padding, start or end wrap.
    let error = tensor(&[(1 << 62) - 1], F32);
    assert_eq!(error, Error::OffsetOverflow { name: name(), offset: 0 });
    for dims in [[(1 << 63) - 1, 1], [(1 << 63) - 256, 1], [1 << 53, 1 << 9], [256, (1 << 55) - 1]] {
        for kind in [0, 2, 8, 14, 34, 35, 36, 38, 39, 42] {
            tensor(&dims, kind);
        }
    }
}

#[test]
fn partial_blocks_are_refused() {
    for (kind, cols, block_elements) in [(2, 48, 32), (8, 31, 32), (14, 128, 256), (34, 255, 256), (35, 257, 256)] {
        assert_eq!(
            raw().tensor(b"t", &[cols, 256], kind, 0).data(1 << 16).refused(),
            Error::Shape { name: name(), source: ShapeError::PartialBlock { elements: cols, block_elements } }
        );
    }
    assert_eq!(
        raw().tensor(b"t", &[100, 2], 36, 0).data(1 << 10).refused(),
        Error::Shape { name: name(), source: ShapeError::PartialBlock { elements: 200, block_elements: 128 } }
    );
    assert_eq!(
        raw().tensor(b"t", &[128, 2], 39, 0).data(1 << 10).refused(),
        Error::Shape { name: name(), source: ShapeError::RowTooShort { kind: "TL2", cols: 128, cols_min: 256 } }
    );
}

#[test]
fn unknown_tensor_types_are_refused() {
    for id in [4, 5, 43, 1000, u32::MAX] {
        let error = raw().tensor(b"t", &[256], id, 0).data(1 << 10).refused();
        assert_eq!(error, Error::TensorType { name: name(), id });
        assert!(error.is_unsupported());
    }
}

#[test]
fn bad_offsets_are_refused() {
    let tensor = |offset| raw().tensor(b"t", &[8], F32, offset).data(64).refused();
    assert_eq!(tensor(4), Error::Misaligned { name: name(), offset: 4, alignment: 32 });
    assert_eq!(tensor(u64::MAX), Error::Misaligned { name: name(), offset: u64::MAX, alignment: 32 });
    assert_eq!(tensor(u64::MAX - 31), Error::OffsetOverflow { name: name(), offset: u64::MAX - 31 });
    assert_eq!(tensor(64), Error::TensorPastEnd { name: name(), end_bytes: 160, file_bytes: 128 });
    assert!(matches!(tensor(1 << 62), Error::TensorPastEnd { .. }));
}

#[test]
fn overlapping_tensors_are_refused() {
    let error =
        raw().tensor(b"u", &[8], F32, 96).tensor(b"s", &[8], F32, 32).tensor(b"t", &[9], F32, 0).data(128).refused();
    assert_eq!(error, Error::Overlap { first: name(), second: "s".into() });
    assert!(matches!(
        raw().tensor(b"s", &[8], F32, 0).tensor(b"t", &[8], F32, 0).data(64).refused(),
        Error::Overlap { .. }
    ));
}

#[test]
fn truncated_data_is_refused() {
    assert!(matches!(
        raw().tensor(b"t", &[8, 4], F32, 0).data(127).refused(),
        Error::TensorPastEnd { end_bytes: 224, file_bytes: 223, .. }
    ));
}

#[test]
fn tensors_at_another_alignment_than_stated_are_refused() {
    let file = raw()
        .entry(b"general.alignment", U32, &64u32.to_le_bytes())
        .tensor(b"s", &[8], F32, 0)
        .tensor(b"t", &[8], F32, 32)
        .data(128);
    assert_eq!(Raw { alignment: 64, ..file }.refused(), Error::Misaligned { name: name(), offset: 32, alignment: 64 });
}

#[test]
fn header_beyond_its_limit_is_refused_before_it_is_read() {
    let count = gguf::HEADER_BYTES_MAX + 1;
    let file = raw().entry(b"k", ARRAY, &[&0u32.to_le_bytes()[..], &count.to_le_bytes()].concat()).bytes();
    assert!(matches!(Gguf::parse(&file, 1 << 50), Err(Error::HeaderTooLarge { .. })));
}

#[test]
fn tables_of_the_largest_size_are_checked_for_duplicates_quickly() {
    let mut file = raw();
    for index in 0..65_535 {
        file = file.tensor(format!("{index}").as_bytes(), &[8], F32, index * 32);
    }
    let file = file.tensor(b"65534", &[8], F32, 65_535 * 32).data(65_536 * 32).bytes();
    let started = Instant::now();
    let error = Gguf::parse(&file, file.len() as u64).unwrap_err();
    assert_eq!(error, Error::DuplicateTensor { name: "65534".into() });
    assert!(started.elapsed() < Duration::from_millis(500), "took {:?}", started.elapsed());
}

/// Peak resident memory of this process, where the system tells.
fn resident_peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[test]
fn tiny_files_with_huge_claims_take_no_memory() {
    let claims = [u64::MAX, 1 << 48, 1 << 36, 1 << 24, 65_536];
    let mut files = vec![];
    for count in claims {
        files.push(Raw { tensor_count: Some(count), ..raw() }.bytes());
        files.push(Raw { entry_count: Some(count), ..raw() }.bytes());
        files.push(raw().entry(b"k", STRING, &count.to_le_bytes()).bytes());
        for kind in 0..13u32 {
            files.push(raw().entry(b"k", ARRAY, &[&kind.to_le_bytes()[..], &count.to_le_bytes()].concat()).bytes());
        }
        files.push(raw().tensor(b"t", &[count, 64], F32, 0).bytes());
    }
    let Some(before) = resident_peak_bytes() else {
        eprintln!("skipped: this system does not tell the peak of resident memory");
        return;
    };
    for file in &files {
        assert!(Gguf::parse(file, file.len() as u64).is_err());
        // Claimed to be a prefix of a large file: no allocation for what is not there either.
        let answer = Gguf::parse(file, 1 << 40);
        assert!(answer.is_ok() || answer.is_err());
    }
    // Other tests of this process run beside: their share is a few MiB.
    let grown = resident_peak_bytes().unwrap() - before;
    assert!(grown < 64 << 20, "{grown} bytes");
}
