//! `bitnetd-bench overload`: what a server still does when more is asked of it than it can do.
use std::ops::Range;
use std::process::ExitCode;

use super::load::Arrivals;
use super::report::{Report, Slo};
use super::target::{Target, TargetArgs};
use super::{Error, exit, positive};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Multiples of the capacity that are asked for in turn, as Poisson arrivals
    #[arg(long, value_delimiter = ',', default_value = "0.5,1,2,5,10", value_parser = positive)]
    factors: Vec<f64>,
    /// Seconds that requests arrive at each rate
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    seconds: f64,
    /// Requests a second that the server can answer [default: measured first, by so many clients that never pause]
    #[arg(long, value_parser = positive)]
    capacity: Option<f64>,
    /// Clients of that measurement
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    concurrency: u32,
    /// Requests of each of them
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Length of each prompt, about
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Most tokens of each answer
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Goodput counts requests whose first token came within this time
    #[arg(long, value_parser = positive)]
    slo_ttft_ms: Option<f64>,
    /// Goodput counts requests none of whose gaps between tokens was longer
    #[arg(long, value_parser = positive)]
    slo_itl_ms: Option<f64>,
}

/// The exit code is 1 if a request failed for another reason than 429 or 503.
pub(crate) fn run(args: &Args) -> ExitCode {
    exit("overload", measure(args))
}

fn measure(args: &Args) -> Result<bool, Error> {
    let target = args.target.reach()?;
    // Each rate has prompts of its own: what a cache knows of an earlier one would count as speed of a later.
    let mut asked = 0_u32;
    let capacity = match args.capacity {
        Some(capacity) => capacity,
        None => {
            let closed = Arrivals::Closed { streams: args.concurrency };
            let requests = args.concurrency.saturating_mul(args.rounds);
            let report = args.load(&target, closed, asked..asked.saturating_add(requests))?;
            asked = asked.saturating_add(requests);
            println!(
                "capacity {:.2} requests/s, {:.1} tokens/s, by {} clients",
                report.requests_per_second(),
                report.tokens_per_second(),
                args.concurrency
            );
            report.requests_per_second()
        }
    };
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "capacity",
        "asked/s",
        "good/s",
        "of peak",
        "refused",
        "TTFT p50",
        "TTFT p99",
        "ITL p50",
        "ITL p99",
        "refusal p99"
    );
    let (mut peak, mut is_well) = (0.0_f64, true);
    for factor in &args.factors {
        let per_second = factor * capacity;
        let requests = (per_second * args.seconds).ceil().clamp(1.0, f64::from(u32::MAX)) as u32;
        let report = args.load(&target, Arrivals::Open { per_second }, asked..asked.saturating_add(requests))?;
        asked = asked.saturating_add(requests);
        is_well &= !report.has_unexcused_failures();
        peak = peak.max(report.goodput());
        println!(
            "{factor:>7}x {per_second:>10.1} {:>10.2} {:>9.0}% {:>8} {:>10.1} {:>10.1} {:>10.2} {:>10.2} {:>10.2}",
            report.goodput(),
            100.0 * report.goodput() / peak.max(f64::MIN_POSITIVE),
            report.refused(),
            report.quantile_ms("ttft", 0.5),
            report.quantile_ms("ttft", 0.99),
            report.quantile_ms("itl", 0.5),
            report.quantile_ms("itl", 0.99),
            report.quantile_ms("refused", 0.99),
        );
        report.failures().for_each(|failure| println!("  {failure}"));
    }
    Ok(is_well)
}

impl Args {
    fn load(&self, target: &Target, arrivals: Arrivals, requests: Range<u32>) -> Result<Report, Error> {
        let template = target.template(self.prompt_tokens, self.max_tokens, false);
        let slo = Slo { ttft_ms: self.slo_ttft_ms, itl_ms: self.slo_itl_ms };
        let (first, count) = (requests.start, requests.end - requests.start);
        target.measure(arrivals, count, &|index| template.ask(first + index), Report::new(slo))
    }
}
