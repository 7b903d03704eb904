//! Canaries: every so often each detection's own firing test goes through the topics, and what comes back is put to the detection.
//!
//! What comes back proves the way from a producer to the decision: broker, consumer group, decoding, the plan and the merge into an
//! alert, which is compared with what the test expects, kept with the canary, marked, and delivered to nobody. It is decided beside the
//! live engine, whose rows it must not mix with; a detection that is switched off or fails there counts as not proven, whatever its
//! canary says. On a thread of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::Order;
use crate::alert::Alert;
use crate::clock::{self, DAY, Micros};
use crate::config::Canaries as Settings;
use crate::decode::Canary;
use crate::detect::{Detection, Test};
use crate::dimension;
use crate::error::{Error, Result};
use crate::secret::Fingerprinter;
use crate::selftest;
use crate::source::broker::Sender as KafkaSender;
use crate::table::{Place, Rows, canaries};

/// What the thread is told.
pub enum Told {
    /// The detections as they are now.
    Detections(Vec<Arc<Detection>>),
    /// Partitions are assigned: what is sent can come back.
    Ready,
    /// With the time at which they were read.
    Returned(Vec<(Canary, Place)>, Micros),
}

/// What a canary has shown.
pub struct Proof {
    pub detection: String,
    pub outcome: &'static str,
    pub sent_at: Micros,
    test: String,
    topic: Arc<str>,
    /// Of the last record that came back.
    place: Option<Place>,
    records: usize,
    returned: usize,
    took: Micros,
    /// The alerts that came of it, as a sink would get them.
    alerts: Vec<serde_json::Value>,
    pub note: Option<String>,
}

impl Proof {
    /// As a row of `canaries`.
    pub fn append(&self, rows: &mut Rows) {
        let nowhere = Place { topic: Arc::clone(&self.topic), partition: -1, offset: -1, record: 0 };
        let id = format!("canary:{}:{}", self.detection, self.sent_at);
        rows.stamp(self.place.as_ref().unwrap_or(&nowhere), Some(self.sent_at), Some(self.sent_at + self.took), &id, &mut String::new());
        rows.text(canaries::DETECTION, Some(&self.detection));
        rows.text(canaries::TEST, Some(&self.test));
        rows.text(canaries::OUTCOME, Some(self.outcome));
        rows.text(canaries::NOTE, self.note.as_deref());
        rows.int(canaries::RECORDS, Some(self.records as i64));
        rows.int(canaries::RETURNED, Some(self.returned as i64));
        rows.int(canaries::MILLISECONDS, Some(self.took / 1000));
        if !self.alerts.is_empty() {
            rows.text(canaries::ALERTS, Some(&serde_json::json!(self.alerts).to_string()));
        }
        rows.end_row();
    }
}

/// A test on its way.
struct Open {
    detection: Arc<Detection>,
    test: Test,
    sent_at: Micros,
    topic: Arc<str>,
    returned: HashMap<usize, serde_json::Value>,
    place: Option<Place>,
}

/// Starts the thread; it ends when the sender is dropped.
///
/// # Errors
/// The thread or the producer cannot be started.
pub fn start(settings: Settings, fingerprinter: Fingerprinter, producer: KafkaSender, topics: Vec<Arc<str>>, orders: Sender<Order>) -> Result<Sender<Told>> {
    let (tell, told) = channel();
    let mut post = Post { settings, fingerprinter, producer, topics, orders, detections: Vec::new(), open: HashMap::new(), rounds: 0, next: None };
    std::thread::Builder::new()
        .name("canaries".into())
        .stack_size(16 << 20)
        .spawn(move || post.work(&told))
        .map_err(|error| Error::environment("starting the canaries' thread").because(error))?;
    Ok(tell)
}

struct Post {
    settings: Settings,
    fingerprinter: Fingerprinter,
    producer: KafkaSender,
    topics: Vec<Arc<str>>,
    orders: Sender<Order>,
    detections: Vec<Arc<Detection>>,
    open: HashMap<String, Open>,
    rounds: usize,
    /// When the next round begins; none before partitions are assigned.
    next: Option<Micros>,
}

impl Post {
    fn work(&mut self, told: &Receiver<Told>) {
        loop {
            let mut proofs = Vec::new();
            match told.recv_timeout(Duration::from_millis(500)) {
                Ok(first) => {
                    // What has come back is looked at before anything is called missing.
                    for one in std::iter::once(first).chain(told.try_iter()) {
                        proofs.extend(self.hear(one));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = clock::now();
            let overdue: Vec<String> = self.open.iter().filter(|(_, open)| now - open.sent_at > self.settings.within).map(|(name, _)| name.clone()).collect();
            for open in overdue.iter().filter_map(|name| self.open.remove(name)) {
                let note = format!("{} of {} records came back within {} s", open.returned.len(), records(&open.test), self.settings.within / clock::SECOND);
                proofs.push(open.proof("missing", &[], Some(note)));
            }
            if self.next.is_some_and(|next| now >= next) {
                self.next = Some(now + self.settings.every);
                proofs.extend(self.send_all());
            }
            if !proofs.is_empty() && self.orders.send(Order::Proved(proofs)).is_err() {
                return;
            }
        }
    }

    fn hear(&mut self, told: Told) -> Vec<Proof> {
        match told {
            Told::Detections(detections) => self.detections = detections,
            Told::Ready => self.next = self.next.or(Some(clock::now())),
            Told::Returned(canaries, at) => return canaries.into_iter().filter_map(|(canary, place)| self.take(canary, place, at)).collect(),
        }
        Vec::new()
    }

    /// Sends each detection's smallest firing test, each round through the next topic.
    fn send_all(&mut self) -> Vec<Proof> {
        self.rounds += 1;
        let mut refused = Vec::new();
        for (number, detection) in self.detections.iter().enumerate() {
            let Some(test) = detection.tests.iter().filter(|test| !test.expect.is_empty()).min_by_key(|test| records(test)) else { continue };
            let sent_at = clock::now();
            // By whole weeks: what a test says of hours, days and bins of time stays true.
            let weeks = (sent_at - selftest::ZERO).div_euclid(7 * DAY);
            let test = selftest::restamped(test, weeks * 7 * DAY);
            let topic = Arc::clone(&self.topics[(number + self.rounds) % self.topics.len()]);
            let of = records(&test);
            let rows = test.rows.iter().filter(|(table, _)| !is_dimension(table)).flat_map(|(table, rows)| rows.iter().map(move |(_, row)| (table, row)));
            let sent = rows.enumerate().try_for_each(|(record, (table, row))| {
                let canary = Canary { sent_at, detection: detection.name.clone(), record, records: of, table: table.clone(), row: row.clone() };
                self.producer.send(&topic, None, None, canary.seal(&self.fingerprinter).as_bytes(), None)
            });
            let open = Open { detection: Arc::clone(detection), test, sent_at, topic, returned: HashMap::new(), place: None };
            match sent {
                Ok(()) => drop(self.open.insert(detection.name.clone(), open)),
                Err(error) => refused.push(open.proof("missing", &[], Some(error.to_string()))),
            }
        }
        refused
    }

    fn take(&mut self, canary: Canary, place: Place, at: Micros) -> Option<Proof> {
        let open = self.open.get_mut(&canary.detection).filter(|open| open.sent_at == canary.sent_at)?;
        if at - open.sent_at > self.settings.within {
            // The rest of it, and the verdict, come with what is overdue.
            return None;
        }
        open.returned.insert(canary.record, canary.row);
        open.place = Some(place);
        if open.returned.len() < canary.records {
            return None;
        }
        let open = self.open.remove(&canary.detection)?;
        let test = open.as_returned();
        Some(match selftest::raise(&open.detection, &test) {
            Ok(alerts) => match selftest::compare(&alerts, &test) {
                Ok(()) => open.proof("seen", &alerts, None),
                Err(message) => open.proof("wrong", &alerts, Some(message)),
            },
            Err(message) => open.proof("wrong", &[], Some(message)),
        })
    }
}

impl Open {
    /// The test with the rows that came back in the place of those that were sent.
    fn as_returned(&self) -> Test {
        let mut test = self.test.clone();
        let rows = test.rows.iter_mut().filter(|(table, _)| !is_dimension(table)).flat_map(|(_, rows)| rows);
        rows.enumerate().for_each(|(record, (_, row))| *row = self.returned.get(&record).cloned().unwrap_or_default());
        test
    }

    fn proof(self, outcome: &'static str, alerts: &[Alert], note: Option<String>) -> Proof {
        let marked = |alert: &Alert| {
            let mut document = alert.document(Some(&self.detection));
            document["held"] = "canary".into();
            document
        };
        let alerts = alerts.iter().map(marked).collect();
        let took = clock::now() - self.sent_at;
        let (records, returned) = (records(&self.test), self.returned.len());
        let Self { detection, test, sent_at, topic, place, .. } = self;
        Proof { detection: detection.name.clone(), outcome, sent_at, test: test.title, topic, place, records, returned, took, alerts, note }
    }
}

fn is_dimension(table: &str) -> bool {
    dimension::by_name(table).is_some()
}

fn records(test: &Test) -> usize {
    test.rows.iter().filter(|(table, _)| !is_dimension(table)).map(|(_, rows)| rows.len()).sum()
}
