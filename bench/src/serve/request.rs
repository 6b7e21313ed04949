//! What is asked of each endpoint, and what its stream's events mean.
use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::prompt::Prompts;
use super::url::Url;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Endpoint {
    /// POST /v1/chat/completions
    Chat,
    /// POST /v1/completions
    Completions,
    /// POST /v1/inference/stream
    Inference,
}

/// One request as it goes out, and what is to become of it.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) shape: Shape,
    pub(crate) bytes: Vec<u8>,
    /// The client leaves so long after the first token.
    pub(crate) hang_up_after: Option<Duration>,
}

/// How an answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Stream(Endpoint),
    /// In one body.
    Body,
}

impl Ask {
    pub(crate) fn get(url: &Url, path: &str, api_key: Option<&str>) -> Self {
        Self { shape: Shape::Body, bytes: get(url, path, api_key), hang_up_after: None }
    }
}

/// All requests of a run: they differ by prompt and sampling seed.
#[derive(Clone, Debug)]
pub(crate) struct RequestTemplate {
    pub(crate) endpoint: Endpoint,
    /// Answered in one body, not as a stream.
    pub(crate) whole: bool,
    pub(crate) url: Url,
    pub(crate) model: Option<String>,
    pub(crate) max_tokens: u32,
    pub(crate) temperature: f32,
    pub(crate) ignore_eos: bool,
    pub(crate) api_key: Option<String>,
    pub(crate) prompts: Prompts,
}

/// What one event of a stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// Text of at least one token.
    Token(Cow<'a, str>),
    /// The counts that the server itself gives.
    Usage { prompt_tokens: Option<u64>, completion_tokens: u64 },
    /// The stream is complete.
    End,
    /// The request has failed after it began.
    Error(String),
    /// Nothing that is measured: a role, a progress report.
    Other,
}

impl Endpoint {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Inference => "inference",
        }
    }

    fn path(self, whole: bool) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Inference if whole => "/v1/inference",
            Self::Inference => "/v1/inference/stream",
        }
    }

    /// Reads one event; one that is no JSON of the endpoint is an error of the stream.
    pub(crate) fn meaning<'a>(self, event: &str, data: &'a str) -> Meaning<'a> {
        match self {
            _ if data == "[DONE]" => Meaning::End,
            Self::Chat | Self::Completions => match serde_json::from_str(data) {
                Ok(chunk) => openai_meaning(chunk),
                Err(error) => Meaning::Error(format!("event is no chunk: {error}")),
            },
            Self::Inference => match event {
                "token" => Meaning::Token(text_in(data)),
                "error" => Meaning::Error(message_in(data)),
                "complete" => Meaning::Usage { prompt_tokens: None, completion_tokens: total_tokens_in(data) },
                _ => Meaning::Other,
            },
        }
    }

    /// Whether the usage event is also the last.
    pub(crate) fn ends_with_usage(self) -> bool {
        self == Self::Inference
    }
}

impl RequestTemplate {
    /// Head and body of request `index`, ready to send.
    pub(crate) fn ask(&self, index: u32) -> Ask {
        let path = self.endpoint.path(self.whole);
        let bytes = post(&self.url, path, self.api_key.as_deref(), &self.body(index).to_string());
        let shape = if self.whole { Shape::Body } else { Shape::Stream(self.endpoint) };
        Ask { shape, bytes, hang_up_after: None }
    }

    fn body(&self, index: u32) -> Value {
        let prompt = self.prompts.prompt(index);
        let mut body = json!({ "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": index });
        match self.endpoint {
            Endpoint::Chat => body["messages"] = json!([{ "role": "user", "content": prompt }]),
            Endpoint::Completions | Endpoint::Inference => body["prompt"] = json!(prompt),
        }
        if self.endpoint != Endpoint::Inference && !self.whole {
            body["stream"] = json!(true);
            body["stream_options"] = json!({ "include_usage": true });
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        if let Some(model) = &self.model {
            body["model"] = json!(model);
        }
        body
    }
}

pub(crate) fn post(url: &Url, path: &str, api_key: Option<&str>, body: &str) -> Vec<u8> {
    let head = head("POST", url, path, api_key);
    format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(crate) fn get(url: &Url, path: &str, api_key: Option<&str>) -> Vec<u8> {
    format!("{}\r\n", head("GET", url, path, api_key)).into_bytes()
}

fn head(method: &str, url: &Url, path: &str, api_key: Option<&str>) -> String {
    let authorization = api_key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\n{authorization}", url.prefix, url.authority)
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: u64,
}

fn openai_meaning(chunk: Chunk<'_>) -> Meaning<'_> {
    if let Some(error) = chunk.error {
        return Meaning::Error(message_of(&error));
    }
    let texts = chunk.choices.into_iter().filter_map(|choice| choice.delta.and_then(|d| d.content).or(choice.text));
    if let Some(text) = texts.filter(|text| !text.is_empty()).reduce(|all, text| all + text) {
        return Meaning::Token(text);
    }
    match chunk.usage {
        Some(usage) => {
            Meaning::Usage { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens }
        }
        None => Meaning::Other,
    }
}

fn text_in(data: &str) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct Token<'a> {
        #[serde(borrow)]
        text: Cow<'a, str>,
    }
    serde_json::from_str(data).map_or_else(|_| data.into(), |token: Token<'_>| token.text)
}

/// The tokens of an answer in one body, by the server's count; 0 where it is no answer of tokens.
pub(crate) fn tokens_in(body: &[u8]) -> u64 {
    #[derive(Deserialize)]
    struct Whole {
        usage: Option<Usage>,
        tokens_generated: Option<u64>,
    }
    let whole = serde_json::from_slice(body).unwrap_or(Whole { usage: None, tokens_generated: None });
    whole.usage.map(|usage| usage.completion_tokens).or(whole.tokens_generated).unwrap_or(0)
}

fn total_tokens_in(data: &str) -> u64 {
    serde_json::from_str::<Value>(data).ok().and_then(|value| value["total_tokens"].as_u64()).unwrap_or(0)
}

/// The message of an error body or event; the text itself if it has none.
pub(crate) fn message_in(data: &str) -> String {
    match serde_json::from_str::<Value>(data) {
        Ok(value) if value["error"].is_null() => message_of(&value),
        Ok(value) => message_of(&value["error"]),
        Err(_) => data.chars().take(MESSAGE_CHARS_MAX).collect(),
    }
}

fn message_of(error: &Value) -> String {
    let text = error["message"].as_str().or(error.as_str()).map_or_else(|| error.to_string(), str::to_owned);
    text.chars().take(MESSAGE_CHARS_MAX).collect()
}

const MESSAGE_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Meaning<'_> {
        Meaning::Token(text.into())
    }

    #[test]
    fn bodies_tell_their_tokens() {
        assert_eq!(tokens_in(br#"{"choices":[{"text":"x"}],"usage":{"prompt_tokens":3,"completion_tokens":7}}"#), 7);
        assert_eq!(tokens_in(br#"{"text":"x","tokens_generated":9}"#), 9);
        assert_eq!((tokens_in(br#"{"status":"healthy"}"#), tokens_in(b"<html>")), (0, 0));
    }

    #[test]
    fn openai_events_are_understood() {
        let chat = |data| Endpoint::Chat.meaning("", data);
        assert_eq!(chat(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#), Meaning::Other);
        assert_eq!(
            chat(r#"{"choices":[{"index":0,"delta":{"content":"a \"b\"\n"}}],"usage":null}"#),
            token("a \"b\"\n")
        );
        assert_eq!(chat(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#), Meaning::Other);
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}"#;
        assert_eq!(chat(usage), Meaning::Usage { prompt_tokens: Some(5), completion_tokens: 7 });
        assert_eq!(chat("[DONE]"), Meaning::End);
        assert_eq!(chat(r#"{"error":{"message":"lost","code":"X"}}"#), Meaning::Error("lost".to_owned()));
        assert!(matches!(chat("{nonsense"), Meaning::Error(_)));
        assert_eq!(Endpoint::Completions.meaning("", r#"{"choices":[{"text":"x"}]}"#), token("x"));
    }

    #[test]
    fn own_events_are_understood() {
        let own = |event, data| Endpoint::Inference.meaning(event, data);
        assert_eq!(own("token", r#"{"type":"token","text":"x"}"#), token("x"));
        assert_eq!(own("progress", "{}"), Meaning::Other);
        assert_eq!(own("error", r#"{"code":"E","message":"lost"}"#), Meaning::Error("lost".to_owned()));
        let complete = Meaning::Usage { prompt_tokens: None, completion_tokens: 9 };
        assert_eq!(own("complete", r#"{"total_tokens":9}"#), complete);
    }

    #[test]
    fn own_endpoint_gets_only_the_fields_it_knows() {
        let template = RequestTemplate {
            endpoint: Endpoint::Inference,
            whole: false,
            url: "http://h:1/p".parse().unwrap(),
            model: None,
            max_tokens: 3,
            temperature: 0.0,
            ignore_eos: false,
            api_key: Some("k".to_owned()),
            prompts: Prompts::new(1, 4, 1.0),
        };
        let text = String::from_utf8(template.ask(2).bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /p/v1/inference/stream HTTP/1.1\r\nHost: h:1\r\nAuthorization: Bearer k\r\n"));
        let body: Value = serde_json::from_str(body).unwrap();
        let mut fields: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["max_tokens", "prompt", "seed", "temperature"]);
    }
}
