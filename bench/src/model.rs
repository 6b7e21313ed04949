//! `bitnetd-bench model`: prompt and decode speed of a model beside what the machine can do just before and just after.

pub(crate) mod session;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use kernels::attention::KvType;
use runtime::forward::{Findings, HeadCounts, Phase};
use runtime::model::HeadScreen;
use runtime::tuned::Tuned;

use crate::limits::{Gauge, Limits};
use session::Session;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model file [default: the model inside the binary]
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// Worker counts to measure [default: one, and one per core]
    #[arg(short, long, value_delimiter = ',')]
    workers: Vec<usize>,
    /// Prompt lengths (pp tests)
    #[arg(short, long, value_delimiter = ',', default_value = "512")]
    prompt: Vec<usize>,
    /// Tokens to decode (tg tests)
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "128")]
    decode: Vec<usize>,
    /// Sequences that decode together (tg tests)
    #[arg(short, long, value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Positions before those that tg tests decode
    #[arg(short, long, value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// How the KV cache keeps keys and values: f16 or int8
    #[arg(long, default_value = "f16")]
    kv_cache_type: KvType,
    /// Times that each test runs
    #[arg(short, long, default_value_t = 3)]
    repetitions: usize,
    /// Draw the tokens of tg tests at this temperature [default: take the best]
    #[arg(long)]
    temperature: Option<f32>,
    /// Print under each test what the phases of a step took
    #[arg(long)]
    phases: bool,
    /// Give the output head no screen: every decoded row gets all its logits
    #[arg(long)]
    full_head: bool,
    /// Instruction set of the kernels: portable, avx2, avx-vnni, avx512, avx512-vnni, amx-int8, neon-dotprod or neon-i8mm
    /// [default: the best there is]
    #[arg(long)]
    isa: Option<kernels::Isa>,
    /// Only check that chunks, workers and instruction sets give the same bits; no timing
    #[arg(long)]
    check: bool,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match measure(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bitnetd-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn measure(args: &Args) -> Result<(), Failure> {
    let isa = args.isa.unwrap_or_else(kernels::Isa::detect);
    let cache = (args.isa.is_none() && !args.check).then(runtime::config::default_tuning_cache);
    let tuned = Tuned::read_or_say(cache.as_deref(), |line| eprintln!("{line}"));
    let cores = session::cores()?;
    let mut workers = if args.workers.is_empty() { vec![1, cores] } else { args.workers.clone() };
    workers.dedup();
    let batch_max = args.batch.iter().copied().max().unwrap_or(1);
    let screen = if args.full_head { HeadScreen::Off } else { HeadScreen::WhereItPays };
    let mut session = Session::load(args.model.as_deref(), (isa, tuned), batch_max, (screen, args.kv_cache_type))?;
    session.check(&workers)?;
    if args.check {
        println!("check passed: {} {}", session.describe(), isa.name());
        return Ok(());
    }
    if args.temperature.is_some_and(|temperature| !(temperature.is_normal() && temperature > 0.0)) {
        return Err("a temperature is above 0".into());
    }
    let gauge = Gauge::new(isa);
    let mut results = Vec::new();
    for &count in &workers {
        session.use_workers(count)?;
        for &tokens in &args.prompt {
            let runs = repeat(args.repetitions, (&mut session, &gauge), |session| session.prompt(tokens))?;
            let test = Test { name: format!("pp{tokens}"), workers: count, batch: 1, positions: 0, head: None };
            results.push(result(&mut session, test, &runs));
        }
        for &batch in &args.batch {
            for &depth in &args.depth {
                session.fill(batch, depth)?;
                for &tokens in &args.decode {
                    let mut head = HeadCounts::default();
                    let test = (batch, tokens, depth);
                    let runs = repeat(args.repetitions, (&mut session, &gauge), |session| {
                        session.decode(test, args.temperature, &mut head)
                    })?;
                    let positions = depth + tokens / 2;
                    let test = Test { name: name(test), workers: count, batch, positions, head: Some(head) };
                    results.push(result(&mut session, test, &runs));
                }
            }
        }
    }
    print(args, &session, isa, &workers, &results);
    Ok(())
}

/// As llama-bench names them.
fn name((batch, tokens, depth): (usize, usize, usize)) -> String {
    let together = if batch == 1 { String::new() } else { format!("x{batch}") };
    let behind = if depth == 0 { String::new() } else { format!("@d{depth}") };
    format!("tg{tokens}{together}{behind}")
}

/// A repetition: its tokens per second, and the mean of the limits before and after it.
struct Run {
    speed: f64,
    limits: Limits,
}

fn repeat(
    repetitions: usize,
    (session, gauge): (&mut Session, &Gauge),
    mut run: impl FnMut(&mut Session) -> Result<usize, Failure>,
) -> Result<Vec<Run>, Failure> {
    let mut runs = Vec::with_capacity(repetitions);
    let mut before = gauge.limits(session.team());
    for _ in 0..repetitions.max(1) {
        let started = Instant::now();
        let tokens = run(session)?;
        let seconds = started.elapsed().as_secs_f64();
        let after = gauge.limits(session.team());
        #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
        runs.push(Run { speed: tokens as f64 / seconds, limits: before.mean(&after) });
        before = after;
    }
    Ok(runs)
}

struct Test {
    name: String,
    workers: usize,
    batch: usize,
    /// Cached positions that a step of each sequence reads, on average.
    positions: usize,
    /// How decoded rows went through the head.
    head: Option<HeadCounts>,
}

struct Outcome {
    test: Test,
    /// Tokens per second of each repetition, ascending.
    speeds: Vec<f64>,
    limits: Vec<Limits>,
    /// Shares of the limit that binds this test, of each repetition, ascending.
    of_limit: Vec<f64>,
    /// Milliseconds of single steps that decode: p50 and p99.
    step_ms: Option<(f64, f64)>,
    findings: Findings,
}

impl Outcome {
    fn share(&self) -> Option<f64> {
        self.of_limit.get(self.of_limit.len() / 2).copied()
    }
}

fn result(session: &mut Session, test: Test, runs: &[Run]) -> Outcome {
    let bytes = session.bytes_per_step(test.batch, test.head.unwrap_or_default())
        + session.kv_bytes_per_step(test.batch, test.positions);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let (operations, batch) = (session.int8_operations_per_token() as f64, test.batch as f64);
    let limit = |limits: &Limits| {
        let by_memory = limits.read_bytes_per_s / bytes * batch;
        let by_int8 = limits.int8_operations_per_s.map(|peak| peak / operations);
        match (test.head.is_none(), by_int8) {
            (true, peak) => peak,
            (false, Some(peak)) => Some(peak.min(by_memory)),
            (false, None) => Some(by_memory),
        }
    };
    let ascending = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let of_limit = runs.iter().filter_map(|run| Some(run.speed / limit(&run.limits)?)).collect();
    let steps = session.take_steps();
    let step_ms = |quantile: usize| 1e3 * steps[(steps.len() * quantile / 100).min(steps.len() - 1)];
    let step_ms = (!steps.is_empty()).then(|| (step_ms(50), step_ms(99)));
    Outcome {
        speeds: ascending(runs.iter().map(|run| run.speed).collect()),
        limits: runs.iter().map(|run| run.limits).collect(),
        of_limit: ascending(of_limit),
        test,
        step_ms,
        findings: session.findings(),
    }
}

/// All that were measured with so many workers, ascending.
fn limits_of(results: &[Outcome], workers: usize, value: fn(&Limits) -> Option<f64>) -> Vec<f64> {
    let outcomes = results.iter().filter(|outcome| outcome.test.workers == workers);
    let mut values: Vec<f64> = outcomes.flat_map(|outcome| &outcome.limits).filter_map(value).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn print(args: &Args, session: &Session, isa: kernels::Isa, workers: &[usize], results: &[Outcome]) {
    if args.json {
        println!("{}", to_json(session, isa, workers, results));
        return;
    }
    println!("{}, {}, commit {}", tuning::host::cpu_model(), isa.name(), env!("BITNETD_COMMIT"));
    println!("{}", session.describe());
    for &count in workers {
        let read = limits_of(results, count, |limits| Some(limits.read_bytes_per_s));
        let int8 = limits_of(results, count, |limits| limits.int8_operations_per_s);
        let (Some(least), Some(most)) = (read.first(), read.last()) else { continue };
        let int8 = match (int8.first(), int8.last()) {
            (Some(least), Some(most)) => format!("int8 {:.0} to {:.0} GOPS", least / 1e9, most / 1e9),
            _ => "no int8 limit".into(),
        };
        println!("limits with {count} workers: read {:.1} to {:.1} GB/s, {int8}", least / 1e9, most / 1e9);
    }
    println!(
        "{:<12} {:>7} {:>12} {:>10} {:>10} {:>9} {:>23}  head",
        "test", "workers", "tok/s", "min", "max", "of limit", "ms of a step, p50 / p99"
    );
    for outcome in results {
        let speeds = &outcome.speeds;
        println!(
            "{:<12} {:>7} {:>12.2} {:>10.2} {:>10.2} {:>9} {:>23}  {}",
            outcome.test.name,
            outcome.test.workers,
            speeds[speeds.len() / 2],
            speeds[0],
            speeds[speeds.len() - 1],
            outcome.share().map_or("-".into(), |share| format!("{:.1} %", share * 100.0)),
            outcome.step_ms.map_or("-".into(), |(p50, p99)| format!("{p50:.3} / {p99:.3}")),
            outcome.test.head.map_or_else(String::new, describe_head),
        );
        if let Some((gated, down)) = outcome.findings.live_shares() {
            println!(
                "  not zero: {:.1} % of what the gates let through, {:.1} % of down's inputs",
                gated * 100.0,
                down * 100.0
            );
        }
        if args.phases {
            println!("  {}", describe_phases(&outcome.findings));
        }
    }
}

/// Milliseconds of a step in each phase that takes at least a hundredth of it.
fn describe_phases(findings: &Findings) -> String {
    let all: f64 = Phase::ALL.iter().map(|&phase| findings.seconds(phase)).sum();
    let shown = Phase::ALL.iter().filter(|&&phase| findings.seconds(phase) >= all / 100.0);
    let shown = shown.map(|&phase| format!("{phase:?} {:.2}", findings.seconds(phase) * 1e3)).collect::<Vec<_>>();
    format!("ms of a step: {} in all, {}", format_args!("{:.2}", all * 1e3), shown.join(", "))
}

/// Which way the rows went, and how many logits a screened one needed.
fn describe_head(HeadCounts { full, screened, undecided, exact }: HeadCounts) -> String {
    if screened + undecided == 0 {
        return "full".into();
    }
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let each = exact as f64 / screened.max(1) as f64;
    format!("screened {screened} with {each:.1} exact, undecided {undecided}, full {full}")
}

fn to_json(session: &Session, isa: kernels::Isa, workers: &[usize], results: &[Outcome]) -> Value {
    let by_workers = |value: fn(&Limits) -> Option<f64>| -> Value {
        let median = |values: Vec<f64>| values.get(values.len() / 2).copied();
        let pairs = workers.iter().map(|&count| (count.to_string(), json!(median(limits_of(results, count, value)))));
        Value::Object(pairs.collect())
    };
    let results: Vec<Value> = results
        .iter()
        .map(|outcome| {
            let speeds = &outcome.speeds;
            let (median, min, max) = (speeds[speeds.len() / 2], speeds[0], speeds[speeds.len() - 1]);
            json!({
                "test": outcome.test.name, "workers": outcome.test.workers, "n": speeds.len(),
                "tok_s": {"median": median, "min": min, "max": max}, "of_limit": outcome.share(),
                "head": outcome.test.head.map(describe_head),
                "decode_step_ms": outcome.step_ms.map(|(p50, p99)| json!({"p50": p50, "p99": p99})),
                "live_shares": outcome.findings.live_shares().map(|(gated, down)| json!({"gated": gated, "down": down})),
                "step_ms": Phase::ALL.iter().map(|&phase| (format!("{phase:?}"), json!(outcome.findings.seconds(phase) * 1e3)))
                    .collect::<serde_json::Map<_, _>>(),
            })
        })
        .collect();
    json!({
        "machine": tuning::host::cpu_model(), "isa": isa.name(), "commit": env!("BITNETD_COMMIT"),
        "model": session.describe(),
        "limits": {
            "read_gb_s": by_workers(|limits| Some(limits.read_bytes_per_s / 1e9)),
            "int8_gops": by_workers(|limits| limits.int8_operations_per_s.map(|o| o / 1e9)),
        },
        "results": results,
    })
}
