//! The one refusal of every endpoint: a status, a code, and the JSON body that says so.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use crate::date;
use crate::http::HttpError;
use crate::json;

/// Machine-readable reason, spelled on the wire as [`Code::as_str`] gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    InvalidRequest,
    ValidationFailed,
    ModelNotFound,
    AuthenticationRequired,
    AuthorizationFailed,
    RateLimitExceeded,
    QuotaExceeded,
    InferenceFailed,
    ModelLoadFailed,
    DeviceUnavailable,
    MemoryExhausted,
    InternalError,
    ServiceUnavailable,
    QuantizationError,
    CrossValidationFailed,
}

impl Code {
    pub(crate) const ALL: [Self; 15] = [
        Self::InvalidRequest,
        Self::ValidationFailed,
        Self::ModelNotFound,
        Self::AuthenticationRequired,
        Self::AuthorizationFailed,
        Self::RateLimitExceeded,
        Self::QuotaExceeded,
        Self::InferenceFailed,
        Self::ModelLoadFailed,
        Self::DeviceUnavailable,
        Self::MemoryExhausted,
        Self::InternalError,
        Self::ServiceUnavailable,
        Self::QuantizationError,
        Self::CrossValidationFailed,
    ];

    /// Wire form, as in `INVALID_REQUEST`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::ValidationFailed => "VALIDATION_FAILED",
            Self::ModelNotFound => "MODEL_NOT_FOUND",
            Self::AuthenticationRequired => "AUTHENTICATION_REQUIRED",
            Self::AuthorizationFailed => "AUTHORIZATION_FAILED",
            Self::RateLimitExceeded => "RATE_LIMIT_EXCEEDED",
            Self::QuotaExceeded => "QUOTA_EXCEEDED",
            Self::InferenceFailed => "INFERENCE_FAILED",
            Self::ModelLoadFailed => "MODEL_LOAD_FAILED",
            Self::DeviceUnavailable => "DEVICE_UNAVAILABLE",
            Self::MemoryExhausted => "MEMORY_EXHAUSTED",
            Self::InternalError => "INTERNAL_ERROR",
            Self::ServiceUnavailable => "SERVICE_UNAVAILABLE",
            Self::QuantizationError => "QUANTIZATION_ERROR",
            Self::CrossValidationFailed => "CROSS_VALIDATION_FAILED",
        }
    }

    fn recovery_suggestion(self) -> &'static str {
        match self {
            Self::InvalidRequest => "correct the request as the message says and send it again",
            Self::ValidationFailed => "change the named parameter to a value inside the stated range",
            Self::ModelNotFound => "list the served models with GET /v1/models",
            Self::AuthenticationRequired => "send an API key or token in the Authorization header",
            Self::AuthorizationFailed => "use credentials that have the needed scope",
            Self::RateLimitExceeded | Self::QuotaExceeded => "wait for the time in Retry-After, then send it again",
            Self::ServiceUnavailable | Self::MemoryExhausted | Self::DeviceUnavailable => {
                "wait for the time in Retry-After, or use another replica"
            }
            Self::ModelLoadFailed | Self::QuantizationError | Self::CrossValidationFailed => {
                "check the model file with `bitnetd inspect`"
            }
            Self::InferenceFailed | Self::InternalError => {
                "send it again; if it fails again, report it with the request id"
            }
        }
    }
}

/// Which of the two error bodies an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `{"error":{message,type,param,code}}`
    OpenAi,
    /// The same, and request_id, timestamp, details, recovery_suggestions.
    Own,
}

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status, 400..=599.
    pub status: u16,
    pub code: Code,
    /// For people: lower case, what, got, limit.
    pub message: Cow<'static, str>,
    /// The field at fault, as in `messages[0].content`.
    pub param: Option<Cow<'static, str>>,
    /// Sent as Retry-After (whole seconds, rounded up) and retry-after-ms.
    pub retry_after: Option<Duration>,
    /// Sent as Allow with 405.
    pub allow: Option<&'static str>,
}

impl ApiError {
    /// An error without field, retry time or Allow.
    pub fn new(status: u16, code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None, allow: None }
    }

    /// 400: the body or its structure is wrong.
    pub fn invalid_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, Code::InvalidRequest, message)
    }

    /// 400: the named field is out of its range or of a wrong type.
    pub fn validation(param: impl Display, message: impl Display) -> Self {
        let message = format!("`{param}` {message}");
        Self::new(400, Code::ValidationFailed, message).with_param(param.to_string())
    }

    /// 400: the field asks for something that this server does not do.
    pub fn not_supported(param: impl Display) -> Self {
        Self::validation(param, "is not supported by this server")
    }

    /// 404: no such path.
    pub fn path_not_found() -> Self {
        Self::new(404, Code::InvalidRequest, "no such path")
    }

    /// 404: no such model. A client may send a name of any length; the answer need not repeat all of it.
    pub fn model_not_found(model: impl Display) -> Self {
        Self::new(404, Code::ModelNotFound, format!("model `{model:.128}` is not served here")).with_param("model")
    }

    /// 405 with the methods that the path has.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let message = format!("method not allowed here, use one of: {allow}");
        Self { allow: Some(allow), ..Self::new(405, Code::InvalidRequest, message) }
    }

    /// 408: the request did not arrive in time.
    pub fn request_timeout() -> Self {
        Self::new(408, Code::InvalidRequest, "the request did not arrive in time")
    }

    /// 429: the queue or the client's rate is full.
    pub fn overloaded(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self::new(429, Code::RateLimitExceeded, message).with_retry_after(retry_after)
    }

    /// 503: draining, no device, no model yet.
    pub fn unavailable(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self::new(503, Code::ServiceUnavailable, message).with_retry_after(retry_after)
    }

    /// 500: a broken invariant on our side.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(500, Code::InternalError, message)
    }

    #[must_use]
    pub fn with_param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// OpenAI's `type`, which follows from the status.
    pub fn kind(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// Appends the JSON body: the one place where a refusal becomes bytes.
    /// `request_id` and `unix_ms` appear in the own dialect only.
    pub fn write_body(&self, out: &mut Vec<u8>, dialect: Dialect, request_id: &str, unix_ms: u64) {
        out.extend_from_slice(b"{\"error\":{\"message\":");
        json::write_string(out, &self.message);
        out.extend_from_slice(b",\"type\":\"");
        out.extend_from_slice(self.kind().as_bytes());
        out.extend_from_slice(b"\",\"param\":");
        match &self.param {
            Some(param) => json::write_string(out, param),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"code\":\"");
        out.extend_from_slice(self.code.as_str().as_bytes());
        out.push(b'"');
        if dialect == Dialect::Own {
            out.extend_from_slice(b",\"request_id\":");
            json::write_string(out, request_id);
            out.extend_from_slice(b",\"timestamp\":\"");
            date::write_rfc3339(out, unix_ms);
            out.extend_from_slice(b"\",\"details\":{\"status\":");
            json::write_u64(out, u64::from(self.status));
            if let Some(retry_after) = self.retry_after {
                out.extend_from_slice(b",\"retry_after_ms\":");
                json::write_u64(out, u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX));
            }
            out.extend_from_slice(b"},\"recovery_suggestions\":[");
            json::write_string(out, self.code.recovery_suggestion());
            out.push(b']');
        }
        out.extend_from_slice(b"}}");
    }
}

impl From<HttpError> for ApiError {
    fn from(error: HttpError) -> Self {
        Self::new(error.status(), Code::InvalidRequest, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_dialects_are_valid_json() {
        let error = ApiError::validation("top_p", "must be 0..1, got \"2\"").with_retry_after(Duration::from_millis(7));
        let mut out = Vec::new();
        error.write_body(&mut out, Dialect::OpenAi, "id", 0);
        let body: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(body["error"]["param"], "top_p");
        assert_eq!(body["error"]["code"], "VALIDATION_FAILED");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert!(body["error"].get("request_id").is_none());
        out.clear();
        error.write_body(&mut out, Dialect::Own, "a\"b", 0);
        let body: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(body["error"]["request_id"], "a\"b");
        assert_eq!(body["error"]["timestamp"], "1970-01-01T00:00:00.000Z");
        assert_eq!(body["error"]["details"]["retry_after_ms"], 7);
        assert!(body["error"]["recovery_suggestions"][0].is_string());
    }
}
