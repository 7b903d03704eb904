//! Refuses, before planning, what would harm the process: the planner's recursion is not bounded by the parser's.

use std::ops::ControlFlow;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result as DfResult};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{self, LogicalPlan};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr, FunctionArg, FunctionArgExpr, ObjectName, ObjectNamePart, Query, Select, TableFactor, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::Tokenizer;

use crate::error::{Error, Result};
pub use datafusion::sql::sqlparser::tokenizer::Token;

use crate::limits::{SQL_BYTES, SQL_NESTING, SQL_PARTS, SQL_RELATIONS, SQL_TOKENS, SQL_WRITTEN_OUT};

/// Statements that only read.
const READING: [&str; 6] = ["SELECT", "WITH", "VALUES", "EXPLAIN", "SHOW", "DESCRIBE"];

/// Whether a statement that begins with this word only reads.
pub fn reads(first: &str) -> bool {
    READING.contains(&first)
}

/// The tokens of a text of bearable size.
///
/// # Errors
/// It is too long, or no SQL at all.
pub fn tokens(sql: &str) -> Result<Vec<Token>> {
    if sql.len() > SQL_BYTES {
        return Err(Error::user(format!("the query is {} bytes long; the limit is {SQL_BYTES}", sql.len())));
    }
    Tokenizer::new(&GenericDialect {}, sql).tokenize().map_err(|error| Error::user(format!("SQL: {error}")))
}

/// Where statements end: the byte of each semicolon that is no part of a text or a comment.
///
/// # Errors
/// It is too long, or no SQL at all.
pub fn semicolons(sql: &str) -> Result<Vec<usize>> {
    tokens(sql)?;
    let located = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().map_err(|error| Error::user(format!("SQL: {error}")))?;
    // Lines and columns count characters, from one.
    let lines: Vec<usize> = std::iter::once(0).chain(memchr::memchr_iter(b'\n', sql.as_bytes()).map(|at| at + 1)).collect();
    let offset = |line: u64, column: u64| {
        let start = *lines.get(line as usize - 1)?;
        Some(start + sql[start..].char_indices().nth(column as usize - 1)?.0)
    };
    let ends = located.iter().filter(|token| token.token == Token::SemiColon);
    Ok(ends.filter_map(|token| offset(token.span.start.line, token.span.start.column)).collect())
}

/// Checks kind, size and nesting of a statement by its tokens alone.
///
/// # Errors
/// Says which bound was passed, or what is not allowed.
pub fn check(sql: &str) -> Result<()> {
    let tokens = tokens(sql)?;
    let mut words = tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_)));
    let first = first_word(sql);
    if !READING.contains(&first.as_str()) {
        let what = if first.is_empty() { "nothing" } else { first.as_str() };
        return Err(Error::user(format!("{what} is not a question: only {} are answered here", READING.join(", "))));
    }
    let mut ended = false;
    for token in &mut words {
        match token {
            Token::SemiColon => ended = true,
            _ if ended => return Err(Error::user("one statement at a time")),
            _ => {}
        }
    }
    bounds(sql)
}

/// The first word of a statement, in capitals; comments and brackets before it do not count.
pub fn first_word(sql: &str) -> String {
    let tokens = tokens(sql).unwrap_or_default();
    tokens.iter().find(|token| !matches!(token, Token::Whitespace(_) | Token::LParen)).map(ToString::to_string).unwrap_or_default().to_uppercase()
}

/// Checks size and nesting alone.
///
/// # Errors
/// Says which bound was passed.
pub fn bounds(sql: &str) -> Result<()> {
    let (mut count, mut depth, mut deepest) = (0usize, 0usize, 0usize);
    let (mut after_as, mut parts) = (false, 0);
    for token in tokens(sql)?.iter().filter(|token| !matches!(token, Token::Whitespace(_))) {
        count += 1;
        // Each part of a WITH may use the columns of the one before it twice.
        parts += usize::from(after_as && *token == Token::LParen);
        after_as = matches!(token, Token::Word(word) if word.value.eq_ignore_ascii_case("as"));
        match token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
            _ => {}
        }
        // `CASE`, `NOT` and `-` nest without brackets; a chain of them is bounded by the token limit below.
        deepest = deepest.max(depth);
    }
    if parts > SQL_PARTS {
        return Err(Error::user(format!("WITH has {parts} parts; the limit is {SQL_PARTS}")));
    }
    if count > SQL_TOKENS {
        return Err(Error::user(format!(
            "the query has {count} words and signs; the limit is {SQL_TOKENS}. For long lists of values use IN (…), or a smaller list"
        )));
    }
    if deepest > SQL_NESTING {
        return Err(Error::user(format!("brackets are nested {deepest} deep; the limit is {SQL_NESTING}")));
    }
    Ok(())
}

/// Counts the relations of a statement as the planner meets them, and bounds that; and lets functions that give rows be asked for
/// constants only, because their arguments are worked out before anything watches over it.
///
/// # Errors
/// Says which bound was passed, or which function is asked for something else.
pub fn relations(statement: &Statement) -> DfResult<()> {
    match statement {
        Statement::Explain(explained) => relations(&explained.statement),
        Statement::Statement(statement) => match statement.visit(&mut Relations::default()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(refusal) => Err(*refusal),
        },
        // What does not read is refused by what it is.
        _ => Ok(()),
    }
}

/// Bounds how large expressions become where each is written out in terms of what is read: where a part uses a column of the one
/// before it twice, and so on, the optimizer writes out more than memory holds.
///
/// # Errors
/// Says that the bound was passed.
pub fn expressions(plan: &LogicalPlan) -> DfResult<()> {
    written_out(plan).map(|_| ())
}

/// Sizes of a plan's columns, written out.
fn written_out(plan: &LogicalPlan) -> DfResult<Vec<usize>> {
    let inputs = plan.inputs().into_iter().map(|input| Ok((input.schema(), written_out(input)?))).collect::<DfResult<Vec<_>>>()?;
    let given = |column: &Column| inputs.iter().find_map(|(schema, sizes)| sizes.get(schema.maybe_index_of_column(column)?).copied());
    let size = |expr: &logical_expr::Expr| {
        let mut size = 0usize;
        expr.apply(|part| {
            size = size.saturating_add(part.try_as_col().and_then(given).unwrap_or(1));
            Ok(TreeNodeRecursion::Continue)
        })?;
        match size {
            size if size > SQL_WRITTEN_OUT => Err(DataFusionError::ResourcesExhausted(format!(
                "an expression has {size} parts, each column as often as it is used; the limit is {SQL_WRITTEN_OUT}"
            ))),
            size => Ok(size),
        }
    };
    plan.apply_expressions(|expr| size(expr).map(|_| TreeNodeRecursion::Continue))?;
    plan.apply_subqueries(|subquery| written_out(subquery).map(|_| TreeNodeRecursion::Continue))?;
    let mut sizes = match plan {
        LogicalPlan::Projection(projection) => projection.expr.iter().map(size).collect::<DfResult<Vec<_>>>()?,
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.iter().map(size).collect::<DfResult<Vec<_>>>()?,
        LogicalPlan::Union(_) => {
            inputs.into_iter().map(|(_, sizes)| sizes).reduce(|one, other| one.into_iter().zip(other).map(|(a, b)| a.max(b)).collect()).unwrap_or_default()
        }
        _ => inputs.into_iter().flat_map(|(_, sizes)| sizes).collect(),
    };
    // Those that are read or computed here stand for themselves.
    sizes.resize(plan.schema().fields().len(), 1);
    Ok(sizes)
}

#[derive(Default)]
struct Relations {
    /// The queries that the visitor is in, outermost first.
    around: Vec<Counted>,
}

/// A query so far.
#[derive(Default)]
struct Counted {
    relations: usize,
    /// Names of its WITH, and the relations of those parts that are counted. They are visited before anything else of it.
    names: Vec<String>,
    parts: Vec<usize>,
}

impl Relations {
    fn add(&mut self, relations: usize) {
        if let Some(query) = self.around.last_mut() {
            query.relations = query.relations.saturating_add(relations);
        }
    }

    /// Of a part of a WITH, if one of that name is in sight.
    fn of_part(&self, name: &str) -> Option<usize> {
        let in_sight =
            |query: &Counted| query.names.iter().zip(&query.parts).rev().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, count)| *count);
        self.around.iter().rev().find_map(in_sight)
    }
}

impl Visitor for Relations {
    type Break = Box<DataFusionError>;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        let names = query.with.iter().flat_map(|with| &with.cte_tables).map(|part| part.alias.name.value.clone()).collect();
        self.around.push(Counted { names, ..Counted::default() });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<Self::Break> {
        // What reads nothing (VALUES) is one as well.
        let relations = self.around.pop().map_or(1, |query| query.relations.max(1));
        if relations > SQL_RELATIONS {
            return ControlFlow::Break(Box::new(DataFusionError::ResourcesExhausted(format!(
                "the query reads {relations} relations, each part of a WITH as often as it is named; the limit is {SQL_RELATIONS}"
            ))));
        }
        match self.around.last_mut() {
            Some(outer) if outer.parts.len() < outer.names.len() => outer.parts.push(relations),
            _ => self.add(relations),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<Self::Break> {
        self.add(usize::from(select.from.is_empty()));
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<Self::Break> {
        let part = match name.0.as_slice() {
            [ObjectNamePart::Identifier(name)] => self.of_part(&name.value),
            _ => None,
        };
        self.add(part.unwrap_or(1));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Self::Break> {
        let (name, arguments) = match factor {
            TableFactor::Table { name, args: Some(given), .. } => (name, &given.args),
            TableFactor::Function { name, args, .. } => (name, args),
            _ => return ControlFlow::Continue(()),
        };
        let is_constant = |argument: &FunctionArg| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::UnaryOp { expr, .. })) => matches!(**expr, Expr::Value(_)),
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => matches!(expr, Expr::Value(_) | Expr::TypedString(_) | Expr::Interval(_)),
            _ => false,
        };
        // `unnest` is no such function: it is worked out row by row.
        if name.to_string().eq_ignore_ascii_case("unnest") || arguments.iter().all(is_constant) {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(Box::new(DataFusionError::Plan(format!("{name}(): as a relation it takes constants only"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    fn counted(sql: &str) -> DfResult<()> {
        relations(&Statement::Statement(Box::new(Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0))))
    }

    #[test]
    fn relations_count_as_often_as_they_are_planned() {
        let ten = |name: &str| [name; 10].join(" CROSS JOIN ");
        let chain = |parts: usize| {
            let parts: Vec<_> = (1..=parts).map(|part| format!("p{part} AS (SELECT 1 FROM {})", ten(&format!("p{}", part - 1)))).collect();
            format!("WITH p0 AS (SELECT 1 FROM alerts), {} SELECT * FROM p{}", parts.join(", "), parts.len())
        };
        assert!(counted(&chain(2)).is_ok(), "a hundred");
        assert!(counted(&chain(3)).unwrap_err().to_string().contains("1000 relations"));
        assert!(counted(&chain(11)).is_err());
        assert!(counted(&chain(3).replace("SELECT 1 FROM alerts", "VALUES (1)")).is_err());
        assert!(counted(&chain(2).replace("SELECT 1 FROM alerts", &["SELECT 1"; 6].join(" UNION ALL "))).unwrap_err().to_string().contains("600 relations"));
        // The same where it is not asked for in the end, within another query, or under a name that is hidden by an inner one.
        assert!(counted(&chain(4).replace("SELECT * FROM p4", "SELECT 1")).is_err());
        assert!(counted(&format!("SELECT 1 WHERE EXISTS ({})", chain(3))).is_err());
        let hidden = chain(2).replace("SELECT * FROM p2", "SELECT * FROM (WITH p2 AS (SELECT 1) SELECT * FROM p2 a, p2 b, p2 c, p2 d, p2 e, p2 f) x");
        assert!(counted(&hidden).is_ok());
        let shown = chain(2).replace("SELECT * FROM p2", "SELECT * FROM (SELECT * FROM p2 a, p2 b, p2 c, p2 d, p2 e, p2 f) x");
        assert!(counted(&shown).unwrap_err().to_string().contains("600 relations"));
    }

    #[test]
    fn functions_that_give_rows_take_constants() {
        for good in
            ["SELECT * FROM lineage_of('x')", "SELECT * FROM generate_series(-1, 5) g", "SELECT * FROM alerts, unnest(evidence)", "SELECT count(*) FROM alerts"]
        {
            assert!(counted(good).is_ok(), "{good}");
        }
        assert!(counted("SELECT * FROM lineage_of(replace('aa', 'a', 'bb'))").unwrap_err().to_string().contains("constants only"));
    }

    #[test]
    fn statements_end_at_semicolons_outside_of_texts() {
        let sql = "SELECT 'a;''b', -- no; end\n 'ü;' ; SELECT 2;";
        let ends = semicolons(sql).unwrap();
        assert_eq!(ends.iter().map(|end| &sql[*end..=*end]).collect::<Vec<_>>(), [";", ";"]);
        assert!(sql[..ends[0]].ends_with("'ü;' "));
    }

    #[test]
    fn only_questions_of_a_bearable_size_pass() {
        assert!(check("SELECT 1").is_ok());
        assert!(check("-- hello\n(SELECT 1);").is_ok());
        assert!(check("EXPLAIN SELECT 1").is_ok());
        for bad in ["DROP TABLE cloudtrail", "COPY cloudtrail TO '/tmp/x'", "SELECT 1; SELECT 2", "", "SET a = 1", "INSERT INTO alerts VALUES (1)"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        let chain = format!("SELECT 1 WHERE {}", vec!["1=1"; 20_000].join(" OR "));
        assert!(check(&chain).is_err());
        let deep = format!("SELECT {}1{}", "(".repeat(60), ")".repeat(60));
        assert!(check(&deep).is_err());
    }
}
