//! What clients ask of PostgreSQL's own catalog before they ask anything else, and what it comes to here.

use std::ops::ControlFlow;
use std::sync::LazyLock;

use datafusion::sql::sqlparser::ast::{Expr, Statement, visit_expressions_mut};
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use pgwire::error::PgWireResult;

use super::failure;
use crate::query::dialect;

/// Its list of known texts takes a while to read: once.
static PARSER: LazyLock<PostgresCompatibilityParser> = LazyLock::new(PostgresCompatibilityParser::new);

/// Whether a text is about PostgreSQL's own catalog. Only for such the compatibility parser is asked: of other questions it would
/// rewrite what it does not know.
pub fn asks_catalog(sql: &str) -> bool {
    let text = sql.to_ascii_lowercase();
    [
        "pg_",
        "information_schema",
        "operator(",
        "current_setting",
        "set_config",
        "current_schema",
        "current_database",
        "current_catalog",
        "current_user",
        "session_user",
        "version()",
    ]
    .iter()
    .any(|word| text.contains(word))
}

/// Reads a question about the catalog that a user asks.
///
/// # Errors
/// It is no SQL.
pub fn parsed(sql: &str, user: &str) -> PgWireResult<Statement> {
    let sql = functions_listed(sql)
        .or_else(|| tables_listed(sql))
        .or_else(|| keys_listed(sql))
        .or_else(|| types_introspected(sql))
        .unwrap_or_else(|| understood(sql));
    let mut statements = PARSER.parse(&sql).map_err(|error| failure("ERROR", "42601", &error.to_string()))?;
    let mut statement = statements.pop().ok_or_else(|| failure("ERROR", "42601", "nothing is not a question"))?;
    // What the parser makes of `current_user` and its like too.
    let _ = visit_expressions_mut(&mut statement, |expr| {
        if matches!(expr, Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("session_user")) {
            *expr = dialect::text(user);
        }
        ControlFlow::<()>::Continue(())
    });
    Ok(statement)
}

/// Parts that the planner or the catalog's tables do not know.
const UNKNOWN: [(&str, &str); 12] = [
    // ADBC: which types can be sent. The tables hold names of functions, not numbers.
    ("(typreceive != 0 OR typsend != 0)", "(typreceive <> '-' OR typsend <> '-')"),
    // pgjdbc, before it asks for foreign keys.
    ("SELECT setting FROM pg_catalog.pg_settings WHERE name='max_index_keys'", "SELECT '32' AS setting"),
    // psycopg: a type by its name.
    ("t.oid = to_regtype($1)", "t.typname = $1"),
    // pgjdbc: in which schema of the search path a type is. They are all in `pg_catalog`.
    ("(current_schemas(false))[s.r] as nspname", "'public' as nspname"),
    ("generate_series(1, array_upper(current_schemas(false), 1)) as s(r)", "(SELECT 1 AS r) as s"),
    // pgjdbc and DBeaver: whether a type is an array.
    ("typinput='pg_catalog.array_in'::regproc", "typinput='array_in'"),
    ("typinput='array_in'::regproc", "typinput='array_in'"),
    // pgjdbc's list of types: composite ones, of which there are none.
    ("(SELECT c.relkind = 'c' FROM pg_catalog.pg_class c WHERE c.oid = t.typrelid)", "false"),
    // pgjdbc's list of procedures: columns without a name.
    ("NULL, NULL, NULL, d.description AS \"REMARKS\"", "NULL AS a, NULL AS b, NULL AS c, d.description AS \"REMARKS\""),
    // psql's `\d+ TABLE`, `\dn+` and `\du`: options, rights and groups, of which there are none.
    ("pg_catalog.array_to_string(c.reloptions || array(select 'toast.' || x from pg_catalog.unnest(tc.reloptions) x), ', ')", "''"),
    ("pg_catalog.array_to_string(n.nspacl, E'\\n')", "''"),
    (
        "ARRAY(SELECT b.rolname\n        FROM pg_catalog.pg_auth_members m\n        JOIN pg_catalog.pg_roles b ON (m.roleid = b.oid)\n        WHERE m.member = r.oid)",
        "'{}'",
    ),
];

fn understood(sql: &str) -> String {
    UNKNOWN.iter().fold(sql.to_owned(), |sql, (unknown, known)| sql.replace(unknown, known))
}

/// asyncpg looks up what a list consists of, with a recursive query over domains, ranges and composite types. Its parameter must be a list
/// of object ids, or it would look up what that is.
pub fn introspects(sql: &str) -> bool {
    sql.contains("typeinfo_tree(")
}

/// Here types are plain ones and lists of them.
fn types_introspected(sql: &str) -> Option<String> {
    introspects(sql).then(|| {
        "SELECT t.oid, 'pg_catalog' AS ns, t.typname AS name, t.typtype AS kind, CAST(NULL AS INT) AS basetype, t.typelem AS elemtype,
            e.typdelim AS elemdelim, CAST(NULL AS INT) AS range_subtype, CAST(NULL AS VARCHAR) AS attrtypoids, CAST(NULL AS VARCHAR) AS attrnames, 0 AS depth,
            CAST(NULL AS VARCHAR) AS basetype_name, e.typname AS elemtype_name, CAST(NULL AS VARCHAR) AS range_subtype_name
         FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem WHERE t.oid = ANY($1::oid[])"
            .to_owned()
    })
}

/// psql's `\d+`, `\dt+` and `\dv+` ask for sizes, of which there are none, and for what each table is.
fn tables_listed(sql: &str) -> Option<String> {
    if !sql.contains("pg_catalog.pg_table_size(c.oid)") {
        return None;
    }
    let kinds = sql.split_once("c.relkind IN (").and_then(|(_, rest)| rest.split_once(')')).map_or("", |(kinds, _)| kinds);
    let (tables, views) = (kinds.contains("'r'"), kinds.contains("'v'"));
    Some(format!(
        "SELECT 'public' AS \"Schema\", table_name AS \"Name\", CASE kind WHEN 'view' THEN 'view' ELSE 'table' END AS \"Type\", meaning AS \"Description\" FROM help_tables WHERE (kind = 'view' AND {views}) OR (kind <> 'view' AND {tables}) ORDER BY 2"
    ))
}

/// JDBC asks for keys and indexes with functions that the planner does not know. There are none.
fn keys_listed(sql: &str) -> Option<String> {
    let columns: &[&str] = match sql.contains("information_schema._pg_expandarray") {
        _ if sql.contains("\"FKTABLE_NAME\"") => &[
            "PKTABLE_CAT",
            "PKTABLE_SCHEM",
            "PKTABLE_NAME",
            "PKCOLUMN_NAME",
            "FKTABLE_CAT",
            "FKTABLE_SCHEM",
            "FKTABLE_NAME",
            "FKCOLUMN_NAME",
            "KEY_SEQ",
            "UPDATE_RULE",
            "DELETE_RULE",
            "FK_NAME",
            "PK_NAME",
            "DEFERRABILITY",
        ],
        false => return None,
        true if sql.contains("INDEX_QUALIFIER") => &[
            "TABLE_CAT",
            "TABLE_SCHEM",
            "TABLE_NAME",
            "NON_UNIQUE",
            "INDEX_QUALIFIER",
            "INDEX_NAME",
            "TYPE",
            "ORDINAL_POSITION",
            "COLUMN_NAME",
            "ASC_OR_DESC",
            "CARDINALITY",
            "PAGES",
            "FILTER_CONDITION",
        ],
        true => &["TABLE_CAT", "TABLE_SCHEM", "TABLE_NAME", "COLUMN_NAME", "KEY_SEQ", "PK_NAME"],
    };
    let columns = columns.iter().map(|name| format!("CAST(NULL AS VARCHAR) AS \"{name}\"")).collect::<Vec<_>>();
    Some(format!("SELECT {} WHERE false", columns.join(", ")))
}

/// psql's `\df` leaves out what the catalog does not hold: keyfuse's functions are in a table of their own.
fn functions_listed(sql: &str) -> Option<String> {
    if !sql.contains("pg_catalog.pg_get_function_result") {
        return None;
    }
    let pattern = sql.split_once("p.proname OPERATOR(pg_catalog.~) '").and_then(|(_, rest)| rest.split_once('\'')).map(|(pattern, _)| pattern);
    let filter = pattern.map_or_else(String::new, |pattern| format!(" WHERE function_name ~ '{pattern}'"));
    Some(format!(
        "SELECT 'public' AS \"Schema\", function_name AS \"Name\", meaning AS \"Result data type\", arguments AS \"Argument data types\", 'func' AS \"Type\" FROM help_functions{filter} ORDER BY 2"
    ))
}
