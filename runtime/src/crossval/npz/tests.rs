//! Recorded logits: what NumPy writes is read, anything else is refused without a panic.

use super::*;

fn npy(kind: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn zip(entries: &[(&str, Vec<u8>)], method: u16) -> Vec<u8> {
    let (mut file, mut records) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let local = file.len() as u32;
        let (size, length) = ((data.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
        let common = [&method.to_le_bytes()[..], &[0; 4], &crc32(data).to_le_bytes(), &size, &size, &length].concat();
        file.extend([b"PK\x03\x04\x14\0\0\0", &common[..], &[0; 2], name.as_bytes(), data].concat());
        let tail = [&[0; 12][..], &local.to_le_bytes(), name.as_bytes()].concat();
        records.extend([b"PK\x01\x02\x14\0\x14\0\0\0", &common[..], &tail].concat());
    }
    let (at, count) = ((file.len() as u32).to_le_bytes(), (entries.len() as u16).to_le_bytes());
    let size = (records.len() as u32).to_le_bytes();
    file.extend(records);
    file.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &at, &[0; 2]].concat());
    file
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn tokens(values: &[i64]) -> Vec<u8> {
    npy("<i8", &format!("{},", values.len()), &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
}

fn one() -> Vec<(&'static str, Vec<u8>)> {
    vec![("tokens.npy", tokens(&[3, 1])), ("logits.npy", npy("<f4", "2, 3", &floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])))]
}

#[test]
fn one_sequence_and_several_are_read() {
    let recorded = Recorded::parse(&zip(&one(), 0)).unwrap();
    assert_eq!((recorded.tokens, recorded.vocab), (vec![vec![3, 1]], 3));
    assert_eq!(recorded.logits, [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]);
    let halves = npy("<f2", "1, 2", &[0, 0x3c, 0, 0xc0]);
    let doubles = npy("<f8", "1, 2", &[1.5f64.to_le_bytes(), (-1.0f64).to_le_bytes()].concat());
    let ids = npy("<i4", "1,", &7u32.to_le_bytes());
    let entries =
        [("tokens.1.npy", ids), ("logits.1.npy", doubles), ("tokens.0.npy", tokens(&[0])), ("logits.0.npy", halves)];
    let recorded = Recorded::parse(&zip(&entries, 0)).unwrap();
    assert_eq!(recorded.tokens, [[0], [7]]);
    assert_eq!(recorded.logits, [[1.0, -2.0], [1.5, -1.0]]);
}

#[test]
fn the_checksum_is_that_of_zip() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let with = |name: &'static str, array: Vec<u8>| {
        let entries: Vec<_> = one().into_iter().map(|e| if e.0 == name { (name, array.clone()) } else { e }).collect();
        Recorded::parse(&zip(&entries, 0)).unwrap_err()
    };
    assert!(matches!(Recorded::parse(&zip(&one(), 8)), Err(NpzError::Compressed { .. })));
    assert!(matches!(Recorded::parse(&zip(&one()[1..], 0)), Err(NpzError::Missing { name }) if name == "tokens.0"));
    assert!(matches!(Recorded::parse(&zip(&one()[..1], 0)), Err(NpzError::Missing { name }) if name == "logits"));
    assert!(matches!(with("tokens.npy", tokens(&[1])), NpzError::Shape { tokens: 1, rows: 2, .. }));
    for bad in [tokens(&[-1, 1]), tokens(&[1 << 32, 1]), npy("<f4", "2,", &[0; 8]), npy("<i8", "2, 1", &[0; 16])] {
        assert!(matches!(with("tokens.npy", bad), NpzError::Array { .. }));
    }
    let huge = format!("{}, 3", usize::MAX / 2);
    for (kind, shape) in [("<f4", "2, 4"), (">f4", "2, 3"), ("<f4", "6,"), ("<f4", &huge), ("<f4", "x"), ("|O", "2, 3")]
    {
        assert!(matches!(with("logits.npy", npy(kind, shape, &[0; 24])), NpzError::Array { .. }), "{kind} {shape}");
    }
    let mut fortran = npy("<f4", "2, 3", &[0; 24]);
    let at = fortran.windows(5).position(|window| window == b"False").unwrap();
    fortran[at..at + 5].copy_from_slice(b"True ");
    assert!(matches!(with("logits.npy", fortran), NpzError::Array { what: "it is not in C order", .. }));
    for junk in [&b""[..], b"PK", &[0; 4096]] {
        assert!(matches!(Recorded::parse(junk), Err(NpzError::NoDirectory)));
    }
}

#[test]
fn every_prefix_and_every_changed_byte_is_refused_or_read_without_a_panic() {
    let file = zip(&one(), 0);
    for end in 0..file.len() {
        assert!(Recorded::parse(&file[..end]).is_err(), "{end}");
    }
    for at in 0..file.len() {
        for flip in [1, 0x80, 0xff] {
            let mut file = file.clone();
            file[at] ^= flip;
            // Some fields, such as times and versions, mean nothing here; data and sizes do.
            let _ = Recorded::parse(&file);
        }
    }
}
