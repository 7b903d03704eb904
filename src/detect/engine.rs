//! The live engine: filter once, keep the residue, re-run dirty keys.
//!
//! It is a synchronous object without a clock: the same calls give the same findings, whether a service, a replay or a
//! test makes them. Rows go in with [`Engine::push`], [`Engine::advance`] says how far time has come, [`Engine::tick`]
//! gives the findings, [`Engine::let_go`] lets go of the past.

mod live;
mod looking;
mod retention;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::compute::kernels::boolean::{and, not};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::Expr;
use hashbrown::{HashMap, HashSet};

use retention::{Retention, is_slow, probed_scans, retention_of, settles_after};

use super::analyse::{Analysis, Class, Merge, ScanInfo};
use super::expected::Expected;
use super::file::{Detection, Schedule};
use super::filled::Filled;
use super::filter::FilterPass;
use super::finding::Finding;
use super::lineage::Lineage;
use super::plan::{Compiled, KeptPlan, LinksPlan, Plans};
use super::residue::{Key, KeyHasher, NULL_KEY, Store, texts_of};
use crate::clock::{DAY, MINUTE, Micros, SECOND};
use crate::dimension::Dimensions;
use crate::error::{Error, Result};
use crate::secret::Fingerprinter;
use crate::table::{History, LookBack, STREAMS, Span, Table, by_name, canaries, cloudtrail as system};

/// Keys whose results become final within this are looked at together.
const GRAIN: Micros = SECOND;
/// A key rests for so many times as long as it took to look at it: together, keys of very many rows leave most of the time to others.
const REST: u32 = 16;
/// How often a detection that was switched off is asked over the archive instead.
const INSTEAD_EVERY: Micros = 15 * MINUTE;

/// How one scan of a detection gets its rows.
#[derive(Clone, Debug)]
enum Feed {
    Lineage,
    /// The same rows in every run, projected as the scan wants them.
    Dimension(RecordBatch),
    /// Class C0: straight from the batch; the number in the table's filter pass.
    Batch(usize),
    /// From a store; `probed` ones hold rows only for keys that the detection's other scans know.
    Store {
        store: usize,
        probed: bool,
    },
}

struct Live {
    detection: Arc<Detection>,
    analysis: Analysis,
    plan: KeptPlan,
    feeds: Vec<Feed>,
    dirty: HashSet<Key>,
    /// Keys whose whole result must be computed again: their family changed.
    whole: HashSet<Key>,
    /// Per scan, rows from this number on are new since the last run.
    seen_to: Vec<u64>,
    /// When all keys but those that wait were last looked at.
    looked: Looked,
    /// Dirty keys that did not have their turn when others had it: for them it is further back.
    waiting: HashMap<Key, Arc<Waiting>>,
    /// Keys that took long to look at, and until when they are left alone: one key must not take the time of all others.
    resting: HashMap<Key, Instant>,
    /// Up to where everything has been looked at, as of the last tick.
    sure: Looked,
    /// Keys whose past was fetched into the probed stores.
    loaded: HashSet<Key>,
    /// Some of what was fetched has since been let go of.
    stale: bool,
    /// Class C3: keys to look at again when append time has passed a moment, for then a result of theirs is final.
    timers: BTreeMap<Micros, HashSet<Key>>,
    /// Class C3: results before this may rest on rows that have been let go of; they were decided when they were not.
    floor: Micros,
    /// Class C3: the scan whose rows have results of their own, and how long after a row its result is final. Only then is the row
    /// looked at (and when it comes, where results are told early): what a key did before does not count again with each new row.
    anchor: Option<(usize, Micros)>,
    /// Class C3: after this long past its `alert_time`, no row on time can raise or change a result.
    settles_after: Micros,
    suspended: Option<String>,
    /// Time spent in recent ticks: whoever took least has its turn first.
    spent: Duration,
    /// Kept rows that it looks at in one tick, at most: fewer where they take long.
    bound: usize,
    tally: Tally,
}

/// How far time had come when something was looked at.
#[derive(Clone, Copy)]
struct Looked {
    /// On all partitions: what was final then was told.
    progress: Micros,
    /// Append time of the latest row.
    newest: Micros,
}

impl Looked {
    const NEVER: Looked = Looked { progress: Micros::MIN, newest: Micros::MIN };

    fn or_earlier(self, other: Self) -> Self {
        Self { progress: self.progress.min(other.progress), newest: self.newest.min(other.newest) }
    }
}

/// A key that waits for its turn.
#[derive(Clone)]
struct Waiting {
    /// Per scan, rows from this number on have not been looked at.
    seen_to: Vec<u64>,
    looked: Looked,
    /// Of what was final at some time not all was looked at yet.
    round: Option<Round>,
}

/// What is left of a look at what has become final.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Round {
    /// Rows of the anchor from this time on are still to be looked at.
    from: Micros,
    /// How far time had come on all partitions when it began.
    to: Micros,
}

/// What a detection has seen and done since it was loaded. For one with a schedule the times are the moments that it was asked about:
/// the last, the last that gave nothing, and the last that gave something.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub runs: u64,
    /// Rows that its query returned, repeats included.
    pub findings: u64,
    /// Time spent in its plan.
    pub busy: Duration,
    /// A run has failed: what it would have found nobody knows.
    pub failed: bool,
    /// Rows that its predicates let through.
    pub candidates: u64,
    /// Append time at the last such row, at the last evaluation that had all its parts and found nothing, and at the last finding.
    pub last_candidate: Option<Micros>,
    pub last_near_miss: Option<Micros>,
    pub last_finding: Option<Micros>,
}

/// A detection that is asked over the archive at fixed times.
struct Asked {
    detection: Arc<Detection>,
    analysis: Analysis,
    tally: Tally,
}

struct Pass {
    table: &'static Table,
    filter: FilterPass,
}

struct StoreEntry {
    store: Store,
    /// Number in the table's filter pass.
    scan: usize,
    users: Vec<usize>,
    filters: Vec<Expr>,
    probed: bool,
    retention: Vec<Retention>,
}

/// A detection that is asked over the archive.
#[derive(Clone, Debug)]
pub struct Scheduled {
    pub detection: Arc<Detection>,
    /// How its columns merge, where it is asked instead of being evaluated live.
    pub instead: Option<Vec<(String, Merge)>>,
}

/// What the engine can say about itself, per detection.
#[derive(Clone, Debug)]
pub struct EngineReport {
    pub detection: String,
    pub class: Class,
    pub suspended: Option<String>,
    /// Streams that it cannot do without and that have sent nothing for a day of append time, or never.
    pub missing: Vec<String>,
    /// Streams of which nothing ever came and that it can do without, but for what only they show.
    pub lost: Vec<String>,
    /// Logs of its streams that ought to arrive and are silent.
    pub silent: Vec<String>,
    /// Columns that its predicates read, of streams that arrive, and that no row of the last day has filled: `table.column`.
    pub empty: Vec<String>,
    /// Until when (append time) the past that it measures against is not there whole.
    pub warming: Option<Micros>,
    /// Keys with results that wait for time to pass.
    pub undecided: usize,
    /// For how long (append time) it has not got through all that there is to look at.
    pub behind: Micros,
    /// Keys of so many rows that they are not looked at in every tick.
    pub resting: usize,
    pub tally: Tally,
}

/// The engine and everything it keeps.
pub struct Engine {
    passes: Vec<Pass>,
    stores: Vec<StoreEntry>,
    live: Vec<Live>,
    /// Asked over the archive, not here.
    scheduled: Vec<Asked>,
    lineage: Lineage,
    links: Links,
    hasher: KeyHasher,
    ready: Vec<Finding>,
    runtime: tokio::runtime::Runtime,
    residue_budget: usize,
    /// Kept rows that a detection looks at in one tick, at most; the rest waits for the next.
    tick_rows: usize,
    /// When this is over, a tick begins with no other detection.
    tick_time: Duration,
    /// Things that went wrong and are worth telling: detection and message.
    problems: Vec<(String, String)>,
    /// In a backtest, fetched rows from this event time on count as candidates.
    counts_from: Option<Micros>,
    /// Late rows take part: only while their keys are swept.
    with_late: bool,
    /// How far append time has come on all partitions.
    progress: Micros,
    /// Latest append time of any row, now and at the first tick.
    newest: Micros,
    began: Option<Micros>,
    /// Logs that ought to arrive.
    expected: Expected,
    filled: Filled,
    /// Per stream, that of its latest row.
    arrived: HashMap<&'static str, Micros>,
    /// Per stream, the append time of the first row that there ever was.
    begins: HashMap<&'static str, Micros>,
    /// Whether that is known; where it is not, nothing is called warming.
    knows_beginnings: bool,
}

/// Of the kept rows, those that a run is about.
struct Part {
    /// By number, for each scan.
    numbers: Vec<Range<u64>>,
    /// By time, for the anchor's scan.
    anchors: Range<Micros>,
}

/// The rows of which `lineage_links` makes links.
struct Links {
    plan: KeptPlan,
    scan: usize,
    filters: Vec<Expr>,
    projection: Vec<usize>,
    table: &'static Table,
    fresh: Vec<RecordBatch>,
}

impl Engine {
    /// An engine with these detections; every one that cannot be decided safely is named, all at once.
    ///
    /// # Errors
    /// The list of refusals.
    pub fn new(detections: &[Detection], fingerprinter: &Fingerprinter, dimensions: &Dimensions) -> std::result::Result<Self, Vec<Error>> {
        Self::of(&Plans::new(detections, fingerprinter)?, dimensions).map_err(|error| vec![error])
    }

    /// An engine with detections that are planned already; it has seen nothing.
    ///
    /// # Errors
    /// The runtime cannot be started; others would be bugs.
    pub fn of(plans: &Plans, dimensions: &Dimensions) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|error| Error::environment("starting the evaluation runtime").because(error))?;
        let mut passes: Vec<Pass> = STREAMS.iter().map(|table| Pass { table, filter: FilterPass::new(table.schema()) }).collect();
        let LinksPlan { plan, table, projection, filters } = &plans.links;
        let scan = pass_of(&mut passes, table)?.filter.add(filters, &plans.state)?;
        let links = Links { plan: plan.another()?, scan, filters: filters.clone(), projection: projection.clone(), table, fresh: Vec::new() };
        let mut engine = Self {
            passes,
            stores: Vec::new(),
            live: Vec::new(),
            scheduled: Vec::new(),
            lineage: Lineage::default(),
            links,
            hasher: KeyHasher::default(),
            ready: Vec::new(),
            runtime,
            residue_budget: usize::MAX,
            tick_rows: usize::MAX,
            tick_time: Duration::MAX,
            problems: Vec::new(),
            counts_from: None,
            with_late: false,
            progress: Micros::MIN,
            newest: Micros::MIN,
            began: None,
            expected: Expected::of(dimensions)?,
            filled: Filled::default(),
            arrived: HashMap::new(),
            begins: HashMap::new(),
            knows_beginnings: false,
        };
        plans.compiled.iter().try_for_each(|compiled| engine.register(compiled, &plans.state, dimensions))?;
        Ok(engine)
    }

    /// Bounds the memory of kept rows (bytes).
    pub fn with_residue_budget(mut self, bytes: usize) -> Self {
        self.residue_budget = bytes;
        self
    }

    /// Bounds what one tick does, so that no detection, however broad or however many rows its keys have, holds up the others: the
    /// kept rows that one of them looks at, and the time after which no other has its turn. What does not fit stays dirty, and is
    /// looked at once, however much arrives meanwhile.
    pub fn with_tick_bounds(mut self, rows: usize, time: Duration) -> Self {
        (self.tick_rows, self.tick_time) = (rows, time);
        self
    }

    /// Keys that are to be looked at by the next tick.
    pub fn pending(&self) -> usize {
        self.live.iter().filter(|live| live.suspended.is_none()).map(Live::due).sum()
    }

    /// Up to where (append time on all partitions) everything that is sure has been decided: further back than
    /// [`Engine::progress`] while keys wait for their turn; none while some were never looked at.
    pub fn decided(&self) -> Option<Micros> {
        let sure = self.live.iter().filter(|live| live.suspended.is_none()).map(|live| live.sure.progress);
        Some(sure.min().unwrap_or(self.progress).min(self.progress)).filter(|decided| *decided > Micros::MIN)
    }

    /// No key rests any longer: what is there is decided now, however long it takes.
    pub fn wake(&mut self) {
        self.live.iter_mut().for_each(|live| live.resting.clear());
    }

    fn register(&mut self, compiled: &Compiled, state: &SessionState, dimensions: &Dimensions) -> Result<()> {
        let (detection, analysis) = (Arc::clone(&compiled.detection), compiled.analysis.clone());
        let Some(plan) = &compiled.plan else {
            self.scheduled.push(Asked { detection, analysis, tally: Tally::default() });
            return Ok(());
        };
        let plan = plan.another()?;
        let number = self.live.len();
        let probed_all = probed_scans(&analysis);
        let settle = settles_after(&analysis);
        let mut feeds = Vec::new();
        for (scan_number, scan) in analysis.scans.iter().enumerate() {
            if scan.is_lineage() {
                feeds.push(Feed::Lineage);
                continue;
            }
            let table = by_name(&scan.table).ok_or_else(|| Error::bug(format!("{}: no table {}", detection.name, scan.table)))?;
            if scan.is_dimension() {
                feeds.push(Feed::Dimension(dimensions.of(table).project(&scan.projection)?));
                continue;
            }
            let pass = pass_of(&mut self.passes, table)?;
            let in_pass = pass.filter.add(&scan.filters, state)?;
            if analysis.class == Class::C0 {
                feeds.push(Feed::Batch(in_pass));
                continue;
            }
            let key = scan.key.as_deref().and_then(|name| table.schema().index_of(name).ok());
            let key = key.ok_or_else(|| Error::bug(format!("{}: no key column in {}", detection.name, scan.table)))?;
            let probed = probed_all[scan_number];
            let retention = retention_of(&analysis, scan_number, &probed_all);
            let presence = analysis.class == Class::C3 && scan.latest.is_some() && !probed;
            // Probed stores depend on what the detection's other scans know, so they are its own; the others are shared.
            let shared = self.stores.iter().position(|entry| {
                !probed
                    && !entry.probed
                    && entry.store.is_presence() == presence
                    && entry.filters == scan.filters
                    && std::ptr::eq(entry.store.table(), table)
                    && entry.store.key_column() == key
                    && entry.store.projection() == scan.projection
            });
            let store = match shared {
                Some(store) => store,
                None => {
                    let schema = Arc::clone(plan.slots[scan_number].schema());
                    let store = Store::new(table, &scan.projection, key, schema, presence);
                    self.stores.push(StoreEntry { store, scan: in_pass, users: Vec::new(), filters: scan.filters.clone(), probed, retention: Vec::new() });
                    self.stores.len() - 1
                }
            };
            let entry = &mut self.stores[store];
            if !entry.users.contains(&number) {
                entry.users.push(number);
            }
            entry.retention.extend(retention);
            feeds.push(Feed::Store { store, probed });
        }
        let seen_to = vec![0; feeds.len()];
        let is_prompt = analysis.scans.iter().all(|scan| scan.optional || !scan.is_stream() || !is_slow(scan));
        let kept = |scan: &usize| matches!(feeds[*scan], Feed::Store { probed: false, .. });
        let anchor = analysis.anchor.filter(|(scan, _)| analysis.class == Class::C3 && is_prompt && kept(scan));
        let anchor = anchor.map(|(scan, after)| (scan, after + analysis.wait));
        self.live.push(Live {
            anchor,
            detection,
            analysis,
            plan,
            feeds,
            dirty: HashSet::new(),
            whole: HashSet::new(),
            seen_to,
            looked: Looked::NEVER,
            waiting: HashMap::new(),
            resting: HashMap::new(),
            sure: Looked::NEVER,
            loaded: HashSet::new(),
            stale: false,
            timers: BTreeMap::new(),
            floor: Micros::MIN,
            settles_after: settle,
            suspended: None,
            spent: Duration::ZERO,
            bound: usize::MAX,
            tally: Tally::default(),
        });
        Ok(())
    }

    /// Takes a batch of rows of one table. One-row detections are decided here.
    ///
    /// # Errors
    /// Only what would be a bug; a detection that fails on its rows is reported by [`Engine::take_problems`] instead.
    pub fn push(&mut self, table: &'static Table, batch: &RecordBatch) -> Result<()> {
        let appended = batch.column(system::APPEND_TIME).as_primitive::<TimestampMicrosecondType>();
        let at = arrow::compute::max(appended).unwrap_or(Micros::MIN);
        // What keyfuse says of itself is no sign that time goes on in the logs.
        if !std::ptr::eq(table, &canaries::TABLE) {
            self.newest = self.newest.max(at);
            self.expected.see(table, batch, at);
            self.filled.see(table, batch, at);
        }
        let arrived = self.arrived.entry(table.name).or_insert(at);
        *arrived = at.max(*arrived);
        if self.knows_beginnings
            && let Some(first) = arrow::compute::min(appended)
        {
            let begins = self.begins.entry(table.name).or_insert(first);
            *begins = first.min(*begins);
        }
        if batch.num_rows() == 0 || !self.passes.iter().any(|pass| std::ptr::eq(pass.table, table)) {
            return Ok(());
        }
        let Some(pass) = self.passes.iter().find(|pass| std::ptr::eq(pass.table, table)) else { return Ok(()) };
        let mut masks = pass.filter.over(batch);
        let late = batch.column(system::LATE).as_boolean();
        let on_time = match late.has_true() {
            true => Some(not(&without_nulls(late))?),
            false => None,
        };
        let timely = |mask: Option<BooleanArray>| -> Result<Option<BooleanArray>> {
            Ok(match (mask, &on_time) {
                (Some(mask), Some(on_time)) => Some(and(&mask, on_time)?),
                (mask, on_time) => mask.or_else(|| on_time.clone()),
            })
        };
        let mut keys_of: HashMap<usize, Vec<Key>> = HashMap::new();
        for (number, entry) in self.stores.iter_mut().enumerate().filter(|(_, entry)| std::ptr::eq(entry.store.table(), table)) {
            if entry.users.is_empty() {
                continue;
            }
            let mask = timely(masks.rows_of(entry.scan)?)?;
            if mask.as_ref().is_some_and(|mask| !mask.has_true()) {
                continue;
            }
            let column = entry.store.key_column();
            let keys = keys_of.entry(column).or_insert_with(|| self.hasher.column(batch.column(column)));
            let mask = match (entry.probed, mask) {
                (false, Some(mask)) => mask,
                (false, None) => BooleanArray::from(vec![true; batch.num_rows()]),
                (true, mask) => {
                    let loaded = &self.live[entry.users[0]].loaded;
                    if loaded.is_empty() {
                        continue;
                    }
                    (0..batch.num_rows()).map(|row| Some(mask.as_ref().is_none_or(|m| m.value(row)) && loaded.contains(&keys[row]))).collect()
                }
            };
            let touched = entry.store.insert(batch, &mask, keys, &self.hasher)?;
            for user in &entry.users {
                self.live[*user].touch(number, &touched, self.progress);
                self.live[*user].note_candidates(touched.len(), at);
            }
        }
        if std::ptr::eq(self.links.table, table) {
            let mask = timely(masks.rows_of(self.links.scan)?)?;
            if let Some(rows) = chosen_rows(batch, &self.links.projection, mask.as_ref())? {
                self.links.fresh.push(rows);
            }
        }
        let Self { live, runtime, ready, problems, .. } = self;
        for detection in live.iter_mut().filter(|live| live.suspended.is_none()) {
            let Some((number, scan)) = detection.batch_scan().filter(|(number, _)| detection.analysis.scans[*number].table == table.name) else { continue };
            let mask = masks.rows_of(scan)?;
            if let Some(rows) = chosen_rows(batch, &detection.analysis.scans[number].projection, mask.as_ref())? {
                detection.note_candidates(rows.num_rows(), at);
                detection.decide_rows(number, rows, runtime, ready, problems);
            }
        }
        Ok(())
    }

    /// Evaluates what changed since the last call and gives all findings, those of [`Engine::push`] included.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn tick(&mut self, history: &dyn History) -> Result<Vec<Finding>> {
        self.resolve_links()?;
        let started = Instant::now();
        self.live.iter_mut().for_each(|live| live.resting.retain(|_, until| *until > started));
        let mut due: Vec<usize> = (0..self.live.len()).filter(|number| self.live[*number].is_due()).collect();
        due.sort_by_key(|number| self.live[*number].spent);
        for (turn, number) in due.into_iter().enumerate() {
            if turn > 0 && started.elapsed() >= self.tick_time {
                break;
            }
            let begun = Instant::now();
            let (largest, took) = self.evaluate(number, history)?;
            let (live, share) = (&mut self.live[number], self.tick_time / 4);
            live.spent += begun.elapsed();
            match largest.filter(|_| took > share) {
                Some(family) => live.resting.extend(family.into_iter().map(|key| (key, Instant::now() + took.saturating_mul(REST)))),
                None => live.adapt(took, self.tick_rows, share),
            }
        }
        self.began = self.began.or(Some(self.newest));
        let now = Looked { progress: self.progress, newest: self.newest };
        for live in &mut self.live {
            live.spent = live.spent * 15 / 16;
            if live.dirty.is_empty() {
                live.looked = now;
            }
            live.sure = live.waiting.values().map(|waiting| waiting.looked).fold(live.looked, Looked::or_earlier);
        }
        self.keep_budget();
        for pass in &self.passes {
            for (predicate, rows) in pass.filter.take_failures() {
                self.problems.push(("predicate".into(), format!("`{predicate}` failed on {rows} rows of {}; they count as not matching", pass.table.name)));
            }
        }
        Ok(std::mem::take(&mut self.ready))
    }

    /// Decides everything about a past that is already written: the whole of a backtest is this and one [`Engine::tick`].
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn backtest(&mut self, history: &dyn History, since: Micros) -> Result<()> {
        self.counts_from = Some(since);
        self.restore(history, Some(since))?;
        for number in 0..self.live.len() {
            let Some((scan, _)) = self.live[number].batch_scan() else { continue };
            let scan = &self.live[number].analysis.scans[scan];
            let Some(table) = by_name(&scan.table) else { continue };
            let filters = scan.filters.clone();
            for batch in history.rows(&LookBack { table, keys: None, filters: &filters, since, columns: None })? {
                self.decide_rows(number, table, &batch)?;
            }
        }
        Ok(())
    }

    fn decide_rows(&mut self, number: usize, table: &'static Table, batch: &RecordBatch) -> Result<()> {
        let Self { live, runtime, ready, problems, passes, .. } = self;
        let live = &mut live[number];
        let Some((number, scan)) = live.batch_scan() else { return Ok(()) };
        let mask = pass_of(passes, table)?.filter.over(batch).rows_of(scan)?;
        if let Some(rows) = chosen_rows(batch, &live.analysis.scans[number].projection, mask.as_ref())? {
            live.tally.candidates += rows.num_rows() as u64;
            live.decide_rows(number, rows, runtime, ready, problems);
        }
        Ok(())
    }

    /// Fetches what stores and lineage would hold had the engine run all along, and marks it all for evaluation.
    /// `since` is the earliest `alert_time` of interest, or how far append time had come when the engine last ran; none for all.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn restore(&mut self, history: &dyn History, since: Option<Micros>) -> Result<()> {
        if let Some(since) = since {
            self.live.iter_mut().for_each(|live| live.floor = live.floor.max(since.saturating_sub(live.settles_after)));
        }
        self.restore_links(history)?;
        for number in 0..self.stores.len() {
            let entry = &self.stores[number];
            if entry.probed || entry.users.is_empty() {
                continue;
            }
            let reach = entry.retention.iter().map(|r| r.stay).max().unwrap_or(0);
            let columns = entry.columns();
            let since = since.unwrap_or(Micros::MIN).saturating_sub(reach);
            let batches =
                history.rows(&LookBack { table: entry.store.table(), keys: None, filters: &entry.filters.clone(), since, columns: Some(&columns) })?;
            for batch in batches {
                self.fill(number, &batch, None)?;
                let entry = &mut self.stores[number];
                if entry.store.is_presence() {
                    let condense = entry.retention.iter().filter_map(|r| r.condense).min().unwrap_or(0);
                    entry.store.condense(since, since.saturating_add(reach).saturating_add(condense), &self.hasher)?;
                }
            }
        }
        Ok(())
    }

    fn restore_links(&mut self, history: &dyn History) -> Result<()> {
        let columns = columns_of(self.links.table, &self.links.projection, &self.links.filters, None);
        let ask = LookBack { table: self.links.table, keys: None, filters: &self.links.filters.clone(), since: Micros::MIN, columns: Some(&columns) };
        let links = history.rows(&ask)?;
        for batch in links {
            let pass = pass_of(&mut self.passes, self.links.table)?;
            let mask = pass.filter.over(&batch).rows_of(self.links.scan)?;
            let timely = match self.with_late {
                true => BooleanArray::from(vec![true; batch.num_rows()]),
                false => not(&without_nulls(batch.column(system::LATE).as_boolean()))?,
            };
            let mask = mask.map_or_else(|| Ok(timely.clone()), |mask| and(&mask, &timely))?;
            if let Some(rows) = chosen_rows(&batch, &self.links.projection, Some(&mask))? {
                self.links.fresh.push(rows);
            }
        }
        Ok(())
    }

    /// Decides the keys that these late rows touch from their whole past, with late rows or without. For an engine of its own,
    /// which has seen no row before.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn decide_touched(&mut self, late: &[(&'static Table, RecordBatch)], history: &dyn History, with_late: bool) -> Result<Vec<Finding>> {
        self.with_late = with_late;
        self.restore_links(history)?;
        self.resolve_links()?;
        let mut touched_by = Vec::new();
        for number in 0..self.live.len() {
            let (mut keys, mut names, mut first) = (HashSet::new(), Vec::new(), Micros::MAX);
            let scans: Vec<(usize, usize)> = self.live[number]
                .feeds
                .iter()
                .enumerate()
                .filter_map(|(scan, feed)| if let Feed::Store { store, .. } = feed { Some((scan, *store)) } else { None })
                .collect();
            for (_, store) in &scans {
                let (table, in_pass, key) = (self.stores[*store].store.table(), self.stores[*store].scan, self.stores[*store].store.key_column());
                for (_, batch) in late.iter().filter(|(of, _)| std::ptr::eq(*of, table)) {
                    let mask = pass_of(&mut self.passes, table)?.filter.over(batch).rows_of(in_pass)?;
                    let Some(rows) = chosen_rows(batch, &[key, system::EVENT_TIME], mask.as_ref())? else { continue };
                    let touched: HashSet<Key> = self.hasher.column(rows.column(0)).into_iter().collect();
                    names.extend(texts_of(rows.column(0), &touched, &self.hasher)?);
                    first = first.min(arrow::compute::min(rows.column(1).as_primitive::<TimestampMicrosecondType>()).unwrap_or(first));
                    keys.extend(touched);
                }
            }
            let families = self.families(number, &keys);
            let keys: HashSet<Key> = families.into_iter().flatten().collect();
            names.extend(self.lineage.names(&keys));
            names.sort_unstable();
            names.dedup();
            let reach = self.live[number].analysis.back.saturating_add(self.live[number].analysis.ahead);
            for (scan, store) in scans.iter().filter(|_| !keys.is_empty()) {
                let entry = &self.stores[*store];
                let Some(key) = key_name(entry.store.table(), self.live[number].analysis.scans[*scan].key.as_deref()) else { continue };
                let (table, filters) = (entry.store.table(), entry.filters.clone());
                let columns = entry.columns();
                let since = first.saturating_sub(reach);
                let mut rows = history.rows(&LookBack { table, keys: Some((key, &names)), filters: &filters, since, columns: Some(&columns) })?;
                if keys.contains(&NULL_KEY) {
                    let without_key: Vec<Expr> = filters.iter().cloned().chain([datafusion::logical_expr::col(key).is_null()]).collect();
                    rows.extend(history.rows(&LookBack { table, keys: None, filters: &without_key, since, columns: Some(&columns) })?);
                }
                for batch in rows {
                    self.fill(*store, &batch, Some(&keys))?;
                }
            }
            self.live[number].loaded.extend(&keys);
            touched_by.push(keys);
        }
        // Only now: stores are shared, and what was fetched for one detection is not the whole of another's keys.
        for (live, keys) in self.live.iter_mut().zip(touched_by) {
            (live.dirty, live.floor) = (keys, Micros::MIN);
        }
        self.tick(history)
    }

    fn fill(&mut self, number: usize, batch: &RecordBatch, only: Option<&HashSet<Key>>) -> Result<()> {
        let entry = &mut self.stores[number];
        let pass = pass_of(&mut self.passes, entry.store.table())?;
        let mask = pass.filter.over(batch).rows_of(entry.scan)?;
        let keys = self.hasher.column(batch.column(entry.store.key_column()));
        let late = batch.column(system::LATE).as_boolean();
        let mask: BooleanArray = (0..batch.num_rows())
            .map(|row| {
                let wanted = only.is_none_or(|only| only.contains(&keys[row]));
                Some(wanted && (self.with_late || !late.value(row)) && mask.as_ref().is_none_or(|mask| mask.value(row)))
            })
            .collect();
        let touched = entry.store.insert(batch, &mask, &keys, &self.hasher)?;
        for user in &entry.users {
            self.live[*user].touch(number, &touched, self.progress);
            // What a running service fetches again it has counted when it came.
            if let Some(from) = self.counts_from {
                self.live[*user].tally.candidates += touched.iter().filter(|(_, time)| *time >= from).count() as u64;
            }
        }
        Ok(())
    }

    /// Says how far append time has come on all partitions: what is now sure is decided by the next [`Engine::tick`].
    pub fn advance(&mut self, progress: Micros) {
        self.progress = self.progress.max(progress);
        for live in &mut self.live {
            let later = live.timers.split_off(&self.progress);
            live.dirty.extend(std::mem::replace(&mut live.timers, later).into_values().flatten());
        }
    }

    /// Lets go of rows that nothing on time can join any more, and that no open result rests on.
    ///
    /// # Errors
    /// Arrow's, never in practice.
    pub fn let_go(&mut self, history: &dyn History) -> Result<()> {
        if self.progress == Micros::MIN {
            return Ok(());
        }
        for live in self.live.iter_mut().filter(|live| live.analysis.class == Class::C3) {
            live.floor = live.floor.max(live.sure.progress.saturating_sub(live.settles_after));
        }
        for entry in &mut self.stores {
            // What is still to be looked at needs its rows.
            let sure = entry.users.iter().map(|user| self.live[*user].sure.progress).min().unwrap_or(self.progress);
            if sure == Micros::MIN {
                continue;
            }
            let horizon = entry.horizon(sure, history.is_kept());
            if entry.store.is_presence() {
                let condense = entry.retention.iter().filter_map(|r| r.condense).min().unwrap_or(0);
                entry.store.condense(horizon, sure.saturating_add(condense), &self.hasher)?;
            }
            if entry.store.evict_before(horizon) && entry.probed {
                // What was fetched for these keys is no longer whole: the next question about them asks the archive again.
                for user in &entry.users {
                    self.live[*user].stale = true;
                }
            }
        }
        Ok(())
    }

    /// Says since when there are rows of each stream; of the others the earliest row that comes is the first. What is measured
    /// against an older past is called warming.
    pub fn begin(&mut self, spans: &[Span]) {
        self.knows_beginnings = true;
        self.begins.extend(spans.iter().map(|(table, (first, _))| (table.name, *first)));
        self.arrived.extend(spans.iter().map(|(table, (_, last))| (table.name, *last)));
    }

    /// The logs that ought to arrive, to be told what arrived before this engine began.
    pub fn expected(&mut self) -> &mut Expected {
        &mut self.expected
    }

    /// The logs that ought to arrive and are silent, each with the stream that it fills: as far as time has come on all partitions, for
    /// one that lags is not silent.
    pub fn silent_sources(&self) -> BTreeMap<String, &'static Table> {
        self.expected.silent(self.progress)
    }

    /// The streams of the logs that ought to arrive, one for each log.
    pub fn expected_sources(&self) -> impl Iterator<Item = &'static Table> {
        self.expected.expected(self.progress)
    }

    /// Per detection, up to where it has looked at everything: that it says no more of an alert that would be final only later means
    /// nothing, and nothing at all where it is switched off or has failed.
    pub fn sure_to(&self) -> HashMap<&str, Micros> {
        let sure = |live: &Live| if live.tally.failed || live.suspended.is_some() { Micros::MIN } else { live.sure.progress };
        self.live.iter().map(|live| (live.detection.name.as_str(), sure(live))).collect()
    }

    /// Takes what is now known of the own world. Rows that came before it held are not judged by it, so nothing is decided again.
    ///
    /// # Errors
    /// Arrow's, never in practice.
    pub fn set_dimensions(&mut self, dimensions: &Dimensions) -> Result<()> {
        for live in &mut self.live {
            for (feed, scan) in live.feeds.iter_mut().zip(&live.analysis.scans) {
                if let (Feed::Dimension(rows), Some(table)) = (feed, by_name(&scan.table)) {
                    *rows = dimensions.of(table).project(&scan.projection)?;
                }
            }
        }
        let before = std::mem::replace(&mut self.expected, Expected::of(dimensions)?);
        self.expected.heard_as(&before);
        Ok(())
    }

    /// How far append time has come on all partitions, as it was last told.
    pub fn progress(&self) -> Micros {
        self.progress
    }

    /// The latest append time of any row.
    pub fn newest(&self) -> Micros {
        self.newest
    }

    /// Takes over from the engine that this one replaces where the past begins, what was heard of sources, and what was counted of
    /// detections that are the same.
    pub fn begins_as(&mut self, other: &Engine) {
        for live in &mut self.live {
            let same = other.live.iter().find(|known| known.detection.id == live.detection.id && known.detection.sql == live.detection.sql);
            // What failed is decided again now.
            same.into_iter().for_each(|known| live.tally = Tally { failed: false, ..known.tally.clone() });
        }
        for asked in &mut self.scheduled {
            let same = other.scheduled.iter().find(|known| known.detection.id == asked.detection.id && known.detection.sql == asked.detection.sql);
            same.into_iter().for_each(|known| asked.tally = known.tally.clone());
        }
        self.begins.clone_from(&other.begins);
        self.arrived.clone_from(&other.arrived);
        self.knows_beginnings = other.knows_beginnings;
        self.expected.heard_as(&other.expected);
        self.filled.clone_from(&other.filled);
    }

    /// Results of class C3 that wait for append time to pass: keys with at least one.
    pub fn undecided(&self) -> usize {
        self.live.iter().map(|live| live.timers.values().map(HashSet::len).sum::<usize>()).sum()
    }

    fn resolve_links(&mut self) -> Result<()> {
        if self.links.fresh.is_empty() {
            return Ok(());
        }
        let rows = arrow::compute::concat_batches(self.links.plan.slots[0].schema(), &self.links.fresh)?;
        self.links.fresh.clear();
        self.links.plan.slots[0].set(Some(rows));
        let mut changed = HashSet::new();
        for batch in self.runtime.block_on(self.links.plan.run())? {
            changed.extend(self.lineage.absorb(&batch, &self.hasher)?);
        }
        for live in self.live.iter_mut().filter(|live| live.uses_lineage()) {
            live.dirty.extend(&changed);
            live.whole.extend(&changed);
        }
        Ok(())
    }

    /// Over budget, the detection that keeps most is switched off, loudly. Nothing is evicted from under a live window.
    fn keep_budget(&mut self) {
        while self.residue_bytes() > self.residue_budget {
            let share = |live: &Live| live.stores().map(|store| self.stores[store].store.bytes() / self.stores[store].users.len().max(1)).sum::<usize>();
            let costly = (0..self.live.len()).filter(|number| self.live[*number].suspended.is_none() && share(&self.live[*number]) > 0);
            let Some(costly) = costly.max_by_key(|number| share(&self.live[*number])) else { return };
            let live = &self.live[costly];
            let message = format!(
                "keeps {} rows ({} MiB){}: over the residue budget of {} MiB. It is switched off live and asked over the archive every quarter of an hour instead. Narrow its predicates or raise [limits] residue_budget, then reload",
                live.stores().map(|store| self.stores[store].store.rows()).sum::<usize>(),
                share(live) >> 20,
                if live.dirty.is_empty() { "" } else { " and does not keep up with what arrives" },
                self.residue_budget >> 20
            );
            self.switch_off(costly, message);
        }
    }

    fn switch_off(&mut self, number: usize, message: String) {
        let live = &mut self.live[number];
        live.suspended = Some(message.clone());
        live.dirty.clear();
        live.timers.clear();
        live.waiting.clear();
        live.resting.clear();
        self.problems.push((live.detection.name.clone(), message));
        for entry in &mut self.stores {
            entry.users.retain(|user| *user != number);
            // What nobody reads any more is given back, and takes no more rows.
            if entry.users.is_empty() && entry.store.rows() > 0 {
                entry.store = Store::new(
                    entry.store.table(),
                    entry.store.projection(),
                    entry.store.key_column(),
                    Arc::clone(entry.store.schema()),
                    entry.store.is_presence(),
                );
            }
        }
    }

    /// Memory of all kept rows, roughly (bytes).
    pub fn residue_bytes(&self) -> usize {
        self.stores.iter().map(|entry| entry.store.bytes()).sum()
    }

    /// Rows kept.
    pub fn residue_rows(&self) -> usize {
        self.stores.iter().map(|entry| entry.store.rows()).sum()
    }

    /// Distinct predicates and scans in the shared filter passes.
    pub fn filter_size(&self) -> (usize, usize) {
        self.passes.iter().map(|pass| pass.filter.size()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// What went wrong since the last call: detection and message.
    pub fn take_problems(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.problems)
    }

    /// One line per detection.
    pub fn report(&self) -> Vec<EngineReport> {
        let silent = self.silent_sources();
        let live = self.live.iter().map(|live| EngineReport {
            suspended: live.suspended.clone(),
            tally: live.tally.clone(),
            undecided: live.timers.values().map(HashSet::len).sum(),
            warming: live.begins(&self.begins).filter(|begins| *begins > self.newest.max(self.progress)),
            behind: if live.dirty.is_empty() || live.suspended.is_some() {
                0
            } else {
                self.newest.saturating_sub(live.sure.newest.max(self.began.unwrap_or(self.newest)))
            },
            resting: live.resting.len(),
            ..self.report_of(&live.detection, &live.analysis, &silent)
        });
        let asked = |asked: &Asked| EngineReport { tally: asked.tally.clone(), ..self.report_of(&asked.detection, &asked.analysis, &silent) };
        live.chain(self.scheduled.iter().map(asked)).collect()
    }

    /// Most rows under one key of a detection, of those that a running engine keeps at a time. Looks at every key.
    pub fn largest_key(&self, detection: &str) -> usize {
        let live = self.live.iter().filter(|live| live.detection.name == detection);
        let largest = |store: usize| {
            let entry = &self.stores[store];
            entry.store.largest_key(entry.retention.iter().map(|r| r.stay).max().unwrap_or(0))
        };
        live.flat_map(|live| live.stores()).map(largest).max().unwrap_or(0)
    }

    /// What is the same whether a detection is live or scheduled: whether what it needs arrives.
    fn report_of(&self, detection: &Detection, analysis: &Analysis, silent: &BTreeMap<String, &'static Table>) -> EngineReport {
        let arrives = |scan: usize| {
            let scan = &analysis.scans[scan];
            !scan.is_stream() || self.arrived.get(scan.table.as_str()).is_some_and(|at| self.newest.saturating_sub(*at) < DAY)
        };
        let mut missing = Vec::new();
        if !analysis.needs.met(&arrives) {
            missing = (0..analysis.scans.len())
                .filter(|scan| !arrives(*scan) && !analysis.scans[*scan].optional)
                .map(|scan| analysis.scans[scan].table.clone())
                .collect();
            missing.sort_unstable();
            missing.dedup();
        }
        let is_lost = |scan: &&ScanInfo| scan.is_stream() && !scan.optional && !self.arrived.contains_key(scan.table.as_str());
        let lost: BTreeSet<&str> = match missing.is_empty() && detection.schedule.is_none() {
            true => analysis.scans.iter().filter(is_lost).map(|scan| scan.table.as_str()).collect(),
            false => BTreeSet::new(),
        };
        EngineReport {
            lost: lost.into_iter().map(str::to_owned).collect(),
            detection: detection.name.clone(),
            class: analysis.class,
            empty: self.empty_columns(analysis),
            silent: silent.iter().filter(|(_, table)| analysis.scans.iter().any(|scan| scan.table == table.name)).map(|(name, _)| name.clone()).collect(),
            missing,
            suspended: None,
            warming: None,
            undecided: 0,
            behind: 0,
            resting: 0,
            tally: Tally::default(),
        }
    }

    fn empty_columns(&self, analysis: &Analysis) -> Vec<String> {
        let read = analysis.reads.iter().filter(|(table, column)| {
            let place = by_name(table).and_then(|table| Some((table, table.columns.iter().position(|known| known.name == column)?)));
            place.is_some_and(|(table, column)| self.filled.is_empty(table, column, self.newest))
        });
        read.map(|(table, column)| format!("{table}.{column}")).collect()
    }

    /// The detections and what was inferred of them.
    pub fn detections(&self) -> impl Iterator<Item = (&Arc<Detection>, &Analysis)> {
        self.live.iter().map(|live| (&live.detection, &live.analysis)).chain(self.scheduled.iter().map(|asked| (&asked.detection, &asked.analysis)))
    }

    /// The detections that are asked over the archive, those among them that had to be switched off.
    pub fn scheduled(&self) -> impl Iterator<Item = Scheduled> {
        let switched_off = self.live.iter().filter(|live| live.suspended.is_some()).map(|live| {
            let delay = live.analysis.scans.iter().filter_map(|scan| by_name(&scan.table)).map(|table| table.max_delay).max().unwrap_or(0);
            let reach = live.analysis.back + live.analysis.ahead + live.analysis.wait + delay;
            let schedule = Some(Schedule { every: INSTEAD_EVERY, over: reach + 2 * INSTEAD_EVERY });
            Scheduled { detection: Arc::new(Detection { schedule, ..Detection::clone(&live.detection) }), instead: Some(live.analysis.columns.clone()) }
        });
        self.scheduled.iter().map(|asked| Scheduled { detection: Arc::clone(&asked.detection), instead: None }).chain(switched_off)
    }

    /// Notes what the archive said of a detection at a moment: how many findings; none where it could not be asked.
    pub fn note_asked(&mut self, detection: &Detection, at: Micros, findings: Option<usize>) {
        let Some(Asked { tally, .. }) = self.scheduled.iter_mut().find(|asked| asked.detection.id == detection.id) else { return };
        tally.runs += 1;
        tally.failed = findings.is_none();
        let Some(findings) = findings else { return };
        tally.findings += findings as u64;
        tally.last_candidate = tally.last_candidate.max(Some(at));
        let last = if findings == 0 { &mut tally.last_near_miss } else { &mut tally.last_finding };
        *last = (*last).max(Some(at));
    }

    /// Whether what the archive said at a moment of a detection that is evaluated live too is what it would have said then: nothing on time
    /// can take it back any more, and all of the past that it is measured against was asked.
    pub fn is_sure(&self, detection: &Detection, alert_time: Micros, at: Micros) -> bool {
        let Some(live) = self.live.iter().find(|live| live.detection.id == detection.id) else { return true };
        let begins = detection.schedule.map_or(Micros::MIN, |schedule| at.saturating_sub(schedule.over));
        let is_final = live.analysis.wait == 0 || alert_time.saturating_add(live.analysis.wait) < at;
        is_final && alert_time.saturating_sub(live.analysis.back) >= begins
    }

    /// Whether the past that a result of a detection evaluated live is measured against began only later.
    pub fn is_warming(&self, detection: &Detection, alert_time: Micros) -> bool {
        let live = self.live.iter().find(|live| live.detection.id == detection.id);
        live.and_then(|live| live.begins(&self.begins)).is_some_and(|begins| alert_time < begins)
    }
}

/// The columns of a table that a scan needs: of its rows most are not, and the raw record is most of the bytes.
fn columns_of(table: &'static Table, projection: &[usize], filters: &[Expr], key: Option<usize>) -> Vec<usize> {
    let named = |name: &str| table.columns.iter().position(|column| column.name == name);
    let filtered = filters.iter().flat_map(|filter| filter.column_refs().into_iter().filter_map(|column| named(column.name())).collect::<Vec<_>>());
    let always = [system::EVENT_TIME, system::APPEND_TIME, system::EVENT_ID, system::LATE];
    let mut columns: Vec<usize> = projection.iter().copied().chain(filtered).chain(always).chain(key).collect();
    columns.sort_unstable();
    columns.dedup();
    columns
}

fn pass_of<'p>(passes: &'p mut [Pass], table: &'static Table) -> Result<&'p mut Pass> {
    passes.iter_mut().find(|pass| std::ptr::eq(pass.table, table)).ok_or_else(|| Error::bug(format!("{} is no stream", table.name)))
}

fn key_name(table: &'static Table, name: Option<&str>) -> Option<&'static str> {
    table.column(name?).map(|column| column.name)
}

fn without_nulls(bits: &BooleanArray) -> BooleanArray {
    match bits.nulls() {
        Some(nulls) => BooleanArray::new(bits.values() & nulls.inner(), None),
        None => bits.clone(),
    }
}

fn chosen_rows(batch: &RecordBatch, projection: &[usize], mask: Option<&BooleanArray>) -> Result<Option<RecordBatch>> {
    match mask {
        Some(mask) if !mask.has_true() => Ok(None),
        Some(mask) => Ok(Some(filter_record_batch(&batch.project(projection)?, mask)?)),
        None => Ok(Some(batch.project(projection)?)),
    }
}
