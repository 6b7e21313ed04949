//! What is known of a generation apart from its weights: said in answers, receipts and the state file.

use std::path::PathBuf;
use std::time::Duration;

use gguf::Gguf;
use net::api::ModelMetadata;
use sha2::{Digest, Sha256};

use crate::engine::GenerationId;
use crate::model::Error;

/// SHA-256 of a file's bytes.
pub(super) type Hash = [u8; 32];

/// Device, inode, size and time of the last change.
pub(super) type FileIdentity = (u64, u64, u64, i64, i64);

/// A generation's identity and measures.
#[derive(Clone, Debug)]
pub struct Facts {
    pub generation: GenerationId,
    pub name: String,
    /// `None` for the model inside the binary.
    pub path: Option<PathBuf>,
    pub sha256: Hash,
    pub identity: Option<FileIdentity>,
    /// Of the keys that make the tokenizer: equal ones cut every text alike.
    pub tokenizer: Hash,
    pub file_bytes: u64,
    pub parameters: u64,
    pub tensors: usize,
    pub quantization: &'static str,
    pub architecture: String,
    pub vocab: usize,
    pub context: usize,
    /// Weights of one replica, and what a decode step reads of them.
    pub weights_bytes: u64,
    pub bytes_per_token: u64,
    pub replicas: u64,
    /// Of all shards.
    pub kv_bytes: u64,
    pub loaded_unix_ms: u64,
    pub load_time: Duration,
}

impl Facts {
    /// Weights of all replicas.
    #[must_use]
    pub fn replicas_bytes(&self) -> u64 {
        self.weights_bytes * self.replicas
    }

    /// As answers show it.
    #[must_use]
    pub fn metadata(&self) -> ModelMetadata {
        ModelMetadata {
            file_size_bytes: self.file_bytes,
            parameter_count: self.parameters,
            quantization_format: self.quantization.to_owned(),
            architecture: self.architecture.clone(),
            vocab_size: self.vocab as u64,
            context_length: self.context as u64,
            sha256: hex(&self.sha256),
        }
    }
}

/// A hash in hexadecimal digits.
#[must_use]
pub fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hash of what decides how a text is cut into tokens.
///
/// # Errors
/// When one of the keys is of another type.
pub(super) fn hash_tokenizer(gguf: &Gguf<'_>) -> Result<Hash, Error> {
    let metadata = gguf.metadata();
    let mut sha256 = Sha256::new();
    let mut add = |part: &[u8]| {
        sha256.update((part.len() as u64).to_le_bytes());
        sha256.update(part);
    };
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.pre"] {
        add(metadata.string(key)?.unwrap_or_default());
    }
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        for text in metadata.strings(key)?.into_iter().flatten() {
            add(text);
        }
        add(&[]);
    }
    Ok(sha256.finalize().into())
}
