//! Cross-validation: sound models pass against every kind of reference, and what is wrong with others is named.
#![expect(clippy::unwrap_used, reason = "a model that can't be made or loaded fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gguf::{Gguf, TensorType};
use kernels::attention::KvType;
use runtime::cli::synth::{self, Preset};
use runtime::crossval::{Error, Options, Recorded, Reference, Rejection, Report, cross_validate};
use runtime::model::{HeadScreen, LoadOptions, Model, Source};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("bitnetd-crossval-{}-{name}", std::process::id())))
    }

    /// A small model of random weights.
    fn synth(name: &str, kind: TensorType, seed: u64) -> Self {
        Self::synth_as(name, Preset::Tiny, kind, seed)
    }

    fn synth_as(name: &str, preset: Preset, kind: TensorType, seed: u64) -> Self {
        let scratch = Self::new(name);
        synth::write(&scratch.0, preset, kind, TensorType::F16, seed, |_, _| {}).unwrap();
        scratch
    }

    fn open(&self) -> (Source, Model) {
        let source = Source::open(&self.0).unwrap();
        let model = load(&source);
        (source, model)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A file that is left over harms nobody.
        let _ = fs::remove_file(&self.0);
    }
}

fn load(source: &Source) -> Model {
    let options = LoadOptions { threads: 2, node: None, context_max: 256, head_screen: HeadScreen::Off };
    Model::load(source, "tested".into(), options, &|_, _| {}).unwrap()
}

const OPTIONS: Options<'_> = Options {
    min_accuracy: 0.99,
    samples: 2,
    positions_max: None,
    text: None,
    threads: 2,
    kv_type: KvType::F16,
    deadline: None,
};

fn compare(source: &Source, model: &Model, reference: &Reference<'_>) -> Report {
    cross_validate(source, model, reference, &OPTIONS, &|_, _| {}).unwrap()
}

/// Changes one code of the tensor, to another one that means something.
fn damage(path: &Path, tensor: &str) {
    let mut bytes = fs::read(path).unwrap();
    let offset = Gguf::parse(&bytes, bytes.len() as u64).unwrap().tensor(tensor).unwrap().offset as usize;
    bytes[offset] = if bytes[offset] & 3 == 1 { bytes[offset] - 1 } else { bytes[offset] & !3 | 1 };
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_default_model_passes_against_the_pass_in_f64() {
    let (source, model) = (Source::embedded(), load(&Source::embedded()));
    let report = compare(&source, &model, &Reference::Own);
    println!("{report:?}");
    assert_eq!(report.verdict(), Ok(()));
    assert_eq!(report.tensors.exact, report.tensors.checked);
    assert_eq!(report.tensors.checked, 12 * 7 + 1);
    let choices = report.scores.choices.unwrap();
    assert!(choices.kl_mean < 1e-2 && choices.perplexity_difference.abs() < 0.02);
}

#[test]
fn embedding_models_pass_against_the_pass_in_f64() {
    for (preset, linears) in [(Preset::TinyQwen3, 3 * 7 + 1), (Preset::TinyGemma3, 3 * 7 + 1)] {
        let (source, model) = Scratch::synth_as(preset.name(), preset, TensorType::I2S, 5).open();
        let report = compare(&source, &model, &Reference::Own);
        println!("{report:?}");
        assert_eq!(report.verdict(), Ok(()));
        assert!(report.scores.accuracy > 0.9995 && report.scores.choices.is_none());
        assert_eq!((report.tensors.exact, report.tensors.checked), (linears, linears));
    }
}

#[test]
fn an_embedding_model_with_other_weights_fails() {
    let (one, two) = (
        Scratch::synth_as("q1", Preset::TinyQwen3, TensorType::I2S, 5),
        Scratch::synth_as("q2", Preset::TinyQwen3, TensorType::I2S, 6),
    );
    let ((source, model), (other, other_model)) = (one.open(), two.open());
    let report = compare(&source, &model, &Reference::Model { source: &other, model: &other_model });
    assert!(matches!(report.verdict(), Err(Rejection::Accuracy { .. })), "{report:?}");
    let (third, third_model) = Scratch::synth("q3", TensorType::I2S, 5).open();
    let reference = Reference::Model { source: &third, model: &third_model };
    let error = cross_validate(&source, &model, &reference, &OPTIONS, &|_, _| {}).unwrap_err();
    assert!(matches!(error, Error::Kind), "{error}");
}

#[test]
fn layouts_of_the_same_weights_are_equal_bit_for_bit() {
    let (i2s, tl2) = (Scratch::synth("a", TensorType::I2S, 5), Scratch::synth("b", TensorType::Tl2, 5));
    let ((source, model), (other, other_model)) = (i2s.open(), tl2.open());
    let report = compare(&source, &model, &Reference::Model { source: &other, model: &other_model });
    let choices = report.scores.choices.unwrap();
    assert_eq!((choices.top1_agreement, choices.kl_max), (1.0, 0.0));
    assert_eq!((report.tensors.different, choices.perplexity_difference), (0, 0.0));
}

#[test]
fn other_weights_are_refused_and_the_worst_tensors_named() {
    let (a, b) = (Scratch::synth("c", TensorType::I2S, 5), Scratch::synth("d", TensorType::I2S, 6));
    let ((source, model), (other, other_model)) = (a.open(), b.open());
    let report = compare(&source, &model, &Reference::Model { source: &other, model: &other_model });
    let rejection = report.verdict().unwrap_err();
    assert!(matches!(rejection, Rejection::Accuracy { accuracy, .. } if accuracy < 0.5), "{rejection}");
    let words = rejection.to_string();
    assert!(words.contains("worst tensors are `") && words.contains("worst positions are text"), "{words}");
}

#[test]
fn one_weight_that_changed_after_loading_is_found() {
    let file = Scratch::synth("e", TensorType::I2S, 5);
    let (_, model) = file.open();
    damage(&file.0, "blk.1.ffn_up.weight");
    let report = compare(&Source::open(&file.0).unwrap(), &model, &Reference::Own);
    assert_eq!((report.tensors.different, report.tensors.worst[0].rows_different), (1, 1));
    assert_eq!(report.tensors.worst[0].name, "blk.1.ffn_up.weight");
    assert!(matches!(report.verdict(), Err(Rejection::Tensors { different: 1, .. })));
}

#[test]
fn the_deadline_and_texts_of_nothing_end_it() {
    let (source, model) = (Source::embedded(), load(&Source::embedded()));
    let run = |options: &Options<'_>| cross_validate(&source, &model, &Reference::Own, options, &|_, _| {});
    assert!(matches!(run(&Options { deadline: Some(Instant::now()), ..OPTIONS }), Err(Error::Timeout)));
    assert!(matches!(run(&Options { text: Some(" \n\n \n"), ..OPTIONS }), Err(Error::NoText)));
}

#[test]
fn recorded_logits_are_compared_or_refused() {
    let file = Scratch::synth("f", TensorType::I2S, 5);
    let (source, model) = file.open();
    let vocab = model.weights.params.vocab;
    let array = |kind: &str, shape: String, data: Vec<u8>| {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape})}}");
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &data].concat()
    };
    let recorded = |tokens: &[u32], logits: &[f32]| {
        let ids = array("<u4", format!("{},", tokens.len()), tokens.iter().flat_map(|t| t.to_le_bytes()).collect());
        let rows = format!("{}, {}", tokens.len(), logits.len() / tokens.len());
        let rows = array("<f4", rows, logits.iter().flat_map(|l| l.to_le_bytes()).collect());
        Recorded::parse(&zip(&[("tokens.npy", &ids), ("logits.npy", &rows)])).unwrap()
    };
    let mut logits = vec![];
    runtime::replay::Replay::new(&model, kernels::Isa::detect(), KvType::F16, 1, 3)
        .unwrap()
        .sequence(&[1, 2, 3], |_, row| logits.extend_from_slice(row));
    let good = recorded(&[1, 2, 3], &logits);
    let report = compare(&source, &model, &Reference::Recorded(&good));
    let choices = report.scores.choices.unwrap();
    assert_eq!((report.scores.positions, choices.kl_max, report.scores.accuracy), (3, 0.0, 1.0));
    let run = |recorded: &Recorded| {
        cross_validate(&source, &model, &Reference::Recorded(recorded), &OPTIONS, &|_, _| {}).unwrap_err()
    };
    assert!(matches!(run(&recorded(&[1], &[0.0; 7])), Error::Vocabulary { theirs: 7, .. }));
    assert!(matches!(run(&recorded(&[vocab as u32], &vec![0.0; vocab])), Error::Token { .. }));
    let long = vec![0; model.weights.context + 1];
    assert!(matches!(run(&recorded(&long, &vec![0.0; long.len() * vocab])), Error::TooLong { .. }));
}

/// A ZIP file of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut records) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let local = (file.len() as u32).to_le_bytes();
        let (size, length) = ((data.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
        let common = [&[0; 6][..], &crc32(data).to_le_bytes(), &size, &size, &length].concat();
        file.extend([b"PK\x03\x04\x14\0\0\0", &common[..], &[0; 2], name.as_bytes(), data].concat());
        records.extend([b"PK\x01\x02\x14\0\x14\0\0\0", &common[..], &[0; 12], &local, name.as_bytes()].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (at, size) = ((file.len() as u32).to_le_bytes(), (records.len() as u32).to_le_bytes());
    [file, records, [b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &at, &[0; 2]].concat()].concat()
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 })
    })
}

/// The default model on a long text; `tr -s '\n' < LICENSE > text`, `bitnetd crossval --reference f16 --kv-cache-type int8
/// --text text` shows the figures.
#[test]
fn an_int8_cache_is_near_an_f16_one_and_an_f16_one_is_the_same() {
    let source = Source::embedded();
    let options = LoadOptions { threads: 2, node: None, context_max: 4096, head_screen: HeadScreen::Off };
    let model = Model::load(&source, "tested".into(), options, &|_, _| {}).unwrap();
    let mut text = include_str!("../../LICENSE").to_owned();
    while text.contains("\n\n") {
        text = text.replace("\n\n", "\n");
    }
    let [f16, int8] = [KvType::F16, KvType::Int8].map(|kv_type| {
        let reference = Reference::Model { source: &source, model: &model };
        let options = Options { text: Some(&text), kv_type, ..OPTIONS };
        let scores = cross_validate(&source, &model, &reference, &options, &|_, _| {}).unwrap().scores;
        println!("{kv_type:?}: {scores:?}");
        assert!(scores.positions > 500);
        scores.choices.unwrap()
    });
    assert_eq!((f16.top1_agreement, f16.kl_max), (1.0, 0.0));
    assert!(int8.kl_max > 0.0 && int8.kl_mean < 1e-2, "{int8:?}");
    assert!(int8.top1_agreement > 0.95 && int8.perplexity_difference.abs() < 0.01, "{int8:?}");
}
