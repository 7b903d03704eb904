//! The SQL world of a detection: streams, views, `lineage` and the functions, with one planner configuration.

use std::fmt;
use std::sync::{Arc, LazyLock, Mutex};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::context::SessionContext;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use datafusion::prelude::SessionConfig;

use crate::function;
use crate::secret::Fingerprinter;
use crate::table::{DIMENSIONS, STREAMS, VIEWS};

/// Columns of the derived table `lineage`: one row per credential and each of its ancestors.
pub static LINEAGE: LazyLock<SchemaRef> = LazyLock::new(|| {
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        // The credential that was made, directly or through others.
        Field::new("credential", DataType::Utf8View, true),
        // A credential that it descends from.
        Field::new("ancestor", DataType::Utf8View, true),
        // Links between the two; 1 is parent and child.
        Field::new("depth", DataType::Int64, true),
        // When the credential itself was made.
        Field::new("minted_at", time(), true),
        // When the chain left the ancestor: its first link.
        Field::new("left_at", time(), true),
    ]))
});

/// The planner configuration of kept plans: small inputs, one partition, nothing that a reset could not undo.
pub fn session_config() -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(1)
        .with_repartition_joins(false)
        .with_repartition_aggregations(false)
        .with_repartition_windows(false)
        .with_round_robin_repartition(false)
        .with_collect_statistics(false)
        .with_information_schema(true);
    // Must go through the string setter: it alone switches off the join, top-k and aggregate kinds together.
    // Kept plans cannot have dynamic filters, see `reset_plan_states`.
    let set = config.options_mut().set("datafusion.optimizer.enable_dynamic_filter_pushdown", "false");
    debug_assert!(set.is_ok());
    config
}

/// A context in which every table is given by `provide`, with views and functions on top.
///
/// # Errors
/// A view that does not plan: a bug.
pub fn context(config: SessionConfig, fingerprinter: &Fingerprinter, provide: impl Fn(&str, SchemaRef) -> Arc<dyn TableProvider>) -> Result<SessionContext> {
    let ctx = SessionContext::new_with_config(config);
    register_tables(&ctx, fingerprinter, provide)?;
    Ok(ctx)
}

/// Adds streams, `lineage`, functions and views to a context.
///
/// # Errors
/// A view that does not plan: a bug.
pub fn register_tables(ctx: &SessionContext, fingerprinter: &Fingerprinter, provide: impl Fn(&str, SchemaRef) -> Arc<dyn TableProvider>) -> Result<()> {
    function::register(&mut *ctx.state_ref().write(), fingerprinter)?;
    ctx.add_analyzer_rule(Arc::new(function::intervals::ExactIntervals));
    for table in STREAMS {
        ctx.register_table(table.name, provide(table.name, table.schema()))?;
    }
    for table in DIMENSIONS {
        ctx.register_table(table.name, provide(table.name, table.schema()))?;
    }
    ctx.register_table("lineage", provide("lineage", Arc::clone(&LINEAGE)))?;
    for (name, sql, _) in VIEWS {
        let plan = futures::executor::block_on(ctx.state().create_logical_plan(sql))?;
        ctx.register_table(*name, Arc::new(datafusion::datasource::ViewTable::new(plan, Some((*sql).to_owned()))))?;
    }
    Ok(())
}

/// A table that is only planned against. A stream takes every predicate, so that the optimiser pushes all it can into the
/// shared filter pass; what is not filtered there (`lineage`, dimensions) takes none.
#[derive(Debug)]
pub struct Declared {
    pub schema: SchemaRef,
    pub is_stream: bool,
}

#[async_trait]
impl TableProvider for Declared {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let taken = if self.is_stream { TableProviderFilterPushDown::Exact } else { TableProviderFilterPushDown::Unsupported };
        Ok(vec![taken; filters.len()])
    }

    async fn scan(&self, _: &dyn Session, _: Option<&Vec<usize>>, _: &[Expr], _: Option<usize>) -> Result<Arc<dyn ExecutionPlan>> {
        datafusion::common::internal_err!("a declared table is planned against, not read")
    }
}

/// A leaf of a kept plan: reads whatever rows were put into it before the run.
#[derive(Clone, Debug)]
pub struct Slot {
    schema: SchemaRef,
    rows: Arc<Mutex<Option<RecordBatch>>>,
}

impl Slot {
    pub fn new(schema: SchemaRef) -> Self {
        Self { schema, rows: Arc::default() }
    }

    /// Schema of the rows that the slot takes.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Sets the rows of the next run.
    pub fn set(&self, rows: Option<RecordBatch>) {
        *self.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = rows;
    }

    /// Of the same shape, with rows of its own.
    pub fn another(&self) -> Self {
        Self::new(Arc::clone(&self.schema))
    }

    /// The leaf of a plan that reads one of these, if it is one, reading the slot at the same place of `others` instead.
    pub fn exchanged(leaf: &dyn ExecutionPlan, these: &[Self], others: &[Self]) -> Option<Arc<dyn ExecutionPlan>> {
        let leaf = leaf.downcast_ref::<SlotExec>()?;
        let place = these.iter().position(|slot| Arc::ptr_eq(&slot.rows, &leaf.slot.rows))?;
        Some(Arc::new(SlotExec { slot: others.get(place)?.clone(), properties: Arc::clone(&leaf.properties) }))
    }

    fn get(&self) -> Option<RecordBatch> {
        self.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Stands for one scan while the kept plan is made, and turns into its leaf.
#[derive(Debug)]
pub struct SlotTable {
    pub full: SchemaRef,
    pub slot: Slot,
}

#[async_trait]
impl TableProvider for SlotTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.full)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Exact; filters.len()])
    }

    async fn scan(&self, _: &dyn Session, _: Option<&Vec<usize>>, _: &[Expr], _: Option<usize>) -> Result<Arc<dyn ExecutionPlan>> {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&self.slot.schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(SlotExec { slot: self.slot.clone(), properties: Arc::new(properties) }))
    }
}

#[derive(Debug)]
struct SlotExec {
    slot: Slot,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for SlotExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlotExec")
    }
}

impl ExecutionPlan for SlotExec {
    fn name(&self) -> &str {
        "SlotExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(&self, _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>, _: ReplaceChildrenOptions) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.slot.get().into_iter().collect();
        Ok(Box::pin(MemoryStream::try_new(rows, Arc::clone(&self.slot.schema), None)?))
    }
}
