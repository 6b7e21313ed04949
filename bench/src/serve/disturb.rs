//! `bitnetd-bench disturb`: what running streams feel while long prompts arrive.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::connection::{Outcome, Settled};
use super::load::Arrivals;
use super::plot::Series;
use super::report::Finished;
use super::target::{Target, TargetArgs};
use super::{Error, exit, plot, positive, write};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Streams that run all the time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    streams: u32,
    /// Length of their prompts, about
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Tokens of their answers: enough to outlast the prompts that arrive
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Prompts that arrive, one after the other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    intruders: u32,
    /// Length of these, about
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    intruder_tokens: u32,
    /// Tokens of their answers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    intruder_max_tokens: u32,
    /// Seconds until the first of them arrives
    #[arg(long, default_value_t = 5.0, value_parser = positive)]
    after_s: f64,
    /// Seconds from one to the next
    #[arg(long, default_value_t = 5.0, value_parser = positive)]
    every_s: f64,
    /// Draw every gap between tokens over time here, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// The exit code is 1 if a request failed.
pub(crate) fn run(args: &Args) -> ExitCode {
    exit("disturb", measure(args).map(|()| true))
}

fn measure(args: &Args) -> Result<(), Error> {
    let target = args.target.reach()?;
    let (streams, intruders) = args.requests(&target)?;
    let phases = Phases::of(&streams, &intruders);
    println!("{:<28}{:>9}{:>12}{:>12}{:>12}{:>12}", "ms from token to token", "n", "p50", "p90", "p99", "max");
    let rows = [("before", &phases.before), ("while a prompt is computed", &phases.during), ("after", &phases.after)];
    for (name, gaps) in rows {
        let ms: Vec<f64> = [0.5, 0.9, 0.99, 1.0].map(|q| quantile(gaps, q) * 1e3).to_vec();
        println!("{name:<28}{:>9}{:>12.2}{:>12.2}{:>12.2}{:>12.2}", gaps.len(), ms[0], ms[1], ms[2], ms[3]);
    }
    let (before, during) = (quantile(&phases.before, 0.99), quantile(&phases.during, 0.99));
    println!(
        "p99 / p50: {:.2} before, {:.2} while a prompt is computed; p99 while / before: {:.2}",
        before / quantile(&phases.before, 0.5),
        during / quantile(&phases.during, 0.5),
        during / before
    );
    let tokens: Vec<String> = intruders.iter().filter_map(|i| i.prompt_tokens).map(|n| n.to_string()).collect();
    let ttft: Vec<String> = intruders.iter().map(|i| format!("{:.3} s", i.first - i.arrival)).collect();
    println!("prompts of {} tokens: first token after {}", tokens.join(", "), ttft.join(", "));
    if let Some(path) = &args.plot {
        let title = format!("{} streams while prompts of {} tokens arrive", args.streams, args.intruder_tokens);
        let points = streams.iter().flat_map(Timed::gaps).map(|(end, gap)| (end, gap * 1e3)).collect();
        let bands = intruders.iter().map(|i| (i.arrival, i.first)).collect();
        write(
            path,
            &plot::times(&title, vec![Series { name: "token to token".to_owned(), points, dots: true }], bands),
        )?;
    }
    Ok(())
}

impl Args {
    /// Streams and intruders, as their clients saw them.
    fn requests(&self, target: &Target) -> Result<(Vec<Timed>, Vec<Timed>), Error> {
        let streams = target.template(self.prompt_tokens, self.max_tokens, false);
        let intruders = target.template(self.intruder_tokens, self.intruder_max_tokens, false);
        let mut times = vec![Duration::ZERO; self.streams as usize];
        times.extend((0..self.intruders).map(|i| Duration::from_secs_f64(self.after_s + self.every_s * f64::from(i))));
        let ask = |index| if index < self.streams { streams.ask(index) } else { intruders.ask(index) };
        let mut settled = Vec::new();
        target.run(Arrivals::Listed(times), self.streams + self.intruders, &ask, &mut |one| settled.push(one))?;
        let began = settled.iter().map(|one| one.arrival).min().expect("there are streams");
        settled.sort_by_key(|one| one.index);
        let mut timed = settled.into_iter().map(|one| Timed::of(one, began)).collect::<Result<Vec<_>, _>>()?;
        let intruders = timed.split_off(self.streams as usize);
        Ok((timed, intruders))
    }
}

/// A finished request on one clock, in seconds since the first arrival.
struct Timed {
    arrival: f64,
    first: f64,
    gaps: Vec<Duration>,
    prompt_tokens: Option<u64>,
}

impl Timed {
    fn of(settled: Settled, began: Instant) -> Result<Self, Error> {
        let failed = |message: &str| Error::Failed(1, message.to_owned());
        match settled.outcome {
            Outcome::Finished(Finished { ttft: Some(ttft), gaps, prompt_tokens, .. }) => {
                let arrival = settled.arrival.duration_since(began);
                let first = (arrival + ttft).as_secs_f64();
                Ok(Self { arrival: arrival.as_secs_f64(), first, gaps, prompt_tokens })
            }
            Outcome::Finished(_) => Err(failed("an answer had no text")),
            Outcome::Failed(other) => Err(failed(&other.message)),
            Outcome::HungUp { .. } => unreachable!("nobody was asked to leave"),
        }
    }

    /// End and length of each gap.
    fn gaps(&self) -> impl Iterator<Item = (f64, f64)> {
        let mut at = self.first;
        self.gaps.iter().map(move |gap| {
            at += gap.as_secs_f64();
            (at, gap.as_secs_f64())
        })
    }

    fn end(&self) -> f64 {
        self.first + self.gaps.iter().sum::<Duration>().as_secs_f64()
    }
}

/// Lengths of the gaps between tokens while all streams run, ascending.
#[derive(Debug, PartialEq)]
struct Phases {
    before: Vec<f64>,
    during: Vec<f64>,
    after: Vec<f64>,
}

impl Phases {
    fn of(streams: &[Timed], intruders: &[Timed]) -> Self {
        let all_run = streams.iter().map(|stream| stream.first).fold(0.0, f64::max);
        let one_ends = streams.iter().map(Timed::end).fold(f64::INFINITY, f64::min);
        let first_arrival = intruders.iter().map(|intruder| intruder.arrival).fold(f64::INFINITY, f64::min);
        let mut phases = Self { before: Vec::new(), during: Vec::new(), after: Vec::new() };
        for (end, gap) in streams.iter().flat_map(Timed::gaps) {
            let begin = end - gap;
            if begin < all_run || end > one_ends {
                continue;
            }
            let meets = |intruder: &Timed| begin < intruder.first && end > intruder.arrival;
            match () {
                () if intruders.iter().any(meets) => phases.during.push(gap),
                () if end <= first_arrival => phases.before.push(gap),
                () => phases.after.push(gap),
            }
        }
        let all = [&mut phases.before, &mut phases.during, &mut phases.after];
        all.into_iter().for_each(|gaps| gaps.sort_by(f64::total_cmp));
        phases
    }
}

/// Of values in ascending order; 0 where there are none.
fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    let at = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(arrival: f64, first: f64, gaps_ms: &[u64]) -> Timed {
        let gaps = gaps_ms.iter().map(|ms| Duration::from_millis(*ms)).collect();
        Timed { arrival, first, gaps, prompt_tokens: None }
    }

    #[test]
    fn gaps_belong_to_the_phase_that_they_meet() {
        let streams = [timed(0.0, 1.0, &[500, 500, 500, 250, 500]), timed(0.0, 1.125, &[1000, 1500])];
        let intruders = [timed(2.25, 2.6, &[])];
        let phases = Phases::of(&streams, &intruders);
        // The first gap of the first stream began before the second ran; the last of the second ends after the first has.
        assert_eq!(phases, Phases { before: vec![0.5, 1.0], during: vec![0.25, 0.5], after: vec![0.5] });
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|q| quantile(&values, q)), [50.0, 99.0, 100.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
