//! Time: the only reader of the wall clock, and how times and lengths are spelt.
//!
//! Results never depend on it: it stamps deliveries, paces flushes and feeds latency histograms.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, NaiveDate, NaiveDateTime};

/// A moment in microseconds since the Unix epoch, UTC. The unit of every time column.
pub type Micros = i64;

pub const SECOND: Micros = 1_000_000;
pub const MINUTE: Micros = 60 * SECOND;
pub const HOUR: Micros = 60 * MINUTE;
pub const DAY: Micros = 24 * HOUR;

/// Now, in microseconds since the epoch.
pub fn now() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as Micros)
}

/// `2026-05-01T10:00:00Z`, with a fraction only where there is one.
pub fn rfc3339(time: Micros) -> String {
    match chrono::DateTime::from_timestamp_micros(time) {
        Some(at) => at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        None => format!("{time}µs"),
    }
}

/// A length of time as a person says it: `45 s`, `9 min`, `2 h 5 min`, `3 d`.
pub fn spoken(length: Micros) -> String {
    let (sign, length) = if length < 0 { ("-", -length) } else { ("", length) };
    let text = match length {
        l if l < SECOND => format!("{} ms", l / 1000),
        l if l < 2 * MINUTE => format!("{} s", l / SECOND),
        l if l < 2 * HOUR => format!("{} min", l / MINUTE),
        l if l < 2 * DAY => format!("{} h {} min", l / HOUR, l % HOUR / MINUTE),
        l => format!("{} d", l / DAY),
    };
    format!("{sign}{text}")
}

/// Seconds, milliseconds, micro- or nanoseconds since the epoch, told apart by size (1973 to 2286 in each).
pub fn epoch(value: i64) -> Option<Micros> {
    match value {
        100_000_000..=9_999_999_999 => Some(value * 1_000_000),
        100_000_000_000..=9_999_999_999_999 => Some(value * 1_000),
        100_000_000_000_000..=9_999_999_999_999_999 => Some(value),
        100_000_000_000_000_000..=i64::MAX => Some(value / 1_000),
        _ => None,
    }
}

/// Reads a time as logs spell it: RFC 3339 (any fraction, any offset), with a space and no zone (read as UTC),
/// RFC 1123 as AWS Health writes it, or a number since the epoch.
pub fn parse_time(text: &str) -> Option<Micros> {
    if let Some(micros) = plain_utc(text) {
        return Some(micros);
    }
    let text = text.trim();
    let text = text.strip_suffix(" UTC").or_else(|| text.strip_suffix(" GMT").filter(|front| !front.contains(','))).unwrap_or(text);
    DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_rfc2822(text))
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z"))
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S %z"))
        .map(|time| time.timestamp_micros())
        .ok()
        .or_else(|| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").ok().map(|t| t.and_utc().timestamp_micros()))
        .or_else(|| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").ok().map(|t| t.and_utc().timestamp_micros()))
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0).map(|t| t.and_utc().timestamp_micros()))
        .or_else(|| text.parse().ok().and_then(epoch))
}

/// `2026-05-01T10:00:00Z`: what nearly every record has, read without a general parser.
fn plain_utc(text: &str) -> Option<Micros> {
    let b: &[u8; 20] = text.as_bytes().try_into().ok()?;
    if (b[4], b[7], b[10], b[13], b[16], b[19]) != (b'-', b'-', b'T', b':', b':', b'Z') {
        return None;
    }
    let number =
        |range: std::ops::Range<usize>| b[range].iter().try_fold(0u32, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0')));
    let date = NaiveDate::from_ymd_opt(number(0..4)? as i32, number(5..7)?, number(8..10)?)?;
    let time = date.and_hms_opt(number(11..13)?, number(14..16)?, number(17..19)?)?;
    Some(time.and_utc().timestamp_micros())
}

/// `90s`, `30m`, `1h`, `1d` in microseconds.
pub fn parse_length(text: &str) -> Option<Micros> {
    let (number, unit) = text.trim().split_at_checked(text.trim().len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        _ => return None,
    };
    number.trim().parse::<i64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_time_is_the_same_moment() {
        let expected = plain_utc("2022-02-07T22:23:37Z");
        assert!(expected.is_some());
        for text in [
            "2022-02-07T22:23:37.000Z",
            "2022-02-07T22:23:37.0000000Z",
            "2022-02-08 09:23:37+11:00",
            "2022-02-07 22:23:37",
            "2022-02-07 22:23:37.000000",
            "2022-02-07 22:23:37.000 UTC",
            "Mon, 07 Feb 2022 22:23:37 GMT",
            "1644272617",
            "1644272617000",
        ] {
            assert_eq!(parse_time(text), expected, "{text}");
        }
        assert_eq!(parse_time("soon"), None);
        assert_eq!(parse_time("2022-13-07T22:23:37Z"), None);
    }
}
