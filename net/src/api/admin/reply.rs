//! Answers of the endpoints around models. They are rare, so serde writes them.

use serde::Serialize;

/// Appends `reply` as JSON.
pub fn write_admin(out: &mut Vec<u8>, reply: &impl Serialize) {
    serde_json::to_writer(out, reply).expect("these replies have string keys only, and a Vec takes every write");
}

/// What a model file is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelMetadata {
    pub file_size_bytes: u64,
    pub parameter_count: u64,
    pub quantization_format: String,
    pub architecture: String,
    pub vocab_size: u64,
    pub context_length: u64,
    pub sha256: String,
}

/// One of the things that a file passed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValidationResult {
    pub passed: bool,
    pub duration_ms: f64,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValidationResults {
    pub gguf_validation: ValidationResult,
    pub quantization_validation: ValidationResult,
    pub performance_validation: ValidationResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_validation: Option<ValidationResult>,
}

/// Answer of `POST /v1/models/load`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadReply {
    pub model_id: String,
    pub status: &'static str,
    pub load_time_ms: f64,
    pub model_metadata: ModelMetadata,
    pub validation_results: ValidationResults,
}

/// How a swap ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SwapStatus {
    Completed,
    /// The old generation serves again.
    RolledBack,
    /// The new one did not pass, and serves since no rollback was wanted.
    Failed,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PhaseTimes {
    pub validation_duration_ms: f64,
    pub swap_duration_ms: f64,
    pub health_check_duration_ms: f64,
}

/// The new generation against the old one; a number that could not be measured is null.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QuantizationComparison {
    pub format_changed: bool,
    /// Part of equal best tokens less 1.
    pub accuracy_delta: Option<f64>,
    /// Relative change of tokens per second.
    pub performance_delta: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub name: String,
    pub healthy: bool,
    pub message: String,
    pub duration_ms: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthCheckResults {
    pub overall_healthy: bool,
    pub individual_checks: Vec<Check>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RollbackInfo {
    pub rollback_performed: bool,
    pub rollback_reason: Option<String>,
    pub rollback_duration_ms: Option<f64>,
}

/// Answer of `POST /v1/models/swap`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SwapReply {
    pub swap_id: String,
    pub status: SwapStatus,
    pub strategy: &'static str,
    pub total_duration_ms: f64,
    pub previous_model_metadata: ModelMetadata,
    pub new_model_metadata: ModelMetadata,
    pub swap_phases: PhaseTimes,
    pub quantization_comparison: QuantizationComparison,
    pub health_check_results: HealthCheckResults,
    pub rollback_info: RollbackInfo,
}

/// A generation that is held.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VersionStatus {
    pub generation: u32,
    /// active, canary or standby
    pub state: &'static str,
    pub metadata: ModelMetadata,
    pub loaded_at: String,
    pub load_time_ms: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Resources {
    pub weights_bytes: u64,
    pub kv_cache_bytes: u64,
    pub replicas: u64,
}

/// Of the active generation on all shards, since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Performance {
    pub requests_total: u64,
    pub requests_failed: u64,
    pub generated_tokens: u64,
    pub running: u64,
    pub waiting: u64,
    pub mean_inter_token_ms: Option<f64>,
}

/// Answer of `GET /v1/models/{id}/status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelStatus {
    pub model_id: String,
    /// healthy, or degraded where requests have failed
    pub health: &'static str,
    pub operation_in_progress: bool,
    pub versions: Vec<VersionStatus>,
    pub resources: Resources,
    pub performance: Performance,
}

/// Answer of `GET /v1/receipts/{request_id}`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Receipt {
    pub request_id: String,
    pub model_id: String,
    pub model_sha256: String,
    pub generation: u32,
    pub quantization: String,
    pub kernels: String,
    pub isa: String,
    pub device: String,
    pub fallback: bool,
    pub shard: usize,
    pub seed: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub sequences: u64,
    /// stop, length, failed or cancelled
    pub outcome: &'static str,
    pub received_at: String,
    pub queue_ms: f64,
    pub first_token_ms: Option<f64>,
    pub total_ms: f64,
}
