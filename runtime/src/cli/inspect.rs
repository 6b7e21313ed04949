//! `bitnetd inspect`: what a model file is, and whether it can be served.

mod cache;
mod check;
mod facts;
mod scan;
mod text;

use std::path::Path;

use gguf::Gguf;

use crate::model::{self, Source, Tiles};
use facts::{Facts, Severity};

/// What to show and how strict to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InspectOptions {
    /// One JSON object instead of a table.
    pub json: bool,
    /// Any finding makes the exit code 4.
    pub strict: bool,
    /// List every tensor.
    pub tensors: bool,
    /// Colours of a terminal.
    pub colour: bool,
}

/// The file is sound and of a kind that is served.
pub const EXIT_OK: u8 = 0;
/// The file could not be read.
pub const EXIT_IO: u8 = 1;
/// The file breaks its format, or holds ternary weights that mean nothing.
pub const EXIT_MALFORMED: u8 = 2;
/// The file may be sound but is of a kind that is not served.
pub const EXIT_UNSUPPORTED: u8 = 3;
/// There are findings and the options say strict.
pub const EXIT_STRICT: u8 = 4;

/// As [`report`], which is asked only where `folder` keeps no report of the file as it is now.
pub fn report_once(folder: &Path, path: &Path, options: InspectOptions) -> (String, u8) {
    let place = cache::Place::of(folder, path, options);
    if let Some(kept) = place.as_ref().and_then(cache::Place::find) {
        return kept;
    }
    let (text, code) = report(path, options);
    if let Some(place) = place.filter(|_| code != EXIT_IO) {
        place.keep(&text, code);
    }
    (text, code)
}

/// The text for standard output and the exit code.
///
/// The header is read as a growing prefix, the data of ternary tensors in pieces: memory stays small whatever the file.
pub fn report(path: &Path, options: InspectOptions) -> (String, u8) {
    match examine(path, options) {
        Ok(facts) => {
            let code = exit_code(&facts, options);
            let text = if options.json { to_json(&facts) } else { text::render(&facts, options.colour) };
            (text, code)
        }
        Err(error) => {
            let code = match &error {
                model::Error::Io { .. } => EXIT_IO,
                model::Error::Malformed(error) if error.is_unsupported() => EXIT_UNSUPPORTED,
                _ => EXIT_MALFORMED,
            };
            let path = path.display().to_string();
            let error = super::chain(&error);
            let text = if options.json {
                to_json(&serde_json::json!({ "path": path, "error": error, "exit_code": code }))
            } else {
                format!("{path}: {error}\n")
            };
            (text, code)
        }
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("string keys and plain values");
    text.push('\n');
    text
}

fn exit_code(facts: &Facts, options: InspectOptions) -> u8 {
    let any = |severity| facts.findings.iter().any(|finding| finding.severity == severity);
    if any(Severity::Malformed) {
        EXIT_MALFORMED
    } else if any(Severity::Unsupported) {
        EXIT_UNSUPPORTED
    } else if options.strict && !facts.findings.is_empty() {
        EXIT_STRICT
    } else {
        EXIT_OK
    }
}

fn examine(path: &Path, options: InspectOptions) -> Result<Facts, model::Error> {
    let source = Source::open(path)?;
    let header = source.header()?;
    let gguf = Gguf::parse(&header, source.bytes())?;
    let mut facts = Facts::of_tables(path, source.bytes(), &gguf, options.tensors);
    let tiles = Tiles::of(&source, &gguf);
    facts.add_ternary_data(&source, &gguf, &tiles)?;
    facts.check(&source, &gguf)?;
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gguf::TensorType;
    use gguf::writer::Writer;
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, bytes: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("bitnetd-inspect-{}-{name}.gguf", std::process::id()));
            std::fs::write(&path, bytes).expect("the temporary folder can be written");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    const JSON: InspectOptions = InspectOptions { json: true, strict: false, tensors: true, colour: false };

    fn model(arch: &str, kind: TensorType, edit: impl FnOnce(&mut Writer)) -> Writer {
        let mut writer = Writer::new(3);
        let key = |name: &str| format!("{arch}.{name}");
        writer.kv("general.architecture", arch);
        for (name, value) in [
            ("block_count", 1u32),
            ("embedding_length", 256),
            ("feed_forward_length", 512),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("context_length", 64),
        ] {
            writer.kv(&key(name), value);
        }
        writer.kv(&key("attention.layer_norm_rms_epsilon"), 1e-5f32);
        writer.kv("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", ["a", "b", "ab", "</s>"]);
        writer.strings("tokenizer.ggml.merges", ["a b"]).kv("tokenizer.ggml.eos_token_id", 3u32);
        edit(&mut writer);
        writer.tensor("token_embd.weight", &[256, 4], TensorType::F32).expect("whole blocks");
        let mut add = |name: &str, dims: &[u64], kind| {
            writer.tensor(&format!("{name}.weight"), dims, kind).expect("whole blocks");
        };
        for (name, cols) in [("attn_norm", 256), ("attn_sub_norm", 256), ("ffn_norm", 256), ("ffn_sub_norm", 512)] {
            add(&format!("blk.0.{name}"), &[cols], TensorType::F32);
        }
        add("output_norm", &[256], TensorType::F32);
        for (name, cols, rows) in [
            ("attn_q", 256, 256),
            ("attn_k", 256, 128),
            ("attn_v", 256, 128),
            ("attn_output", 256, 256),
            ("ffn_gate", 256, 512),
            ("ffn_up", 256, 512),
            ("ffn_down", 512, 256),
        ] {
            add(&format!("blk.0.{name}"), &[cols, rows], kind);
        }
        writer
    }

    /// Ternary data with this byte in every place and this scale.
    fn file(writer: &Writer, byte: u8, scale: f32) -> Vec<u8> {
        let mut body = writer.write_header(Vec::new()).expect("sound tables");
        for (index, bytes) in writer.tensor_bytes().enumerate() {
            if index < DENSE_COUNT || bytes < 32 {
                let ones: Vec<u8> = 1f32.to_le_bytes().repeat(bytes as usize / 4);
                body.write_tensor(&ones).expect("as long as it should be");
                continue;
            }
            let mut data = vec![byte; bytes as usize];
            let tail = data.len() - 32;
            data[tail..].copy_from_slice(&gguf::ternary::i2s_tail(scale));
            body.write_tensor(&data).expect("as long as it should be");
        }
        body.finish().expect("complete")
    }

    /// Embedding and norms of `model`.
    const DENSE_COUNT: usize = 6;

    fn codes_of(text: &str) -> Vec<String> {
        let value: serde_json::Value = serde_json::from_str(text).expect("one JSON object");
        let findings = value["findings"].as_array().expect("a list");
        findings.iter().map(|finding| finding["code"].as_str().expect("a string").to_owned()).collect()
    }

    #[test]
    fn a_sound_file_is_reported_in_both_forms() {
        let pre = |writer: &mut Writer| {
            writer.kv("tokenizer.ggml.pre", "llama-bpe");
        };
        let scratch = Scratch::new("sound", &file(&model("bitnet-b1.58", TensorType::I2S, pre), 0b01_10_00_01, 0.5));
        let (text, code) = report(&scratch.0, InspectOptions { strict: true, ..Default::default() });
        assert_eq!(code, EXIT_OK, "{text}");
        for part in ["bitnet-b1.58", "I2_S", "llama-bpe", "0.5", "no findings"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let (json, code) = report(&scratch.0, JSON);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(code, EXIT_OK);
        assert_eq!(value["architecture"]["embedding_length"], 256);
        assert_eq!(value["ternary"]["code3_count"], 0);
        assert_eq!(value["tokenizer"]["merges_count"], 1);
        assert_eq!(value["tensors"][6]["name"], "blk.0.attn_q.weight");
    }

    #[test]
    fn a_missing_pre_tokenizer_counts_when_strict() {
        let scratch = Scratch::new("pre", &file(&model("bitnet-b1.58", TensorType::I2S, |_| {}), 0, 1.0));
        let (text, code) = report(&scratch.0, JSON);
        assert_eq!((codes_of(&text), code), (vec!["tokenizer-pre-missing".to_owned()], EXIT_OK));
        assert_eq!(report(&scratch.0, InspectOptions { strict: true, ..Default::default() }).1, EXIT_STRICT);
    }

    #[test]
    fn code_3_and_bad_scales_are_malformed() {
        let pre = |writer: &mut Writer| {
            writer.kv("tokenizer.ggml.pre", "llama-bpe");
        };
        let writer = model("bitnet", TensorType::I2S, pre);
        let scratch = Scratch::new("code3", &file(&writer, 0b11_00_01_10, 1.0));
        let (text, code) = report(&scratch.0, JSON);
        assert_eq!((codes_of(&text), code), (vec!["ternary-code-3".to_owned()], EXIT_MALFORMED));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ternary"]["code3_count"], (3 * 256 * 256 + 3 * 256 * 512) / 4);
        let scratch = Scratch::new("nan", &file(&writer, 0, f32::NAN));
        let (text, code) = report(&scratch.0, JSON);
        assert_eq!((codes_of(&text), code), (vec!["ternary-scale".to_owned()], EXIT_MALFORMED));
    }

    #[test]
    fn what_loading_would_find_is_found() {
        let sound = |writer: &mut Writer| {
            writer.kv("tokenizer.ggml.pre", "llama-bpe");
        };
        let found = |name: &str, writer: &Writer, scale: f32| {
            let scratch = Scratch::new(name, &file(writer, 0b01_10_00_01, scale));
            let (text, code) = report(&scratch.0, JSON);
            (codes_of(&text), code)
        };
        let kind = TensorType::I2S;
        assert_eq!(found("sound-2", &model("bitnet", kind, sound), 1.0), (vec![], EXIT_OK));
        let unlikely = (vec!["ternary-scale-unlikely".to_owned()], EXIT_OK);
        assert_eq!(found("negative", &model("bitnet", kind, sound), -1.0), unlikely);
        assert_eq!(found("huge", &model("bitnet", kind, sound), 1e30), unlikely);
        for (wanted, key, value, code) in [
            ("chat-template", "tokenizer.chat_template", "{% if %}", EXIT_MALFORMED),
            ("tokenizer", "tokenizer.ggml.pre", "unheard-of", EXIT_MALFORMED),
        ] {
            let edit = |writer: &mut Writer| {
                writer.kv(key, value);
                if key != "tokenizer.ggml.pre" {
                    sound(writer);
                }
            };
            assert_eq!(found(wanted, &model("bitnet", kind, edit), 1.0), (vec![wanted.to_owned()], code));
        }
        let far = |writer: &mut Writer| {
            sound(writer);
            writer.kv("tokenizer.ggml.bos_token_id", 9u32);
        };
        assert_eq!(found("far", &model("bitnet", kind, far), 1.0), (vec!["tokenizer-special".to_owned()], EXIT_OK));
        let mut writer = model("bitnet", kind, sound);
        writer.tensor("blk.0.attn_q.scale", &[2], TensorType::F32).unwrap();
        assert_eq!(found("shape", &writer, 1.0), (vec!["tensors".to_owned()], EXIT_MALFORMED));
    }

    #[test]
    fn colours_are_for_terminals() {
        let pre = |writer: &mut Writer| {
            writer.kv("tokenizer.ggml.pre", "llama-bpe");
        };
        let scratch = Scratch::new("colour", &file(&model("bitnet", TensorType::I2S, pre), 0, 1.0));
        let (plain, _) = report(&scratch.0, InspectOptions::default());
        let (coloured, _) = report(&scratch.0, InspectOptions { colour: true, ..Default::default() });
        assert!(!plain.contains('\x1b') && coloured.contains("\x1b[32mno findings\x1b[0m"), "{coloured}");
    }

    #[test]
    fn unsupported_kinds_are_named() {
        let pre = |writer: &mut Writer| {
            writer.kv("tokenizer.ggml.pre", "llama-bpe");
        };
        let q4_k = TensorType::from_id(12).unwrap();
        for (arch, kind, wanted) in [
            ("bitnet-b1.58", TensorType::Tl2, "tensor-type-tiled"),
            ("bitnet-b1.58", q4_k, "tensor-type"),
            ("mamba", TensorType::I2S, "architecture"),
        ] {
            let scratch = Scratch::new(wanted, &file(&model(arch, kind, pre), 0, 1.0));
            let (text, code) = report(&scratch.0, JSON);
            assert_eq!((codes_of(&text), code), (vec![wanted.to_owned()], EXIT_UNSUPPORTED));
        }
    }

    #[test]
    fn files_that_are_no_models_have_their_exit_codes() {
        let missing = std::env::temp_dir().join("bitnetd-inspect-not-there.gguf");
        assert_eq!(report(&missing, InspectOptions::default()).1, EXIT_IO);
        for (name, bytes, wanted) in [
            ("empty", &b""[..], EXIT_MALFORMED),
            ("text", b"not a model at all, but a line of text", EXIT_MALFORMED),
            ("future", b"GGUF\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", EXIT_UNSUPPORTED),
        ] {
            let scratch = Scratch::new(name, bytes);
            let (text, code) = report(&scratch.0, JSON);
            assert_eq!(code, wanted, "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["error"].is_string());
        }
    }

    #[test]
    fn a_header_longer_than_the_first_read_is_read_on() {
        let long = |writer: &mut Writer| {
            writer.kv("tokenizer.ggml.pre", "llama-bpe").array("padding", &vec![0u64; 400_000]);
        };
        let scratch = Scratch::new("long", &file(&model("llama", TensorType::I2S, long), 0, 1.0));
        let (text, code) = report(&scratch.0, InspectOptions::default());
        assert_eq!(code, EXIT_OK, "{text}");
    }
}
