//! How far time has come: append progress, never a clock in a log.

use std::collections::HashMap;

use crate::clock::{self, Micros, SECOND};

/// Silence after which a partition with nothing waiting no longer holds the watermark back.
const IDLE_AFTER: Micros = 30 * SECOND;
/// Clocks of brokers differ by less than this.
pub const BROKER_SKEW: Micros = 5 * SECOND;

/// What the broker last said of messages waiting.
#[derive(Default)]
pub struct Lag {
    /// Wall clock before it was asked: what was not there then is appended later.
    pub asked_at: Micros,
    pub waiting: HashMap<(String, i32), i64>,
}

/// How far a partition has come.
#[derive(Clone, Copy)]
pub struct Progress {
    /// Latest append time read; none before the first message.
    pub append_time: Option<Micros>,
    /// When (wall clock) something was last read of it.
    pub heard_at: Micros,
    /// Its times are the broker's.
    pub by_broker: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self { append_time: None, heard_at: clock::now(), by_broker: false }
    }
}

/// How far all partitions have come in append time; none while one of them has messages waiting and was not heard yet.
/// A partition that has been silent for a while, with nothing waiting in it, holds nobody back: where the broker sets the
/// times it has come as far as the clock, else it says nothing. But nobody goes beyond the moment when nothing was waiting: what was
/// appended since has yet to be read.
pub fn watermark(partitions: &HashMap<(String, i32), Progress>, lag: &Lag, now: Micros) -> Option<Micros> {
    let mut least: Option<Micros> = None;
    let drained_at = lag.asked_at - BROKER_SKEW;
    let mut silent = false;
    for (partition, progress) in partitions {
        let drained = lag.waiting.get(partition) == Some(&0);
        let time = match progress.append_time {
            Some(time) if drained && progress.by_broker => time.max(drained_at),
            _ if drained && now - progress.heard_at > IDLE_AFTER => {
                silent = true;
                continue;
            }
            None => return None,
            Some(time) => time,
        };
        least = Some(least.map_or(time, |known| known.min(time)));
    }
    least.map(|time| if silent { time.min(drained_at) } else { time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MINUTE;

    #[test]
    fn a_silent_partition_has_come_as_far_as_the_broker_s_clock_and_a_producer_s_says_nothing() {
        let now = 1_000 * MINUTE;
        let heard = |append_time: Option<Micros>, by_broker: bool| Progress { append_time, heard_at: now - 10 * MINUTE, by_broker };
        let place = |number: i32| ("t".to_owned(), number);
        let lag =
            |waiting: &[i64]| Lag { asked_at: now - SECOND, waiting: waiting.iter().enumerate().map(|(at, waiting)| (place(at as i32), *waiting)).collect() };
        let of = |all: &[Progress], waiting: &[i64]| {
            let partitions = all.iter().enumerate().map(|(at, progress)| (place(at as i32), *progress)).collect();
            watermark(&partitions, &lag(waiting), now)
        };
        let old = now - 60 * MINUTE;
        assert_eq!(of(&[heard(Some(old), true)], &[0]), Some(now - 6 * SECOND), "drained: nothing older can still come");
        assert_eq!(of(&[heard(Some(old), true)], &[5]), Some(old), "five are waiting, and they may be as old");
        assert_eq!(of(&[heard(Some(old), false)], &[0]), None, "a producer's clock: what comes next may say anything");
        assert_eq!(of(&[heard(Some(old), false), heard(Some(now - MINUTE), true)], &[0, 5]), Some(now - MINUTE), "and it holds nobody back");
        assert_eq!(of(&[heard(None, false), heard(Some(now), true)], &[7, 0]), None, "one is not heard yet and has messages waiting");
        assert_eq!(of(&[heard(None, false), heard(Some(now - MINUTE), true)], &[0, 5]), Some(now - MINUTE), "an empty one holds nobody back");
        assert_eq!(of(&[heard(None, false), heard(Some(now), true)], &[0, 5]), Some(now - 6 * SECOND), "but it was empty a moment ago, not now");
    }
}
