//! Why a byte stream is not a request: each refusal has one status and ends the connection.

/// The peer is at fault in every variant; after one, answer with [`HttpError::status`] and close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HttpError {
    #[error("line ends must be CR LF")]
    BareLineEnd,
    #[error("control character in the request head")]
    ControlCharacter,
    #[error("malformed request line")]
    RequestLine,
    #[error("malformed request target")]
    Target,
    #[error("request target is too long")]
    TargetTooLong,
    #[error("request method is not implemented")]
    MethodUnknown,
    #[error("HTTP version is not 1.0 or 1.1")]
    Version,
    #[error("malformed header field name")]
    HeaderName,
    #[error("malformed header field value")]
    HeaderValue,
    #[error("too many header fields")]
    TooManyHeaders,
    #[error("request head is too large")]
    HeadTooLarge,
    #[error("Host is missing")]
    HostMissing,
    #[error("Host is repeated")]
    HostRepeated,
    #[error("malformed Host")]
    Host,
    #[error("malformed Content-Length")]
    ContentLength,
    #[error("Content-Length is repeated")]
    ContentLengthRepeated,
    #[error("both Content-Length and Transfer-Encoding")]
    AmbiguousLength,
    #[error("Content-Length or chunked Transfer-Encoding is required")]
    LengthRequired,
    #[error("Transfer-Encoding must end in one chunked")]
    TransferEncoding,
    #[error("transfer coding is not implemented")]
    TransferCodingUnknown,
    #[error("expectation is not 100-continue")]
    Expectation,
    #[error("body is too large")]
    BodyTooLarge,
    #[error("malformed chunk size")]
    ChunkSize,
    #[error("malformed chunk extension")]
    ChunkExtension,
    #[error("chunk data must end in CR LF")]
    ChunkEnd,
    #[error("malformed trailer section")]
    Trailer,
    #[error("too many bytes sent ahead of their answer")]
    PipelineOverflow,
}

impl HttpError {
    /// Status to answer with, 400..=599.
    pub fn status(self) -> u16 {
        match self {
            Self::LengthRequired => 411,
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::TooManyHeaders | Self::HeadTooLarge => 431,
            Self::MethodUnknown | Self::TransferCodingUnknown => 501,
            Self::Version => 505,
            _ => 400,
        }
    }
}
