//! Joins dimensions as of the row's append time, without the author's help.
//!
//! An entry that is edited today must not change last month's alerts. Where a query joins `agents`, `approvals` or `allow_list` and
//! says nothing of `valid_from` and `valid_to`, the bounds are added: `u.append_time >= a.valid_from AND u.append_time < a.valid_to`,
//! for the row `u` that the entry is compared with. Where that cannot be told the query stays as it is: the analysis refuses it if it is
//! evaluated live; of a detection with a schedule its author says what counts at `run_at()`.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Ident, Join, JoinConstraint, JoinOperator, Query, Select, SetExpr, TableFactor, Visit, VisitMut, Visitor, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use crate::table::{DIMENSIONS, STREAMS, VIEWS};

/// The query with its dimensions bound; none where there is nothing to add, or where it does not parse: the planner says why.
pub fn with_dimensions_as_of(sql: &str) -> Option<String> {
    let mut statements = Parser::parse_sql(&GenericDialect {}, sql).ok()?;
    let mut binder = Binder::default();
    let _ = VisitMut::visit(&mut statements, &mut binder);
    binder.added.then(|| statements.iter().map(ToString::to_string).collect::<Vec<_>>().join(";\n"))
}

/// A relation that rows come from, and whether they have an append time.
#[derive(Clone)]
struct Relation {
    name: Ident,
    appended: bool,
}

/// What the conditions of one query can name.
#[derive(Default)]
struct Scope {
    relations: Vec<Relation>,
    /// Parts of its WITH: name, and whether they give an append time.
    parts: Vec<Relation>,
    /// It sees no row of the queries around it: a part of a WITH, or a table that is a query.
    apart: bool,
}

/// Walks the queries of a statement; knows the scopes around each, the innermost last.
#[derive(Default)]
struct Binder {
    around: Vec<Scope>,
    /// Queries that are yet to come and stand apart, by their address.
    apart: Vec<*const Query>,
    added: bool,
}

impl VisitorMut for Binder {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        let address: *const Query = query;
        let mut scope = Scope { apart: self.apart.contains(&address), ..Scope::default() };
        for part in query.with.iter().flat_map(|with| &with.cte_tables) {
            scope.parts.push(Relation { name: part.alias.name.clone(), appended: gives_append_time(&part.query.to_string()) });
            self.apart.push(&*part.query);
        }
        self.around.push(scope);
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
                self.apart.extend(relations(select).filter_map(|factor| match factor {
                    TableFactor::Derived { lateral: false, subquery, .. } => Some::<*const Query>(&**subquery),
                    _ => None,
                }));
                let rows = relations(select).filter(|factor| !self.is_dimension(factor));
                let own: Vec<Relation> = rows.filter_map(|factor| Some(Relation { name: name_of(factor)?, appended: self.has_append_time(factor) })).collect();
                self.bind(select, &own);
                // What stands in this query's conditions is compared with its rows.
                self.around.last_mut().into_iter().for_each(|around| around.relations.extend(own.iter().cloned()));
            }
            SetExpr::SetOperation { left, right, .. } => {
                self.bind_all(left);
                self.bind_all(right);
            }
            // A query of its own: it is visited as such.
            _ => {}
        }
    }

    fn bind(&mut self, select: &mut Select, own: &[Relation]) {
        let dimensions: Vec<Ident> = relations(select).filter(|factor| self.is_dimension(factor)).filter_map(name_of).collect();
        for dimension in &dimensions {
            let own_condition = joins(select).find(|join| name_of(&join.relation).as_ref() == Some(dimension)).and_then(condition);
            let conditions: Vec<&Expr> = joins(select).filter_map(condition).chain(&select.selection).collect();
            if conditions.iter().any(|expr| Named::of(expr).says_when(dimension, dimensions.len() == 1)) {
                continue;
            }
            let Some(row) = self.compared_with(dimension, own, own_condition, &conditions).filter(|row| row.appended) else { continue };
            self.added |= add(select, dimension, bounds(&row.name, dimension));
        }
    }

    /// The relation whose rows a dimension's entries are compared with: the only one that its conditions name, or, where they name
    /// none, the only one there is. Conditions that name several do not say which of them counts.
    fn compared_with(&self, dimension: &Ident, own: &[Relation], own_condition: Option<&Expr>, conditions: &[&Expr]) -> Option<Relation> {
        let outer = self.outer();
        let known: Vec<&Relation> = own.iter().chain(outer.iter().flat_map(|scope| &scope.relations)).collect();
        let about = |part: &&Expr| Named::of(part).relations().any(|name| same(name, dimension));
        let own_parts: Vec<&Expr> = own_condition.into_iter().flat_map(conjuncts).collect();
        let parts = conditions.iter().flat_map(|expr| conjuncts(expr));
        for exprs in [own_parts.iter().copied().filter(about).collect(), own_parts, parts.filter(about).collect::<Vec<_>>()] {
            let mut named: Vec<&Relation> = Vec::new();
            for expr in exprs {
                let names = Named::of(expr);
                for name in names.relations() {
                    let relation = known.iter().find(|known| same(&known.name, name));
                    named.extend(relation.filter(|relation| !named.iter().any(|named| same(&named.name, &relation.name))));
                }
            }
            match &named[..] {
                [] => {}
                [one] => return Some((*one).clone()),
                _ => return None,
            }
        }
        let nearest = if own.is_empty() { &outer.iter().find(|scope| !scope.relations.is_empty())?.relations } else { own };
        <&[Relation; 1]>::try_from(nearest).ok().map(|[only]| only.clone())
    }

    /// The scopes around the innermost whose rows it sees, the nearest first.
    fn outer(&self) -> Vec<&Scope> {
        let mut outer = Vec::new();
        for pair in self.around.windows(2).rev() {
            if pair[1].apart {
                break;
            }
            outer.push(&pair[0]);
        }
        outer
    }

    /// The part of a WITH that a name stands for.
    fn part(&self, name: &Ident) -> Option<&Relation> {
        self.around.iter().rev().flat_map(|scope| &scope.parts).find(|part| same(&part.name, name))
    }

    fn is_dimension(&self, factor: &TableFactor) -> bool {
        table_of(factor).is_some_and(|name| self.part(name).is_none() && DIMENSIONS.iter().any(|table| name.value.eq_ignore_ascii_case(table.name)))
    }

    fn has_append_time(&self, factor: &TableFactor) -> bool {
        if let TableFactor::Derived { subquery, .. } = factor {
            return gives_append_time(&subquery.to_string());
        }
        let Some(name) = table_of(factor) else { return false };
        let is_view = |view: &&(&str, &str, &str)| name.value.eq_ignore_ascii_case(view.0);
        match (self.part(name), VIEWS.iter().find(is_view)) {
            (Some(part), _) => part.appended,
            (None, Some((_, sql, _))) => gives_append_time(sql),
            (None, None) => STREAMS.iter().any(|table| name.value.eq_ignore_ascii_case(table.name)),
        }
    }
}

/// Whether a query, by its text, hands on when its rows were appended.
fn gives_append_time(sql: &str) -> bool {
    sql.contains("append_time") || sql.contains('*')
}

/// What an expression names, subqueries in it left out.
#[derive(Default)]
struct Named {
    /// Columns, and the relation that each is said to be of.
    columns: Vec<(Option<Ident>, Ident)>,
    depth: usize,
}

impl Named {
    fn of(expr: &Expr) -> Self {
        let mut named = Self::default();
        let _ = expr.visit(&mut named);
        named
    }

    fn relations(&self) -> impl Iterator<Item = &Ident> {
        self.columns.iter().filter_map(|(relation, _)| relation.as_ref())
    }

    /// The author has said from when to when entries count.
    fn says_when(&self, dimension: &Ident, is_only: bool) -> bool {
        let is_bound = |column: &Ident| ["valid_from", "valid_to"].iter().any(|bound| column.value.eq_ignore_ascii_case(bound));
        let of_it = |relation: &Option<Ident>| relation.as_ref().map_or(is_only, |relation| same(relation, dimension));
        self.columns.iter().any(|(relation, column)| is_bound(column) && of_it(relation))
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
                let relation = parts.len().checked_sub(2).map(|relation| parts[relation].clone());
                self.columns.extend(parts.last().map(|column| (relation, column.clone())));
            }
            Expr::Identifier(column) => self.columns.push((None, column.clone())),
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

fn table_of(factor: &TableFactor) -> Option<&Ident> {
    let TableFactor::Table { name, .. } = factor else { return None };
    name.0.last().and_then(|part| part.as_ident())
}

/// What a relation's columns are named after.
fn name_of(factor: &TableFactor) -> Option<Ident> {
    match factor {
        TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => Some(alias.name.clone()),
        other => table_of(other).cloned(),
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
        // What is said of one dimension is said of that one only.
        bound(
            "SELECT 1 FROM cloudtrail u JOIN agents a ON a.identity = u.identity JOIN approvals p ON p.identity = a.identity AND u.append_time >= p.valid_from",
            "SELECT 1 FROM cloudtrail u JOIN agents a ON a.identity = u.identity AND u.append_time >= a.valid_from AND u.append_time < a.valid_to JOIN approvals p ON p.identity = a.identity AND u.append_time >= p.valid_from",
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
            // Two rows that the entry is compared with, on either side of a subquery.
            "SELECT 1 FROM cloudtrail u WHERE EXISTS (SELECT 1 FROM tool_calls t, agents a WHERE a.agent_id = t.agent_id AND a.identity = u.identity)",
            // A part of a WITH, and a table that is a query, see no row outside of them; a part's name hides the dimension's.
            "WITH known AS (SELECT identity FROM agents WHERE environment = 'prod') SELECT 1 FROM cloudtrail u JOIN known k ON k.identity = u.identity",
            "SELECT 1 FROM cloudtrail u WHERE NOT EXISTS (SELECT 1 FROM (SELECT identity FROM agents) k WHERE k.identity = u.identity)",
            "WITH agents AS (SELECT identity FROM tool_calls) SELECT 1 FROM cloudtrail u JOIN agents a ON a.identity = u.identity",
            // A row without append time.
            "SELECT 1 FROM (SELECT identity FROM cloudtrail) u JOIN agents a ON a.identity = u.identity",
            "SELECT 1 FROM cloudtrail u FULL JOIN agents a ON a.identity = u.identity",
            "SELECT count(*) FROM agents",
            "SELECT 1 FROM",
            "SELECT 1 FROM cloudtrail",
        ] {
            assert_eq!(with_dimensions_as_of(sql), None, "{sql}");
        }
    }
}
