//! Anthropic compliance activity feed: keys, members, MCP servers, limits.

use serde_json::Value;

use super::draft::{Draft, first, has, parse, time};
use super::{Format, Out, Reason, Record, Refusal};
use crate::table::{Table, exposure_reports, provider_activity};

pub struct AnthropicActivity;

const TABLES: &[&Table] = &[&provider_activity::TABLE, &exposure_reports::TABLE];

impl Format for AnthropicActivity {
    fn name(&self) -> &str {
        "anthropic_activity"
    }

    fn doc(&self) -> &str {
        "Anthropic compliance activity feed"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"actor\"", "\"created_at\"", "\"type\""])
            && (has(text, &["\"email_address\""]) || has(text, &["_actor\""]) || has(text, &["\"organization_uuid\""]))
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let Some(kind) = v.get("type").and_then(Value::as_str).filter(|kind| !kind.is_empty()) else {
            return Err(Refusal::new(Reason::MissingField, "no type: not an activity"));
        };
        let mut d = Draft::new(&provider_activity::TABLE);
        d.event_time = v.get("created_at").and_then(time);
        d.event_id = v.get("id").and_then(Value::as_str).map(|id| format!("anthropic:{id}"));
        // `mcp_server_created` → `mcp_server.created`, one spelling for all providers.
        let action = kind.rsplit_once('_').map_or_else(|| kind.to_owned(), |(thing, verb)| format!("{thing}.{verb}"));
        d.set("provider", Some("anthropic"));
        d.set_json("account_id", first(&v, &["/organization_id", "/organization_uuid", "/workspace_id"]));
        d.set_json("actor_type", v.pointer("/actor/type")).set_json("identity", first(&v, &["/actor/email_address", "/actor/user_id", "/actor/id"]));
        d.set_json("credential", first(&v, &["/actor/api_key_id", "/actor/admin_api_key_id"]));
        d.set_json("source_ip", v.pointer("/actor/ip_address")).set_json("user_agent", v.pointer("/actor/user_agent"));
        d.set_json("target", first(&v, &["/api_key_id", "/mcp_server_id", "/mcp_server_url", "/resource_id", "/target/id", "/workspace_id"]));
        d.set("outcome", Some(if kind.ends_with("_failed") || kind.ends_with("_denied") { "denied" } else { "success" })).set("action", Some(action));
        d.finish(record, out)
    }
}
