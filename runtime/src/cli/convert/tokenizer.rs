//! tokenizer.json and tokenizer_config.json to the tokenizer metadata of a GGUF file.

use std::path::Path;

use gguf::writer::Writer;
use serde::Deserialize;
use serde_json::Value;

use super::json::{self, JsonError};
use super::shape::{Config, Shape};

/// Why there is no tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("tokenizer.json: model type {0:?} is not known, only BPE is")]
    Model(String),
    #[error("tokenizer.json: the splitting {0:?} is not known")]
    Splitting(String),
    #[error("tokenizer.json: token {token:?} has id {id}, the model has {vocab} tokens")]
    Id { token: String, id: u64, vocab: usize },
    #[error("tokenizer.json: tokens {first:?} and {second:?} have id {id}")]
    Twice { first: String, second: String, id: usize },
    #[error("tokenizer.json: merge {0} is no pair of tokens")]
    Merge(usize),
    #[error("the chat template is no UTF-8")]
    Template,
}

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u64,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: std::collections::HashMap<String, u64>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
}

/// Both forms that are in use.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair([String; 2]),
    Line(String),
}

/// GGUF's kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Adds the tokenizer of `folder` to the metadata.
pub(super) fn describe(folder: &Path, shape: &Shape, writer: &mut Writer) -> Result<(), Error> {
    let (config, vocab) = (shape.config(), shape.vocab());
    let file: TokenizerJson = json::read(&folder.join("tokenizer.json"))?;
    let settings: Value = json::read_optional(&folder.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
    if let Some(kind) = file.model.kind.as_ref().filter(|kind| *kind != "BPE") {
        return Err(Error::Model(kind.clone()));
    }
    let (tokens, kinds) = tokens(&file, vocab)?;
    let merges = merges(&file.model)?;
    if file.model.byte_fallback {
        writer.kv("tokenizer.ggml.model", "llama");
        writer.strings("tokenizer.ggml.tokens", &tokens);
        writer.array("tokenizer.ggml.scores", &scores(&tokens, &merges));
        writer.array("tokenizer.ggml.token_type", &kinds);
        writer.kv("tokenizer.ggml.add_space_prefix", prepends_space(&file));
        if let Some(id) = position(&tokens, file.model.unk_token.as_deref()) {
            writer.kv("tokenizer.ggml.unknown_token_id", id);
        }
    } else {
        writer.kv("tokenizer.ggml.model", "gpt2");
        writer.kv("tokenizer.ggml.pre", splitting(file.pre_tokenizer.as_ref())?);
        writer.strings("tokenizer.ggml.tokens", &tokens);
        writer.array("tokenizer.ggml.token_type", &kinds);
        writer.strings("tokenizer.ggml.merges", merges.iter().map(|[first, second]| format!("{first} {second}")));
    }
    if shape.is_embedding() {
        frame(&file, &settings, &tokens, writer);
        return Ok(());
    }
    specials(&file, &settings, config, &tokens, writer);
    if let Some(template) = chat_template(folder, &settings)? {
        writer.kv("tokenizer.chat_template", template.as_str());
    }
    Ok(())
}

/// Texts and kinds by id; ids that nothing has are unused.
fn tokens(file: &TokenizerJson, vocab: usize) -> Result<(Vec<String>, Vec<i32>), Error> {
    let mut found: Vec<Option<(&str, i32)>> = vec![None; vocab];
    let unknown = file.model.unk_token.as_deref();
    let plain = file.model.vocab.iter().map(|(text, &id)| {
        let byte = file.model.byte_fallback && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = if byte {
            BYTE
        } else if unknown == Some(text) {
            UNKNOWN
        } else {
            NORMAL
        };
        (text.as_str(), id, kind)
    });
    let added = file.added_tokens.iter().map(|token| {
        let kind = if unknown == Some(&token.content) {
            UNKNOWN
        } else if token.special {
            CONTROL
        } else {
            USER_DEFINED
        };
        (token.content.as_str(), token.id, kind)
    });
    for (text, id, kind) in plain.chain(added) {
        let index = usize::try_from(id).ok().filter(|&index| index < vocab);
        let Some(index) = index else { return Err(Error::Id { token: text.chars().take(64).collect(), id, vocab }) };
        match found[index].replace((text, kind)) {
            Some((first, _)) if first != text => {
                let clip = |text: &str| text.chars().take(64).collect();
                return Err(Error::Twice { first: clip(first), second: clip(text), id: index });
            }
            _ => {}
        }
    }
    let named = found.into_iter().enumerate().map(|(index, token)| match token {
        Some((text, kind)) => (text.to_owned(), kind),
        None => (format!("[PAD{index}]"), UNUSED),
    });
    Ok(named.unzip())
}

fn merges(model: &Model) -> Result<Vec<[String; 2]>, Error> {
    let pair = |(index, merge): (usize, &Merge)| match merge {
        Merge::Pair(pair) => Ok(pair.clone()),
        Merge::Line(line) => {
            let (first, second) = line.split_once(' ').ok_or(Error::Merge(index))?;
            Ok([first.to_owned(), second.to_owned()])
        }
    };
    model.merges.iter().enumerate().map(pair).collect()
}

/// SentencePiece merges the pair of the greatest score first: the rank of the merge that makes a token, negated.
fn scores(tokens: &[String], merges: &[[String; 2]]) -> Vec<f32> {
    let mut ranks = std::collections::HashMap::with_capacity(merges.len());
    for (rank, [first, second]) in merges.iter().enumerate() {
        ranks.entry(format!("{first}{second}")).or_insert(rank);
    }
    let never = -(merges.len() as f32);
    tokens.iter().map(|token| ranks.get(token).map_or(never, |&rank| -(rank as f32))).collect()
}

fn prepends_space(file: &TokenizerJson) -> bool {
    let says = |value: &Option<Value>| {
        let text = value.as_ref().map(Value::to_string).unwrap_or_default();
        text.contains(r#""prepend":"#)
            || text.contains(r#""prepend_scheme":"first""#)
            || text.contains(r#""prepend_scheme":"always""#)
    };
    says(&file.normalizer) || says(&file.pre_tokenizer)
}

/// GGUF's name of the splitting, known by its expressions.
fn splitting(pre_tokenizer: Option<&Value>) -> Result<&'static str, Error> {
    let mut patterns = Vec::new();
    let mut others = Vec::new();
    let steps = match pre_tokenizer {
        Some(step) if step["type"] == "Sequence" => step["pretokenizers"].as_array().cloned().unwrap_or_default(),
        Some(step) => vec![step.clone()],
        None => vec![],
    };
    for step in &steps {
        match step["pattern"]["Regex"].as_str() {
            Some(pattern) => patterns.push(pattern),
            None if step["type"] == "ByteLevel" && step["use_regex"] != false => others.push("gpt2"),
            None if step["type"] == "ByteLevel" => {}
            None => others.push(step["type"].as_str().unwrap_or("?")),
        }
    }
    const GROUPS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}";
    const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let between = |digits: &str| format!("{GROUPS}{digits}{REST}");
    match (&patterns[..], &others[..]) {
        ([pattern], []) if *pattern == between("{1,3}") => Ok("llama-bpe"),
        ([pattern], []) if *pattern == between("") => Ok("qwen2"),
        ([], ["gpt2"]) => Ok("gpt-2"),
        (["[0-9][0-9][0-9]"], ["Punctuation", "gpt2"]) => Ok("falcon"),
        (["[0-9]"], ["Punctuation", "gpt2"]) | ([], ["Punctuation", "gpt2", "Digits"]) => Ok("falcon3"),
        _ => Err(Error::Splitting([&patterns[..], &others[..]].concat().join(" ; ").chars().take(256).collect())),
    }
}

fn specials(file: &TokenizerJson, settings: &Value, config: &Config, tokens: &[String], writer: &mut Writer) {
    let named = |key: &str| {
        let value = &settings[key];
        position(tokens, value.as_str().or(value["content"].as_str()))
    };
    let numbered = |value: &Option<Value>| {
        let value = value.as_ref()?;
        let id = value.as_u64().or(value.as_array()?.first()?.as_u64())?;
        u32::try_from(id).ok().filter(|&id| (id as usize) < tokens.len())
    };
    let first = |value: &Option<Value>| value.as_ref().and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let bos = named("bos_token").or(first(&config.bos_token_id)).or(numbered(&config.bos_token_id));
    let eos = named("eos_token").or(first(&config.eos_token_id)).or(numbered(&config.eos_token_id));
    let pad = named("pad_token").or(first(&config.pad_token_id)).or(numbered(&config.pad_token_id));
    let eot = TURN_ENDS.iter().find_map(|text| position(tokens, Some(text)));
    for (key, id) in [("bos", bos), ("eos", eos), ("eot", eot), ("padding", pad)] {
        if let Some(id) = id {
            writer.kv(&format!("tokenizer.ggml.{key}_token_id"), id);
        }
    }
    let text = file.post_processor.as_ref().map(Value::to_string).unwrap_or_default();
    let template_adds =
        bos.is_some_and(|bos| text.contains("TemplateProcessing") && text.contains(&quoted(&tokens[bos as usize])));
    match settings["add_bos_token"].as_bool() {
        Some(adds) => _ = writer.kv("tokenizer.ggml.add_bos_token", adds),
        None if template_adds => _ = writer.kv("tokenizer.ggml.add_bos_token", true),
        None => {}
    }
    if let Some(adds) = settings["add_eos_token"].as_bool() {
        writer.kv("tokenizer.ggml.add_eos_token", adds);
    }
}

/// The tokens around a text that is to become a vector, as the post-processor puts them there, or as the settings say. The
/// state of the last one may be the embedding.
fn frame(file: &TokenizerJson, settings: &Value, tokens: &[String], writer: &mut Writer) {
    let named = |key: &str| {
        let value = &settings[key];
        position(tokens, value.as_str().or(value["content"].as_str()))
    };
    let flag = |key: &str| settings[key].as_bool().unwrap_or(false);
    let (bos, eos) = (named("bos_token"), named("eos_token"));
    let processor = file.post_processor.as_ref().unwrap_or(&Value::Null);
    let steps = processor["processors"].as_array().map_or(std::slice::from_ref(processor), Vec::as_slice);
    let template = steps.iter().find_map(|step| step["single"].as_array());
    let frame = template.map(|template| {
        let text = template.iter().position(|piece| !piece["Sequence"].is_null()).unwrap_or(template.len());
        let special =
            |piece: Option<&Value>| position(tokens, piece.and_then(|piece| piece["SpecialToken"]["id"].as_str()));
        let (before, after) = (&template[..text], template.get(text + 1..).unwrap_or_default());
        (special(before.first()), special(after.first()))
    });
    let (before, after) =
        frame.unwrap_or((bos.filter(|_| flag("add_bos_token")), eos.filter(|_| flag("add_eos_token"))));
    for (key, id, used) in [("bos", before.or(bos), before.is_some()), ("eos", after.or(eos), after.is_some())] {
        if let Some(id) = id {
            writer.kv(&format!("tokenizer.ggml.{key}_token_id"), id);
        }
        writer.kv(&format!("tokenizer.ggml.add_{key}_token"), used);
    }
    if let Some(id) = named("pad_token") {
        writer.kv("tokenizer.ggml.padding_token_id", id);
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn position(tokens: &[String], text: Option<&str>) -> Option<u32> {
    let at = tokens.iter().position(|token| Some(token.as_str()) == text)?;
    u32::try_from(at).ok()
}

/// The template of its own file, or that of the settings, or the one of several that is called default.
fn chat_template(folder: &Path, settings: &Value) -> Result<Option<String>, Error> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        return String::from_utf8(json::read_bytes(&path)?).map(Some).map_err(|_| Error::Template);
    }
    let template = &settings["chat_template"];
    let default = template.as_array().and_then(|all| all.iter().find(|one| one["name"] == "default"));
    let text = template.as_str().or_else(|| default.and_then(|one| one["template"].as_str()));
    Ok(text.map(str::to_owned))
}

/// What ends a turn, most special first.
const TURN_ENDS: [&str; 3] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>"];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn splittings_are_known_by_their_expressions() {
        let byte_level = |regex: bool| json!({ "type": "ByteLevel", "use_regex": regex });
        let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let with = |pattern: &str| json!({ "type": "Sequence", "pretokenizers": [{ "type": "Split", "pattern": { "Regex": pattern } }, byte_level(false)] });
        assert_eq!(splitting(Some(&with(llama))).unwrap(), "llama-bpe");
        assert_eq!(splitting(Some(&with(&llama.replace("{1,3}", "")))).unwrap(), "qwen2");
        assert_eq!(splitting(Some(&byte_level(true))).unwrap(), "gpt-2");
        assert!(matches!(splitting(Some(&with("x+"))), Err(Error::Splitting(found)) if found == "x+"));
        assert!(splitting(None).is_err());
    }

    fn file(value: Value) -> TokenizerJson {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn tokens_have_their_kinds_and_gaps_are_unused() {
        let file = file(json!({
            "added_tokens": [{ "id": 3, "content": "<s>", "special": true }, { "id": 4, "content": "<x>" }],
            "model": { "type": "BPE", "vocab": { "<unk>": 0, "<0x41>": 1, "a": 2, "<s>": 3 }, "byte_fallback": true, "unk_token": "<unk>" },
        }));
        let (tokens, kinds) = tokens(&file, 6).unwrap();
        assert_eq!(tokens, ["<unk>", "<0x41>", "a", "<s>", "<x>", "[PAD5]"]);
        assert_eq!(kinds, [UNKNOWN, BYTE, NORMAL, CONTROL, USER_DEFINED, UNUSED]);
        assert!(matches!(super::tokens(&file, 4), Err(Error::Id { id: 4, .. })));
    }

    #[test]
    fn two_tokens_of_one_id_are_refused() {
        let file = file(json!({ "model": { "vocab": { "a": 0 } }, "added_tokens": [{ "id": 0, "content": "b" }] }));
        assert!(matches!(tokens(&file, 1), Err(Error::Twice { id: 0, .. })));
    }

    #[test]
    fn both_forms_of_merges_are_read_and_ranked() {
        let file = file(json!({ "model": { "vocab": {}, "merges": [["a", "b"], "ab c"] } }));
        let merges = merges(&file.model).unwrap();
        assert_eq!(merges, [["a", "b"], ["ab", "c"]]);
        let tokens = ["abc", "ab", "a"].map(str::to_owned);
        assert_eq!(scores(&tokens, &merges), [-1.0, 0.0, -2.0]);
        let file = self::file(json!({ "model": { "vocab": {}, "merges": ["ab"] } }));
        assert!(matches!(super::merges(&file.model), Err(Error::Merge(0))));
    }
}
