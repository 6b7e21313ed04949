//! `bitnetd-bench http`: what requests cost around the model, best seen with a tiny one.
use std::process::ExitCode;
use std::time::Duration;

use super::load::Arrivals;
use super::report::{Report, Slo};
use super::request::Ask;
use super::scrape::Scrape;
use super::target::{Target, TargetArgs};
use super::{Error, exit, positive};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    work: Work,
}

/// What is asked for in each load of the series.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Work {
    /// Seconds of each load, about
    #[arg(long, default_value_t = 3.0, value_parser = positive)]
    seconds: f64,
    /// Length of each prompt, about
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Tokens of each stream
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    stream_tokens: u32,
}

/// The exit code is 1 if a request failed.
pub(crate) fn run(args: &Args) -> ExitCode {
    exit("http", measure(args))
}

fn measure(args: &Args) -> Result<bool, Error> {
    let target = args.target.reach()?;
    println!("{}", head());
    let mut is_well = true;
    for case in &CASES {
        is_well &= args.work.show(&target, case)?;
    }
    Ok(is_well)
}

/// One load of the series.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) clients: u32,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Health,
    OneToken,
    Stream,
    /// Health, asked once in ten milliseconds beside so many streams.
    HealthBesideStreams,
}

const CASES: [Case; 10] = [
    Case { name: "GET /health", clients: 1, kind: Kind::Health },
    Case { name: "GET /health", clients: 16, kind: Kind::Health },
    Case { name: "GET /health", clients: 100, kind: Kind::Health },
    Case { name: "1 token, one body", clients: 1, kind: Kind::OneToken },
    Case { name: "1 token, one body", clients: 8, kind: Kind::OneToken },
    Case { name: "1 token, one body", clients: 32, kind: Kind::OneToken },
    Case { name: "streams", clients: 1, kind: Kind::Stream },
    Case { name: "streams", clients: 8, kind: Kind::Stream },
    Case { name: "streams", clients: 32, kind: Kind::Stream },
    Case { name: "/health beside streams", clients: 32, kind: Kind::HealthBesideStreams },
];

/// Over the lines of [`Work::show`]: times in milliseconds, those that the server takes itself in microseconds.
pub(super) fn head() -> String {
    format!(
        "{:<24}{:>5}{:>11}{:>11}{:>9}{:>9}{:>9}{:>10}{:>9}{:>9}{:>16}{:>16}{:>10}",
        "ms; server's own in us",
        "at",
        "requests/s",
        "tokens/s",
        "p50",
        "p99",
        "p99.9",
        "TTFT p50",
        "ITL p50",
        "ITL p99",
        "to step 50/99%",
        "to socket 50/99%",
        "cpu/req."
    )
}

impl Work {
    /// Runs one load and prints its line; whether all requests ended well.
    pub(super) fn show(&self, target: &Target, case: &Case) -> Result<bool, Error> {
        let before = Scrape::of(target)?;
        let (report, requests) = self.load(target, case)?;
        let after = Scrape::of(target)?;
        let own = |metric| {
            let buckets = after.since(&before, metric)?;
            let us = |quantile| format!("{:.0}", buckets.quantile(quantile) * 1e6);
            let none = buckets.count() == 0.0;
            Ok::<_, Error>(if none { String::new() } else { format!("<={}/{}", us(0.5), us(0.99)) })
        };
        let cpu_s = after.get("bitnet_cpu_seconds_total")? - before.get("bitnet_cpu_seconds_total")?;
        println!(
            "{:<24}{:>5}{:>11.0}{:>11.0}{:>9.3}{:>9.3}{:>9.3}{:>10.3}{:>9.3}{:>9.3}{:>16}{:>16}{:>10.1}",
            case.name,
            case.clients,
            report.requests_per_second(),
            report.tokens_per_second(),
            report.quantile_ms("end_to_end", 0.5),
            report.quantile_ms("end_to_end", 0.99),
            report.quantile_ms("end_to_end", 0.999),
            report.quantile_ms("ttft", 0.5),
            report.quantile_ms("itl", 0.5),
            report.quantile_ms("itl", 0.99),
            own("bitnet_request_first_step_seconds")?,
            own("bitnet_token_write_seconds")?,
            cpu_s * 1e6 / requests as f64,
        );
        report.failures().for_each(|failure| println!("  {failure}"));
        Ok(report.failed() == 0)
    }

    /// The report, and all requests that the server had for it.
    fn load(&self, target: &Target, case: &Case) -> Result<(Report, u64), Error> {
        let closed = Arrivals::Closed { streams: case.clients };
        let one = target.template(self.prompt_tokens, 1, true);
        let stream = target.template(self.prompt_tokens, self.stream_tokens, false);
        let ask = |index| match case.kind {
            Kind::Health => Ask::get(target.url(), "/health", target.api_key()),
            Kind::OneToken => one.ask(index),
            Kind::Stream | Kind::HealthBesideStreams => stream.ask(index),
        };
        // A short run says how many requests fill the time.
        let trial_requests = case.clients * TRIAL_ROUNDS;
        let trial = target.measure(closed.clone(), trial_requests, &ask, Report::new(Slo::default()))?;
        let requests = (trial.requests_per_second() * self.seconds).clamp(f64::from(case.clients), 1e7) as u32;
        let report = match case.kind {
            Kind::HealthBesideStreams => self.health_beside(target, case.clients, requests)?,
            _ => target.measure(closed, requests, &ask, Report::new(Slo::default()))?,
        };
        Ok((report, u64::from(trial_requests + requests)))
    }

    /// Streams arrive as fast as they can be answered, and health every ten milliseconds; only the latter is reported.
    fn health_beside(&self, target: &Target, clients: u32, streams: u32) -> Result<Report, Error> {
        let stream = target.template(self.prompt_tokens, self.stream_tokens, false);
        let checks = (self.seconds / HEALTH_EVERY.as_secs_f64()) as u32;
        // As many rounds of streams as fit the time, each begun by all clients at once.
        let rounds = (streams / clients).max(1);
        let mut arrivals: Vec<(Duration, bool)> = (0..checks).map(|i| (HEALTH_EVERY * i, true)).collect();
        for round in 0..rounds {
            let at = Duration::from_secs_f64(self.seconds * f64::from(round) / f64::from(rounds));
            arrivals.extend((0..clients).map(|_| (at, false)));
        }
        arrivals.sort();
        let ask = |index: u32| match arrivals[index as usize].1 {
            true => Ask::get(target.url(), "/health", target.api_key()),
            false => stream.ask(index),
        };
        let times = arrivals.iter().map(|arrival| arrival.0).collect();
        let mut report = Report::new(Slo::default());
        let elapsed = target.run(Arrivals::Listed(times), arrivals.len() as u32, &ask, &mut |settled| {
            if arrivals[settled.index as usize].1 {
                report.add(&settled);
            }
        })?;
        report.set_elapsed(elapsed);
        Ok(report)
    }
}

const TRIAL_ROUNDS: u32 = 20;
const HEALTH_EVERY: Duration = Duration::from_millis(10);
