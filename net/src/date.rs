//! Unix time to the two date forms of the wire; the time is always an argument.

/// Appends `unix_ms` as RFC 3339 in UTC with milliseconds, as in `2025-04-16T09:30:00.125Z`.
pub fn write_rfc3339(out: &mut Vec<u8>, unix_ms: u64) {
    let (date, second_of_day) = split(unix_ms / 1000);
    write_number(out, date.year, 4);
    out.push(b'-');
    write_number(out, date.month, 2);
    out.push(b'-');
    write_number(out, date.day, 2);
    out.push(b'T');
    write_time(out, second_of_day);
    out.push(b'.');
    write_number(out, unix_ms % 1000, 3);
    out.push(b'Z');
}

/// Appends `unix_s` as the IMF-fixdate of RFC 9110 section 5.6.7, as in `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn write_http_date(out: &mut Vec<u8>, unix_s: u64) {
    let (date, second_of_day) = split(unix_s);
    out.extend_from_slice(WEEKDAYS[(unix_s / SECONDS_PER_DAY % 7) as usize].as_bytes());
    out.extend_from_slice(b", ");
    write_number(out, date.day, 2);
    out.push(b' ');
    out.extend_from_slice(MONTHS[(date.month - 1) as usize].as_bytes());
    out.push(b' ');
    write_number(out, date.year, 4);
    out.push(b' ');
    write_time(out, second_of_day);
    out.extend_from_slice(b" GMT");
}

struct Date {
    year: u64,
    month: u64,
    day: u64,
}

/// Gregorian date of a day number: the year starts in March, so that the leap day comes last.
fn split(unix_s: u64) -> (Date, u64) {
    // Years past 9999 have no form on the wire; clamp instead of writing a fifth digit.
    let unix_s = unix_s.min(LAST_SECOND_OF_9999);
    let days = unix_s / SECONDS_PER_DAY + DAYS_BEFORE_1970;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (Date { year, month, day }, unix_s % SECONDS_PER_DAY)
}

/// Unix time of a Gregorian date; what is before 1970 is 0.
pub(crate) fn unix_seconds(year: u64, month: u64, day: u64, second_of_day: u64) -> u64 {
    // As in `split`: January and February are the last months of the year before, and what comes before year 0 is long ago.
    let Some(year) = year.checked_sub(u64::from(month <= 2)) else { return 0 };
    let (era, year_of_era, shifted_month) = (year / 400, year % 400, (month + 9) % 12);
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    days.checked_sub(DAYS_BEFORE_1970).map_or(0, |days| days * SECONDS_PER_DAY + second_of_day)
}

fn write_time(out: &mut Vec<u8>, second_of_day: u64) {
    write_number(out, second_of_day / 3600, 2);
    out.push(b':');
    write_number(out, second_of_day / 60 % 60, 2);
    out.push(b':');
    write_number(out, second_of_day % 60, 2);
}

fn write_number(out: &mut Vec<u8>, value: u64, digits: u32) {
    for place in (0..digits).rev() {
        out.push(b'0' + (value / 10u64.pow(place) % 10) as u8);
    }
}

const SECONDS_PER_DAY: u64 = 86_400;
/// From 1 March of year 0 to 1 January 1970.
const DAYS_BEFORE_1970: u64 = 719_468;
const LAST_SECOND_OF_9999: u64 = 253_402_300_799;
/// 1 January 1970 was a Thursday.
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use super::*;

    fn rfc3339(unix_ms: u64) -> String {
        let mut out = Vec::new();
        write_rfc3339(&mut out, unix_ms);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_dates_are_written() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_007), "2000-02-29T00:00:00.007Z");
        assert_eq!(rfc3339(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.615Z");
        let mut out = Vec::new();
        write_http_date(&mut out, 784_111_777);
        assert_eq!(out, b"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn a_date_comes_back_to_its_second() {
        for unix_s in (0..LAST_SECOND_OF_9999).step_by(86_399 * 17) {
            let (date, second_of_day) = split(unix_s);
            assert_eq!(unix_seconds(date.year, date.month, date.day, second_of_day), unix_s);
        }
        assert_eq!((unix_seconds(1969, 12, 31, 86_399), unix_seconds(0, 1, 1, 0)), (0, 0));
    }
}
