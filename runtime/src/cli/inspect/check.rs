//! What loading the file would find: shapes against hyper-parameters, tokenizer, template; and its hash.

use std::collections::HashSet;

use gguf::{Gguf, Metadata};
use sha2::{Digest, Sha256};

use super::facts::{Facts, Severity};
use crate::model::{self, Error, Source};
use crate::text::{ChatTemplate, Note, Tokenizer};

impl Facts {
    /// Looks at everything that loading would, but for the packing.
    pub(super) fn check(&mut self, source: &Source, gguf: &Gguf<'_>) -> Result<(), Error> {
        self.sha256 = Some(sha256(source)?);
        // Of a file of another kind this would only repeat what was found.
        if !self.findings.iter().any(|finding| finding.severity == Severity::Unsupported) {
            match model::check(source, gguf) {
                Ok(params) => {
                    self.architecture.kind = Some(if params.pooling.is_some() { "embedding" } else { "generation" });
                    self.architecture.pooling = params.pooling.map(model::Pooling::name);
                    self.check_rows(gguf, params.vocab);
                }
                Err(error @ Error::Io { .. }) => return Err(error),
                Err(error @ (Error::Unsupported(_) | Error::UnknownArchitecture(_) | Error::NoTiles { .. })) => {
                    self.find(Severity::Unsupported, "tensors", error.to_string());
                }
                Err(error) => self.find(Severity::Malformed, "tensors", error.to_string()),
            }
        }
        self.check_tokenizer(gguf.metadata());
        Ok(())
    }

    fn check_rows(&mut self, gguf: &Gguf<'_>, vocab: usize) {
        if let Some(tokens) = self.tokenizer.tokens_count.filter(|tokens| *tokens > vocab) {
            let message = format!("the tokenizer has {tokens} tokens, the embedding {vocab} rows");
            self.find(Severity::Malformed, "tokenizer-vocabulary", message);
        }
        let split = |tensor: &&gguf::TensorInfo<'_>| {
            tensor.kind == gguf::TensorType::I2S
                && !tensor.cols().is_multiple_of(gguf::ternary::I2S_BLOCK_ELEMENTS as u64)
        };
        if let Some(tensor) = gguf.tensors().iter().find(split) {
            let message = format!(
                "rows of {} columns in {} are no whole blocks of I2_S; they are read as bitnet.cpp's quantiser packs them, \
                 across rows, and not as some forks do",
                tensor.cols(),
                tensor.name
            );
            self.find(Severity::Warning, "ternary-row-tails", message);
        }
    }

    fn check_tokenizer(&mut self, metadata: &Metadata<'_>) {
        if self.findings.iter().any(|finding| finding.code.starts_with("tokenizer-missing")) {
            return;
        }
        let tokenizer = match Tokenizer::from_gguf(metadata) {
            Ok(tokenizer) => tokenizer,
            Err(error) => return self.find(Severity::Malformed, "tokenizer", error.to_string()),
        };
        for note in tokenizer.notes().iter().filter(|note| !matches!(note, Note::PreTokenizerMissing)) {
            self.find(Severity::Warning, "tokenizer-special", note.to_string());
        }
        let embedding = self.architecture.pooling.is_some();
        if tokenizer.end_of_generation().is_empty() && !embedding {
            let message = "no token ends an answer: every answer has the greatest length".to_owned();
            self.find(Severity::Warning, "tokenizer-no-end", message);
        }
        self.check_merges(metadata);
        // An embedding model's is not used.
        let template = metadata.str("tokenizer.chat_template").ok().flatten().filter(|_| !embedding);
        if let Err(error) = ChatTemplate::for_tokenizer(template, &tokenizer) {
            self.find(Severity::Malformed, "chat-template", format!("the chat template can't be compiled: {error}"));
        }
    }

    /// Each merge is two tokens that make a third.
    fn check_merges(&mut self, metadata: &Metadata<'_>) {
        let strings = |key| metadata.strings(key).ok().flatten();
        let (Some(tokens), Some(merges)) = (strings("tokenizer.ggml.tokens"), strings("tokenizer.ggml.merges")) else {
            return;
        };
        let tokens: HashSet<&[u8]> = tokens.into_iter().collect();
        let sound = |merge: &[u8]| {
            let space = merge.iter().skip(1).position(|&byte| byte == b' ').map(|at| at + 1)?;
            let (first, second) = (&merge[..space], &merge[space + 1..]);
            let known =
                tokens.contains(first) && tokens.contains(second) && tokens.contains(&[first, second].concat()[..]);
            known.then_some(())
        };
        let all = merges.len();
        let bad = merges.into_iter().filter(|merge| sound(merge).is_none()).count();
        if bad > 0 {
            let message = format!("{bad} of {all} merges are not two tokens that make a third; they have no effect");
            self.find(Severity::Warning, "tokenizer-merges", message);
        }
    }
}

fn sha256(source: &Source) -> Result<String, Error> {
    const PIECE_BYTES: u64 = 1 << 20;
    let mut hash = Sha256::new();
    let (mut at, mut piece) = (0, vec![0; PIECE_BYTES as usize]);
    while at < source.bytes() {
        let piece = &mut piece[..PIECE_BYTES.min(source.bytes() - at) as usize];
        source.read_at(at, piece)?;
        hash.update(&*piece);
        at += piece.len() as u64;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
