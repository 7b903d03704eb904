//! A difference of times compared with an interval of days.
//!
//! The difference is so many microseconds and has no days; an interval of thirty days has no microseconds, and the engine compares days
//! first. So `event_time - before > INTERVAL '30 days'` would be false for ever, and nobody would be told. Here a day is 24 hours, as it is
//! wherever an interval is added to a time in UTC; months have no length and are refused.

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::expr::Between;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::optimizer::AnalyzerRule;

use arrow::array::types::IntervalMonthDayNano;
use arrow::datatypes::DataType;

const NANOS_OF_DAY: i64 = 86_400_000_000_000;

/// Turns days into hours where a difference of times is compared. Runs after the types have been matched.
#[derive(Debug)]
pub struct ExactIntervals;

impl AnalyzerRule for ExactIntervals {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let rewritten = plan.transform_up_with_subqueries(|node| {
            let schema = datafusion::logical_expr::utils::merge_schema(&node.inputs());
            let names = NamePreserver::new(&node);
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                let exact = expr.transform_up(|expr| {
                    // The planner casts a difference (a duration) to an interval, to compare the two.
                    let is_difference = |expr: &Expr| matches!(expr, Expr::Cast(cast) if matches!(cast.expr.get_type(&schema), Ok(DataType::Duration(_))));
                    match expr {
                        Expr::BinaryExpr(BinaryExpr { left, op, right }) if compares(op) && (is_difference(&left) || is_difference(&right)) => {
                            let (left, right) = (exact(*left)?, exact(*right)?);
                            let changed = left.transformed || right.transformed;
                            let expr = Expr::BinaryExpr(BinaryExpr { left: Box::new(left.data), op, right: Box::new(right.data) });
                            Ok(Transformed::new_transformed(expr, changed))
                        }
                        Expr::Between(Between { expr, negated, low, high }) if is_difference(&expr) => {
                            let (low, high) = (exact(*low)?, exact(*high)?);
                            let changed = low.transformed || high.transformed;
                            let between = Between { expr, negated, low: Box::new(low.data), high: Box::new(high.data) };
                            Ok(Transformed::new_transformed(Expr::Between(between), changed))
                        }
                        other => Ok(Transformed::no(other)),
                    }
                })?;
                Ok(exact.update_data(|expr| name.restore(expr)))
            })
        })?;
        Ok(rewritten.data)
    }

    fn name(&self) -> &str {
        "exact_intervals"
    }
}

fn compares(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// The interval literals in it without days.
fn exact(expr: Expr) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| match expr {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(length)), _) if length.months != 0 => {
            plan_err!("a difference of times is compared with an interval of months, which has no length: write days")
        }
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(length)), metadata) if length.days != 0 => {
            let Some(nanoseconds) = i64::from(length.days).checked_mul(NANOS_OF_DAY).and_then(|days| days.checked_add(length.nanoseconds)) else {
                return plan_err!("the interval with which a difference of times is compared is longer than 290 years");
            };
            let length = IntervalMonthDayNano { months: 0, days: 0, nanoseconds };
            Ok(Transformed::yes(Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(length)), metadata)))
        }
        other => Ok(Transformed::no(other)),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::AsArray;
    use datafusion::execution::context::SessionContext;

    use super::*;

    #[test]
    fn a_difference_of_a_month_is_more_than_thirty_days_and_no_number_of_months() {
        let ctx = SessionContext::new();
        ctx.add_analyzer_rule(Arc::new(ExactIntervals));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let times = "(VALUES (TIMESTAMP '2026-02-01 00:00:00', TIMESTAMP '2026-01-01 00:00:00')) AS t(a, b)";
        let ask = |what: &str| runtime.block_on(async { ctx.sql(&format!("SELECT {what} FROM {times}")).await?.collect().await });
        for (what, holds) in [
            ("a - b > INTERVAL '30 days'", true),
            ("a - b > INTERVAL '31 days'", false),
            ("INTERVAL '30 days 23 hours' < a - b", true),
            ("a - b BETWEEN INTERVAL '30 days' AND INTERVAL '32 days'", true),
            ("a - b NOT BETWEEN INTERVAL '1 hour' AND INTERVAL '2 days'", true),
            ("a - INTERVAL '1 month' = b", true),
        ] {
            assert_eq!(ask(what).unwrap()[0].column(0).as_boolean().value(0), holds, "{what}");
        }
        assert!(ask("a - b > INTERVAL '1 month'").unwrap_err().to_string().contains("write days"));
    }
}
