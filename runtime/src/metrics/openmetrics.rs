//! OpenMetrics text (1.0.0) for those who would rather have it than Prometheus text.

/// Whether a client with that Accept field rather takes OpenMetrics.
#[must_use]
pub fn is_preferred(accept: &str) -> bool {
    let quality = |kind: &str| {
        let ranges = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_it = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(kind));
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            is_it.then(|| quality.map_or(1.0, |digits| digits.parse().unwrap_or(0.0)))
        });
        ranges.fold(0.0, f64::max)
    };
    let wanted = quality("application/openmetrics-text");
    wanted > 0.0 && wanted >= quality("text/plain")
}

/// The same metrics as Prometheus `text`: families of counters are named without `_total`, and the end is marked.
#[must_use]
pub fn from_prometheus(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut help: Option<&str> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest);
            continue;
        }
        let (name, kind) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')).unzip();
        let (Some(name), Some(kind)) = (name, kind) else {
            out += line;
            out.push('\n');
            continue;
        };
        let (family, kind) = match (name.strip_suffix("_total"), kind) {
            (Some(family), "counter") => (family, kind),
            (None, "counter") => (name, "unknown"),
            _ => (name, kind),
        };
        out += &format!("# TYPE {family} {kind}\n");
        if let Some((_, words)) = help.take().and_then(|help| help.split_once(' ')) {
            out += &format!("# HELP {family} {words}\n");
        }
    }
    out + "# EOF\n"
}

/// What an answer in it is called.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_of_counters_lose_their_ending_and_the_end_is_marked() {
        let text = "# HELP a_total some words\n# TYPE a_total counter\na_total{x=\"y\"} 3\n# HELP g g\n# TYPE g gauge\ng 1\n\
                    # HELP odd o\n# TYPE odd counter\nodd 2\n";
        let expected = "# TYPE a counter\n# HELP a some words\na_total{x=\"y\"} 3\n# TYPE g gauge\n# HELP g g\ng 1\n\
                        # TYPE odd unknown\n# HELP odd o\nodd 2\n# EOF\n";
        assert_eq!(from_prometheus(text), expected);
    }

    #[test]
    fn it_is_given_to_those_who_rather_take_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, wanted) in [
            (prometheus, true),
            ("application/openmetrics-text", true),
            ("Application/OpenMetrics-Text; version=1.0.0, text/plain", true),
            ("application/openmetrics-text;q=0.1,text/plain", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=x", false),
            ("text/plain", false),
            ("*/*", false),
            ("", false),
        ] {
            assert_eq!(is_preferred(accept), wanted, "{accept}");
        }
    }
}
