//! What a request for tokens comes down to: the tokens of its prompts, checked against the model. No plan belongs to a
//! shard, so that what is long can be done beside its executor.

use std::sync::Arc;
use std::time::Duration;

use net::api::{Ending, Endpoint, GenerateRequest, Logprobs, Message, Prompt, Rendering, Tools};
use net::error::{ApiError, Code};

use crate::executor::{Holder, held_by};
use crate::guide::Guide;
use crate::model::Model;
use crate::schedule::Scoring;
use crate::shard::Shard;
use crate::speculate::LOOK_BACK_MAX;
use crate::text;

/// What a request comes down to.
pub(in crate::shard) struct Work {
    pub(super) prompts: Vec<Vec<u32>>,
    /// The text of each prompt where it is to be echoed.
    pub(super) echoes: Vec<String>,
    pub(super) tokens_max: Vec<usize>,
    pub(super) ending: Ending,
    /// What an answer is expected to be.
    pub(super) predicted: Arc<[u32]>,
    pub(super) n: u32,
    pub(super) with_logprobs: bool,
    /// What the log-probabilities of all answers take at most, as they are kept.
    pub(super) logprobs_bytes: usize,
    /// Of each prompt whose tokens are asked for their log-probabilities.
    pub(super) scoring: Option<Scoring>,
    /// One for each sequence that has not begun, where the answers have a form to keep to.
    pub(super) guides: Vec<Guide>,
    /// What they may call.
    pub(super) tools: Option<Arc<Tools>>,
    /// This shard does not take it, another would.
    pub(super) elsewhere: bool,
    /// The GPU that computed it to the end; `None` for the CPU.
    pub(super) device: Option<usize>,
}

impl Work {
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }

    /// The name of what is called.
    pub(super) fn name_of(&self, call: &text::Call) -> &str {
        self.tools.as_ref().map_or("", |tools| &tools.list[call.tool].name)
    }

    pub(super) fn plan(model: &Model, endpoint: Endpoint, generate: &GenerateRequest) -> Result<Self, ApiError> {
        if model.weights.params.pooling.is_some() {
            let message = format!("model `{}` gives embeddings and generates no text: use /v1/embeddings", model.name);
            return Err(ApiError::new(400, Code::InvalidRequest, message).with_param("model"));
        }
        let prompts = prompts(model, generate, endpoint)?;
        let biased: Vec<u32> = generate.logit_bias.iter().map(|(token, _)| *token).collect();
        check_vocabulary(model, &biased, "logit_bias")?;
        check_vocabulary(model, &generate.ending.tokens, "stop_token_ids")?;
        let context = model.weights.context;
        let mut tokens_max = Vec::with_capacity(prompts.len());
        for prompt in &prompts {
            if prompt.is_empty() {
                return Err(ApiError::validation("prompt", "has no token"));
            }
            check_context(model, prompt.len(), endpoint)?;
            let room = context - prompt.len();
            tokens_max.push(generate.max_tokens.map_or(room, |max| room.min(max as usize)));
        }
        let logprobs_bytes = logprobs_bytes(generate, &prompts, &tokens_max);
        if logprobs_bytes > LOGPROBS_BYTES_MAX {
            let (mb, max) = (logprobs_bytes >> 20, LOGPROBS_BYTES_MAX >> 20);
            let message =
                format_args!("may come to {mb} MiB, limit {max}: ask for fewer answers, tokens or best tokens");
            let field = if generate.is_response() { "top_logprobs" } else { "logprobs" };
            return Err(ApiError::validation(field, message));
        }
        let echoes = if generate.echo { prompts.iter().map(|prompt| decode(model, prompt)).collect() } else { vec![] };
        Ok(Self {
            prompts,
            echoes,
            tokens_max,
            ending: generate.ending.clone(),
            predicted: predicted(model, generate),
            n: generate.n,
            with_logprobs: generate.logprobs.is_some(),
            logprobs_bytes,
            scoring: generate.logprobs.filter(|_| generate.echo).map(|top| Scoring { top: best_told(top), done: 0 }),
            guides: Vec::new(),
            tools: generate.tools().cloned(),
            elsewhere: false,
            device: None,
        })
    }
}

/// The beginning of what an answer is expected to be, as far as drafts look.
fn predicted(model: &Model, generate: &GenerateRequest) -> Arc<[u32]> {
    let Some(text) = &generate.prediction else { return Arc::default() };
    let mut tokens = Vec::new();
    held_by(Holder::Tokenizer, || model.tokenizer.encode(text, false, false, &mut tokens));
    tokens.truncate(LOOK_BACK_MAX);
    tokens.into()
}

fn logprobs_bytes(generate: &GenerateRequest, prompts: &[Vec<u32>], tokens_max: &[usize]) -> usize {
    let Some(top) = generate.logprobs else { return 0 };
    let echoed: usize = prompts.iter().filter(|_| generate.echo).map(Vec::len).sum();
    let tokens = (echoed + tokens_max.iter().sum::<usize>()).saturating_mul(generate.n as usize);
    tokens.saturating_mul(Logprobs::bytes_of_token(usize::from(best_told(top))))
}

/// Takes note of log-probabilities that may come, as long as all those of the shard have room.
pub(super) fn reserve_logprobs(shard: &Shard, bytes: usize) -> Result<(), ApiError> {
    let taken = &shard.logprobs_bytes;
    if bytes > 0 && taken.get() + bytes > ALL_LOGPROBS_BYTES_MAX {
        shard.metrics.requests.outcomes.refused_memory.add(1);
        let message =
            format!("log-probabilities of answers take the {} MiB that they may", ALL_LOGPROBS_BYTES_MAX >> 20);
        return Err(ApiError::new(503, Code::MemoryExhausted, message).with_retry_after(RETRY_LOGPROBS));
    }
    taken.set(taken.get() + bytes);
    Ok(())
}

/// How many of the best tokens a request wants to know.
pub(super) fn best_told(logprobs: u32) -> u8 {
    u8::try_from(logprobs).expect("bounded by the schema")
}

/// Refuses a prompt that leaves no room for an answer.
fn check_context(model: &Model, tokens: usize, endpoint: Endpoint) -> Result<(), ApiError> {
    let context = model.weights.context;
    if tokens < context {
        return Ok(());
    }
    let message = format!("has {tokens} tokens, the context holds {context} with the answer");
    Err(ApiError::validation(endpoint.prompt_field(), message))
}

fn prompts(model: &Model, generate: &GenerateRequest, endpoint: Endpoint) -> Result<Vec<Vec<u32>>, ApiError> {
    match &generate.prompt {
        Prompt::Messages(messages) => {
            let tools = generate.tools().map(|tools| &**tools);
            Ok(vec![chat_tokens(model, endpoint.prompt_field(), messages, tools, &generate.rendering)?])
        }
        Prompt::Text(texts) => texts
            .iter()
            .map(|text| {
                check_length(model, text, "prompt")?;
                let mut tokens = Vec::new();
                held_by(Holder::Tokenizer, || model.tokenizer.encode(text, true, true, &mut tokens));
                Ok(tokens)
            })
            .collect(),
        Prompt::Tokens(prompts) => {
            for tokens in prompts {
                check_context(model, tokens.len(), endpoint)?;
                check_vocabulary(model, tokens, "prompt")?;
            }
            Ok(prompts.clone())
        }
    }
}

/// Tokens of a conversation about `tools`, in the model's chat format. `field` has its messages.
pub(in crate::shard) fn chat_tokens(
    model: &Model,
    field: &'static str,
    messages: &[Message],
    tools: Option<&Tools>,
    rendering: &Rendering,
) -> Result<Vec<u32>, ApiError> {
    let rendered = held_by(Holder::Template, || text::chat_prompt(&model.template, messages, tools, rendering))
        .map_err(|error| ApiError::validation(field, format_args!("don't fit the chat template: {error}")))?;
    check_length(model, &rendered, field)?;
    Ok(held_by(Holder::Tokenizer, || model.template_tokens(&rendered)))
}

/// Refuses a text that can't fit the context however it is cut into tokens, before it holds up the shard: cutting 4 MB
/// takes up to half a second.
pub(in crate::shard) fn check_length(model: &Model, text: &str, field: &'static str) -> Result<(), ApiError> {
    let (bytes, max) = (text.len(), model.text_bytes_max);
    if bytes > max {
        let context = model.weights.context;
        let message = format_args!("has {bytes} bytes, no text above {max} fits the context of {context} tokens");
        return Err(ApiError::validation(field, message));
    }
    Ok(())
}

/// Refuses ids that the model does not know.
pub(in crate::shard) fn check_vocabulary(model: &Model, tokens: &[u32], field: &'static str) -> Result<(), ApiError> {
    let vocab = model.weights.params.vocab;
    match tokens.iter().find(|token| **token as usize >= vocab) {
        Some(token) => {
            Err(ApiError::validation(field, format_args!("has token {token}, the vocabulary ends at {vocab}")))
        }
        None => Ok(()),
    }
}

fn decode(model: &Model, tokens: &[u32]) -> String {
    let tokenizer = &model.tokenizer;
    let mut text = String::new();
    let mut detokenizer = text::Detokenizer::from_start(tokenizer.adds_space_prefix());
    for token in tokens {
        detokenizer.push(tokenizer.piece(*token), &mut text);
    }
    detokenizer.finish(&mut text);
    text
}

/// What work the prompt of a request is with all that belongs to it.
pub(super) fn request_bytes(generate: &GenerateRequest) -> usize {
    let tools = generate.tools().map_or(&[][..], |tools| &tools.list);
    let told = tools.iter().map(|tool| MESSAGE_BYTES + tool.definition.len()).sum::<usize>();
    let predicted = generate.prediction.as_ref().map_or(0, String::len);
    prompt_bytes(&generate.prompt) + told + generate.rendering.bytes() + predicted
}

/// What work a prompt is, as bytes of text.
pub(in crate::shard) fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Messages(messages) => messages_bytes(messages),
        Prompt::Text(texts) => texts.iter().map(|text| TEXT_BYTES + text.len()).sum(),
        Prompt::Tokens(prompts) => prompts.iter().map(|tokens| TEXT_BYTES + tokens.len() * TOKEN_BYTES).sum(),
    }
}

/// What work a conversation is.
pub(in crate::shard) fn messages_bytes(messages: &[Message]) -> usize {
    let names = |message: &Message| message.name.as_ref().map_or(0, String::len);
    let calls = |message: &Message| -> usize {
        message.tool_calls.iter().map(|call| MESSAGE_BYTES + call.name.len() + call.arguments.len()).sum()
    };
    messages.iter().map(|message| MESSAGE_BYTES + message.content.len() + names(message) + calls(message)).sum()
}

/// Log-probabilities of a request: 89 answers of 4,096 tokens with 20 best ones each, or 682 with none.
const LOGPROBS_BYTES_MAX: usize = 64 << 20;
/// Of all requests of a shard that are being answered.
const ALL_LOGPROBS_BYTES_MAX: usize = 256 << 20;
/// Some of these answers have ended by then.
const RETRY_LOGPROBS: Duration = Duration::from_secs(5);
/// The template takes about as long for a message as the tokenizer for so many bytes.
const MESSAGE_BYTES: usize = 256;
const TEXT_BYTES: usize = 16;
/// The same of a token.
pub(in crate::shard) const TOKEN_BYTES: usize = 1;

#[cfg(test)]
mod tests {
    use net::json::Reader;

    use super::*;

    #[test]
    fn log_probabilities_are_counted_as_they_may_come() {
        let bytes = |fields: &str| {
            let mut body = format!("{{\"prompt\":[[1,2,3],[4]],{fields}}}").into_bytes();
            let generate = GenerateRequest::parse(Endpoint::Completion, &mut Reader::new(), &mut body).unwrap();
            let Prompt::Tokens(prompts) = &generate.prompt else { panic!("no tokens") };
            logprobs_bytes(&generate, prompts, &[10, 20])
        };
        let one = |top: usize| Logprobs::bytes_of_token(top);
        assert_eq!(bytes("\"n\":2"), 0);
        assert_eq!(bytes("\"logprobs\":0"), 30 * one(0));
        assert_eq!(bytes("\"logprobs\":20,\"n\":3"), 90 * one(20));
        assert_eq!(bytes("\"logprobs\":1,\"n\":2,\"echo\":true"), 68 * one(1));
    }
}
