//! Run-time parameters: what a session says of itself at login, to `SHOW` and to `current_setting()`, and what it may be told.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use datafusion::sql::sqlparser::ast::{Expr, Ident, Set, Value};
use futures::{Sink, SinkExt};
use pgwire::api::auth::ServerParameterProvider;
use pgwire::api::{ClientInfo, METADATA_USER};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::startup::ParameterStatus;

use super::failure;

/// Under PostgreSQL's names, and whether they are announced at login.
const PARAMETERS: [(&str, &str, bool); 19] = [
    ("server_version", "15.0", true),
    ("server_version_num", "150000", false),
    ("server_encoding", "UTF8", true),
    ("client_encoding", "UTF8", true),
    ("DateStyle", "ISO, MDY", true),
    ("IntervalStyle", "postgres", true),
    ("TimeZone", "UTC", true),
    ("integer_datetimes", "on", true),
    ("standard_conforming_strings", "on", true),
    ("is_superuser", "off", true),
    ("in_hot_standby", "off", true),
    ("session_authorization", "", true),
    ("application_name", "", true),
    ("search_path", "public", true),
    ("default_transaction_read_only", "on", true),
    ("transaction_read_only", "on", false),
    ("transaction_isolation", "read committed", false),
    ("max_identifier_length", "63", false),
    ("statement_timeout", "0", false),
];

/// Those that a client can change, in a session or by its first message. What else it likes to say is taken note of.
const SETTABLE: [&str; 2] = ["application_name", "statement_timeout"];

/// What a client has `SET` since it logged in, over what it said when it did: that is what `RESET` goes back to.
#[derive(Clone, Default)]
struct Said(BTreeMap<String, String>);

/// The value that is the same for everybody.
pub fn fixed(name: &str) -> Option<&'static str> {
    PARAMETERS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name)).map(|(_, value, _)| *value)
}

/// The value of a parameter in a session, by its name in small letters.
pub fn value<C: ClientInfo>(client: &C, name: &str) -> Option<String> {
    let own = match name {
        "session_authorization" => client.metadata().get(METADATA_USER).cloned(),
        name if SETTABLE.contains(&name) || fixed(name).is_none() => {
            let said = client.session_extensions().get::<Said>().and_then(|said| said.0.get(name).cloned());
            said.or_else(|| client.metadata().get(name).cloned())
        }
        _ => None,
    };
    own.or_else(|| fixed(name).map(str::to_owned))
}

/// Announces, at login, what `SHOW` says afterwards.
#[derive(Debug)]
pub struct Announced;

impl ServerParameterProvider for Announced {
    fn server_parameters<C: ClientInfo>(&self, client: &C) -> Option<HashMap<String, String>> {
        let announced = PARAMETERS.iter().filter(|(.., announced)| *announced);
        Some(announced.filter_map(|(name, ..)| Some(((*name).to_owned(), value(client, &name.to_lowercase())?))).collect())
    }
}

/// A parameter's name as `SHOW` and `SET` spell it, words of SQL's own included.
pub fn name_of(parts: &[Ident]) -> String {
    let name = parts.iter().map(|part| part.value.to_lowercase()).collect::<Vec<_>>().join(" ");
    match name.as_str() {
        "time zone" => "timezone".into(),
        "transaction isolation level" => "transaction_isolation".into(),
        "session authorization" => "session_authorization".into(),
        _ => name,
    }
}

/// What a `SET` says: a name, and a value unless that is the default.
fn said(set: &Set) -> Option<(String, Option<String>)> {
    let text = |value: &Expr| match value {
        Expr::Value(value) => Some(match &value.value {
            Value::Number(number, _) => number.to_string(),
            value => value.clone().into_string().unwrap_or_else(|| value.to_string()),
        }),
        Expr::Identifier(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("default") => None,
        Expr::Identifier(word) => Some(word.value.clone()),
        other => Some(other.to_string()),
    };
    match set {
        Set::SingleAssignment { variable, values, .. } => Some((variable.to_string().to_lowercase(), values.first().and_then(text))),
        Set::SetTimeZone { value, .. } => Some(("timezone".into(), text(value))),
        _ => None,
    }
}

/// Does what a `SET` says.
///
/// # Errors
/// The value is none for this parameter.
pub async fn set<C>(client: &mut C, set: &Set) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let Some((name, value)) = said(set) else { return Ok(()) };
    match value {
        Some(value) if name == "statement_timeout" && timeout(&value).is_none() => {
            Err(failure("ERROR", "22023", &format!("statement_timeout: `{value}` is not a time such as 5000, '5s' or '1 min'")))
        }
        Some(value) if name == "timezone" && !["utc", "gmt", "etc/utc", "local"].contains(&value.to_lowercase().as_str()) => {
            Err(failure("ERROR", "22023", "times are UTC here: SET TIME ZONE 'UTC', and let the client convert"))
        }
        value if SETTABLE.contains(&name.as_str()) => keep(client, &name, value).await,
        _ => Ok(()),
    }
}

/// Goes back to what the client said when it logged in: of one parameter, or of all.
///
/// # Errors
/// The client has gone.
pub async fn reset<C>(client: &mut C, name: Option<&str>) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    for settable in SETTABLE.iter().filter(|settable| name.is_none_or(|name| name.eq_ignore_ascii_case(settable))) {
        keep(client, settable, None).await?;
    }
    Ok(())
}

async fn keep<C>(client: &mut C, name: &str, own: Option<String>) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let mut said = client.session_extensions().get::<Said>().map(|said| Said::clone(&said)).unwrap_or_default();
    let _ = match own {
        Some(own) => said.0.insert(name.into(), own),
        None => said.0.remove(name),
    };
    client.session_extensions().insert(said);
    // Who is told a value at login is told that it changes.
    if PARAMETERS.iter().any(|(known, _, announced)| *announced && *known == name) {
        let now = value(client, name).unwrap_or_default();
        client.feed(PgWireBackendMessage::ParameterStatus(ParameterStatus::new(name.into(), now))).await?;
    }
    Ok(())
}

/// The least of a time limit and what the client has set for itself.
pub fn time_limit<C: ClientInfo>(client: &C, most: Duration) -> Duration {
    let own = value(client, "statement_timeout").and_then(|text| timeout(&text)).filter(|own| !own.is_zero());
    own.map_or(most, |own| own.min(most))
}

/// `5s`, `5 min`, `250ms`; a bare number is milliseconds, and zero is none.
fn timeout(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.saturating_mul(unit)))
}
