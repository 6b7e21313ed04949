//! What a server says of itself in `/metrics`, before and after a load.
use std::collections::BTreeMap;

use super::Error;
use super::target::Target;
use super::{client, request};

/// The samples of one look, by name and labels as they stand in the text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrape(BTreeMap<String, f64>);

/// A histogram between two looks: upper bounds in seconds, and how many were at or below each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Buckets(Vec<(f64, f64)>);

impl Scrape {
    /// # Errors
    /// Where the server has no metrics.
    pub(crate) fn of(target: &Target) -> Result<Self, Error> {
        let (status, body) = client::exchange(&target.place, &request::get(target.url(), "/metrics", target.api_key()))
            .map_err(|source| Error::Unreachable { host: target.url().authority.clone(), source })?;
        match status {
            200 => Ok(Self::parse(&String::from_utf8_lossy(&body))),
            _ => Err(Error::NoMetric(format!("answer but status {status}"))),
        }
    }

    fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.trim_end().rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// # Errors
    /// [`Error::NoMetric`].
    pub(crate) fn get(&self, name: &str) -> Result<f64, Error> {
        self.0.get(name).copied().ok_or_else(|| Error::NoMetric(name.to_owned()))
    }

    /// What the histogram `name` has counted since `before`.
    ///
    /// # Errors
    /// [`Error::NoMetric`].
    pub(crate) fn since(&self, before: &Self, name: &str) -> Result<Buckets, Error> {
        let prefix = format!("{name}_bucket{{le=\"");
        let mut buckets: Vec<(f64, f64)> = self
            .0
            .range(prefix.clone()..)
            .take_while(|(sample, _)| sample.starts_with(&prefix))
            .filter_map(|(sample, count)| {
                let bound = sample[prefix.len()..].trim_end_matches("\"}").replace("+Inf", "inf").parse().ok()?;
                Some((bound, count - before.0.get(sample).copied().unwrap_or(0.0)))
            })
            .collect();
        if buckets.is_empty() {
            return Err(Error::NoMetric(name.to_owned()));
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Buckets(buckets))
    }
}

impl Buckets {
    /// How many values there were.
    pub(crate) fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |bucket| bucket.1)
    }

    /// The bound in seconds that the share `quantile` of all values is at or below; infinite above the last bound.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        let wanted = self.count() * quantile;
        self.0.iter().find(|(_, count)| *count >= wanted).map_or(f64::INFINITY, |(bound, _)| *bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_histograms_are_read() {
        let text = "# HELP a_total x\n# TYPE a_total counter\na_total 3\nb{reason=\"x y\"} 1.5\n\
                    h_bucket{le=\"0.001\"} 4\nh_bucket{le=\"10\"} 9\nh_bucket{le=\"2\"} 8\nh_bucket{le=\"+Inf\"} 10\n";
        let now = Scrape::parse(text);
        assert_eq!((now.get("a_total").unwrap(), now.get("b{reason=\"x y\"}").unwrap()), (3.0, 1.5));
        assert!(matches!(now.get("c"), Err(Error::NoMetric(name)) if name == "c"));
        let before = Scrape::parse(
            "h_bucket{le=\"0.001\"} 4\nh_bucket{le=\"+Inf\"} 4\nh_bucket{le=\"2\"} 4\n\
                                    h_bucket{le=\"10\"} 4\n",
        );
        let since = now.since(&before, "h").unwrap();
        assert_eq!(since, Buckets(vec![(0.001, 0.0), (2.0, 4.0), (10.0, 5.0), (f64::INFINITY, 6.0)]));
        assert_eq!((since.count(), since.quantile(0.5), since.quantile(0.99)), (6.0, 2.0, f64::INFINITY));
        assert!(now.since(&before, "i").is_err());
    }
}
