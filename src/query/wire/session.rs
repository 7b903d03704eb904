//! One session: statements in, answers and an audit line each out.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow_pg::datatypes::df::deserialize_parameters_with_server_types;
use arrow_pg::datatypes::{arrow_schema_to_pg_fields, into_pg_type};
use async_trait::async_trait;
use datafusion::common::SchemaError;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::Statement as Ast;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use futures::{Sink, SinkExt};
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{FieldInfo, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, Type};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::extendedquery::Execute;
use pgwire::messages::startup::ParameterStatus;

use super::catalog::{PgCatalog, setting};
use super::copy::Copy;
use super::failure;
use super::rows::{response, sent_schema};
use crate::limits::SQL_STATEMENTS;
use crate::query::{Answer, Door, Doors, Limits, guard, limited, reads_only};
use crate::secret::Fingerprinter;

/// Marks a connection whose login is done: nothing is answered before.
pub struct LoggedIn {
    pub user: String,
}

/// What every session asks with.
#[derive(Clone)]
pub struct Question {
    pub doors: Arc<Doors>,
    pub catalog: Arc<PgCatalog>,
    pub fingerprinter: Fingerprinter,
}

/// One statement, read once.
#[derive(Clone, Debug)]
pub enum Statement {
    /// A question; planned anew each time that it is executed, over the rows as they are then.
    Question(Arc<Planned>),
    /// A question whose answer goes out as a copy.
    Copy(Arc<Copy>),
    /// What clients say about the session itself.
    Settle(Arc<Ast>),
}

/// What a text is that is no question.
enum Other {
    Settle(Box<Ast>),
    Copy(Copy),
}

#[derive(Debug)]
pub struct Planned {
    sql: String,
    /// Of the answer. The plan itself is not kept: it would keep the rows of its moment.
    schema: SchemaRef,
    parameters: Vec<(Option<DataType>, Type)>,
}

#[derive(Clone)]
pub struct Session {
    question: Question,
}

/// Its list of known texts takes a while to read: once.
static CATALOG_PARSER: LazyLock<PostgresCompatibilityParser> = LazyLock::new(PostgresCompatibilityParser::new);

/// Whether a text is about PostgreSQL's own catalog. Only for such the compatibility parser is asked: of other questions it would
/// rewrite what it does not know.
fn asks_catalog(sql: &str) -> bool {
    let text = sql.to_ascii_lowercase();
    ["pg_", "information_schema", "operator(", "current_setting", "set_config", "current_schema", "current_database", "version()"]
        .iter()
        .any(|word| text.contains(word))
}

impl Session {
    pub fn new(question: Question) -> Self {
        Self { question }
    }

    /// Writes the audit line of a statement that is refused before it is asked.
    fn audited<T, C: ClientInfo>(&self, client: &C, sql: &str, outcome: PgWireResult<T>) -> PgWireResult<T> {
        outcome.inspect_err(|error| Audit::begin(client, sql, &self.question.fingerprinter).refused(error))
    }

    /// Judges a statement by its text; none where it is a question.
    fn judged(sql: &str) -> PgWireResult<Option<Other>> {
        guard::bounds(sql).map_err(|error| failure("ERROR", "54001", &error.to_string()))?;
        guard::functions(sql, asks_catalog(sql)).map_err(|error| failure("ERROR", "42601", &error.to_string()))?;
        let first = guard::first_word(sql);
        if !guard::reads(&first) || (first == "SHOW" && !sql.to_ascii_uppercase().contains("TABLES") && !sql.to_ascii_uppercase().contains("COLUMNS")) {
            let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).map_err(|error| failure("ERROR", "42601", &error.to_string()))?;
            let ast = statements.pop().filter(|_| statements.is_empty());
            return match (ast.as_ref().and_then(Copy::of), ast) {
                (Some(copy), _) => copy.map(|copy| Some(Other::Copy(copy))).map_err(|error| failure("ERROR", "0A000", &error)),
                (None, Some(ast)) if is_settling(&ast) => Ok(Some(Other::Settle(Box::new(ast)))),
                _ => Err(failure("ERROR", "25006", &format!("{first} is not answered here: this door only reads"))),
            };
        }
        Ok(None)
    }

    /// Reads one statement, to be executed later.
    async fn prepare(&self, sql: &str) -> PgWireResult<Statement> {
        match Self::judged(sql)? {
            Some(Other::Settle(ast)) => return Ok(Statement::Settle(Arc::new(*ast))),
            Some(Other::Copy(copy)) => return Ok(Statement::Copy(Arc::new(copy))),
            None => {}
        }
        let door = self.door(sql).await?;
        let plan = self.plan(&door, sql).await?;
        let names = plan.get_parameter_types().map_err(|error| explained(&error))?;
        let casts = cast_parameters(&plan);
        let mut parameters: Vec<(usize, Option<DataType>)> = names
            .into_iter()
            .filter_map(|(name, kind)| Some((name.trim_start_matches('$').parse().ok()?, kind.or_else(|| casts.get(&name).cloned()))))
            .collect();
        parameters.sort_by_key(|(number, _)| *number);
        let parameters = parameters.into_iter().map(|(_, kind)| {
            // A null of an unknown type would be dropped, and those after it would move up.
            let wire = kind.as_ref().and_then(|kind| into_pg_type(kind).ok()).filter(|wire| *wire != Type::UNKNOWN).unwrap_or(Type::TEXT);
            (kind, wire)
        });
        Ok(Statement::Question(Arc::new(Planned { sql: sql.to_owned(), schema: sent_schema(plan.schema().as_arrow()), parameters: parameters.collect() })))
    }

    /// A door on the rows as they are now, with the catalog where it is asked for.
    async fn door(&self, sql: &str) -> PgWireResult<Door> {
        let door = self.question.doors.open().await.map_err(|error| failure("ERROR", "58000", &error.to_string()))?;
        if asks_catalog(sql) && door.ctx.catalog("datafusion").is_some_and(|catalog| catalog.schema("pg_catalog").is_none()) {
            self.question.catalog.add_to(&door.ctx).map_err(|error| explained(&error))?;
        }
        Ok(door)
    }

    /// Plans a question that [`Session::judged`] has let through.
    async fn plan(&self, door: &Door, sql: &str) -> PgWireResult<LogicalPlan> {
        let planned = match asks_catalog(sql) {
            true => {
                let sql = functions_listed(sql).or_else(|| tables_listed(sql)).or_else(|| keys_listed(sql)).unwrap_or_else(|| understood(sql));
                let mut statements = CATALOG_PARSER.parse(&sql).map_err(|error| failure("ERROR", "42601", &error.to_string()))?;
                let Some(ast) = statements.pop() else { return Err(failure("ERROR", "42601", "nothing is not a question")) };
                door.ctx.state().statement_to_plan(DfStatement::Statement(Box::new(ast))).await.and_then(reads_only)
            }
            false => door.plan(sql).await,
        };
        planned.map_err(|error| explained(&error))
    }

    /// Answers one question under the limits, and writes its audit line, however it ends.
    async fn answer<C: ClientInfo>(&self, client: &C, sql: &str, bound: Option<(&Planned, &Portal<Statement>)>) -> PgWireResult<Answer> {
        let mut limits = self.question.doors.limits();
        if let Some(time) = client.metadata().get("statement_timeout").and_then(|text| parse_timeout(text)) {
            limits.time = limits.time.min(time);
        }
        let mut audit = Audit::begin(client, sql, &self.question.fingerprinter);
        let answered = async {
            let door = self.door(sql).await?;
            let mut plan = self.plan(&door, sql).await?;
            if let Some((question, portal)) = bound.filter(|(question, _)| !question.parameters.is_empty()) {
                let arrow: Vec<_> = question.parameters.iter().map(|(kind, _)| kind.as_ref()).collect();
                let wire: Vec<_> = question.parameters.iter().map(|(_, wire)| Some(wire)).collect();
                let values = deserialize_parameters_with_server_types(portal, &arrow, &wire)?;
                plan = plan.replace_params_with_values(&values).map_err(|error| explained(&error))?;
            }
            run(door, plan, limits).await
        };
        let answered = answered.await;
        audit.end(&answered);
        answered
    }
}

/// Parameters whose type the question itself says, as in `$1::bigint`.
fn cast_parameters(plan: &LogicalPlan) -> HashMap<String, DataType> {
    let mut found = HashMap::new();
    let _ = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::Cast(cast) = part
                    && let Expr::Placeholder(placeholder) = cast.expr.as_ref()
                {
                    found.insert(placeholder.id.clone(), cast.field.data_type().clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    found
}

async fn run(door: Door, plan: LogicalPlan, limits: Limits) -> PgWireResult<Answer> {
    match limited(limits, async move { door.run(plan, limits).await }).await {
        Some(answer) => answer.map_err(|error| explained(&error)),
        None => Err(failure("ERROR", "57014", &format!("stopped after {} s: narrow the question", limits.time.as_secs_f32()))),
    }
}

/// Of what clients ask, parts that the planner or the catalog's tables do not know, and what they come to here.
const UNKNOWN: [(&str, &str); 4] = [
    // ADBC: which types can be sent. The tables hold names of functions, not numbers.
    ("(typreceive != 0 OR typsend != 0)", "(typreceive <> '-' OR typsend <> '-')"),
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

/// JDBC asks for primary keys and indexes with a function that the planner does not know. There are none.
fn keys_listed(sql: &str) -> Option<String> {
    if !sql.contains("information_schema._pg_expandarray") {
        return None;
    }
    let columns: &[&str] = match sql.contains("INDEX_QUALIFIER") {
        true => &[
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
        false => &["TABLE_CAT", "TABLE_SCHEM", "TABLE_NAME", "COLUMN_NAME", "KEY_SEQ", "PK_NAME"],
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

/// `5s`, `5min`, `250ms`; a bare number is milliseconds. Zero is none.
fn parse_timeout(text: &str) -> Option<Duration> {
    let text = text.trim().trim_matches('\'');
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok().filter(|number| *number > 0)?;
    let unit = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.saturating_mul(unit)))
}

/// A line for each question, of its kind, user, time and rows: also for one that is cancelled or whose client has gone.
struct Audit {
    user: String,
    from: String,
    application: String,
    sql: String,
    started: Instant,
    fingerprinter: Fingerprinter,
    done: bool,
}

impl Audit {
    fn begin<C: ClientInfo>(client: &C, sql: &str, fingerprinter: &Fingerprinter) -> Self {
        let user = client.session_extensions().get::<LoggedIn>().map(|logged_in| logged_in.user.clone()).unwrap_or_default();
        let application = client.metadata().get("application_name").cloned().unwrap_or_default();
        // What is asked for may be a secret.
        let sql = crate::credential::replace_secrets(sql, fingerprinter).into_owned();
        Self { user, from: client.socket_addr().to_string(), application, sql, started: Instant::now(), fingerprinter: fingerprinter.clone(), done: false }
    }

    fn end(&mut self, answered: &PgWireResult<Answer>) {
        self.done = true;
        match answered {
            Ok(answer) => self.line("answered", Some(answer.rows()), None),
            Err(error) => self.refused(error),
        }
    }

    fn refused(&mut self, error: &PgWireError) {
        self.done = true;
        // A value that cannot be read stands in the error as it was given.
        let error = crate::credential::replace_secrets(&error.to_string(), &self.fingerprinter).into_owned();
        self.line("refused", None, Some(error));
    }

    fn line(&self, outcome: &str, rows: Option<usize>, error: Option<String>) {
        let Self { user, from, application, sql, started, .. } = self;
        tracing::info!(target: "keyfuse::audit", user, from, application, outcome, rows, error, seconds = started.elapsed().as_secs_f32(), sql, "asked");
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        if !self.done {
            self.line("given up", None, None);
        }
    }
}

/// What a client may say about its session. It changes nothing that could be read.
fn is_settling(ast: &Ast) -> bool {
    matches!(
        ast,
        Ast::Set(_)
            | Ast::ShowVariable { .. }
            | Ast::StartTransaction { .. }
            | Ast::Commit { .. }
            | Ast::Rollback { .. }
            | Ast::Deallocate { .. }
            | Ast::Discard { .. }
            | Ast::Reset(_)
            | Ast::Savepoint { .. }
            | Ast::ReleaseSavepoint { .. }
            | Ast::UNLISTEN { .. }
    )
}

async fn settle<C>(client: &mut C, ast: &Ast, format: &Format) -> PgWireResult<Response>
where
    C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::PortalStore: PortalStore,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let text = ast.to_string();
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c == '=').filter(|word| !word.is_empty()).collect();
    Ok(match ast {
        Ast::StartTransaction { .. } => Response::TransactionStart(Tag::new("BEGIN")),
        Ast::Commit { .. } => Response::TransactionEnd(Tag::new("COMMIT")),
        Ast::Rollback { .. } => Response::TransactionEnd(Tag::new("ROLLBACK")),
        Ast::ShowVariable { variable } => {
            let name = variable.iter().map(|part| part.value.to_lowercase()).collect::<Vec<_>>().join(" ");
            let name = if name == "time zone" {
                "timezone".to_owned()
            } else if name == "transaction isolation level" {
                "transaction_isolation".into()
            } else {
                name
            };
            let value = client.metadata().get(&name).cloned().or_else(|| setting(&name).map(str::to_owned));
            let Some(value) = value else { return Err(failure("ERROR", "42704", &format!("no setting `{name}`"))) };
            let batch = RecordBatch::try_from_iter([(name.as_str(), Arc::new(StringArray::from(vec![value])) as ArrayRef)]);
            let batch = batch.map_err(|error| PgWireError::ApiError(Box::new(error)))?;
            Response::Query(response(&Answer { schema: batch.schema(), batches: vec![batch] }, format)?)
        }
        Ast::Set(_) => {
            // What matters is kept; what a client merely likes to say is taken note of.
            let name = words
                .iter()
                .skip(1)
                .find(|word| !["SESSION", "LOCAL"].contains(&word.to_uppercase().as_str()))
                .map(|word| word.to_lowercase())
                .unwrap_or_default();
            let value = words.last().map(|word| word.trim_matches('\'').to_owned()).unwrap_or_default();
            if name == "statement_timeout" && value != "0" && parse_timeout(&value).is_none() {
                return Err(failure("ERROR", "22023", &format!("statement_timeout: `{value}` is not a time such as 5000, 5s or 1min")));
            }
            if (name == "timezone" || name == "time") && !["utc", "gmt", "etc/utc", "default"].contains(&value.to_lowercase().as_str()) {
                return Err(failure("ERROR", "22023", "times are UTC here: SET TIME ZONE 'UTC', and let the client convert"));
            }
            if ["statement_timeout", "application_name"].contains(&name.as_str()) {
                client.metadata_mut().insert(name.clone(), value.clone());
                client.send(PgWireBackendMessage::ParameterStatus(ParameterStatus::new(name, value))).await?;
            }
            Response::Execution(Tag::new("SET"))
        }
        Ast::Deallocate { name, .. } => {
            client.portal_store().rm_statement(&name.value);
            Response::Execution(Tag::new("DEALLOCATE"))
        }
        Ast::Discard { .. } => {
            client.portal_store().clear_portals();
            Response::Execution(Tag::new("DISCARD ALL"))
        }
        _ => Response::Execution(Tag::new(words.first().copied().unwrap_or("OK"))),
    })
}

/// A planner's or a plan's error under PostgreSQL's code for it.
fn explained(error: &DataFusionError) -> PgWireError {
    let root = error.find_root();
    let text = error.strip_backtrace().replace("datafusion.public.", "");
    let code = match root {
        DataFusionError::SQL(..) => "42601",
        DataFusionError::SchemaError(error, _) => match **error {
            SchemaError::FieldNotFound { .. } => "42703",
            SchemaError::AmbiguousReference { .. } => "42702",
            _ => "42000",
        },
        DataFusionError::Plan(message) if message.contains("not found") && message.contains("table") => "42P01",
        DataFusionError::Plan(message) if message.contains("Invalid function") => "42883",
        DataFusionError::Plan(message) if message.contains("not supported") => "25006",
        DataFusionError::Plan(_) => "42601",
        DataFusionError::NotImplemented(_) => "0A000",
        DataFusionError::ResourcesExhausted(_) => "54000",
        DataFusionError::ArrowError(..) | DataFusionError::Execution(_) => "22000",
        _ => "XX000",
    };
    failure("ERROR", code, &text)
}

fn logged_in<C: ClientInfo>(client: &C) -> PgWireResult<()> {
    match client.session_extensions().get::<LoggedIn>() {
        Some(_) => Ok(()),
        None => Err(failure("FATAL", "28000", "log in first")),
    }
}

/// The statements of a simple query, apart.
fn statements(sql: &str) -> PgWireResult<Vec<&str>> {
    let ends = guard::semicolons(sql).map_err(|error| failure("ERROR", "42601", &error.to_string()))?;
    let (mut parts, mut from) = (Vec::new(), 0);
    for end in ends.into_iter().chain([sql.len()]) {
        let part = &sql[from..end];
        if guard::tokens(part).is_ok_and(|tokens| tokens.iter().any(|token| !matches!(token, guard::Token::Whitespace(_)))) {
            parts.push(part);
        }
        from = (end + 1).min(sql.len());
    }
    match parts.len() {
        count if count > SQL_STATEMENTS => Err(failure("ERROR", "54001", &format!("{count} statements at once; the limit is {SQL_STATEMENTS}"))),
        _ => Ok(parts),
    }
}

#[async_trait]
impl SimpleQueryHandler for Session {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        logged_in(client)?;
        let mut responses = Vec::new();
        for sql in statements(query)? {
            responses.push(match self.audited(client, sql, Self::judged(sql))? {
                Some(Other::Settle(ast)) => settle(client, &ast, &Format::UnifiedText).await?,
                Some(Other::Copy(copy)) => Response::CopyOut(copy.response(&self.answer(client, &copy.sql, None).await?)?),
                None => Response::Query(response(&self.answer(client, sql, None).await?, &Format::UnifiedText)?),
            });
        }
        if responses.is_empty() {
            responses.push(Response::EmptyQuery);
        }
        Ok(responses)
    }
}

#[async_trait]
impl QueryParser for Session {
    type Statement = Statement;

    async fn parse_sql<C>(&self, client: &C, sql: &str, _: &[Option<Type>]) -> PgWireResult<Option<Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        logged_in(client)?;
        Ok(match statements(sql)?.as_slice() {
            [] => None,
            [sql] => Some(self.audited(client, sql, self.prepare(sql).await)?),
            _ => return Err(failure("ERROR", "42601", "one statement at a time")),
        })
    }

    fn get_parameter_types(&self, statement: &Statement) -> PgWireResult<Vec<Type>> {
        Ok(match statement {
            Statement::Question(question) => question.parameters.iter().map(|(_, wire)| wire.clone()).collect(),
            Statement::Settle(_) | Statement::Copy(_) => Vec::new(),
        })
    }

    fn get_result_schema(&self, statement: &Statement, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        match statement {
            Statement::Question(question) => {
                let schema = &question.schema;
                let fits = |format: &&Format| !matches!(format, Format::Individual(formats) if formats.len() != schema.fields().len());
                arrow_schema_to_pg_fields(schema, format.filter(fits).unwrap_or(&Format::UnifiedText), None)
            }
            Statement::Copy(_) => Ok(Vec::new()),
            Statement::Settle(ast) => match &**ast {
                Ast::ShowVariable { variable } => {
                    let name = variable.iter().map(|part| part.value.to_lowercase()).collect::<Vec<_>>().join(" ");
                    Ok(vec![FieldInfo::new(name, None, None, Type::TEXT, pgwire::api::results::FieldFormat::Text)])
                }
                _ => Ok(Vec::new()),
            },
        }
    }
}

/// Most rows that one message of the extended protocol may ask for: a client's number is no reason to set so much memory aside.
const ROWS_AT_ONCE: i32 = 10_000;

#[async_trait]
impl ExtendedQueryHandler for Session {
    type Statement = Statement;
    type QueryParser = Session;

    fn query_parser(&self) -> Arc<Session> {
        Arc::new(self.clone())
    }

    async fn do_query<C>(&self, client: &mut C, portal: &Portal<Statement>, _: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        logged_in(client)?;
        match &portal.statement.statement {
            Statement::Settle(ast) => settle(client, ast, &portal.result_column_format).await,
            Statement::Copy(copy) => Ok(Response::CopyOut(copy.response(&self.answer(client, &copy.sql, None).await?)?)),
            Statement::Question(question) => {
                let answer = self.answer(client, &question.sql, Some((question, portal))).await?;
                Ok(Response::Query(response(&answer, &portal.result_column_format)?))
            }
        }
    }

    async fn on_execute<C>(&self, client: &mut C, mut message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        message.max_rows = message.max_rows.clamp(0, ROWS_AT_ONCE);
        self._on_execute(client, message).await
    }
}
