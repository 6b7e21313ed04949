//! Text in and out: tokenizer, detokenizer, stop strings and chat templates. No I/O, no model.

mod bpe;
mod calls;
mod char_class;
mod chat_template;
#[cfg(test)]
mod chat_template_tests;
mod detokenizer;
mod index;
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
mod tool_prompt;
mod vocabulary;

pub use calls::{ARGUMENTS_OPEN, CALL_CLOSE, CALL_OPEN, Call, CallReader, NAME_OPEN, SPACE_MAX};
pub use chat_template::{ChatTemplate, Message, TemplateError, Variables};
pub use detokenizer::Detokenizer;
pub use pretokenize::PreTokenizer;
pub use stop::StopMatcher;
pub use tokenizer::{Note, Tokenizer, TokenizerError};
pub use tool_prompt::{chat_prompt, forced};
pub use vocabulary::TokenKind;
