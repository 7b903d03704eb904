//! Refuses, before planning, what would harm the process: the planner's recursion is not bounded by the parser's.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::Tokenizer;

use crate::error::{Error, Result};
pub use datafusion::sql::sqlparser::tokenizer::Token;

use crate::limits::{SQL_BYTES, SQL_NESTING, SQL_PARTS, SQL_TOKENS};

/// Statements that only read.
const READING: [&str; 6] = ["SELECT", "WITH", "VALUES", "EXPLAIN", "SHOW", "DESCRIBE"];

/// Functions that make much of little, past every memory pool.
const REFUSED: [&str; 10] = ["repeat", "lpad", "rpad", "array_repeat", "list_repeat", "array_resize", "list_resize", "replicate", GENERATORS[0], GENERATORS[1]];

/// Those that questions to PostgreSQL's catalog are made of; the time limit bounds them there.
const GENERATORS: [&str; 2] = ["generate_series", "range"];

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

/// Checks kind, functions, size and nesting of a statement by its tokens alone.
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
    functions(sql, false)?;
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

/// Refuses functions that make much of little.
///
/// # Errors
/// Names the function.
pub fn functions(sql: &str, is_catalog: bool) -> Result<()> {
    for token in tokens(sql)? {
        if let Token::Word(word) = token {
            let name = word.value.to_lowercase();
            if REFUSED.contains(&name.as_str()) && !(is_catalog && GENERATORS.contains(&name.as_str())) {
                return Err(Error::user(format!("{name}() is not offered here: its result can be of any size")));
            }
        }
    }
    Ok(())
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
        // Each part of a WITH may use the one before it twice.
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

#[cfg(test)]
mod tests {
    use super::*;

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
        for bad in [
            "DROP TABLE cloudtrail",
            "COPY cloudtrail TO '/tmp/x'",
            "SELECT 1; SELECT 2",
            "",
            "SET a = 1",
            "SELECT repeat(raw, 1000000) FROM cloudtrail",
            "INSERT INTO alerts VALUES (1)",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        let chain = format!("SELECT 1 WHERE {}", vec!["1=1"; 20_000].join(" OR "));
        assert!(check(&chain).is_err());
        let deep = format!("SELECT {}1{}", "(".repeat(60), ")".repeat(60));
        assert!(check(&deep).is_err());
    }
}
