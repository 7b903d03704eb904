//! Where alerts go. A sink only transports; queue, retry, grouping, dead letters and acknowledgement are the same for all.
//!
//! To add a sink: one file with a [`Sink`], one line in [`Settings`] and one where it is opened.

mod alertmanager;
mod format;
mod http;
mod incident;
mod kafka;
mod ndjson;
mod ocsf;
mod slack;
mod webhook;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::alert::{Alert, AlertLog};
use crate::clock::{self, Micros};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::source::broker::Sender as KafkaSender;

pub use alertmanager::Alertmanager;
pub use format::{Format, SCHEMA};
pub use incident::Incident;
use incident::Incidents;
pub use kafka::Kafka;
pub use ndjson::Ndjson;
pub use slack::Slack;
pub use webhook::{Webhook, WebhookSettings};

/// One sink as a config describes it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name in metrics and in the alert log; stable across restarts, without secrets.
    pub name: String,
    pub kind: Kind,
}

/// What kind of place it is.
#[derive(Clone, Debug)]
pub enum Kind {
    Ndjson {
        path: PathBuf,
        format: Format,
    },
    Kafka {
        topic: String,
        format: Format,
    },
    Alertmanager {
        url: String,
        resolve_after: Micros,
    },
    Webhook(WebhookSettings),
    /// The address holds a secret, so it may be in a file.
    Slack {
        url: String,
    },
}

impl Settings {
    /// Opens it.
    ///
    /// # Errors
    /// A file or a client that cannot be made; an address that does not answer is no error, it is tried again.
    pub fn open(&self, kafka: &rdkafka::ClientConfig) -> crate::error::Result<Box<dyn Sink>> {
        Ok(match &self.kind {
            Kind::Ndjson { path, format } => Box::new(Ndjson::open(path, *format)?),
            Kind::Kafka { topic, format } => Box::new(Kafka::new(KafkaSender::new(kafka)?, topic, *format)),
            Kind::Alertmanager { url, resolve_after } => Box::new(Alertmanager::new(url, *resolve_after)?),
            Kind::Webhook(settings) => Box::new(Webhook::new(settings)?),
            Kind::Slack { url } => Box::new(Slack::new(url)?),
        })
    }
}

impl Kind {
    /// The name of a sink to which the config gives none.
    ///
    /// # Errors
    /// An address that is none.
    pub fn default_name(&self) -> crate::error::Result<String> {
        Ok(match self {
            Kind::Ndjson { path, .. } => format!("ndjson:{}", path.display()),
            Kind::Kafka { topic, .. } => format!("kafka:{topic}"),
            Kind::Alertmanager { url, .. } => format!("alertmanager:{}", http::host(url)?),
            Kind::Webhook(settings) => format!("webhook:{}", http::host(&settings.url)?),
            Kind::Slack { url } => format!("slack:{}", http::host(url)?),
        })
    }
}

/// Takes alerts to one place.
pub trait Sink: Send {
    /// Delivers one message. May be given the same one again after a crash: `alert_id` and `revision` tell.
    ///
    /// # Errors
    /// It was not taken: the same call is made again, unless that is of no use.
    fn deliver(&mut self, message: &Message<'_>) -> Result<(), Failure>;

    /// Whether people read it: then the alerts of one incident come as one message.
    fn groups(&self) -> bool {
        false
    }

    /// Takes note of an alert that it was given before a restart.
    fn recall(&mut self, _: &Parcel) {}

    /// What is to be done again and again; when next.
    ///
    /// # Errors
    /// It failed, and will be done again.
    fn tick(&mut self, _: Micros) -> Result<Option<Duration>, Failure> {
        Ok(None)
    }
}

/// Why a message was not taken.
#[derive(Debug)]
pub struct Failure {
    pub error: Error,
    /// It would be refused again: it goes to the dead letters.
    pub for_good: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, for_good: false }
    }
}

/// What is delivered at once: one alert, or what is new of an incident.
pub struct Message<'a> {
    pub parcels: &'a [Parcel],
    pub incident: Option<&'a Incident>,
    /// Whether the credential in question still works, as far as logs say.
    pub liveness: Option<&'a str>,
}

/// One alert revision on its way.
#[derive(Clone, Debug)]
pub struct Parcel {
    pub alert: Alert,
    pub document: serde_json::Value,
}

/// Answers whether a credential still works, in words.
pub type AskLiveness = Arc<dyn Fn(&Alert) -> Option<String> + Send + Sync>;

/// What all deliveries share.
#[derive(Clone)]
pub struct Office {
    pub log: Arc<Mutex<AlertLog>>,
    pub metrics: Arc<Metrics>,
    /// File of messages that a sink has refused for good.
    pub dead_letters: PathBuf,
    pub liveness: Option<AskLiveness>,
}

/// Revisions that wait for a sink. A newer one of the same alert takes the older one's place, so a dead sink costs no more memory
/// than there are alerts.
#[derive(Default)]
struct Queue {
    waiting: Mutex<(VecDeque<Parcel>, bool)>,
    change: Condvar,
}

impl Queue {
    fn put(&self, parcel: Parcel) {
        let mut waiting = self.lock();
        match waiting.0.iter_mut().find(|other| other.alert.alert_id == parcel.alert.alert_id) {
            Some(older) => *older = parcel,
            None => waiting.0.push_back(parcel),
        }
        self.change.notify_one();
    }

    /// Puts what was not taken behind the others, where there are any; a newer revision stands for it.
    fn put_back(&self, parcels: &[Parcel]) -> bool {
        let mut waiting = self.lock();
        if waiting.0.is_empty() {
            return false;
        }
        for parcel in parcels {
            if !waiting.0.iter().any(|other| other.alert.alert_id == parcel.alert.alert_id) {
                waiting.0.push_back(parcel.clone());
            }
        }
        true
    }

    fn close(&self) {
        self.lock().1 = true;
        self.change.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.lock().1
    }

    /// What waits, once there is something or the time is over.
    fn take(&self, within: Duration) -> Vec<Parcel> {
        let waiting = self.lock();
        let (mut waiting, _) =
            self.change.wait_timeout_while(waiting, within, |(parcels, closed)| parcels.is_empty() && !*closed).unwrap_or_else(PoisonError::into_inner);
        waiting.0.drain(..).collect()
    }

    /// Waits, but not for one who closes.
    fn pause(&self, time: Duration) {
        let waiting = self.lock();
        drop(self.change.wait_timeout_while(waiting, time, |(_, closed)| !*closed));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (VecDeque<Parcel>, bool)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sink with its queue and thread: slow or dead, it delays nobody else.
pub struct Delivery {
    name: String,
    queue: Arc<Queue>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Delivery {
    /// Starts the thread. `recent` are alerts that it was given before, and that may still go on.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(name: &str, mut sink: Box<dyn Sink>, office: Office, recent: &[Parcel]) -> std::io::Result<Self> {
        recent.iter().for_each(|parcel| sink.recall(parcel));
        let (name, queue) = (name.to_owned(), Arc::new(Queue::default()));
        let mut incidents = sink.groups().then(Incidents::default);
        recent.iter().for_each(|parcel| incidents.iter_mut().for_each(|incidents| incidents.recall(parcel, clock::now())));
        let worker = Worker { incidents, name: name.clone(), sink, queue: Arc::clone(&queue), office, strain: 0 };
        let thread = std::thread::Builder::new().name(format!("sink-{}", name.chars().take(8).collect::<String>())).spawn(move || worker.work())?;
        Ok(Self { name, queue, thread: Some(thread) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn send(&self, parcel: Parcel) {
        self.queue.put(parcel);
    }

    /// Delivers what is queued, and ends. What a dead sink does not take stays in the alert log for the next start.
    pub fn finish(mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Pauses between attempts; the last one repeats (milliseconds).
const PAUSES: [u64; 6] = [50, 200, 1_000, 5_000, 15_000, 30_000];
/// Longest sleep of a sink with nothing to do.
const IDLE: Duration = Duration::from_secs(60);

struct Worker {
    name: String,
    sink: Box<dyn Sink>,
    /// Sinks that people read.
    incidents: Option<Incidents>,
    queue: Arc<Queue>,
    office: Office,
    /// Failures since something was taken.
    strain: usize,
}

impl Worker {
    fn work(mut self) {
        let mut wake: Option<Instant> = None;
        loop {
            let within = wake.map_or(IDLE, |wake| wake.saturating_duration_since(Instant::now()));
            let parcels = self.queue.take(within);
            let closing = self.queue.is_closed();
            if closing && parcels.is_empty() && self.incidents.as_ref().is_none_or(Incidents::is_empty) {
                return;
            }
            let mut delivered = true;
            let mut due = Vec::new();
            match &mut self.incidents {
                None => due.extend(parcels.into_iter().map(|parcel| (vec![parcel], None))),
                Some(incidents) => {
                    let no_news: Vec<Parcel> = parcels.into_iter().filter_map(|parcel| incidents.add(parcel, clock::now())).collect();
                    due.extend(incidents.due(clock::now(), closing).into_iter().map(|(parcels, incident)| (parcels, Some(incident))));
                    no_news.iter().for_each(|parcel| self.note(parcel));
                }
            }
            for (parcels, incident) in due {
                delivered &= self.deliver(&parcels, incident.as_ref());
                if closing && !delivered {
                    return;
                }
            }
            let ticked = self.sink.tick(clock::now()).unwrap_or_else(|failure| {
                self.office.metrics.delivery_failures.with_label_values(&[&self.name]).inc();
                tracing::warn!(error = %failure.error, sink = self.name, "what is sent again could not be");
                Some(Duration::from_secs(10))
            });
            let grouped = self.incidents.as_ref().and_then(|incidents| incidents.next(clock::now()));
            wake = ticked.into_iter().chain(grouped).min().map(|within| Instant::now() + within);
        }
    }

    /// Delivers a message, however long it takes; false where the service ends before.
    fn deliver(&mut self, parcels: &[Parcel], incident: Option<&Incident>) -> bool {
        let liveness = incident.and_then(|_| self.office.liveness.as_ref()?(&parcels.first()?.alert));
        let message = Message { parcels, incident, liveness: liveness.as_deref() };
        let metrics = Arc::clone(&self.office.metrics);
        let mut attempt = 0;
        loop {
            match self.sink.deliver(&message) {
                Ok(()) => {
                    self.strain = 0;
                    for parcel in parcels {
                        metrics.deliveries.with_label_values(&[&self.name]).inc();
                        let taken = (clock::now() - parcel.alert.decided_at).max(0) as f64 / 1e6;
                        metrics.decided_to_delivered.with_label_values(&[&self.name]).observe(taken);
                        self.note(parcel);
                    }
                    return true;
                }
                Err(failure) => {
                    metrics.delivery_failures.with_label_values(&[&self.name]).inc();
                    let alert_id = parcels.first().map(|parcel| parcel.alert.alert_id.as_str());
                    if failure.for_good {
                        tracing::error!(error = %failure.error, sink = self.name, alert_id, "refused for good: it goes to the dead letters");
                        self.bury(parcels, &failure.error);
                        return true;
                    }
                    tracing::warn!(error = %failure.error, sink = self.name, alert_id, attempt, "delivery failed; trying again");
                    if self.queue.is_closed() && attempt >= 1 {
                        return false;
                    }
                    self.queue.pause(Duration::from_millis(PAUSES[self.strain.min(PAUSES.len() - 1)]));
                    self.strain += 1;
                    attempt += 1;
                    // One alert that a receiver stumbles over must not hold up the others.
                    if self.incidents.is_none() && self.queue.put_back(parcels) {
                        return false;
                    }
                }
            }
        }
    }

    fn note(&self, parcel: &Parcel) {
        let mut log = self.office.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = log.delivered(&parcel.alert.alert_id, parcel.alert.revision, &self.name) {
            tracing::error!(%error, sink = self.name, "a delivery could not be noted; it will be repeated after a restart");
        }
    }

    fn bury(&self, parcels: &[Parcel], why: &Error) {
        for parcel in parcels {
            self.office.metrics.dead_letters.with_label_values(&[&self.name]).inc();
            let letter = serde_json::json!({"sink": self.name, "error": why.to_string(), "at": clock::rfc3339(clock::now()), "alert": parcel.document});
            match append(&self.office.dead_letters, &letter.to_string()) {
                Ok(()) => self.note(parcel),
                Err(error) => tracing::error!(%error, "a dead letter could not be written; it will be tried again after a restart"),
            }
        }
    }
}

fn append(path: &Path, line: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{line}")
}
