//! The tokenizer against files: the default model, and reference vectors where `BITNETD_ORACLE` names their folder.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use gguf::Gguf;
use proptest::prelude::*;

use super::{ChatTemplate, Detokenizer, Message, PreTokenizer, Tokenizer};

const DEFAULT_MODEL: &[u8] = include_bytes!("../../assets/bitnetd-tiny-i2_s.gguf");

fn tokenizer_of(bytes: &[u8], pre: Option<PreTokenizer>) -> Tokenizer {
    let file = Gguf::parse(bytes, bytes.len() as u64).unwrap();
    Tokenizer::from_gguf_with(file.metadata(), pre).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str, special: bool) -> Vec<u32> {
    let mut out = Vec::new();
    tokenizer.encode(text, special, special, &mut out);
    out
}

fn text_of(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let (mut detokenizer, mut out) = (Detokenizer::from_start(tokenizer.adds_space_prefix()), String::new());
    for &id in ids {
        detokenizer.push(tokenizer.piece(id), &mut out);
    }
    detokenizer.finish(&mut out);
    out
}

/// The folder of reference vectors; `None`, said aloud, where the variable is not set.
fn oracle() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a test's own switch, not configuration of the server")]
    let folder = std::env::var_os("BITNETD_ORACLE").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: BITNETD_ORACLE names no folder of reference vectors");
    }
    folder
}

fn json(path: PathBuf) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn u32s(value: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn the_default_model_tokenises_a_chat_as_its_reference() {
    let file = Gguf::parse(DEFAULT_MODEL, DEFAULT_MODEL.len() as u64).unwrap();
    let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
    assert!(tokenizer.notes().is_empty());
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.eot()), (Some(0), Some(4), Some(4)));
    assert_eq!(tokenizer.end_of_generation(), [1, 4]);
    assert_eq!((tokenizer.piece(4), tokenizer.token_text(4)), (&b""[..], &b"<|eot_id|>"[..]));
    let source = file.metadata().str("tokenizer.chat_template").unwrap();
    let template = ChatTemplate::for_tokenizer(source, &tokenizer).unwrap();
    let message = Message::new("user", "Tell me a story about a lazy fox who finds an umbrella.");
    let chat = template.render(&[message], true).unwrap();
    let mut out = Vec::new();
    tokenizer.encode_chat(&chat, &mut out);
    let expected =
        [0, 2, 343, 3, 298, 809, 435, 262, 438, 364, 262, 2667, 1849, 398, 1376, 445, 2842, 18, 4, 2, 345, 3, 298];
    assert_eq!(out, expected);
    let story = [427, 434, 262, 381, 16, 436, 290, 262, 2667, 1849, 398];
    assert_eq!(text_of(&tokenizer, &story), "Once upon a time, there was a lazy fox who");
}

#[test]
fn special_text_of_a_client_stays_text() {
    let tokenizer = tokenizer_of(DEFAULT_MODEL, None);
    let mut out = Vec::new();
    tokenizer.encode("a<|eot_id|>b", false, false, &mut out);
    assert!(!out.contains(&4));
    assert_eq!(text_of(&tokenizer, &out), "a<|eot_id|>b");
    assert_eq!(ids(&tokenizer, "<|eot_id|>", true), [0, 4]);
}

#[test]
fn hostile_texts_take_no_quadratic_time() {
    let tokenizer = tokenizer_of(DEFAULT_MODEL, None);
    let mut samples = vec!["a", " ", "\u{301}", "\n", "'", "1", "<|", "<|start_header_id|>", "é", "ab", " \u{3000}"];
    samples.push("<|eot_id|");
    for sample in samples {
        let text = sample.repeat((1 << 18) / sample.len());
        for rule in [PreTokenizer::Llama3, PreTokenizer::Default] {
            let tokenizer =
                if rule == PreTokenizer::Llama3 { &tokenizer } else { &tokenizer_of(DEFAULT_MODEL, Some(rule)) };
            let start = Instant::now();
            let mut out = Vec::new();
            tokenizer.encode(&text, false, true, &mut out);
            // Some seconds at most on a busy machine; hours where each character looks at all others.
            assert!(start.elapsed().as_secs() < 60, "{sample:?} took {:?}", start.elapsed());
            if !sample.ends_with("id|>") {
                assert_eq!(text_of(tokenizer, &out), text);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn decoding_gives_the_text_back(text in "(\\PC|[ \t\r\n'a-z0-9]|\\p{Mn}){0,80}") {
        let tokenizer = tokenizer_of(DEFAULT_MODEL, None);
        prop_assert_eq!(text_of(&tokenizer, &ids(&tokenizer, &text, false)), text);
    }
}

#[test]
fn oracle_vectors_of_tiny_models_agree() {
    let Some(folder) = oracle() else { return };
    for (name, pre) in [
        ("tiny-b158", Some(PreTokenizer::Default)), // what bitnet.cpp uses where the key is missing
        ("tiny-bitnet", None),
        ("tiny-llama", None),
        ("tiny-llama-hd", None),
    ] {
        let model = fs::read(folder.join(format!("models/{name}-i2_s.gguf"))).unwrap();
        let tokenizer = tokenizer_of(&model, pre);
        let cases = json(folder.join(format!("tokenizer/{name}.json")));
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(ids(&tokenizer, text, false), u32s(&case["ids"]), "{name}: {text:?}");
            assert_eq!(ids(&tokenizer, text, true), u32s(&case["ids_special"]), "{name}: {text:?}");
        }
    }
}

#[test]
fn oracle_vocabularies_agree_line_for_line() {
    let Some(folder) = oracle() else { return };
    for name in ["llama-bpe", "llama-spm"] {
        let path = folder.join(format!("tokenizer-real/ggml-vocab-{name}.gguf"));
        let tokenizer = tokenizer_of(&fs::read(&path).unwrap(), None);
        let texts = fs::read_to_string(path.with_extension("gguf.inp")).unwrap();
        let lines = fs::read_to_string(path.with_extension("gguf.out")).unwrap();
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let mut lines = lines.lines();
        for text in &texts {
            let Some(line) = lines.next() else {
                assert!(text.is_empty(), "{name}: no line for {text:?}");
                continue;
            };
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let mut out = Vec::new();
            tokenizer.encode(text, false, false, &mut out);
            assert_eq!(out, expected, "{name}: {text:?}");
            assert_eq!(text_of(&tokenizer, &out), *text, "{name}");
        }
        assert_eq!(lines.next(), None, "{name}");
    }
}

#[test]
fn oracle_prompts_of_the_default_model_agree() {
    let Some(folder) = oracle() else { return };
    let file = Gguf::parse(DEFAULT_MODEL, DEFAULT_MODEL.len() as u64).unwrap();
    let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
    let template =
        ChatTemplate::for_tokenizer(file.metadata().str("tokenizer.chat_template").unwrap(), &tokenizer).unwrap();
    let reference = json(folder.join("default-model/reference.json"));
    for case in reference["greedy"].as_array().unwrap() {
        let chat = template.render(&[Message::new("user", case["prompt"].as_str().unwrap())], true).unwrap();
        let mut out = Vec::new();
        tokenizer.encode_chat(&chat, &mut out);
        assert_eq!(out, u32s(&case["tokens"]));
        assert_eq!(text_of(&tokenizer, &u32s(&case["greedy"])), case["text"].as_str().unwrap());
    }
}

/// Not a check but a measurement: `BITNETD_ORACLE=... cargo test --release -p runtime oracle_speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn oracle_speed() {
    let Some(folder) = oracle() else { return };
    let text = fs::read_to_string(folder.join("../models/heldout.txt")).unwrap();
    let default = (DEFAULT_MODEL.to_vec(), "default model");
    let reals = ["llama-bpe", "llama-spm", "qwen2", "falcon"]
        .map(|name| (fs::read(folder.join(format!("tokenizer-real/ggml-vocab-{name}.gguf"))).unwrap(), name));
    for (bytes, name) in std::iter::once(default).chain(reals) {
        let file = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
        let start = Instant::now();
        let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
        let load = start.elapsed();
        for special in [false, true] {
            let mut best = f64::MAX;
            let mut out = Vec::new();
            for _ in 0..7 {
                out.clear();
                let start = Instant::now();
                tokenizer.encode(&text, special, special, &mut out);
                best = best.min(start.elapsed().as_secs_f64());
            }
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let mb_s = text.len() as f64 / best / 1e6;
            println!("{name}: load {load:?}, {} tokens, {mb_s:.1} MB/s, parse_special {special}", out.len());
            assert!(special || text_of(&tokenizer, &out) == text);
        }
    }
}
