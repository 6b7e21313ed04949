//! `bitnetd-bench cancel`: what a server still computes for clients that have left, and what it keeps of them.
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::connection::Outcome;
use super::load::Arrivals;
use super::request::{Ask, Endpoint};
use super::schedule::Random;
use super::scrape::Scrape;
use super::target::{Target, TargetArgs};
use super::{Error, client, exit, positive, request};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Asks endpoint inference, whatever is said: there each token is an event
    #[command(flatten)]
    target: TargetArgs,
    /// Clients that leave
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    requests: u32,
    /// Streams at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// Length of each prompt, about
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Tokens that nobody would stay for
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=2048))]
    max_tokens: u32,
    /// Each leaves at a moment drawn from so many milliseconds after its first token
    #[arg(long, default_value_t = 200.0, value_parser = positive)]
    within_ms: f64,
    /// Process of the server, whose open descriptors are counted [default: none are]
    #[arg(long)]
    pid: Option<u32>,
}

/// The exit code is 1 if a request failed, or if anything is left of those that are gone.
pub(crate) fn run(args: &Args) -> ExitCode {
    exit("cancel", measure(args))
}

/// What a server has in hand.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    sequences: f64,
    requests: f64,
    kv_ratio: f64,
    descriptors: Option<usize>,
}

fn measure(args: &Args) -> Result<bool, Error> {
    let target = args.target.on(Endpoint::Inference).reach()?;
    let (before, held_before) = look(&target, args.pid)?;
    let template = target.template(args.prompt_tokens, args.max_tokens, false);
    let ask = |index: u32| {
        let share = Random::new(target.seed(), u64::from(index) << 1 | 1).unit();
        let hang_up_after = Some(Duration::from_secs_f64(args.within_ms / 1e3 * share));
        Ask { hang_up_after, ..template.ask(index) }
    };
    let (mut left, mut finished, mut received, mut failures) = (Vec::new(), 0, 0, Vec::new());
    target.run(Arrivals::Closed { streams: args.concurrency }, args.requests, &ask, &mut |settled| match settled
        .outcome
    {
        Outcome::HungUp { tokens, request_id } => {
            received += tokens;
            left.push((tokens, request_id));
        }
        Outcome::Finished(done) => {
            received += done.tokens;
            finished += 1;
        }
        Outcome::Failed(failed) => failures.push(failed.message),
    })?;
    if let Some(first) = failures.first() {
        return Err(Error::Failed(failures.len() as u64, first.clone()));
    }
    let (after, held_after) = settle(&target, args.pid, &held_before)?;
    let surplus = surplus(&target, &left)?;
    let counted = |name: &str| Ok::<_, Error>(after.get(name)? - before.get(name)?);
    let sampled = counted("bitnet_sampled_tokens_total")?;
    let at_cancel: u64 = surplus.iter().map(|(tokens, count)| tokens * count).sum();
    let (mean, most) = ((sampled - received as f64) / left.len().max(1) as f64, surplus.keys().last().unwrap_or(&0));
    println!("{} clients left in mid stream, {finished} answers ended before; {received} tokens received", left.len());
    println!("computed and not received: {:.0} tokens, {mean:.2} for each that left", sampled - received as f64);
    println!(
        "  {at_cancel} of them until the server knew (at most {most} for one request), the others in the step then running"
    );
    let spread: Vec<String> = surplus.iter().map(|(tokens, count)| format!("{tokens}: {count}")).collect();
    println!("  requests by tokens until the server knew: {}", spread.join(", "));
    println!("held before {held_before}");
    println!("held after  {held_after}");
    Ok(held_after.is_no_more_than(&held_before))
}

/// Looks at the server.
fn look(target: &Target, pid: Option<u32>) -> Result<(Scrape, Held), Error> {
    let scrape = Scrape::of(target)?;
    let held = Held {
        sequences: scrape.get("bitnet_requests_running")? + scrape.get("bitnet_requests_waiting")?,
        requests: scrape.get("bitnet_active_inference_requests")?,
        kv_ratio: scrape.get("bitnet_kv_cache_usage_ratio")?,
        descriptors: pid.and_then(|pid| Some(std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())),
    };
    Ok((scrape, held))
}

/// Looks until nothing more is held than before, or for [`SETTLE_MAX`].
fn settle(target: &Target, pid: Option<u32>, before: &Held) -> Result<(Scrape, Held), Error> {
    let until = Instant::now() + SETTLE_MAX;
    loop {
        let (scrape, held) = look(target, pid)?;
        if held.is_no_more_than(before) || Instant::now() >= until {
            return Ok((scrape, held));
        }
        thread::park_timeout(LOOK_EVERY);
    }
}

/// How many requests were given how many tokens beyond those that their client has received, by the server's receipts.
fn surplus(target: &Target, left: &[(u64, Option<String>)]) -> Result<BTreeMap<u64, u64>, Error> {
    let mut counts = BTreeMap::new();
    for (received, id) in left {
        let id = id.as_deref().unwrap_or_default();
        let question = request::get(target.url(), &format!("/v1/receipts/{id}"), target.api_key());
        let (status, body) = client::exchange(&target.place, &question)
            .map_err(|source| Error::Unreachable { host: target.url().authority.clone(), source })?;
        let receipt: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some(tokens) = receipt["completion_tokens"].as_u64().filter(|_| status == 200) else {
            return Err(Error::NoReceipt(id.to_owned()));
        };
        *counts.entry(tokens.saturating_sub(*received)).or_insert(0) += 1;
    }
    Ok(counts)
}

impl Held {
    fn is_no_more_than(&self, before: &Self) -> bool {
        self.sequences <= before.sequences
            && self.requests <= before.requests
            && self.kv_ratio <= before.kv_ratio
            && self.descriptors <= before.descriptors
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sequences, requests, kv_ratio, .. } = self;
        write!(f, "{requests} requests, {sequences} sequences, {:.3} % of the KV blocks", kv_ratio * 100.0)?;
        self.descriptors.map_or(Ok(()), |descriptors| write!(f, ", {descriptors} descriptors"))
    }
}

/// How long what is left of a request may take to go.
const SETTLE_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);
