//! `bitnetd convert`: a Hugging Face checkpoint of a ternary model to one GGUF file, a tensor at a time.

mod json;
mod pooling;
mod safetensors;
mod shape;
mod tokenizer;
mod weights;

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use gguf::TensorType;
use gguf::blocks::RowError;
use gguf::ternary::TileTable;
use gguf::writer::{WriteError, Writer};

use super::replace_file;
use safetensors::Checkpoint;
use shape::{Fill, Planned, Shape};
use weights::Form;

pub use json::JsonError;

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("linear layers of type {0} cannot be written, only I2_S, TL1, TL2 and F16")]
    Kind(&'static str),
    #[error("embeddings of type {0} cannot be written, only F16, Q8_0 and Q6_K")]
    Embeddings(&'static str),
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error(transparent)]
    Checkpoint(#[from] safetensors::Error),
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    #[error("model type `{0}` is not supported, only bitnet, llama, qwen3 and gemma3_text are")]
    ModelType(String),
    #[error("config.json: {key} is {found}, which is not supported")]
    Config { key: &'static str, found: String },
    #[error("no tiles of {kind} fit `{name}` of {rows} rows and {cols} columns")]
    Tiles { kind: &'static str, name: String, rows: usize, cols: usize },
    #[error("tensor `{name}`: {why}")]
    Packed { name: String, why: &'static str },
    #[error("tensor `{name}` has the scale {scale}")]
    Scale { name: String, scale: f32 },
    #[error("tensor `{name}` holds {found}")]
    NotFinite { name: String, found: f32 },
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
}

/// Writes the checkpoint in `folder` to `out`, beside it first and then renamed, so that `out` is never half a model.
///
/// `linear` is the type of the ternary layers (F16 holds their ternary values, and computes without int8 activations),
/// `embeddings` that of the tables. `progress` gets the bytes written and all bytes.
///
/// # Errors
/// When the checkpoint can't be read, is not of a kind that is known, or holds what is no weight.
pub fn convert(
    folder: &Path,
    out: &Path,
    linear: TensorType,
    embeddings: TensorType,
    progress: impl FnMut(u64, u64),
) -> Result<Summary, Error> {
    let file_type = match linear {
        TensorType::F16 => 1,
        TensorType::Tl1 => 38,
        TensorType::Tl2 => 39,
        TensorType::I2S => 40,
        other => return Err(Error::Kind(other.name())),
    };
    if !matches!(embeddings, TensorType::F16 | TensorType::Q8_0 | TensorType::Q6_K) {
        return Err(Error::Embeddings(embeddings.name()));
    }
    let checkpoint = Checkpoint::open(folder)?;
    let shape = Shape::of(json::read(&folder.join("config.json"))?, pooling::read(folder)?, &checkpoint)?;
    let planned = shape.tensors();
    let form = Form { linear, embeddings, tiles: tiles(linear, &planned)?, scales_multiply: shape.scales_multiply };
    let mut writer = Writer::new(3);
    let absolute = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let name = absolute.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    shape.describe(&name, file_type, &mut writer);
    tokenizer::describe(folder, &shape, &mut writer)?;
    if linear.is_tiled() {
        form.tiles.write_metadata(&mut writer);
    }
    for tensor in &planned {
        let (dims, kind) = match tensor.fill {
            Fill::Norm { .. } | Fill::RopeFactors => (vec![tensor.cols as u64], TensorType::F32),
            Fill::Table => (vec![tensor.cols as u64, tensor.rows as u64], embeddings),
            Fill::Linear { .. } => (vec![tensor.cols as u64, tensor.rows as u64], linear),
        };
        writer.tensor(&tensor.name, &dims, kind)?;
    }
    let fail = |source| Error::Io { path: out.to_owned(), source };
    let fill = |file| write(file, &writer, &checkpoint, &shape, &planned, &form, progress);
    let named = |error| if let Error::Write(WriteError::Io(source)) = error { fail(source) } else { error };
    let file_bytes = replace_file(out, fail, fill).map_err(named)?;
    Ok(Summary { file_bytes, tensor_count: planned.len() })
}

/// Reads the tables of the checkpoint in `folder`, and an element of each tensor: how many there are.
///
/// # Errors
/// When its files are not as they should be.
pub fn check(folder: &Path) -> Result<usize, Error> {
    Ok(Checkpoint::open(folder)?.check()?)
}

fn tiles(kind: TensorType, planned: &[Planned]) -> Result<TileTable, Error> {
    let mut tiles = TileTable::default();
    let linear = |tensor: &&Planned| kind.is_tiled() && matches!(tensor.fill, Fill::Linear { .. });
    for Planned { name, rows, cols, .. } in planned.iter().filter(linear) {
        let no_tiles = || Error::Tiles { kind: kind.name(), name: name.clone(), rows: *rows, cols: *cols };
        tiles.add_chosen(kind, *rows, *cols).ok_or_else(no_tiles)?;
    }
    Ok(tiles)
}

fn write(
    out: BufWriter<File>,
    writer: &Writer,
    checkpoint: &Checkpoint,
    shape: &Shape,
    planned: &[Planned],
    form: &Form,
    mut progress: impl FnMut(u64, u64),
) -> Result<(BufWriter<File>, u64), Error> {
    let mut body = writer.write_header(out)?;
    let all = body.file_bytes();
    let mut done = all - writer.tensor_bytes().sum::<u64>();
    let mut put = |piece: &[u8]| {
        body.write_piece(piece)?;
        done += piece.len() as u64;
        progress(done.min(all), all);
        Ok(())
    };
    for tensor in planned {
        match tensor.fill {
            Fill::Norm { plus } => weights::write_norm(checkpoint, tensor, plus, &mut put)?,
            Fill::Table => weights::write_table(checkpoint, tensor, form.embeddings, &mut put)?,
            Fill::Linear { heads } => weights::write_linear(checkpoint, tensor, form, heads, &mut put)?,
            Fill::RopeFactors => {
                let factors = shape.rope_factors();
                put(&factors.iter().flat_map(|factor| factor.to_le_bytes()).collect::<Vec<u8>>())?;
            }
        }
    }
    Ok((body.finish()?, all))
}
