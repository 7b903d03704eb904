//! The only reader of the wall clock.
//!
//! Results never depend on it: it stamps deliveries, paces flushes and feeds latency histograms.

use std::time::{SystemTime, UNIX_EPOCH};

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
