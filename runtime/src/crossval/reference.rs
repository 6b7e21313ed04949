//! The forward pass again, in f64, one layer at a time from the file: small and plain, to compare the fast one with.
//!
//! What defines the served model is kept: int8 activations before ternary weights, F16 queries, keys and values. All else
//! is f64.

use std::time::Instant;

use gguf::Gguf;
use gguf::blocks::{f16_to_f32, f32_to_f16};
use kernels::rope::RopeKind;

use super::{Clock, Error};
use crate::model::{self, Activation, Decoded, HyperParameters, Model, Source, Tensors};

/// Logits of all positions of each sequence; of an embedding model the normalised hidden states.
pub(super) fn logits(
    source: &Source,
    model: &Model,
    sequences: &[Vec<u32>],
    (threads, clock): (usize, Clock),
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Vec<f32>>, Error> {
    let header = source.header()?;
    let gguf = Gguf::parse(&header, source.bytes()).map_err(model::Error::from)?;
    let params = &model.weights.params;
    let file = Tensors::new(source, &gguf)?;
    let lengths = sequences.iter().map(Vec::len).collect();
    let pass = Pass { file, params, lengths, threads: threads.max(1), clock };
    let mut x = pass.embed(sequences)?;
    let steps = params.layers as u64 + 1;
    let started = Instant::now();
    for layer in 0..params.layers {
        pass.layer(layer, &mut x)?;
        clock.check_pace(started, layer as u32 + 1, params.layers as u32)?;
        progress(layer as u64 + 1, steps);
    }
    let all = match params.pooling {
        None => pass.head(&x)?,
        Some(_) => pass.norm("output_norm", &x, params.hidden)?.iter().map(|&value| value as f32).collect(),
    };
    progress(steps, steps);
    let mut rest = all.as_slice();
    Ok(sequences
        .iter()
        .map(|tokens| rest.split_off(..tokens.len() * params.output_width()).expect("counted above").to_vec())
        .collect())
}

struct Pass<'a> {
    file: Tensors<'a, 'a>,
    params: &'a HyperParameters,
    /// Rows of each sequence, one after the other.
    lengths: Vec<usize>,
    threads: usize,
    clock: Clock,
}

impl Pass<'_> {
    fn embed(&self, sequences: &[Vec<u32>]) -> Result<Vec<f64>, Error> {
        let shape = (self.params.vocab, self.params.hidden);
        let mut x = Vec::new();
        for &token in sequences.iter().flatten() {
            let token = token as usize;
            let row = self.file.dense_rows("token_embd.weight", shape, token..token + 1)?;
            let factor = self.params.embedding_scale.map_or(1.0, |_| (self.params.hidden as f64).sqrt());
            x.extend(row.iter().map(|&value| f64::from(value) * factor));
        }
        Ok(x)
    }

    fn layer(&self, index: usize, x: &mut [f64]) -> Result<(), Error> {
        let params = self.params;
        let (hidden, width, kv) = (params.hidden, params.attention_width(), params.kv_heads * params.head_dim);
        let name = |part: &str| format!("blk.{index}.{part}");
        let sub_norm = |part: &str, x: Vec<f64>, width| {
            if params.family.has_sub_norms() { self.norm(&name(part), &x, width) } else { Ok(x) }
        };
        let input = self.norm(&name("attn_norm"), x, hidden)?;
        let mut q = self.projection(&name("attn_q"), &input, (width, hidden))?;
        let mut k = self.projection(&name("attn_k"), &input, (kv, hidden))?;
        let mut v = self.projection(&name("attn_v"), &input, (kv, hidden))?;
        if params.family.is_embedding() {
            q = self.norm(&name("attn_q_norm"), &q, params.head_dim)?;
            k = self.norm(&name("attn_k_norm"), &k, params.head_dim)?;
        }
        self.rotate(&mut q, width)?;
        self.rotate(&mut k, kv)?;
        [&mut q, &mut k, &mut v].into_iter().flatten().for_each(|value| *value = half(*value));
        let attended = sub_norm("attn_sub_norm", self.attend(&q, &k, &v), width)?;
        let post_norm = |part: &str, x: Vec<f64>| {
            if params.family.has_post_norms() { self.norm(&name(part), &x, hidden) } else { Ok(x) }
        };
        let attended = self.projection(&name("attn_output"), &attended, (hidden, width))?;
        add(x, &post_norm("post_attention_norm", attended)?);
        let input = self.norm(&name("ffn_norm"), x, hidden)?;
        let gate = self.projection(&name("ffn_gate"), &input, (params.feed_forward, hidden))?;
        let mut inner = self.projection(&name("ffn_up"), &input, (params.feed_forward, hidden))?;
        for (up, gate) in inner.iter_mut().zip(&gate) {
            *up *= match params.family.activation() {
                Activation::SquaredRelu => gate.max(0.0) * gate.max(0.0),
                Activation::Silu => gate / (1.0 + libm::exp(-gate)),
                Activation::Gelu => {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate * gate * gate);
                    0.5 * gate * (1.0 + libm::tanh(inner))
                }
            };
        }
        let inner = sub_norm("ffn_sub_norm", inner, params.feed_forward)?;
        let added = self.projection(&name("ffn_down"), &inner, (hidden, params.feed_forward))?;
        add(x, &post_norm("post_ffw_norm", added)?);
        Ok(())
    }

    /// A linear layer behind the norm of its input, where it has one.
    fn projection(&self, name: &str, x: &[f64], shape: (usize, usize)) -> Result<Vec<f64>, Error> {
        let input_norm = format!("{name}_norm_in");
        if self.params.family.is_embedding() && self.file.has(&format!("{input_norm}.weight")) {
            return self.linear(name, &self.norm(&input_norm, x, shape.1)?, shape);
        }
        self.linear(name, x, shape)
    }

    fn head(&self, x: &[f64]) -> Result<Vec<f32>, Error> {
        let (vocab, hidden) = (self.params.vocab, self.params.hidden);
        let x = self.norm("output_norm", x, hidden)?;
        let untied = self.params.family.may_untie_head() && self.file.has("output.weight");
        let name = if untied { "output" } else { "token_embd" };
        if self.file.info(&format!("{name}.weight"))?.kind.is_ternary() {
            return Ok(self.linear(name, &x, (vocab, hidden))?.iter().map(|&logit| logit as f32).collect());
        }
        // In pieces: in f32 the whole table may be larger than the model.
        let rows = x.len() / hidden;
        let mut logits = vec![0.0; rows * vocab];
        for first in (0..vocab).step_by(HEAD_PIECE_ROWS) {
            self.clock.check()?;
            let piece = first..vocab.min(first + HEAD_PIECE_ROWS);
            let table = self.file.dense_rows(&format!("{name}.weight"), (vocab, hidden), piece.clone())?;
            let part = self.dense(&table, &x, (piece.len(), hidden));
            for (to, from) in logits.chunks_exact_mut(vocab).zip(part.chunks_exact(piece.len())) {
                to[piece.clone()].iter_mut().zip(from).for_each(|(to, &from)| *to = from as f32);
            }
        }
        Ok(logits)
    }

    /// x / rms(x) * weight for each row.
    fn norm(&self, name: &str, x: &[f64], width: usize) -> Result<Vec<f64>, Error> {
        let weight = self.file.vector(&format!("{name}.weight"), width)?;
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(width) {
            let square = row.iter().map(|value| value * value).sum::<f64>() / width as f64;
            let factor = 1.0 / (square + f64::from(self.params.norm_eps)).sqrt();
            out.extend(row.iter().zip(&weight).map(|(value, &weight)| value * factor * f64::from(weight)));
        }
        Ok(out)
    }

    fn linear(&self, name: &str, x: &[f64], (rows, cols): (usize, usize)) -> Result<Vec<f64>, Error> {
        self.clock.check()?;
        let mut out = match self.file.linear(&format!("{name}.weight"), (rows, cols))? {
            Decoded::Dense(weights) => self.dense(&weights, x, (rows, cols)),
            Decoded::Ternary { weights, scale } => self.ternary(&weights, f64::from(scale), x, (rows, cols)),
        };
        if self.file.has(&format!("{name}.scale")) {
            let scale = f64::from(self.file.vector(&format!("{name}.scale"), 1)?[0]);
            out.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(out)
    }

    fn dense(&self, weights: &[f32], x: &[f64], (rows, cols): (usize, usize)) -> Vec<f64> {
        let dot = |row: usize, x: &&[f64]| sum_of_products(&weights[row * cols..(row + 1) * cols], x);
        self.rows(rows, x.chunks_exact(cols).collect::<Vec<_>>().as_slice(), &dot)
    }

    /// int8 activations: q = x * 127 / max|x|, rounded half to even.
    fn ternary(&self, weights: &[i8], scale: f64, x: &[f64], (rows, cols): (usize, usize)) -> Vec<f64> {
        let quantized: Vec<(Vec<i8>, f64)> = x.chunks_exact(cols).map(quantize).collect();
        let dot = |row: usize, (q, factor): &(Vec<i8>, f64)| {
            let weights = &weights[row * cols..(row + 1) * cols];
            let sum: i32 = weights.iter().zip(q).map(|(&w, &q)| i32::from(w) * i32::from(q)).sum();
            f64::from(sum) / factor * scale
        };
        self.rows(rows, &quantized, &dot)
    }

    /// `out[i][row] = dot(row, inputs[i])`, the rows shared among the threads.
    fn rows<T: Sync>(&self, rows: usize, inputs: &[T], dot: &(impl Fn(usize, &T) -> f64 + Sync)) -> Vec<f64> {
        let share = rows.div_ceil(self.threads).max(1);
        let mut out = vec![0.0; rows * inputs.len()];
        let part = |first: usize| -> Vec<f64> {
            let range = first..rows.min(first + share);
            range.flat_map(|row| inputs.iter().map(move |input| dot(row, input))).collect()
        };
        let part = &part;
        std::thread::scope(|scope| {
            let shares: Vec<_> = (0..rows)
                .step_by(share)
                .map(|first| {
                    let thread = std::thread::Builder::new().spawn_scoped(scope, move || part(first));
                    (first, thread.ok())
                })
                .collect();
            for (first, thread) in shares {
                // Where there can be no further thread, this one does it.
                let computed = thread.map(|thread| thread.join().expect("arithmetic does not panic"));
                let part = computed.unwrap_or_else(|| part(first));
                for (row, values) in (first..).zip(part.chunks_exact(inputs.len().max(1))) {
                    values.iter().enumerate().for_each(|(i, &value)| out[i * rows + row] = value);
                }
            }
        });
        out
    }

    fn rotate(&self, x: &mut [f64], width: usize) -> Result<(), Error> {
        let params = self.params;
        let half = params.rope_dims / 2;
        let factors = match self.file.has("rope_freqs.weight") {
            true => self.file.vector("rope_freqs.weight", half)?,
            false => vec![1.0; half],
        };
        let positions = self.lengths.iter().flat_map(|&length| 0..length);
        for (position, row) in positions.zip(x.chunks_exact_mut(width)) {
            for head in row.chunks_exact_mut(params.head_dim) {
                for (i, &factor) in factors.iter().enumerate() {
                    let exponent = -2.0 * i as f64 / params.rope_dims as f64;
                    let angle = position as f64
                        * libm::pow(f64::from(params.rope_base), exponent)
                        * f64::from(params.rope_scale)
                        / f64::from(factor);
                    let (a, b) = match params.family.rope_kind() {
                        RopeKind::Neox => (i, i + half),
                        RopeKind::Norm => (2 * i, 2 * i + 1),
                    };
                    let (sin, cos) = (libm::sin(angle), libm::cos(angle));
                    (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
        }
        Ok(())
    }

    /// Causal attention within each sequence.
    fn attend(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let params = self.params;
        let (dim, width, kv) = (params.head_dim, params.attention_width(), params.kv_heads * params.head_dim);
        let scale = f64::from(params.attention_scale);
        let mut out = vec![0.0; q.len()];
        let mut first = 0;
        for &length in &self.lengths {
            for row in first..first + length {
                for head in 0..params.heads {
                    let kv_at = head / (params.heads / params.kv_heads) * dim;
                    let q = &q[row * width + head * dim..][..dim];
                    let dot = |at: usize| q.iter().zip(&k[at * kv + kv_at..]).map(|(q, k)| q * k).sum::<f64>() * scale;
                    let scores: Vec<f64> = (first..=row).map(dot).collect();
                    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| libm::exp(score - most)).collect();
                    let sum: f64 = weights.iter().sum();
                    let out = &mut out[row * width + head * dim..][..dim];
                    for (at, weight) in (first..).zip(&weights) {
                        let v = &v[at * kv + kv_at..][..dim];
                        out.iter_mut().zip(v).for_each(|(out, v)| *out += weight / sum * v);
                    }
                }
            }
            first += length;
        }
        out
    }
}

/// In eight sums side by side: one alone waits for each addition, four times as long.
fn sum_of_products(weights: &[f32], x: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (weights, weights_rest) = weights.as_chunks::<8>();
    let (x, x_rest) = x.as_chunks::<8>();
    for (weights, x) in weights.iter().zip(x) {
        for ((sum, &weight), x) in sums.iter_mut().zip(weights).zip(x) {
            *sum += f64::from(weight) * x;
        }
    }
    let rest: f64 = weights_rest.iter().zip(x_rest).map(|(&weight, x)| f64::from(weight) * x).sum();
    sums.iter().sum::<f64>() + rest
}

fn quantize(x: &[f64]) -> (Vec<i8>, f64) {
    const AMAX_MIN: f64 = 1e-5;
    let factor = 127.0 / x.iter().fold(AMAX_MIN, |most, value| value.abs().max(most));
    (x.iter().map(|value| (value * factor).round_ties_even() as i8).collect(), factor)
}

/// Rounded to F16.
fn half(value: f64) -> f64 {
    f64::from(f16_to_f32(f32_to_f16(value as f32)))
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Rows of the head that are decoded at a time.
const HEAD_PIECE_ROWS: usize = 4096;
