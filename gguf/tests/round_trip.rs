//! What is written reads back equal; a prefix of a file asks for more; mutated files never fool the reader.
#![expect(clippy::unwrap_used, reason = "a test that fails shall panic")]

use gguf::writer::{WriteError, Writer};
use gguf::{Error, Gguf, TensorType, Value, ValueKind};

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, count_max: u64) -> Vec<u8> {
        let count = self.below(count_max + 1);
        (0..count).map(|_| self.next() as u8).collect()
    }
}

fn sample() -> Writer {
    let mut writer = Writer::new(3);
    writer
        .kv("general.architecture", "bitnet-b1.58")
        .kv("u8", 200u8)
        .kv("i8", -100i8)
        .kv("u16", 60_000u16)
        .kv("i16", -30_000i16)
        .kv("u32", 4_000_000_000u32)
        .kv("i32", -2_000_000_000i32)
        .kv("u64", u64::MAX)
        .kv("i64", i64::MIN)
        .kv("f32", 1e-5f32)
        .kv("f64", 0.1f64)
        .kv("true", true)
        .kv("false", false)
        .kv("raw", Value::String(b"\xff\xfe"))
        .strings("tokens", [&b"a"[..], b"", b"\xff", "\u{2581}the".as_bytes()])
        .strings("none", [""; 0])
        .array("f32s", &[0.5f32, -1.0, f32::INFINITY])
        .array("i32s", &[1i32, -1, i32::MAX])
        .array("u16s", &[1u16, 65_535])
        .array("u64s", &[1u64 << 40])
        .array("f64s", &[0.1f64])
        .array("bools", &[true, false, true]);
    writer
        .tensor("token_embd.weight", &[32, 3], TensorType::F16)
        .unwrap()
        .tensor("blk.0.attn_q.weight", &[128, 2], TensorType::I2S)
        .unwrap()
        .tensor("blk.0.q8", &[32, 1, 2, 3], TensorType::Q8_0)
        .unwrap()
        .tensor("output_norm.weight", &[7], TensorType::F32)
        .unwrap();
    writer
}

fn finish(writer: &Writer, random: &mut Random) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut body = writer.write_header(Vec::new()).unwrap();
    let mut data = vec![];
    for bytes in writer.tensor_bytes() {
        let tensor: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
        if random.below(2) == 0 {
            body.write_tensor(&tensor).unwrap();
        } else {
            tensor.chunks(1 + random.below(97) as usize).for_each(|piece| body.write_piece(piece).unwrap());
        }
        data.push(tensor);
    }
    let file_bytes = body.file_bytes();
    let file = body.finish().unwrap();
    assert_eq!(file.len() as u64, file_bytes);
    (file, data)
}

fn small_file() -> Vec<u8> {
    finish(&sample(), &mut Random(1)).0
}

#[test]
fn all_value_types_read_back() {
    for version in [2, 3] {
        let mut file = small_file();
        file[4] = version;
        let gguf = Gguf::parse(&file, file.len() as u64).unwrap();
        let metadata = gguf.metadata();
        assert_eq!(gguf.version(), version.into());
        assert_eq!(metadata.len(), 22);
        assert_eq!(metadata.str("general.architecture"), Ok(Some("bitnet-b1.58")));
        assert_eq!(metadata.get("i8"), Some(&Value::I8(-100)));
        assert_eq!(metadata.get("i64"), Some(&Value::I64(i64::MIN)));
        assert_eq!(metadata.get("f64"), Some(&Value::F64(0.1)));
        assert_eq!(metadata.bool("true"), Ok(Some(true)));
        assert_eq!(metadata.string("raw"), Ok(Some(&b"\xff\xfe"[..])));
        let tokens = metadata.strings("tokens").unwrap().unwrap();
        assert_eq!(tokens.len(), 4);
        assert_eq!(tokens.collect::<Vec<_>>(), [&b"a"[..], b"", b"\xff", "\u{2581}the".as_bytes()]);
        assert_eq!(metadata.strings("none").unwrap().unwrap().len(), 0);
        let floats = metadata.f32s("f32s").unwrap().unwrap();
        assert_eq!((floats.len(), floats.get(1), floats.get(3)), (3, Some(-1.0), None));
        assert_eq!(floats.iter().collect::<Vec<_>>(), [0.5, -1.0, f32::INFINITY]);
        let integers = metadata.i32s("i32s").unwrap().unwrap();
        assert_eq!(integers.iter().collect::<Vec<_>>(), [1, -1, i32::MAX]);
        assert_eq!(metadata.i32s("u16s").unwrap().unwrap().get(1), Some(65_535));
        let bools = metadata.array("bools").unwrap().unwrap();
        assert_eq!(bools.iter().map(|value| value == Value::Bool(true)).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(bools.get(2), Some(Value::Bool(true)));
    }
}

#[test]
fn getters_name_the_key_and_the_type() {
    let file = small_file();
    let gguf = Gguf::parse(&file, file.len() as u64).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.u32("absent"), Ok(None));
    assert_eq!(metadata.u32("u8"), Ok(Some(200)));
    assert_eq!(metadata.u64("u16"), Ok(Some(60_000)));
    assert_eq!(metadata.f32("u16"), Ok(Some(60_000.0)));
    assert_eq!(metadata.f32("f64"), Ok(Some(0.1)));
    let message = |error: Error| error.to_string();
    assert_eq!(message(metadata.u32("f32").unwrap_err()), "value of \"f32\" is f32, not u32");
    assert_eq!(message(metadata.u32("i8").unwrap_err()), "value of \"i8\" is out of range for u32");
    assert_eq!(message(metadata.u32("u64").unwrap_err()), "value of \"u64\" is out of range for u32");
    assert_eq!(message(metadata.f32("u64").unwrap_err()), "value of \"u64\" is out of range for f32");
    assert_eq!(message(metadata.bool("u8").unwrap_err()), "value of \"u8\" is u8, not bool");
    assert_eq!(message(metadata.str("raw").unwrap_err()), "value of \"raw\" is not UTF-8");
    assert_eq!(message(metadata.str("u8").unwrap_err()), "value of \"u8\" is u8, not string");
    assert_eq!(
        message(metadata.strings("f32s").unwrap_err()),
        "value of \"f32s\" is array of f32, not array of strings"
    );
    assert_eq!(message(metadata.f32s("u8").unwrap_err()), "value of \"u8\" is u8, not array of f32");
    assert_eq!(message(metadata.i32s("u64s").unwrap_err()), "value of \"u64s\" is out of range for i32");
}

#[test]
fn tensors_read_back_where_they_were_written() {
    let writer = sample();
    let (file, data) = finish(&writer, &mut Random(2));
    let gguf = Gguf::parse(&file, file.len() as u64).unwrap();
    assert_eq!(gguf.alignment(), 32);
    assert_eq!(gguf.tensors()[0].offset, gguf.data_offset());
    for (tensor, data) in gguf.tensors().iter().zip(&data) {
        assert_eq!(gguf.data(tensor), Some(&data[..]));
        assert_eq!(gguf.tensor(tensor.name), Some(tensor));
    }
    let tensor = gguf.tensor("blk.0.q8").unwrap();
    assert_eq!((tensor.dim_count, tensor.dims), (4, [32, 1, 2, 3]));
    assert_eq!((tensor.cols(), tensor.rows(), tensor.elements(), tensor.bytes), (32, 6, 192, 204));
    assert_eq!(gguf.tensor("blk.0.attn_q.weight").unwrap().bytes, 64 + 32);
    assert_eq!(gguf.tensor("blk.1.q8"), None);
    // With the header alone the tables are the same and the data is not there.
    let header = &file[..gguf.data_offset() as usize];
    let tables = Gguf::parse(header, file.len() as u64).unwrap();
    assert_eq!(tables.tensors(), gguf.tensors());
    assert_eq!(tables.data(&tables.tensors()[0]), None);
}

#[test]
fn files_copied_entry_by_entry_are_equal() {
    let (file, data) = finish(&sample(), &mut Random(3));
    let gguf = Gguf::parse(&file, file.len() as u64).unwrap();
    let mut copy = Writer::new(gguf.version());
    for (key, value) in gguf.metadata().iter() {
        copy.kv(key, *value);
    }
    for tensor in gguf.tensors() {
        copy.tensor(tensor.name, &tensor.dims[..tensor.dim_count as usize], tensor.kind).unwrap();
    }
    let mut body = copy.write_header(Vec::new()).unwrap();
    data.iter().for_each(|data| body.write_tensor(data).unwrap());
    assert!(body.finish().unwrap() == file);
}

#[test]
fn random_files_read_back() {
    const KINDS: [u32; 12] = [0, 1, 2, 8, 14, 30, 34, 35, 36, 38, 39, 12];
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut writer = Writer::new(2 + random.below(2) as u32);
        let alignment = 8u32 << random.below(6);
        writer.kv("general.alignment", alignment);
        let strings: Vec<Vec<u8>> = (0..random.below(20)).map(|_| random.bytes(30)).collect();
        let integers: Vec<i32> = (0..random.below(50)).map(|_| random.next() as i32).collect();
        writer.strings("strings", &strings).array("integers", &integers);
        let mut wanted = vec![];
        for index in 0..random.below(12) {
            let dims = [256 * (1 + random.below(2)), 1 + random.below(4), 1 + random.below(2)];
            let kind = TensorType::from_id(KINDS[random.below(12) as usize]).unwrap();
            writer.tensor(&format!("t.{index}"), &dims, kind).unwrap();
            wanted.push((dims, kind));
        }
        let (file, data) = finish(&writer, &mut random);
        let gguf = Gguf::parse(&file, file.len() as u64).unwrap();
        assert_eq!(gguf.alignment(), u64::from(alignment));
        assert!(gguf.metadata().strings("strings").unwrap().unwrap().eq(strings.iter().map(Vec::as_slice)));
        assert!(gguf.metadata().i32s("integers").unwrap().unwrap().iter().eq(integers));
        let found: Vec<_> = gguf.tensors().iter().map(|tensor| (tensor.dims, tensor.kind)).collect();
        assert!(found.iter().zip(&wanted).all(|(found, wanted)| found.0[..3] == wanted.0 && found.1 == wanted.1));
        assert_eq!(found.len(), wanted.len());
        assert!(gguf.tensors().iter().zip(&data).all(|(tensor, data)| gguf.data(tensor) == Some(data)));
    }
}

#[test]
fn every_prefix_of_the_header_asks_for_more() {
    let file = small_file();
    let file_bytes = file.len() as u64;
    let table_end = file.windows(18).rposition(|window| window == b"output_norm.weight").unwrap() + 18 + 4 + 8 + 4 + 8;
    for length in 0..=file.len() {
        match Gguf::parse(&file[..length], file_bytes) {
            Ok(_) => assert!(length >= table_end, "{length} bytes taken for a header of {table_end}"),
            Err(Error::NeedMore { at_least }) => {
                assert!(length < table_end, "{length}");
                assert!(at_least > length as u64 && at_least <= table_end as u64, "{length}: {at_least}");
            }
            Err(error) => panic!("prefix of {length} bytes: {error}"),
        }
        // As a whole file it is truncated.
        let error = Gguf::parse(&file[..length], length as u64).err();
        assert_eq!(error.is_none(), length + 4 >= file.len(), "{length}: {error:?}");
        assert!(!matches!(error, Some(Error::NeedMore { .. })));
    }
}

#[test]
fn a_growing_prefix_ends_at_the_header() {
    let file = small_file();
    let mut length = 0;
    for _ in 0..200 {
        match Gguf::parse(&file[..length], file.len() as u64) {
            Ok(gguf) => return assert!(gguf.data_offset() >= length as u64),
            Err(Error::NeedMore { at_least }) => length = at_least as usize,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("still at {length} bytes");
}

/// Whatever was accepted must hold.
fn check_accepted(gguf: &Gguf<'_>, file_bytes: u64) {
    for tensor in gguf.tensors() {
        assert!(tensor.offset >= gguf.data_offset() && tensor.offset + tensor.bytes <= file_bytes);
        assert!(tensor.offset.is_multiple_of(gguf.alignment()));
        assert_eq!(gguf.data(tensor).map(<[u8]>::len), Some(tensor.bytes as usize));
    }
    for (key, value) in gguf.metadata().iter() {
        assert!(gguf.metadata().get(key).is_some());
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
            assert_ne!(array.kind(), ValueKind::Array);
        }
    }
}

#[test]
fn a_hundred_thousand_mutants_are_refused_or_hold() {
    let file = small_file();
    let gguf = Gguf::parse(&file, file.len() as u64).unwrap();
    let header_bytes = gguf.data_offset();
    let mut random = Random(5);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..100_000 {
        let mut mutant = file.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(header_bytes) as usize;
            match random.below(6) {
                0 | 1 => mutant[at] ^= 1 << random.below(8),
                2 => mutant[at] = random.next() as u8,
                3 => {
                    // A field of another size: the interesting integers at any place.
                    const EDGES: [u64; 8] = [0, 1, 0xff, 1 << 31, u32::MAX as u64, 1 << 62, 1 << 63, u64::MAX];
                    let bytes = EDGES[random.below(8) as usize].to_le_bytes();
                    let width = [4, 8][random.below(2) as usize].min(mutant.len() - at);
                    mutant[at..at + width].copy_from_slice(&bytes[..width]);
                }
                4 => {
                    let other = random.below(header_bytes - 8) as usize;
                    let at = at.min(header_bytes as usize - 8);
                    for byte in 0..8 {
                        mutant.swap(at + byte, other + byte);
                    }
                }
                _ => mutant.truncate(at.max(random.below(mutant.len() as u64) as usize)),
            }
            if mutant.len() < header_bytes as usize {
                break;
            }
        }
        match Gguf::parse(&mutant, mutant.len() as u64) {
            Ok(gguf) => {
                check_accepted(&gguf, mutant.len() as u64);
                accepted += 1;
            }
            Err(error) => {
                assert!(!matches!(error, Error::NeedMore { .. }));
                refused += 1;
            }
        }
    }
    assert!(accepted > 1000 && refused > 10_000, "{accepted} accepted, {refused} refused");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let refused = |writer: &Writer| match writer.write_header(Vec::new()) {
        Err(WriteError::Refused(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(Writer::new(3).kv("k", 1u32).kv("k", 2u32)), Error::DuplicateKey { key: "k".into() });
    assert_eq!(refused(&Writer::new(4)), Error::Version { version: 4 });
    for alignment in [0, 24, 1 << 31] {
        let error = refused(Writer::new(3).kv("general.alignment", alignment as u32));
        assert_eq!(error, Error::Alignment { found: alignment });
    }
    let mut twice = Writer::new(3);
    twice.tensor("t", &[1], TensorType::F32).unwrap().tensor("t", &[1], TensorType::F32).unwrap();
    assert_eq!(refused(&twice), Error::DuplicateTensor { name: "t".into() });
    assert!(Writer::new(3).tensor("t", &[100], TensorType::Q8_0).is_err());
    assert!(Writer::new(3).tensor("t", &[], TensorType::F32).is_err());
}

#[test]
fn the_writer_counts_the_data() {
    let mut writer = Writer::new(3);
    writer.tensor("t", &[3], TensorType::F32).unwrap();
    let mut body = writer.write_header(Vec::new()).unwrap();
    assert!(matches!(body.write_tensor(&[0; 11]), Err(WriteError::TensorBytes { wanted: 12, found: 11, .. })));
    body.write_piece(&[0; 11]).unwrap();
    assert!(matches!(body.write_piece(&[0; 2]), Err(WriteError::TensorBytes { wanted: 12, found: 13, .. })));
    body.write_piece(&[0; 1]).unwrap();
    assert!(matches!(body.write_piece(&[0; 1]), Err(WriteError::NoTensorLeft)));
    body.finish().unwrap();
    let unfinished = writer.write_header(Vec::new()).unwrap();
    assert!(matches!(unfinished.finish(), Err(WriteError::TensorBytes { wanted: 12, found: 0, .. })));
}
