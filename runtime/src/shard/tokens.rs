//! Texts to tokens and back.

use std::rc::Rc;
use std::sync::Arc;

use net::api::{self, ContentBody, DetokenizeRequest, Rendering, TokenizeInput, TokenizeRequest, TokensBody};
use net::error::ApiError;
use net::http::Request;

use super::generation::{TOKEN_BYTES, chat_tokens, check_length, check_vocabulary, messages_bytes};
use super::peer::{Peer, Writer};
use super::{Shard, body};
use crate::executor::Holder;
use crate::model::Model;
use crate::text::Detokenizer;

/// `POST /v1/tokenize`. `Ok(false)` where the connection can't go on.
///
/// # Errors
/// A refusal; nothing of an answer was written then.
pub(super) async fn tokenize(
    shard: &Rc<Shard>,
    peer: &Rc<Peer>,
    request: &mut Request,
    id: &str,
    writer: &mut Writer,
) -> Result<bool, ApiError> {
    api::check_json_content_type(request)?;
    let Some(parsed) = shard.read_body(peer, request, TokenizeRequest::parse).await? else { return Ok(false) };
    let TokenizeRequest { model, input, add_special, parse_special, with_pieces } = parsed;
    let served = shard.models.active(model.as_deref())?;
    let bytes = match &input {
        TokenizeInput::Content(text) => text.len(),
        TokenizeInput::Messages(messages) => messages_bytes(messages),
    };
    let model = Arc::clone(&served.model);
    let tokens = shard.aside(peer, (Holder::Tokenizer, bytes), move |_| match &input {
        TokenizeInput::Content(text) => {
            check_length(&model, text, "content")?;
            let mut tokens = Vec::new();
            model.tokenizer.encode(text, add_special, parse_special, &mut tokens);
            Ok(tokens)
        }
        TokenizeInput::Messages(messages) => chat_tokens(&model, "messages", messages, None, &Rendering::default()),
    });
    let Some(tokens) = tokens.await? else { return Ok(false) };
    let tokens: Vec<u32> = tokens?;
    let text_of = |token| served.model.tokenizer.token_text(token);
    let mut tokens = TokensBody { tokens: &tokens, text_of: with_pieces.then_some(&text_of), written: 0 };
    Ok(body::send(shard, peer, request, id, writer, |out| tokens.write_piece(out)).await)
}

/// `POST /v1/detokenize`, as [`tokenize`].
///
/// # Errors
/// The same.
pub(super) async fn detokenize(
    shard: &Rc<Shard>,
    peer: &Rc<Peer>,
    request: &mut Request,
    id: &str,
    writer: &mut Writer,
) -> Result<bool, ApiError> {
    api::check_json_content_type(request)?;
    let Some(parsed) = shard.read_body(peer, request, DetokenizeRequest::parse).await? else { return Ok(false) };
    let DetokenizeRequest { model, tokens } = parsed;
    let model = Arc::clone(&shard.models.active(model.as_deref())?.model);
    let bytes = tokens.len() * TOKEN_BYTES;
    let text = shard.aside(peer, (Holder::Tokenizer, bytes), move |_| text_of(&model, &tokens));
    let Some(text) = text.await? else { return Ok(false) };
    let text = text?;
    let mut content = ContentBody { content: &text, written: None };
    Ok(body::send(shard, peer, request, id, writer, |out| content.write_piece(out)).await)
}

fn text_of(model: &Model, tokens: &[u32]) -> Result<String, ApiError> {
    check_vocabulary(model, tokens, "tokens")?;
    let tokenizer = &model.tokenizer;
    let mut text = String::new();
    let mut detokenizer = Detokenizer::from_start(tokenizer.adds_space_prefix());
    for token in tokens {
        detokenizer.push(tokenizer.piece(*token), &mut text);
        // A token of four characters may stand for a hundred bytes.
        check_length(model, &text, "tokens")?;
    }
    detokenizer.finish(&mut text);
    Ok(text)
}
