//! Of PostgreSQL's SQL, what the planner does not know, in words that it does.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_err};
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, ObjectName, Value, ValueWithSpan, visit_expressions_mut,
};

const LIKE_PATTERN: &str = "like_pattern";

/// Adds what [`translate`] makes use of to a context.
pub fn register(ctx: &SessionContext) {
    let texts = vec![DataType::Utf8, DataType::Utf8];
    ctx.register_udf(create_udf(LIKE_PATTERN, texts, DataType::Utf8, Volatility::Immutable, Arc::new(like_pattern)));
}

/// `LIKE … ESCAPE '/'`, as SQLAlchemy and others write it: the planner knows the backslash only.
pub fn translate(statement: &mut DfStatement) {
    let DfStatement::Statement(ast) = statement else { return };
    let _ = visit_expressions_mut(ast.as_mut(), |expr| {
        if let Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } = expr
            && let Some(escape) = escape_char.take_if(|escape| !matches!(&escape.value, Value::SingleQuotedString(text) if text == "\\"))
        {
            let written = std::mem::replace(&mut **pattern, Expr::Value(escape.clone()));
            **pattern = call(LIKE_PATTERN, [written, Expr::Value(escape)]);
        }
        std::ops::ControlFlow::<()>::Continue(())
    });
}

fn call(name: &str, args: impl IntoIterator<Item = Expr>) -> Expr {
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// A text in the statement.
pub fn text(value: &str) -> Expr {
    Expr::Value(ValueWithSpan::from(Value::SingleQuotedString(value.to_owned())))
}

fn like_pattern(arguments: &[ColumnarValue]) -> Result<ColumnarValue> {
    let arguments = ColumnarValue::values_to_arrays(arguments)?;
    let (patterns, escapes) = (arguments[0].as_string::<i32>(), arguments[1].as_string::<i32>());
    let translated =
        patterns.iter().zip(escapes).map(|(pattern, escape)| match (pattern, escape.map(|escape| (escape.chars().next(), escape.chars().count()))) {
            (Some(pattern), Some((escape, 0..=1))) => Ok(Some(with_backslashes(pattern, escape))),
            (Some(_), Some(_)) => exec_err!("ESCAPE takes one character"),
            _ => Ok(None),
        });
    Ok(ColumnarValue::Array(Arc::new(translated.collect::<Result<StringArray>>()?) as ArrayRef))
}

/// What an escaped character of a pattern is: itself.
fn with_backslashes(pattern: &str, escape: Option<char>) -> String {
    let mut translated = String::with_capacity(pattern.len() + 8);
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        let is_escaped = Some(character) == escape;
        let character = if is_escaped { characters.next().unwrap_or(character) } else { character };
        if character == '\\' || is_escaped && matches!(character, '%' | '_') {
            translated.push('\\');
        }
        translated.push(character);
    }
    translated
}

#[cfg(test)]
mod tests {
    use super::with_backslashes;

    #[test]
    fn patterns_keep_their_meaning_under_the_backslash() {
        for (pattern, escape, meant) in [
            ("pg/_%", Some('/'), r"pg\_%"),
            ("//%", Some('/'), "/%"),
            (r"a\b", Some('/'), r"a\\b"),
            ("a/b/", Some('/'), "ab/"),
            (r"100#%\", Some('#'), r"100\%\\"),
            ("/_", None, "/_"),
        ] {
            assert_eq!(with_backslashes(pattern, escape), meant, "{pattern}");
        }
    }
}
