//! Checkpoints to GGUF: the weights of a model that is known, written as transformers writes them, come back bit for bit.
//!
//! `BITNETD_HF=<folder>` converts that checkpoint too, which must be the one of the embedded model.
#![expect(clippy::unwrap_used, reason = "a model that can't be made or read fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

use gguf::{Gguf, TensorType, blocks, ternary};
use runtime::cli::convert::{Error, convert};
use runtime::cli::synth::{self, Preset};
use runtime::model::{HeadScreen, LoadOptions, Model, Source};
use serde_json::{Value, json};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bitnetd-convert-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A small model of random weights.
    fn synth(&self, kind: TensorType, embeddings: TensorType) -> Vec<u8> {
        let path = self.path(&format!("synth-{}-{}.gguf", kind.name(), embeddings.name()));
        synth::write(&path, Preset::Tiny, kind, embeddings, 9, |_, _| {}).unwrap();
        fs::read(path).unwrap()
    }

    fn convert(&self, kind: TensorType, embeddings: TensorType) -> Result<Vec<u8>, Error> {
        let out = self.path("converted.gguf");
        let _ = fs::remove_file(&out);
        let mut seen = (0, 0);
        let result = convert(&self.0, &out, kind, embeddings, |done, all| seen = (done, all));
        assert!(!self.path("converted.gguf.partial").exists());
        assert_eq!(result.is_ok(), out.exists());
        let summary = result?;
        assert_eq!(seen, (summary.file_bytes, summary.file_bytes));
        Ok(fs::read(out).unwrap())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that is left over harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How the linear layers of a checkpoint are written.
#[derive(Clone, Copy, PartialEq)]
enum Linears {
    /// Four rows in a byte, and a factor.
    Packed,
    /// In f32, times their scale.
    Floats,
}

/// transformers' name of a tensor of a bitnet-b1.58 file.
fn name_of(tensor: &str) -> String {
    let Some(rest) = tensor.strip_prefix("blk.") else {
        return if tensor.starts_with("token_embd") { "model.embed_tokens".into() } else { "model.norm".into() };
    };
    let (layer, part) = rest.split_once('.').unwrap();
    let part = match part.trim_end_matches(".weight") {
        "attn_norm" => "input_layernorm",
        "attn_sub_norm" => "self_attn.attn_sub_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_sub_norm" => "mlp.ffn_sub_norm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("{other}"),
    };
    format!("model.layers.{layer}.{part}")
}

/// Writes the I2_S model `bytes` as a checkpoint.
fn write_checkpoint(folder: &Path, bytes: &[u8], linears: Linears) {
    let file = Gguf::parse(bytes, bytes.len() as u64).unwrap();
    let (mut table, mut data) = (serde_json::Map::new(), Vec::new());
    let mut add = |name: String, dtype: &str, shape: Value, bytes: Vec<u8>| {
        let start = data.len();
        data.extend(bytes);
        table.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] }));
    };
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    for tensor in file.tensors() {
        let (name, rows, cols) = (name_of(tensor.name), tensor.rows() as usize, tensor.cols() as usize);
        let bytes = file.data(tensor).unwrap();
        if tensor.kind != TensorType::I2S {
            let mut values = vec![0.0; rows * cols];
            blocks::dequantize_row(tensor.kind, bytes, values.len(), &mut values).unwrap();
            let shape = if tensor.dim_count == 1 { json!([cols]) } else { json!([rows, cols]) };
            add(format!("{name}.weight"), "F32", shape, floats(&values));
            continue;
        }
        let mut codes = vec![0; rows * cols];
        ternary::i2s_codes(bytes, 0, &mut codes);
        let scale = ternary::i2s_scale(bytes, rows * cols);
        if linears == Linears::Packed {
            let mut packed = vec![0u8; rows / 4 * cols];
            for (quarter, codes) in codes.chunks(packed.len()).enumerate() {
                packed.iter_mut().zip(codes).for_each(|(byte, code)| *byte |= code << (2 * quarter));
            }
            add(format!("{name}.weight"), "U8", json!([rows / 4, cols]), packed);
            add(format!("{name}.weight_scale"), "F32", json!([1]), floats(&[scale]));
        } else {
            let values: Vec<f32> = codes.iter().map(|&code| (f32::from(code) - 1.0) * scale).collect();
            add(format!("{name}.weight"), "F32", json!([rows, cols]), floats(&values));
        }
    }
    let table = Value::Object(table).to_string();
    let length = (table.len() as u64).to_le_bytes();
    fs::write(folder.join("model.safetensors"), [&length[..], table.as_bytes(), &data].concat()).unwrap();
    fs::write(folder.join("config.json"), config().to_string()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer(&file).to_string()).unwrap();
    let settings = json!({ "bos_token": "<|begin_of_text|>", "eos_token": { "content": "<|end_of_text|>" },
        "pad_token": "<|pad|>", "add_bos_token": true, "chat_template": "{{ messages[0]['content'] }}" });
    fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
}

fn config() -> Value {
    json!({
        "model_type": "bitnet", "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "relu2",
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": true,
        "quantization_config": { "quant_method": "bitnet", "linear_class": "autobitlinear" },
    })
}

fn tokenizer(file: &Gguf<'_>) -> Value {
    let strings = |key: &str| -> Vec<String> {
        let strings = file.metadata().strings(key).unwrap().unwrap();
        strings.into_iter().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
    };
    let kinds: Vec<i32> = file.metadata().i32s("tokenizer.ggml.token_type").unwrap().unwrap().iter().collect();
    let tokens = strings("tokenizer.ggml.tokens");
    let special = tokens.iter().enumerate().filter(|(id, _)| kinds[*id] == 3);
    let added: Vec<Value> = special.map(|(id, text)| json!({ "id": id, "content": text, "special": true })).collect();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, text)| (text.clone(), id.into())).collect();
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json!({
        "added_tokens": added,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern } }, { "type": "ByteLevel", "use_regex": false },
        ] },
        "model": { "type": "BPE", "vocab": vocab, "merges": strings("tokenizer.ggml.merges") },
    })
}

#[track_caller]
fn assert_same_tensors(ours: &[u8], theirs: &[u8]) {
    let (a, b) = (Gguf::parse(ours, ours.len() as u64).unwrap(), Gguf::parse(theirs, theirs.len() as u64).unwrap());
    assert_eq!(a.tensors().len(), b.tensors().len());
    for tensor in b.tensors() {
        let found = a.tensor(tensor.name).unwrap_or_else(|| panic!("{} is missing", tensor.name));
        assert_eq!((found.kind, found.dims), (tensor.kind, tensor.dims), "{}", tensor.name);
        let (mut a, mut b) = (a.data(found).unwrap(), b.data(tensor).unwrap());
        // The last 28 bytes mean nothing.
        if tensor.kind == TensorType::I2S {
            (a, b) = (&a[..a.len() - 28], &b[..b.len() - 28]);
        }
        assert!(a == b, "{}", tensor.name);
    }
}

fn load(path: &Path) -> Model {
    let options = LoadOptions { threads: 1, node: None, context_max: 64, head_screen: HeadScreen::Off };
    Model::load(&Source::open(path).unwrap(), "converted".into(), options, &|_, _| {}).unwrap()
}

#[test]
fn packed_and_float_checkpoints_give_back_the_model() {
    let folder = Folder::new("same");
    let original = folder.synth(TensorType::I2S, TensorType::F16);
    for linears in [Linears::Packed, Linears::Floats] {
        write_checkpoint(&folder.0, &original, linears);
        for kind in [TensorType::I2S, TensorType::Tl1, TensorType::Tl2] {
            let converted = folder.convert(kind, TensorType::F16).unwrap();
            assert_same_tensors(&converted, &folder.synth(kind, TensorType::F16));
        }
    }
    let (ours, theirs) = (load(&folder.path("converted.gguf")), load(&folder.path("synth-I2_S-F16.gguf")));
    let ids = |model: &Model, text: &str| {
        let mut ids = Vec::new();
        model.tokenizer.encode(text, true, true, &mut ids);
        ids
    };
    for text in ["the thermal th\u{e9}", "<|eot_id|>12345", ""] {
        assert_eq!(ids(&ours, text), ids(&theirs, text), "{text}");
    }
    assert_eq!(ours.tokenizer.end_of_generation(), theirs.tokenizer.end_of_generation());
}

/// transformers' name of a tensor of an embedding model; `gemma` has one more norm on each side.
fn embedding_name_of(tensor: &str, gemma: bool) -> String {
    let Some(rest) = tensor.strip_prefix("blk.") else {
        return if tensor.starts_with("token_embd") { "embed_tokens.weight".into() } else { "norm.weight".into() };
    };
    let (layer, part) = rest.split_once('.').unwrap();
    let part = part.trim_end_matches(".weight");
    let projection = |name: &str| match name {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("{other}"),
    };
    let part = match part {
        "attn_norm" => "input_layernorm".to_owned(),
        "ffn_norm" if gemma => "pre_feedforward_layernorm".to_owned(),
        "ffn_norm" => "post_attention_layernorm".to_owned(),
        "post_attention_norm" => "post_attention_layernorm".to_owned(),
        "post_ffw_norm" => "post_feedforward_layernorm".to_owned(),
        "attn_q_norm" => "self_attn.q_norm".to_owned(),
        "attn_k_norm" => "self_attn.k_norm".to_owned(),
        part => match part.strip_suffix("_norm_in") {
            Some(name) => format!("{}.norm", projection(name)),
            None => projection(part).to_owned(),
        },
    };
    format!("layers.{layer}.{part}.weight")
}

/// Writes an I2_S embedding model as sentence-transformers does.
fn write_embedding_checkpoint(folder: &Path, bytes: &[u8], gemma: bool) {
    let file = Gguf::parse(bytes, bytes.len() as u64).unwrap();
    let (mut table, mut data) = (serde_json::Map::new(), Vec::new());
    for tensor in file.tensors() {
        let (rows, cols) = (tensor.rows() as usize, tensor.cols() as usize);
        let source = file.data(tensor).unwrap();
        let mut values = vec![0.0; rows * cols];
        if tensor.kind == TensorType::I2S {
            let mut codes = vec![0; rows * cols];
            ternary::i2s_codes(source, 0, &mut codes);
            let scale = ternary::i2s_scale(source, rows * cols);
            values.iter_mut().zip(&codes).for_each(|(value, &code)| *value = (f32::from(code) - 1.0) * scale);
        } else {
            blocks::dequantize_row(tensor.kind, source, values.len(), &mut values).unwrap();
        }
        // Exact: these weights lie between 0.5 and 1.5.
        if gemma && tensor.dim_count == 1 && !tensor.name.contains("_norm_in") {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        let shape = if tensor.dim_count == 1 { json!([cols]) } else { json!([rows, cols]) };
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let name = embedding_name_of(tensor.name, gemma);
        table.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let table = Value::Object(table).to_string();
    let length = (table.len() as u64).to_le_bytes();
    fs::write(folder.join("model.safetensors"), [&length[..], table.as_bytes(), &data].concat()).unwrap();
    fs::write(folder.join("config.json"), embedding_config(gemma).to_string()).unwrap();
    let mut tokens = tokenizer(&file);
    tokens["post_processor"] = json!({ "type": "Sequence", "processors": [{ "type": "ByteLevel" }, {
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<|begin_of_text|>", "type_id": 0 } }, { "Sequence": { "id": "A" } },
            { "SpecialToken": { "id": "<|end_of_text|>", "type_id": 0 } }],
    }] });
    fs::write(folder.join("tokenizer.json"), tokens.to_string()).unwrap();
    let settings = json!({ "eos_token": "<|eot_id|>", "chat_template": "{{ no template at all" });
    fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
    let modules = json!([{ "type": "sentence_transformers.models.Transformer", "path": "" },
        { "type": "sentence_transformers.models.Pooling", "path": "1_Pooling" }]);
    fs::write(folder.join("modules.json"), modules.to_string()).unwrap();
    fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    let pooling = json!({ "pooling_mode_cls_token": false, "pooling_mode_lasttoken": true });
    fs::write(folder.join("1_Pooling/config.json"), pooling.to_string()).unwrap();
}

fn embedding_config(gemma: bool) -> Value {
    let (kind, act, heads, dim, theta) =
        if gemma { ("gemma3_text", "gelu_pytorch_tanh", 2, 256, 1e4) } else { ("qwen3", "silu", 4, 96, 1e6) };
    json!({
        "model_type": kind, "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 3, "num_attention_heads": heads, "num_key_value_heads": heads / 2, "head_dim": dim,
        "hidden_act": act, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": theta,
        "tie_word_embeddings": true,
    })
}

#[test]
fn checkpoints_of_embedding_models_give_back_the_model() {
    for (preset, gemma) in [(Preset::TinyQwen3, false), (Preset::TinyGemma3, true)] {
        let folder = Folder::new(preset.name());
        let path = folder.path("synth.gguf");
        synth::write(&path, preset, TensorType::I2S, TensorType::F16, 9, |_, _| {}).unwrap();
        let original = fs::read(&path).unwrap();
        write_embedding_checkpoint(&folder.0, &original, gemma);
        let converted = folder.convert(TensorType::I2S, TensorType::F16).unwrap();
        assert_same_tensors(&converted, &original);
        let (ours, theirs) = (load(&folder.path("converted.gguf")), load(&path));
        assert_eq!(ours.weights.params.pooling, theirs.weights.params.pooling);
        let mut ids = [Vec::new(), Vec::new()];
        for (ids, model) in ids.iter_mut().zip([&ours, &theirs]) {
            model.tokenizer.encode("the thermal th\u{e9}", true, true, ids);
        }
        assert_eq!(ids[0], ids[1]);
        let (ours, theirs) = (&ours.weights.params, &theirs.weights.params);
        assert_eq!(
            (ours.rope_base, ours.norm_eps, ours.head_dim),
            (theirs.rope_base, theirs.norm_eps, theirs.head_dim)
        );

        let attempt = |edit: &dyn Fn(&mut Value)| {
            let mut config = embedding_config(gemma);
            edit(&mut config);
            fs::write(folder.path("config.json"), config.to_string()).unwrap();
            folder.convert(TensorType::I2S, TensorType::F16).unwrap_err()
        };
        assert!(matches!(attempt(&|c| c["hidden_act"] = "gelu".into()), Error::Config { key: "hidden_act", .. }));
        if gemma {
            let error = attempt(&|c| c["query_pre_attn_scalar"] = json!(168));
            assert!(matches!(error, Error::Config { key: "query_pre_attn_scalar", .. }), "{error}");
        }
        let modes = json!({ "pooling_mode_mean_tokens": true, "pooling_mode_lasttoken": true });
        fs::write(folder.path("1_Pooling/config.json"), modes.to_string()).unwrap();
        assert!(matches!(attempt(&|_| {}), Error::Config { key: "pooling_mode", .. }));
        let modules = json!([{ "type": "Pooling", "path": "../1_Pooling" }]);
        fs::write(folder.path("modules.json"), modules.to_string()).unwrap();
        assert!(matches!(attempt(&|_| {}), Error::Config { key: "modules.json", .. }));
    }
}

#[test]
fn other_types_hold_the_same_values() {
    let folder = Folder::new("types");
    let original = folder.synth(TensorType::I2S, TensorType::F32);
    write_checkpoint(&folder.0, &original, Linears::Packed);
    for embeddings in [TensorType::Q8_0, TensorType::Q6_K] {
        let converted = folder.convert(TensorType::I2S, embeddings).unwrap();
        assert_same_tensors(&converted, &folder.synth(TensorType::I2S, embeddings));
    }
    let converted = folder.convert(TensorType::F16, TensorType::F16).unwrap();
    let file = Gguf::parse(&converted, converted.len() as u64).unwrap();
    let tensor = file.tensor("blk.2.ffn_down.weight").unwrap();
    assert_eq!(tensor.kind, TensorType::F16);
    let original = Gguf::parse(&original, original.len() as u64).unwrap();
    let packed = original.data(original.tensor(tensor.name).unwrap()).unwrap();
    let mut codes = vec![0; tensor.elements() as usize];
    ternary::i2s_codes(packed, 0, &mut codes);
    let scale = ternary::i2s_scale(packed, codes.len());
    for (bytes, code) in file.data(tensor).unwrap().as_chunks().0.iter().zip(codes) {
        assert_eq!(u16::from_le_bytes(*bytes), blocks::f32_to_f16((f32::from(code) - 1.0) * scale));
    }
    load(&folder.path("converted.gguf"));
}

#[test]
fn checkpoints_that_are_not_what_they_say_are_refused_and_leave_no_file() {
    let folder = Folder::new("refused");
    write_checkpoint(&folder.0, &folder.synth(TensorType::I2S, TensorType::F32), Linears::Packed);
    let attempt = |edit: &dyn Fn(&mut Value)| {
        let mut config = config();
        edit(&mut config);
        fs::write(folder.path("config.json"), config.to_string()).unwrap();
        folder.convert(TensorType::I2S, TensorType::F16).unwrap_err()
    };
    assert!(matches!(attempt(&|c| c["model_type"] = "t5".into()), Error::ModelType(_)));
    for (key, value) in [
        ("hidden_act", json!("gelu")),
        ("num_attention_heads", json!(0)),
        ("num_hidden_layers", json!(1u64 << 40)),
        ("head_dim", json!(7)),
        ("rope_scaling", json!({ "rope_type": "yarn", "factor": 2.0 })),
        ("rope_scaling", json!({ "rope_type": "linear", "factor": -1.0 })),
        ("quantization_config", json!({ "quant_method": "gptq" })),
    ] {
        let error = attempt(&|c| c[key] = value.clone());
        assert!(matches!(error, Error::Config { .. }), "{key}: {error}");
    }
    assert!(matches!(attempt(&|c| c["vocab_size"] = json!(-1)), Error::Json(_)));
    assert!(matches!(attempt(&|c| c["hidden_size"] = json!(128)), Error::Checkpoint(_)));
    assert!(matches!(attempt(&|c| c["num_hidden_layers"] = json!(4)), Error::Checkpoint(_)));
    assert!(matches!(attempt(&|c| c["vocab_size"] = json!(1000)), Error::Tokenizer(_)));
    fs::write(folder.path("config.json"), config().to_string()).unwrap();
    assert!(matches!(folder.convert(TensorType::Q8_0, TensorType::F16), Err(Error::Kind("Q8_0"))));
    assert!(matches!(folder.convert(TensorType::I2S, TensorType::I2S), Err(Error::Embeddings("I2_S"))));
    // Code 3, and a scale that is no number.
    let path = folder.path("model.safetensors");
    let good = fs::read(&path).unwrap();
    let table = 8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let entries: Value = serde_json::from_slice(&good[8..table]).unwrap();
    let offset = |name: &str| table + entries[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let mut bad = good.clone();
    bad[offset("model.layers.1.mlp.up_proj.weight")] = 0xff;
    fs::write(&path, bad).unwrap();
    let error = folder.convert(TensorType::I2S, TensorType::F16).unwrap_err();
    assert!(matches!(&error, Error::Packed { name, .. } if name.contains("layers.1.mlp.up_proj")), "{error}");
    let mut bad = good;
    let at = offset("model.layers.0.mlp.up_proj.weight_scale");
    bad[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bad).unwrap();
    assert!(matches!(folder.convert(TensorType::I2S, TensorType::F16), Err(Error::Scale { .. })));
}

#[test]
fn the_checkpoint_of_the_embedded_model_gives_the_embedded_model() {
    #[expect(clippy::disallowed_methods, reason = "a test's own switch, not configuration of the server")]
    let Some(checkpoint) = std::env::var_os("BITNETD_HF").map(PathBuf::from) else {
        println!("skipped: BITNETD_HF is not set");
        return;
    };
    let folder = Folder::new("embedded");
    let out = folder.path("out.gguf");
    convert(&checkpoint, &out, TensorType::I2S, TensorType::F16, |_, _| {}).unwrap();
    assert_same_tensors(&fs::read(&out).unwrap(), include_bytes!("../assets/bitnetd-tiny-i2_s.gguf"));
    let (ours, theirs) = (load(&out), Source::embedded());
    let options = LoadOptions { threads: 1, node: None, context_max: 64, head_screen: HeadScreen::Off };
    let theirs = Model::load(&theirs, "embedded".into(), options, &|_, _| {}).unwrap();
    let ids = |model: &Model| {
        let mut ids = Vec::new();
        model.tokenizer.encode("Once upon a time, <|eot_id|> 12345 \u{1f98a}", true, true, &mut ids);
        ids
    };
    assert_eq!(ids(&ours), ids(&theirs));
    assert_eq!(ours.tokenizer.end_of_generation(), theirs.tokenizer.end_of_generation());
}
