//! Plans that pause. What makes many rows of few (joins, above all) hands on batch after batch without ever asking its source again,
//! and so without letting its thread do anything else: look at the clock, hear a cancellation, answer others.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, SchedulingType};

/// Lets everything that may give more rows than it gets pause between batches. Sources do so by the planner's own rule.
#[derive(Debug)]
pub struct Pausing;

impl PhysicalOptimizerRule for Pausing {
    fn name(&self) -> &str {
        "pausing"
    }

    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let paused = plan.transform_up(|node| {
            let pauses = node.children().is_empty() || node.properties().scheduling_type == SchedulingType::Cooperative;
            let may_grow = !pauses && !matches!(node.cardinality_effect(), CardinalityEffect::Equal | CardinalityEffect::LowerEqual);
            Ok(if may_grow { Transformed::yes(Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>) } else { Transformed::no(node) })
        });
        paused.map(|paused| paused.data)
    }

    fn schema_check(&self) -> bool {
        true
    }
}
