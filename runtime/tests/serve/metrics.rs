//! `/metrics` in both of its formats, read as strictly as their grammars say, and by the names that dashboards have.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::server::{MODEL, Server};

/// A line of samples.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// A family: its kind, and its samples.
type Families = BTreeMap<String, (String, Vec<Sample>)>;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn is_name(text: &str) -> bool {
    let right = |(at, byte): (usize, u8)| {
        byte.is_ascii_alphabetic() || b"_:".contains(&byte) || at > 0 && byte.is_ascii_digit()
    };
    !text.is_empty() && text.bytes().enumerate().all(right)
}

/// The name, labels and value of a line.
fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in `{line}`"));
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').unwrap_or_else(|| panic!("no end of labels in `{line}`"))),
        None => (series, ""),
    };
    assert!(is_name(name), "`{name}` is no name");
    let label = |label: &str| {
        let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("no label in `{line}`"));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let value = value.unwrap_or_else(|| panic!("a label without quotes in `{line}`"));
        assert!(is_name(name) && !name.contains(':') && !value.contains(['"', '\\', ',']), "{line}");
        (name.to_owned(), value.to_owned())
    };
    let labels: Vec<_> = labels.split(',').filter(|label| !label.is_empty()).map(label).collect();
    let names: BTreeSet<&String> = labels.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), labels.len(), "a label stands twice in `{line}`");
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("`{value}` is no number"));
    assert!(value.is_finite(), "{line}");
    Sample { name: name.to_owned(), labels, value }
}

/// All families of `text`, which must be right to the last byte.
fn parse(text: &str, open: bool) -> Families {
    let body = if open { text.strip_suffix("# EOF\n").expect("the end is marked") } else { text };
    assert!(body.ends_with('\n') && !body.contains(['\r', '\t']) && !body.contains("\n\n") && !body.contains("# EOF"));
    let (mut families, mut current) = (Families::new(), String::new());
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let (keyword, rest) = rest.split_once(' ').unwrap();
            let (name, words) = rest.split_once(' ').unwrap_or_else(|| panic!("nothing behind the name in `{line}`"));
            assert!(is_name(name) && (keyword == "TYPE" || keyword == "HELP"), "{line}");
            if name != current {
                assert!(!families.contains_key(name), "{name} is in two places");
                families.insert(name.to_owned(), (String::new(), Vec::new()));
                name.clone_into(&mut current);
            }
            let family = families.get_mut(name).unwrap();
            assert!(family.1.is_empty(), "`{line}` stands behind samples");
            if keyword == "TYPE" {
                assert!(["counter", "gauge", "histogram"].contains(&words) && family.0.is_empty(), "{line}");
                words.clone_into(&mut family.0);
            }
            continue;
        }
        let (kind, samples) = families.get_mut(&current).unwrap_or_else(|| panic!("`{line}` has no family"));
        let sample = sample(line);
        let ending = sample.name.strip_prefix(&current).unwrap_or_else(|| panic!("`{line}` is not of {current}"));
        let allowed: &[&str] = match (kind.as_str(), open) {
            ("counter", true) => &["_total"],
            ("histogram", _) => &["_bucket", "_sum", "_count"],
            ("counter" | "gauge", _) => &[""],
            _ => panic!("`{line}` comes before the kind of its family"),
        };
        assert!(allowed.contains(&ending) && (kind.as_str() == "gauge" || sample.value >= 0.0), "{line}");
        let series = |other: &Sample| other.name == sample.name && other.labels == sample.labels;
        assert!(!samples.iter().any(series), "`{line}` stands twice");
        samples.push(sample);
    }
    families.iter().filter(|(_, (kind, _))| kind == "histogram").for_each(|(name, (_, samples))| check(name, samples));
    families
}

/// Buckets rise, end with all, and agree with the count.
fn check(name: &str, samples: &[Sample]) {
    let (mut bound, mut count) = (f64::NEG_INFINITY, 0.0);
    let buckets = samples.iter().filter(|sample| sample.name.ends_with("_bucket"));
    for bucket in buckets {
        let (_, le) = bucket.labels.iter().find(|(label, _)| label == "le").expect("a bucket has a bound");
        let le = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
        assert!(le > bound && bucket.value >= count, "{name}: {bucket:?}");
        (bound, count) = (le, bucket.value);
    }
    let of = |ending: &str| samples.iter().find(|sample| sample.name == format!("{name}{ending}")).unwrap().value;
    assert_eq!((bound, count), (f64::INFINITY, of("_count")), "{name}");
    assert!(of("_sum") >= 0.0 && (count > 0.0 || of("_sum") == 0.0), "{name}");
}

/// The text of `/metrics` for that Accept field.
fn metrics(server: &Server, accept: &str, kind: &str) -> String {
    let answer = server.connect().request("GET", "/metrics", &format!("Accept: {accept}\r\n"), "");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)));
    answer.text()
}

#[test]
fn both_formats_are_right_and_say_the_same() {
    let server = Server::start(&[]);
    let used = |text: &str| parse(text, false)["bitnet_generation_tokens_total"].1[0].value;
    let plain = |accept: &str| metrics(&server, accept, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(used(&plain("*/*")), 0.0);
    let more = json!({"prompt": "Once", "max_tokens": 5, "ignore_eos": true, "n": 2});
    server.ask("/v1/completions", &more);
    assert_eq!(used(&plain("text/plain")), 10.0);
    let by_prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let open = parse(&metrics(&server, by_prometheus, OPENMETRICS), true);
    let plain = parse(&plain("*/*"), false);
    assert_eq!(open.len(), plain.len());
    for (name, (kind, samples)) in &plain {
        let family = if kind == "counter" { name.strip_suffix("_total").unwrap() } else { name.as_str() };
        let (open_kind, open_samples) = open.get(family).unwrap_or_else(|| panic!("no {family}"));
        assert_eq!((open_kind, open_samples.len()), (kind, samples.len()), "{family}");
        for (sample, other) in samples.iter().zip(open_samples) {
            assert_eq!((&sample.name, &sample.labels), (&other.name, &other.labels));
        }
    }
    let document = server.get("/openapi.json").json();
    let described = &document["paths"]["/metrics"]["get"]["responses"]["200"]["content"];
    for kind in ["text/plain; version=0.0.4", "application/openmetrics-text; version=1.0.0"] {
        assert!(described[kind].is_object(), "{kind} is not described in {described}");
    }
}

#[test]
fn the_names_of_vllm_are_there_for_those_who_want_them() {
    let plain = Server::start(&[]).get("/metrics").text();
    assert!(!plain.contains("vllm:"), "{plain}");
    let server = Server::start(&["--vllm-metrics"]);
    server.ask("/v1/completions", &json!({"prompt": "Once", "max_tokens": 5, "ignore_eos": true}));
    let families = parse(&server.get("/metrics").text(), false);
    parse(&metrics(&server, "application/openmetrics-text", OPENMETRICS), true);
    let value = |name: &str, label: Option<(&str, &str)>| {
        let (_, samples) = &families[name.strip_suffix("_count").unwrap_or(name)];
        let has = |sample: &Sample, (name, value): (&str, &str)| {
            sample.labels.iter().any(|(of, is)| of == name && is == value)
        };
        let found = samples.iter().find(|sample| sample.name == name && label.is_none_or(|label| has(sample, label)));
        let sample = found.unwrap_or_else(|| panic!("no {name} {label:?}"));
        assert!(has(sample, ("model_name", MODEL)), "{sample:?}");
        sample.value
    };
    for (name, label, wanted) in [
        ("vllm:num_requests_running", None, 0.0),
        ("vllm:num_requests_waiting", None, 0.0),
        ("vllm:kv_cache_usage_perc", None, 0.0),
        ("vllm:gpu_cache_usage_perc", None, 0.0),
        ("vllm:cache_config_info", Some(("block_size", "32")), 1.0),
        ("vllm:generation_tokens_total", None, 5.0),
        ("vllm:request_success_total", Some(("finished_reason", "length")), 1.0),
        ("vllm:request_success_total", Some(("finished_reason", "abort")), 0.0),
        ("vllm:time_to_first_token_seconds_count", None, 1.0),
        ("vllm:time_per_output_token_seconds_count", None, 4.0),
        ("vllm:e2e_request_latency_seconds_count", None, 1.0),
    ] {
        assert_eq!(value(name, label), wanted, "{name} {label:?}");
    }
}
