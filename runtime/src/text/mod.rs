//! Text in and out: tokenizer, detokenizer, stop strings and chat templates. No I/O, no model.

mod bpe;
mod char_class;
mod chat_template;
#[cfg(test)]
mod chat_template_tests;
mod detokenizer;
mod load;
mod merge;
#[cfg(test)]
mod oracle;
mod pretokenize;
mod python;
mod special;
mod spm;
mod stop;
mod tokenizer;
mod vocabulary;

pub use chat_template::{ChatTemplate, Message, TemplateError};
pub use detokenizer::Detokenizer;
pub use pretokenize::PreTokenizer;
pub use stop::StopMatcher;
pub use tokenizer::{Note, Tokenizer, TokenizerError};
pub use vocabulary::TokenKind;
