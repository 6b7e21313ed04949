//! Cross-validation of a model that a request loads, before anything is served from it.

use std::time::Instant;

use kernels::attention::KvType;
use net::api::{LoadRequest, ValidationResult};
use net::error::{ApiError, Code};

use super::{Loaded, ms};
use crate::crossval::{self, Reference};
use crate::model::Source;

/// The packed model against the pass in f64 over its own file.
pub(super) fn cross_validation(
    source: &Source,
    loaded: &Loaded,
    request: &LoadRequest,
    load_started: Instant,
) -> Result<ValidationResult, ApiError> {
    let (started, config) = (Instant::now(), &request.validation);
    let options = crossval::Options {
        min_accuracy: f64::from(config.min_accuracy),
        samples: crossval::SAMPLES_MAX,
        positions_max: Some(config.samples as usize),
        text: None,
        threads: 1,
        // The file is what is compared.
        kv_type: KvType::F16,
        deadline: load_started.checked_add(config.timeout),
    };
    let refused = |status, message| ApiError::new(status, Code::CrossValidationFailed, message);
    let report = crossval::cross_validate(source, &loaded.replicas[0], &Reference::Own, &options, &|_, _| {});
    let report = report.map_err(|error| {
        let slow = matches!(error, crossval::Error::Timeout | crossval::Error::TooSlow(_));
        let status = if slow { 408 } else { 400 };
        refused(status, format!("the model can't be cross-validated: {error}"))
    })?;
    report.verdict().map_err(|rejection| refused(400, format!("the model fails cross-validation: {rejection}")))?;
    let (scores, tensors) = (&report.scores, &report.tensors);
    Ok(ValidationResult {
        passed: true,
        duration_ms: ms(started.elapsed()),
        message: format!(
            "accuracy {:.4} over {} positions, {}, {} of {} tensors bit-equal",
            scores.accuracy,
            scores.positions,
            scores.choices.as_ref().map_or_else(
                || format!("least cosine {:.6}", scores.cosine_min),
                |c| format!("KL {:.2e}, perplexity {:+.2} %", c.kl_mean, c.perplexity_difference * 100.0)
            ),
            tensors.exact,
            tensors.checked
        ),
    })
}
