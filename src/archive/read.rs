//! Reading the archive: a DataFusion table over the files of one snapshot, and the engine's questions to the past.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, TimestampMicrosecondArray};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column as DfColumn, DFSchema, Result as DfResult, ScalarValue};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType, col, lit};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;

use super::write::Holds;
use super::{Archive, DataFile, Location};
use crate::clock::{HOUR, Micros, parse_time};
use crate::error::{Error, Result};
use crate::table::{Column, History, Kind, LookBack, Table};

/// One archived table as of one moment.
#[derive(Clone)]
pub struct ArchiveTable {
    location: Location,
    table: &'static Table,
    files: Vec<DataFile>,
    footers: Arc<FileMetadataCache>,
}

impl std::fmt::Debug for ArchiveTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ArchiveTable({}, {} files)", self.table.name, self.files.len())
    }
}

impl ArchiveTable {
    pub fn new(location: &Location, table: &'static Table, files: Vec<DataFile>, footers: Arc<FileMetadataCache>) -> Self {
        Self { location: location.clone(), table, files, footers }
    }

    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// Without the files whose rows were all appended before or after.
    pub fn appended_between(mut self, from: Micros, to: Micros) -> Self {
        self.files.retain(|file| file.hour_start().is_none_or(|start| start.saturating_add(HOUR) > from && start < to));
        self
    }

    /// The hours in which each event is known to be there once, and the others.
    pub fn by_repeats(mut self) -> (Self, Self) {
        let mut once: BTreeMap<Option<Micros>, bool> = BTreeMap::new();
        for file in &self.files {
            *once.entry(file.hour_start()).or_insert(true) &= Holds::of(&file.path) == Holds::EachEventOnce;
        }
        let (known, unknown) = std::mem::take(&mut self.files).into_iter().partition(|file| once[&file.hour_start()]);
        (Self { files: known, ..self.clone() }, Self { files: unknown, ..self })
    }

    /// Append time of the first and the last row, from the statistics of the files; none without rows.
    pub fn span(&self) -> Option<(Micros, Micros)> {
        let times = TimesOf::new(self.table, &self.files);
        Some((times.bounds("minValues", "append_time").flatten().min()?, times.bounds("maxValues", "append_time").flatten().max()?))
    }

    /// The files that may hold rows that a predicate lets through, as far as the statistics of their times tell.
    fn that_may_hold(&self, predicate: &Arc<dyn PhysicalExpr>) -> DfResult<Vec<&DataFile>> {
        let is_time = |column: &PhysicalColumn| self.table.column(column.name()).is_some_and(|column| column.kind == Kind::Time);
        if !collect_columns(predicate).iter().any(is_time) {
            return Ok(self.files.iter().collect());
        }
        let pruning = PruningPredicateBuilder::new().with_file_schema(self.schema()).try_build(Arc::clone(predicate))?;
        let kept = pruning.prune(&TimesOf::new(self.table, &self.files))?;
        Ok(self.files.iter().zip(kept).filter(|(_, kept)| *kept).map(|(file, _)| file).collect())
    }

    /// The name under which a context must know the archive's storage.
    fn store_url(&self) -> DfResult<ObjectStoreUrl> {
        let url = &self.location.url;
        match url.scheme() {
            "file" => Ok(ObjectStoreUrl::local_filesystem()),
            scheme => ObjectStoreUrl::parse(format!("{scheme}://{}", url.host_str().unwrap_or_default())),
        }
    }

    /// Makes the archive's storage known to a context.
    pub fn register_store(&self, ctx: &SessionContext) {
        if self.location.local.is_none()
            && let Ok(url) = self.store_url()
        {
            ctx.register_object_store(url.as_ref(), Arc::clone(&self.location.store));
        }
    }
}

#[async_trait]
impl TableProvider for ArchiveTable {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        // Statistics and bloom filters skip row groups; the rows themselves are checked again.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(&self, state: &dyn Session, projection: Option<&Vec<usize>>, filters: &[Expr], limit: Option<usize>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        // Asked for by key, few rows match: late materialisation spares the rest of the row. Wide sweeps are faster without.
        let by_key = filters.iter().any(|filter| filter.column_refs().iter().any(|column| self.table.looked_up_by.contains(&column.name())));
        let store = state.runtime_env().object_store(self.store_url()?)?;
        let mut source = ParquetSource::new(Arc::clone(&schema))
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(store, Arc::clone(&self.footers))))
            .with_pushdown_filters(by_key)
            .with_reorder_filters(by_key)
            .with_enable_page_index(true)
            .with_bloom_filter_on_read(true);
        let mut files: Vec<&DataFile> = self.files.iter().collect();
        if let Some(predicate) = conjunction(filters.to_vec()) {
            let predicate = state.create_physical_expr(predicate, &DFSchema::try_from(Arc::clone(&schema))?)?;
            files = self.that_may_hold(&predicate)?;
            source = source.with_predicate(predicate);
        }
        let root = self.location.table(self.table.name);
        let mut groups: Vec<Vec<PartitionedFile>> = vec![Vec::new(); state.config().target_partitions().clamp(1, files.len().max(1))];
        let count = groups.len();
        let files = files.into_iter().map(|file| PartitionedFile::new(format!("{root}/{}", file.path), file.bytes));
        for (number, file) in files.enumerate() {
            groups[number % count].push(file);
        }
        let config = FileScanConfigBuilder::new(self.store_url()?, Arc::new(source))
            .with_file_groups(groups.into_iter().map(FileGroup::new).collect())
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// What the statistics of files say of their times.
struct TimesOf {
    table: &'static Table,
    stats: Vec<serde_json::Value>,
}

impl TimesOf {
    fn new(table: &'static Table, files: &[DataFile]) -> Self {
        Self { table, stats: files.iter().map(DataFile::read_stats).collect() }
    }

    fn bounds(&self, which: &str, column: &str) -> impl Iterator<Item = Option<Micros>> {
        self.stats.iter().map(move |stats| stats[which][column].as_str().and_then(parse_time))
    }

    fn bound(&self, which: &str, column: &DfColumn) -> Option<ArrayRef> {
        self.table.column(column.name()).filter(|column| column.kind == Kind::Time)?;
        Some(Arc::new(self.bounds(which, column.name()).collect::<TimestampMicrosecondArray>().with_timezone("UTC")))
    }
}

impl PruningStatistics for TimesOf {
    fn min_values(&self, column: &DfColumn) -> Option<ArrayRef> {
        self.bound("minValues", column)
    }

    fn max_values(&self, column: &DfColumn) -> Option<ArrayRef> {
        self.bound("maxValues", column)
    }

    fn num_containers(&self) -> usize {
        self.stats.len()
    }

    fn null_counts(&self, _: &DfColumn) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _: &DfColumn, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// The archive as the engine asks it. Blocks: only for threads that no runtime owns.
#[derive(Clone)]
pub struct ArchiveHistory {
    pub archive: Arc<Archive>,
    pub runtime: tokio::runtime::Handle,
}

impl History for ArchiveHistory {
    fn rows(&self, ask: &LookBack<'_>) -> Result<Vec<RecordBatch>> {
        self.runtime.block_on(async {
            let mut table = self.archive.read(ask.table).await?;
            // A row is appended after its event, give or take the clocks: earlier hours hold nothing of interest.
            table.files.retain(|file| file.hour_start().is_none_or(|start| start.saturating_add(2 * HOUR) > ask.since));
            if table.files.is_empty() {
                return Ok(Vec::new());
            }
            let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
            table.register_store(&ctx);
            let mut rows = ctx.read_table(Arc::new(table)).map_err(Error::from)?;
            if let Some(wanted) = ask.columns {
                let column = |(index, column): (usize, &Column)| match wanted.contains(&index) {
                    true => Ok(col(column.name)),
                    false => Ok(lit(ScalarValue::try_from(column.kind.arrow())?).alias(column.name)),
                };
                rows = rows.select(ask.table.columns.iter().enumerate().map(column).collect::<DfResult<Vec<_>>>()?)?;
            }
            if ask.since > i64::MIN {
                rows = rows.filter(col("event_time").gt_eq(lit(ScalarValue::TimestampMicrosecond(Some(ask.since), Some("UTC".into())))))?;
            }
            for filter in ask.filters {
                rows = rows.filter(unnormalize_col(filter.clone()))?;
            }
            if let Some((column, keys)) = ask.keys {
                let word = ask.table.column(column).is_some_and(|c| c.kind == Kind::Word);
                let value = |key: &String| match word {
                    true => lit(key.clone()),
                    false => lit(ScalarValue::Utf8View(Some(key.clone()))),
                };
                rows = rows.filter(col(column).in_list(keys.iter().map(value).collect(), false))?;
            }
            Ok(rows.collect().await?)
        })
    }

    fn is_kept(&self) -> bool {
        true
    }
}
