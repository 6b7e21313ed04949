//! The tensors of a file by name: read, checked against the shape that is wanted, decoded.

use std::ops::Range;

use gguf::ternary::{self, BAND_ROWS};
use gguf::{Gguf, TensorInfo, TensorType};

use super::tiles::Tiles;
use super::{Error, Source};

/// The tensors of a file.
pub(crate) struct Tensors<'s, 'g> {
    source: &'s Source,
    pub(super) gguf: &'s Gguf<'g>,
    pub(super) tiles: Tiles,
}

/// The weights of a linear layer as the file gives them, row-major.
pub(crate) enum Decoded {
    /// -1, 0 and +1, and their scale.
    Ternary {
        weights: Vec<i8>,
        scale: f32,
    },
    Dense(Vec<f32>),
}

impl Decoded {
    /// The values that the weights stand for.
    pub(crate) fn into_dense(self) -> Vec<f32> {
        match self {
            Self::Ternary { weights, scale } => weights.iter().map(|&weight| f32::from(weight) * scale).collect(),
            Self::Dense(values) => values,
        }
    }
}

impl<'s, 'g> Tensors<'s, 'g> {
    /// Those of `source`, whose parsed header is `gguf`.
    pub(crate) fn new(source: &'s Source, gguf: &'s Gguf<'g>) -> Result<Self, Error> {
        Ok(Self { source, gguf, tiles: Tiles::of(source, gguf)? })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    pub(crate) fn info(&self, name: &str) -> Result<&TensorInfo<'g>, Error> {
        self.gguf.tensor(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))
    }

    /// The entry of a matrix of this many rows and columns.
    pub(crate) fn matrix(&self, name: &str, (rows, cols): (usize, usize)) -> Result<&TensorInfo<'g>, Error> {
        let info = self.info(name)?;
        if info.dim_count > 2 || info.cols() != cols as u64 || info.rows() != rows as u64 {
            let wanted = format!("{cols} x {rows}");
            return Err(Error::TensorShape { name: name.to_owned(), got: shape(info), wanted });
        }
        Ok(info)
    }

    fn read(&self, info: &TensorInfo<'_>) -> Result<Vec<u8>, Error> {
        let bytes = usize::try_from(info.bytes).map_err(|_| Error::BadShape("a tensor beyond memory".into()))?;
        let mut data = vec![0; bytes];
        self.source.read_at(info.offset, &mut data)?;
        Ok(data)
    }

    /// A tensor of one dimension as f32, all of it finite.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let info = self.info(name)?;
        if info.dim_count != 1 || info.dims[0] != len as u64 {
            return Err(Error::TensorShape { name: name.to_owned(), got: shape(info), wanted: format!("{len}") });
        }
        let mut values = vec![0.0; len];
        gguf::blocks::dequantize_row(info.kind, &self.read(info)?, len, &mut values).map_err(|e| bad(name, &e))?;
        match values.iter().find(|v| !v.is_finite()) {
            Some(value) => Err(bad(name, &format!("it holds {value}"))),
            None => Ok(values),
        }
    }

    /// Rows of a dense matrix as f32.
    pub(crate) fn dense_rows(&self, name: &str, shape: (usize, usize), rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let info = self.matrix(name, shape)?;
        let (block_elements, block_bytes) = (info.kind.block_elements() as usize, info.kind.block_bytes() as usize);
        if block_elements == 0 || !shape.1.is_multiple_of(block_elements) {
            return Err(Error::Unsupported(format!("tensor `{name}` of type {}", info.kind.name())));
        }
        let row_bytes = shape.1 / block_elements * block_bytes;
        let mut data = vec![0; rows.len() * row_bytes];
        self.source.read_at(info.offset + (rows.start * row_bytes) as u64, &mut data)?;
        let mut values = vec![0.0; rows.len() * shape.1];
        gguf::blocks::dequantize_row(info.kind, &data, values.len(), &mut values).map_err(|e| bad(name, &e))?;
        Ok(values)
    }

    /// A whole linear layer.
    pub(crate) fn linear(&self, name: &str, (rows, cols): (usize, usize)) -> Result<Decoded, Error> {
        let info = self.matrix(name, (rows, cols))?;
        let (codes, scale) = match info.kind {
            TensorType::I2S => {
                let data = self.read(info)?;
                let mut codes = vec![0; rows * cols];
                ternary::i2s_codes(&data, 0, &mut codes);
                (codes, ternary::i2s_scale(&data, rows * cols))
            }
            kind if kind.is_tiled() => {
                let layout = self.tiles.layout(kind, name, (rows, cols))?;
                let data = self.read(info)?;
                let mut codes = vec![0; rows * cols];
                for (band, out) in codes.chunks_exact_mut(BAND_ROWS * cols).enumerate() {
                    layout.codes(&data, band, out);
                }
                (codes, layout.scale(&data))
            }
            TensorType::Tq1_0 | TensorType::Tq2_0 => self.block_codes(name, info, rows * cols)?,
            _ => return Ok(Decoded::Dense(self.dense_rows(name, (rows, cols), 0..rows)?)),
        };
        if codes.iter().any(|&code| code > 2) || !scale.is_finite() {
            return Err(bad(name, &"it holds a code or a scale that means nothing"));
        }
        Ok(Decoded::Ternary { weights: codes.iter().map(|&code| code.cast_signed() - 1).collect(), scale })
    }

    /// TQ1_0 and TQ2_0: all blocks that aren't zero have one scale.
    fn block_codes(&self, name: &str, info: &TensorInfo<'_>, elements: usize) -> Result<(Vec<u8>, f32), Error> {
        let data = self.read(info)?;
        let (mut codes, mut scales) = (vec![0; elements], vec![0.0; elements / ternary::TQ_BLOCK_ELEMENTS]);
        ternary::tq_unpack(info.kind, &data, &mut codes, &mut scales).map_err(|e| bad(name, &e))?;
        let mut one = None;
        for (codes, scale) in codes.as_chunks_mut::<{ ternary::TQ_BLOCK_ELEMENTS }>().0.iter_mut().zip(&scales) {
            if *scale == 0.0 {
                codes.fill(1);
            } else if codes.iter().any(|&code| code != 1) && *one.get_or_insert(*scale) != *scale {
                return Err(bad(name, &"its blocks have different scales, so it is not one ternary matrix"));
            }
        }
        Ok((codes, one.unwrap_or(1.0)))
    }
}

fn bad(name: &str, why: &dyn std::fmt::Display) -> Error {
    Error::BadTensor { name: name.to_owned(), why: why.to_string() }
}

pub(super) fn shape(info: &TensorInfo<'_>) -> String {
    let dims: Vec<String> = info.dims[..info.dim_count as usize].iter().map(u64::to_string).collect();
    dims.join(" x ")
}
