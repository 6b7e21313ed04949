//! Weights bit by bit: those that were packed against the file's, or two files' against each other.

use std::fmt;

use gguf::Gguf;
use kernels::Isa;
use kernels::dense::{self, DenseMatrix};
use kernels::ternary::{self, Activations, TernaryMatrix};
use serde::Serialize;

use super::{Clock, Error};
use crate::model::{self, Decoded, Linear, LinearView, Model, Source, Tensors};

/// How many tensors are the same.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TensorReport {
    pub checked: usize,
    pub exact: usize,
    pub different: usize,
    /// The tensors that differ most, worst first.
    pub worst: Vec<TensorDifference>,
}

/// A tensor that is not the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorDifference {
    pub name: String,
    /// Rows with a difference, of so many.
    pub rows_different: usize,
    pub rows: usize,
    pub scale: Option<f32>,
    pub scale_reference: Option<f32>,
}

impl fmt::Display for TensorDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({} of {} rows", self.name, self.rows_different, self.rows)?;
        match (self.scale, self.scale_reference) {
            (Some(ours), Some(theirs)) if ours.to_bits() != theirs.to_bits() => {
                write!(f, ", scale {ours} for {theirs})")
            }
            _ => write!(f, ")"),
        }
    }
}

impl TensorReport {
    fn add(&mut self, difference: TensorDifference) {
        self.checked += 1;
        let scales = difference.scale.map(f32::to_bits) == difference.scale_reference.map(f32::to_bits);
        if difference.rows_different == 0 && scales {
            self.exact += 1;
            return;
        }
        self.different += 1;
        self.worst.push(difference);
    }

    fn finish(mut self) -> Self {
        let share = |of: &TensorDifference| of.rows_different as f64 / of.rows.max(1) as f64;
        self.worst.sort_by(|a, b| share(b).total_cmp(&share(a)));
        self.worst.truncate(SHOWN);
        self
    }
}

/// The packed weights of `model` against the file that it was loaded from.
pub(super) fn against_own_file(source: &Source, model: &Model, clock: Clock) -> Result<TensorReport, Error> {
    let header = source.header()?;
    let gguf = Gguf::parse(&header, source.bytes()).map_err(model::Error::from)?;
    let file = Tensors::new(source, &gguf)?;
    let mut report = TensorReport::default();
    for (name, linear) in model.weights.linears() {
        clock.check()?;
        report.add(packed_against_file(&file, model, &format!("{name}.weight"), linear)?);
    }
    Ok(report.finish())
}

fn packed_against_file(
    file: &Tensors<'_, '_>,
    model: &Model,
    name: &str,
    linear: &Linear,
) -> Result<TensorDifference, Error> {
    let (rows, cols) = (linear.rows, linear.cols);
    let mut difference =
        TensorDifference { name: name.to_owned(), rows_different: 0, rows, scale: None, scale_reference: None };
    match model.weights.view(linear) {
        LinearView::Ternary(packed) => match file.linear(name, (rows, cols))? {
            Decoded::Ternary { weights, scale } => {
                difference.rows_different = ternary_rows_different(packed, &weights, cols);
                (difference.scale, difference.scale_reference) = (Some(packed.scale()), Some(scale));
            }
            Decoded::Dense(_) => difference.rows_different = rows,
        },
        LinearView::Dense(table) => difference.rows_different = dense_rows_different(file, table, name)?,
    }
    Ok(difference)
}

/// Rows whose exact product with one vector of int8 is another. No value of it is zero, so that a single weight shows.
fn ternary_rows_different(packed: TernaryMatrix<'_>, weights: &[i8], cols: usize) -> usize {
    let mut q = vec![0i8; ternary::padded_cols(cols)];
    for (index, value) in q[..cols].iter_mut().enumerate() {
        let mixed = (index as u32).wrapping_mul(0x9e37_79b1) >> 25;
        *value = (mixed as i8) - 64;
        *value += i8::from(*value >= 0);
    }
    let sum = [q.iter().map(|&q| i32::from(q)).sum()];
    let x = Activations { q: &q, stride: q.len(), scale: &[1.0], sum: &sum };
    let mut raw = vec![0; packed.rows()];
    ternary::linear_raw(Isa::detect(), packed, 0..packed.rows(), x, &mut raw);
    let exact = |row: &[i8]| row.iter().zip(&q).map(|(&w, &q)| i32::from(w) * i32::from(q)).sum::<i32>();
    weights.chunks_exact(cols).zip(&raw).filter(|(row, raw)| exact(row) != **raw).count()
}

fn dense_rows_different(file: &Tensors<'_, '_>, table: DenseMatrix<'_>, name: &str) -> Result<usize, Error> {
    let (rows, cols) = (table.rows(), table.cols());
    let (mut different, mut ours) = (0, vec![0.0; cols]);
    for first in (0..rows).step_by(PIECE_ROWS) {
        let piece = first..rows.min(first + PIECE_ROWS);
        let theirs = file.dense_rows(name, (rows, cols), piece.clone())?;
        for (row, theirs) in piece.zip(theirs.chunks_exact(cols)) {
            dense::dequantize_row(Isa::detect(), table, row, &mut ours);
            different += usize::from(!same_bits(&ours, theirs));
        }
    }
    Ok(different)
}

/// The weights of two files, tensor by tensor; one that only one of them has counts as different.
pub(super) fn against_file(ours: &Source, theirs: &Source, clock: Clock) -> Result<TensorReport, Error> {
    let (our_header, their_header) = (ours.header()?, theirs.header()?);
    let our_gguf = Gguf::parse(&our_header, ours.bytes()).map_err(model::Error::from)?;
    let their_gguf = Gguf::parse(&their_header, theirs.bytes()).map_err(model::Error::from)?;
    let (ours, theirs) = (Tensors::new(ours, &our_gguf)?, Tensors::new(theirs, &their_gguf)?);
    let mut report = TensorReport::default();
    for tensor in our_gguf.tensors() {
        clock.check()?;
        // The files were loaded, so that their tensors fit in memory.
        let (rows, cols) = (tensor.rows() as usize, tensor.cols() as usize);
        let mut difference = TensorDifference {
            name: tensor.name.to_owned(),
            rows_different: rows,
            rows,
            scale: None,
            scale_reference: None,
        };
        if theirs.matrix(tensor.name, (rows, cols)).is_ok() {
            compare_tensor(&ours, &theirs, (rows, cols), &mut difference)?;
        }
        report.add(difference);
    }
    for tensor in their_gguf.tensors().iter().filter(|tensor| !ours.has(tensor.name)) {
        let (name, rows) = (tensor.name.to_owned(), tensor.rows() as usize);
        report.add(TensorDifference { name, rows_different: rows, rows, scale: None, scale_reference: None });
    }
    Ok(report.finish())
}

fn compare_tensor(
    ours: &Tensors<'_, '_>,
    theirs: &Tensors<'_, '_>,
    (rows, cols): (usize, usize),
    difference: &mut TensorDifference,
) -> Result<(), Error> {
    let name = difference.name.clone();
    let ternary = |file: &Tensors<'_, '_>| file.info(&name).is_ok_and(|info| info.kind.is_ternary());
    if !ternary(ours) && !ternary(theirs) {
        difference.rows_different = 0;
        for first in (0..rows).step_by(PIECE_ROWS) {
            let piece = first..rows.min(first + PIECE_ROWS);
            let (a, b) =
                (ours.dense_rows(&name, (rows, cols), piece.clone())?, theirs.dense_rows(&name, (rows, cols), piece)?);
            let pairs = a.chunks_exact(cols).zip(b.chunks_exact(cols));
            difference.rows_different += pairs.filter(|(a, b)| !same_bits(a, b)).count();
        }
        return Ok(());
    }
    let (a, b) = (ours.linear(&name, (rows, cols))?, theirs.linear(&name, (rows, cols))?);
    if let (Decoded::Ternary { weights: a, scale }, Decoded::Ternary { weights: b, scale: scale_reference }) = (&a, &b)
    {
        difference.rows_different = a.chunks_exact(cols).zip(b.chunks_exact(cols)).filter(|(a, b)| a != b).count();
        (difference.scale, difference.scale_reference) = (Some(*scale), Some(*scale_reference));
        return Ok(());
    }
    let (a, b) = (a.into_dense(), b.into_dense());
    difference.rows_different =
        a.chunks_exact(cols).zip(b.chunks_exact(cols)).filter(|(a, b)| !same_bits(a, b)).count();
    Ok(())
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Rows of a dense table that are decoded at a time.
const PIECE_ROWS: usize = 1024;
const SHOWN: usize = 5;
