//! The rows of a stream as live evaluation sees them: those on time, each event once.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableProviderFilterPushDown, TableType, col, not};
use datafusion::physical_plan::ExecutionPlan;

/// A stream's rows without the late ones and without repeats. Conditions go first: what says the same has the same id, so a repeat
/// meets them or does not as the first does, and only what meets them is compared.
#[derive(Debug)]
pub struct OnTimeOnce(pub Arc<dyn TableProvider>);

#[async_trait]
impl TableProvider for OnTimeOnce {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Exact; filters.len()])
    }

    async fn scan(&self, state: &dyn Session, projection: Option<&Vec<usize>>, filters: &[Expr], limit: Option<usize>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let columns = projection.unwrap_or(&all).iter().map(|index| col(schema.field(*index).name())).collect();
        let mut rows = LogicalPlanBuilder::scan("rows", provider_as_source(Arc::clone(&self.0)), None)?.filter(not(col("late")))?;
        for filter in filters {
            rows = rows.filter(unnormalize_col(filter.clone()))?;
        }
        let first = ["event_id", "append_time", "topic", "partition", "offset", "record"].map(|name| col(name).sort(true, true));
        let once = rows.distinct_on(vec![col("event_id")], columns, Some(first.to_vec()))?.limit(0, limit)?.build()?;
        state.create_physical_plan(&once).await
    }
}
