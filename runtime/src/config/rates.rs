//! Settings of how many requests a client may make.

use super::{Error, invalid};
use crate::shard::{RATE_MAX, RateClass, RateLimits};

/// CLASS=NUMBER each, a class once.
pub(super) fn parse(texts: &[String]) -> Result<RateLimits, Error> {
    let mut limits = RateLimits::default();
    let mut seen = Vec::new();
    for text in texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        let wrong = || {
            let names = RateClass::ALL.map(RateClass::name).join(", ");
            invalid(
                "rate_limits",
                text,
                &format!("CLASS=NUMBER with a class of {names}, once each, and 1 to {RATE_MAX}"),
            )
        };
        let (name, number) = text.split_once('=').ok_or_else(wrong)?;
        let class = RateClass::ALL.into_iter().find(|class| class.name() == name).ok_or_else(wrong)?;
        let number = number.parse().ok().filter(|number| (1..=RATE_MAX).contains(number)).ok_or_else(wrong)?;
        if seen.contains(&name) {
            return Err(wrong());
        }
        seen.push(name);
        limits.set(class, number);
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_off_unless_written_and_what_is_none_is_named() {
        let limits = |texts: &[&str]| parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(limits(&[""]).unwrap(), RateLimits::default());
        let mut wanted = RateLimits::default();
        wanted.set(RateClass::Models, 10);
        assert_eq!(limits(&["models=10"]).unwrap(), wanted);
        for text in ["models", "models=", "models=0", "models=-1", "models=1.5", "models=1000001", "chat=1", "=1"] {
            let error = limits(&[text]).unwrap_err().to_string();
            assert!(error.contains("`rate_limits`") && error.contains("inference"), "{text}: {error}");
        }
        assert!(limits(&["stats=1", "stats=2"]).is_err());
    }
}
