//! Vended logs of Amazon Bedrock AgentCore: runtime invocations and gateway calls.
//!
//! `trace_id` and `traceId` both occur and may differ; the time in nanoseconds is larger than a double can hold; the tool
//! name of the gateway stands in prose, as `target___tool`.

use serde_json::Value;

use super::draft::{Draft, all_text, first, has, parse, time};
use super::{Format, Out, Record, Refusal};
use crate::table::{Table, agent_spans, exposure_reports, flag, tool_calls};

pub struct AgentCore;

const TABLES: &[&Table] = &[&tool_calls::TABLE, &agent_spans::TABLE, &exposure_reports::TABLE];

impl Format for AgentCore {
    fn name(&self) -> &str {
        "agentcore"
    }

    fn doc(&self) -> &str {
        "Amazon Bedrock AgentCore vended logs (runtime, gateway)"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"resource_arn\"", "\"event_timestamp\"", "bedrock-agentcore"])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let arn = v.get("resource_arn").and_then(Value::as_str).unwrap_or_default();
        let is_gateway = arn.contains(":gateway/");
        let mut d = Draft::new(if is_gateway { &tool_calls::TABLE } else { &agent_spans::TABLE });
        d.event_time = first(&v, &["/event_timestamp", "/timeUnixNano"]).and_then(time);
        let traces = [v.get("trace_id"), v.get("traceId")];
        if let [Some(a), Some(b)] = traces
            && a != b
        {
            flag(&mut d.flags, "trace_ids_differ");
        }
        d.set_json("trace_id", traces.into_iter().flatten().next()).set_json("span_id", first(&v, &["/span_id", "/spanId"]));
        d.set_json("conversation_id", v.get("session_id")).set_json("service_name", v.get("service_name"));
        let name = arn.rsplit('/').next().filter(|name| !name.is_empty());
        let body = v.get("body").unwrap_or(&Value::Null);
        if is_gateway {
            d.set("method", Some("tools/call")).set("server", name).set_json("account_id", v.get("account_id")).set_json("request_id", v.get("request_id"));
            d.set_json("call_id", body.get("id"));
            let log = body.get("log").and_then(Value::as_str).unwrap_or_default();
            let word = log.split(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | ',' | '.' | ':')).find(|word| word.contains("___"));
            if let Some((target, tool)) = word.and_then(|word| word.split_once("___")) {
                d.set("server", Some(target)).set("tool", Some(tool));
            }
            let failed = body.get("isError").and_then(Value::as_bool) == Some(true);
            d.set("outcome", Some(if failed { "other" } else { "success" }));
            if failed {
                d.set("error_message", Some(log));
            }
            d.read("result", log);
        } else {
            d.set("kind", Some("agent")).set("agent_id", name).set("agent_name", name).set_json("user_id", body.pointer("/request_payload/actor_id"));
            let severe = v.get("severityText").and_then(Value::as_str).is_some_and(|text| matches!(text, "ERROR" | "FATAL"));
            d.set("outcome", Some(if severe { "other" } else { "success" }));
            for (place, path) in [("prompt", "/request_payload"), ("output", "/response_payload")] {
                let mut text = String::new();
                body.pointer(path).iter().for_each(|value| all_text(value, &mut text));
                // Payloads are structures, JSON text, or text.
                d.read(place, &text);
            }
        }
        d.finish(record, out)
    }
}
