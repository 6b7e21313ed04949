//! Requests to generate text, as tests write them.

use net::api::{Endpoint, GenerateRequest};
use net::error::ApiError;
use net::json::Reader;

pub(crate) fn parse(endpoint: Endpoint, body: &str) -> Result<GenerateRequest, ApiError> {
    GenerateRequest::parse(endpoint, &mut Reader::new(), &mut body.as_bytes().to_vec())
}

/// A body of `endpoint` that is valid but for `fields`.
pub(crate) fn with(endpoint: Endpoint, fields: &str) -> Result<GenerateRequest, ApiError> {
    let prompt = match endpoint {
        Endpoint::Chat => r#""messages":[{"role":"user","content":"a"}]"#,
        Endpoint::Responses => r#""input":"a""#,
        _ => r#""prompt":"a""#,
    };
    parse(endpoint, &format!("{{{prompt},{fields}}}"))
}

/// The field that a refusal names.
pub(crate) fn param(result: Result<GenerateRequest, ApiError>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.status, 400);
    error.param.unwrap().into_owned()
}

pub(crate) const OPENAI: [Endpoint; 3] = [Endpoint::Chat, Endpoint::Responses, Endpoint::Completion];
