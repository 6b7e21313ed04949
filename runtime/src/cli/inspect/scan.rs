//! The data of ternary tensors: codes that mean nothing, and scales.

use gguf::ternary::{self, BAND_ROWS, Tiled};
use gguf::{TensorInfo, TensorType};

use crate::model::{Error, Source};

/// What was found so far.
pub(super) struct Scan {
    pub(super) tensor_count: usize,
    pub(super) elements: u64,
    /// Of the finite scales.
    pub(super) scale_min: f32,
    pub(super) scale_max: f32,
    pub(super) bad_scale_count: u64,
    pub(super) code3_count: u64,
    /// The first scale that a weight would hardly have, and its tensor.
    pub(super) odd_scale: Option<(String, f32)>,
    piece: Vec<u8>,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            tensor_count: 0,
            elements: 0,
            scale_min: f32::INFINITY,
            scale_max: f32::NEG_INFINITY,
            bad_scale_count: 0,
            code3_count: 0,
            odd_scale: None,
            piece: vec![],
        }
    }
}

impl Scan {
    /// I2_S, TQ1_0 and TQ2_0, in pieces.
    pub(super) fn blocks(&mut self, source: &Source, tensor: &TensorInfo<'_>) -> Result<(), Error> {
        // Whole blocks of any of the types.
        const PIECE_BLOCKS: u64 = 1 << 15;
        self.tensor_count += 1;
        self.elements += tensor.elements();
        let block_bytes = tensor.kind.block_bytes();
        let end = tensor.offset + tensor.elements() / tensor.kind.block_elements() * block_bytes;
        let mut at = tensor.offset;
        while at < end {
            let count = (end - at).min(PIECE_BLOCKS * block_bytes);
            self.piece.resize(count as usize, 0);
            source.read_at(at, &mut self.piece)?;
            at += count;
            if tensor.kind == TensorType::I2S {
                self.code3_count += ternary::code3_count(&self.piece);
            } else {
                self.scaled_blocks(tensor, block_bytes as usize);
            }
        }
        if tensor.kind == TensorType::I2S {
            let mut scale = [0; 4];
            source.read_at(end, &mut scale)?;
            self.scale(tensor.name, f32::from_le_bytes(scale), f32::MIN_POSITIVE);
        }
        Ok(())
    }

    /// TL1 and TL2, the whole tensor at once.
    pub(super) fn tiles(&mut self, source: &Source, tensor: &TensorInfo<'_>, layout: &Tiled) -> Result<(), Error> {
        self.tensor_count += 1;
        self.elements += tensor.elements();
        // The layout was made for this shape, so that both fit in memory as far as the file does.
        let (rows, cols) = (tensor.rows() as usize, tensor.cols() as usize);
        self.piece.resize(layout.bytes(), 0);
        source.read_at(tensor.offset, &mut self.piece)?;
        let mut codes = vec![0; BAND_ROWS * cols];
        for band in 0..rows / BAND_ROWS {
            layout.codes(&self.piece, band, &mut codes);
            self.code3_count += codes.iter().filter(|&&code| code == 3).count() as u64;
        }
        self.scale(tensor.name, layout.scale(&self.piece), f32::MIN_POSITIVE);
        Ok(())
    }

    /// TQ1_0 and TQ2_0: an f16 scale ends each block.
    fn scaled_blocks(&mut self, tensor: &TensorInfo<'_>, block_bytes: usize) {
        let piece = std::mem::take(&mut self.piece);
        for block in piece.chunks_exact(block_bytes) {
            let (codes, scale) = block.split_at(block_bytes - 2);
            // A block of zeros may have the scale 0.
            let scale = gguf::blocks::f16_to_f32(u16::from_le_bytes([scale[0], scale[1]]));
            self.scale(tensor.name, scale, 0.0);
            if tensor.kind == TensorType::Tq2_0 {
                self.code3_count += ternary::code3_count(codes);
            }
        }
        self.piece = piece;
    }

    fn scale(&mut self, tensor: &str, scale: f32, least: f32) {
        const SCALE_MAX: f32 = 1e4;
        if scale.is_finite() {
            if !(least..=SCALE_MAX).contains(&scale) {
                self.odd_scale.get_or_insert_with(|| (tensor.to_owned(), scale));
            }
            self.scale_min = self.scale_min.min(scale);
            self.scale_max = self.scale_max.max(scale);
        } else {
            self.bad_scale_count += 1;
        }
    }
}
