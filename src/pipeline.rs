//! The whole line: source → decode → detect → alert → sinks, with the archive beside it. The only part that sees all of it.
//!
//! Three kinds of threads: `kafka` fetches; `engine` decodes, decides and writes the alert log; a Tokio runtime flushes the
//! archive and serves HTTP. Bounded channels join them, so a slow part slows its source instead of filling memory.
//!
//! **The commit rule.** A range of offsets is committed only after every row of it is in the archive and every alert that came
//! of it is in the fsynced alert log. The engine thread hands a flush over after the log is synced; the archive commits
//! rows and positions atomically; only then the consumer group is told.

mod asking;
mod canaries;
mod reloading;
mod rollout;
mod tidying;
mod watermark;
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use tokio::sync::oneshot;

use crate::alert::{Alert, AlertBook, AlertLog, Held, Status};
use crate::archive::{Archive, ArchiveHistory, Flushed, Positions};
use crate::clock::{self, Micros};
use crate::config::Config;
use crate::decode::{self, Decoder, Message, read_mappings};
use crate::detect::{Detection, Engine, Finding, Plans, Tally, read_folder};
use crate::dimension::{Dimensions, Statement};
use crate::error::{At, Error, Fault, Result};
use crate::late::Window;
use crate::limits;
use crate::metrics::{DETECTION_SIGNS, Metrics};
use crate::query::{Doors, Limits};
use crate::schedule::Calendar;
use crate::secret::Fingerprinter;
use crate::sink::{AskLiveness, Delivery, Office, Parcel};
use crate::source::broker::Sender as KafkaSender;
use crate::source::kafka::{Event, Fetched, KafkaSource, Poll, client_config};
use crate::table::{
    History, LookBack, Memory, Rows, STREAMS, TABLES, Table, alerts, canaries as canary_rows, cloudtrail as system, detection_health, rejects, statements,
    words,
};
pub use watermark::{BROKER_SKEW, Lag, Progress, watermark};

use asking::{Answer, Question, What};
use canaries::{Proof, Told};
use reloading::{Loaded, Read, Reloading};
use rollout::{Rollout, Rollouts};
use world::{Listener, World};

/// How far back alerts stay in memory and in the alert log after their last finding.
const ALERTS_STAY: Micros = 100 * clock::DAY;
/// Most often that a change of one alert is delivered.
const UPDATE_EVERY: Micros = 10 * clock::SECOND;
/// Rows not yet archived before the engine waits for a flush (bytes in memory).
const UNARCHIVED_BYTES: usize = 512 << 20;
/// Clocks of honest producers differ by less than this.
const CLOCK_SKEW: Micros = 2 * clock::MINUTE;
/// A detection that looks at what arrived so long ago (append time) is said to be behind.
const BEHIND: Micros = 10 * clock::SECOND;
/// How often it is noted what each detection could see.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// How often at first, and how many times.
const LOOK_FIRST: Duration = Duration::from_secs(15);
const FIRST_LOOKS: u32 = 20;
/// Silent logs that are named in the health of a detection, at most.
const SILENT_NAMED: usize = 20;
/// How often late rows are swept (append time).
const SWEEP_EVERY: Micros = 15 * clock::MINUTE;
/// How long the keys of a late row are swept again, for what arrives after it.
const SWEEP_AGAIN: Micros = clock::DAY;
/// A sink that never took anything before is told of alerts that were decided so long ago.
const NEW_SINK_GETS: Micros = clock::DAY;
/// Longest that a message waits for what is known of its credential.
const LIVENESS: Duration = Duration::from_secs(3);
/// How often time goes on without a message.
const PASS_EVERY: Duration = Duration::from_secs(1);
/// A flush is due at this size even before its time (bytes in memory).
const FLUSH_BYTES: usize = 64 << 20;

/// What a running service tells about itself, for HTTP and the terminal.
#[derive(Default)]
pub struct Health {
    pub ready: AtomicBool,
    pub last_progress: AtomicU64,
    pub problem: RwLock<Option<String>>,
}

impl Health {
    fn moves(&self) {
        self.last_progress.store(clock::now() as u64, Ordering::Relaxed);
    }

    fn fail(&self, problem: Option<String>) {
        *self.problem.write().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Why the service is not well, if it is not.
    pub fn trouble(&self) -> Option<String> {
        self.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Something to show on a terminal.
pub enum Show {
    /// A new or changed alert, and how long after the newest of its rows it was decided (microseconds).
    Alert(Box<Alert>, Option<Micros>),
    /// Rows decoded, by table, and messages waiting in Kafka.
    Rows(Vec<(&'static str, u64)>),
}

/// Orders to a running service.
pub enum Order {
    /// Take files and detections as they are now.
    Reload,
    /// What topics of dimensions newly say.
    State(Vec<Statement>),
    /// Detections that were read again, and whose past is known now.
    Loaded(Box<Read>),
    /// What the archive answered.
    Answered(Answer),
    /// Look for what late rows add, now.
    Sweep,
    /// What canaries have shown.
    Proved(Vec<Proof>),
    /// Deliver the alerts of this detection from now on, and say whether that changes anything.
    Promote(String, oneshot::Sender<Promotion>),
    Stop,
}

/// What came of the order to promote a detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    Done,
    /// None of that name is loaded.
    Unknown,
    NotInShadow,
}

/// A running service.
pub struct Service {
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    /// Doors on the archive and on what is not in it yet.
    pub doors: Arc<Doors>,
    orders: Sender<Order>,
    engine: std::thread::JoinHandle<Result<()>>,
    stopped: Arc<AtomicBool>,
}

impl Service {
    /// Opens everything and starts to work. `show` gets what a terminal may want to print.
    ///
    /// # Errors
    /// All detections that are refused, or the first part that cannot be opened.
    pub fn start(config: &Config, runtime: tokio::runtime::Handle, show: Option<SyncSender<Show>>) -> Result<Self, Vec<Error>> {
        let one = |error: Error| vec![error];
        let detections = with_levels(read_folder(&config.detections)?, config);
        let fingerprinter = Fingerprinter::from_file(&config.data.join("fingerprint.key")).map_err(one)?;
        let archive = Arc::new(runtime.block_on(Archive::open(&config.archive, &config.archive_options)).map_err(one)?);
        let mut stated = Statement::of_rows(&runtime.block_on(archive.all(&statements::TABLE)).map_err(one)?);
        let listener = Listener::new(config, &fingerprinter, &stated);
        // To start without what is stated would raise false alerts: a broker that does not answer is an error here.
        let fresh = listener.listen().map_err(one)?;
        let spans = runtime.block_on(archive.spans()).map_err(one)?;
        let decided_to = spans.iter().map(|(_, (_, last))| *last).max().unwrap_or(Micros::MIN);
        runtime.block_on(take_statements(&archive, &listener, &mut stated, fresh, decided_to)).map_err(one)?;
        let World { dimensions, networks, mut allow, allow_in_files } = World::read(config, &stated)?;
        let dimensions = Arc::new(dimensions);
        let plans = Plans::new(&detections, &fingerprinter)?;
        let mut engine = engine_for(config, &plans, &dimensions).map_err(one)?;
        engine.begin(&spans);
        let decoding = decode::Settings {
            fingerprinter: fingerprinter.clone(),
            networks,
            mappings: read_mappings(&config.mappings).map_err(one)?,
            keep_raw: config.keep_raw,
        };
        allow_in_files.fits(&engine)?;
        tell_left_out(allow.keep_fitting(&engine));
        let (mut log, recovered) = AlertLog::open(&config.data.join("alerts.log")).map_err(one)?;
        let noted = recovered.rollouts.iter().filter_map(|note| serde_json::from_value(note.clone()).ok()).collect();
        let mut rollouts = Rollouts::new(noted, config.shadow);
        for rollout in rollouts.load(detections.iter(), clock::now()) {
            log.rollout(&rollout).map_err(one)?;
        }
        let log = Arc::new(Mutex::new(log));
        let kafka = client_config(&config.kafka).map_err(one)?;
        for name in config.unknown_detections(&detections) {
            tracing::error!(name, "[levels] or [[silences]] name a detection that is not loaded: it has no effect");
        }
        let names = names_of(&detections);
        let topics: Vec<String> = config.topics.iter().map(|topic| topic.name.clone()).collect();
        let sink_names: Vec<String> = config.sinks.iter().map(|sink| sink.name.clone()).collect();
        let metrics = Metrics::new(&names, &topics, &sink_names).map_err(|error| one(Error::bug("metrics").because(error)))?;
        let metrics = Arc::new(metrics);

        let (events_in, events) = sync_channel(8);
        let (orders, orders_out) = channel();
        let starts = {
            let (archive, runtime) = (Arc::clone(&archive), runtime.clone());
            Box::new(move |partitions: &[(String, i32)]| runtime.block_on(archive.positions(&rejects::TABLE, partitions)))
        };
        let source = KafkaSource::start(&kafka, &topics, starts, events_in).map_err(one)?;
        let dead_letter = match &config.dead_letter {
            Some(topic) => Some((KafkaSender::new(&kafka).map_err(one)?, topic.clone())),
            None => None,
        };
        let hot = Arc::new(Memory::default());
        let limits = config.sql.as_ref().map_or(Limits::default(), |(_, limits)| *limits);
        let doors = Arc::new(Doors::new(Some(Arc::clone(&archive)), Arc::clone(&hot), Arc::clone(&dimensions), fingerprinter.clone(), limits));
        let parcel = |alert: &Alert| Parcel { document: alert.document(detections.iter().find(|d| d.id == alert.detection_id)), alert: alert.clone() };
        let told = |alert: &&Alert, sink: &str| {
            let taken = recovered.delivered.get(&(alert.alert_id.clone(), sink.to_owned()));
            alert.held.is_none() && taken.is_some_and(|revision| *revision >= alert.revision)
        };
        let mut deliveries = Vec::new();
        for settings in &config.sinks {
            let office = Office {
                log: Arc::clone(&log),
                metrics: Arc::clone(&metrics),
                dead_letters: config.data.join("undelivered.ndjson"),
                liveness: Some(liveness(&doors, &runtime)),
            };
            let recent: Vec<Parcel> = recovered.alerts.iter().filter(|alert| told(alert, &settings.name)).map(parcel).collect();
            let delivery = Delivery::start(&settings.name, settings.open(&kafka).map_err(one)?, office, &recent);
            deliveries.push(delivery.map_err(|error| one(Error::environment("starting a sink's thread").because(error)))?);
        }
        let mut book = AlertBook::new(allow);
        let mut unarchived = BTreeSet::new();
        for alert in recovered.alerts {
            // A sink that has just been named is not told of months gone by.
            let is_old = |sink: &str| !recovered.delivered.keys().any(|(_, known)| known == sink) && clock::now() - alert.decided_at > NEW_SINK_GETS;
            for delivery in deliveries.iter().filter(|delivery| alert.held.is_none() && !told(&&alert, delivery.name()) && !is_old(delivery.name())) {
                delivery.send(parcel(&alert));
            }
            if recovered.archived.get(&alert.alert_id).is_none_or(|revision| *revision < alert.revision) {
                unarchived.insert(alert.alert_id.clone());
                let mut rows = Rows::new(&alerts::TABLE);
                alert.append(&mut rows);
                hot.add(&alerts::TABLE, &rows.finish());
            }
            book.restore(alert);
        }
        let health = Arc::new(Health::default());
        let questions = asking::start(&archive, &fingerprinter, orders.clone()).map_err(one)?;
        let tidying = tidying::start(&archive, config.keep, &metrics).map_err(one)?;
        let canaries = match config.canaries {
            Some(settings) => {
                let producer = KafkaSender::new(&kafka).map_err(one)?;
                let topics = topics.iter().map(|topic| Arc::from(topic.as_str())).collect();
                Some(canaries::start(settings, fingerprinter.clone(), producer, topics, orders.clone()).map_err(one)?)
            }
            None => None,
        };
        let worker = Worker {
            doors: Arc::clone(&doors),
            canaries,
            proofs: HashMap::new(),
            dimensions,
            questions,
            _tidying: tidying,
            calendar: Calendar::since(recovered.asked),
            reloading: None,
            orders: orders.clone(),
            rollouts,
            decoders: config.topics.iter().map(|t| (t.name.clone(), Decoder::new(t.format, decoding.clone()))).collect(),
            past: Past { memory: Arc::clone(&hot), archive: ArchiveHistory { archive: Arc::clone(&archive), runtime: runtime.clone() } },
            config: config.clone(),
            listener: listener.clone(),
            stated,
            decided_to,
            decided: recovered.progress,
            archived_to: recovered.progress,
            swept_to: recovered.swept,
            sweeping: false,
            sources_wait: 0,
            looked: None,
            looks: 0,
            reported: Instant::now(),
            fingerprinter,
            detections: detections.into_iter().map(|d| (d.name.clone(), Arc::new(d))).collect(),
            plans: Arc::new(plans),
            engine,
            book,
            log,
            deliveries,
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            archive,
            runtime,
            source,
            dead_letter,
            show,
            positions: Positions::new(),
            floors: HashMap::new(),
            progress: HashMap::new(),
            unlogged: BTreeSet::new(),
            last_told: HashMap::new(),
            unarchived,
            unarchived_bytes: 0,
            flush: None,
            last_flush: Instant::now(),
            passed: Instant::now(),
            failed: None,
            rows: BTreeMap::new(),
            stopping: false,
            lag: Arc::default(),
        };
        let engine = std::thread::Builder::new()
            .name("engine".into())
            .stack_size(16 << 20)
            .spawn(move || worker.run(events, &orders_out))
            .map_err(|error| one(Error::environment("starting the engine thread").because(error)))?;
        let stopped = Arc::new(AtomicBool::new(false));
        if !config.dimension_topics.is_empty() {
            let (orders, stopped) = (orders.clone(), Arc::clone(&stopped));
            let watcher = std::thread::Builder::new().name("dimensions".into()).spawn(move || listener.watch(&orders, &stopped));
            watcher.map_err(|error| one(Error::environment("starting the thread that watches dimensions").because(error)))?;
        }
        Ok(Self { metrics, health, doors, orders, engine, stopped })
    }

    /// Reads the detections again; a bad file keeps the old ones running.
    pub fn reload(&self) {
        let _ = self.orders.send(Order::Reload);
    }

    /// Where to send orders, such as [`Order::Sweep`].
    pub fn orders(&self) -> Sender<Order> {
        self.orders.clone()
    }

    /// Whether it still works.
    pub fn is_running(&self) -> bool {
        !self.engine.is_finished()
    }

    /// Drains, flushes, commits, delivers, and ends.
    ///
    /// # Errors
    /// What ended the service before it was asked to.
    pub fn stop(self) -> Result<()> {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = self.orders.send(Order::Stop);
        self.engine.join().map_err(|_| Error::bug("the engine thread panicked"))?
    }
}

/// Archives statements and takes them up. They count from when they were made, but not for rows that were decided without them.
async fn take_statements(archive: &Archive, listener: &Listener, stated: &mut Vec<Statement>, mut fresh: Vec<Statement>, decided_to: Micros) -> Result<()> {
    if fresh.is_empty() {
        return Ok(());
    }
    for statement in &mut fresh {
        statement.holds_from = statement.stated_at.max(decided_to.saturating_add(1));
    }
    archive.append(&statements::TABLE, &Statement::rows(&fresh, clock::now())).await?;
    listener.knows(&fresh);
    stated.extend(fresh);
    stated.sort_by(Statement::cmp_in_time);
    Ok(())
}

/// An engine with the bounds of a running service.
fn engine_for(config: &Config, plans: &Plans, dimensions: &Dimensions) -> Result<Engine> {
    Ok(Engine::of(plans, dimensions)?.with_residue_budget(config.residue_budget).with_tick_bounds(limits::TICK_ROWS, limits::TICK_TIME))
}

/// The detections at the levels that the config gives them.
fn with_levels(mut detections: Vec<Detection>, config: &Config) -> Vec<Detection> {
    for detection in &mut detections {
        detection.own_level = config.levels.get(&detection.name).copied();
    }
    detections
}

/// Asks what became of the credential of an alert.
fn liveness(doors: &Arc<Doors>, runtime: &tokio::runtime::Handle) -> AskLiveness {
    let (doors, runtime) = (Arc::clone(doors), runtime.clone());
    Arc::new(move |alert| {
        let (kind, credential) = alert.subject();
        if kind != "credential" {
            return None;
        }
        let sql = format!(
            "SELECT concat_ws(' ', state, 'since', to_char(since, '%Y-%m-%dT%H:%M:%SZ'), 'by', changed_by) FROM key_state WHERE credential = '{}' ORDER BY since DESC LIMIT 1",
            credential.replace('\'', "''")
        );
        let asked = runtime.block_on(async { tokio::time::timeout(LIVENESS, async { doors.open().await?.ask(&sql).await }).await });
        match asked {
            Ok(Ok(answer)) if answer.rows() == 0 => Some("as far as the logs say: nobody has deactivated, deleted or quarantined it".into()),
            Ok(Ok(answer)) => answer.batches.iter().find(|batch| batch.num_rows() > 0).and_then(|batch| {
                let text = arrow::util::display::array_value_to_string(batch.column(0), 0).ok()?;
                Some(text)
            }),
            Ok(Err(error)) => Some(format!("could not be asked: {error}")),
            Err(_) => Some("could not be asked in time".into()),
        }
    })
}

fn tell_left_out(problems: Vec<Error>) {
    for error in problems {
        tracing::error!(%error, "an allowance that a topic states was left out");
    }
}

/// What is said of silent logs: the first of them by name.
fn silence_of(silent: &[String]) -> String {
    let more = silent.len().saturating_sub(SILENT_NAMED);
    let named = silent[..silent.len() - more].join(", ");
    if more > 0 { format!("silent: {named} and {more} more") } else { format!("silent: {named}") }
}

fn names_of(detections: &[Detection]) -> Vec<(String, String)> {
    detections.iter().map(|d| (d.name.clone(), d.level.name().to_owned())).collect()
}

/// What is not yet in the archive, what is on its way there, and the archive.
#[derive(Clone)]
struct Past {
    memory: Arc<Memory>,
    archive: ArchiveHistory,
}

impl History for Past {
    fn rows(&self, ask: &LookBack<'_>) -> Result<Vec<RecordBatch>> {
        // Hot first: a row that moves on meanwhile is seen twice, never missed.
        let mut rows = self.memory.rows(ask)?;
        rows.extend(self.archive.rows(ask)?);
        Ok(rows)
    }

    fn is_kept(&self) -> bool {
        true
    }
}

/// A flush on its way, whole enough to be tried again.
struct Pending {
    batches: Vec<(&'static Table, RecordBatch)>,
    positions: Positions,
    alerts: Vec<Alert>,
    /// How far everything had been decided.
    decided: Option<Micros>,
    committed: BTreeSet<&'static str>,
}

type FlushResult = (Result<Flushed>, Pending, Duration);

struct Worker {
    config: Config,
    doors: Arc<Doors>,
    canaries: Option<Sender<Told>>,
    /// When the last canary of each detection was sent, and what came of it.
    proofs: HashMap<String, (Micros, &'static str)>,
    dimensions: Arc<Dimensions>,
    questions: Sender<Question>,
    /// While it is there, the archive is kept tidy.
    _tidying: Sender<()>,
    /// Which moments each detection with a schedule was asked about.
    calendar: Calendar,
    /// Detections that will take the place of those that run.
    reloading: Option<Reloading>,
    orders: Sender<Order>,
    rollouts: Rollouts,
    listener: Listener,
    /// All that the topics of dimensions have stated.
    stated: Vec<Statement>,
    /// Latest append time of any row that the engine has seen.
    decided_to: Micros,
    /// How far append time has come on all partitions: everything that is sure up to there has been decided.
    decided: Option<Micros>,
    /// How far append time had come at the last commit: every row up to there is in the archive.
    archived_to: Option<Micros>,
    /// Up to which append time late rows were swept.
    swept_to: Option<Micros>,
    sweeping: bool,
    /// Flushes to go until the archive is asked for new logs that ought to arrive; none: it is not to be asked.
    sources_wait: u8,
    /// When the detections were last looked at.
    looked: Option<Instant>,
    looks: u32,
    /// When metrics were last taken from the engine's own report.
    reported: Instant,
    /// When time last went on without a message.
    passed: Instant,
    fingerprinter: Fingerprinter,
    detections: HashMap<String, Arc<Detection>>,
    decoders: HashMap<String, Decoder>,
    plans: Arc<Plans>,
    engine: Engine,
    book: AlertBook,
    log: Arc<Mutex<AlertLog>>,
    deliveries: Vec<Delivery>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    archive: Arc<Archive>,
    runtime: tokio::runtime::Handle,
    source: KafkaSource,
    dead_letter: Option<(KafkaSender, String)>,
    show: Option<SyncSender<Show>>,
    past: Past,
    /// Behind the last message taken, by partition.
    positions: Positions,
    /// Where a table is ahead of `rejects`: rows below are already in it.
    floors: HashMap<(&'static str, String, i32), i64>,
    progress: HashMap<(String, i32), Progress>,
    /// Alerts whose newest revision is not in the log yet, because they changed only moments ago.
    unlogged: BTreeSet<String>,
    last_told: HashMap<String, Micros>,
    unarchived: BTreeSet<String>,
    unarchived_bytes: usize,
    flush: Option<Receiver<FlushResult>>,
    last_flush: Instant,
    /// A flush that failed, to be tried again before anything newer.
    failed: Option<Pending>,
    rows: BTreeMap<&'static str, u64>,
    stopping: bool,
    lag: Arc<Mutex<Lag>>,
}

impl Worker {
    fn run(mut self, events: Receiver<Event>, orders: &Receiver<Order>) -> Result<()> {
        let ended = self.work(&events, orders);
        // With nobody to read it, a full channel would hold the Kafka thread, and that this one, for ever.
        drop(events);
        if let Err(error) = &ended {
            self.health.fail(Some(error.to_string()));
            tracing::error!(%error, "the service stops");
        }
        if let Some(reloading) = self.reloading.take() {
            let _ = reloading.call_off().join();
        }
        let closed = match &ended {
            Ok(()) => self.close(),
            Err(_) => Ok(()),
        };
        self.source.join();
        for delivery in self.deliveries {
            delivery.finish();
        }
        ended.and(closed)
    }

    fn work(&mut self, events: &Receiver<Event>, orders: &Receiver<Order>) -> Result<()> {
        self.ask_sources();
        self.tell_canaries(|worker| Told::Detections(worker.detections.values().cloned().collect()));
        loop {
            self.obey(orders)?;
            // What is still to be looked at does not wait for a message.
            let wait = if self.engine.pending() > 0 { Duration::ZERO } else { Duration::from_millis(50) };
            match events.recv_timeout(wait) {
                Ok(Event::Poll(poll)) => self.poll(poll)?,
                Ok(Event::Assigned(starts)) => self.assigned(starts)?,
                Ok(Event::Revoked(done)) => {
                    self.flush_and_wait()?;
                    self.positions.clear();
                    self.progress.clear();
                    // Whose partitions these are now decides about their keys.
                    self.begin_at(self.decided)?;
                    let _ = done.send(());
                }
                Ok(Event::Ended(Some(error))) => return Err(error),
                Ok(Event::Ended(None)) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.passed.elapsed() >= PASS_EVERY || self.engine.pending() > 0 {
                self.pass_time(None)?;
            }
            self.tell_updates(false)?;
            self.finish_flush(Duration::ZERO)?;
            let due = self.last_flush.elapsed() >= self.config.commit_every || self.unarchived_bytes >= FLUSH_BYTES;
            if due && !self.stopping {
                self.start_flush()?;
            }
            while self.unarchived_bytes >= UNARCHIVED_BYTES && !self.stopping {
                // The archive does not keep up: wait for it instead of filling memory. Kafka keeps the rest.
                // That is no standstill: a restart would only read the same again.
                self.health.moves();
                self.finish_flush(PASS_EVERY)?;
                self.start_flush()?;
                std::thread::sleep(Duration::from_millis(if self.failed.is_some() { 500 } else { 0 }));
                self.obey(orders)?;
            }
            // The past of new detections takes that long to be read: what comes next waits, Kafka keeps it.
            while self.reloading.as_ref().is_some_and(Reloading::is_full) && !self.stopping {
                self.obey(orders)?;
                std::thread::sleep(Duration::from_millis(10));
            }
            self.health.moves();
        }
    }

    fn obey(&mut self, orders: &Receiver<Order>) -> Result<()> {
        match orders.try_recv() {
            Ok(Order::Reload) => self.reload(),
            Ok(Order::State(fresh)) => {
                let Self { archive, listener, stated, decided_to, runtime, .. } = self;
                match runtime.block_on(take_statements(archive, listener, stated, fresh, *decided_to)) {
                    Ok(()) => self.take_world(),
                    Err(error) => tracing::error!(%error, "statements could not be archived and do not count yet; they will be tried again"),
                }
            }
            Ok(Order::Loaded(read)) => self.take_loaded(*read),
            Ok(Order::Answered(answer)) => self.take_answer(answer)?,
            Ok(Order::Proved(proofs)) => self.take_proofs(proofs)?,
            Ok(Order::Sweep) => self.ask_late(self.archived_to),
            Ok(Order::Promote(name, answer)) => {
                let promotion = self.promote(&name)?;
                tracing::info!(name, ?promotion, "asked to promote a detection");
                let _ = answer.send(promotion);
            }
            Ok(Order::Stop) => {
                self.stopping = true;
                self.source.stop();
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn promote(&mut self, name: &str) -> Result<Promotion> {
        let Some(detection) = self.detections.values().find(|detection| detection.name.eq_ignore_ascii_case(name)) else { return Ok(Promotion::Unknown) };
        if !self.rollouts.is_shadow(detection.id) {
            return Ok(Promotion::NotInShadow);
        }
        let promoted = self.rollouts.promote(detection.id);
        self.note_rollouts(promoted)?;
        Ok(Promotion::Done)
    }

    fn note_rollouts(&self, rollouts: impl IntoIterator<Item = Rollout>) -> Result<()> {
        let shadow = self.detections.values().filter(|detection| self.rollouts.is_shadow(detection.id)).count();
        self.metrics.shadow.set(shadow as i64);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        rollouts.into_iter().try_for_each(|rollout| log.rollout(&rollout))
    }

    /// Every row up to this append time is in the archive: what waits for that is asked.
    fn has_archived_to(&mut self, archived_to: Option<Micros>) -> Result<()> {
        self.archived_to = archived_to;
        self.ask_scheduled(archived_to)?;
        if self.sources_wait > 0 {
            self.sources_wait -= 1;
            if self.sources_wait == 0 {
                let at = self.engine.newest().max(self.engine.progress()).max(self.decided_to);
                let _ = self.questions.send(Question { what: What::Sources(at), dimensions: Arc::clone(&self.dimensions) });
            }
        }
        let due = |swept_to: Micros| archived_to.is_some_and(|to| to - swept_to >= SWEEP_EVERY);
        if self.swept_to.is_none_or(due) {
            self.ask_late(archived_to);
        }
        Ok(())
    }

    /// Asks the detections with a schedule about the moments that append time, and the archive with it, has passed.
    fn ask_scheduled(&mut self, archived_to: Option<Micros>) -> Result<()> {
        let Some(archived_to) = archived_to else { return Ok(()) };
        for asked in self.engine.scheduled() {
            if let Some(since) = self.calendar.begin(&asked.detection, archived_to) {
                self.log.lock().unwrap_or_else(PoisonError::into_inner).asked(asked.detection.id, since)?;
            }
            for (asked, at) in self.calendar.due(asked, archived_to) {
                let _ = self.questions.send(Question { what: What::Scheduled(asked, at), dimensions: Arc::clone(&self.dimensions) });
            }
        }
        Ok(())
    }

    /// Asks what the archive has heard of logs that ought to arrive and that are new to the engine, once what came before they were
    /// known is in it: after the flush that may be under way, and the next.
    fn ask_sources(&mut self) {
        if self.engine.expected().asks() {
            self.sources_wait = 2;
        }
    }

    /// Asks what late rows add, unless that is being asked already.
    fn ask_late(&mut self, archived_to: Option<Micros>) {
        let Some(until) = archived_to.filter(|_| !self.sweeping) else { return };
        let after = self.swept_to.get_or_insert(until).saturating_sub(SWEEP_AGAIN);
        self.sweeping = true;
        let what = What::Late(Arc::clone(&self.plans), Window { after, until }, self.book.allow_list().clone(), self.config.residue_budget);
        let _ = self.questions.send(Question { what, dimensions: Arc::clone(&self.dimensions) });
    }

    fn take_answer(&mut self, answer: Answer) -> Result<()> {
        let failure = match answer {
            Answer::Scheduled(detection, at, Ok(mut findings)) => {
                self.engine.note_asked(&detection, at, Some(findings.len()));
                findings.retain(|finding| self.engine.is_sure(&detection, finding.alert_time, at));
                findings.iter_mut().for_each(|finding| finding.warming = self.engine.is_warming(&detection, finding.alert_time));
                self.take_findings(&findings, None);
                // The log says that it was asked only after it says what came of it.
                self.tell_updates(true)?;
                let asked_to = self.calendar.answered(&detection, at);
                return self.log.lock().unwrap_or_else(PoisonError::into_inner).asked(detection.id, asked_to);
            }
            Answer::Late(Window { until, .. }, Ok((alerts, problems))) => {
                for (detection, problem) in problems {
                    tracing::error!(detection, problem, "left out of the late sweep");
                }
                (self.sweeping, self.swept_to) = (false, Some(until));
                self.metrics.late_sweeps.inc();
                let added = self.book.take_late(alerts, clock::now());
                self.take_alerts(added, None);
                self.tell_updates(true)?;
                return self.log.lock().unwrap_or_else(PoisonError::into_inner).swept(until);
            }
            Answer::Sources(Ok(heard)) => return Ok(self.engine.expected().hear_all(&heard)?),
            Answer::Sources(Err(error)) => {
                // What is listened for from now on is better than nothing.
                self.engine.expected().hear_all(&[])?;
                error
            }
            Answer::Scheduled(detection, at, Err(error)) => {
                self.engine.note_asked(&detection, at, None);
                self.calendar.failed(&detection, at);
                self.metrics.detection_errors.with_label_values(&[&detection.name]).inc();
                error
            }
            Answer::Late(_, Err(error)) => {
                self.sweeping = false;
                self.metrics.late_sweep_failures.inc();
                error
            }
        };
        tracing::error!(error = %failure, "a question to the archive failed");
        Ok(())
    }

    fn tell_canaries(&self, what: impl FnOnce(&Self) -> Told) {
        if let Some(canaries) = &self.canaries {
            let _ = canaries.send(what(self));
        }
    }

    /// What canaries have shown becomes rows like any other, and a detection reads them. They come from no partition: a crash before
    /// the next flush loses them, and the next round shows the same again.
    fn take_proofs(&mut self, proofs: Vec<Proof>) -> Result<()> {
        let reports = self.engine.report();
        let mut rows = Rows::new(&canary_rows::TABLE);
        for mut proof in proofs {
            let report = reports.iter().find(|report| report.detection == proof.detection);
            if let (Some(report), "seen") = (report, proof.outcome)
                && (report.suspended.is_some() || report.tally.failed)
            {
                (proof.outcome, proof.note) = ("off", report.suspended.clone().or_else(|| Some("a live run has failed; see the log".into())));
            }
            if proof.outcome == "seen" {
                self.metrics.canary_last_seen.with_label_values(&[&proof.detection]).set(proof.sent_at as f64 / 1e6);
            } else {
                tracing::warn!(detection = proof.detection, outcome = proof.outcome, note = proof.note, "a canary was not seen");
            }
            self.metrics.canaries.with_label_values(&[proof.detection.as_str(), proof.outcome]).inc();
            self.proofs.insert(proof.detection.clone(), (proof.sent_at, proof.outcome));
            proof.append(&mut rows);
        }
        self.take_rows(&canary_rows::TABLE, &rows.finish())?;
        self.decide(None)
    }

    fn take_rows(&mut self, table: &'static Table, batch: &RecordBatch) -> Result<()> {
        self.count(table, batch);
        self.unarchived_bytes += batch.get_array_memory_size();
        self.past.memory.add(table, batch);
        if let Some(reloading) = &mut self.reloading {
            reloading.keep(table, batch);
        }
        self.engine.push(table, batch)
    }

    fn assigned(&mut self, starts: Positions) -> Result<()> {
        let partitions: Vec<(String, i32)> = starts.keys().cloned().collect();
        for table in TABLES.iter().filter(|table| !std::ptr::eq(**table, &rejects::TABLE)) {
            for (partition, offset) in self.runtime.block_on(self.archive.positions(table, &partitions))? {
                if starts.get(&partition).is_some_and(|start| offset > *start) {
                    self.floors.insert((table.name, partition.0, partition.1), offset);
                }
            }
        }
        // Whoever had these partitions before may have archived rows that still join; what is here already is not taken twice.
        let started = Instant::now();
        // Up to where one's own log says that everything was decided; where it says nothing, a day is enough.
        let since = self.decided.unwrap_or_else(|| self.decided_to.saturating_sub(clock::DAY));
        self.engine.advance(self.decided.unwrap_or(Micros::MIN));
        self.engine.restore(&self.past, Some(since))?;
        self.decide(None)?;
        tracing::info!(rows = self.engine.residue_rows(), seconds = started.elapsed().as_secs_f32(), "residue rebuilt from the archive");
        self.progress.extend(partitions.iter().map(|partition| (partition.clone(), Progress::default())));
        self.positions.extend(starts);
        self.health.moves();
        self.health.ready.store(true, Ordering::Relaxed);
        self.tell_canaries(|_| Told::Ready);
        self.reload_again();
        Ok(())
    }

    /// A partition that is first heard and lies behind what has been decided (a new topic with a backlog, one taken over from
    /// another owner) needs time to go on from there: the engine begins anew from what the archive holds of then.
    fn rewind_for(&mut self, poll: &Poll) -> Result<()> {
        let unheard = |message: &&Fetched| {
            let place = (message.topic.to_string(), message.partition);
            self.progress.get(&place).is_some_and(|progress| progress.append_time.is_none()) && self.positions.contains_key(&place)
        };
        let first = poll.messages.iter().filter(unheard).filter_map(|message| message.append_time).min();
        match first.filter(|first| *first < self.engine.progress()) {
            Some(first) => self.begin_at(Some(first)),
            None => Ok(()),
        }
    }

    /// A fresh engine with the same detections, as it would stand had append time come so far.
    fn begin_at(&mut self, since: Option<Micros>) -> Result<()> {
        let mut engine = engine_for(&self.config, &self.plans, &self.dimensions)?;
        engine.begins_as(&self.engine);
        engine.advance(since.unwrap_or(Micros::MIN));
        engine.restore(&self.past, since)?;
        tracing::info!(since = since.map(clock::rfc3339), "time goes on from where the slowest partition stands");
        (self.engine, self.decided) = (engine, since);
        self.reload_again();
        Ok(())
    }

    fn poll(&mut self, poll: Poll) -> Result<()> {
        self.rewind_for(&poll)?;
        for Fetched { topic, partition, offset, append_time, by_broker, value } in &poll.messages {
            let place = (topic.to_string(), *partition);
            // A poll that was under way when its partition was taken away: whoever owns it now reads these again.
            if self.positions.get(&place).is_none_or(|position| offset < position) {
                continue;
            }
            // A producer's clock must not push the watermark into the future.
            let append_time = append_time.map(|time| time.min(poll.received_at + CLOCK_SKEW));
            let Some(decoder) = self.decoders.get_mut(topic.as_ref()) else { continue };
            decoder.decode(Message { bytes: value, topic, partition: *partition, offset: Some(*offset), line: 1, append_time });
            let canaries = decoder.take_canaries();
            let is_canary = !canaries.is_empty();
            if is_canary {
                self.tell_canaries(|_| Told::Returned(canaries, poll.received_at));
            }
            self.metrics.messages.with_label_values(&[topic.as_ref()]).inc();
            self.metrics.message_bytes.with_label_values(&[topic.as_ref()]).inc_by(value.len() as u64);
            let progress = self.progress.entry(place.clone()).or_default();
            // A canary carries keyfuse's own clock: what producers send may be older.
            if !is_canary || *by_broker {
                progress.append_time = progress.append_time.max(append_time);
                self.decided_to = self.decided_to.max(append_time.unwrap_or(Micros::MIN));
            }
            progress.heard_at = poll.received_at;
            progress.by_broker = *by_broker;
            self.positions.insert(place, offset + 1);
        }
        let batches: Vec<_> = self.decoders.values_mut().flat_map(Decoder::finish).collect();
        for (table, batch) in batches {
            let Some(batch) = self.without_known_rows(table, batch)? else { continue };
            if std::ptr::eq(table, &rejects::TABLE) {
                self.send_dead_letters(&batch);
            }
            self.take_rows(table, &batch)?;
        }
        self.pass_time(Some(poll.received_at))?;
        self.show_rows();
        Ok(())
    }

    /// Decides what the rows so far, and the time that has passed, make sure; then lets go of what no open result needs.
    fn pass_time(&mut self, received_at: Option<Micros>) -> Result<()> {
        self.passed = Instant::now();
        let now = received_at.unwrap_or_else(clock::now);
        let progress = watermark(&self.progress, &self.lag.lock().unwrap_or_else(PoisonError::into_inner), now);
        if let Some(progress) = progress {
            self.engine.advance(progress);
        }
        self.decide(received_at)?;
        if let Some(progress) = progress {
            self.unlogged.extend(self.book.settle(progress, &self.engine.sure_to()));
            // What still waits to be looked at is not decided: a restart begins there again.
            self.decided = self.decided.max(self.engine.decided());
            self.metrics.progress.set(progress as f64 / 1e6);
            self.metrics.undecided.set(self.engine.undecided() as i64);
            self.metrics.pending.set(self.engine.pending() as i64);
            self.engine.let_go(&self.past)?;
            self.book.forget_before(progress - ALERTS_STAY);
        }
        Ok(())
    }

    /// Drops rows that their table already has, after a crash between the commits of two tables.
    fn without_known_rows(&self, table: &'static Table, batch: RecordBatch) -> Result<Option<RecordBatch>> {
        if self.floors.is_empty() {
            return Ok(Some(batch));
        }
        let topics = batch.column(system::TOPIC).as_dictionary::<Int32Type>();
        let names = topics.values().as_string::<i32>();
        let partitions = batch.column(system::PARTITION).as_primitive::<Int64Type>();
        let offsets = batch.column(system::OFFSET).as_primitive::<Int64Type>();
        let new: BooleanArray = (0..batch.num_rows())
            .map(|row| {
                let topic = names.value(topics.keys().value(row) as usize);
                let floor = self.floors.get(&(table.name, topic.to_owned(), partitions.value(row) as i32));
                Some(floor.is_none_or(|floor| offsets.value(row) >= *floor))
            })
            .collect();
        let batch = filter_record_batch(&batch, &new)?;
        Ok((batch.num_rows() > 0).then_some(batch))
    }

    fn count(&mut self, table: &'static Table, batch: &RecordBatch) {
        *self.rows.entry(table.name).or_default() += batch.num_rows() as u64;
        if std::ptr::eq(table, &rejects::TABLE) {
            for reason in words(batch, rejects::REASON) {
                self.metrics.rejects.with_label_values(&[reason]).inc();
            }
            return;
        }
        self.metrics.rows.with_label_values(&[table.name]).inc_by(batch.num_rows() as u64);
        self.metrics.late_rows.with_label_values(&[table.name]).inc_by(batch.column(system::LATE).as_boolean().true_count() as u64);
        let delay = self.metrics.event_to_append.with_label_values(&[table.name]);
        let events = batch.column(system::EVENT_TIME).as_primitive::<TimestampMicrosecondType>();
        let appends = batch.column(system::APPEND_TIME).as_primitive::<TimestampMicrosecondType>();
        for (event, append) in events.values().iter().zip(appends.values()) {
            delay.observe((append - event) as f64 / 1e6);
        }
    }

    /// Evaluates, merges, logs and hands out. New alerts are durable and on their way when this returns.
    fn decide(&mut self, received_at: Option<Micros>) -> Result<()> {
        let findings = self.engine.tick(&self.past)?;
        for (detection, problem) in self.engine.take_problems() {
            self.metrics.detection_errors.with_label_values(&[&detection]).inc();
            tracing::error!(detection, problem, "evaluation failed");
        }
        if self.reported.elapsed() >= PASS_EVERY {
            self.reported = Instant::now();
            self.report();
            let promoted = self.rollouts.promote_quiet(clock::now());
            self.note_rollouts(promoted)?;
        }
        self.metrics.residue_rows.set(self.engine.residue_rows() as i64);
        self.metrics.residue_bytes.set(self.engine.residue_bytes() as i64);
        if findings.is_empty() {
            return Ok(());
        }
        self.take_findings(&findings, received_at);
        self.tell_updates(false)
    }

    fn report(&self) {
        let (mut expected, mut silent) = (HashMap::new(), HashMap::new());
        self.engine.expected_sources().for_each(|table| *expected.entry(table.name).or_insert(0) += 1);
        self.engine.silent_sources().into_values().for_each(|table| *silent.entry(table.name).or_insert(0) += 1);
        for table in STREAMS {
            self.metrics.expected_sources.with_label_values(&[table.name]).set(expected.get(table.name).copied().unwrap_or(0));
            self.metrics.silent_sources.with_label_values(&[table.name]).set(silent.get(table.name).copied().unwrap_or(0));
        }
        for report in self.engine.report() {
            self.metrics.detection_suspended.with_label_values(&[&report.detection]).set(i64::from(report.suspended.is_some()));
            self.metrics.detection_behind.with_label_values(&[&report.detection]).set(report.behind as f64 / 1e6);
            self.metrics.detection_empty_columns.with_label_values(&[&report.detection]).set(report.empty.len() as i64);
            let Tally { last_candidate, last_near_miss, last_finding, .. } = report.tally;
            for (what, at) in DETECTION_SIGNS.into_iter().zip([last_candidate, last_near_miss, last_finding]) {
                self.metrics.detection_last.with_label_values(&[report.detection.as_str(), what]).set(at.unwrap_or(0) as f64 / 1e6);
            }
            let seconds = self.metrics.detection_seconds.with_label_values(&[&report.detection]);
            seconds.inc_by((report.tally.busy.as_secs_f64() - seconds.get()).max(0.0));
        }
    }

    /// Merges findings into alerts, which are then to be logged and told.
    fn take_findings(&mut self, findings: &[Finding], received_at: Option<Micros>) {
        for finding in findings {
            self.metrics.findings.with_label_values(&[&finding.detection.name]).inc();
        }
        let now = clock::now();
        let allowed_before = self.book.allowed().clone();
        let changed = self.book.merge(findings, now, received_at);
        for (detection, count) in self.book.allowed() {
            let before = allowed_before.get(detection).copied().unwrap_or(0);
            self.metrics.allowed.with_label_values(&[detection]).inc_by(count - before);
        }
        self.take_alerts(changed, received_at);
    }

    /// Counts alerts that are new, holds back those of detections in shadow, and has all of them logged and told.
    fn take_alerts(&mut self, changed: Vec<String>, received_at: Option<Micros>) {
        for id in &changed {
            let Some(alert) = self.book.get(id).filter(|alert| alert.revision == 0) else { continue };
            self.observe(alert, received_at);
            let now = clock::now();
            if self.config.silences.iter().any(|silence| silence.silences(alert, now)) {
                let id = alert.alert_id.clone();
                self.book.hold(&id, Held::Silenced);
                continue;
            }
            let detection_id = alert.detection_id;
            if self.rollouts.is_shadow(detection_id) {
                self.book.hold(id, Held::Shadow);
                let disturbed = self.rollouts.disturbed(detection_id, clock::now());
                if let Err(error) = self.note_rollouts(disturbed) {
                    tracing::error!(%error, "a rollout could not be noted");
                }
            }
        }
        self.unlogged.extend(changed);
    }

    fn observe(&self, alert: &Alert, received_at: Option<Micros>) {
        self.metrics.alerts.with_label_values(&[&alert.detection, &alert.level]).inc();
        if let Some(received_at) = received_at {
            self.metrics.append_to_decided.observe((alert.decided_at - received_at).max(0) as f64 / 1e6);
        }
        if let Some(exposed_at) = alert.column("exposed_at").and_then(|text| crate::clock::parse_time(&text))
            && alert.detection == "EXP-01"
        {
            self.metrics.exposure_to_use.observe((alert.first_time - exposed_at).max(0) as f64 / 1e6);
            self.metrics.use_to_alert.observe((alert.decided_at - alert.first_time).max(0) as f64 / 1e6);
        }
    }

    /// Logs and delivers alerts that are new, or that changed and were not told of for a while (or at all costs).
    fn tell_updates(&mut self, all: bool) -> Result<()> {
        if self.unlogged.is_empty() {
            return Ok(());
        }
        let now = clock::now();
        let due: Vec<String> =
            self.unlogged.iter().filter(|id| all || self.last_told.get(*id).is_none_or(|told| now - told >= UPDATE_EVERY)).cloned().collect();
        if due.is_empty() {
            return Ok(());
        }
        let told: Vec<Alert> = due.iter().filter_map(|id| self.book.tell(id)).collect();
        self.log.lock().unwrap_or_else(PoisonError::into_inner).append(&told)?;
        let mut rows = Rows::new(&alerts::TABLE);
        told.iter().for_each(|alert| alert.append(&mut rows));
        self.past.memory.add(&alerts::TABLE, &rows.finish());
        for alert in told {
            self.unlogged.remove(&alert.alert_id);
            self.unarchived.insert(alert.alert_id.clone());
            self.last_told.insert(alert.alert_id.clone(), now);
            let detection = self.detections.get(&alert.detection);
            let document = alert.document(detection.map(Arc::as_ref));
            if let Some(held) = alert.held {
                if alert.revision == 1 {
                    self.metrics.held.with_label_values(&[&alert.detection, held.name()]).inc();
                }
                continue;
            }
            if alert.status == Status::Retracted {
                self.metrics.retracted.with_label_values(&[&alert.detection]).inc();
            }
            for delivery in &self.deliveries {
                delivery.send(Parcel { alert: alert.clone(), document: document.clone() });
            }
            if let Some(show) = &self.show {
                let delay = alert.caused_at.filter(|_| alert.revision == 1).map(|caused| alert.decided_at - caused);
                let _ = show.try_send(Show::Alert(Box::new(alert), delay));
            }
        }
        if self.last_told.len() > 100_000 {
            self.last_told.retain(|_, told| now - *told < UPDATE_EVERY);
        }
        Ok(())
    }

    /// Hands what is not archived to a flush, if none is under way. One that failed is tried again as it was.
    fn start_flush(&mut self) -> Result<()> {
        if self.flush.is_some() {
            return Ok(());
        }
        // The commit rule: first every alert of the range is in the log.
        self.tell_updates(true)?;
        self.last_flush = Instant::now();
        if !self.stopping {
            self.update_lag();
        }
        let mut pending = match self.failed.take() {
            Some(pending) => pending,
            None => match self.new_flush() {
                Some(pending) => pending,
                None => {
                    // Nothing is left to archive: what has been decided is there.
                    self.log.lock().unwrap_or_else(PoisonError::into_inner).archived(&[], self.decided)?;
                    return self.has_archived_to(self.decided);
                }
            },
        };
        let (done, result) = sync_channel(1);
        let (archive, hot) = (Arc::clone(&self.archive), Arc::clone(&self.past.memory));
        self.runtime.spawn(async move {
            let started = Instant::now();
            let flushed = archive.flush(&pending.batches, &pending.positions, &mut pending.committed, |table| hot.archived(table)).await;
            let _ = done.send((flushed, pending, started.elapsed()));
        });
        self.flush = Some(result);
        Ok(())
    }

    fn new_flush(&mut self) -> Option<Pending> {
        let changed: Vec<Alert> = std::mem::take(&mut self.unarchived).iter().filter_map(|id| self.book.get(id)).cloned().collect();
        // At first little has arrived, and what is said of that soon holds no more.
        let every = if self.looks < FIRST_LOOKS { LOOK_FIRST } else { LOOK_EVERY };
        if self.stopping || self.looked.is_none_or(|at| at.elapsed() >= every) {
            (self.looked, self.looks) = (Some(Instant::now()), self.looks + 1);
            self.past.memory.add(&detection_health::TABLE, &self.look_at_detections());
        }
        let batches = self.past.memory.flush();
        if batches.is_empty() && changed.is_empty() {
            return None;
        }
        self.unarchived_bytes = 0;
        Some(Pending { batches, positions: self.positions.clone(), alerts: changed, decided: self.decided, committed: BTreeSet::new() })
    }

    /// What each detection could see, as rows.
    fn look_at_detections(&self) -> RecordBatch {
        use detection_health as health;
        let (mut rows, now) = (Rows::new(&health::TABLE), clock::now());
        for report in self.engine.report() {
            let (state, note) = match (&report.suspended, report.tally.failed, report.missing.is_empty()) {
                (Some(why), ..) => ("suspended", Some(why.clone())),
                (None, true, _) => ("failing", None),
                (None, false, _) if report.behind > BEHIND => {
                    let many = if report.resting > 0 { format!(", for {} keys of very many rows", report.resting) } else { String::new() };
                    ("behind", Some(format!("{} s behind what has arrived{many}", report.behind / clock::SECOND)))
                }
                (None, false, false) => ("blind", Some(format!("nothing arrives of {}", report.missing.join(", ")))),
                (None, false, true) if !report.silent.is_empty() => ("partial", Some(silence_of(&report.silent))),
                (None, false, true) if !report.lost.is_empty() => {
                    ("partial", Some(format!("nothing ever came of {}, which it reads too", report.lost.join(", "))))
                }
                (None, false, true) if report.warming.is_some() => {
                    ("warming", report.warming.map(|until| format!("until {}: what it measures against begins too late before that", clock::rfc3339(until))))
                }
                (None, false, true) => ("seeing", None),
            };
            self.metrics.detection_blind.with_label_values(&[&report.detection]).set(i64::from(["suspended", "failing", "blind"].contains(&state)));
            rows.time(health::AT, Some(now));
            rows.text(health::DETECTION, Some(&report.detection));
            rows.text(health::CLASS, Some(&format!("{:?}", report.class)));
            rows.text(health::STATE, Some(state));
            rows.text(health::NOTE, note.as_deref());
            rows.text(health::EMPTY_COLUMNS, Some(report.empty.join(", ")).as_deref().filter(|empty| !empty.is_empty()));
            rows.int(health::CANDIDATES, Some(report.tally.candidates as i64));
            rows.int(health::FINDINGS, Some(report.tally.findings as i64));
            rows.time(health::LAST_CANDIDATE_AT, report.tally.last_candidate);
            rows.time(health::LAST_NEAR_MISS_AT, report.tally.last_near_miss);
            rows.time(health::LAST_FINDING_AT, report.tally.last_finding);
            let proof = self.proofs.get(&report.detection);
            rows.time(health::LAST_CANARY_AT, proof.map(|(sent_at, _)| *sent_at));
            rows.text(health::CANARY, proof.map(|(_, outcome)| *outcome));
            rows.int(health::UNDECIDED_KEYS, Some(report.undecided as i64));
            rows.end_row();
        }
        rows.finish()
    }

    /// Takes what came of the flush that is under way, if it ends within this time.
    fn finish_flush(&mut self, within: Duration) -> Result<()> {
        let Some(result) = &self.flush else { return Ok(()) };
        let result = match result.recv_timeout(within) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => None,
        };
        self.flush = None;
        let Some((flushed, pending, took)) = result else { return Err(Error::bug("a flush ended without a word")) };
        match flushed {
            Ok(flushed) => {
                self.log.lock().unwrap_or_else(PoisonError::into_inner).archived(&pending.alerts, pending.decided)?;
                self.source.commit(&pending.positions, false);
                self.has_archived_to(pending.decided)?;
                self.metrics.archive_commits.inc();
                self.metrics.archive_rows.inc_by(flushed.rows);
                self.metrics.archive_bytes.inc_by(flushed.bytes);
                self.metrics.archive_commit_seconds.observe(took.as_secs_f64());
                self.metrics.archive_last_commit.set(clock::now() as f64 / 1e6);
                self.health.fail(None);
                Ok(())
            }
            // Another owner, or a commit of which nobody knows whether it happened: starting again reads what is true.
            Err(error) if error.fault == Fault::Conflict => Err(error),
            Err(error) => {
                self.metrics.archive_failures.inc();
                tracing::error!(%error, "the archive could not be written; alerts go on, nothing is committed, it will be tried again");
                self.health.fail(Some(error.to_string()));
                self.failed = Some(pending);
                Ok(())
            }
        }
    }

    /// Archives everything taken so far, or says why not.
    fn flush_and_wait(&mut self) -> Result<()> {
        self.finish_flush(Duration::MAX)?;
        let again = self.failed.is_some();
        for _ in 0..=usize::from(again) {
            self.start_flush()?;
            self.finish_flush(Duration::MAX)?;
        }
        match (&self.failed, self.health.trouble()) {
            (Some(_), trouble) => Err(Error::environment(format!("the archive could not be written: {}", trouble.unwrap_or_default()))),
            (None, _) => Ok(()),
        }
    }

    fn close(&mut self) -> Result<()> {
        self.decide(None)?;
        // What rests has its turn too, as often as it takes.
        self.engine.wake();
        while self.engine.pending() > 0 {
            self.decide(None)?;
            self.engine.wake();
        }
        self.flush_and_wait()?;
        self.source.commit(&self.positions, true);
        Ok(())
    }

    /// Asks the broker how much is waiting, off this thread: it may take its time.
    fn update_lag(&self) {
        let (asker, positions, metrics, known) = (self.source.asker(), self.positions.clone(), Arc::clone(&self.metrics), Arc::clone(&self.lag));
        self.runtime.spawn_blocking(move || {
            let asked_at = clock::now();
            let waiting = asker.lag(&positions);
            for ((topic, partition), lag) in &waiting {
                metrics.lag.with_label_values(&[topic.as_str(), &partition.to_string()]).set(*lag);
            }
            *known.lock().unwrap_or_else(PoisonError::into_inner) = Lag { asked_at, waiting };
        });
    }

    fn show_rows(&self) {
        if let Some(show) = &self.show {
            let _ = show.try_send(Show::Rows(self.rows.iter().map(|(table, rows)| (*table, *rows)).collect()));
        }
    }

    fn send_dead_letters(&self, batch: &RecordBatch) {
        let Some((sender, topic)) = &self.dead_letter else { return };
        let mut lines = Vec::new();
        let mut writer = arrow::json::LineDelimitedWriter::new(&mut lines);
        let written = writer.write(batch).and_then(|()| writer.finish());
        drop(writer);
        let sent = written.at(|| "dead letter".into()).and_then(|()| {
            lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).try_for_each(|line| sender.send(topic, None, None, line, None))?;
            sender.flush(Duration::from_secs(10))
        });
        if let Err(error) = sent {
            tracing::error!(%error, "dead letters could not be sent; the records are in the rejects table");
        }
    }

    /// What topics newly state counts from now on: nothing that was decided is decided again.
    fn take_world(&mut self) {
        let taken = World::read(&self.config, &self.stated).and_then(|mut world| {
            tell_left_out(world.allow.keep_fitting(&self.engine));
            self.engine.set_dimensions(&world.dimensions).map_err(|error| vec![error])?;
            self.settle_in(world);
            Ok(())
        });
        match taken {
            Ok(()) => self.metrics.reloads.inc(),
            Err(errors) => {
                self.metrics.reload_failures.inc();
                errors.iter().for_each(|error| tracing::error!(%error, "what topics state could not be taken up"));
            }
        }
    }

    fn settle_in(&mut self, world: World) {
        self.dimensions = Arc::new(world.dimensions);
        self.doors.set_dimensions(&self.dimensions);
        self.book.set_allow_list(world.allow);
        self.decoders.values_mut().for_each(|decoder| decoder.set_networks(&world.networks));
        self.ask_sources();
    }

    /// Reads the detections again. They take the place of those that run when their past is known.
    fn reload(&mut self) {
        let outcome = read_folder(&self.config.detections).and_then(|detections| {
            let one = |error: Error| vec![error];
            let detections = with_levels(detections, &self.config);
            let world = World::read(&self.config, &self.stated)?;
            let plans = Plans::new(&detections, &self.fingerprinter)?;
            let mut engine = engine_for(&self.config, &plans, &world.dimensions).map_err(one)?;
            world.allow_in_files.fits(&engine)?;
            engine.advance(self.engine.progress());
            let since = self.decided.unwrap_or_else(|| self.decided_to.saturating_sub(clock::DAY));
            Reloading::start(Loaded { detections, plans, engine }, self.past.clone(), since, self.orders.clone()).map_err(one)
        });
        match outcome {
            Ok(reloading) => {
                if let Some(former) = self.reloading.replace(reloading) {
                    drop(former.call_off());
                }
            }
            Err(errors) => self.refuse_reload(&errors),
        }
    }

    /// Begins anew with detections that were being read: what their past is has changed.
    fn reload_again(&mut self) {
        if self.reloading.is_some() {
            self.reload();
        }
    }

    fn take_loaded(&mut self, read: Read) {
        let Some(loaded) = read.wanted() else { return };
        let Some(reloading) = self.reloading.take() else { return };
        let one = |error: Error| vec![error];
        let taken = loaded.map_err(one).and_then(|Loaded { detections, plans, mut engine }| {
            // The own world may have changed meanwhile.
            let mut world = World::read(&self.config, &self.stated)?;
            tell_left_out(world.allow.keep_fitting(&engine));
            engine.set_dimensions(&world.dimensions).map_err(one)?;
            for (table, batch) in reloading.kept() {
                engine.push(table, &batch).map_err(one)?;
            }
            engine.begins_as(&self.engine);
            engine.advance(self.engine.progress());
            self.metrics.know_detections(&names_of(&detections));
            let fresh = self.rollouts.load(detections.iter(), clock::now());
            self.detections = detections.into_iter().map(|d| (d.name.clone(), Arc::new(d))).collect();
            self.note_rollouts(fresh).map_err(one)?;
            (self.plans, self.engine) = (Arc::new(plans), engine);
            self.settle_in(world);
            self.tell_canaries(|worker| Told::Detections(worker.detections.values().cloned().collect()));
            self.decide(None).map_err(one)
        });
        match taken {
            Ok(()) => {
                self.metrics.reloads.inc();
                tracing::info!(detections = self.detections.len(), "detections reloaded");
            }
            Err(errors) => self.refuse_reload(&errors),
        }
    }

    fn refuse_reload(&self, errors: &[Error]) {
        self.metrics.reload_failures.inc();
        for error in errors {
            tracing::error!(%error, "reload refused; the detections that were running go on");
        }
    }
}
