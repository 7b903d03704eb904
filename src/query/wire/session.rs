//! One session: statements in, answers and an audit line each out.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, SchemaRef};
use arrow_pg::datatypes::df::deserialize_parameters_with_server_types;
use arrow_pg::datatypes::{arrow_schema_to_pg_fields, into_pg_type};
use async_trait::async_trait;
use datafusion::common::SchemaError;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{CloseCursor, DiscardObject, Reset, ResetStatement, Statement as Ast};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use futures::Sink;
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{FieldInfo, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, Type};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::extendedquery::Execute;

use super::catalog::PgCatalog;
use super::clients;
use super::copy::Copy;
use super::failure;
use super::parameters::{self, name_of, time_limit, value};
use super::rows::{Encoded, encoded, one_text, sent_schema};
use crate::limits::SQL_STATEMENTS;
use crate::query::{CATALOG, Door, Doors, Limits, Stopped, guard, limited, said};
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
    async fn prepare(&self, sql: &str, user: String, time: Duration) -> PgWireResult<Statement> {
        match Self::judged(sql)? {
            Some(Other::Settle(ast)) => return Ok(Statement::Settle(Arc::new(*ast))),
            Some(Other::Copy(copy)) => return Ok(Statement::Copy(Arc::new(copy))),
            None => {}
        }
        let (session, text) = (self.clone(), sql.to_owned());
        let plan = within(time, async move { session.plan(&session.door(&text).await?, &text, &user).await }).await?;
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
            (kind, if clients::introspects(sql) { Type::OID_ARRAY } else { wire })
        });
        Ok(Statement::Question(Arc::new(Planned { sql: sql.to_owned(), schema: sent_schema(plan.schema().as_arrow()), parameters: parameters.collect() })))
    }

    /// A door on the rows as they are now, with the catalog where it is asked for.
    async fn door(&self, sql: &str) -> PgWireResult<Door> {
        let door = self.question.doors.open().await.map_err(|error| failure("ERROR", "58000", &error.to_string()))?;
        if clients::asks_catalog(sql) && door.ctx.catalog(CATALOG).is_some_and(|catalog| catalog.schema("pg_catalog").is_none()) {
            self.question.catalog.add_to(&door.ctx).map_err(|error| explained(&error))?;
        }
        Ok(door)
    }

    /// Plans a question that [`Session::judged`] has let through.
    async fn plan(&self, door: &Door, sql: &str, user: &str) -> PgWireResult<LogicalPlan> {
        let planned = match clients::asks_catalog(sql) {
            true => door.plan_read(DfStatement::Statement(Box::new(clients::parsed(sql, user)?))).await,
            false => door.plan(sql).await,
        };
        planned.map_err(|error| explained(&error))
    }

    /// The limits of a question that this client asks.
    fn limits<C: ClientInfo>(&self, client: &C) -> Limits {
        let limits = self.question.doors.limits();
        Limits { time: time_limit(client, limits.time), ..limits }
    }

    /// Answers one question under the limits, and writes its audit line, however it ends.
    async fn answer<C: ClientInfo>(&self, client: &C, sql: &str, format: &Format, bound: Option<(&Planned, &Portal<Statement>)>) -> PgWireResult<Encoded> {
        let mut audit = Audit::begin(client, sql, &self.question.fingerprinter);
        let limits = self.limits(client);
        let values = match bound.filter(|(question, _)| !question.parameters.is_empty()) {
            Some((question, portal)) => {
                let arrow: Vec<_> = question.parameters.iter().map(|(kind, _)| kind.as_ref()).collect();
                let wire: Vec<_> = question.parameters.iter().map(|(_, wire)| Some(if *wire == Type::OID_ARRAY { &Type::INT4_ARRAY } else { wire })).collect();
                deserialize_parameters_with_server_types(portal, &arrow, &wire).map(Some)
            }
            None => Ok(None),
        };
        let answered = match values {
            Ok(values) => {
                let (session, sql, user, format) = (self.clone(), sql.to_owned(), user_of(client), format.clone());
                let work = async move {
                    let door = session.door(&sql).await?;
                    let mut plan = session.plan(&door, &sql, &user).await?;
                    if let Some(values) = values {
                        plan = plan.replace_params_with_values(&values).map_err(|error| explained(&error))?;
                    }
                    encoded(door.run(plan, limits).await.map_err(|error| explained(&error))?, &format)
                };
                within(limits.time, work).await
            }
            Err(error) => Err(error),
        };
        audit.end(&answered);
        answered
    }

    /// Answers a question with a copy, and says how many rows that has.
    async fn copy<C>(&self, client: &mut C, copy: &Copy) -> PgWireResult<Response>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let answer = self.answer(client, &copy.sql, &copy.sent(), None).await?;
        copy.send(client, answer).await
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

/// Work under a time limit.
async fn within<T: Send + 'static>(time: Duration, work: impl Future<Output = PgWireResult<T>> + Send + 'static) -> PgWireResult<T> {
    match limited(time, work).await {
        Ok(done) => done,
        Err(Stopped::TimeOver) => Err(failure("ERROR", "57014", &format!("stopped after {} s: narrow the question", time.as_secs_f32()))),
        Err(Stopped::Panicked) => Err(failure("ERROR", "XX000", "the question met a bug: please report it, with the log of keyfuse")),
    }
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
        let application = value(client, "application_name").unwrap_or_default();
        // What is asked for may be a secret.
        let sql = crate::credential::replace_secrets(sql, fingerprinter).into_owned();
        Self {
            user: user_of(client),
            from: client.socket_addr().to_string(),
            application,
            sql,
            started: Instant::now(),
            fingerprinter: fingerprinter.clone(),
            done: false,
        }
    }

    fn end(&mut self, answered: &PgWireResult<Encoded>) {
        self.done = true;
        match answered {
            Ok(answer) => self.line("answered", Some(answer.rows.len()), None),
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
            | Ast::Close { .. }
    )
}

async fn settle<C>(client: &mut C, ast: &Ast, format: &Format) -> PgWireResult<Response>
where
    C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::PortalStore: PortalStore,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    Ok(match ast {
        Ast::StartTransaction { .. } => Response::TransactionStart(Tag::new("BEGIN")),
        Ast::Commit { .. } => Response::TransactionEnd(Tag::new("COMMIT")),
        Ast::Rollback { .. } => Response::TransactionEnd(Tag::new("ROLLBACK")),
        Ast::ShowVariable { variable } => {
            let name = name_of(variable);
            let Some(value) = value(client, &name) else { return Err(failure("ERROR", "42704", &format!("no setting `{name}`"))) };
            Response::Query(one_text(&name, &value, format)?)
        }
        Ast::Set(set) => {
            parameters::set(client, set).await?;
            Response::Execution(Tag::new("SET"))
        }
        Ast::Reset(ResetStatement { reset }) => {
            let name = match reset {
                Reset::ALL => None,
                Reset::ConfigurationParameter(name) => Some(name.to_string()),
            };
            parameters::reset(client, name.as_deref()).await?;
            Response::Execution(Tag::new("RESET"))
        }
        Ast::Deallocate { name, .. } => {
            client.portal_store().rm_statement(&name.value);
            Response::Execution(Tag::new("DEALLOCATE"))
        }
        Ast::Discard { object_type } => {
            if *object_type == DiscardObject::ALL {
                client.portal_store().clear_portals();
                parameters::reset(client, None).await?;
            }
            Response::Execution(Tag::new(&ast.to_string()))
        }
        Ast::Close { cursor } => {
            match cursor {
                CloseCursor::All => client.portal_store().clear_portals(),
                CloseCursor::Specific { name } => client.portal_store().rm_portal(&name.value),
            }
            Response::Execution(Tag::new("CLOSE CURSOR"))
        }
        _ => Response::Execution(Tag::new(ast.to_string().split_whitespace().next().unwrap_or("OK"))),
    })
}

/// A planner's or a plan's error under PostgreSQL's code for it.
fn explained(error: &DataFusionError) -> PgWireError {
    let root = error.find_root();
    let text = said(error);
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

fn user_of<C: ClientInfo>(client: &C) -> String {
    client.session_extensions().get::<LoggedIn>().map(|logged_in| logged_in.user.clone()).unwrap_or_default()
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
        let parts = statements(query)?;
        for sql in &parts {
            responses.push(match self.audited(client, sql, Self::judged(sql))? {
                Some(Other::Settle(ast)) => settle(client, &ast, &Format::UnifiedText).await?,
                // It is sent at once, and would come before the answers to what is before it.
                Some(Other::Copy(_)) if parts.len() > 1 => {
                    return Err(failure("ERROR", "0A000", "COPY is answered alone: send it without other statements"));
                }
                Some(Other::Copy(copy)) => self.copy(client, &copy).await?,
                None => Response::Query(self.answer(client, sql, &Format::UnifiedText, None).await?.response()),
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
            [sql] => Some(self.audited(client, sql, self.prepare(sql, user_of(client), self.limits(client).time).await)?),
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
                    Ok(vec![FieldInfo::new(name_of(variable), None, None, Type::TEXT, format.unwrap_or(&Format::UnifiedText).format_for(0))])
                }
                _ => Ok(Vec::new()),
            },
        }
    }
}

/// Most rows that one message of the extended protocol may ask for where the door itself has no bound: room is made for so many
/// before there is one. As many as the door answers at most are all that there can be: fewer would be taken for the end.
const ROWS_AT_ONCE: usize = 10_000_000;

/// What is being sent, whose memory is let go of when it is.
type Sending = Option<Arc<MemoryReservation>>;

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
            Statement::Copy(copy) => self.copy(client, copy).await,
            Statement::Question(question) => {
                let answer = self.answer(client, &question.sql, &portal.result_column_format, Some((question, portal))).await?;
                client.session_extensions().insert::<Sending>(Some(answer.held()));
                Ok(Response::Query(answer.response()))
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
        let most = self.question.doors.limits().rows.min(ROWS_AT_ONCE);
        message.max_rows = message.max_rows.clamp(0, most.try_into().unwrap_or(i32::MAX));
        let sent = self._on_execute(client, message).await;
        // The portal itself lets go of its rows before they are sent.
        client.session_extensions().insert::<Sending>(None);
        sent
    }
}
