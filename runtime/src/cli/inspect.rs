//! `bitnetd inspect`: what a model file is, and whether it can be served.

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

/// The text for standard output and the exit code.
///
/// The header is read as a growing prefix, the data of ternary tensors in pieces: memory stays small whatever the file.
pub fn report(path: &Path, options: InspectOptions) -> (String, u8) {
    match examine(path, options) {
        Ok(facts) => {
            let code = exit_code(&facts, options);
            let text = if options.json { to_json(&facts) } else { text::render(&facts) };
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

    const JSON: InspectOptions = InspectOptions { json: true, strict: false, tensors: true };

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
        writer.kv("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", ["a", "b"]);
        writer.strings("tokenizer.ggml.merges", ["a b"]);
        edit(&mut writer);
        writer.tensor("token_embd.weight", &[256, 2], TensorType::F32).expect("whole blocks");
        writer.tensor("blk.0.attn_q.weight", &[256, 256], kind).expect("whole blocks");
        writer
    }

    /// Ternary data with this byte in every place and this scale.
    fn file(writer: &Writer, byte: u8, scale: f32) -> Vec<u8> {
        let mut body = writer.write_header(Vec::new()).expect("sound tables");
        for bytes in writer.tensor_bytes() {
            let mut data = vec![byte; bytes as usize];
            let tail = data.len() - 32;
            data[tail..].copy_from_slice(&gguf::ternary::i2s_tail(scale));
            body.write_tensor(&data).expect("as long as it should be");
        }
        body.finish().expect("complete")
    }

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
        assert_eq!(value["tensors"][1]["name"], "blk.0.attn_q.weight");
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
        assert_eq!(value["ternary"]["code3_count"], 256 * 256 / 4);
        let scratch = Scratch::new("nan", &file(&writer, 0, f32::NAN));
        let (text, code) = report(&scratch.0, JSON);
        assert_eq!((codes_of(&text), code), (vec!["ternary-scale".to_owned()], EXIT_MALFORMED));
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
