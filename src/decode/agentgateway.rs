//! Access logs of agentgateway: one line per MCP, A2A or model call that went through it.

use serde_json::Value;

use super::draft::{Draft, first, has, int, parse, time};
use super::otlp::outcome;
use super::{Format, Out, Record, Refusal, price};
use crate::table::{Table, exposure_reports, model_invocations, tool_calls};

pub struct AgentGateway;

const TABLES: &[&Table] = &[&tool_calls::TABLE, &model_invocations::TABLE, &exposure_reports::TABLE];

impl Format for AgentGateway {
    fn name(&self) -> &str {
        "agentgateway"
    }

    fn doc(&self) -> &str {
        "agentgateway access log (JSON)"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"src.addr\""]) && (has(text, &["\"mcp.method.name\""]) || has(text, &["\"gen_ai."]) || has(text, &["\"a2a.method\""]))
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let get = |name: &str| v.get(name).filter(|value| !value.is_null() && value.as_str() != Some(""));
        let is_model = get("gen_ai.request.model").is_some() && get("mcp.method.name").is_none();
        let mut d = Draft::new(if is_model { &model_invocations::TABLE } else { &tool_calls::TABLE });
        d.event_time = first(&v, &["/timestamp", "/time", "/@timestamp"]).and_then(time);
        d.event_id =
            get("span.id").zip(get("trace.id")).map(|(span, trace)| format!("{}:{}", trace.as_str().unwrap_or_default(), span.as_str().unwrap_or_default()));
        for (column, name) in [
            ("trace_id", "trace.id"),
            ("span_id", "span.id"),
            ("identity", "jwt.sub"),
            ("user_id", "jwt.act.sub"),
            ("agent_id", "gen_ai.agent.id"),
            ("conversation_id", "mcp.session.id"),
            ("request_id", "aws.request_id"),
        ] {
            d.set_json(column, get(name));
        }
        if d.text("identity").is_none() {
            d.set_json("identity", get("src.identity"));
        }
        let address = get("src.addr").and_then(Value::as_str).map(super::draft::address);
        d.set("source_ip", address);
        let status = get("http.status").and_then(int);
        let error = first(&v, &["/mcp.error.code", "/error"]);
        let code = error.and_then(super::draft::scalar);
        d.set("outcome", Some(outcome(code.as_deref(), status, false))).set_json("error_code", error);
        d.set(
            "duration_micros",
            get("duration").and_then(Value::as_str).and_then(|text| text.strip_suffix("ms")?.parse::<i64>().ok()).map(|millis| millis.saturating_mul(1000)),
        );
        if is_model {
            for (column, name) in [
                ("provider", "gen_ai.system"),
                ("operation", "gen_ai.operation.name"),
                ("model_id", "gen_ai.request.model"),
                ("response_model", "gen_ai.response.model"),
                ("input_tokens", "gen_ai.usage.input_tokens"),
                ("output_tokens", "gen_ai.usage.output_tokens"),
            ] {
                d.set_json(column, get(name));
            }
            let tokens = |name: &str| get(name).and_then(int).unwrap_or(0);
            let model = get("gen_ai.request.model").and_then(Value::as_str).unwrap_or_default();
            d.set("cost_microdollars", price::micro_dollars(model, tokens("gen_ai.usage.input_tokens"), tokens("gen_ai.usage.output_tokens"), 0, 0));
        } else {
            for (column, name) in [("method", "mcp.method.name"), ("server", "mcp.target"), ("tool", "gen_ai.tool.name"), ("client_name", "mcp.client.name")] {
                d.set_json(column, get(name));
            }
            for (column, names) in [("method", ["a2a.method"]), ("tool", ["mcp.resource.uri"])] {
                if d.text(column).is_none() {
                    d.set_json(column, names.iter().find_map(|name| get(name)));
                }
            }
        }
        d.finish(record, out)
    }
}
