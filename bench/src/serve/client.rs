//! A blocking client for the few questions that are asked before the load.
use std::io::{self, Read, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::http::Response;
use super::url::Url;
use super::wire::Place;
use super::{Error, prompt, request};

/// The first model that the server lists, if it lists any.
pub(crate) fn first_model(url: &Url, place: &Place, api_key: Option<&str>) -> Option<String> {
    let (status, body) = exchange(place, &request::get(url, "/v1/models", api_key)).ok()?;
    let models: Value = serde_json::from_slice(&body).ok()?;
    (status == 200).then(|| models["data"][0]["id"].as_str().map(str::to_owned))?
}

/// How many of our words make a token, by the server's own tokenizer; a usual figure if it has no such endpoint.
///
/// # Errors
/// [`Error::Unreachable`] if there is no server.
pub(crate) fn words_per_token(url: &Url, place: &Place, api_key: Option<&str>) -> Result<f64, Error> {
    let (text, words) = prompt::sample();
    let question = request::post(url, "/v1/tokenize", api_key, &json!({ "content": text }).to_string());
    let answer =
        exchange(place, &question).map_err(|source| Error::Unreachable { host: url.authority.clone(), source })?;
    let tokens = match answer {
        (200, body) => {
            serde_json::from_slice::<Value>(&body).ok().and_then(|value| Some(value["tokens"].as_array()?.len()))
        }
        _ => None,
    };
    Ok(tokens.filter(|tokens| *tokens > 0).map_or(prompt::WORDS_PER_TOKEN, |tokens| words as f64 / tokens as f64))
}

/// Sends one request on a connection of its own; the status and the body.
pub(crate) fn exchange(place: &Place, request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = place.connect(TIMEOUT)?;
    stream.write_all(request)?;
    let (mut response, mut body) = (Response::new(), Vec::new());
    let mut bytes = vec![0; 64 << 10];
    while !response.is_done() {
        let count = stream.read(&mut bytes)?;
        if count == 0 && !response.ends_with_close() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        response.feed(&bytes[..count], |_, part| body.extend_from_slice(part)).map_err(io::Error::other)?;
        if body.len() > BODY_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    Ok((response.status(), body))
}

const TIMEOUT: Duration = Duration::from_secs(30);
const BODY_BYTES_MAX: usize = 16 << 20;
