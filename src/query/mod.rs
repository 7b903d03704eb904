//! The SQL door: read-only questions over the archive or over rows in memory, with limits that no question can get past.

mod dialect;
mod doors;
mod functions;
mod growth;
mod guard;
mod help;
mod hot;
mod once;
pub mod output;
mod pausing;
pub mod wire;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::{Result as DfResult, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryPool, MemoryReservation, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{Expr, LogicalPlan, TableType, col, lit};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{DataFrame, SessionConfig};
use datafusion::sql::parser::Statement as DfStatement;
use futures::StreamExt;
use parking_lot::RwLock;

use crate::archive::Archive;
use crate::clock::Micros;
use crate::detect::catalog::{LINEAGE, register_tables};
use crate::detect::{KeyHasher, Lineage};
use crate::dimension::{Dimensions, Statement};
use crate::error::{At, Error, Result};
use crate::function::run_at;
use crate::limits;
use crate::secret::Fingerprinter;
use crate::table::{DIMENSIONS, Memory, TABLES, rejects, statements};

pub use doors::Doors;
use hot::HotAndArchived;
use once::Once;
use pausing::Pausing;

/// The one database, as clients see it.
const CATALOG: &str = "keyfuse";

/// What questions may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of all questions that are asked at a time, their answers included until they are sent.
    pub memory: usize,
    /// Of one question.
    pub time: Duration,
    /// Most rows of an answer.
    pub rows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: 2 << 30, time: Duration::from_secs(300), rows: usize::MAX }
    }
}

/// Where the rows of a question come from.
pub enum Rows<'a> {
    Archive(&'a Archive),
    Memory(&'a Memory),
    /// The archive, and what is not in it yet.
    Both(&'a Archive, &'a Memory),
}

impl<'a> Rows<'a> {
    fn archive(&self) -> Option<&'a Archive> {
        match self {
            Rows::Archive(archive) | Rows::Both(archive, _) => Some(archive),
            Rows::Memory(_) => None,
        }
    }
}

/// Tables of which the newest row of each thing is asked for under their name, and all rows under another.
static NEWEST: &[(&str, &str, &str)] = &[
    (
        "alerts",
        "alert_revisions",
        "SELECT * EXCLUDE (nth) FROM (SELECT *, row_number() OVER (PARTITION BY alert_id ORDER BY revision DESC) AS nth FROM alert_revisions) WHERE nth = 1",
    ),
    (
        "detection_health",
        "detection_health_history",
        "SELECT * EXCLUDE (nth) FROM (SELECT *, row_number() OVER (PARTITION BY detection ORDER BY at DESC) AS nth FROM detection_health_history) WHERE nth = 1",
    ),
];

/// A moment that a question is about: rows appended before it, and not longer than `over` before it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub at: Micros,
    pub over: Micros,
    pub seen: Seen,
}

/// Which rows of a moment a question sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// As they lie there: a record that was delivered again may be there again.
    All,
    /// Each event once in an hour of arrival, whether that hour was compacted or not.
    Once,
    /// What live evaluation sees: those on time, each event once.
    AsLive,
}

/// A place to ask SQL.
#[derive(Clone)]
pub struct Door {
    ctx: SessionContext,
    limits: Limits,
}

impl Door {
    /// Opens a door on a snapshot of the rows as they are now.
    ///
    /// # Errors
    /// The archive cannot be read.
    pub async fn open(rows: Rows<'_>, dimensions: &Dimensions, fingerprinter: &Fingerprinter, limits: Limits) -> Result<Self> {
        let mut dimensions = dimensions.clone();
        if let Some(archive) = rows.archive() {
            // What topics stated is in the archive; what is wrong in it was told when it was read.
            dimensions.add_statements(&Statement::of_rows(&archive.all(&statements::TABLE).await?));
        }
        Self::open_at(rows, None, &dimensions, fingerprinter, limits).await
    }

    /// Opens a door on the rows of streams and rejects that had been appended at a moment, with dimensions as they are given.
    ///
    /// # Errors
    /// The archive cannot be read.
    pub async fn open_at(rows: Rows<'_>, moment: Option<Moment>, dimensions: &Dimensions, fingerprinter: &Fingerprinter, limits: Limits) -> Result<Self> {
        Self::open_in(&pool(limits.memory), rows, moment, dimensions, fingerprinter, limits).await
    }

    /// Opens a door whose questions take their memory from a pool, which they may share with those of other doors.
    async fn open_in(
        pool: &Arc<dyn MemoryPool>,
        rows: Rows<'_>,
        moment: Option<Moment>,
        dimensions: &Dimensions,
        fingerprinter: &Fingerprinter,
        limits: Limits,
    ) -> Result<Self> {
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(pool)).with_max_temp_directory_size(limits::SPILL_BYTES).build_arc()?;
        let partitions = std::thread::available_parallelism().map_or(2, |n| n.get());
        let mut config =
            SessionConfig::new().with_information_schema(true).with_target_partitions(partitions).with_default_catalog_and_schema(CATALOG, "public");
        // `TIMESTAMPTZ '…'` is a moment, as the columns' times are.
        config.options_mut().execution.time_zone = Some("UTC".into());
        let state = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
        let mut ctx = SessionContext::new_with_state(state.with_physical_optimizer_rule(Arc::new(Pausing)).build());
        let mut tables: Vec<(&'static str, Arc<dyn TableProvider>)> = Vec::new();
        for table in TABLES {
            let hot = |memory: &Memory| memory.of(table);
            let (archived, hot) = match &rows {
                Rows::Archive(archive) => (Some(archive.read(table).await?), Vec::new()),
                Rows::Memory(memory) => (None, hot(memory)),
                Rows::Both(archive, memory) => {
                    let (archived, hot) = archive.read_with(table, || hot(memory)).await?;
                    (Some(archived), hot)
                }
            };
            let moment = moment.filter(|_| table.is_stream());
            let archived = archived.map(|read| {
                read.register_store(&ctx);
                match moment {
                    Some(Moment { at, over, .. }) => read.appended_between(at.saturating_sub(over), at),
                    None => read,
                }
            });
            let hot = MemTable::try_new(table.schema(), vec![hot])?;
            let seen = moment.map_or(Seen::All, |moment| moment.seen);
            let (once, rows): (_, Arc<dyn TableProvider>) = match archived {
                Some(archived) if matches!(rows, Rows::Both(..)) => (None, Arc::new(HotAndArchived { archived, hot })),
                Some(archived) if seen == Seen::Once => {
                    let (once, rest) = archived.by_repeats();
                    (Some(Arc::new(once)), Arc::new(rest))
                }
                Some(archived) => (None, Arc::new(archived)),
                None => (None, Arc::new(hot)),
            };
            let provider = match moment {
                Some(Moment { at, over, .. }) => {
                    let rows: Arc<dyn TableProvider> = match seen {
                        // A record that is refused twice is two rejects.
                        _ if std::ptr::eq(*table, &rejects::TABLE) => rows,
                        Seen::All => rows,
                        Seen::Once => Arc::new(Once::InItsHour(rows)),
                        Seen::AsLive => Arc::new(Once::OnTime(rows)),
                    };
                    let rows = ctx.read_table(rows)?;
                    let rows = if let Some(once) = once { rows.union(ctx.read_table(once)?)? } else { rows };
                    let time = |time: Micros| lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())));
                    let appended = col("append_time");
                    rows.filter(appended.clone().gt_eq(time(at.saturating_sub(over))).and(appended.lt(time(at))))?.into_view()
                }
                None => rows,
            };
            tables.push((table.name, provider));
        }
        if let Some(moment) = moment {
            ctx.register_udf(run_at(moment.at));
        }
        for table in DIMENSIONS {
            tables.push((table.name, Arc::new(MemTable::try_new(table.schema(), vec![vec![dimensions.of(table)]])?)));
        }
        let lineage: Arc<dyn TableProvider> = Arc::new(LineageTable { ctx: ctx.state_weak_ref() });
        register_tables(&ctx, fingerprinter, |name, _| {
            tables.iter().find(|(known, _)| *known == name).map_or_else(|| Arc::clone(&lineage), |(_, provider)| Arc::clone(provider))
        })?;
        for (name, history, newest) in NEWEST {
            let Some((_, provider)) = tables.iter().find(|(known, _)| known == name) else { continue };
            ctx.register_table(*history, Arc::clone(provider))?;
            let plan = ctx.state().create_logical_plan(newest).await?;
            ctx.register_table(*name, Arc::new(datafusion::datasource::ViewTable::new(plan, Some((*newest).into()))))?;
        }
        for (name, provider) in tables.iter().filter(|(name, _)| [rejects::TABLE.name, statements::TABLE.name].contains(name)) {
            ctx.register_table(*name, Arc::clone(provider))?;
        }
        // What the tables and functions mean, to be asked like anything else.
        help::register(&ctx)?;
        functions::register(&ctx);
        dialect::register(&ctx);
        growth::bound(&mut ctx)?;
        Ok(Self { ctx, limits })
    }

    /// Answers one question.
    ///
    /// # Errors
    /// What is not allowed, wrong in the SQL, or over a limit.
    pub async fn ask(&self, sql: &str) -> Result<Answer> {
        guard::check(sql)?;
        let (door, sql, limits) = (self.clone(), sql.to_owned(), self.limits);
        match limited(limits.time, async move { door.run(door.plan(&sql).await?, limits).await }).await {
            Ok(answer) => answer.map_err(plain),
            Err(Stopped::Panicked) => Err(Error::bug("the query panicked")),
            Err(Stopped::TimeOver) => Err(Error::user(format!("stopped after {} s; narrow the question, or raise the time limit", limits.time.as_secs()))),
        }
    }

    /// The plan of a question, and the context in which it and what is made of it can be run.
    ///
    /// # Errors
    /// What is wrong in the SQL.
    pub(crate) async fn planned(&self, sql: &str) -> Result<(SessionContext, LogicalPlan)> {
        let plan = self.plan(sql).await.map_err(plain)?;
        Ok((self.ctx.clone(), self.ctx.state().optimize(&plan)?))
    }

    /// Plans a question that the guard has let through.
    async fn plan(&self, sql: &str) -> DfResult<LogicalPlan> {
        let state = self.ctx.state();
        self.plan_read(state.sql_to_statement(sql, &state.config_options().sql_parser.dialect)?).await
    }

    /// Plans a question that has been read already.
    async fn plan_read(&self, mut statement: DfStatement) -> DfResult<LogicalPlan> {
        dialect::translate(&mut statement);
        guard::relations(&statement)?;
        reads_only(self.ctx.state().statement_to_plan(statement).await?)
    }

    async fn run(&self, plan: LogicalPlan, limits: Limits) -> DfResult<Answer> {
        let frame = DataFrame::new(self.ctx.state(), plan);
        let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
        let mut stream = frame.execute_stream().await?;
        let held = MemoryConsumer::new("answer").register(&self.ctx.runtime_env().memory_pool);
        let (mut batches, mut rows) = (Vec::new(), 0);
        let over = |what: String| DataFusionError::ResourcesExhausted(format!("the answer {what}; ask for less, or raise the limit"));
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            rows += batch.num_rows();
            held.try_grow(batch.get_array_memory_size()).map_err(|_| over(format!("does not fit into the {} MiB for questions", limits.memory >> 20)))?;
            if rows > limits.rows {
                return Err(over(format!("is larger than {} rows", limits.rows)));
            }
            batches.push(batch);
        }
        Ok(Answer { schema, batches, held })
    }

    /// Names of tables and views, for completion and help.
    pub fn tables(&self) -> Vec<String> {
        self.ctx.catalog(CATALOG).and_then(|catalog| catalog.schema("public")).map(|schema| schema.table_names()).unwrap_or_default()
    }
}

fn pool(memory: usize) -> Arc<dyn MemoryPool> {
    Arc::new(TrackConsumersPool::new(FairSpillPool::new(memory), std::num::NonZeroUsize::MIN.saturating_add(4)))
}

fn reads_only(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false).verify_plan(&plan)?;
    guard::expressions(&plan)?;
    Ok(plan)
}

/// Why work gave no result.
enum Stopped {
    TimeOver,
    Panicked,
}

/// Work under a time limit, on a task of its own: a plan that never pauses must not keep the clock from being looked at. It is
/// stopped when nobody waits for it any more. Where every thread was taken, the end of the work may be seen before the end of
/// the time: late is late, whichever was seen first.
async fn limited<T: Send + 'static>(time: Duration, work: impl Future<Output = T> + Send + 'static) -> Result<T, Stopped> {
    let started = Instant::now();
    let mut work = AbortOnDrop(tokio::spawn(work));
    match tokio::time::timeout(time, &mut work.0).await {
        Ok(_) if started.elapsed() >= time => Err(Stopped::TimeOver),
        Ok(done) => done.map_err(|_| Stopped::Panicked),
        Err(_) => Err(Stopped::TimeOver),
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An error's text, with the names of tables as they are asked for.
fn said(error: &DataFusionError) -> String {
    error.strip_backtrace().replace("keyfuse.public.", "")
}

fn plain(error: DataFusionError) -> Error {
    Error::user(said(&error))
}

/// Rows that answer a question.
pub struct Answer {
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
    /// The memory that they take.
    held: MemoryReservation,
}

impl Answer {
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// `lineage`, resolved from `lineage_links` when a question reads it.
///
/// It knows its context weakly: a context that holds itself would never be let go of.
struct LineageTable {
    ctx: Weak<RwLock<SessionState>>,
}

impl std::fmt::Debug for LineageTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LineageTable")
    }
}

#[async_trait]
impl TableProvider for LineageTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&LINEAGE)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(&self, state: &dyn Session, projection: Option<&Vec<usize>>, filters: &[Expr], limit: Option<usize>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let own = self.ctx.upgrade().ok_or_else(|| DataFusionError::Internal("lineage outlives its tables".into()))?;
        let own = own.read().clone();
        let links = own.create_logical_plan("SELECT child, parent, minted_at FROM lineage_links").await?;
        let links = own.create_physical_plan(&links).await?;
        let hasher = KeyHasher::default();
        let mut lineage = Lineage::default();
        for batch in collect(links, own.task_ctx()).await? {
            lineage.absorb(&batch, &hasher)?;
        }
        let rows = MemTable::try_new(Arc::clone(&LINEAGE), vec![vec![lineage.rows(None)?]])?;
        rows.scan(state, projection, filters, limit).await
    }
}

/// A runtime of its own for questions, with stacks deep enough for any plan that the guard lets through.
///
/// # Errors
/// No threads to be had.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().thread_stack_size(32 << 20).thread_name("query").enable_all().build().at(|| "starting the query runtime".into())
}

/// Runs something on that runtime's own threads, whose stacks are deep enough, and waits for it.
///
/// # Errors
/// Its own; a panic is a bug that is told.
pub fn on_deep_stacks<T: Send + 'static>(runtime: &tokio::runtime::Runtime, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    runtime.block_on(async move { tokio::spawn(work).await }).unwrap_or_else(|_| Err(Error::bug("a query panicked")))
}
