//! What requests and answers mean: routes, request schemas, response bodies.

mod admin;
mod embeddings;
mod fields;
mod generate;
mod messages;
mod openapi;
mod reply;
mod route;
mod stats;
mod tokens;

pub use admin::{
    Canary, Check, HealthCheckResults, LoadReply, LoadRequest, ModelMetadata, ModelStatus, Performance, PhaseTimes,
    QuantizationComparison, Receipt, Resources, RollbackInfo, SwapReply, SwapRequest, SwapStatus, SwapStrategy,
    ValidationConfig, ValidationResult, ValidationResults, VersionStatus, write_admin,
};
pub use embeddings::{EMBEDDING_INPUTS_MAX, EmbeddingsRequest, EncodingFormat, write_embeddings};
pub use generate::{
    DevicePreference, Endpoint, GenerateRequest, Priority, Prompt, QuantizationPreference, SEQUENCES_PER_REQUEST_MAX,
};
pub use messages::{Message, Role};
pub use openapi::openapi;
pub use reply::{
    ChatChoice, CompletionChoice, Component, FinishReason, InferenceReply, Logprob, ModelCard, TokenPiece, Usage,
    write_chat_completion, write_completion, write_detokenized, write_health, write_inference, write_model,
    write_models, write_tokenized,
};
pub(crate) use reply::{write_chat_logprobs, write_completion_logprobs, write_usage};
pub use route::{Access, Route, check_json_content_type, dialect_of, percent_decode, route, template};
pub use stats::{STATS_HOURS_MAX, StatsRequest};
pub use tokens::{DetokenizeRequest, TokenizeInput, TokenizeRequest};
