//! The demo's story, played into a Kafka at its own pace.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyfuse::clock::{self, Micros, SECOND, parse_time, rfc3339};
use keyfuse::error::Error;
use keyfuse::source::broker::Sender;

/// Sends the story's records at their times, moved so that the story ends now, then, unless it is told `once`, ordinary traffic until
/// stopped. `told`: how many records the story had, once they are sent.
pub fn play(broker: &str, speed: Micros, once: bool, stop: &AtomicBool, told: &AtomicU64) -> Result<(), Error> {
    let mut settings = rdkafka::ClientConfig::new();
    settings.set("bootstrap.servers", broker).set("linger.ms", "5");
    let sender = Sender::new(&settings)?;
    let mut records: Vec<(Micros, &str, &str)> = Vec::new();
    for (topic, mark, log) in keyfuse::shipped::STORY {
        // A scanner needs a while, a log a moment.
        let delay = if topic == "exposure-reports" { 45 * SECOND } else { 3 * SECOND };
        records.extend(log.lines().filter_map(|line| Some((time_in(line, mark)? + delay, topic, line))));
    }
    records.sort();
    let (Some(first), Some(last)) = (records.first().map(|r| r.0), records.last().map(|r| r.0)) else { return Ok(()) };
    let shift = clock::now() - last;
    let started = Instant::now();
    let wait_until = |moment: Micros| {
        let due = Duration::from_micros(((moment - first) / speed).max(0).unsigned_abs());
        while started.elapsed() < due && !stop.load(Ordering::Relaxed) {
            std::thread::sleep((due - started.elapsed()).min(Duration::from_millis(50)));
        }
    };
    for (moment, topic, line) in &records {
        wait_until(*moment);
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        sender.send(topic, None, None, moved(line, shift).as_bytes(), Some(moment + shift))?;
    }
    sender.flush(Duration::from_secs(10))?;
    told.store(records.len() as u64, Ordering::Relaxed);
    let mut round = 0;
    while !once && !stop.load(Ordering::Relaxed) {
        round += 1;
        let world = keyfuse::generate::ordinary(round, clock::now() - 5 * SECOND, 4 * SECOND, 20);
        for record in &world.cloudtrail {
            sender.send("cloudtrail", None, None, record.text.as_bytes(), Some(clock::now()))?;
            std::thread::sleep(Duration::from_millis(100));
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(())
}

fn time_in(line: &str, mark: &str) -> Option<Micros> {
    let (_, rest) = line.split_once(mark)?;
    parse_time(rest.split('"').next()?)
}

/// The record with every time of the story's day moved: texts, and the nanoseconds of spans.
fn moved(line: &str, shift: Micros) -> String {
    if line.starts_with("{\"resourceSpans\"") {
        return moved_nanos(line, shift);
    }
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("\"2026-") {
        out.push_str(&rest[..=at]);
        rest = &rest[at + 1..];
        let end = rest.find('"').unwrap_or(rest.len());
        match parse_time(&rest[..end]) {
            Some(time) => out.push_str(&rfc3339((time + shift) / SECOND * SECOND)),
            None => out.push_str(&rest[..end]),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn moved_nanos(line: &str, shift: Micros) -> String {
    const MARK: &str = "TimeUnixNano\":\"";
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(MARK) {
        let (front, digits) = rest.split_at(at + MARK.len());
        let end = digits.find('"').unwrap_or(digits.len());
        out.push_str(front);
        match digits[..end].parse::<i64>() {
            Ok(nanos) => out.push_str(&(nanos + shift * 1000).to_string()),
            Err(_) => out.push_str(&digits[..end]),
        }
        rest = &digits[end..];
    }
    out + rest
}
