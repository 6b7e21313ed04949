//! The data of each tensor: from the checkpoint's form to that of the GGUF file, one tensor at a time.

use gguf::TensorType;
use gguf::blocks::quantize_row;
use gguf::ternary::{self, TileTable, Tiled};

use super::Error;
use super::safetensors::{Checkpoint, Entry};
use super::shape::Planned;

/// How the data are to be written.
pub(super) struct Form {
    pub(super) linear: TensorType,
    pub(super) embeddings: TensorType,
    pub(super) tiles: TileTable,
    /// Scales of packed weights multiply, or divide.
    pub(super) scales_multiply: bool,
}

/// Where pieces of data go.
pub(super) type Put<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Error>;

/// -1, 0 and +1 as 0, 1 and 2, row-major, and their scale.
struct Codes {
    codes: Vec<u8>,
    scale: f32,
}

/// `plus` is added to every weight.
pub(super) fn write_norm(checkpoint: &Checkpoint, planned: &Planned, plus: f32, put: Put<'_>) -> Result<(), Error> {
    let entry = checkpoint.get(&format!("{}.weight", planned.from))?;
    entry.expect(&[planned.cols])?;
    let values = checkpoint.floats(entry, 0, planned.cols)?;
    finite(&entry.name, &values)?;
    put(&values.iter().flat_map(|value| (value + plus).to_le_bytes()).collect::<Vec<u8>>())
}

/// A table in pieces of rows.
pub(super) fn write_table(
    checkpoint: &Checkpoint,
    planned: &Planned,
    kind: TensorType,
    put: Put<'_>,
) -> Result<(), Error> {
    let entry = checkpoint.get(&format!("{}.weight", planned.from))?;
    entry.expect(&[planned.rows, planned.cols])?;
    let mut first = 0;
    while first < planned.rows {
        let rows = (PIECE_ELEMENTS / planned.cols).clamp(1, planned.rows - first);
        let values = checkpoint.floats(entry, first * planned.cols, rows * planned.cols)?;
        finite(&entry.name, &values)?;
        put(&encoded(kind, &values)?)?;
        first += rows;
    }
    Ok(())
}

/// A linear layer; `heads` says that the rows of each head go from halves to pairs.
pub(super) fn write_linear(
    checkpoint: &Checkpoint,
    planned: &Planned,
    form: &Form,
    heads: Option<usize>,
    put: Put<'_>,
) -> Result<(), Error> {
    let (rows, cols) = (planned.rows, planned.cols);
    let mut read = read_codes(checkpoint, planned, form.scales_multiply)?;
    if let Some(heads) = heads {
        read.codes = halves_to_pairs(&read.codes, rows / heads, cols);
    }
    let Codes { codes, scale } = read;
    match form.linear {
        TensorType::I2S => {
            let mut packed = vec![0; codes.len() / 4];
            ternary::i2s_pack_codes(&codes, &mut packed);
            put(&packed)?;
            put(&ternary::i2s_tail(scale))
        }
        kind if kind.is_tiled() => {
            let tile = form.tiles.get(rows, cols).expect("tiles were chosen for every shape");
            let layout = Tiled::new(kind, rows, cols, tile).expect("the tiles were chosen to fit");
            put(&layout.pack(&codes, scale))
        }
        kind => {
            for codes in codes.chunks((PIECE_ELEMENTS / cols).max(1) * cols) {
                let values: Vec<f32> = codes.iter().map(|&code| (f32::from(code) - 1.0) * scale).collect();
                put(&encoded(kind, &values)?)?;
            }
            Ok(())
        }
    }
}

fn encoded(kind: TensorType, values: &[f32]) -> Result<Vec<u8>, Error> {
    let bytes = values.len() / kind.block_elements() as usize * kind.block_bytes() as usize;
    let mut data = vec![0; bytes];
    quantize_row(kind, values, &mut data)?;
    Ok(data)
}

fn read_codes(checkpoint: &Checkpoint, planned: &Planned, scales_multiply: bool) -> Result<Codes, Error> {
    let entry = checkpoint.get(&format!("{}.weight", planned.from))?;
    if entry.dtype == "U8" {
        return packed_codes(checkpoint, planned, entry, scales_multiply);
    }
    entry.expect(&[planned.rows, planned.cols])?;
    float_codes(checkpoint, entry, planned.rows * planned.cols)
}

/// Four rows in a byte: bits 2 i of row r hold row i * rows / 4 + r.
fn packed_codes(
    checkpoint: &Checkpoint,
    planned: &Planned,
    entry: &Entry,
    scales_multiply: bool,
) -> Result<Codes, Error> {
    let (rows, cols) = (planned.rows, planned.cols);
    entry.expect(&[rows / 4, cols])?;
    if !rows.is_multiple_of(4) {
        return Err(Error::Packed { name: entry.name.clone(), why: "its rows are no multiple of 4" });
    }
    let mut packed = vec![0; rows / 4 * cols];
    checkpoint.read(entry, 0, &mut packed)?;
    if ternary::has_code3(&packed) {
        return Err(Error::Packed { name: entry.name.clone(), why: "it holds code 3, which means nothing" });
    }
    let mut codes = vec![0; rows * cols];
    for (quarter, codes) in codes.chunks_exact_mut(packed.len().max(1)).enumerate() {
        codes.iter_mut().zip(&packed).for_each(|(code, byte)| *code = (byte >> (2 * quarter)) & 3);
    }
    let scale = checkpoint.get(&format!("{}.weight_scale", planned.from))?;
    if scale.shape.iter().product::<u64>() != 1 {
        return Err(Error::Packed { name: scale.name.clone(), why: "it is no single scale" });
    }
    let found = checkpoint.floats(scale, 0, 1)?[0];
    let scale = if scales_multiply { found } else { 1.0 / found };
    if !(scale.is_finite() && scale > 0.0) {
        return Err(Error::Scale { name: planned.name.clone(), scale: found });
    }
    Ok(Codes { codes, scale })
}

/// Weights in training precision are divided by their mean size, rounded and cut to -1 .. 1; those that have one size
/// only are ternary already and keep it.
fn float_codes(checkpoint: &Checkpoint, entry: &Entry, elements: usize) -> Result<Codes, Error> {
    const SCALE_MIN: f64 = 1e-5;
    let (mut sum, mut size, mut one_size) = (0.0, 0.0f32, true);
    for first in (0..elements).step_by(PIECE_ELEMENTS) {
        let values = checkpoint.floats(entry, first, PIECE_ELEMENTS.min(elements - first))?;
        finite(&entry.name, &values)?;
        for value in values.iter().map(|value| value.abs()).filter(|value| *value > 0.0) {
            sum += f64::from(value);
            one_size &= size == 0.0 || size == value;
            size = value;
        }
    }
    let mean = (sum / elements as f64).max(SCALE_MIN) as f32;
    let scale = if one_size && size > 0.0 { size } else { mean };
    let inverse = 1.0 / scale;
    let mut codes = Vec::with_capacity(elements);
    for first in (0..elements).step_by(PIECE_ELEMENTS) {
        let values = checkpoint.floats(entry, first, PIECE_ELEMENTS.min(elements - first))?;
        codes.extend(values.iter().map(|value| ((value * inverse).round_ties_even().clamp(-1.0, 1.0) + 1.0) as u8));
    }
    Ok(Codes { codes, scale })
}

/// Rows t * half + j of each head become rows 2 j + t: transformers rotates halves of a head, llama.cpp's llama pairs.
fn halves_to_pairs(codes: &[u8], head_rows: usize, cols: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(codes.len());
    for head in codes.chunks_exact(head_rows * cols) {
        for row in 0..head_rows {
            let from = row % 2 * (head_rows / 2) + row / 2;
            out.extend_from_slice(&head[from * cols..(from + 1) * cols]);
        }
    }
    out
}

fn finite(name: &str, values: &[f32]) -> Result<(), Error> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(&found) => Err(Error::NotFinite { name: name.to_owned(), found }),
        None => Ok(()),
    }
}

/// Elements that are in memory as f32 at a time.
const PIECE_ELEMENTS: usize = 1 << 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_become_pairs() {
        // Two heads of six rows of one column.
        let codes: Vec<u8> = (0..12).collect();
        assert_eq!(halves_to_pairs(&codes, 6, 1), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }
}
