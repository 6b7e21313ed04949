//! Request schemas of the endpoints that load, swap and remove models.

mod reply;

use std::time::Duration;

use super::generate::{DevicePreference, QuantizationPreference};
use crate::auth::parse_sha256;
use crate::error::ApiError;
use crate::json::{Kind, Object, Path, Reader, Value, items};

pub use reply::{
    Check, HealthCheckResults, LoadReply, ModelMetadata, ModelStatus, Performance, PhaseTimes, QuantizationComparison,
    Receipt, Resources, RollbackInfo, SwapReply, SwapStatus, ValidationResult, ValidationResults, VersionStatus,
    write_admin,
};

/// `POST /v1/models/load`
#[derive(Debug, Clone, PartialEq)]
pub struct LoadRequest {
    pub model_path: String,
    pub model_id: Option<String>,
    /// The file is refused unless it has this hash.
    pub sha256: Option<[u8; 32]>,
    pub validation: ValidationConfig,
    pub device_preference: DevicePreference,
    pub quantization_format: QuantizationPreference,
    pub cache_bytes_max: Option<u64>,
}

/// What a file must pass before it is served.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidationConfig {
    pub cross_validation: bool,
    /// 0.9..=1
    pub min_accuracy: f32,
    /// Positions (tokens of texts) at which the model is compared with its reference, at most.
    pub samples: u32,
    pub timeout: Duration,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { cross_validation: false, min_accuracy: 0.99, samples: 64, timeout: Duration::from_secs(30) }
    }
}

/// How a generation takes another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SwapStrategy {
    /// All shards at once; the old one leaves when its sequences have ended.
    #[default]
    Atomic,
    /// As atomic, and the old one stays loaded, so that a swap back costs no load.
    BlueGreen,
    /// Shard by shard, each checked before the next.
    Rolling,
}

impl SwapStrategy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Atomic => "atomic",
            Self::BlueGreen => "blue_green",
            Self::Rolling => "rolling",
        }
    }
}

/// A trial on part of the requests before the swap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Canary {
    /// Part of the requests that the new generation answers, above 0 and at most 0.5.
    pub share: f32,
    /// Requests that it must have answered.
    pub requests: u32,
    /// It is given up if it has answered too few by then.
    pub timeout: Duration,
}

/// `POST /v1/models/swap`
#[derive(Debug, Clone, PartialEq)]
pub struct SwapRequest {
    pub new_model_path: String,
    pub target_model_id: String,
    /// The file is refused unless it has this hash.
    pub sha256: Option<[u8; 32]>,
    pub strategy: SwapStrategy,
    pub rollback_on_failure: bool,
    pub validation_timeout: Duration,
    pub test_prompts: Vec<String>,
    /// Part of the tokens in which the new generation must agree with the old one.
    pub accuracy_threshold: Option<f32>,
    pub canary: Option<Canary>,
}

impl LoadRequest {
    /// # Errors
    /// 400 with the field at fault.
    pub fn parse(reader: &mut Reader, body: &mut [u8]) -> Result<Self, ApiError> {
        reader.object(body, |object| {
            let (mut model_path, mut model_id, mut sha256, mut cache_bytes_max) = (None, None, None, None);
            let mut validation = ValidationConfig::default();
            let (mut device_preference, mut quantization_format) = Default::default();
            for (key, value) in object.fields() {
                let path = Path::Field(&Path::Root, key);
                match key {
                    "model_path" => model_path = Some(file_path(value, path)?),
                    "model_id" => model_id = Some(model_name(value, path)?),
                    "sha256" => sha256 = Some(hash(value, path)?),
                    "validation_config" => validation = validation_config(&value.object(path)?, path)?,
                    "device_preference" => device_preference = device(value, path)?,
                    "quantization_format" => quantization_format = quantization(value, path)?,
                    "cache_config" => cache_bytes_max = cache_config(&value.object(path)?, path)?,
                    _ => return Err(unknown(path)),
                }
            }
            let model_path = model_path.ok_or_else(|| required("model_path"))?;
            Ok(Self {
                model_path,
                model_id,
                sha256,
                validation,
                device_preference,
                quantization_format,
                cache_bytes_max,
            })
        })
    }
}

impl SwapRequest {
    /// # Errors
    /// 400 with the field at fault.
    pub fn parse(reader: &mut Reader, body: &mut [u8]) -> Result<Self, ApiError> {
        reader.object(body, Self::from_object)
    }

    fn from_object(object: &Object<'_, '_>) -> Result<Self, ApiError> {
        let (mut new_model_path, mut target_model_id) = (None, None);
        let mut swap = Self {
            new_model_path: String::new(),
            target_model_id: String::new(),
            sha256: None,
            strategy: SwapStrategy::Atomic,
            rollback_on_failure: true,
            validation_timeout: Duration::from_secs(30),
            test_prompts: Vec::new(),
            accuracy_threshold: None,
            canary: None,
        };
        for (key, value) in object.fields() {
            let path = Path::Field(&Path::Root, key);
            match key {
                "new_model_path" => new_model_path = Some(file_path(value, path)?),
                "target_model_id" => target_model_id = Some(model_name(value, path)?),
                "sha256" => swap.sha256 = Some(hash(value, path)?),
                "swap_strategy" => {
                    swap.strategy = match value.kind() {
                        Kind::String("atomic") => SwapStrategy::Atomic,
                        Kind::String("blue_green") => SwapStrategy::BlueGreen,
                        Kind::String("rolling") => SwapStrategy::Rolling,
                        _ => return Err(ApiError::validation(path, "must be one of atomic, blue_green, rolling")),
                    }
                }
                "rollback_on_failure" => swap.rollback_on_failure = value.bool(path)?,
                "validation_timeout_seconds" => swap.validation_timeout = seconds(value, path, 10, 300)?,
                "health_check_config" => {
                    for (key, value) in value.object(path)?.fields() {
                        let path = Path::Field(&path, key);
                        match key {
                            "inference_test_prompts" => swap.test_prompts = test_prompts(value, path)?,
                            "accuracy_threshold" => swap.accuracy_threshold = Some(value.number(path, 0.0, 1.0)?),
                            _ => return Err(unknown(path)),
                        }
                    }
                }
                "canary" => swap.canary = Some(canary(&value.object(path)?, path)?),
                _ => return Err(unknown(path)),
            }
        }
        swap.new_model_path = new_model_path.ok_or_else(|| required("new_model_path"))?;
        swap.target_model_id = target_model_id.ok_or_else(|| required("target_model_id"))?;
        Ok(swap)
    }
}

fn unknown(path: Path<'_>) -> ApiError {
    ApiError::validation(path, "is not a known field")
}

fn required(field: &'static str) -> ApiError {
    ApiError::validation(field, "is required")
}

fn file_path(value: Value<'_, '_>, path: Path<'_>) -> Result<String, ApiError> {
    let text = value.str(path)?;
    if text.is_empty() || text.len() > PATH_BYTES_MAX || text.contains('\0') {
        return Err(ApiError::validation(path, format_args!("must be a path of 1..={PATH_BYTES_MAX} bytes")));
    }
    Ok(text.to_owned())
}

fn model_name(value: Value<'_, '_>, path: Path<'_>) -> Result<String, ApiError> {
    let text = value.str(path)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(plain) {
        let message = format_args!("must have 1..={NAME_BYTES_MAX} letters, digits and `-_.:/`");
        return Err(ApiError::validation(path, message));
    }
    // The path of a model of that name is another endpoint's.
    if matches!(text, "load" | "swap") {
        return Err(ApiError::validation(path, "can't be `load` or `swap`, whose paths are endpoints"));
    }
    Ok(text.to_owned())
}

fn hash(value: Value<'_, '_>, path: Path<'_>) -> Result<[u8; 32], ApiError> {
    parse_sha256(value.str(path)?).ok_or_else(|| ApiError::validation(path, "must have 64 hexadecimal digits"))
}

fn seconds(value: Value<'_, '_>, path: Path<'_>, min: i64, max: i64) -> Result<Duration, ApiError> {
    Ok(Duration::from_secs(value.integer(path, min, max)?.unsigned_abs()))
}

fn device(value: Value<'_, '_>, path: Path<'_>) -> Result<DevicePreference, ApiError> {
    match value.kind() {
        Kind::String("auto") => Ok(DevicePreference::Auto),
        Kind::String("cpu") => Ok(DevicePreference::Cpu),
        Kind::String("gpu") => Ok(DevicePreference::Gpu),
        _ => Err(ApiError::validation(path, "must be one of auto, cpu, gpu")),
    }
}

fn quantization(value: Value<'_, '_>, path: Path<'_>) -> Result<QuantizationPreference, ApiError> {
    match value.kind() {
        Kind::String("auto") => Ok(QuantizationPreference::Auto),
        Kind::String("i2s") => Ok(QuantizationPreference::I2s),
        Kind::String("tl1") => Ok(QuantizationPreference::Tl1),
        Kind::String("tl2") => Ok(QuantizationPreference::Tl2),
        _ => Err(ApiError::validation(path, "must be one of auto, i2s, tl1, tl2")),
    }
}

fn validation_config(object: &Object<'_, '_>, path: Path<'_>) -> Result<ValidationConfig, ApiError> {
    let mut config = ValidationConfig::default();
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        match key {
            "enable_cross_validation" => config.cross_validation = value.bool(path)?,
            "min_accuracy" => config.min_accuracy = value.number(path, 0.9, 1.0)?,
            "validation_samples" => config.samples = value.integer(path, 1, 4096)? as u32,
            "timeout_seconds" => config.timeout = seconds(value, path, 1, 3600)?,
            _ => return Err(unknown(path)),
        }
    }
    Ok(config)
}

fn cache_config(object: &Object<'_, '_>, path: Path<'_>) -> Result<Option<u64>, ApiError> {
    let mut cache_bytes_max = None;
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        match key {
            "enable_kv_cache" if value.bool(path)? => {}
            "enable_kv_cache" => return Err(ApiError::validation(path, "can't be false: decoding needs the cache")),
            "cache_size_mb" => cache_bytes_max = Some(value.integer(path, 1, 1 << 24)?.unsigned_abs() << 20),
            _ => return Err(unknown(path)),
        }
    }
    Ok(cache_bytes_max)
}

fn test_prompts(value: Value<'_, '_>, path: Path<'_>) -> Result<Vec<String>, ApiError> {
    let array = value.array(path)?;
    if array.len() > TEST_PROMPTS_MAX {
        let message = format_args!("has {} prompts, limit {TEST_PROMPTS_MAX}", array.len());
        return Err(ApiError::validation(path, message));
    }
    let check = |(index, item): (usize, Value<'_, '_>)| {
        let path = Path::Index(&path, index);
        let text = item.str(path)?;
        if text.is_empty() || text.chars().count() > TEST_PROMPT_CHARS_MAX {
            let message = format_args!("must have 1..={TEST_PROMPT_CHARS_MAX} characters");
            return Err(ApiError::validation(path, message));
        }
        Ok(text.to_owned())
    };
    items(&array).enumerate().map(check).collect()
}

fn canary(object: &Object<'_, '_>, path: Path<'_>) -> Result<Canary, ApiError> {
    let mut canary = Canary { share: 0.1, requests: 20, timeout: Duration::from_secs(60) };
    for (key, value) in object.fields() {
        let path = Path::Field(&path, key);
        match key {
            "share" => canary.share = value.number(path, 0.001, 0.5)?,
            "requests" => canary.requests = value.integer(path, 1, 100_000)? as u32,
            "timeout_seconds" => canary.timeout = seconds(value, path, 1, 3600)?,
            _ => return Err(unknown(path)),
        }
    }
    Ok(canary)
}

pub(super) const PATH_BYTES_MAX: usize = 4096;
pub(super) const NAME_BYTES_MAX: usize = 128;
pub(super) const TEST_PROMPTS_MAX: usize = 5;
pub(super) const TEST_PROMPT_CHARS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn swap(body: &str) -> Result<SwapRequest, ApiError> {
        SwapRequest::parse(&mut Reader::new(), &mut body.as_bytes().to_vec())
    }

    fn load(body: &str) -> Result<LoadRequest, ApiError> {
        LoadRequest::parse(&mut Reader::new(), &mut body.as_bytes().to_vec())
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let swap = swap(r#"{"new_model_path":"/m/a.gguf","target_model_id":"a"}"#).unwrap();
        assert_eq!((swap.strategy, swap.rollback_on_failure), (SwapStrategy::Atomic, true));
        assert_eq!((swap.validation_timeout, swap.canary), (Duration::from_secs(30), None));
        let load = load(r#"{"model_path":"a","validation_config":{"min_accuracy":0.95}}"#).unwrap();
        assert_eq!((load.validation.min_accuracy, load.validation.cross_validation), (0.95, false));
    }

    #[test]
    fn every_field_out_of_its_range_is_named() {
        let prompt = "a".repeat(257);
        let long_prompt = format!(r#"{{"health_check_config":{{"inference_test_prompts":["{prompt}"]}}}}"#);
        for (body, param) in [
            ("{}", "new_model_path"),
            (r#"{"new_model_path":"a"}"#, "target_model_id"),
            (r#"{"new_model_path":""}"#, "new_model_path"),
            (r#"{"new_model_path":"a\u0000b"}"#, "new_model_path"),
            (r#"{"target_model_id":"a b"}"#, "target_model_id"),
            (r#"{"swap_strategy":"green"}"#, "swap_strategy"),
            (r#"{"validation_timeout_seconds":9}"#, "validation_timeout_seconds"),
            (r#"{"validation_timeout_seconds":301}"#, "validation_timeout_seconds"),
            (r#"{"sha256":"00"}"#, "sha256"),
            (r#"{"health_check_config":{"accuracy_threshold":1.5}}"#, "health_check_config.accuracy_threshold"),
            (r#"{"health_check_config":{"more":1}}"#, "health_check_config.more"),
            (
                r#"{"health_check_config":{"inference_test_prompts":["a","a","a","a","a","a"]}}"#,
                "health_check_config.inference_test_prompts",
            ),
            (&long_prompt, "health_check_config.inference_test_prompts[0]"),
            (r#"{"canary":{"share":0}}"#, "canary.share"),
            (r#"{"canary":{"share":0.6}}"#, "canary.share"),
            (r#"{"force":true}"#, "force"),
        ] {
            let error = swap(body).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{body}");
        }
        for (body, param) in [
            ("{}", "model_path"),
            (r#"{"model_path":"a","validation_config":{"min_accuracy":0.8}}"#, "validation_config.min_accuracy"),
            (r#"{"model_path":"a","cache_config":{"enable_kv_cache":false}}"#, "cache_config.enable_kv_cache"),
            (r#"{"model_path":"a","quantization_format":"q4"}"#, "quantization_format"),
            (r#"{"model_path":"a","model_id":""}"#, "model_id"),
            (r#"{"model_path":"a","model_id":"load"}"#, "model_id"),
            (r#"{"model_path":"a","model_id":"swap"}"#, "model_id"),
        ] {
            let error = load(body).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{body}");
        }
    }
}
