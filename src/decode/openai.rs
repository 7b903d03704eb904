//! OpenAI organisation audit log: control plane only. What an act concerns stands under a key named after its type.
//!
//! <https://platform.openai.com/docs/api-reference/audit-logs>

use serde_json::Value;

use super::draft::{Draft, first, has, parse, time};
use super::{Format, Out, Reason, Record, Refusal};
use crate::table::{Table, exposure_reports, provider_activity};

pub struct OpenAiAudit;

const TABLES: &[&Table] = &[&provider_activity::TABLE, &exposure_reports::TABLE];

impl Format for OpenAiAudit {
    fn name(&self) -> &str {
        "openai_audit"
    }

    fn doc(&self) -> &str {
        "OpenAI organisation audit log"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"effective_at\"", "\"actor\"", "\"type\""])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let Some(kind) = v.get("type").and_then(Value::as_str).filter(|kind| !kind.is_empty()) else {
            return Err(Refusal::new(Reason::MissingField, "no type: not an audit event"));
        };
        // Some exporters write `api_key_created`.
        let action = if kind.contains('.') { kind.to_owned() } else { dotted(kind) };
        let mut d = Draft::new(&provider_activity::TABLE);
        d.event_time = v.get("effective_at").and_then(time);
        d.event_id = v.get("id").and_then(Value::as_str).map(|id| format!("openai:{id}"));
        let detail = v.get(kind).or_else(|| v.get(action.as_str())).unwrap_or(&Value::Null);
        d.set("provider", Some("openai"));
        d.set_json("account_id", first(&v, &["/project/id", "/organization_id"])).set_json("actor_type", v.pointer("/actor/type"));
        d.set_json(
            "identity",
            first(
                &v,
                &[
                    "/actor/session/user/email",
                    "/actor/session/user/id",
                    "/actor/api_key/user/email",
                    "/actor/api_key/user/id",
                    "/actor/api_key/service_account/id",
                ],
            ),
        );
        d.set_json("credential", v.pointer("/actor/api_key/id"));
        d.set_json("source_ip", first(&v, &["/actor/session/ip_address", "/actor/ip_address"]))
            .set_json("user_agent", first(&v, &["/actor/session/user_agent", "/actor/user_agent"]));
        d.set_json("target", detail.get("id"));
        let failed = action.ends_with(".failed");
        d.set("outcome", Some(if failed { "denied" } else { "success" })).set_json("error_code", detail.get("error_code"));
        d.set("detail", detail.is_object().then(|| detail.to_string())).set("action", Some(action));
        d.finish(record, out)
    }
}

/// `api_key_created` → `api_key.created`: the last word is the verb.
fn dotted(kind: &str) -> String {
    kind.rsplit_once('_').map_or_else(|| kind.to_owned(), |(thing, verb)| format!("{thing}.{verb}"))
}
