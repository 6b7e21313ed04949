//! What kind of model a checkpoint holds: its configuration, the tensors of its GGUF form and where each comes from.

use gguf::writer::Writer;
use serde::Deserialize;
use serde_json::Value;

use super::Error;
use super::safetensors::Checkpoint;

/// The parts of config.json that say anything about the graph.
#[derive(Deserialize)]
pub(super) struct Config {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    query_pre_attn_scalar: Option<f64>,
    sliding_window: Option<u32>,
    use_bidirectional_attention: Option<bool>,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    #[serde(default)]
    tie_word_embeddings: bool,
    quantization_config: Option<Quantization>,
    pub(super) bos_token_id: Option<Value>,
    pub(super) eos_token_id: Option<Value>,
    pub(super) pad_token_id: Option<Value>,
}

#[derive(Deserialize)]
struct Quantization {
    quant_method: Option<String>,
    linear_class: Option<String>,
}

/// The families that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// bitnet-b1.58: squared ReLU, sub norms, tied.
    B158,
    /// bitnet: 1bitLLM's models, SiLU, sub norms, tied.
    Bitnet,
    /// llama: interleaved RoPE, so that rows of q and k change places.
    Llama,
    /// qwen3 and gemma3 for embeddings: norms of q and k, and of the input of each projection.
    Qwen3,
    Gemma3,
}

impl Family {
    fn is_embedding(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }
}

/// A model that can be written.
pub(super) struct Shape {
    family: Family,
    config: Config,
    head_dim: usize,
    kv_heads: usize,
    rope_theta: f32,
    rope: Rope,
    /// llama.cpp's number.
    pooling: Option<u32>,
    /// Which of the input norms there are: those of the first layer.
    input_norms: Vec<&'static str>,
    /// `output.weight` is a tensor of its own.
    untied: bool,
    /// A packed checkpoint's scales multiply; in the other kind they divide.
    pub(super) scales_multiply: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rope {
    Plain,
    Linear { factor: f32 },
    Llama3 { factor: f32, low: f32, high: f32, context: f32 },
}

/// One tensor to write.
pub(super) struct Planned {
    pub(super) name: String,
    /// Name in the checkpoint, less the `.weight`.
    pub(super) from: String,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) fill: Fill,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fill {
    /// Gemma keeps the weights of its norms less one.
    Norm {
        plus: f32,
    },
    Table,
    /// `heads`: rows of each of so many heads go from halves to pairs.
    Linear {
        heads: Option<usize>,
    },
    /// Computed: divisors of the RoPE frequencies.
    RopeFactors,
}

impl Shape {
    pub(super) fn of(config: Config, pooling: Option<u32>, checkpoint: &Checkpoint) -> Result<Self, Error> {
        let family = family(&config, checkpoint)?;
        let (heads, hidden) = (config.num_attention_heads, config.hidden_size);
        let head_dim = config.head_dim.or_else(|| hidden.checked_div(heads));
        let head_dim = head_dim.filter(|dim| *dim > 0 && dim.is_multiple_of(2) && *dim <= SIZE_MAX);
        let head_dim = head_dim.ok_or(Error::Config { key: "head_dim", found: format!("{hidden} / {heads}") })?;
        for (key, found) in [
            ("vocab_size", config.vocab_size),
            ("hidden_size", hidden),
            ("intermediate_size", config.intermediate_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", heads),
            ("max_position_embeddings", config.max_position_embeddings),
        ] {
            if !(1..=SIZE_MAX).contains(&found) {
                return Err(Error::Config { key, found: found.to_string() });
            }
        }
        let in_parameters = config.rope_parameters.as_ref().and_then(|rope| rope["rope_theta"].as_f64());
        let rope_theta = config.rope_theta.or(in_parameters.map(|theta| theta as f32)).unwrap_or(10_000.0);
        let rope = rope(config.rope_scaling.as_ref().or(config.rope_parameters.as_ref()))?;
        let embedding = family.is_embedding();
        let input_norms: Vec<&str> = PROJECTIONS
            .iter()
            .filter(|(_, from)| embedding && checkpoint.find(&format!("model.layers.0.{from}.norm.weight")).is_some())
            .map(|(name, _)| *name)
            .collect();
        if embedding && pooling.is_none() && input_norms.is_empty() {
            return Err(Error::ModelType(format!("{} without pooling or input norms", config.model_type)));
        }
        if family == Family::Gemma3 {
            check_gemma3(&config, head_dim)?;
        }
        let untied = !embedding && !config.tie_word_embeddings && checkpoint.find("lm_head.weight").is_some();
        if untied && family != Family::Llama {
            return Err(Error::Config { key: "tie_word_embeddings", found: "false".into() });
        }
        let quantization = config.quantization_config.as_ref();
        if let Some(method) = quantization.and_then(|q| q.quant_method.as_ref()).filter(|method| *method != "bitnet") {
            return Err(Error::Config { key: "quant_method", found: method.clone() });
        }
        let class = quantization.and_then(|quantization| quantization.linear_class.as_deref());
        let kv_heads = config.num_key_value_heads.unwrap_or(heads);
        let scales_multiply = class == Some("autobitlinear");
        let pooling = embedding.then(|| pooling.unwrap_or(POOLING_LAST));
        Ok(Self { family, head_dim, kv_heads, rope_theta, rope, pooling, input_norms, untied, scales_multiply, config })
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn vocab(&self) -> usize {
        self.config.vocab_size
    }

    fn architecture(&self) -> &'static str {
        match self.family {
            Family::B158 => "bitnet-b1.58",
            Family::Bitnet => "bitnet",
            Family::Llama => "llama",
            Family::Qwen3 => "qwen3",
            Family::Gemma3 => "gemma3",
        }
    }

    /// Whether the model gives vectors.
    pub(super) fn is_embedding(&self) -> bool {
        self.family.is_embedding()
    }

    /// All tensors in the order of the file.
    pub(super) fn tensors(&self) -> Vec<Planned> {
        let Config { hidden_size: hidden, intermediate_size: ffn, vocab_size: vocab, .. } = self.config;
        let (width, kv) = (self.config.num_attention_heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = Vec::new();
        let mut add = |name: &str, from: String, rows, cols, fill| {
            all.push(Planned { name: format!("{name}.weight"), from, rows, cols, fill });
        };
        add("token_embd", "model.embed_tokens".into(), vocab, hidden, Fill::Table);
        if matches!(self.rope, Rope::Llama3 { .. }) {
            add("rope_freqs", String::new(), 1, self.head_dim / 2, Fill::RopeFactors);
        }
        let (llama, gemma) = (self.family == Family::Llama, self.family == Family::Gemma3);
        let sub_norms = matches!(self.family, Family::B158 | Family::Bitnet);
        let (attn_sub, ffn_sub) = match self.family {
            Family::Bitnet => ("self_attn.inner_attn_ln", "mlp.ffn_layernorm"),
            _ => ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
        };
        for layer in 0..self.config.num_hidden_layers {
            let mut norm_plus = |name: &str, from: &str, cols, plus| {
                let fill = Fill::Norm { plus };
                add(&format!("blk.{layer}.{name}"), format!("model.layers.{layer}.{from}"), 1, cols, fill);
            };
            for (name, from) in PROJECTIONS.iter().filter(|(name, _)| self.input_norms.contains(name)) {
                let cols = match *name {
                    "attn_output" => width,
                    "ffn_down" => ffn,
                    _ => hidden,
                };
                norm_plus(&format!("{name}_norm_in"), &format!("{from}.norm"), cols, 0.0);
            }
            let mut norm = |name: &str, from: &str, cols| norm_plus(name, from, cols, f32::from(u8::from(gemma)));
            norm("attn_norm", "input_layernorm", hidden);
            if sub_norms {
                norm("attn_sub_norm", attn_sub, width);
            }
            if gemma {
                norm("post_attention_norm", "post_attention_layernorm", hidden);
                norm("ffn_norm", "pre_feedforward_layernorm", hidden);
                norm("post_ffw_norm", "post_feedforward_layernorm", hidden);
            } else {
                norm("ffn_norm", "post_attention_layernorm", hidden);
            }
            if sub_norms {
                norm("ffn_sub_norm", ffn_sub, ffn);
            }
            if self.is_embedding() {
                norm("attn_q_norm", "self_attn.q_norm", self.head_dim);
                norm("attn_k_norm", "self_attn.k_norm", self.head_dim);
            }
            let mut linear = |(name, from): (&str, &str), rows, cols, heads: Option<usize>| {
                let fill = Fill::Linear { heads: heads.filter(|_| llama) };
                add(&format!("blk.{layer}.{name}"), format!("model.layers.{layer}.{from}"), rows, cols, fill);
            };
            let [q, k, v, o, gate, up, down] = PROJECTIONS;
            linear(q, width, hidden, Some(self.config.num_attention_heads));
            linear(k, kv, hidden, Some(self.kv_heads));
            linear(v, kv, hidden, None);
            linear(o, hidden, width, None);
            linear(gate, ffn, hidden, None);
            linear(up, ffn, hidden, None);
            linear(down, hidden, ffn, None);
        }
        add("output_norm", "model.norm".into(), 1, hidden, Fill::Norm { plus: f32::from(u8::from(gemma)) });
        if self.untied {
            add("output", "lm_head".into(), vocab, hidden, Fill::Table);
        }
        all
    }

    /// The hyper-parameters.
    pub(super) fn describe(&self, name: &str, file_type: u32, writer: &mut Writer) {
        let (arch, config) = (self.architecture(), &self.config);
        let key = |name: &str| format!("{arch}.{name}");
        // All of them were checked to be below SIZE_MAX.
        let number = |value: usize| value as u32;
        writer
            .kv("general.architecture", arch)
            .kv("general.name", name)
            .kv("general.file_type", file_type)
            .kv("general.quantization_version", 2u32)
            .kv(&key("vocab_size"), number(config.vocab_size))
            .kv(&key("context_length"), number(config.max_position_embeddings))
            .kv(&key("embedding_length"), number(config.hidden_size))
            .kv(&key("block_count"), number(config.num_hidden_layers))
            .kv(&key("feed_forward_length"), number(config.intermediate_size))
            .kv(&key("rope.dimension_count"), number(self.head_dim))
            .kv(&key("rope.freq_base"), self.rope_theta)
            .kv(&key("attention.head_count"), number(config.num_attention_heads))
            .kv(&key("attention.head_count_kv"), number(self.kv_heads))
            .kv(&key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
        if self.head_dim * config.num_attention_heads != config.hidden_size {
            writer
                .kv(&key("attention.key_length"), number(self.head_dim))
                .kv(&key("attention.value_length"), number(self.head_dim));
        }
        if let Some(pooling) = self.pooling {
            writer.kv(&key("pooling_type"), pooling);
        }
        if let Rope::Linear { factor } = self.rope {
            writer.kv(&key("rope.scaling.type"), "linear").kv(&key("rope.scaling.factor"), factor);
        }
    }

    /// The divisors of Llama 3.1's frequencies: none for short waves, `factor` for long ones, a blend between.
    pub(super) fn rope_factors(&self) -> Vec<f32> {
        let Rope::Llama3 { factor, low, high, context } = self.rope else { return Vec::new() };
        let (factor, low, high, context) = (f64::from(factor), f64::from(low), f64::from(high), f64::from(context));
        let frequency = |i: usize| {
            let exponent = 2.0 * i as f64 / self.head_dim as f64;
            let wave = std::f64::consts::TAU * libm::pow(f64::from(self.rope_theta), exponent);
            let divisor = if wave < context / high {
                1.0
            } else if wave > context / low {
                factor
            } else {
                let blend = (context / wave - low) / (high - low);
                1.0 / ((1.0 - blend) / factor + blend)
            };
            divisor as f32
        };
        (0..self.head_dim / 2).map(frequency).collect()
    }
}

fn family(config: &Config, checkpoint: &Checkpoint) -> Result<Family, Error> {
    let inner_norms = checkpoint.find("model.layers.0.self_attn.inner_attn_ln.weight").is_some();
    let act = config.hidden_activation.as_ref().or(config.hidden_act.as_ref()).map_or("silu", String::as_str);
    let family = match config.model_type.as_str() {
        "bitnet" | "llama" if inner_norms => Family::Bitnet,
        "bitnet" => Family::B158,
        "llama" => Family::Llama,
        "qwen3" => Family::Qwen3,
        "gemma3_text" => Family::Gemma3,
        other => return Err(Error::ModelType(other.to_owned())),
    };
    let wanted = match family {
        Family::B158 => "relu2",
        Family::Gemma3 => "gelu_pytorch_tanh",
        Family::Bitnet | Family::Llama | Family::Qwen3 => "silu",
    };
    if act != wanted {
        return Err(Error::Config { key: "hidden_act", found: act.to_owned() });
    }
    Ok(family)
}

/// Refuses what this server computes in another way.
fn check_gemma3(config: &Config, head_dim: usize) -> Result<(), Error> {
    let refuse = |key, found: String| Err(Error::Config { key, found });
    match config.query_pre_attn_scalar {
        Some(scalar) if scalar != head_dim as f64 => return refuse("query_pre_attn_scalar", scalar.to_string()),
        _ => {}
    }
    match config.sliding_window {
        Some(window) if (window as usize) < config.max_position_embeddings => {
            return refuse("sliding_window", window.to_string());
        }
        _ => {}
    }
    if config.use_bidirectional_attention == Some(true) {
        return refuse("use_bidirectional_attention", "true".into());
    }
    Ok(())
}

fn rope(scaling: Option<&Value>) -> Result<Rope, Error> {
    let Some(scaling) = scaling.filter(|scaling| !scaling.is_null()) else { return Ok(Rope::Plain) };
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
    let number = |key: &'static str| {
        let found = scaling[key].as_f64().filter(|value| value.is_finite() && *value > 0.0);
        found.map(|value| value as f32).ok_or_else(|| Error::Config { key, found: scaling[key].to_string() })
    };
    match kind {
        "default" => Ok(Rope::Plain),
        "linear" => Ok(Rope::Linear { factor: number("factor")? }),
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            let (factor, context) = (number("factor")?, number("original_max_position_embeddings")?);
            if low >= high {
                return Err(Error::Config { key: "low_freq_factor", found: low.to_string() });
            }
            Ok(Rope::Llama3 { factor, low, high, context })
        }
        other => Err(Error::Config { key: "rope_type", found: other.to_owned() }),
    }
}

/// GGUF's and transformers' names of the linear layers of a block.
const PROJECTIONS: [(&str, &str); 7] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// llama.cpp's number for the last token's state, which these models are trained for.
const POOLING_LAST: u32 = 3;
/// Largest count in a configuration; the widest models are far below.
const SIZE_MAX: usize = 1 << 24;
