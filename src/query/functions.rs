//! Functions that give rows: questions that everybody asks, under a name.

use std::sync::{Arc, Weak};

use datafusion::catalog::{TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::datasource::ViewTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::Expr;
use parking_lot::RwLock;

use crate::function::TABLE_FUNCTIONS;

/// A question with `$1` where the argument goes.
#[derive(Debug)]
struct Asked {
    name: &'static str,
    sql: &'static str,
    /// Weakly: a context that holds itself would never be let go of.
    ctx: Weak<RwLock<SessionState>>,
}

/// The questions of [`TABLE_FUNCTIONS`], in their order.
static QUESTIONS: [&str; 2] = [
    "SELECT 0 AS depth, * FROM activity WHERE credential = $1
     UNION ALL
     SELECT l.depth, a.* FROM activity a JOIN lineage l ON l.credential = a.credential WHERE l.ancestor = $1",
    "SELECT 'ancestor' AS relation, ancestor AS credential, depth, minted_at, left_at FROM lineage WHERE credential = $1
     UNION ALL
     SELECT 'descendant' AS relation, credential, depth, minted_at, left_at FROM lineage WHERE ancestor = $1",
];

/// Adds them to a context.
pub fn register(ctx: &SessionContext) {
    for ((name, ..), sql) in TABLE_FUNCTIONS.iter().zip(QUESTIONS) {
        ctx.register_udtf(name, Arc::new(Asked { name, sql, ctx: ctx.state_weak_ref() }));
    }
}

impl TableFunctionImpl for Asked {
    fn call(&self, arguments: &[Expr]) -> Result<Arc<dyn TableProvider>> {
        let [Expr::Literal(ScalarValue::Utf8(Some(value)) | ScalarValue::Utf8View(Some(value)), _)] = arguments else {
            return plan_err!("{}: give one text, as in {}('AKIA…')", self.name, self.name);
        };
        let state = self.ctx.upgrade().ok_or_else(|| DataFusionError::Internal("a function outlives its tables".into()))?.read().clone();
        let literal = format!("'{}'", value.replace('\'', "''"));
        let plan = futures::executor::block_on(state.create_logical_plan(&self.sql.replace("$1", &literal)))?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }
}
