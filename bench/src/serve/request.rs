//! What is asked of each endpoint, and what its stream's events mean.
use std::borrow::Cow;

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

/// All requests of a run: they differ by prompt and sampling seed.
#[derive(Clone, Debug)]
pub(crate) struct RequestTemplate {
    pub(crate) endpoint: Endpoint,
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
pub(crate) enum Meaning {
    /// Text of at least one token.
    Token,
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

    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Inference => "/v1/inference/stream",
        }
    }

    /// Reads one event; one that is no JSON of the endpoint is an error of the stream.
    pub(crate) fn meaning(self, event: &str, data: &str) -> Meaning {
        match self {
            _ if data == "[DONE]" => Meaning::End,
            Self::Chat | Self::Completions => match serde_json::from_str(data) {
                Ok(chunk) => openai_meaning(chunk),
                Err(error) => Meaning::Error(format!("event is no chunk: {error}")),
            },
            Self::Inference => match event {
                "token" => Meaning::Token,
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
    pub(crate) fn bytes(&self, index: u32) -> Vec<u8> {
        post(&self.url, self.endpoint.path(), self.api_key.as_deref(), &self.body(index).to_string())
    }

    fn body(&self, index: u32) -> Value {
        let prompt = self.prompts.prompt(index);
        let mut body = json!({ "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": index });
        match self.endpoint {
            Endpoint::Chat => body["messages"] = json!([{ "role": "user", "content": prompt }]),
            Endpoint::Completions | Endpoint::Inference => body["prompt"] = json!(prompt),
        }
        if self.endpoint != Endpoint::Inference {
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

fn openai_meaning(chunk: Chunk<'_>) -> Meaning {
    if let Some(error) = chunk.error {
        return Meaning::Error(message_of(&error));
    }
    let text_of = |choice: &Choice<'_>| {
        let content = choice.delta.as_ref().and_then(|delta| delta.content.as_ref());
        content.or(choice.text.as_ref()).is_some_and(|text| !text.is_empty())
    };
    if chunk.choices.iter().any(text_of) {
        return Meaning::Token;
    }
    match chunk.usage {
        Some(usage) => {
            Meaning::Usage { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens }
        }
        None => Meaning::Other,
    }
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

    #[test]
    fn openai_events_are_understood() {
        let chat = |data| Endpoint::Chat.meaning("", data);
        assert_eq!(chat(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#), Meaning::Other);
        assert_eq!(chat(r#"{"choices":[{"index":0,"delta":{"content":"a \"b\"\n"}}],"usage":null}"#), Meaning::Token);
        assert_eq!(chat(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#), Meaning::Other);
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}"#;
        assert_eq!(chat(usage), Meaning::Usage { prompt_tokens: Some(5), completion_tokens: 7 });
        assert_eq!(chat("[DONE]"), Meaning::End);
        assert_eq!(chat(r#"{"error":{"message":"lost","code":"X"}}"#), Meaning::Error("lost".to_owned()));
        assert!(matches!(chat("{nonsense"), Meaning::Error(_)));
        assert_eq!(Endpoint::Completions.meaning("", r#"{"choices":[{"text":"x"}]}"#), Meaning::Token);
    }

    #[test]
    fn own_events_are_understood() {
        let own = |event, data| Endpoint::Inference.meaning(event, data);
        assert_eq!(own("token", r#"{"type":"token","text":"x"}"#), Meaning::Token);
        assert_eq!(own("progress", "{}"), Meaning::Other);
        assert_eq!(own("error", r#"{"code":"E","message":"lost"}"#), Meaning::Error("lost".to_owned()));
        let complete = Meaning::Usage { prompt_tokens: None, completion_tokens: 9 };
        assert_eq!(own("complete", r#"{"total_tokens":9}"#), complete);
    }

    #[test]
    fn own_endpoint_gets_only_the_fields_it_knows() {
        let template = RequestTemplate {
            endpoint: Endpoint::Inference,
            url: "http://h:1/p".parse().unwrap(),
            model: None,
            max_tokens: 3,
            temperature: 0.0,
            ignore_eos: false,
            api_key: Some("k".to_owned()),
            prompts: Prompts::new(1, 4, 1.0),
        };
        let text = String::from_utf8(template.bytes(2)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /p/v1/inference/stream HTTP/1.1\r\nHost: h:1\r\nAuthorization: Bearer k\r\n"));
        let body: Value = serde_json::from_str(body).unwrap();
        let fields: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["max_tokens", "prompt", "seed", "temperature"]);
    }
}
