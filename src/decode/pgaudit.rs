//! pgAudit lines of PostgreSQL, bare, in a csvlog or jsonlog record, or in the JSON that a log shipper makes of them.
//!
//! `AUDIT: SESSION|OBJECT,statement,substatement,class,command,object type,object,statement text,parameters[,rows]`

use serde_json::Value;

use super::draft::{Draft, first, has, int, parse, time};
use super::{Format, Out, Reason, Record, Refusal};
use crate::table::{Table, exposure_reports, retrievals};

pub struct PgAudit;

const TABLES: &[&Table] = &[&retrievals::TABLE, &exposure_reports::TABLE];

impl Format for PgAudit {
    fn name(&self) -> &str {
        "pgaudit"
    }

    fn doc(&self) -> &str {
        "pgAudit entries of PostgreSQL (jsonlog, or JSON with a message field; pgvector searches among them)"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["AUDIT: "]) && (has(text, &["SESSION,"]) || has(text, &["OBJECT,"]))
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let message = first(&v, &["/message", "/msg", "/log", "/textPayload"]).and_then(Value::as_str).unwrap_or_default();
        let Some((_, audit)) = message.split_once("AUDIT: ") else {
            return Err(Refusal::new(Reason::MissingField, "no `AUDIT: ` in the message: not a pgAudit entry"));
        };
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(audit.as_bytes());
        let fields = match reader.records().next() {
            Some(Ok(fields)) if fields.len() >= 8 => fields,
            _ => return Err(Refusal::new(Reason::BadRecord, "the AUDIT entry has fewer than eight fields")),
        };
        if !fields.get(3).is_some_and(|class| class.eq_ignore_ascii_case("READ")) {
            return Err(Refusal::new(Reason::OtherEvent, format!("class {}: not a read", fields.get(3).unwrap_or_default())));
        }
        let mut d = Draft::new(&retrievals::TABLE);
        d.event_time = first(&v, &["/timestamp", "/time", "/@timestamp", "/log_time"]).and_then(time);
        let field = |number: usize| fields.get(number).filter(|text| !text.is_empty() && *text != "<none>" && *text != "<not logged>").map(str::to_owned);
        d.set("store", Some("postgresql")).set("operation", field(4)).set("data_source", field(6)).set("outcome", Some("success"));
        d.set_json("identity", first(&v, &["/user", "/user_name"])).set_json("conversation_id", first(&v, &["/session_id"]));
        d.set_json("tenant", first(&v, &["/dbname", "/database_name"])).set_json("service_name", first(&v, &["/application_name"]));
        let address = first(&v, &["/remote_host", "/connection_from", "/host"]).and_then(Value::as_str).map(super::draft::address);
        d.set("source_ip", address);
        if let Some(statement) = field(7) {
            let seen = d.read("prompt", &statement);
            d.set("query_hash", seen.hash).set("query_chars", Some(seen.chars)).set("secrets", Some(seen.secrets));
        }
        d.set("documents", field(9).and_then(|rows| int(&Value::from(rows))));
        d.finish(record, out)
    }
}
