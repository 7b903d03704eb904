//! `lag()` as an absence. A row for which `lag(event_time)` is null or lies further back than an interval is one before which, for that
//! long, there was no other: the same rows, and bounded in time. So such a query is planned as that anti join.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, NullEquality, Result, ScalarValue};
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator, Window, lit};

use super::analyse::{is_exact, scalar_interval};

/// What the earlier rows are called in the plan.
const EARLIER: &str = "__keyfuse_earlier";

/// The plan with every such `lag()` as an anti join; others stay as they are, and the analysis refuses them.
///
/// # Errors
/// DataFusion's.
pub fn as_absence(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let whole = plan.clone();
    plan.transform_up(|node| {
        let LogicalPlan::Filter(filter) = &node else { return Ok(Transformed::no(node)) };
        // The optimiser may have left columns out in between.
        let (below, chosen) = match filter.input.as_ref() {
            LogicalPlan::Projection(chosen) if chosen.expr.iter().all(|expr| matches!(expr, Expr::Column(_))) => (&chosen.input, Some(chosen)),
            _ => (&filter.input, None),
        };
        let LogicalPlan::Window(window) = below.as_ref() else { return Ok(Transformed::no(node)) };
        let Some(lag) = Lag::of(window) else { return Ok(Transformed::no(node)) };
        let conjuncts = split_conjunction(&filter.predicate);
        let Some((place, pause)) = conjuncts.iter().enumerate().find_map(|(place, conjunct)| Some((place, lag.pause(conjunct)?))) else {
            return Ok(Transformed::no(node));
        };
        // The earlier time itself is not known where rows have been let go of: nothing else may read it.
        let rest: Vec<Expr> = conjuncts.iter().enumerate().filter(|(other, _)| *other != place).map(|(_, conjunct)| (*conjunct).clone()).collect();
        if rest.iter().any(|conjunct| conjunct.column_refs().contains(&lag.column)) || is_read(&whole, [&node, &filter.input], &lag.column)? {
            return Ok(Transformed::no(node));
        }
        let mut absent = LogicalPlanBuilder::from(lag.absence(window, &pause)?);
        if let Some(chosen) = chosen {
            absent = absent.project(chosen.expr.clone())?;
        }
        if let Some(rest) = conjunction(rest) {
            absent = absent.filter(rest)?;
        }
        absent.build().map(Transformed::yes)
    })
}

/// Whether any node but these reads a column.
fn is_read(plan: &LogicalPlan, own: [&LogicalPlan; 2], column: &Column) -> Result<bool> {
    let mut read = false;
    plan.apply(|node| {
        if !own.contains(&node) {
            read |= node.expressions().iter().any(|expr| expr.column_refs().contains(column));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(read)
}

/// `lag(event_time) OVER (PARTITION BY … ORDER BY event_time, event_id)`
struct Lag {
    /// Its own column.
    column: Column,
    keys: Vec<Column>,
    time: Column,
    id: Column,
}

/// How long before a row there must be no other.
struct Pause {
    length: ScalarValue,
    /// A row exactly so long before counts as none.
    or_equal: bool,
}

impl Lag {
    fn of(window: &Window) -> Option<Self> {
        let [expr] = &window.window_expr[..] else { return None };
        let Expr::WindowFunction(call) = expr.clone().unalias() else { return None };
        let WindowFunction { fun, params } = *call;
        let column = |expr: &Expr, name: &str| {
            if let Expr::Column(column) = expr { Some(column.clone()).filter(|column| name.is_empty() || column.name == name) } else { None }
        };
        let of_previous = params.args.get(1).is_none_or(|by| matches!(by, Expr::Literal(value, _) if value.to_string() == "1"));
        if fun.name() != "lag" || !of_previous || params.args.len() > 2 || params.filter.is_some() || params.distinct {
            return None;
        }
        // Without a second term rows of one time would have no order.
        let [by_time, by_id] = &params.order_by[..] else { return None };
        if !by_time.asc || !by_id.asc {
            return None;
        }
        let (time, id) = (column(&by_time.expr, "event_time")?, column(&by_id.expr, "event_id")?);
        if column(params.args.first()?, "event_time")? != time {
            return None;
        }
        let keys = params.partition_by.iter().map(|key| column(key, "")).collect::<Option<Vec<_>>>().filter(|keys| !keys.is_empty())?;
        let own = window.schema.columns().pop()?;
        Some(Self { column: own, keys, time, id })
    }

    /// `lag IS NULL OR lag < event_time - INTERVAL '…'`, or `event_time - lag > INTERVAL '…'`.
    fn pause(&self, conjunct: &Expr) -> Option<Pause> {
        let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) = conjunct else { return None };
        let is_null = |expr: &Expr| matches!(expr, Expr::IsNull(inner) if self.is_own(inner));
        let compared = match (is_null(left), is_null(right)) {
            (true, _) => right,
            (_, true) => left,
            _ => return None,
        };
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = compared.as_ref() else { return None };
        let (long, op, short) = match op {
            Operator::Gt | Operator::GtEq => (left, *op, right),
            Operator::Lt => (right, Operator::Gt, left),
            Operator::LtEq => (right, Operator::GtEq, left),
            _ => return None,
        };
        let difference = |expr: &Expr| {
            if let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Minus, right }) = plain(expr) { Some((left.clone(), right.clone())) } else { None }
        };
        let (from, taken) = difference(long)?;
        let length = match plain(short) {
            // event_time - lag > INTERVAL
            Expr::Literal(length, _) if self.is_time(&from) && self.is_own(&taken) && is_exact(length) => length.clone(),
            // event_time - INTERVAL > lag
            other if self.is_own(other) && self.is_time(&from) => match plain(&taken) {
                Expr::Literal(length, _) => length.clone(),
                _ => return None,
            },
            _ => return None,
        };
        scalar_interval(&length).is_some().then_some(Pause { length, or_equal: op == Operator::GtEq })
    }

    fn is_own(&self, expr: &Expr) -> bool {
        matches!(plain(expr), Expr::Column(column) if *column == self.column)
    }

    fn is_time(&self, expr: &Expr) -> bool {
        matches!(plain(expr), Expr::Column(column) if *column == self.time)
    }

    fn absence(&self, window: &Window, pause: &Pause) -> Result<LogicalPlan> {
        let column = |column: &Column| Expr::Column(column.clone());
        let earlier = |column: &Column| Expr::Column(Column::new(Some(EARLIER), column.name.clone()));
        let read = self.keys.iter().chain([&self.time, &self.id]).map(column);
        let before = LogicalPlanBuilder::from(Arc::clone(&window.input)).project(read)?.alias(EARLIER)?.build()?;
        let since = column(&self.time) - lit(pause.length.clone());
        let is_within = if pause.or_equal { earlier(&self.time).gt(since) } else { earlier(&self.time).gt_eq(since) };
        let is_earlier = earlier(&self.time).lt(column(&self.time)).or(earlier(&self.time).eq(column(&self.time)).and(earlier(&self.id).lt(column(&self.id))));
        let on = (self.keys.clone(), self.keys.iter().map(|key| Column::new(Some(EARLIER), key.name.clone())).collect::<Vec<_>>());
        let condition = is_within.and(earlier(&self.time).lt_eq(column(&self.time))).and(is_earlier);
        // PARTITION BY makes one group of the rows without a key.
        let absent =
            LogicalPlanBuilder::from(Arc::clone(&window.input)).join_detailed(before, JoinType::LeftAnti, on, Some(condition), NullEquality::NullEqualsNull)?;
        // Its own column stays, and nobody reads it.
        let none = lit(ScalarValue::try_from(window.schema.field(window.schema.fields().len() - 1).data_type())?).alias(self.column.name.clone());
        let columns: Vec<Expr> = window.input.schema().columns().into_iter().map(Expr::Column).chain([none]).collect();
        absent.project(columns)?.build()
    }
}

/// Without the casts that the planner puts around, none of which loses anything.
fn plain(expr: &Expr) -> &Expr {
    match expr {
        Expr::Cast(cast)
            if matches!(
                cast.field.data_type(),
                DataType::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, _) | DataType::Interval(_) | DataType::Duration(_)
            ) =>
        {
            plain(&cast.expr)
        }
        Expr::Alias(alias) => plain(&alias.expr),
        other => other,
    }
}
