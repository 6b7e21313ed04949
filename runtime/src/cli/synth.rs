//! `bitnetd synth`: a model of random ternary weights in the shape of a real one, to measure and test with.

mod shape;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use gguf::TensorType;
use gguf::blocks::{self, RowError};
use gguf::ternary::{self, TileTable, Tiled};
use gguf::writer::{Body, WriteError, Writer};

use super::replace_file;
pub use shape::Preset;
use shape::{Fill, Shape, Tensor};

/// Why no model was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("linear layers of type {0} cannot be made, only I2_S, TL1 and TL2")]
    Kind(&'static str),
    #[error("no tiles of {kind} fit `{name}` of {rows} rows and {cols} columns")]
    Tiles { kind: &'static str, name: String, rows: u64, cols: u64 },
    #[error("embeddings of type {0} cannot be made, only F32, F16, Q8_0 and Q6_K")]
    Embeddings(&'static str),
    #[error(transparent)]
    Row(#[from] RowError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("can't write {path}")]
    Io { path: PathBuf, source: io::Error },
}

impl From<gguf::Error> for Error {
    fn from(error: gguf::Error) -> Self {
        Self::Write(WriteError::Refused(error))
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub file_bytes: u64,
    pub tensor_count: usize,
    /// Elements of all tensors.
    pub parameter_count: u64,
}

/// Writes the model to `path`, beside it first and then renamed, so that `path` is never half a model.
///
/// The bytes depend on the other arguments only, on every machine. `progress` is told the bytes written and the bytes
/// of the whole file after each piece of at most a few MiB.
pub fn write(
    path: &Path,
    preset: Preset,
    kind: TensorType,
    embeddings: TensorType,
    seed: u64,
    progress: impl FnMut(u64, u64),
) -> Result<Summary, Error> {
    write_shape(path, (preset, preset.shape()), kind, embeddings, seed, progress)
}

/// The same with two layers and few heads: what is odd about a model's dimensions, in a file for tests.
pub fn write_reduced(path: &Path, preset: Preset, seed: u64) -> Result<Summary, Error> {
    write_shape(path, (preset, preset.shape().reduced()), TensorType::I2S, TensorType::F16, seed, |_, _| {})
}

fn write_shape(
    path: &Path,
    (preset, shape): (Preset, Shape),
    kind: TensorType,
    embeddings: TensorType,
    seed: u64,
    progress: impl FnMut(u64, u64),
) -> Result<Summary, Error> {
    if !matches!(kind, TensorType::I2S | TensorType::Tl1 | TensorType::Tl2) {
        return Err(Error::Kind(kind.name()));
    }
    if !matches!(embeddings, TensorType::F32 | TensorType::F16 | TensorType::Q8_0 | TensorType::Q6_K) {
        return Err(Error::Embeddings(embeddings.name()));
    }
    let tensors = shape.tensors();
    let mut writer = Writer::new(3);
    shape.describe(preset, kind, &mut writer);
    let tiles = choose_tiles(kind, &tensors)?;
    if kind.is_tiled() {
        tiles.write_metadata(&mut writer);
    }
    for tensor in &tensors {
        let dims = [tensor.cols, tensor.rows];
        let dim_count = if tensor.fill == Fill::Norm { 1 } else { 2 };
        writer.tensor(&tensor.name, &dims[..dim_count], tensor.kind(kind, embeddings))?;
    }
    let fail = |source| Error::Io { path: path.to_owned(), source };
    let what = What { kind, embeddings, tiles, seed };
    let written = replace_file(path, fail, |out| write_all(out, &writer, &tensors, &what, progress));
    let named = |error| if let Error::Write(WriteError::Io(source)) = error { fail(source) } else { error };
    Ok(Summary {
        file_bytes: written.map_err(named)?,
        tensor_count: tensors.len(),
        parameter_count: tensors.iter().map(|tensor| tensor.cols * tensor.rows).sum(),
    })
}

/// Tiles for each ternary shape, none for I2_S.
fn choose_tiles(kind: TensorType, tensors: &[Tensor]) -> Result<TileTable, Error> {
    let mut tiles = TileTable::default();
    for tensor in tensors.iter().filter(|tensor| kind.is_tiled() && tensor.fill == Fill::Ternary) {
        let Tensor { name, rows, cols, .. } = tensor;
        tiles.add_chosen(kind, *rows as usize, *cols as usize).ok_or_else(|| Error::Tiles {
            kind: kind.name(),
            name: name.clone(),
            rows: *rows,
            cols: *cols,
        })?;
    }
    Ok(tiles)
}

/// What to fill the tensors with.
struct What {
    kind: TensorType,
    embeddings: TensorType,
    tiles: TileTable,
    seed: u64,
}

/// The file's bytes, written to `out`, and how many they are.
fn write_all(
    out: BufWriter<File>,
    writer: &Writer,
    tensors: &[Tensor],
    what: &What,
    progress: impl FnMut(u64, u64),
) -> Result<(BufWriter<File>, u64), Error> {
    let body = writer.write_header(out)?;
    let file_bytes = body.file_bytes();
    let data_bytes: u64 = writer.tensor_bytes().sum();
    let done = file_bytes - data_bytes;
    let mut sink = Sink { body, done, file_bytes, progress };
    for (index, tensor) in tensors.iter().enumerate() {
        let mut random = Random::new(what.seed, index as u64);
        match tensor.fill {
            Fill::Ternary => write_ternary(&mut sink, tensor, what, &mut random)?,
            Fill::Norm => write_norm(&mut sink, tensor, &mut random)?,
            Fill::Embedding => write_embedding(&mut sink, tensor, what.embeddings, &mut random)?,
        }
    }
    Ok((sink.body.finish()?, file_bytes))
}

/// Writes and tells how far it is.
struct Sink<W, P> {
    body: Body<W>,
    done: u64,
    file_bytes: u64,
    progress: P,
}

impl<W: Write, P: FnMut(u64, u64)> Sink<W, P> {
    fn write(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.body.write_piece(piece)?;
        self.done += piece.len() as u64;
        (self.progress)(self.done, self.file_bytes);
        Ok(())
    }
}

/// The same weights whatever their layout: I2_S in pieces, tiles as a whole.
fn write_ternary<W: Write, P: FnMut(u64, u64)>(
    sink: &mut Sink<W, P>,
    tensor: &Tensor,
    what: &What,
    random: &mut Random,
) -> Result<(), Error> {
    const PIECE_ELEMENTS: u64 = 1 << 20;
    let (rows, cols) = (tensor.rows as usize, tensor.cols as usize);
    let scale = ((0.7 + 0.6 * random.unit()) / (0.6 * tensor.cols as f64).sqrt()) as f32;
    if let Some(tile) = what.tiles.get(rows, cols) {
        let layout = Tiled::new(what.kind, rows, cols, tile).expect("the tiles were chosen to fit");
        let mut codes = vec![0u8; rows * cols];
        fill_codes(&mut codes, random);
        return sink.write(&layout.pack(&codes, scale));
    }
    let mut left = tensor.cols * tensor.rows;
    let mut codes = vec![0u8; PIECE_ELEMENTS as usize];
    let mut packed = vec![0u8; codes.len() / 4];
    while left > 0 {
        let count = left.min(PIECE_ELEMENTS);
        let (codes, packed) = (&mut codes[..count as usize], &mut packed[..count as usize / 4]);
        fill_codes(codes, random);
        ternary::i2s_pack_codes(codes, packed);
        sink.write(packed)?;
        left -= count;
    }
    sink.write(&ternary::i2s_tail(scale))
}

/// Codes 0, 1, 2 with probability 0.3, 0.4, 0.3, with which a scale of 1 / sqrt(0.6 K) keeps a unit input at unit size.
fn fill_codes(codes: &mut [u8], random: &mut Random) {
    const MINUS_BELOW: u16 = 19_661; // 0.3 of 2^16
    const ZERO_BELOW: u16 = 45_875; // 0.7 of 2^16
    for four in codes.as_chunks_mut::<4>().0 {
        let bits = random.next();
        for (lane, code) in four.iter_mut().enumerate() {
            let number = (bits >> (16 * lane)) as u16;
            *code = u8::from(number >= MINUS_BELOW) + u8::from(number >= ZERO_BELOW);
        }
    }
}

/// f32 from 0.5 to 1.5.
fn write_norm<W: Write, P: FnMut(u64, u64)>(
    sink: &mut Sink<W, P>,
    tensor: &Tensor,
    random: &mut Random,
) -> Result<(), Error> {
    let weights: Vec<u8> = (0..tensor.cols).flat_map(|_| ((0.5 + random.unit()) as f32).to_le_bytes()).collect();
    sink.write(&weights)
}

/// Normal numbers of standard deviation 0.1. Rows repeat after 4096: encoding takes most of the time.
fn write_embedding<W: Write, P: FnMut(u64, u64)>(
    sink: &mut Sink<W, P>,
    tensor: &Tensor,
    kind: TensorType,
    random: &mut Random,
) -> Result<(), Error> {
    const DISTINCT_ROWS_MAX: u64 = 4096;
    let mut row = vec![0.0; tensor.cols as usize];
    let row_bytes = tensor.cols / kind.block_elements() * kind.block_bytes();
    let mut distinct = vec![0; (row_bytes * tensor.rows.min(DISTINCT_ROWS_MAX)) as usize];
    for encoded in distinct.chunks_exact_mut(row_bytes as usize) {
        row.fill_with(|| random.normal(0.1));
        blocks::quantize_row(kind, &row, encoded)?;
    }
    let mut left = row_bytes * tensor.rows;
    while left > 0 {
        let piece = &distinct[..left.min(distinct.len() as u64) as usize];
        sink.write(piece)?;
        left -= piece.len() as u64;
    }
    Ok(())
}

/// splitmix64 (Steele, Lea and Flood 2014): number i of a stream is a function of key and i alone.
struct Random {
    state: u64,
}

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self { state: seed };
        random.state = random.next() ^ stream.wrapping_mul(0xd134_2543_de82_ef95);
        random.state = random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1, 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// By Box and Muller; `libm` gives the same bits everywhere.
    fn normal(&mut self, deviation: f64) -> f32 {
        let radius = (-2.0 * libm::log(1.0 - self.unit())).sqrt();
        let angle = std::f64::consts::TAU * self.unit();
        (deviation * radius * libm::cos(angle)) as f32
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::partial_beside;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("bitnetd-synth-{}-{name}.gguf", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn tiny(name: &str, embeddings: TensorType, seed: u64) -> Vec<u8> {
        let scratch = Scratch::new(name);
        let mut seen = (0, 0);
        let summary = write(&scratch.0, Preset::Tiny, TensorType::I2S, embeddings, seed, |done, total| {
            assert!(done > seen.0 && done <= total);
            seen = (done, total);
        })
        .expect("the tiny preset is sound");
        let file = fs::read(&scratch.0).expect("was just written");
        assert_eq!(summary.file_bytes, file.len() as u64);
        assert!(!partial_beside(&scratch.0).unwrap().exists());
        assert_eq!(seen.1, summary.file_bytes);
        file
    }

    #[test]
    fn a_tiny_model_reads_back_with_the_statistics_asked_for() {
        for embeddings in [TensorType::F32, TensorType::F16, TensorType::Q8_0, TensorType::Q6_K] {
            let file = tiny(embeddings.name(), embeddings, 1);
            let gguf = gguf::Gguf::parse(&file, file.len() as u64).unwrap();
            assert_eq!(gguf.metadata().u32("bitnet-b1.58.block_count"), Ok(Some(3)));
            assert_eq!(gguf.metadata().strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), 1024);
            let down = gguf.tensor("blk.2.ffn_down.weight").unwrap();
            assert_eq!((down.cols(), down.rows()), (768, 256));
            let data = gguf.data(down).unwrap();
            let mut codes = vec![0; 768 * 256];
            ternary::i2s_codes(data, 0, &mut codes);
            for (code, share) in [(0, 0.3), (1, 0.4), (2, 0.3)] {
                let found = codes.iter().filter(|&&found| found == code).count() as f64 / codes.len() as f64;
                assert!((found - share).abs() < 0.01, "{found}");
            }
            let scale = ternary::i2s_scale(data, codes.len()) * (0.6f32 * 768.0).sqrt();
            assert!((0.7..1.3).contains(&scale), "{scale}");
            let embedding = gguf.tensor("token_embd.weight").unwrap();
            let mut values = vec![0.0; 256 * 1024];
            blocks::dequantize_row(embedding.kind, gguf.data(embedding).unwrap(), values.len(), &mut values).unwrap();
            let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
            assert!((square.sqrt() - 0.1).abs() < 1e-3, "{square}");
        }
    }

    #[test]
    fn the_seed_decides_every_byte() {
        let first = tiny("first", TensorType::F16, 7);
        assert!(first == tiny("second", TensorType::F16, 7));
        assert!(first != tiny("third", TensorType::F16, 8));
    }

    #[test]
    fn the_presets_have_sound_tables() {
        for preset in Preset::ALL {
            let mut writer = Writer::new(3);
            preset.shape().describe(preset, TensorType::I2S, &mut writer);
            for tensor in preset.shape().tensors() {
                writer
                    .tensor(&tensor.name, &[tensor.cols, tensor.rows], tensor.kind(TensorType::I2S, TensorType::F16))
                    .unwrap();
            }
            assert!(writer.write_header(io::sink()).is_ok(), "{}", preset.name());
            assert_eq!(Preset::from_name(preset.name()), Some(preset));
        }
        let elements = |preset: Preset| preset.shape().tensors().iter().map(|t| t.cols * t.rows).sum::<u64>();
        assert_eq!(elements(Preset::B2_4T) / 1_000_000, 2412);
        assert_eq!(elements(Preset::B8) / 1_000_000, 8030);
        assert_eq!(
            [Preset::Falcon1, Preset::Falcon3, Preset::Falcon7, Preset::Falcon10]
                .map(|preset| elements(preset) / 1_000_000),
            [1669, 3227, 7455, 10305]
        );
        assert_eq!([Preset::Qwen3, Preset::Gemma3].map(|preset| elements(preset) / 1_000_000), [596, 268]);
    }

    #[test]
    fn other_types_are_refused_and_leave_no_file() {
        let scratch = Scratch::new("refused");
        let attempt = |preset, kind, embeddings| write(&scratch.0, preset, kind, embeddings, 1, |_, _| {});
        assert!(matches!(attempt(Preset::Tiny, TensorType::Tq2_0, TensorType::F16), Err(Error::Kind("TQ2_0"))));
        assert!(matches!(attempt(Preset::Tiny, TensorType::I2S, TensorType::Q4_0), Err(Error::Embeddings("Q4_0"))));
        // 3200 columns are no whole Q6_K blocks.
        let error = attempt(Preset::B3, TensorType::I2S, TensorType::Q6_K).unwrap_err();
        assert!(error.to_string().contains("token_embd.weight"), "{error}");
        assert!(!scratch.0.exists() && !partial_beside(&scratch.0).unwrap().exists());
    }
}
