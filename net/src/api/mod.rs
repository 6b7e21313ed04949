//! What requests and answers mean: routes, request schemas, response bodies.

mod admin;
mod body;
mod constraint;
mod embeddings;
mod ending;
mod fields;
mod generate;
mod logprobs;
mod messages;
mod openapi;
mod rendering;
mod reply;
mod responses;
mod route;
mod stats;
mod tokens;
mod tools;

pub use admin::{
    Canary, Check, HealthCheckResults, LoadReply, LoadRequest, ModelMetadata, ModelStatus, Performance, PhaseTimes,
    QuantizationComparison, Receipt, Resources, RollbackInfo, SwapReply, SwapRequest, SwapStatus, SwapStrategy,
    ValidationConfig, ValidationResult, ValidationResults, VersionStatus, write_admin,
};
pub use body::{
    CallReply, Choice, CompletionBody, ContentBody, EmbeddingsBody, PIECE_BYTES, TokenIds, TokensBody, beginning,
};
pub use constraint::Constraint;
pub use embeddings::{EMBEDDING_INPUTS_MAX, EmbeddingsRequest, EncodingFormat};
pub use ending::Ending;
pub use generate::{
    DevicePreference, Endpoint, GenerateRequest, Priority, Prompt, QuantizationPreference, SEQUENCES_PER_REQUEST_MAX,
};
pub use logprobs::{Logprobs, PieceOf};
pub(crate) use logprobs::{Shape, Writer as LogprobsWriter};
pub use messages::{Message, Role};
pub use openapi::openapi;
pub use rendering::{PromptEnd, Rendering};
pub use reply::{
    Component, FinishReason, InferenceReply, ModelCard, Usage, write_health, write_inference, write_model, write_models,
};
pub(crate) use reply::{write_call_id, write_usage};
pub(crate) use responses::{Cursor, Spans, State, write_item_id, write_logprobs, write_message_id};
pub use responses::{ResponseAnswer, ResponseBody, ResponseHead};
pub use route::{Access, Route, check_json_content_type, dialect_of, percent_decode, route, template};
pub use stats::{STATS_HOURS_MAX, StatsRequest};
pub use tokens::{DetokenizeRequest, TokenizeInput, TokenizeRequest};
pub use tools::{JsonContent, Tool, ToolCall, ToolChoice, Tools};
