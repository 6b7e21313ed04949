//! Ratios of pairs, what was left out of them, and why.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Run;

/// All pairs so far: ours, the rival's.
#[derive(Default)]
pub(super) struct Report {
    pairs: Vec<(Run, Run)>,
}

/// One test over all pairs.
struct Ratios<'a> {
    test: &'a str,
    /// Ours over the rival's, smallest first.
    sorted: Vec<f64>,
    /// Pairs in which a side failed or left this test out.
    bad: usize,
}

impl Report {
    pub(super) fn push(&mut self, ours: Run, rival: Run) {
        self.pairs.push((ours, rival));
    }

    /// Whether every pair has all tests that are compared, and any is.
    pub(super) fn is_whole(&self) -> bool {
        let ratios = self.ratios();
        !ratios.is_empty() && ratios.iter().all(|ratios| ratios.bad == 0)
    }

    /// The tests that both sides ran at least once.
    fn ratios(&self) -> Vec<Ratios<'_>> {
        let (ours, rival) = self.tests();
        ours.intersection(&rival).map(|test| self.ratios_of(test)).collect()
    }

    fn ratios_of<'a>(&self, test: &'a str) -> Ratios<'a> {
        let ratio = |(ours, rival): &(Run, Run)| Some(ours.as_ref().ok()?.get(test)? / rival.as_ref().ok()?.get(test)?);
        let mut sorted: Vec<f64> = self.pairs.iter().filter_map(ratio).collect();
        sorted.sort_by(f64::total_cmp);
        Ratios { test, bad: self.pairs.len() - sorted.len(), sorted }
    }

    /// What each side ever ran.
    fn tests(&self) -> (BTreeSet<&str>, BTreeSet<&str>) {
        let of = |side: fn(&(Run, Run)) -> &Run| {
            self.pairs
                .iter()
                .filter_map(|pair| side(pair).as_ref().ok())
                .flat_map(|run| run.keys().map(String::as_str))
                .collect()
        };
        (of(|pair| &pair.0), of(|pair| &pair.1))
    }

    pub(super) fn print(&self) {
        println!("{:<16} {:>5} {:>5} {:>8} {:>8} {:>8}", "ours / rival", "pairs", "bad", "median", "min", "max");
        for ratios in self.ratios() {
            let (min, max) = (ratios.sorted.first(), ratios.sorted.last());
            println!(
                "{:<16} {:>5} {:>5} {:>8} {:>8} {:>8}",
                ratios.test,
                self.pairs.len(),
                ratios.bad,
                shown(ratios.median()),
                shown(min.copied()),
                shown(max.copied())
            );
        }
        let (ours, rival) = self.tests();
        for (side, alone) in [("ours", ours.difference(&rival)), ("the rival", rival.difference(&ours))] {
            let names: Vec<&str> = alone.copied().collect();
            if !names.is_empty() {
                println!("not compared, only {side} ran it: {}", names.join(", "));
            }
        }
        if self.ratios().is_empty() {
            println!("nothing was compared");
        }
    }

    pub(super) fn to_json(&self, ours: &str, rival: &str) -> Value {
        let run = |run: &Run| match run {
            Ok(numbers) => json!(numbers),
            Err(reason) => json!({ "failed": reason }),
        };
        let ratios = self.ratios().iter().map(Ratios::to_json).collect::<Vec<_>>();
        let pairs: Vec<Value> = self.pairs.iter().map(|(a, b)| json!({"ours": run(a), "rival": run(b)})).collect();
        json!({
            "machine": tuning::host::cpu_model(), "commit": env!("BITNETD_COMMIT"),
            "ours": ours, "rival": rival, "pairs": pairs, "ratios": ratios,
        })
    }
}

impl Ratios<'_> {
    /// Of an even number the mean of the middle two.
    fn median(&self) -> Option<f64> {
        let (count, at) = (self.sorted.len(), self.sorted.len() / 2);
        match count {
            0 => None,
            _ if count % 2 == 1 => Some(self.sorted[at]),
            _ => Some(f64::midpoint(self.sorted[at - 1], self.sorted[at])),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "test": self.test, "n": self.sorted.len(), "bad": self.bad, "median": self.median(),
            "min": self.sorted.first(), "max": self.sorted.last(),
        })
    }
}

/// One line for each test of a pair, or for each side that failed.
pub(super) fn print_pair(pair: usize, ours: &Run, rival: &Run) {
    for (side, run) in [("ours", ours), ("rival", rival)] {
        if let Err(reason) = run {
            println!("pair {pair}: {side} failed: {reason}");
        }
    }
    let (Ok(ours), Ok(rival)) = (ours, rival) else { return };
    for (test, a) in ours {
        if let Some(b) = rival.get(test) {
            println!("pair {pair}: {test:<12} ours {a:10.2} tok/s, rival {b:10.2} tok/s, ratio {:.3}", a / b);
        } else {
            println!("pair {pair}: {test:<12} ours {a:10.2} tok/s, rival has none");
        }
    }
}

fn shown(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pairs: &[(&str, f64)]) -> Run {
        Ok(pairs.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect())
    }

    fn report(pairs: Vec<(Run, Run)>) -> Report {
        Report { pairs }
    }

    #[test]
    fn the_median_is_that_of_ratios_of_pairs() {
        let pair = |a, b| (run(&[("tg1@1", a)]), run(&[("tg1@1", b)]));
        let odd = report(vec![pair(2.0, 1.0), pair(9.0, 1.0), pair(3.0, 1.0)]);
        let ratios = odd.ratios();
        assert_eq!((ratios.len(), ratios[0].median(), ratios[0].bad), (1, Some(3.0), 0));
        let even = report(vec![pair(2.0, 1.0), pair(4.0, 1.0)]);
        assert_eq!(even.ratios()[0].median(), Some(3.0));
        assert!(odd.is_whole());
    }

    #[test]
    fn a_pair_that_failed_or_left_a_test_out_is_counted_as_bad() {
        let good = (run(&[("tg1@1", 2.0)]), run(&[("tg1@1", 1.0)]));
        let failed = (run(&[("tg1@1", 2.0)]), Err("not done after 1 s".to_owned()));
        let missing = (run(&[("tg1@1", 2.0)]), run(&[("pp1@1", 1.0)]));
        let report = report(vec![good, failed, missing]);
        let ratios = report.ratios();
        assert_eq!((ratios[0].sorted.len(), ratios[0].bad), (1, 2));
        assert!(!report.is_whole());
        assert_eq!(report.to_json("a", "b")["pairs"][1]["rival"]["failed"], "not done after 1 s");
    }

    #[test]
    fn nothing_in_common_is_no_success() {
        let report = report(vec![(run(&[("tg1@1", 2.0)]), run(&[("tg1@2", 1.0)]))]);
        assert!(report.ratios().is_empty() && !report.is_whole());
    }
}
