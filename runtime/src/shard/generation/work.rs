//! What a request for tokens comes down to: the tokens of its prompts, checked against the model. Nothing here belongs to a
//! shard, so that what is long can be done beside its executor.

use std::sync::Arc;

use net::api::{Endpoint, GenerateRequest, Message, Prompt, Tools};
use net::error::{ApiError, Code};

use crate::executor::{Holder, held_by};
use crate::guide::Guide;
use crate::model::Model;
use crate::schedule::Scoring;
use crate::text;

/// What a request comes down to.
pub(in crate::shard) struct Work {
    pub(super) prompts: Vec<Vec<u32>>,
    /// The text of each prompt where it is to be echoed.
    pub(super) echoes: Vec<String>,
    pub(super) tokens_max: Vec<usize>,
    pub(super) stops: Vec<String>,
    pub(super) n: u32,
    pub(super) with_logprobs: bool,
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
        let vocab = model.weights.params.vocab;
        if let Some((token, _)) = generate.logit_bias.iter().find(|(token, _)| *token as usize >= vocab) {
            let message = format_args!("has token {token}, the vocabulary ends at {vocab}");
            return Err(ApiError::validation("logit_bias", message));
        }
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
        let echoes = if generate.echo { prompts.iter().map(|prompt| decode(model, prompt)).collect() } else { vec![] };
        Ok(Self {
            prompts,
            echoes,
            tokens_max,
            stops: generate.stop.clone(),
            n: generate.n,
            with_logprobs: generate.logprobs.is_some(),
            scoring: generate.logprobs.filter(|_| generate.echo).map(|top| Scoring { top: best_told(top), done: 0 }),
            guides: Vec::new(),
            tools: generate.tools().cloned(),
            elsewhere: false,
            device: None,
        })
    }
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
    Err(ApiError::validation(prompt_field(endpoint), message))
}

fn prompt_field(endpoint: Endpoint) -> &'static str {
    if endpoint == Endpoint::Chat { "messages" } else { "prompt" }
}

fn prompts(model: &Model, generate: &GenerateRequest, endpoint: Endpoint) -> Result<Vec<Vec<u32>>, ApiError> {
    match &generate.prompt {
        Prompt::Messages(messages) => {
            let tools = generate.tools().map(|tools| &**tools);
            Ok(vec![chat_tokens(model, messages, tools)?])
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

/// Tokens of a conversation about `tools`, in the model's chat format.
pub(in crate::shard) fn chat_tokens(
    model: &Model,
    messages: &[Message],
    tools: Option<&Tools>,
) -> Result<Vec<u32>, ApiError> {
    let rendered = held_by(Holder::Template, || text::chat_prompt(&model.template, messages, tools))
        .map_err(|error| ApiError::validation("messages", format_args!("don't fit the chat template: {error}")))?;
    check_length(model, &rendered, "messages")?;
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
    prompt_bytes(&generate.prompt) + tools.iter().map(|tool| MESSAGE_BYTES + tool.definition.len()).sum::<usize>()
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

/// The template takes about as long for a message as the tokenizer for so many bytes.
const MESSAGE_BYTES: usize = 256;
const TEXT_BYTES: usize = 16;
/// The same of a token.
pub(in crate::shard) const TOKEN_BYTES: usize = 1;
