//! `GET /v1/stats`: which time it is asked for.

use crate::error::ApiError;

/// What is wanted to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatsRequest {
    /// 1..=[`STATS_HOURS_MAX`]
    pub hours: u64,
    pub include_details: bool,
}

/// Hours that numbers are kept for.
pub const STATS_HOURS_MAX: u64 = 30 * 24;

impl StatsRequest {
    /// Reads the query of a target, as [`crate::http::Request::query`] gives it.
    ///
    /// # Errors
    /// 400 with the field at fault, also where it is unknown or stands twice.
    pub fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let (mut hours, mut include_details) = (None, None);
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let again = match name {
                "time_range" => hours.replace(parse_hours(value)?).is_some(),
                "include_details" => include_details.replace(parse_flag(value)?).is_some(),
                _ => return Err(ApiError::validation(format_args!("{name:.64}"), "is not a known field")),
            };
            if again {
                return Err(ApiError::validation(name, "stands twice"));
            }
        }
        Ok(Self { hours: hours.unwrap_or(24), include_details: include_details.unwrap_or(false) })
    }
}

/// Whole hours or days.
fn parse_hours(text: &str) -> Result<u64, ApiError> {
    let wrong = || ApiError::validation("time_range", "must be 1h to 720h, or 1d to 30d");
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let hours = match unit {
        "h" => 1,
        "d" => 24,
        _ => return Err(wrong()),
    };
    let plain = !digits.is_empty() && digits.len() <= 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    if (1..=STATS_HOURS_MAX).contains(&(count * hours)) { Ok(count * hours) } else { Err(wrong()) }
}

fn parse_flag(text: &str) -> Result<bool, ApiError> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(ApiError::validation("include_details", "must be true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_whole_hours_and_days_up_to_thirty_days() {
        let hours = |range: &str| StatsRequest::parse(Some(&format!("time_range={range}"))).map(|wanted| wanted.hours);
        for (range, wanted) in [("1h", 1), ("24h", 24), ("720h", 720), ("1d", 24), ("30d", 720), ("007d", 168)] {
            assert_eq!(hours(range), Ok(wanted), "{range}");
        }
        for range in [
            "", "h", "0h", "0d", "721h", "31d", "1", "1m", "1w", "-1h", "+1h", "1.5h", "1 h", "%31h", "9999h", "1hh",
            "ä",
        ] {
            let error = hours(range).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("time_range")), "{range}");
        }
    }

    #[test]
    fn other_fields_are_named() {
        assert_eq!(StatsRequest::parse(None), Ok(StatsRequest { hours: 24, include_details: false }));
        assert_eq!(StatsRequest::parse(Some("include_details=true&")).map(|wanted| wanted.include_details), Ok(true));
        for (query, param) in [
            ("include_details", "include_details"),
            ("include_details=1", "include_details"),
            ("range=1h", "range"),
            ("time_range=1h&time_range=1h", "time_range"),
            ("=", ""),
        ] {
            let error = StatsRequest::parse(Some(query)).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{query}");
        }
    }
}
