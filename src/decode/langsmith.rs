//! LangSmith runs, as its bulk export or API gives them. `dotted_order` holds the path of all ancestors.

use serde_json::Value;

use super::draft::{Draft, all_text, first, has, int, parse, time};
use super::{Format, Out, Reason, Record, Refusal, price};
use crate::table::{Table, agent_spans, exposure_reports, model_invocations, retrievals, tool_calls};

pub struct LangSmith;

const TABLES: &[&Table] = &[&agent_spans::TABLE, &model_invocations::TABLE, &retrievals::TABLE, &tool_calls::TABLE, &exposure_reports::TABLE];

impl Format for LangSmith {
    fn name(&self) -> &str {
        "langsmith"
    }

    fn doc(&self) -> &str {
        "LangSmith runs"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"run_type\"", "\"dotted_order\""])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let Some(kind) = v.get("run_type").and_then(Value::as_str) else {
            return Err(Refusal::new(Reason::MissingField, "no run_type: not a run"));
        };
        let table: &'static Table = match kind {
            "llm" | "embedding" => &model_invocations::TABLE,
            "retriever" => &retrievals::TABLE,
            "tool" => &tool_calls::TABLE,
            _ => &agent_spans::TABLE,
        };
        let mut d = Draft::new(table);
        let (started, ended) = (v.get("start_time").and_then(time), v.get("end_time").and_then(time));
        let is_step = std::ptr::eq(table, &agent_spans::TABLE);
        d.event_time = if is_step { ended.or(started) } else { started };
        d.event_id = v.get("id").and_then(Value::as_str).map(|id| format!("langsmith:{id}{}", if ended.is_none() { ":begun" } else { "" }));
        d.set_json("trace_id", v.get("trace_id")).set_json("span_id", v.get("id")).set_json("parent_span_id", v.get("parent_run_id"));
        d.set_json("conversation_id", first(&v, &["/extra/metadata/thread_id", "/extra/metadata/session_id", "/extra/metadata/conversation_id"]));
        d.set_json("agent_id", first(&v, &["/extra/metadata/agent_id", "/extra/metadata/langgraph_node", "/extra/metadata/agent"]));
        d.set_json("user_id", first(&v, &["/extra/metadata/user_id"]))
            .set_json("environment", first(&v, &["/extra/metadata/environment", "/extra/metadata/env"]));
        d.set_json("service_name", first(&v, &["/session_name", "/extra/metadata/service"])).set_json("identity", first(&v, &["/extra/metadata/identity"]));
        d.set("duration_micros", started.zip(ended).map(|(started, ended)| ended.saturating_sub(started).max(0)));
        let error = v.get("error").and_then(Value::as_str).filter(|error| !error.is_empty());
        d.set("outcome", Some(if error.is_some() { "other" } else { "success" }));
        let text = |path: &str| {
            let mut text = String::new();
            if let Some(value) = v.get(path) {
                all_text(value, &mut text);
                if text.is_empty() && value.as_object().is_some_and(|object| !object.is_empty()) {
                    text = value.to_string();
                }
            }
            text
        };
        match kind {
            "llm" | "embedding" => {
                let model = first(&v, &["/extra/metadata/ls_model_name", "/extra/invocation_params/model", "/extra/invocation_params/model_name"]);
                let tokens = |names: &[&str]| first(&v, names).and_then(int);
                let (input, output) = (
                    tokens(&["/prompt_tokens", "/outputs/usage_metadata/input_tokens"]),
                    tokens(&["/completion_tokens", "/outputs/usage_metadata/output_tokens"]),
                );
                d.set_json("provider", v.pointer("/extra/metadata/ls_provider")).set("operation", Some(if kind == "llm" { "chat" } else { "embeddings" }));
                d.set_json("model_id", model).set("input_tokens", input).set("output_tokens", output);
                if input.is_some() || output.is_some() {
                    let cost = model.and_then(Value::as_str).and_then(|model| price::micro_dollars(model, input.unwrap_or(0), output.unwrap_or(0), 0, 0));
                    d.set("cost_microdollars", cost);
                }
                let (prompt, answer) = (d.read("prompt", &text("inputs")), d.read("output", &text("outputs")));
                d.set("prompt_chars", Some(prompt.chars)).set("prompt_secrets", Some(prompt.secrets)).set("prompt_hash", prompt.hash);
                d.set("output_chars", Some(answer.chars)).set("output_secrets", Some(answer.secrets));
            }
            "retriever" => {
                d.set_json("data_source", first(&v, &["/extra/metadata/data_source", "/extra/metadata/ls_vector_store_provider", "/name"]));
                d.set_json("store", v.pointer("/extra/metadata/ls_vector_store_provider"));
                let (query, found) = (d.read("prompt", &text("inputs")), d.read("document", &document_text(&v)));
                d.set("query_chars", Some(query.chars)).set("query_hash", query.hash).set("secrets", Some(query.secrets + found.secrets));
                d.set("documents", v.pointer("/outputs/documents").and_then(Value::as_array).map(|documents| documents.len() as i64));
            }
            "tool" => {
                d.set("method", Some("tools/call")).set_json("tool", v.get("name"));
                if let Some(inputs) = v.get("inputs") {
                    d.arguments(inputs.get("input").filter(|_| inputs.as_object().is_some_and(|object| object.len() == 1)).unwrap_or(inputs));
                }
                let result = d.read("result", &text("outputs"));
                d.set("result_chars", Some(result.chars)).set("result_secrets", Some(result.secrets));
            }
            _ => {
                let depth = v.get("dotted_order").and_then(Value::as_str).map(|path| path.matches('.').count() as i64);
                d.set("kind", Some(if v.pointer("/extra/metadata/agent_id").is_some() { "agent" } else { "chain" })).set_json("agent_name", v.get("name"));
                d.set("depth", depth).set("started_at", started.map(super::draft::Cell::Time));
                d.set("completed", Some(ended.is_some() && v.get("parent_run_id").is_none_or(Value::is_null)));
            }
        }
        d.finish(record, out)
    }
}

fn document_text(v: &Value) -> String {
    let mut text = String::new();
    for document in v.pointer("/outputs/documents").and_then(Value::as_array).into_iter().flatten() {
        document.get("page_content").iter().for_each(|value| all_text(value, &mut text));
    }
    text
}
