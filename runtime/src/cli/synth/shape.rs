//! The presets: hyper-parameters, tensors and a tokenizer for each shape.

use gguf::TensorType;
use gguf::writer::Writer;

/// The shape of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// A few layers, for tests.
    Tiny,
    /// Two layers so wide that a step of one row leaves rows of them out, for tests.
    Wide,
    /// bitnet_b1_58-large.
    Large,
    /// BitNet b1.58 2B4T.
    B2_4T,
    /// bitnet_b1_58-3B.
    B3,
    /// Llama3-8B-1.58.
    B8,
    /// Falcon3-1.58 of 1B, 3B, 7B and 10B.
    Falcon1,
    Falcon3,
    Falcon7,
    Falcon10,
    /// bitnet-embedding-0.6b and -270m.
    Qwen3,
    Gemma3,
    /// The same graphs with a few layers, for tests.
    TinyQwen3,
    TinyGemma3,
}

impl Preset {
    pub const ALL: [Self; 14] = [
        Self::Tiny,
        Self::Wide,
        Self::Large,
        Self::B2_4T,
        Self::B3,
        Self::B8,
        Self::Falcon1,
        Self::Falcon3,
        Self::Falcon7,
        Self::Falcon10,
        Self::Qwen3,
        Self::Gemma3,
        Self::TinyQwen3,
        Self::TinyGemma3,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Wide => "wide",
            Self::Large => "large",
            Self::B2_4T => "2b4t",
            Self::B3 => "3b",
            Self::B8 => "8b",
            Self::Falcon1 => "falcon3-1b",
            Self::Falcon3 => "falcon3-3b",
            Self::Falcon7 => "falcon3-7b",
            Self::Falcon10 => "falcon3-10b",
            Self::Qwen3 => "qwen3-0.6b",
            Self::Gemma3 => "gemma3-270m",
            Self::TinyQwen3 => "tiny-qwen3",
            Self::TinyGemma3 => "tiny-gemma3",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    pub(super) fn shape(self) -> Shape {
        let tiny = |shape: Shape, heads, head_dim| Shape {
            hidden: 256,
            ffn: 768,
            layers: 3,
            heads,
            kv_heads: heads / 2,
            head_dim,
            vocab: 1024,
            context: 512,
            ..shape
        };
        match self {
            Self::Tiny => tiny(B2_4T, 4, 64),
            Self::Falcon1 => Shape { hidden: 2048, ffn: 8192, layers: 18, heads: 8, context: 8192, ..FALCON3_10B },
            Self::Falcon3 => Shape { ffn: 9216, layers: 22, ..FALCON3_10B },
            Self::Falcon7 => Shape { layers: 28, ..FALCON3_10B },
            Self::Falcon10 => FALCON3_10B,
            Self::Qwen3 => QWEN3,
            Self::Gemma3 => GEMMA3,
            // Heads together are wider than the hidden state.
            Self::TinyQwen3 => tiny(QWEN3, 4, 96),
            Self::TinyGemma3 => tiny(GEMMA3, 2, 256),
            Self::Wide => {
                Shape { hidden: 1536, ffn: 2048, layers: 2, heads: 12, kv_heads: 4, vocab: 1024, context: 512, ..B2_4T }
            }
            Self::Large => LARGE,
            Self::B2_4T => B2_4T,
            Self::B3 => Shape { hidden: 3200, ffn: 8640, layers: 26, heads: 32, kv_heads: 32, head_dim: 100, ..LARGE },
            Self::B8 => Shape {
                arch: "llama",
                hidden: 4096,
                ffn: 14_336,
                layers: 32,
                heads: 32,
                kv_heads: 8,
                context: 8192,
                tied: false,
                ..B2_4T
            },
        }
    }
}

impl Shape {
    /// The same kind of model with what is odd about its dimensions, small enough for a test: two layers, the same size
    /// and sharing of heads, inner rows that are as far from whole blocks of I2_S.
    pub(super) fn reduced(self) -> Self {
        let group = self.heads / self.kv_heads;
        let (heads, kv_heads) = if group == 1 { (4, 4) } else { (group, 1) };
        let hidden = self.hidden / self.heads * heads;
        let block_rest = self.ffn % 128;
        let vocab = 1024 + self.vocab % 128;
        Self {
            hidden,
            heads,
            kv_heads,
            ffn: 2 * hidden.next_multiple_of(128) + block_rest,
            layers: 2,
            vocab,
            context: 256,
            ..self
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Shape {
    arch: &'static str,
    hidden: u32,
    ffn: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    vocab: u32,
    context: u32,
    rope_theta: f32,
    norm_eps: f32,
    tied: bool,
}

const B2_4T: Shape = Shape {
    arch: "bitnet-b1.58",
    hidden: 2560,
    ffn: 6912,
    layers: 30,
    heads: 20,
    kv_heads: 5,
    head_dim: 128,
    vocab: 128_256,
    context: 4096,
    rope_theta: 5e5,
    norm_eps: 1e-5,
    tied: true,
};
const LARGE: Shape = Shape {
    arch: "bitnet",
    hidden: 1536,
    ffn: 4096,
    layers: 24,
    heads: 16,
    kv_heads: 16,
    head_dim: 96,
    vocab: 32_002,
    context: 2048,
    rope_theta: 1e4,
    norm_eps: 1e-6,
    tied: true,
};
const FALCON3_10B: Shape = Shape {
    arch: "llama",
    hidden: 3072,
    ffn: 23_040,
    layers: 40,
    heads: 12,
    kv_heads: 4,
    head_dim: 256,
    vocab: 131_072,
    context: 32_768,
    rope_theta: 1_000_042.0,
    norm_eps: 1e-6,
    tied: false,
};
const QWEN3: Shape = Shape {
    arch: "qwen3",
    hidden: 1024,
    ffn: 3072,
    layers: 28,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    vocab: 151_936,
    context: 32_768,
    rope_theta: 1e6,
    norm_eps: 1e-6,
    tied: true,
};
const GEMMA3: Shape = Shape {
    arch: "gemma3",
    hidden: 640,
    ffn: 2048,
    layers: 18,
    heads: 4,
    kv_heads: 1,
    head_dim: 256,
    vocab: 262_144,
    rope_theta: 1e4,
    ..QWEN3
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    Ternary,
    Norm,
    Embedding,
}

pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) cols: u64,
    pub(super) rows: u64,
    pub(super) fill: Fill,
}

impl Tensor {
    pub(super) fn kind(&self, ternary: TensorType, embeddings: TensorType) -> TensorType {
        match self.fill {
            Fill::Ternary => ternary,
            Fill::Norm => TensorType::F32,
            Fill::Embedding => embeddings,
        }
    }
}

impl Shape {
    fn is_embedding(&self) -> bool {
        matches!(self.arch, "qwen3" | "gemma3")
    }

    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let (hidden, ffn) = (self.hidden, self.ffn);
        let (width, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![];
        let mut add = |name: String, cols: u32, rows: u32, fill| {
            tensors.push(Tensor { name, cols: cols.into(), rows: rows.into(), fill });
        };
        add("token_embd.weight".to_owned(), hidden, self.vocab, Fill::Embedding);
        for layer in 0..self.layers {
            let mut norm = |name: &str, cols| add(format!("blk.{layer}.{name}.weight"), cols, 1, Fill::Norm);
            norm("attn_norm", hidden);
            norm("ffn_norm", hidden);
            if self.arch.starts_with("bitnet") {
                norm("attn_sub_norm", width);
                norm("ffn_sub_norm", ffn);
            }
            if self.is_embedding() {
                norm("attn_q_norm", self.head_dim);
                norm("attn_k_norm", self.head_dim);
                for projection in ["attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"] {
                    norm(&format!("{projection}_norm_in"), hidden);
                }
                norm("attn_output_norm_in", width);
                norm("ffn_down_norm_in", ffn);
            }
            if self.arch == "gemma3" {
                norm("post_attention_norm", hidden);
                norm("post_ffw_norm", hidden);
            }
            let mut linear = |name, cols, rows| add(format!("blk.{layer}.{name}.weight"), cols, rows, Fill::Ternary);
            linear("attn_q", hidden, width);
            linear("attn_k", hidden, kv);
            linear("attn_v", hidden, kv);
            linear("attn_output", width, hidden);
            linear("ffn_gate", hidden, ffn);
            linear("ffn_up", hidden, ffn);
            linear("ffn_down", ffn, hidden);
        }
        add("output_norm.weight".to_owned(), hidden, 1, Fill::Norm);
        if !self.tied {
            add("output.weight".to_owned(), hidden, self.vocab, Fill::Embedding);
        }
        tensors
    }

    pub(super) fn describe(&self, preset: Preset, kind: TensorType, writer: &mut Writer) {
        let arch = self.arch;
        let key = |name: &str| format!("{arch}.{name}");
        writer
            .kv("general.architecture", arch)
            .kv("general.name", &*format!("synthetic {}", preset.name()))
            .kv(&key("vocab_size"), self.vocab)
            .kv(&key("context_length"), self.context)
            .kv(&key("embedding_length"), self.hidden)
            .kv(&key("block_count"), self.layers)
            .kv(&key("feed_forward_length"), self.ffn)
            .kv(&key("rope.dimension_count"), self.head_dim)
            .kv(&key("attention.head_count"), self.heads)
            .kv(&key("attention.head_count_kv"), self.kv_heads)
            .kv(&key("attention.layer_norm_rms_epsilon"), self.norm_eps)
            .kv(&key("rope.freq_base"), self.rope_theta);
        if self.head_dim * self.heads != self.hidden {
            writer.kv(&key("attention.key_length"), self.head_dim).kv(&key("attention.value_length"), self.head_dim);
        }
        if self.is_embedding() {
            writer.kv(&key("pooling_type"), POOLING_LAST);
        }
        if arch == "bitnet" {
            writer.kv(&key("rope.scaling.type"), "linear").kv(&key("rope.scaling.factor"), 1.0f32);
        }
        writer.kv("general.file_type", file_type(kind)).kv("general.quantization_version", 2u32);
        describe_tokenizer(self.vocab, self.is_embedding(), writer);
    }
}

/// llama.cpp's number.
const POOLING_LAST: u32 = 3;

/// bitnet.cpp's number for a model of this type.
fn file_type(kind: TensorType) -> u32 {
    match kind {
        TensorType::Tl1 => 38,
        TensorType::Tl2 => 39,
        _ => 40,
    }
}

/// A byte-level BPE that turns any text into bytes, with two merges, fillers, and four control tokens at the end. `ends`
/// has it close texts with the last token of a text, from which an embedding is taken.
fn describe_tokenizer(vocab: u32, ends: bool, writer: &mut Writer) {
    const CONTROL: [&str; 4] = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|pad|>"];
    const MERGES: [&str; 2] = ["t h", "h e"];
    let plain = vocab as usize - CONTROL.len();
    let mut tokens: Vec<String> = byte_alphabet().map(String::from).collect();
    tokens.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend((tokens.len()..plain).map(|index| format!("t{index:06}")));
    tokens.extend(CONTROL.map(str::to_owned));
    let types: Vec<i32> = (0..tokens.len()).map(|index| if index < plain { 1 } else { 3 }).collect();
    let control = |index: u32| vocab - 4 + index;
    writer
        .kv("tokenizer.ggml.model", "gpt2")
        .kv("tokenizer.ggml.pre", "llama-bpe")
        .strings("tokenizer.ggml.tokens", &tokens)
        .array("tokenizer.ggml.scores", &vec![0.0f32; tokens.len()])
        .array("tokenizer.ggml.token_type", &types)
        .strings("tokenizer.ggml.merges", MERGES)
        .kv("tokenizer.ggml.bos_token_id", control(0))
        .kv("tokenizer.ggml.eos_token_id", control(1))
        .kv("tokenizer.ggml.eot_token_id", control(2))
        .kv("tokenizer.ggml.padding_token_id", control(3))
        .kv("tokenizer.ggml.add_bos_token", true);
    if ends {
        writer.kv("tokenizer.ggml.add_eos_token", true);
    }
}

/// GPT-2's characters for the bytes 0 to 255: themselves where printable, from U+0100 on for the others.
fn byte_alphabet() -> impl Iterator<Item = char> {
    let mut unprintable = 0x100u32..;
    (0..=255u8).map(move |byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => unprintable.next().and_then(char::from_u32).expect("68 characters from U+0100 on"),
    })
}
