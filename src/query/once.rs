//! The rows of a stream with each event once.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::provider_as_source;
use datafusion::functions::datetime::expr_fn::date_trunc;
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableProviderFilterPushDown, TableType, col, lit, not};
use datafusion::physical_plan::ExecutionPlan;

/// What differs between an event and its repeat: where and when it came.
const PLACE: [&str; 6] = ["append_time", "topic", "partition", "offset", "record", "late"];

/// A stream's rows without repeats. Conditions go first where they can: what says the same has the same id, so a repeat meets them
/// or does not as the first does, and only what meets them is compared.
#[derive(Debug)]
pub enum Once {
    /// What live evaluation sees: no late rows, each event once.
    OnTime(Arc<dyn TableProvider>),
    /// Each event once in an hour of arrival: what the archive holds after its hours are compacted, and before.
    InItsHour(Arc<dyn TableProvider>),
}

impl Once {
    fn rows(&self) -> &Arc<dyn TableProvider> {
        let (Once::OnTime(rows) | Once::InItsHour(rows)) = self;
        rows
    }
}

#[async_trait]
impl TableProvider for Once {
    fn schema(&self) -> SchemaRef {
        self.rows().schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let is_of_place = |filter: &&Expr| filter.column_refs().iter().any(|column| PLACE.contains(&column.name()));
        let support = |filter| if is_of_place(filter) { TableProviderFilterPushDown::Unsupported } else { TableProviderFilterPushDown::Exact };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(&self, state: &dyn Session, projection: Option<&Vec<usize>>, filters: &[Expr], limit: Option<usize>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let columns = projection.unwrap_or(&all).iter().map(|index| col(schema.field(*index).name())).collect();
        let mut rows = LogicalPlanBuilder::scan("rows", provider_as_source(Arc::clone(self.rows())), None)?;
        for filter in filters {
            rows = rows.filter(unnormalize_col(filter.clone()))?;
        }
        let (rows, same) = match self {
            Once::OnTime(_) => (rows.filter(not(col("late")))?, vec![col("event_id")]),
            Once::InItsHour(_) => (rows, vec![col("event_id"), date_trunc(lit("hour"), col("append_time"))]),
        };
        let first = same.iter().cloned().chain(["append_time", "topic", "partition", "offset", "record"].map(col)).map(|column| column.sort(true, true));
        let once = rows.distinct_on(same.clone(), columns, Some(first.collect()))?.limit(0, limit)?.build()?;
        state.create_physical_plan(&once).await
    }
}
