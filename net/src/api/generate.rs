//! One typed request for the five endpoints that generate text, with each endpoint's defaults and ranges.

use std::sync::Arc;

use super::constraint::{self, Constraint};
use super::ending::Ending;
use super::fields::{logit_bias, milliseconds, penalty_factor, priority, prompt, stop};
use super::messages::{self, Message};
use super::rendering::{self, Rendering};
use super::responses;
use super::tools::{self, JsonContent, ToolChoice, Tools};
use crate::error::ApiError;
use crate::json::{Kind, Object, Path, Reader, Value, items};

/// Which schema a body follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/completions`
    Completion,
    /// `POST /v1/inference`
    Inference,
    /// `POST /v1/inference/stream`
    InferenceStream,
}

impl Endpoint {
    fn is_own(self) -> bool {
        matches!(self, Self::Inference | Self::InferenceStream)
    }

    /// The field that has the prompt.
    pub fn prompt_field(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Responses => "input",
            Self::Completion | Self::Inference | Self::InferenceStream => "prompt",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Chat and responses only; not empty.
    Messages(Vec<Message>),
    /// One prompt or more, not tokenised yet; a prompt may be the empty string.
    Text(Vec<String>),
    /// One prompt or more, each of at least one id, not yet compared with the vocabulary.
    Tokens(Vec<Vec<u32>>),
}

impl Prompt {
    /// How many prompts there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Messages(_) => 1,
            Self::Text(texts) => texts.len(),
            Self::Tokens(prompts) => prompts.len(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

/// Own endpoints: the packed layout that must serve the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum QuantizationPreference {
    #[default]
    Auto,
    I2s,
    Tl1,
    Tl2,
}

/// Own endpoints: the device that should serve the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DevicePreference {
    #[default]
    Auto,
    Cpu,
    Gpu,
}

/// A checked request to generate. What depends on the model (its name, vocabulary and context) is not checked yet.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    pub model: Option<String>,
    pub prompt: Prompt,
    /// Chat only.
    pub rendering: Rendering,
    /// None: until the context is full. 0 only with `echo`.
    pub max_tokens: Option<u32>,
    /// 0..=2; 0 is greedy.
    pub temperature: f32,
    /// 0..=1
    pub top_p: f32,
    /// 0: off.
    pub top_k: u32,
    /// 0..=1; 0: off.
    pub min_p: f32,
    /// Above 0, up to 2; 1: off.
    pub repetition_penalty: f32,
    /// -2..=2
    pub frequency_penalty: f32,
    /// -2..=2
    pub presence_penalty: f32,
    /// Token id and bias in -100..=100, sorted by id, ids distinct.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
    pub ending: Ending,
    /// 1..=128; prompts times `n` is at most [`SEQUENCES_PER_REQUEST_MAX`].
    pub n: u32,
    pub stream: bool,
    pub include_usage: bool,
    /// Log-probabilities of the chosen tokens, and of so many best ones (0..=20); with `echo` of the prompt's tokens, too.
    pub logprobs: Option<u32>,
    pub echo: bool,
    /// Whether the ids of the prompt's and the answer's tokens stand in the answer.
    pub return_token_ids: bool,
    pub ignore_eos: bool,
    /// What every answer must look like; not with `ignore_eos`.
    pub constraint: Option<Constraint>,
    /// The field that says it; empty without.
    pub constrained_by: &'static str,
    /// Chat only: what the answer is expected to be, which makes it sooner where it is so and never another.
    pub prediction: Option<String>,
    pub priority: Priority,
    /// For the whole request; at least 1.
    pub timeout_ms: Option<u64>,
    /// Until it is computed, and until its first token; at least 1.
    pub queue_timeout_ms: Option<u64>,
    pub first_token_timeout_ms: Option<u64>,
    pub user: Option<String>,
    /// Responses only: the last fields of the answer's object, which repeat what was asked, as JSON.
    pub parameters: Option<Box<[u8]>>,
    pub quantization_preference: QuantizationPreference,
    pub device_preference: DevicePreference,
}

/// Prompts times n of one request.
pub const SEQUENCES_PER_REQUEST_MAX: usize = 128;

impl GenerateRequest {
    /// Parses and checks `body` by the schema of `endpoint`.
    ///
    /// # Errors
    /// 400, with the field at fault in `param`: not JSON, a wrong type, out of range, unknown (own endpoints), or
    /// asking for what this server does not do.
    pub fn parse(endpoint: Endpoint, reader: &mut Reader, body: &mut [u8]) -> Result<Self, ApiError> {
        reader.object(body, |object| Self::from_object(endpoint, object))
    }

    /// What its answers may call.
    pub fn tools(&self) -> Option<&Arc<Tools>> {
        match &self.constraint {
            Some(Constraint::Tools(tools)) => Some(tools),
            _ => None,
        }
    }

    /// Whether it was asked of the Responses API.
    pub fn is_response(&self) -> bool {
        self.parameters.is_some()
    }

    fn from_object(endpoint: Endpoint, object: &Object<'_, '_>) -> Result<Self, ApiError> {
        let mut draft = Draft::new(endpoint);
        for (key, value) in object.fields() {
            let path = Path::Field(&Path::Root, key);
            let known = match endpoint {
                Endpoint::Chat => {
                    draft.sampling_field(key, value, path)?
                        || draft.openai_field(key, value, path)?
                        || draft.chat_field(key, value, path)?
                }
                Endpoint::Responses => {
                    let known = draft.sampling_field(key, value, path)?
                        || draft.openai_field(key, value, path)?
                        || draft.response_field(key, value, path)?;
                    draft.responses.keep(key, value, path)?;
                    known
                }
                Endpoint::Completion => {
                    draft.sampling_field(key, value, path)?
                        || draft.openai_field(key, value, path)?
                        || draft.completion_field(key, value, path)?
                }
                Endpoint::Inference | Endpoint::InferenceStream => draft.own_field(key, value, path)?,
            };
            if !known && endpoint.is_own() {
                return Err(ApiError::validation(path, "is not a known field"));
            }
            if !known && would_change(key, value) {
                return Err(ApiError::not_supported(path));
            }
        }
        draft.finish(endpoint)
    }

    pub(super) fn defaults(endpoint: Endpoint) -> Self {
        let own = endpoint.is_own();
        Self {
            model: None,
            prompt: Prompt::Text(Vec::new()),
            rendering: Rendering::default(),
            max_tokens: match endpoint {
                Endpoint::Chat | Endpoint::Responses => None,
                Endpoint::Completion => Some(16),
                Endpoint::Inference | Endpoint::InferenceStream => Some(100),
            },
            temperature: if own { 0.7 } else { 1.0 },
            top_p: if own { 0.9 } else { 1.0 },
            top_k: if own { 50 } else { 0 },
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            ending: Ending::default(),
            n: 1,
            stream: endpoint == Endpoint::InferenceStream,
            include_usage: false,
            logprobs: None,
            echo: false,
            return_token_ids: false,
            ignore_eos: false,
            constraint: None,
            constrained_by: "",
            prediction: None,
            priority: Priority::Normal,
            timeout_ms: None,
            queue_timeout_ms: None,
            first_token_timeout_ms: None,
            user: None,
            parameters: None,
            quantization_preference: QuantizationPreference::Auto,
            device_preference: DevicePreference::Auto,
        }
    }
}

/// A request while its fields come in; what spans fields is checked at the end.
struct Draft {
    request: GenerateRequest,
    prompt: Option<Prompt>,
    max_completion_tokens: Option<u32>,
    stream_options: bool,
    wants_logprobs: bool,
    top_logprobs: Option<u32>,
    best_of: Option<u32>,
    rendering: rendering::Draft,
    tools: tools::Draft,
    responses: responses::Draft,
}

impl Draft {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            request: GenerateRequest::defaults(endpoint),
            prompt: None,
            max_completion_tokens: None,
            stream_options: false,
            wants_logprobs: false,
            top_logprobs: None,
            best_of: None,
            rendering: rendering::Draft::default(),
            tools: if endpoint == Endpoint::Responses { tools::Draft::flat() } else { tools::Draft::default() },
            responses: responses::Draft::default(),
        }
    }

    /// Sampling parameters of the OpenAI endpoints; true if `key` is one.
    fn sampling_field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        let request = &mut self.request;
        match key {
            "max_tokens" => request.max_tokens = Some(value.u32(path, 0)?),
            "temperature" => request.temperature = value.number(path, 0.0, 2.0)?,
            "top_p" => request.top_p = value.number(path, 0.0, 1.0)?,
            // -1 means off to many clients.
            "top_k" => {
                let top_k = value.integer(path, -1, i64::from(u32::MAX))?;
                request.top_k = u32::try_from(top_k).unwrap_or(0);
            }
            "min_p" => request.min_p = value.number(path, 0.0, 1.0)?,
            "repetition_penalty" => request.repetition_penalty = penalty_factor(value, path)?,
            "frequency_penalty" => request.frequency_penalty = value.number(path, -2.0, 2.0)?,
            "presence_penalty" => request.presence_penalty = value.number(path, -2.0, 2.0)?,
            "logit_bias" => request.logit_bias = logit_bias(value, path)?,
            // OpenAI's seed is signed; each one names its own random sequence.
            "seed" => request.seed = Some(value.integer(path, i64::MIN, i64::MAX)?.cast_unsigned()),
            "n" => request.n = value.integer(path, 1, 128)? as u32,
            "ignore_eos" => request.ignore_eos = value.bool(path)?,
            _ => return request.ending.field(key, value, path),
        }
        Ok(true)
    }

    /// The rest of what both OpenAI endpoints know; true if `key` is one.
    fn openai_field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        if let Some(field) = constraint::field(key) {
            let constraint = constraint::parse(field, value, path)?;
            return self.constrain(constraint, field).map(|()| true);
        }
        let request = &mut self.request;
        match key {
            "model" => request.model = Some(value.str(path)?.to_owned()),
            "stream" => request.stream = value.bool(path)?,
            "stream_options" => {
                self.stream_options = true;
                for (key, value) in value.object(path)?.fields() {
                    if key == "include_usage" {
                        request.include_usage = value.bool(Path::Field(&path, key))?;
                    }
                }
            }
            "priority" => request.priority = priority(value, path)?,
            "timeout_ms" => request.timeout_ms = Some(milliseconds(value, path)?),
            "queue_timeout_ms" => request.queue_timeout_ms = Some(milliseconds(value, path)?),
            "first_token_timeout_ms" => request.first_token_timeout_ms = Some(milliseconds(value, path)?),
            "user" => request.user = Some(value.str(path)?.to_owned()),
            "function_call" => check_no_call(value, path)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn constrain(&mut self, constraint: Option<Constraint>, field: &'static str) -> Result<(), ApiError> {
        if constraint.is_none() {
            return Ok(());
        }
        if self.request.constraint.is_some() {
            let message = format_args!("can't go with `{}`", self.request.constrained_by);
            return Err(ApiError::validation(field, message));
        }
        (self.request.constraint, self.request.constrained_by) = (constraint, field);
        Ok(())
    }

    /// What is called follows the tools' schemas; a format in JSON is that of answers which call nothing.
    fn constrain_calls(&mut self, mut tools: Tools) -> Result<(), ApiError> {
        let field = self.request.constrained_by;
        let content = match self.request.constraint.take() {
            Some(Constraint::JsonObject) => Some(JsonContent { schema: None, field }),
            Some(Constraint::JsonSchema(schema)) => Some(JsonContent { schema: Some(schema), field }),
            other => {
                self.request.constraint = other;
                None
            }
        };
        tools.content = content.filter(|_| tools.choice == ToolChoice::Auto);
        self.constrain(Some(Constraint::Tools(Arc::new(tools))), "tools")
    }

    fn chat_field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        match key {
            "messages" => self.prompt = Some(Prompt::Messages(messages::parse(value, path)?)),
            "max_completion_tokens" => self.max_completion_tokens = Some(value.u32(path, 1)?),
            "logprobs" => self.wants_logprobs = value.bool(path)?,
            "top_logprobs" => self.top_logprobs = Some(value.integer(path, 0, LOGPROBS_MAX)? as u32),
            "modalities" => {
                for item in items(&value.array(path)?) {
                    if item.str(path)? != "text" {
                        return Err(ApiError::not_supported(path));
                    }
                }
            }
            "return_token_ids" => self.request.return_token_ids = value.bool(path)?,
            "prediction" => self.request.prediction = Some(messages::prediction(value, path)?),
            // Even `{}` asks for a search.
            "web_search_options" => return Err(ApiError::not_supported(path)),
            "prompt" => return Err(ApiError::validation(path, "belongs to /v1/completions; send `messages`")),
            _ => return Ok(self.tools.field(key, value, path)? || self.rendering.field(key, value, path)?),
        }
        Ok(true)
    }

    fn response_field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        match key {
            "text" => {
                let constraint = self.responses.text(value, path)?;
                self.constrain(constraint, "text.format")?;
            }
            "reasoning" => self.responses.reasoning(&mut self.rendering, value, path)?,
            _ => {
                return Ok(self.responses.field(key, value, path)?
                    || self.tools.field(key, value, path)?
                    || self.rendering.field(key, value, path)?);
            }
        }
        Ok(true)
    }

    fn completion_field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        match key {
            "prompt" => self.prompt = Some(prompt(value, path, SEQUENCES_PER_REQUEST_MAX)?),
            "logprobs" => self.request.logprobs = Some(value.integer(path, 0, LOGPROBS_MAX)? as u32),
            "echo" => self.request.echo = value.bool(path)?,
            "return_token_ids" => self.request.return_token_ids = value.bool(path)?,
            "best_of" => self.best_of = Some(value.u32(path, 1)?),
            "tool_choice" => check_no_call(value, path)?,
            "messages" => return Err(ApiError::validation(path, "belongs to /v1/chat/completions; send `prompt`")),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn own_field(&mut self, key: &str, value: Value<'_, '_>, path: Path<'_>) -> Result<bool, ApiError> {
        let request = &mut self.request;
        match key {
            "prompt" => {
                let text = value.str(path)?;
                let chars = text.chars().count();
                if !(1..=PROMPT_CHARS_MAX).contains(&chars) {
                    let message = format_args!("must have 1..={PROMPT_CHARS_MAX} characters, got {chars}");
                    return Err(ApiError::validation(path, message));
                }
                self.prompt = Some(Prompt::Text(vec![text.to_owned()]));
            }
            "max_tokens" => request.max_tokens = Some(value.integer(path, 1, 2048)? as u32),
            "model" => request.model = Some(value.str(path)?.to_owned()),
            "temperature" => request.temperature = value.number(path, 0.0, 2.0)?,
            "top_p" => request.top_p = value.number(path, 0.0, 1.0)?,
            "top_k" => request.top_k = value.integer(path, 1, 1000)? as u32,
            "repetition_penalty" => request.repetition_penalty = penalty_factor(value, path)?,
            "stop_sequences" => {
                value.array(path)?;
                request.ending.strings = stop(value, path, 10, 64)?;
            }
            "seed" => request.seed = Some(u64::from(value.u32(path, 0)?)),
            "priority" => request.priority = priority(value, path)?,
            "quantization_preference" => {
                request.quantization_preference = match value.str(path)? {
                    "auto" => QuantizationPreference::Auto,
                    "i2s" => QuantizationPreference::I2s,
                    "tl1" => QuantizationPreference::Tl1,
                    "tl2" => QuantizationPreference::Tl2,
                    _ => return Err(ApiError::validation(path, "must be one of auto, i2s, tl1, tl2")),
                }
            }
            "device_preference" => {
                request.device_preference = match value.str(path)? {
                    "auto" => DevicePreference::Auto,
                    "cpu" => DevicePreference::Cpu,
                    "gpu" => DevicePreference::Gpu,
                    _ => return Err(ApiError::validation(path, "must be one of auto, cpu, gpu")),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(mut self, endpoint: Endpoint) -> Result<GenerateRequest, ApiError> {
        if let Some(tools) = std::mem::take(&mut self.tools).finish()? {
            self.constrain_calls(tools)?;
        }
        let mut request = self.request;
        request.max_tokens = self.max_completion_tokens.or(request.max_tokens);
        if endpoint == Endpoint::Responses {
            self.prompt = self.responses.finish(&mut request)?;
        }
        let missing = || ApiError::validation(endpoint.prompt_field(), "is required");
        request.prompt = self.prompt.ok_or_else(missing)?;
        request.rendering = self.rendering.finish(&request)?;
        if request.max_tokens == Some(0) && !request.echo {
            return Err(ApiError::validation("max_tokens", "must be at least 1 without `echo`"));
        }
        if request.constraint.is_some() && request.ignore_eos {
            let field = request.constrained_by;
            let message = format_args!("can't go with `{field}`, which says where an answer ends");
            return Err(ApiError::validation("ignore_eos", message));
        }
        let Ending { tokens_min, .. } = request.ending;
        if request.constraint.is_some() && tokens_min > 0 {
            let field = request.constrained_by;
            let message = format_args!("can't go with `{field}`, which says where an answer ends");
            return Err(ApiError::validation("min_tokens", message));
        }
        if let Some(max) = request.max_tokens.filter(|max| *max < tokens_min) {
            return Err(ApiError::validation("min_tokens", format_args!("is above the most tokens, which are {max}")));
        }
        if self.stream_options && !request.stream {
            return Err(ApiError::validation("stream_options", "is allowed with `stream` only"));
        }
        if self.wants_logprobs {
            request.logprobs = Some(self.top_logprobs.unwrap_or(0));
        } else if self.top_logprobs.is_some_and(|count| count > 0) {
            return Err(ApiError::validation("top_logprobs", "is allowed with `logprobs` only"));
        }
        if self.best_of.is_some_and(|best_of| best_of != request.n) {
            return Err(ApiError::validation("best_of", "other than `n` is not supported by this server"));
        }
        let prompts = request.prompt.count();
        if prompts * request.n as usize > SEQUENCES_PER_REQUEST_MAX {
            let message = format_args!("times prompts ({prompts}) is more than {SEQUENCES_PER_REQUEST_MAX}");
            return Err(ApiError::validation("n", message));
        }
        Ok(request)
    }
}

/// Whether a field that is not known here would change the answer.
fn would_change(key: &str, value: Value<'_, '_>) -> bool {
    match key {
        // Factors and shares, which 1 switches off.
        "length_penalty" | "repeat_penalty" | "typical_p" => !value.is_one(),
        // What is done unless they are false.
        "add_generation_prompt" => matches!(value.kind(), Kind::Bool(false)),
        _ => REFUSED.contains(&key) && !value.is_neutral(),
    }
}

/// Refuses what asks for a call where there are none.
fn check_no_call(value: Value<'_, '_>, path: Path<'_>) -> Result<(), ApiError> {
    match value.kind() {
        Kind::String("none" | "auto") => Ok(()),
        _ => Err(ApiError::not_supported(path)),
    }
}

pub(super) const LOGPROBS_MAX: i64 = 20;
pub(super) const PROMPT_CHARS_MAX: usize = 8192;

/// Fields of OpenAI and of its imitators that would change the answer and that this server does not honour.
/// Other unknown fields are ignored.
const REFUSED: [&str; 29] = [
    "allowed_token_ids",
    "audio",
    "bad_words",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "dry_multiplier",
    "echo",
    "functions",
    "logits_processors",
    "logprob_token_ids",
    "lora",
    "mirostat",
    "n_predict",
    "prefix",
    "prompt_embeds",
    "prompt_logprobs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "samplers",
    "structural_tag",
    "suffix",
    "thinking_token_budget",
    "tools",
    "top_n_sigma",
    "truncate_prompt_tokens",
    "use_beam_search",
    "xtc_probability",
];
