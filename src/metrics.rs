//! Every metric: name, labels and meaning in one place. Labels are bounded sets; every series exists at zero from the start.

use prometheus::{Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::alert::Held;
use crate::decode::Reason;
use crate::detect::Level;
use crate::table::{CANARY_OUTCOMES, STREAMS, TABLES};

/// All metrics of one process.
pub struct Metrics {
    registry: Registry,
    pub messages: IntCounterVec,
    pub message_bytes: IntCounterVec,
    pub rows: IntCounterVec,
    pub late_rows: IntCounterVec,
    pub rejects: IntCounterVec,
    pub findings: IntCounterVec,
    pub allowed: IntCounterVec,
    pub alerts: IntCounterVec,
    pub held: IntCounterVec,
    pub retracted: IntCounterVec,
    pub undecided: IntGauge,
    pub pending: IntGauge,
    pub shadow: IntGauge,
    pub late_sweeps: IntCounter,
    pub late_sweep_failures: IntCounter,
    pub progress: Gauge,
    pub detection_errors: IntCounterVec,
    pub detection_suspended: IntGaugeVec,
    pub detection_blind: IntGaugeVec,
    pub expected_sources: IntGaugeVec,
    pub silent_sources: IntGaugeVec,
    pub detection_empty_columns: IntGaugeVec,
    pub detection_last: prometheus::GaugeVec,
    pub detection_behind: prometheus::GaugeVec,
    pub canaries: IntCounterVec,
    pub canary_last_seen: prometheus::GaugeVec,
    pub detection_seconds: prometheus::CounterVec,
    pub detections_loaded: IntGauge,
    pub reloads: IntCounter,
    pub reload_failures: IntCounter,
    pub event_to_append: HistogramVec,
    pub append_to_decided: Histogram,
    pub decided_to_delivered: HistogramVec,
    pub exposure_to_use: Histogram,
    pub use_to_alert: Histogram,
    pub residue_rows: IntGauge,
    pub residue_bytes: IntGauge,
    pub lag: IntGaugeVec,
    pub archive_commits: IntCounter,
    pub archive_failures: IntCounter,
    pub archive_rows: IntCounter,
    pub archive_bytes: IntCounter,
    pub archive_commit_seconds: Histogram,
    pub archive_last_commit: Gauge,
    pub archive_files: IntGaugeVec,
    pub archive_compacted: IntCounter,
    pub archive_duplicates: IntCounterVec,
    pub archive_expired: IntCounter,
    pub archive_tidy_failures: IntCounter,
    pub deliveries: IntCounterVec,
    pub delivery_failures: IntCounterVec,
    pub dead_letters: IntCounterVec,
}

/// The signs of life of a detection: label `what` of `keyfuse_detection_last_timestamp_seconds`.
pub const DETECTION_SIGNS: [&str; 3] = ["candidate", "near_miss", "finding"];

/// Where a name is not valid: a bug that the first scrape test finds.
type Made<T> = prometheus::Result<T>;

impl Metrics {
    /// Creates and registers all metrics, with a series for each of these detections, topics and sinks.
    ///
    /// # Errors
    /// A name taken twice: a bug.
    pub fn new(detections: &[(String, String)], topics: &[String], sinks: &[String]) -> Made<Self> {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let counters = |name: &str, help: &str, labels: &[&str]| register(&registry, IntCounterVec::new(Opts::new(name, help), labels)?);
        let gauges = |name: &str, help: &str, labels: &[&str]| register(&registry, prometheus::GaugeVec::new(Opts::new(name, help), labels)?);
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help)?);
        let seconds =
            |name: &str, help: &str, buckets: &[f64]| register(&registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?);
        let latency = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
        let race = [30.0, 67.0, 90.0, 300.0, 540.0, 1020.0, 3600.0, 86400.0, 864_000.0];
        let delivery = [1.0, 10.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 86400.0];
        let metrics = Self {
            messages: counters("keyfuse_messages_total", "Messages read", &["topic"])?,
            message_bytes: counters("keyfuse_message_bytes_total", "Bytes of messages read", &["topic"])?,
            rows: counters("keyfuse_rows_total", "Rows decoded", &["table"])?,
            late_rows: counters("keyfuse_late_rows_total", "Rows appended later after their event than the table's maximum delay", &["table"])?,
            rejects: counters("keyfuse_rejects_total", "Records that could not become a row", &["reason"])?,
            findings: counters("keyfuse_findings_total", "Rows returned by detections, repeats included", &["detection"])?,
            allowed: counters("keyfuse_findings_allowed_total", "Findings that an allow-list entry covered", &["detection"])?,
            alerts: counters("keyfuse_alerts_total", "New alerts", &["detection", "level"])?,
            held: counters("keyfuse_alerts_held_total", "New alerts that are archived but not delivered", &["detection", "reason"])?,
            retracted: counters("keyfuse_alerts_retracted_total", "Alerts that were told early and taken back", &["detection"])?,
            undecided: gauge("keyfuse_undecided_keys", "Keys with results that wait for rows which may still come")?,
            pending: gauge("keyfuse_pending_keys", "Keys that are still to be looked at: more than one tick's work has arrived")?,
            shadow: gauge("keyfuse_detections_in_shadow", "Detections whose alerts are not delivered until they are promoted")?,
            late_sweeps: counter("keyfuse_late_sweeps_total", "Sweeps for what late rows add")?,
            late_sweep_failures: counter("keyfuse_late_sweep_failures_total", "Sweeps that failed")?,
            progress: register(
                &registry,
                Gauge::new("keyfuse_progress_timestamp_seconds", "How far append time has come on all partitions: what is absent up to there is absent")?,
            )?,
            detection_errors: counters("keyfuse_detection_errors_total", "Evaluations that failed", &["detection"])?,
            detection_suspended: register(
                &registry,
                IntGaugeVec::new(Opts::new("keyfuse_detection_suspended", "1 while a detection is switched off for lack of memory"), &["detection"])?,
            )?,
            detection_blind: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "keyfuse_detection_blind",
                        "1 while a detection cannot see: its logs do not arrive, it fails, or it is switched off; table detection_health says which",
                    ),
                    &["detection"],
                )?,
            )?,
            expected_sources: register(
                &registry,
                IntGaugeVec::new(Opts::new("keyfuse_expected_sources", "Logs that ought to arrive, as `expected_sources` states them"), &["table"])?,
            )?,
            silent_sources: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("keyfuse_silent_sources", "Logs that ought to arrive and have been silent for longer than they may; COV-04 names them"),
                    &["table"],
                )?,
            )?,
            detection_empty_columns: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "keyfuse_detection_empty_columns",
                        "Columns that a detection's predicates read and that no row has filled in the last day; table detection_health names them",
                    ),
                    &["detection"],
                )?,
            )?,
            detection_last: gauges(
                "keyfuse_detection_last_timestamp_seconds",
                "Append time at a detection's last candidate, near miss and finding since it was loaded; 0 before the first",
                &["detection", "what"],
            )?,
            detection_behind: gauges(
                "keyfuse_detection_behind_seconds",
                "For how long a detection has not got through all that it has to look at",
                &["detection"],
            )?,
            canaries: counters("keyfuse_canaries_total", "Canaries that were sent through a topic, by what came of them", &["detection", "outcome"])?,
            canary_last_seen: gauges(
                "keyfuse_canary_last_seen_timestamp_seconds",
                "When the last canary was sent that came back as its alert; 0 before the first",
                &["detection"],
            )?,
            detection_seconds: register(
                &registry,
                prometheus::CounterVec::new(Opts::new("keyfuse_detection_seconds_total", "Time spent evaluating"), &["detection"])?,
            )?,
            detections_loaded: gauge("keyfuse_detections_loaded", "Detections that are evaluated")?,
            reloads: counter("keyfuse_reloads_total", "Reloads of detections and dimensions that went through")?,
            reload_failures: counter("keyfuse_reload_failures_total", "Reloads refused because a file was bad; the old detections kept running")?,
            event_to_append: register(
                &registry,
                HistogramVec::new(HistogramOpts::new("keyfuse_event_to_append_seconds", "From the event to Kafka").buckets(delivery.to_vec()), &["table"])?,
            )?,
            append_to_decided: seconds("keyfuse_append_to_decided_seconds", "From the newest row that caused an alert to the alert", &latency)?,
            decided_to_delivered: register(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new("keyfuse_decided_to_delivered_seconds", "From the alert to its delivery").buckets(latency.to_vec()),
                    &["sink"],
                )?,
            )?,
            exposure_to_use: seconds("keyfuse_exposure_to_use_seconds", "From exposure to first use, event time: the race", &race)?,
            use_to_alert: seconds("keyfuse_use_to_alert_seconds", "From the first use of an exposed credential, event time, to the alert", &delivery)?,
            residue_rows: gauge("keyfuse_residue_rows", "Rows kept for detections")?,
            residue_bytes: gauge("keyfuse_residue_bytes", "Memory of kept rows")?,
            lag: register(&registry, IntGaugeVec::new(Opts::new("keyfuse_lag_messages", "Messages not read yet"), &["topic", "partition"])?)?,
            archive_commits: counter("keyfuse_archive_commits_total", "Flushes committed to the archive")?,
            archive_failures: counter("keyfuse_archive_failures_total", "Flushes that failed and will be tried again")?,
            archive_rows: counter("keyfuse_archive_rows_total", "Rows committed to the archive")?,
            archive_bytes: counter("keyfuse_archive_bytes_total", "Bytes of Parquet written")?,
            archive_commit_seconds: seconds("keyfuse_archive_commit_seconds", "Time of one flush", &latency)?,
            archive_last_commit: register(&registry, Gauge::new("keyfuse_archive_last_commit_timestamp_seconds", "When the last flush was committed")?)?,
            archive_files: register(
                &registry,
                IntGaugeVec::new(Opts::new("keyfuse_archive_files", "Parquet files of a table, as of the last tidying"), &["table"])?,
            )?,
            archive_compacted: counter("keyfuse_archive_compacted_files_total", "Small files whose rows were sorted into larger ones")?,
            archive_duplicates: counters(
                "keyfuse_archive_duplicate_rows_total",
                "Rows left out when an hour was compacted: the same record, delivered again",
                &["table"],
            )?,
            archive_expired: counter("keyfuse_archive_expired_files_total", "Files taken out of the archive because their rows have had their time")?,
            archive_tidy_failures: counter("keyfuse_archive_tidy_failures_total", "Attempts to tidy a table that failed and will be made again")?,
            deliveries: counters("keyfuse_deliveries_total", "Alert revisions that a sink has taken", &["sink"])?,
            delivery_failures: counters("keyfuse_delivery_failures_total", "Attempts that a sink refused", &["sink"])?,
            dead_letters: counters(
                "keyfuse_dead_letters_total",
                "Alert revisions that a sink has refused for good; they are in its file of dead letters",
                &["sink"],
            )?,
            registry,
        };
        for table in STREAMS {
            metrics.rows.with_label_values(&[table.name]);
            metrics.late_rows.with_label_values(&[table.name]);
            metrics.event_to_append.with_label_values(&[table.name]);
            metrics.expected_sources.with_label_values(&[table.name]);
            metrics.silent_sources.with_label_values(&[table.name]);
        }
        for table in TABLES {
            metrics.archive_files.with_label_values(&[table.name]);
            metrics.archive_duplicates.with_label_values(&[table.name]);
        }
        for reason in Reason::ALL {
            metrics.rejects.with_label_values(&[reason.name()]);
        }
        for topic in topics {
            metrics.messages.with_label_values(&[topic]);
            metrics.message_bytes.with_label_values(&[topic]);
        }
        for sink in sinks {
            metrics.deliveries.with_label_values(&[sink]);
            metrics.delivery_failures.with_label_values(&[sink]);
            metrics.dead_letters.with_label_values(&[sink]);
            metrics.decided_to_delivered.with_label_values(&[sink]);
        }
        metrics.know_detections(detections);
        Ok(metrics)
    }

    /// Creates the series of detections, by name and default level. A counter born at 1 would hide its first alert from `increase()`.
    pub fn know_detections(&self, detections: &[(String, String)]) {
        self.detections_loaded.set(detections.len() as i64);
        for (name, _) in detections {
            self.findings.with_label_values(&[name]);
            self.allowed.with_label_values(&[name]);
            self.retracted.with_label_values(&[name]);
            for held in Held::ALL {
                self.held.with_label_values(&[name.as_str(), held.name()]);
            }
            self.detection_errors.with_label_values(&[name]);
            self.detection_suspended.with_label_values(&[name]);
            self.detection_blind.with_label_values(&[name]);
            self.detection_behind.with_label_values(&[name]);
            self.detection_empty_columns.with_label_values(&[name]);
            for what in DETECTION_SIGNS {
                self.detection_last.with_label_values(&[name.as_str(), what]);
            }
            self.canary_last_seen.with_label_values(&[name]);
            for outcome in CANARY_OUTCOMES {
                self.canaries.with_label_values(&[name.as_str(), outcome]);
            }
            self.detection_seconds.with_label_values(&[name]);
            for level in Level::ALL {
                self.alerts.with_label_values(&[name.as_str(), level.name()]);
            }
        }
    }

    /// The page that Prometheus reads.
    pub fn page(&self) -> String {
        let mut page = Vec::new();
        // Only a metric that was never initialised could fail here.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut page);
        String::from_utf8(page).unwrap_or_default()
    }
}

fn register<T: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: T) -> Made<T> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
