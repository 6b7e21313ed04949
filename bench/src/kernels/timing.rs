//! Times a job on a team, call by call, and puts it beside the limits.

use std::time::{Duration, Instant};

use kernels::Isa;
use runtime::team::{Counters, Member, Team};
use serde_json::{Value, json};

use crate::limits::{Gauge, Limits};

/// A team, what measures its limits, and what was found with it; without a gauge it only checks.
pub(super) struct Bench {
    /// What is timed.
    pub(super) isa: Isa,
    /// Whose answers are compared with those of the portable kernels.
    compared: Vec<Isa>,
    team: Team,
    gauge: Option<Gauge>,
    budget: Duration,
    print: bool,
    outcomes: Vec<Outcome>,
    checked: usize,
}

/// What is timed: a name, and the work of one call.
pub(super) struct Case {
    pub(super) family: &'static str,
    pub(super) name: String,
    /// Bytes that must come from memory.
    pub(super) bytes: usize,
    pub(super) work: Work,
}

/// Operations of a call, a product and a sum being two, and the unit that does them.
#[derive(Clone, Copy)]
pub(super) enum Work {
    Int8(usize),
    Float(usize),
    /// No limit is known for it.
    None,
}

/// One line of the table.
pub(super) struct Outcome {
    family: &'static str,
    name: String,
    workers: usize,
    n: usize,
    median_s: f64,
    p99_s: f64,
    gb_per_s: f64,
    gops: f64,
    /// As they were around its calls.
    limits: Limits,
    /// Share of the limit that binds, and which one it is.
    of_limit: Option<(f64, &'static str)>,
}

impl Bench {
    /// Only compares: every instruction set of this machine, with one answer of the portable kernel.
    pub(super) fn checking(team: Team) -> Self {
        let (isa, compared) = (Isa::detect(), Isa::available());
        Self {
            isa,
            compared,
            team,
            gauge: None,
            budget: Duration::ZERO,
            print: false,
            outcomes: Vec::new(),
            checked: 0,
        }
    }

    pub(super) fn timing(isa: Isa, team: Team, gauge: Gauge, budget: Duration, print: bool) -> Self {
        let compared = vec![isa];
        Self { isa, compared, team, gauge: Some(gauge), budget, print, outcomes: Vec::new(), checked: 0 }
    }

    pub(super) fn workers(&self) -> usize {
        self.team.size()
    }

    /// How many copies of `bytes` keep every call's own out of the caches; one where nothing is timed.
    pub(super) fn copies(&self, bytes: usize) -> usize {
        if self.only_checks() { 1 } else { COLD_BYTES.div_ceil(bytes.max(1)) }
    }

    pub(super) fn only_checks(&self) -> bool {
        self.gauge.is_none()
    }

    /// How many answers were compared, and of which instruction sets.
    pub(super) fn checked(&self) -> (usize, &[Isa]) {
        (self.checked, &self.compared)
    }

    /// The median of what was measured around the cases.
    pub(super) fn limit(&self, value: fn(&Limits) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.outcomes.iter().filter_map(|outcome| value(&outcome.limits)).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// Notes that the answers are that of the portable kernel, bit for bit, which is returned.
    pub(super) fn check(&mut self, what: &str, answer: &dyn Fn(Isa) -> Vec<f32>) -> Result<Vec<f32>, super::Failure> {
        let want = answer(Isa::Portable);
        self.check_against(&want, what, answer)?;
        Ok(want)
    }

    /// The same with an answer that is known.
    pub(super) fn check_against(
        &mut self,
        want: &[f32],
        what: &str,
        answer: &dyn Fn(Isa) -> Vec<f32>,
    ) -> Result<(), super::Failure> {
        for &isa in &self.compared {
            let got = answer(isa);
            let same = got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
            if !same {
                return Err(format!("{what} on {}: the answer is not that of the portable kernel", isa.name()).into());
            }
        }
        self.checked += 1;
        Ok(())
    }

    /// Calls `job` on all workers, again and again; it gets the number of the call. One counter is there to claim from.
    pub(super) fn time(&mut self, case: Case, job: &(dyn Fn(Member<'_>, usize) + Sync)) {
        let Some(gauge) = &self.gauge else { return };
        let before = gauge.limits(&self.team);
        let counters = Counters::new(1);
        self.team.run(&counters, &|member| job(member, 0));
        let started = Instant::now();
        let mut times = Vec::new();
        while times.len() < CALLS_MIN || (started.elapsed() < self.budget && times.len() < CALLS_MAX) {
            let call = times.len() + 1;
            let begun = Instant::now();
            self.team.run(&counters, &|member| job(member, call));
            times.push(begun.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let limits = before.mean(&gauge.limits(&self.team));
        let outcome = Outcome::new(case, limits, self.team.size(), &times);
        if self.print {
            println!("{outcome}");
        }
        self.outcomes.push(outcome);
    }

    pub(super) fn to_json(&self) -> Vec<Value> {
        let each = |outcome: &Outcome| {
            json!({
                "family": outcome.family, "case": outcome.name, "workers": outcome.workers, "n": outcome.n,
                "us": {"median": outcome.median_s * 1e6, "p99": outcome.p99_s * 1e6},
                "gb_s": outcome.gb_per_s, "gops": outcome.gops,
                "of_limit": outcome.of_limit.map(|(share, _)| share),
                "limit": outcome.of_limit.map(|(_, name)| name),
            })
        };
        self.outcomes.iter().map(each).collect()
    }
}

impl Outcome {
    pub(super) const HEADING: &'static str = "family     case                               workers     n    median us       p99 us    GB/s    GOPS  of limit";

    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn new(case: Case, limits: Limits, workers: usize, times: &[f64]) -> Self {
        let (median_s, p99_s) = (times[times.len() / 2], times[(times.len() * 99 / 100).min(times.len() - 1)]);
        let (operations, peak, unit) = match case.work {
            Work::Int8(operations) => (operations, limits.int8_operations_per_s, "int8"),
            Work::Float(operations) => (operations, Some(limits.float_operations_per_s), "f32"),
            Work::None => (0, None, ""),
        };
        let by_read = (case.bytes as f64 / limits.read_bytes_per_s, "read");
        let by_unit = peak.map(|peak| (operations as f64 / peak, unit));
        // The slower of both binds; without a work to do there is nothing to compare with.
        let bound = match (case.work, by_unit) {
            (Work::None, _) => None,
            (_, Some(unit)) if unit.0 > by_read.0 => Some(unit),
            _ => Some(by_read),
        };
        Self {
            family: case.family,
            name: case.name,
            workers,
            n: times.len(),
            median_s,
            p99_s,
            gb_per_s: case.bytes as f64 / median_s / 1e9,
            gops: operations as f64 / median_s / 1e9,
            limits,
            of_limit: bound.map(|(seconds, name)| (seconds / median_s, name)),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<10} {:<34} {:>7} {:>5} {:>12.2} {:>12.2} {:>7.1} {:>7.0} ",
            self.family,
            self.name,
            self.workers,
            self.n,
            self.median_s * 1e6,
            self.p99_s * 1e6,
            self.gb_per_s,
            self.gops
        )?;
        match self.of_limit {
            Some((share, name)) => write!(f, " {:>3.0} % {name}", share * 100.0),
            None => write!(f, "     -"),
        }
    }
}

/// Twice what a processor's last cache holds, in most cases.
const COLD_BYTES: usize = 256 << 20;
const CALLS_MIN: usize = 5;
const CALLS_MAX: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(bytes: usize, work: Work) -> Outcome {
        let limits = Limits {
            read_bytes_per_s: 1e9,
            int8_operations_per_s: Some(4e9),
            vnni_operations_per_s: None,
            float_operations_per_s: 2e9,
        };
        let case = Case { family: "x", name: String::new(), bytes, work };
        let mut times = vec![0.002; 99];
        times.push(0.5);
        Outcome::new(case, limits, 1, &times)
    }

    #[test]
    fn the_limit_that_takes_longer_is_the_one_compared_with() {
        assert_eq!(outcome(1_000_000, Work::Int8(1_000_000)).of_limit, Some((0.5, "read")));
        assert_eq!(outcome(1_000_000, Work::Int8(8_000_000)).of_limit, Some((1.0, "int8")));
        assert_eq!(outcome(0, Work::Float(2_000_000)).of_limit, Some((0.5, "f32")));
        assert_eq!(outcome(0, Work::None).of_limit, None);
    }

    #[test]
    fn one_slow_call_in_a_hundred_is_the_p99_and_not_the_median() {
        let outcome = outcome(1_000_000, Work::None);
        assert_eq!((outcome.n, outcome.median_s, outcome.p99_s), (100, 0.002, 0.5));
    }
}
