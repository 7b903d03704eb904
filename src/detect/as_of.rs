//! Joins dimensions as of the row's append time, without the author's help.
//!
//! An entry that is edited today must not change last month's alerts. Where a query joins `agents`, `approvals` or `allow_list` and
//! says nothing of `valid_from` and `valid_to`, the bounds are added: `u.append_time >= a.valid_from AND u.append_time < a.valid_to`,
//! for the row `u` that the entry is compared with. Where that cannot be told the query stays as it is, and the analysis refuses it.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Ident, Join, JoinConstraint, JoinOperator, Query, Select, SetExpr, TableFactor, Visit, VisitMut, Visitor, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use crate::table::DIMENSIONS;

/// The query with its dimensions bound; none where there is nothing to add, or where it does not parse: the planner says why.
pub fn with_dimensions_as_of(sql: &str) -> Option<String> {
    let mut statements = Parser::parse_sql(&GenericDialect {}, sql).ok()?;
    let mut binder = Binder::default();
    let _ = VisitMut::visit(&mut statements, &mut binder);
    binder.added.then(|| statements.iter().map(ToString::to_string).collect::<Vec<_>>().join(";\n"))
}

/// Walks the queries of a statement; knows the relations of each query around, the innermost last.
#[derive(Default)]
struct Binder {
    around: Vec<Vec<Ident>>,
    added: bool,
}

impl VisitorMut for Binder {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        self.around.push(Vec::new());
        self.bind_all(&mut query.body);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.around.pop();
        ControlFlow::Continue(())
    }
}

impl Binder {
    fn bind_all(&mut self, body: &mut SetExpr) {
        match body {
            SetExpr::Select(select) => {
                let own: Vec<Ident> = relations(select).filter(|factor| !is_dimension(factor)).filter_map(name_of).collect();
                self.bind(select, &own);
                // What stands in this query's conditions is compared with its rows.
                self.around.last_mut().into_iter().for_each(|around| around.extend(own.iter().cloned()));
            }
            SetExpr::SetOperation { left, right, .. } => {
                self.bind_all(left);
                self.bind_all(right);
            }
            // A query of its own: it is visited as such.
            _ => {}
        }
    }

    fn bind(&mut self, select: &mut Select, own: &[Ident]) {
        let dimensions: Vec<Ident> = relations(select).filter(|factor| is_dimension(factor)).filter_map(name_of).collect();
        for dimension in dimensions {
            let own_condition = joins(select).find(|join| name_of(&join.relation).as_ref() == Some(&dimension)).and_then(condition);
            let conditions: Vec<&Expr> = joins(select).filter_map(condition).chain(&select.selection).collect();
            if conditions.iter().any(|expr| Named::of(expr).says_when(&dimension)) {
                continue;
            }
            let Some(row) = self.compared_with(&dimension, own, own_condition, &conditions) else { continue };
            self.added |= add(select, &dimension, bounds(&row, &dimension));
        }
    }

    /// The relation whose rows a dimension's entries are compared with: the only one that its conditions name, else the only one there is.
    fn compared_with(&self, dimension: &Ident, own: &[Ident], own_condition: Option<&Expr>, conditions: &[&Expr]) -> Option<Ident> {
        let outer = self.around.iter().rev().skip(1).flatten();
        let known: Vec<&Ident> = own.iter().chain(outer).collect();
        let only = |exprs: &mut dyn Iterator<Item = &Expr>| -> Option<Ident> {
            let mut named: Vec<Ident> = exprs.flat_map(|expr| Named::of(expr).relations).filter(|name| known.iter().any(|known| same(known, name))).collect();
            named.dedup_by(|a, b| same(a, b));
            <[Ident; 1]>::try_from(named).ok().map(|[name]| name)
        };
        let parts: Vec<&Expr> = conditions.iter().flat_map(|expr| conjuncts(expr)).collect();
        let about = |part: &&&Expr| Named::of(part).relations.iter().any(|name| same(name, dimension));
        only(&mut own_condition.into_iter()).or_else(|| only(&mut parts.iter().filter(about).copied())).or_else(|| {
            let nearest = if own.is_empty() { self.around.iter().rev().skip(1).find(|relations| !relations.is_empty())? } else { own };
            // Conditions that name several rows do not say which of them counts.
            (nearest.len() == 1).then(|| nearest[0].clone())
        })
    }
}

/// What an expression names, subqueries in it left out.
#[derive(Default)]
struct Named {
    relations: Vec<Ident>,
    columns: Vec<Ident>,
    depth: usize,
}

impl Named {
    fn of(expr: &Expr) -> Self {
        let mut named = Self::default();
        let _ = expr.visit(&mut named);
        named.relations.sort_by_key(|name| name.value.to_lowercase());
        named
    }

    /// The author has said from when to when entries count.
    fn says_when(&self, dimension: &Ident) -> bool {
        let is_bound = |column: &Ident| ["valid_from", "valid_to"].iter().any(|bound| column.value.eq_ignore_ascii_case(bound));
        self.columns.iter().any(is_bound) && (self.relations.is_empty() || self.relations.iter().any(|name| same(name, dimension)))
    }
}

impl Visitor for Named {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            _ if self.depth > 0 => {}
            Expr::CompoundIdentifier(parts) => {
                self.relations.extend(parts.len().checked_sub(2).map(|relation| parts[relation].clone()));
                self.columns.extend(parts.last().cloned());
            }
            Expr::Identifier(column) => self.columns.push(column.clone()),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn relations(select: &Select) -> impl Iterator<Item = &TableFactor> {
    select.from.iter().flat_map(|from| std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)))
}

fn joins(select: &Select) -> impl Iterator<Item = &Join> {
    select.from.iter().flat_map(|from| &from.joins)
}

fn is_dimension(factor: &TableFactor) -> bool {
    let TableFactor::Table { name, .. } = factor else { return false };
    let last = name.0.last().and_then(|part| part.as_ident());
    last.is_some_and(|name| DIMENSIONS.iter().any(|table| name.value.eq_ignore_ascii_case(table.name)))
}

/// What a relation's columns are named after.
fn name_of(factor: &TableFactor) -> Option<Ident> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => Some(alias.name.clone()),
        TableFactor::Table { name, .. } => name.0.last().and_then(|part| part.as_ident()).cloned(),
        _ => None,
    }
}

fn same(a: &Ident, b: &Ident) -> bool {
    a.value.eq_ignore_ascii_case(&b.value)
}

fn condition(join: &Join) -> Option<&Expr> {
    use JoinOperator as Op;
    match &join.join_operator {
        Op::Join(JoinConstraint::On(on)) | Op::Inner(JoinConstraint::On(on)) | Op::Left(JoinConstraint::On(on)) | Op::LeftOuter(JoinConstraint::On(on)) => {
            Some(on)
        }
        _ => None,
    }
}

fn conjuncts(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => [conjuncts(left), conjuncts(right)].concat(),
        Expr::Nested(inner) => conjuncts(inner),
        other => vec![other],
    }
}

fn bounds(row: &Ident, dimension: &Ident) -> Expr {
    let column = |of: &Ident, name: &str| Box::new(Expr::CompoundIdentifier(vec![of.clone(), Ident::new(name)]));
    let bound = |op: BinaryOperator, name: &str| Expr::BinaryOp { left: column(row, "append_time"), op, right: column(dimension, name) };
    and(bound(BinaryOperator::GtEq, "valid_from"), bound(BinaryOperator::Lt, "valid_to"))
}

fn and(left: Expr, right: Expr) -> Expr {
    let closed = |expr: Expr| if matches!(expr, Expr::BinaryOp { op: BinaryOperator::Or, .. }) { Expr::Nested(Box::new(expr)) } else { expr };
    Expr::BinaryOp { left: Box::new(closed(left)), op: BinaryOperator::And, right: Box::new(closed(right)) }
}

/// Adds a condition where it filters the dimension's entries, and nothing else: to its own join, else to the whole query where that is the same.
fn add(select: &mut Select, dimension: &Ident, bounds: Expr) -> bool {
    use JoinOperator as Op;
    for join in select.from.iter_mut().flat_map(|from| &mut from.joins).filter(|join| name_of(&join.relation).as_ref() == Some(dimension)) {
        let (Op::Join(JoinConstraint::On(on)) | Op::Inner(JoinConstraint::On(on)) | Op::Left(JoinConstraint::On(on)) | Op::LeftOuter(JoinConstraint::On(on))) =
            &mut join.join_operator
        else {
            continue;
        };
        let before = std::mem::replace(on, Expr::Identifier(dimension.clone()));
        *on = and(before, bounds);
        return true;
    }
    if !joins(select).all(|join| matches!(join.join_operator, Op::Join(_) | Op::Inner(_) | Op::CrossJoin(_))) {
        return false;
    }
    select.selection = Some(match select.selection.take() {
        Some(before) => and(before, bounds),
        None => bounds,
    });
    true
}

#[cfg(test)]
mod tests {
    use super::with_dimensions_as_of;

    #[test]
    fn bounds_are_added_where_entries_are_compared() {
        let bound = |sql: &str, expected: &str| assert_eq!(with_dimensions_as_of(sql).as_deref(), Some(expected), "{sql}");
        bound(
            "SELECT u.tool FROM tool_calls u JOIN agents a ON a.agent_id = u.agent_id OR a.identity = u.identity WHERE u.tool = 'x'",
            "SELECT u.tool FROM tool_calls u JOIN agents a ON (a.agent_id = u.agent_id OR a.identity = u.identity) AND u.append_time >= a.valid_from AND u.append_time < a.valid_to WHERE u.tool = 'x'",
        );
        bound(
            "SELECT 1 FROM cloudtrail u WHERE NOT EXISTS (SELECT 1 FROM agents WHERE agents.identity = u.identity)",
            "SELECT 1 FROM cloudtrail u WHERE NOT EXISTS (SELECT 1 FROM agents WHERE agents.identity = u.identity AND u.append_time >= agents.valid_from AND u.append_time < agents.valid_to)",
        );
        bound(
            "SELECT 1 FROM cloudtrail u WHERE u.identity NOT IN (SELECT identity FROM agents a)",
            "SELECT 1 FROM cloudtrail u WHERE u.identity NOT IN (SELECT identity FROM agents a WHERE u.append_time >= a.valid_from AND u.append_time < a.valid_to)",
        );
        // Of two rows, the one that its condition is about.
        bound(
            "SELECT 1 FROM cloudtrail u JOIN model_invocations m ON m.request_id = u.request_id LEFT JOIN agents a ON a.identity = m.identity",
            "SELECT 1 FROM cloudtrail u JOIN model_invocations m ON m.request_id = u.request_id LEFT JOIN agents a ON a.identity = m.identity AND m.append_time >= a.valid_from AND m.append_time < a.valid_to",
        );
        bound(
            "SELECT 1 FROM agents a, cloudtrail u WHERE a.identity = u.identity UNION ALL SELECT 1 FROM approvals p JOIN retrievals r ON p.identity = r.identity",
            "SELECT 1 FROM agents a, cloudtrail u WHERE a.identity = u.identity AND u.append_time >= a.valid_from AND u.append_time < a.valid_to UNION ALL SELECT 1 FROM approvals p JOIN retrievals r ON p.identity = r.identity WHERE r.append_time >= p.valid_from AND r.append_time < p.valid_to",
        );
    }

    #[test]
    fn what_the_author_says_stays_and_what_cannot_be_told_is_left() {
        for sql in [
            "SELECT 1 FROM cloudtrail u JOIN agents a ON a.identity = u.identity AND u.event_time >= a.valid_from",
            "SELECT count(*) FROM agents WHERE valid_to > run_at()",
            "SELECT 1 FROM cloudtrail u JOIN cloudtrail v ON u.identity = v.identity JOIN agents a ON a.identity = u.identity AND a.agent_id = v.user_name",
            "SELECT 1 FROM cloudtrail u FULL JOIN agents a ON a.identity = u.identity",
            "SELECT count(*) FROM agents",
            "SELECT 1 FROM",
            "SELECT 1 FROM cloudtrail",
        ] {
            assert_eq!(with_dimensions_as_of(sql), None, "{sql}");
        }
    }
}
