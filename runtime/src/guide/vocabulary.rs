//! A model's tokens as the grammar library walks them: a trie of their bytes.

use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::text::{TokenKind, Tokenizer};

/// A vocabulary of which any spelling of a text may be given: nothing is forced into the tokens of the tokenizer's own
/// choice, so that a constrained answer is a plain draw among the tokens that fit.
struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// The tokens of `tokenizer`, in a model that scores `vocab`; `None` where none of them ends a text.
pub(super) fn vocabulary(tokenizer: &Tokenizer, vocab: usize) -> Option<TokEnv> {
    let ends = tokenizer.end_of_generation();
    let info = TokRxInfo::new(u32::try_from(vocab).expect("ids fit u32"), *ends.first()?);
    let words: Vec<Vec<u8>> = (0..info.vocab_size).map(|id| word(tokenizer, id)).collect();
    let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
    Some(Arc::new(Vocabulary(trie)))
}

/// The bytes that a token adds to a text. Control tokens add none and are reached by their names only, as every token that
/// ends an answer; those that nothing stands for are reached by nothing.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    match tokenizer.kind(id) {
        TokenKind::Unused | TokenKind::Unknown => Vec::new(),
        kind if kind == TokenKind::Control || tokenizer.is_end_of_generation(id) => {
            [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.token_text(id)].concat()
        }
        // A marker in the text of a token would make it a control token.
        _ => tokenizer.piece(id).to_vec(),
    }
}
