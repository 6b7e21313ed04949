//! Tokens per second out of what a benchmark prints, by test and workers.

use std::collections::BTreeMap;

use regex_lite::Regex;
use serde::Deserialize;

use super::{Failure, Run};

/// Tokens per second by name: `pp512@2` is a prompt of 512 tokens with 2 workers, `tg128@1` 128 tokens decoded with 1.
pub(super) type Numbers = BTreeMap<String, f64>;

/// How a program prints its numbers.
pub(super) enum Format {
    /// `bitnetd-bench model --json`.
    Bitnetd,
    /// `llama-bench -o json`.
    LlamaBench,
    /// The first group of the first match.
    Patterns(Vec<(String, Regex)>),
}

#[derive(Deserialize)]
struct OurOutput {
    results: Vec<OurResult>,
}

#[derive(Deserialize)]
struct OurResult {
    test: String,
    workers: usize,
    tok_s: OurSpeed,
}

#[derive(Deserialize)]
struct OurSpeed {
    median: f64,
}

#[derive(Deserialize)]
struct LlamaTest {
    n_prompt: usize,
    n_gen: usize,
    n_threads: usize,
    avg_ts: f64,
}

impl Format {
    pub(super) fn parse(name: &str, patterns: &[String]) -> Result<Self, Failure> {
        if !patterns.is_empty() {
            let parse = |text: &String| -> Result<(String, Regex), Failure> {
                let (name, pattern) =
                    text.split_once('=').ok_or_else(|| format!("`{text}` is not TEST@WORKERS=REGEX"))?;
                let regex = Regex::new(pattern).map_err(|error| format!("`{pattern}`: {error}"))?;
                if regex.captures_len() < 2 {
                    return Err(format!("`{pattern}` has no group to be the number").into());
                }
                Ok((name.to_owned(), regex))
            };
            return Ok(Self::Patterns(patterns.iter().map(parse).collect::<Result<_, _>>()?));
        }
        match name {
            "llama-bench" => Ok(Self::LlamaBench),
            "bitnetd" => Ok(Self::Bitnetd),
            _ => Err(format!("no format `{name}`, allowed are llama-bench and bitnetd").into()),
        }
    }

    /// All numbers of an output; a number that is none, or none at all, fails the run.
    pub(super) fn read(&self, output: &str) -> Run {
        let mut numbers = Numbers::new();
        match self {
            Self::Bitnetd => {
                let output: OurOutput = parse(output)?;
                numbers
                    .extend(output.results.into_iter().map(|r| (format!("{}@{}", r.test, r.workers), r.tok_s.median)));
            }
            Self::LlamaBench => {
                let tests: Vec<LlamaTest> = parse(output)?;
                numbers.extend(tests.iter().map(|test| (test.name(), test.avg_ts)));
            }
            Self::Patterns(patterns) => {
                for (name, regex) in patterns {
                    let found = regex.captures(output).and_then(|groups| groups.get(1));
                    let found = found.ok_or_else(|| format!("nothing in its output matches the pattern of {name}"))?;
                    let number = found.as_str().parse().map_err(|_| format!("{name} is `{}`", found.as_str()))?;
                    numbers.insert(name.clone(), number);
                }
            }
        }
        if let Some((name, number)) = numbers.iter().find(|(_, number)| !(number.is_finite() && **number > 0.0)) {
            return Err(format!("{name} is {number}"));
        }
        if numbers.is_empty() {
            return Err("its output has no numbers".to_owned());
        }
        Ok(numbers)
    }
}

impl LlamaTest {
    fn name(&self) -> String {
        let (prompt, decode, threads) = (self.n_prompt, self.n_gen, self.n_threads);
        match (prompt, decode) {
            (_, 0) => format!("pp{prompt}@{threads}"),
            (0, _) => format!("tg{decode}@{threads}"),
            _ => format!("pp{prompt}+tg{decode}@{threads}"),
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(output: &'a str) -> Result<T, String> {
    serde_json::from_str(output).map_err(|error| format!("its output is not what was expected: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(pairs: &[(&str, f64)]) -> Numbers {
        pairs.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    }

    #[test]
    fn outputs_of_both_programs_are_read() {
        let ours =
            r#"{"isa":"x","results":[{"test":"pp512","workers":2,"n":3,"tok_s":{"median":210.5,"min":1,"max":9}}]}"#;
        assert_eq!(Format::Bitnetd.read(ours), Ok(numbers(&[("pp512@2", 210.5)])));
        let rival = r#"[{"n_prompt":512,"n_gen":0,"n_threads":2,"avg_ts":105.25,"model":"m"},
            {"n_prompt":0,"n_gen":128,"n_threads":2,"avg_ts":20},{"n_prompt":8,"n_gen":4,"n_threads":1,"avg_ts":7}]"#;
        let want = numbers(&[("pp512@2", 105.25), ("tg128@2", 20.0), ("pp8+tg4@1", 7.0)]);
        assert_eq!(Format::LlamaBench.read(rival), Ok(want));
    }

    #[test]
    fn a_pattern_finds_its_group() {
        let format = Format::parse("llama-bench", &["tg128@2=tg128 .*?([0-9.]+) t/s".to_owned()]).unwrap();
        assert_eq!(format.read("pp512 9 t/s\ntg128 | 41.5 t/s\n"), Ok(numbers(&[("tg128@2", 41.5)])));
        assert!(format.read("pp512 9 t/s").unwrap_err().contains("tg128@2"));
        assert!(format.read("tg128 1.2.3 t/s").unwrap_err().contains("1.2.3"));
    }

    #[test]
    fn outputs_without_a_usable_number_fail() {
        for output in
            ["", "[]", "{}", "[{\"n_prompt\":1}]", "[{\"n_prompt\":1,\"n_gen\":0,\"n_threads\":1,\"avg_ts\":0}]"]
        {
            assert!(Format::LlamaBench.read(output).is_err(), "{output}");
        }
        assert!(Format::Bitnetd.read("{\"results\":[]}").is_err());
    }

    #[test]
    fn bad_formats_and_patterns_are_refused() {
        assert!(Format::parse("csv", &[]).is_err());
        for bad in ["tg128", "a=(", "a=[0-9]+"] {
            assert!(Format::parse("llama-bench", &[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
