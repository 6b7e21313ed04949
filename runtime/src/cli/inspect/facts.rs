//! The facts of a model file, and what is wrong with it.

use std::path::Path;

use gguf::ternary::Tiled;
use gguf::{Gguf, Metadata, TensorInfo, TensorType};
use serde::Serialize;

use super::scan::Scan;
use crate::model::{Error, Source, Tiles};

#[derive(Debug, Serialize)]
pub(super) struct Facts {
    pub(super) path: String,
    pub(super) file_bytes: u64,
    pub(super) version: u32,
    pub(super) alignment: Alignment,
    pub(super) data_offset: u64,
    pub(super) metadata_count: usize,
    pub(super) tensor_count: usize,
    pub(super) parameter_count: u64,
    pub(super) architecture: Architecture,
    pub(super) tokenizer: Tokenizer,
    pub(super) types: Vec<TypeUse>,
    pub(super) ternary: Option<Ternary>,
    /// Of the whole file, in hexadecimal digits.
    pub(super) sha256: Option<String>,
    pub(super) findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tensors: Vec<Tensor>,
}

/// In bytes.
#[derive(Debug, Serialize)]
pub(super) struct Alignment {
    /// What the file states.
    pub(super) required: u64,
    /// The largest power of two that divides the start of every tensor.
    pub(super) actual: u64,
    /// A cache line, an AVX-512 register.
    pub(super) optimal: u64,
    /// Tensors that start elsewhere. They cost nothing here, since weights are packed into aligned memory when they are
    /// loaded; a reader that maps the file splits each of its vector loads over two cache lines there.
    pub(super) off_optimal_count: usize,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Architecture {
    pub(super) name: Option<String>,
    pub(super) model_name: Option<String>,
    pub(super) block_count: Option<u32>,
    pub(super) embedding_length: Option<u32>,
    pub(super) feed_forward_length: Option<u32>,
    pub(super) head_count: Option<u32>,
    pub(super) head_count_kv: Option<u32>,
    pub(super) head_dim: Option<u32>,
    pub(super) vocab_size: Option<u32>,
    pub(super) context_length: Option<u32>,
    pub(super) rope_freq_base: Option<f32>,
    pub(super) norm_rms_epsilon: Option<f32>,
    /// The head has weights of its own.
    pub(super) untied_output: bool,
    /// What it gives: `generation` or `embedding`.
    pub(super) kind: Option<&'static str>,
    /// How an embedding model makes one vector of a text.
    pub(super) pooling: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Tokenizer {
    pub(super) model: Option<String>,
    pub(super) pre: Option<String>,
    pub(super) tokens_count: Option<usize>,
    pub(super) merges_count: Option<usize>,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<u32>,
    pub(super) add_bos_token: Option<bool>,
    pub(super) chat_template_bytes: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(super) struct TypeUse {
    pub(super) name: &'static str,
    pub(super) id: u32,
    pub(super) tensor_count: usize,
    pub(super) elements: u64,
    pub(super) bytes: u64,
}

/// What the data of ternary tensors says.
#[derive(Debug, Serialize)]
pub(super) struct Ternary {
    pub(super) tensor_count: usize,
    pub(super) elements: u64,
    /// Of the finite scales.
    pub(super) scale_min: Option<f32>,
    pub(super) scale_max: Option<f32>,
    pub(super) bad_scale_count: u64,
    pub(super) code3_count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) dims: Vec<u64>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Served, perhaps not as its maker meant.
    Warning,
    /// Not served: of another kind.
    Unsupported,
    /// Not served: wrong.
    Malformed,
}

#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// Stable name for scripts.
    pub(super) code: &'static str,
    pub(super) message: String,
}

const ARCHITECTURES: [&str; 6] = ["bitnet-b1.58", "bitnet-25", "bitnet", "llama", "qwen3", "gemma3"];
const ALIGNMENT_OPTIMAL: u64 = 64;

impl Facts {
    /// All that the tables say.
    pub(super) fn of_tables(path: &Path, file_bytes: u64, gguf: &Gguf<'_>, list_tensors: bool) -> Self {
        let tensors = gguf.tensors();
        let offset_bits = tensors.iter().fold(0, |bits, tensor| bits | tensor.offset);
        let alignment = Alignment {
            required: gguf.alignment(),
            actual: if offset_bits == 0 { gguf.alignment() } else { 1 << offset_bits.trailing_zeros() },
            optimal: ALIGNMENT_OPTIMAL,
            off_optimal_count: tensors.iter().filter(|t| !t.offset.is_multiple_of(ALIGNMENT_OPTIMAL)).count(),
        };
        let mut facts = Self {
            path: path.display().to_string(),
            file_bytes,
            version: gguf.version(),
            alignment,
            data_offset: gguf.data_offset(),
            metadata_count: gguf.metadata().len(),
            tensor_count: tensors.len(),
            parameter_count: tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.elements())),
            architecture: Architecture::default(),
            tokenizer: Tokenizer::default(),
            types: type_uses(tensors),
            ternary: None,
            sha256: None,
            findings: vec![],
            tensors: vec![],
        };
        facts.read_architecture(gguf);
        facts.read_tokenizer(gguf.metadata());
        facts.judge_types(tensors);
        if list_tensors {
            facts.tensors = tensors.iter().map(Tensor::of).collect();
        }
        facts
    }

    /// Reads the data of the ternary tensors.
    pub(super) fn add_ternary_data(
        &mut self,
        source: &Source,
        gguf: &Gguf<'_>,
        tiles: &Result<Tiles, Error>,
    ) -> Result<(), Error> {
        let mut scan = Scan::default();
        let (mut code3_first, mut scale_first) = (None, None);
        for tensor in gguf.tensors().iter().filter(|tensor| tensor.kind.is_ternary()) {
            let before = (scan.code3_count, scan.bad_scale_count);
            match tile_layout(tensor, tiles) {
                None => scan.blocks(source, tensor)?,
                Some(Ok(layout)) => scan.tiles(source, tensor, &layout)?,
                // Once is enough: the others of its shape have the same fault.
                Some(Err(_)) if self.findings.iter().any(|finding| finding.code == "tensor-type-tiled") => {}
                Some(Err(why)) => self.find(Severity::Unsupported, "tensor-type-tiled", why),
            }
            if scan.code3_count > before.0 {
                code3_first.get_or_insert(tensor.name);
            }
            if scan.bad_scale_count > before.1 {
                scale_first.get_or_insert(tensor.name);
            }
        }
        if let Some(name) = code3_first {
            let message = format!(
                "{} weights have code 3, which means nothing, the first in {name}: another layout, or damaged",
                scan.code3_count
            );
            self.find(Severity::Malformed, "ternary-code-3", message);
        }
        if let Some(name) = scale_first {
            let message = format!("{} scales are not finite, the first in {name}", scan.bad_scale_count);
            self.find(Severity::Malformed, "ternary-scale", message);
        }
        if let Some((name, scale)) = &scan.odd_scale {
            let message = format!("scale {scale} of {name} is no likely size of a weight");
            self.find(Severity::Warning, "ternary-scale-unlikely", message);
        }
        let finite = scan.scale_min <= scan.scale_max;
        self.ternary = (scan.tensor_count > 0).then(|| Ternary {
            tensor_count: scan.tensor_count,
            elements: scan.elements,
            scale_min: finite.then_some(scan.scale_min),
            scale_max: finite.then_some(scan.scale_max),
            bad_scale_count: scan.bad_scale_count,
            code3_count: scan.code3_count,
        });
        Ok(())
    }

    fn read_architecture(&mut self, gguf: &Gguf<'_>) {
        let metadata = gguf.metadata();
        let name = self.value(metadata.str("general.architecture"));
        let Some(arch) = name else {
            let message = "general.architecture is not there".to_owned();
            return self.find(Severity::Unsupported, "architecture", message);
        };
        if !ARCHITECTURES.contains(&arch) {
            let message = format!("architecture {arch:?} is not served, only {}", ARCHITECTURES.join(", "));
            self.find(Severity::Unsupported, "architecture", message);
        }
        let key = |name: &str| format!("{arch}.{name}");
        let mut number = |name: &str| self.value(metadata.u32(&key(name)));
        let (embedding_length, head_count) = (number("embedding_length"), number("attention.head_count"));
        let per_head = embedding_length.zip(head_count).and_then(|(width, heads)| width.checked_div(heads));
        let tokens = metadata.array("tokenizer.ggml.tokens").ok().flatten();
        self.architecture = Architecture {
            name: Some(arch.to_owned()),
            block_count: number("block_count"),
            embedding_length,
            feed_forward_length: number("feed_forward_length"),
            head_count,
            head_count_kv: number("attention.head_count_kv").or(head_count),
            head_dim: number("attention.key_length").or(per_head),
            vocab_size: number("vocab_size").or(tokens.and_then(|tokens| u32::try_from(tokens.len()).ok())),
            context_length: number("context_length"),
            rope_freq_base: self.value(metadata.f32(&key("rope.freq_base"))),
            norm_rms_epsilon: self.value(metadata.f32(&key("attention.layer_norm_rms_epsilon"))),
            model_name: self.value(metadata.str("general.name")).map(str::to_owned),
            untied_output: gguf.tensor("output.weight").is_some(),
            kind: None,
            pooling: None,
        };
        for name in ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length"]
        {
            if metadata.get(&key(name)).is_none() {
                self.find(Severity::Malformed, "hyper-parameter-missing", format!("{} is not there", key(name)));
            }
        }
    }

    fn read_tokenizer(&mut self, metadata: &Metadata<'_>) {
        let tokens_count = self.value(metadata.strings("tokenizer.ggml.tokens")).map(|tokens| tokens.len());
        self.tokenizer = Tokenizer {
            model: self.value(metadata.str("tokenizer.ggml.model")).map(str::to_owned),
            pre: self.value(metadata.str("tokenizer.ggml.pre")).map(str::to_owned),
            tokens_count,
            merges_count: self.value(metadata.strings("tokenizer.ggml.merges")).map(|merges| merges.len()),
            bos_token_id: self.value(metadata.u32("tokenizer.ggml.bos_token_id")),
            eos_token_id: self.value(metadata.u32("tokenizer.ggml.eos_token_id")),
            add_bos_token: self.value(metadata.bool("tokenizer.ggml.add_bos_token")),
            chat_template_bytes: self.value(metadata.string("tokenizer.chat_template")).map(<[u8]>::len),
        };
        let model = self.tokenizer.model.as_deref();
        if model.is_none() || tokens_count.is_none() {
            let message = "tokenizer.ggml.model or tokenizer.ggml.tokens is not there".to_owned();
            self.find(Severity::Malformed, "tokenizer-missing", message);
        } else if model == Some("gpt2") && self.tokenizer.pre.is_none() {
            let message =
                "tokenizer.ggml.pre is not there; llama-bpe splitting is used, bitnet.cpp would fall back to \
                           another"
                    .to_owned();
            self.find(Severity::Warning, "tokenizer-pre-missing", message);
        }
        let types = self.value(metadata.array("tokenizer.ggml.token_type")).map(|types| types.len());
        if let (Some(types), Some(tokens)) = (types, tokens_count)
            && types != tokens
        {
            let message = format!("{tokens} tokens have {types} types");
            self.find(Severity::Malformed, "tokenizer-types", message);
        }
    }

    fn judge_types(&mut self, tensors: &[TensorInfo<'_>]) {
        let mut seen = vec![];
        for tensor in tensors.iter().filter(|tensor| matches!(tensor.kind, TensorType::Other(_))) {
            if !seen.contains(&tensor.kind) {
                seen.push(tensor.kind);
                let (name, kind) = (tensor.name, tensor.kind.name());
                let message = format!("tensors of type {kind} are not served, the first is {name}");
                self.find(Severity::Unsupported, "tensor-type", message);
            }
        }
    }

    /// The value, or a finding that says why there is none.
    fn value<T>(&mut self, read: Result<Option<T>, gguf::Error>) -> Option<T> {
        read.unwrap_or_else(|error| {
            self.find(Severity::Malformed, "metadata-value", error.to_string());
            None
        })
    }

    pub(super) fn find(&mut self, severity: Severity, code: &'static str, message: String) {
        self.findings.push(Finding { severity, code, message });
    }
}

impl Tensor {
    fn of(tensor: &TensorInfo<'_>) -> Self {
        Self {
            name: tensor.name.to_owned(),
            kind: tensor.kind.name(),
            dims: tensor.dims[..tensor.dim_count as usize].to_vec(),
            offset: tensor.offset,
            bytes: tensor.bytes,
        }
    }
}

/// How a tensor of tiles lies, or why that is not known.
fn tile_layout(tensor: &TensorInfo<'_>, tiles: &Result<Tiles, Error>) -> Option<Result<Tiled, String>> {
    if !tensor.kind.is_tiled() {
        return None;
    }
    let shape = usize::try_from(tensor.rows()).ok().zip(usize::try_from(tensor.cols()).ok());
    let (Ok(tiles), Some(shape)) = (tiles, shape) else {
        return Some(Err(tiles
            .as_ref()
            .err()
            .map_or_else(|| "a tensor beyond memory".to_owned(), ToString::to_string)));
    };
    Some(tiles.layout(tensor.kind, tensor.name, shape).map_err(|error| error.to_string()))
}

/// Most bytes first.
fn type_uses(tensors: &[TensorInfo<'_>]) -> Vec<TypeUse> {
    let mut uses: Vec<TypeUse> = vec![];
    for tensor in tensors {
        let (name, id) = (tensor.kind.name(), tensor.kind.id());
        let at = uses.iter().position(|entry| entry.id == id).unwrap_or_else(|| {
            uses.push(TypeUse { name, id, tensor_count: 0, elements: 0, bytes: 0 });
            uses.len() - 1
        });
        uses[at].tensor_count += 1;
        uses[at].elements = uses[at].elements.saturating_add(tensor.elements());
        uses[at].bytes += tensor.bytes;
    }
    uses.sort_by_key(|entry| std::cmp::Reverse(entry.bytes));
    uses
}
