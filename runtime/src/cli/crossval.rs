//! `bitnetd crossval`: compares a model with a reference and says whether it may be served.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kernels::attention::KvType;

use super::{load_model, progress_bar};
use crate::crossval::{self, Options, Recorded, Reference, Report, SAMPLES_MAX, cross_validate};
use crate::model::{HeadScreen, LoadOptions, Source};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Model file [default: the model inside the binary]
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// Another model (.gguf), recorded logits (.npz), `f64` for our own slow forward pass over the model's file, or `f16`
    /// for the model itself with an F16 KV cache
    #[arg(long, default_value = "f64")]
    reference: String,
    /// Text of paragraphs with empty lines between them [default: built in]
    #[arg(long)]
    text: Option<PathBuf>,
    /// How the model keeps keys and values: f16 or int8; a reference keeps them as f16
    #[arg(long, default_value = "f16")]
    kv_cache_type: KvType,
    /// Least share of positions at which both choose the same token
    #[arg(long, default_value_t = crossval::MIN_ACCURACY_DEFAULT)]
    min_accuracy: f64,
    /// Texts to compare, at most
    #[arg(long, default_value_t = crossval::SAMPLES_DEFAULT)]
    samples: usize,
    /// Seconds after which to give up
    #[arg(long)]
    timeout: Option<u64>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with arguments and files. A model that fails has exit code 1.
pub(super) fn run(args: &Args) -> Result<ExitCode, Box<dyn std::error::Error>> {
    if !(0.0..=1.0).contains(&args.min_accuracy) || !(1..=SAMPLES_MAX).contains(&args.samples) {
        return Err(format!("min-accuracy is 0 to 1, samples are 1 to {SAMPLES_MAX}").into());
    }
    let text = args.text.as_ref().map(|path| read_text(path)).transpose()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let load = LoadOptions { threads, node: None, context_max: CONTEXT_MAX, head_screen: HeadScreen::Off };
    let source = args.model.as_ref().map_or_else(|| Ok(Source::embedded()), |path| Source::open(path))?;
    let model = load_model(None, args.model.as_deref(), load)?;
    let options = Options {
        min_accuracy: args.min_accuracy,
        samples: args.samples,
        positions_max: None,
        text: text.as_deref(),
        threads,
        kv_type: args.kv_cache_type,
        deadline: args.timeout.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds))),
    };
    let bar = progress_bar("comparing");
    let path = Path::new(&args.reference);
    let report = if args.reference == "f64" {
        cross_validate(&source, &model, &Reference::Own, &options, &bar)?
    } else if args.reference == "f16" {
        cross_validate(&source, &model, &Reference::Model { source: &source, model: &model }, &options, &bar)?
    } else if path.extension().is_some_and(|extension| extension == "npz") {
        let recorded = Recorded::open(path).map_err(|error| format!("{}: {}", path.display(), super::chain(&error)))?;
        cross_validate(&source, &model, &Reference::Recorded(&recorded), &options, &bar)?
    } else {
        let other = load_model(None, Some(path), load)?;
        let reference = Reference::Model { source: &Source::open(path)?, model: &other };
        cross_validate(&source, &model, &reference, &options, &bar)?
    };
    let verdict = report.verdict();
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["passed"] = verdict.is_ok().into();
        if let Err(rejection) = &verdict {
            value["error"] = serde_json::json!({ "code": FAILED, "message": rejection.to_string() });
        }
        println!("{value:#}");
    } else {
        print!("{}", render(&report));
    }
    Ok(match verdict {
        Ok(()) => ExitCode::SUCCESS,
        Err(rejection) => {
            eprintln!("bitnetd: {FAILED}: {rejection}");
            ExitCode::FAILURE
        }
    })
}

fn read_text(path: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = std::fs::metadata(path).map_err(|error| fail(&error))?.len();
    if bytes > TEXT_BYTES_MAX {
        return Err(fail(&format!("{bytes} bytes of text, at most {TEXT_BYTES_MAX} are read")).into());
    }
    Ok(std::fs::read_to_string(path).map_err(|error| fail(&error))?)
}

fn render(report: &Report) -> String {
    let (mut out, scores) = (String::new(), &report.scores);
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("compared", format!("{} positions of {} texts with {}", scores.positions, report.samples, report.reference));
    line("accuracy", format!("{:.4}, at least {}", scores.accuracy, report.min_accuracy));
    line("cosine", format!("mean {:.6}, least {:.6}", scores.cosine_mean, scores.cosine_min));
    if let Some(choices) = &scores.choices {
        line("top-1", format!("{:.4} without near ties", choices.top1_agreement));
        line("KL", format!("mean {:.3e}, greatest {:.3e} nats", choices.kl_mean, choices.kl_max));
        let (ours, theirs) = (choices.perplexity, choices.perplexity_reference);
        let difference = choices.perplexity_difference * 100.0;
        line("perplexity", format!("{ours:.4}, reference {theirs:.4} ({difference:+.3} %)"));
    }
    line("tensors", format!("{} of {} bit-equal", report.tensors.exact, report.tensors.checked));
    for tensor in &report.tensors.worst {
        line("", tensor.to_string());
    }
    for position in &report.worst_positions {
        line("", position.to_string());
    }
    out
}

const FAILED: &str = "CROSS_VALIDATION_FAILED";
/// The texts are short.
const CONTEXT_MAX: usize = 4096;
const TEXT_BYTES_MAX: u64 = 16 << 20;
