//! Where alerts go. A sink only transports; queue, retry and acknowledgement are the same for all.
//!
//! To add a sink: one file with a [`Sink`], one line where the pipeline makes them.

mod ndjson;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::alert::{Alert, AlertLog};
use crate::clock;
use crate::error::Result;
use crate::metrics::Metrics;

pub use ndjson::Ndjson;

/// Takes alerts to one place.
pub trait Sink: Send {
    /// Name in metrics and in the alert log; stable across restarts.
    fn name(&self) -> &str;

    /// Delivers one revision of an alert. May be given the same revision again after a crash: `alert_id` and `revision` tell.
    ///
    /// # Errors
    /// It was not taken; the same call will be made again.
    fn deliver(&mut self, alert: &Alert, document: &serde_json::Value) -> Result<()>;
}

/// One alert revision on its way.
#[derive(Clone)]
pub struct Parcel {
    pub alert: Alert,
    pub document: serde_json::Value,
}

/// A sink with its queue and thread: slow or dead, it delays nobody else.
pub struct Delivery {
    name: String,
    queue: Option<Sender<Parcel>>,
    closing: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Delivery {
    pub fn start(sink: Box<dyn Sink>, log: Arc<Mutex<AlertLog>>, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let name = sink.name().to_owned();
        let (queue, parcels) = channel();
        let closing = Arc::new(AtomicBool::new(false));
        let thread = {
            let closing = Arc::clone(&closing);
            std::thread::Builder::new().name(format!("sink-{name}")).spawn(move || deliver_all(sink, &parcels, &closing, &log, &metrics))?
        };
        Ok(Self { name, queue: Some(queue), closing, thread: Some(thread) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn send(&self, parcel: Parcel) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(parcel);
        }
    }

    /// Delivers what is queued, and ends. What a dead sink does not take stays in the alert log for the next start.
    pub fn finish(mut self) {
        self.closing.store(true, Ordering::Relaxed);
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Pauses between attempts; the last one repeats (milliseconds).
const PAUSES: [u64; 6] = [50, 200, 1_000, 5_000, 15_000, 30_000];

fn deliver_all(mut sink: Box<dyn Sink>, parcels: &Receiver<Parcel>, closing: &AtomicBool, log: &Mutex<AlertLog>, metrics: &Metrics) {
    let name = sink.name().to_owned();
    while let Ok(parcel) = parcels.recv() {
        let mut attempt = 0;
        loop {
            match sink.deliver(&parcel.alert, &parcel.document) {
                Ok(()) => {
                    let taken = (clock::now() - parcel.alert.decided_at).max(0) as f64 / 1e6;
                    metrics.deliveries.with_label_values(&[&name]).inc();
                    metrics.decided_to_delivered.with_label_values(&[&name]).observe(taken);
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Err(error) = log.delivered(&parcel.alert.alert_id, parcel.alert.revision, &name) {
                        tracing::error!(%error, sink = name, "a delivery could not be noted; it will be repeated after a restart");
                    }
                    break;
                }
                Err(error) => {
                    metrics.delivery_failures.with_label_values(&[&name]).inc();
                    tracing::warn!(%error, sink = name, alert_id = parcel.alert.alert_id, attempt, "delivery failed; trying again");
                    if closing.load(Ordering::Relaxed) && attempt >= 2 {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(PAUSES[attempt.min(PAUSES.len() - 1)]));
                    attempt += 1;
                }
            }
        }
    }
}
