//! What a loaded model must show before it is served: kernels that give known answers on this instruction set, a step
//! equal to the portable one, scores that are numbers, a short answer (or an embedding model's states) that comes out the
//! same in one step and in many.

use std::time::{Duration, Instant};

use kernels::attention::KvType;
use kernels::dense::{self, DenseKind, DenseMatrix, DenseScratch};
use kernels::ternary::{self, Activations, TernaryMatrix};
use kernels::{Isa, norm, softmax};

use crate::model::{LinearView, Model};
use crate::replay::Replay;

/// A test that was passed.
#[derive(Clone, Debug)]
pub struct SelfTest {
    pub took: Duration,
    /// Whether a whole step was compared with the portable kernels, or parts of every layer.
    pub whole_step: bool,
    /// What the model says after the prompt; nothing of an embedding model.
    pub text: String,
}

/// Why a model must not be served.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the {kernel} kernel for {isa} gives a wrong answer")]
    Kernel { kernel: &'static str, isa: &'static str },
    #[error("`{what}` differs between the kernels for {isa} and the portable ones")]
    Portable { what: String, isa: &'static str },
    #[error("the scores of position {position} are no numbers")]
    NotFinite { position: usize },
    #[error("position {position} differs between one step of many tokens and steps of one token")]
    Steps { position: usize },
    #[error("can't start a thread")]
    Thread(#[source] std::io::Error),
}

/// Tests `model` with the kernels for `isa`, on `workers` threads.
///
/// # Errors
/// The first test that fails.
pub fn self_test(model: &Model, isa: Isa, kv_type: KvType, workers: usize) -> Result<SelfTest, Failure> {
    let started = Instant::now();
    known_answers(isa)?;
    let prompt = prompt(model);
    let embedding = model.weights.params.pooling.is_some();
    let answer_max = if embedding { 0 } else { ANSWER_TOKENS.min(model.weights.context.saturating_sub(prompt.len())) };
    let mut replay = Replay::new(model, isa, kv_type, workers, prompt.len() + answer_max).map_err(Failure::Thread)?;
    let answer = replay.greedy(&prompt, answer_max);
    let tokens = [&prompt[..], &answer].concat();
    check_steps(&mut replay, &prompt, &answer)?;
    if embedding {
        check_states(&mut replay, &prompt)?;
    }
    let whole_step = model.weights.bytes_per_token() <= PORTABLE_STEP_BYTES_MAX;
    if whole_step {
        let mut portable = Replay::new(model, Isa::Portable, kv_type, workers, 1).map_err(Failure::Thread)?;
        let first = |replay: &mut Replay<'_>| {
            let mut logits = Vec::new();
            replay.sequence(&tokens[..1], |_, row| logits.extend_from_slice(row));
            logits
        };
        if !same_bits(&first(&mut replay), &first(&mut portable)) {
            return Err(Failure::Portable { what: "one step".into(), isa: isa.name() });
        }
    } else {
        portable_parts(model, isa)?;
    }
    let mut text = Vec::new();
    answer.iter().for_each(|&token| text.extend_from_slice(model.tokenizer.piece(token)));
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(SelfTest { took: started.elapsed(), whole_step, text })
}

/// A few tokens that every vocabulary has.
fn prompt(model: &Model) -> Vec<u32> {
    let mut tokens = Vec::new();
    model.tokenizer.encode("Once upon a time", true, false, &mut tokens);
    tokens.truncate(PROMPT_TOKENS_MAX.min(model.weights.context));
    if tokens.is_empty() { vec![model.tokenizer.bos().unwrap_or(0)] } else { tokens }
}

/// All tokens in one step: the scores are numbers, and choose what was chosen token by token.
fn check_steps(replay: &mut Replay<'_>, prompt: &[u32], answer: &[u32]) -> Result<(), Failure> {
    let tokens = [prompt, answer].concat();
    let mut outcome = Ok(());
    replay.sequence(&tokens, |position, logits| {
        if outcome.is_err() {
            return;
        }
        if !logits.iter().all(|logit| logit.is_finite()) {
            outcome = Err(Failure::NotFinite { position });
            return;
        }
        let chosen = (position + 1).checked_sub(prompt.len()).and_then(|index| answer.get(index));
        if chosen.is_some_and(|&token| softmax::argmax(Isa::detect(), logits) != token as usize) {
            outcome = Err(Failure::Steps { position });
        }
    });
    outcome
}

/// The states of an embedding model are the same token by token, and give its text a direction.
fn check_states(replay: &mut Replay<'_>, prompt: &[u32]) -> Result<(), Failure> {
    let mut together = Vec::new();
    replay.sequence(prompt, |_, state| together.push(state.to_vec()));
    let mut outcome = Ok(());
    replay.sequence_in_steps(prompt, 1, |position, state| {
        if outcome.is_ok() && !same_bits(&together[position], state) {
            outcome = Err(Failure::Steps { position });
        }
    });
    outcome?;
    replay.embedding(prompt).map(|_| ()).ok_or(Failure::NotFinite { position: prompt.len() - 1 })
}

/// Sixteen rows of every linear layer, with one activation.
fn portable_parts(model: &Model, isa: Isa) -> Result<(), Failure> {
    for (name, linear) in model.weights.linears() {
        let rows = 0..linear.rows.min(ternary::TILE_ROWS);
        let x: Vec<f32> = (0..linear.cols).map(|index| wave(index) as f32 / 64.0).collect();
        let part = |isa| {
            let mut out = vec![0.0; rows.len()];
            match model.weights.view(linear) {
                LinearView::Ternary(w) => {
                    let mut q = vec![0; ternary::padded_cols(linear.cols)];
                    let quantized = ternary::quantize(isa, &x, &mut q);
                    let (scale, sum) = ([quantized.scale], [quantized.sum]);
                    let x = Activations { q: &q, stride: q.len(), scale: &scale, sum: &sum };
                    ternary::linear(isa, w, rows.clone(), x, &mut out);
                }
                LinearView::Dense(w) => {
                    dense::linear(isa, w, rows.clone(), &x, &mut out, &mut DenseScratch::default());
                }
            }
            out
        };
        if !same_bits(&part(isa), &part(Isa::Portable)) {
            return Err(Failure::Portable { what: name, isa: isa.name() });
        }
    }
    Ok(())
}

/// Small inputs whose results are whole numbers or powers of two, so that every order of summing gives them exactly.
fn known_answers(isa: Isa) -> Result<(), Failure> {
    let wrong = |kernel| Failure::Kernel { kernel, isa: isa.name() };
    let (rows, cols) = (2 * ternary::TILE_ROWS + 3, 4096 + 64);
    let codes: Vec<u8> = (0..rows * cols).map(|index| wave(index / 3).unsigned_abs() % 3).collect();
    let mut packed = vec![0; ternary::packed_bytes(rows, cols)];
    ternary::pack_codes(&codes, cols, &mut packed).expect("codes are 0 to 2");
    let w = TernaryMatrix::new(&packed, rows, cols, 0.5).expect("sizes fit");
    let mut q = vec![0i8; ternary::padded_cols(cols)];
    q[..cols].iter_mut().enumerate().for_each(|(index, q)| *q = wave(index));
    let sum = [q.iter().map(|&q| i32::from(q)).sum()];
    let mut raw = vec![0; rows];
    ternary::linear_raw(isa, w, 0..rows, Activations { q: &q, stride: q.len(), scale: &[1.0], sum: &sum }, &mut raw);
    for (codes, raw) in codes.chunks_exact(cols).zip(&raw) {
        let exact: i32 = codes.iter().zip(&q).map(|(&code, &q)| (i32::from(code) - 1) * i32::from(q)).sum();
        if exact != *raw {
            return Err(wrong("ternary"));
        }
    }
    // Whole numbers below 2^24 are exact in f32, and so are their sums here.
    let cols = 256;
    let weights: Vec<u8> = (0..rows * cols).flat_map(|index| f32::from(wave(index)).to_le_bytes()).collect();
    let w = DenseMatrix::new(DenseKind::F32, &weights, rows, cols).expect("sizes fit");
    let x: Vec<f32> = (0..cols).map(|index| f32::from(wave(index + 7))).collect();
    let mut out = vec![0.0; rows];
    dense::linear(isa, w, 0..rows, &x, &mut out, &mut DenseScratch::default());
    for (row, out) in out.iter().enumerate() {
        let exact: i32 = (0..cols).map(|k| i32::from(wave(row * cols + k)) * i32::from(wave(k + 7))).sum();
        if exact as f32 != *out {
            return Err(wrong("dense"));
        }
    }
    // The mean square of +-4 is 16.
    let x: Vec<f32> = (0..cols).map(|index| if index % 3 == 0 { -4.0 } else { 4.0 }).collect();
    let mut normed = vec![0.0; cols];
    norm::rms_norm(isa, &x, &vec![2.0; cols], 0.0, &mut normed);
    if x.iter().zip(&normed).any(|(x, normed)| *normed != x / 2.0) {
        return Err(wrong("norm"));
    }
    Ok(())
}

/// -64 to 63, without a period that a tile has.
fn wave(index: usize) -> i8 {
    (((index as u32).wrapping_mul(0x9e37_79b1) >> 25) as u8).cast_signed() - 64
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

const ANSWER_TOKENS: usize = 4;
const PROMPT_TOKENS_MAX: usize = 8;
/// The portable kernels compute about a gigabyte of packed weights a second.
const PORTABLE_STEP_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HeadScreen, LoadOptions, Source};

    #[test]
    fn every_instruction_set_of_this_machine_gives_the_known_answers() {
        for isa in Isa::available() {
            assert!(known_answers(isa).is_ok(), "{}", isa.name());
        }
    }

    #[test]
    fn the_default_model_passes_whole_and_in_parts() {
        let options = LoadOptions { threads: 2, node: None, context_max: 64, head_screen: HeadScreen::WhereItPays };
        let model = Model::load(&Source::embedded(), "tested".into(), options, &|_, _| {}).unwrap();
        let passed = self_test(&model, Isa::detect(), KvType::F16, 1).unwrap();
        assert!(passed.whole_step && !passed.text.is_empty(), "{passed:?}");
        assert!(portable_parts(&model, Isa::detect()).is_ok());
        assert_eq!(passed.text, self_test(&model, Isa::Portable, KvType::F16, 2).unwrap().text);
    }

    #[test]
    fn scores_that_are_no_numbers_are_found_with_their_position() {
        let options = LoadOptions { threads: 2, node: None, context_max: 64, head_screen: HeadScreen::WhereItPays };
        let mut model = Model::load(&Source::embedded(), "tested".into(), options, &|_, _| {}).unwrap();
        model.weights.output_norm[7] = f32::NAN;
        assert!(matches!(self_test(&model, Isa::detect(), KvType::F16, 1), Err(Failure::NotFinite { position: 0 })));
    }
}
