//! Hot ∪ archive: the rows of one moment, wherever they are.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use crate::archive::ArchiveTable;

/// What is in the archive, and what was not in it yet at that moment.
#[derive(Debug)]
pub struct HotAndArchived {
    pub archived: ArchiveTable,
    pub hot: MemTable,
}

#[async_trait]
impl TableProvider for HotAndArchived {
    fn schema(&self) -> SchemaRef {
        self.archived.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.archived.supports_filters_pushdown(filters)
    }

    async fn scan(&self, state: &dyn Session, projection: Option<&Vec<usize>>, filters: &[Expr], limit: Option<usize>) -> Result<Arc<dyn ExecutionPlan>> {
        let archived = self.archived.scan(state, projection, filters, limit).await?;
        let hot = self.hot.scan(state, projection, &[], limit).await?;
        UnionExec::try_new(vec![archived, hot])
    }
}
