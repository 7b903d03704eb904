//! The SQL door: read-only questions over the archive or over rows in memory, with limits that no question can get past.

mod guard;
pub mod output;

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::{Result as DfResult, ScalarValue};
use datafusion::execution::context::{SQLOptions, SessionContext};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{Expr, TableType, col, lit};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionConfig;
use futures::StreamExt;

use crate::archive::Archive;
use crate::clock::Micros;
use crate::detect::catalog::{LINEAGE, register_tables};
use crate::detect::{KeyHasher, Lineage};
use crate::dimension::{Dimensions, Statement};
use crate::error::{At, Error, Result};
use crate::function::run_at;
use crate::secret::Fingerprinter;
use crate::table::{DIMENSIONS, Memory, TABLES, rejects, statements};

/// What one question may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub memory: usize,
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: 2 << 30, time: Duration::from_secs(300) }
    }
}

/// Where the rows of a question come from.
pub enum Rows<'a> {
    Archive(&'a Archive),
    Memory(&'a Memory),
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
        if let Rows::Archive(archive) = &rows {
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
        let pool = TrackConsumersPool::new(FairSpillPool::new(limits.memory), std::num::NonZeroUsize::MIN.saturating_add(4));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).build_arc()?;
        let config = SessionConfig::new().with_information_schema(true).with_target_partitions(std::thread::available_parallelism().map_or(2, |n| n.get()));
        let ctx = SessionContext::new_with_config_rt(config, runtime);
        let mut tables: Vec<(&'static str, Arc<dyn TableProvider>)> = Vec::new();
        for table in TABLES {
            let provider: Arc<dyn TableProvider> = match &rows {
                Rows::Archive(archive) => {
                    let read = archive.read(table).await?;
                    read.register_store(&ctx);
                    let read = match moment {
                        Some(Moment { at, over }) if table.is_stream() => read.appended_between(at.saturating_sub(over), at),
                        _ => read,
                    };
                    Arc::new(read)
                }
                Rows::Memory(memory) => Arc::new(MemTable::try_new(table.schema(), vec![memory.of(table)])?),
            };
            let provider = match moment {
                Some(Moment { at, over }) if table.is_stream() => {
                    let time = |time: Micros| lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())));
                    let appended = col("append_time");
                    ctx.read_table(provider)?.filter(appended.clone().gt_eq(time(at.saturating_sub(over))).and(appended.lt(time(at))))?.into_view()
                }
                _ => provider,
            };
            tables.push((table.name, provider));
        }
        if let Some(moment) = moment {
            ctx.register_udf(run_at(moment.at));
        }
        for table in DIMENSIONS {
            tables.push((table.name, Arc::new(MemTable::try_new(table.schema(), vec![vec![dimensions.of(table)]])?)));
        }
        let lineage: Arc<dyn TableProvider> = Arc::new(LineageTable { ctx: ctx.clone() });
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
        Ok(Self { ctx, limits })
    }

    /// Answers one question.
    ///
    /// # Errors
    /// What is not allowed, wrong in the SQL, or over a limit.
    pub async fn ask(&self, sql: &str) -> Result<Answer> {
        guard::check(sql)?;
        let (ctx, sql, memory) = (self.ctx.clone(), sql.to_owned(), self.limits.memory);
        // A task of its own: a plan that never pauses must not keep the clock from being looked at.
        let work = tokio::spawn(async move {
            let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
            let frame = ctx.sql_with_options(&sql, options).await.map_err(plain)?;
            let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
            let mut rows = frame.execute_stream().await.map_err(plain)?;
            let (mut batches, mut bytes) = (Vec::new(), 0);
            while let Some(batch) = rows.next().await {
                let batch = batch.map_err(plain)?;
                bytes += batch.get_array_memory_size();
                if bytes > memory {
                    return Err(Error::user(format!("the answer is larger than {} MiB; ask for less, or raise --memory", memory >> 20)));
                }
                batches.push(batch);
            }
            Ok(Answer { schema, batches })
        });
        let stop = work.abort_handle();
        match tokio::time::timeout(self.limits.time, work).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(Error::bug("the query panicked"))),
            Err(_) => {
                stop.abort();
                Err(Error::user(format!("stopped after {} s; narrow the question, or raise --timeout", self.limits.time.as_secs())))
            }
        }
    }

    /// Names of tables and views, for completion and help.
    pub fn tables(&self) -> Vec<String> {
        self.ctx.catalog("datafusion").and_then(|catalog| catalog.schema("public")).map(|schema| schema.table_names()).unwrap_or_default()
    }
}

fn plain(error: datafusion::error::DataFusionError) -> Error {
    Error::user(error.strip_backtrace().replace("datafusion.public.", ""))
}

/// Rows that answer a question.
pub struct Answer {
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
}

impl Answer {
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// `lineage`, resolved from `lineage_links` when a question reads it.
struct LineageTable {
    ctx: SessionContext,
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
        let links = self.ctx.state().create_logical_plan("SELECT child, parent, minted_at FROM lineage_links").await?;
        let links = self.ctx.state().create_physical_plan(&links).await?;
        let hasher = KeyHasher::default();
        let mut lineage = Lineage::default();
        for batch in collect(links, self.ctx.task_ctx()).await? {
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
