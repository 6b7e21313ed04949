//! `POST /v1/embeddings`: the request's schema, and how a vector is written.

use super::fields::{milliseconds, priority, prompt};
use super::generate::{Priority, Prompt};
use crate::base64;
use crate::error::ApiError;
use crate::json::{Object, Path, Reader, write_f32};

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EncodingFormat {
    /// An array of numbers.
    #[default]
    Float,
    /// Base64 of little-endian f32.
    Base64,
}

/// A checked request for embeddings. What depends on the model is not checked yet.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingsRequest {
    pub model: Option<String>,
    /// Texts or tokens, at least one and at most [`EMBEDDING_INPUTS_MAX`], none of them empty.
    pub input: Prompt,
    pub encoding_format: EncodingFormat,
    /// Length of the vectors, where the client names one.
    pub dimensions: Option<u32>,
    pub priority: Priority,
    /// For the whole request; at least 1.
    pub timeout_ms: Option<u64>,
    /// Until the first input is computed; at least 1.
    pub queue_timeout_ms: Option<u64>,
}

/// Inputs of one request, as OpenAI has it.
pub const EMBEDDING_INPUTS_MAX: usize = 2048;

impl EmbeddingsRequest {
    /// # Errors
    /// 400 as every schema here; `input` is required.
    pub fn parse(reader: &mut Reader, body: &mut [u8]) -> Result<Self, ApiError> {
        reader.object(body, Self::from_object)
    }

    fn from_object(object: &Object<'_, '_>) -> Result<Self, ApiError> {
        let mut request = Self {
            model: None,
            input: Prompt::Text(Vec::new()),
            encoding_format: EncodingFormat::Float,
            dimensions: None,
            priority: Priority::Normal,
            timeout_ms: None,
            queue_timeout_ms: None,
        };
        let mut input = None;
        for (key, value) in object.fields() {
            let path = Path::Field(&Path::Root, key);
            match key {
                "model" => request.model = Some(value.str(path)?.to_owned()),
                "input" => input = Some(prompt(value, path, EMBEDDING_INPUTS_MAX)?),
                "encoding_format" => {
                    request.encoding_format = match value.str(path)? {
                        "float" => EncodingFormat::Float,
                        "base64" => EncodingFormat::Base64,
                        _ => return Err(ApiError::validation(path, "must be float or base64")),
                    }
                }
                "dimensions" => request.dimensions = Some(value.u32(path, 1)?),
                "priority" => request.priority = priority(value, path)?,
                "timeout_ms" => request.timeout_ms = Some(milliseconds(value, path)?),
                "queue_timeout_ms" => request.queue_timeout_ms = Some(milliseconds(value, path)?),
                "normalize" if !value.bool(path)? => return Err(ApiError::not_supported(path)),
                "messages" | "prompt" => return Err(ApiError::validation(path, "is not known here; send `input`")),
                _ if REFUSED.contains(&key) && !value.is_neutral() => return Err(ApiError::not_supported(path)),
                _ => {}
            }
        }
        request.input = input.ok_or_else(|| ApiError::validation("input", "is required"))?;
        let empty = match &request.input {
            Prompt::Text(texts) => texts.iter().position(String::is_empty),
            Prompt::Tokens(inputs) => inputs.iter().position(Vec::is_empty),
            Prompt::Messages(_) => None,
        };
        match empty {
            Some(at) => Err(ApiError::validation(Path::Index(&Path::Field(&Path::Root, "input"), at), "is empty")),
            None => Ok(request),
        }
    }
}

/// Appends one vector.
pub(super) fn write_vector(out: &mut Vec<u8>, vector: &[f32], format: EncodingFormat) {
    match format {
        EncodingFormat::Float => write_numbers(out, vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            out.push(b'"');
            base64::encode(out, &bytes);
            out.push(b'"');
        }
    }
}

fn write_numbers(out: &mut Vec<u8>, vector: &[f32]) {
    out.push(b'[');
    for (index, &value) in vector.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_f32(out, value);
    }
    out.push(b']');
}

/// Fields of other servers that would change the vectors.
const REFUSED: [&str; 5] = ["input_type", "instruction", "prompt_name", "truncate", "truncate_prompt_tokens"];

#[cfg(test)]
mod tests {
    use super::super::body::EmbeddingsBody;
    use super::*;

    fn parse(body: &str) -> Result<EmbeddingsRequest, ApiError> {
        EmbeddingsRequest::parse(&mut Reader::new(), &mut body.as_bytes().to_vec())
    }

    #[test]
    fn every_shape_of_input_is_read() {
        let input = |json: &str| parse(&format!("{{\"model\":\"m\",\"input\":{json}}}")).unwrap().input;
        assert_eq!(input("\"a\""), Prompt::Text(vec!["a".into()]));
        assert_eq!(input("[\"a\",\"b\"]"), Prompt::Text(vec!["a".into(), "b".into()]));
        assert_eq!(input("[1,2]"), Prompt::Tokens(vec![vec![1, 2]]));
        assert_eq!(input("[[1],[2,3]]"), Prompt::Tokens(vec![vec![1], vec![2, 3]]));
        let request =
            parse("{\"input\":\"a\",\"encoding_format\":\"base64\",\"dimensions\":7,\"user\":\"u\"}").unwrap();
        assert_eq!((request.encoding_format, request.dimensions), (EncodingFormat::Base64, Some(7)));
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        for (body, param) in [
            ("{}", "input"),
            ("{\"input\":\"\"}", "input[0]"),
            ("{\"input\":[]}", "input"),
            ("{\"input\":[\"a\",\"\"]}", "input[1]"),
            ("{\"input\":[\"a\",1]}", "input[1]"),
            ("{\"input\":[[]]}", "input[0]"),
            ("{\"input\":[-1]}", "input[0]"),
            ("{\"input\":{}}", "input"),
            ("{\"input\":\"a\",\"encoding_format\":\"int8\"}", "encoding_format"),
            ("{\"input\":\"a\",\"dimensions\":0}", "dimensions"),
            ("{\"input\":\"a\",\"truncate\":\"END\"}", "truncate"),
            ("{\"input\":\"a\",\"normalize\":false}", "normalize"),
            ("{\"messages\":[],\"input\":\"a\"}", "messages"),
        ] {
            let error = parse(body).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{body}");
        }
        let many = format!("{{\"input\":[{}]}}", vec!["\"a\""; EMBEDDING_INPUTS_MAX + 1].join(","));
        assert_eq!(parse(&many).unwrap_err().param.as_deref(), Some("input"));
    }

    #[test]
    fn vectors_are_written_in_both_formats() {
        let vectors: [&[f32]; 2] = [&[0.5, -1.0], &[1e-9, 0.25]];
        let write = |format| {
            let mut out = Vec::new();
            let mut body = EmbeddingsBody { model: "m", vectors: &vectors, format, prompt_tokens: 7, written: 0 };
            assert!(body.write_piece(&mut out));
            serde_json::from_slice::<serde_json::Value>(&out).unwrap()
        };
        let body = write(EncodingFormat::Float);
        let numbers = body["data"][1]["embedding"].as_array().unwrap();
        assert_eq!((numbers[0].as_f64().unwrap() as f32, numbers[1].as_f64()), (1e-9, Some(0.25)));
        assert_eq!((&body["data"][1]["index"], &body["usage"]["total_tokens"]), (&1.into(), &7.into()));
        assert_eq!(write(EncodingFormat::Base64)["data"][0]["embedding"], "AAAAPwAAgL8=");
    }
}
