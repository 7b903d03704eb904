//! OpenTelemetry spans and logs about models, tools, retrieval and agents, one record each (the envelope is peeled before).
//!
//! Understands the GenAI conventions old and new, the MCP conventions, OpenInference, OpenLLMetry (traceloop) and Langfuse's
//! attributes: what several of them say, the first that is filled says. <https://opentelemetry.io/docs/specs/semconv/gen-ai/>

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::draft::{Draft, all_text, has, identity_of_arn, int, parse, scalar, time};
use super::{Format, Out, Reason, Record, Refusal, price};
use crate::table::{Table, agent_spans, exposure_reports, model_invocations, outbound_calls, retrievals, tool_calls};

pub struct Otlp;

const TABLES: &[&Table] =
    &[&model_invocations::TABLE, &retrievals::TABLE, &tool_calls::TABLE, &outbound_calls::TABLE, &agent_spans::TABLE, &exposure_reports::TABLE];

impl Format for Otlp {
    fn name(&self) -> &str {
        "otlp"
    }

    fn doc(&self) -> &str {
        "OpenTelemetry spans and logs, protobuf or JSON, as the Collector's Kafka exporter writes them (GenAI, MCP, OpenInference, OpenLLMetry, Langfuse)"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        (text.starts_with("{\"resource\"") || text.starts_with("{\"scope\"")) && (has(text, &["\"span\""]) || has(text, &["\"logRecord\""]))
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let value = parse(record)?;
        let mut attributes = Attributes::default();
        attributes.add(value.pointer("/resource/attributes"));
        let (item, is_log) = match (value.get("span"), value.get("logRecord")) {
            (Some(span), _) => (span, false),
            (_, Some(log)) => (log, true),
            _ => return Err(Refusal::new(Reason::MissingField, "neither a span nor a log record")),
        };
        attributes.add(item.get("attributes"));
        for event in item.get("events").and_then(Value::as_array).into_iter().flatten() {
            // Older instrumentations put the content into span events.
            attributes.add(event.get("attributes"));
        }
        if is_log {
            attributes.add_body(item.get("body"));
        }
        let Some(what) = What::of(&attributes, item, is_log) else {
            return Err(Refusal::new(Reason::OtherEvent, "a log record that is not about a model, a tool, a retrieval or an agent"));
        };
        let mut draft = Draft::new(what.table());
        let started = nanos(item, "startTimeUnixNano").or_else(|| nanos(item, "timeUnixNano")).or_else(|| nanos(item, "observedTimeUnixNano"));
        let ended = nanos(item, "endTimeUnixNano");
        draft.event_time = if what == What::Step { ended.or(started) } else { started.or(ended) };
        let id = |name: &str| item.get(name).and_then(Value::as_str).filter(|id| !id.is_empty() && id.bytes().any(|b| b != b'0'));
        let (trace, span) = (id("traceId"), id("spanId"));
        draft.event_id = match (trace, span) {
            (Some(trace), Some(span)) if !is_log => Some(format!("{trace}:{span}")),
            _ => None,
        };
        draft.set("trace_id", trace.or_else(|| attributes.text(&["langfuse.trace.id"]))).set("span_id", span).set("parent_span_id", id("parentSpanId"));
        if let (Some(started), Some(ended)) = (started, ended) {
            draft.set("duration_micros", Some(ended.saturating_sub(started).max(0)));
        }
        attributes.who(&mut draft);
        let failed = item.pointer("/status/code").and_then(int) == Some(2);
        let status = attributes.int(&["http.response.status_code", "http.status_code"]);
        let error = attributes.text(&["error.type", "exception.type", "mcp.error.code", "rpc.jsonrpc.error_code"]);
        draft.set("outcome", Some(outcome(error, status, failed || attributes.flag("mcp.tool.result.is_error"))));
        match what {
            What::Model => attributes.model(&mut draft, error),
            What::Retrieval => attributes.retrieval(&mut draft, error),
            What::Tool => attributes.tool(&mut draft, error, item),
            What::Outbound => attributes.outbound(&mut draft, status),
            What::Step => {
                draft.set("started_at", started.map(super::draft::Cell::Time));
                attributes.step(&mut draft, item);
            }
        }
        draft.finish(record, out)
    }
}

/// What a span is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Model,
    Retrieval,
    Tool,
    Outbound,
    /// An agent, workflow or task; and every other span, for the chain of parents goes through them.
    Step,
}

const VECTOR_STORES: [&str; 10] =
    ["pinecone", "qdrant", "weaviate", "milvus", "chroma", "chromadb", "opensearch", "elasticsearch", "pgvector", "aws.opensearch"];

impl What {
    fn of(a: &Attributes, item: &Value, is_log: bool) -> Option<Self> {
        let operation = a.text(&["gen_ai.operation.name"]).unwrap_or_default();
        let kind = a.text(&["openinference.span.kind", "traceloop.span.kind", "langfuse.observation.type"]).unwrap_or_default().to_ascii_lowercase();
        let method = a.text(&["mcp.method.name"]).unwrap_or_default();
        Some(match (operation, kind.as_str()) {
            ("execute_tool", _) | (_, "tool") => What::Tool,
            ("retrieval", _) | (_, "retriever" | "reranker") => What::Retrieval,
            ("invoke_agent" | "invoke_workflow" | "create_agent" | "plan", _) | (_, "agent" | "workflow" | "task" | "chain") => What::Step,
            ("chat" | "generate_content" | "text_completion" | "embeddings", _) | (_, "llm" | "embedding" | "generation") => What::Model,
            _ if method.starts_with("tools/") => What::Tool,
            // Some frameworks name the tool and no operation.
            _ if a.has(&["gen_ai.tool.name", "tool.name"]) => What::Tool,
            _ if a.has(&["gen_ai.request.model", "gen_ai.response.model", "llm.request.type", "llm.model_name"]) => What::Model,
            _ if a.has(&["gen_ai.data_source.id", "retrieval.documents.0.document.id"]) => What::Retrieval,
            _ if a.text(&["db.system.name", "db.system"]).is_some_and(|store| VECTOR_STORES.contains(&store)) => What::Retrieval,
            _ if a.has(&["gen_ai.agent.id", "gen_ai.agent.name"]) => What::Step,
            _ if is_log => return None,
            _ if is_client(item) && a.has(&["http.request.method", "http.method", "url.full", "http.url"]) => What::Outbound,
            _ => What::Step,
        })
    }

    fn table(self) -> &'static Table {
        match self {
            What::Model => &model_invocations::TABLE,
            What::Retrieval => &retrievals::TABLE,
            What::Tool => &tool_calls::TABLE,
            What::Outbound => &outbound_calls::TABLE,
            What::Step => &agent_spans::TABLE,
        }
    }
}

fn is_client(item: &Value) -> bool {
    item.get("kind").is_some_and(|kind| int(kind) == Some(3) || kind.as_str() == Some("SPAN_KIND_CLIENT"))
}

fn nanos(item: &Value, name: &str) -> Option<i64> {
    item.get(name).and_then(time)
}

/// One of our words for how a call ended.
pub fn outcome(error: Option<&str>, status: Option<i64>, failed: bool) -> &'static str {
    match status {
        Some(401 | 403 | 407) => return "denied",
        Some(429) => return "throttled",
        Some(400 | 404 | 405 | 409 | 410 | 413 | 415 | 422) => return "invalid",
        Some(500..) => return "other",
        _ => {}
    }
    match error {
        Some(error) => {
            let lower = error.to_ascii_lowercase();
            let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
            if has(&["denied", "unauthor", "forbidden", "permission", "401", "403", "expiredtoken", "authentication"]) {
                "denied"
            } else if has(&["throttl", "ratelimit", "rate_limit", "rate limit", "429", "quota", "toomany"]) {
                "throttled"
            } else if has(&["validation", "invalid", "notfound", "not_found", "400", "404", "-3260", "badrequest", "bad_request", "missing"]) {
                "invalid"
            } else {
                "other"
            }
        }
        None if failed => "other",
        None => "success",
    }
}

/// Attributes of resource, span and events in one; later ones win.
#[derive(Default)]
struct Attributes(BTreeMap<String, Value>);

impl Attributes {
    fn add(&mut self, list: Option<&Value>) {
        for pair in list.and_then(Value::as_array).into_iter().flatten() {
            let (Some(key), Some(value)) = (pair.get("key").and_then(Value::as_str), pair.get("value")) else { continue };
            self.0.insert(key.to_owned(), plain(value, 0));
        }
    }

    /// The body of a log record: a map of attributes, or text.
    fn add_body(&mut self, body: Option<&Value>) {
        let Some(body) = body.map(|body| plain(body, 0)) else { return };
        let parsed = body.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        match parsed.as_ref().unwrap_or(&body) {
            Value::Object(object) => {
                for (key, value) in object {
                    self.0.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            other => {
                self.0.entry("body".into()).or_insert_with(|| other.clone());
            }
        }
    }

    fn has(&self, names: &[&str]) -> bool {
        self.get(names).is_some()
    }

    fn get(&self, names: &[&str]) -> Option<&Value> {
        names.iter().filter_map(|name| self.0.get(*name)).find(|value| !value.is_null() && value.as_str() != Some(""))
    }

    fn text(&self, names: &[&str]) -> Option<&str> {
        names.iter().filter_map(|name| self.0.get(*name)).find_map(|value| value.as_str().filter(|text| !text.is_empty()))
    }

    /// Text, or a number spelt out.
    fn scalar(&self, names: &[&str]) -> Option<String> {
        self.get(names).and_then(scalar).map(Cow::into_owned)
    }

    fn int(&self, names: &[&str]) -> Option<i64> {
        self.get(names).and_then(int)
    }

    fn flag(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value.as_bool() == Some(true) || value.as_str() == Some("true"))
    }

    /// A text that may stand under one name or, flattened, under numbered ones: `gen_ai.prompt.0.content`.
    fn content(&self, names: &[&str], flattened: &[(&str, &str)]) -> String {
        let mut text = String::new();
        if let Some(value) = self.get(names) {
            // Messages come as structures and as JSON text.
            let parsed = value.as_str().filter(|text| text.starts_with(['[', '{'])).and_then(|text| serde_json::from_str::<Value>(text).ok());
            match parsed {
                Some(parsed) => {
                    all_text(&parsed, &mut text);
                    if text.is_empty() {
                        text = parsed.to_string();
                    }
                }
                None => all_text(value, &mut text),
            }
        }
        for (front, back) in flattened {
            for (_, value) in self.0.range((*front).to_owned()..).take_while(|(key, _)| key.starts_with(front)).filter(|(key, _)| key.ends_with(back)) {
                all_text(value, &mut text);
            }
        }
        text
    }

    fn who(&self, draft: &mut Draft<'_>) {
        draft.set("service_name", self.scalar(&["service.name"]));
        draft.set("environment", self.scalar(&["deployment.environment.name", "deployment.environment", "langfuse.environment"]));
        draft.set("agent_id", self.agent());
        draft.set(
            "conversation_id",
            self.scalar(&["gen_ai.conversation.id", "session.id", "langfuse.session.id", "traceloop.association.properties.session_id", "thread.id"]),
        );
        let identity = self.text(&["aws.principal.arn", "aws.iam.role.arn", "workload.identity", "spiffe.id", "gcp.service_account", "src.identity"]);
        draft.set("identity", identity.map(|arn| identity_of_arn(arn).into_owned()));
        for (column, names) in [
            ("user_id", &["user.id", "enduser.id", "langfuse.user.id", "traceloop.association.properties.user_id", "jwt.sub"][..]),
            ("account_id", &["cloud.account.id"]),
            ("source_ip", &["client.address", "source.address", "src.addr"]),
            ("request_id", &["aws.request_id", "aws.requestId", "rpc.aws.request_id"]),
            ("credential", &["aws.access_key_id", "credential.id"]),
            ("tenant", &["tenant.id", "app.tenant.id", "traceloop.association.properties.tenant_id"]),
        ] {
            if draft.table.column(column).is_some() {
                draft.set(column, self.scalar(names));
            }
        }
    }

    fn agent(&self) -> Option<String> {
        self.scalar(&["gen_ai.agent.id", "gen_ai.agent.name", "agent.id", "agent.name", "graph.node.id", "langgraph.node"])
    }

    fn model(&self, draft: &mut Draft<'_>, error: Option<&str>) {
        let model = self.scalar(&["gen_ai.request.model", "llm.model_name", "llm.request.model", "embedding.model_name", "langfuse.observation.model.name"]);
        let answered = self.scalar(&["gen_ai.response.model", "llm.response.model"]);
        let input = self.int(&["gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens", "llm.token_count.prompt"]);
        let output = self.int(&["gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens", "llm.token_count.completion"]);
        let read = self.int(&["gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens"]);
        let written = self.int(&["gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_creation_input_tokens"]);
        let priced = answered.as_deref().or(model.as_deref());
        let known = input.is_some() || output.is_some();
        let cost = priced
            .filter(|_| known)
            .and_then(|model| price::micro_dollars(model, input.unwrap_or(0), output.unwrap_or(0), read.unwrap_or(0), written.unwrap_or(0)));
        draft.set("cost_microdollars", cost);
        draft.set("provider", self.scalar(&["gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system"]));
        draft.set("operation", self.scalar(&["gen_ai.operation.name", "llm.request.type"]));
        draft.set("model_id", model).set("response_model", answered);
        draft.set("region", self.scalar(&["cloud.region", "aws.region"]));
        draft.set("input_tokens", input).set("output_tokens", output).set("cache_read_tokens", read).set("cache_write_tokens", written);
        draft.set("max_tokens", self.int(&["gen_ai.request.max_tokens", "llm.request.max_tokens"]));
        draft.set("error_code", error.map(str::to_owned));
        draft.set("streamed", self.has(&["gen_ai.is_streaming", "llm.is_streaming", "gen_ai.request.stream"]).then_some(true));
        let reasons = self.get(&["gen_ai.response.finish_reasons", "llm.response.finish_reason", "gen_ai.response.finish_reason"]);
        let reason = reasons.and_then(|reasons| reasons.as_array().map_or_else(|| scalar(reasons), |list| list.first().and_then(scalar)));
        draft.set("stop_reason", reason.as_deref().map(str::to_owned));
        if reason.is_some_and(|reason| matches!(&*reason, "content_filter" | "guardrail_intervened" | "SAFETY")) {
            draft.set("guardrail", Some("intervened"));
        }
        let prompt = self.content(
            &["gen_ai.input.messages", "gen_ai.prompt", "llm.prompts", "input.value", "langfuse.observation.input", "gen_ai.user.message"],
            &[("gen_ai.prompt.", ".content"), ("llm.input_messages.", "message.content")],
        );
        let answer = self.content(
            &["gen_ai.output.messages", "gen_ai.completion", "output.value", "langfuse.observation.output"],
            &[("gen_ai.completion.", ".content"), ("llm.output_messages.", "message.content")],
        );
        let system = self.content(&["gen_ai.system_instructions", "llm.system_prompt"], &[]);
        draft.model_texts(&prompt, &answer, &system);
    }

    fn retrieval(&self, draft: &mut Draft<'_>, error: Option<&str>) {
        draft.set("store", self.scalar(&["db.system.name", "db.system", "gen_ai.provider.name", "retriever.type"]));
        draft.set(
            "data_source",
            self.scalar(&[
                "gen_ai.data_source.id",
                "db.collection.name",
                "db.vector.index",
                "retriever.index",
                "db.namespace",
                "aws.bedrock.knowledge_base.id",
            ]),
        );
        draft.set("operation", self.scalar(&["db.operation.name", "gen_ai.operation.name"]));
        draft.set("error_code", error.map(str::to_owned));
        let query = self.content(&["gen_ai.retrieval.query.text", "input.value", "db.query.text"], &[]);
        let query = draft.read("prompt", &query);
        let mut secrets = query.secrets;
        if query.hash.is_some() {
            draft.set("query_chars", Some(query.chars)).set("query_hash", query.hash);
        }
        let mut ids: Vec<String> = Vec::new();
        if let Some(Value::Array(documents)) = self.get(&["gen_ai.retrieval.documents"]).map(embedded).as_deref() {
            ids.extend(documents.iter().filter_map(|document| scalar(document.get("id")?).map(Cow::into_owned)));
        }
        for number in 0..1000 {
            let front = format!("retrieval.documents.{number}.document.");
            let id = self.scalar(&[&format!("{front}id")]);
            let content = self.text(&[&format!("{front}content")]);
            if id.is_none() && content.is_none() {
                break;
            }
            ids.push(id.unwrap_or_else(|| format!("#{number}")));
            if let Some(content) = content {
                secrets += draft.read("document", content).secrets;
            }
        }
        let found = self.content(&["output.value"], &[]);
        secrets += draft.read("document", &found).secrets;
        let count = self.int(&["gen_ai.retrieval.documents.count", "db.response.returned_rows", "retrieval.documents.count"]);
        draft.set("documents", count.or_else(|| (!ids.is_empty()).then_some(ids.len() as i64)));
        draft.set("bytes", self.int(&["gen_ai.retrieval.bytes", "db.response.bytes", "http.response.body.size"]));
        draft.set("secrets", Some(secrets));
        if !ids.is_empty() {
            ids.truncate(50);
            draft.set("document_ids", Some(Value::from(ids).to_string()));
        }
    }

    fn tool(&self, draft: &mut Draft<'_>, error: Option<&str>, item: &Value) {
        let from_name = || {
            item.get("name")
                .and_then(Value::as_str)
                .and_then(|name| name.strip_prefix("execute_tool ").or_else(|| name.strip_prefix("tools/call ")))
                .map(str::to_owned)
        };
        draft.set("tool", self.scalar(&["gen_ai.tool.name", "tool.name", "traceloop.entity.name", "langfuse.observation.name"]).or_else(from_name));
        draft.set("method", Some(self.text(&["mcp.method.name"]).unwrap_or("tools/call").to_owned()));
        draft.set("server", self.scalar(&["mcp.server.name", "mcp.target", "server.address", "gen_ai.tool.server"]));
        draft.set("call_id", self.scalar(&["gen_ai.tool.call.id", "tool_call.id", "jsonrpc.request.id", "mcp.request.id"]));
        draft.set("client_name", self.scalar(&["mcp.client.name", "client.name"]));
        draft.set("error_code", error.map(str::to_owned));
        if let Some(arguments) =
            self.get(&["gen_ai.tool.call.arguments", "tool.parameters", "traceloop.entity.input", "input.value", "langfuse.observation.input"])
        {
            draft.arguments(arguments);
        }
        let result = self.content(&["gen_ai.tool.call.result", "traceloop.entity.output", "output.value", "langfuse.observation.output"], &[]);
        draft.result(&result);
    }

    fn outbound(&self, draft: &mut Draft<'_>, status: Option<i64>) {
        let url = self.text(&["url.full", "http.url"]).and_then(|url| url::Url::parse(url).ok());
        let host = self.scalar(&["server.address", "net.peer.name", "http.host"]).or_else(|| Some(url.as_ref()?.host_str()?.to_owned()));
        draft.set("host", host.map(|host| host.to_ascii_lowercase()));
        draft.set("port", self.int(&["server.port", "net.peer.port"]).or_else(|| url.as_ref()?.port_or_known_default().map(i64::from)));
        draft.set("method", self.scalar(&["http.request.method", "http.method"]));
        draft.set(
            "path",
            self.scalar(&["url.path", "http.target"])
                .or_else(|| Some(url.as_ref()?.path().to_owned()))
                .map(|path| path.split('?').next().unwrap_or_default().to_owned()),
        );
        draft.set("status", status);
        draft.set("bytes_out", self.int(&["http.request.body.size", "http.request.size", "http.request_content_length"]));
        draft.set("bytes_in", self.int(&["http.response.body.size", "http.response.size", "http.response_content_length"]));
        draft.set("user_agent", self.scalar(&["user_agent.original", "http.user_agent"]));
    }

    fn step(&self, draft: &mut Draft<'_>, item: &Value) {
        let operation = self.text(&["gen_ai.operation.name"]).unwrap_or_default();
        let kind = self.text(&["openinference.span.kind", "traceloop.span.kind", "langfuse.observation.type"]).unwrap_or_default().to_ascii_lowercase();
        let kind = match (operation, kind.as_str()) {
            ("invoke_agent" | "create_agent", _) | (_, "agent") => "agent",
            ("invoke_workflow", _) | (_, "workflow") => "workflow",
            ("plan", _) | (_, "task") => "task",
            (_, "chain") => "chain",
            _ if self.has(&["gen_ai.agent.id", "gen_ai.agent.name"]) => "agent",
            _ => "other",
        };
        draft.set("kind", Some(kind));
        draft.set("agent_name", self.scalar(&["gen_ai.agent.name", "agent.name"]));
        draft.set("workflow", self.scalar(&["gen_ai.workflow.name", "traceloop.workflow.name", "langgraph.graph"]));
        draft.set("depth", self.int(&["gen_ai.agent.depth", "agent.depth"]));
        // A span is told at its end; whether the work it stands for is over, the span says, or its being the root.
        let root = item.get("parentSpanId").and_then(Value::as_str).is_none_or(str::is_empty);
        let stated = self.text(&["a2a.task.state", "gen_ai.task.status", "task.status"]).map(|state| matches!(state, "completed" | "canceled" | "failed"));
        draft.set("completed", Some(stated.unwrap_or(root && kind != "other")));
    }
}

/// A structure, or the structure that a JSON text holds.
fn embedded(value: &Value) -> Cow<'_, Value> {
    value.as_str().and_then(|text| serde_json::from_str(text).ok()).map_or(Cow::Borrowed(value), Cow::Owned)
}

/// An OTLP attribute value as plain JSON.
fn plain(value: &Value, depth: usize) -> Value {
    let Some(object) = value.as_object().filter(|_| depth < 32) else { return value.clone() };
    let Some((kind, inner)) = object.iter().next() else { return Value::Null };
    match kind.as_str() {
        "stringValue" | "boolValue" | "doubleValue" | "bytesValue" => inner.clone(),
        // A decimal text, by the JSON rules of OTLP.
        "intValue" => int(inner).map_or_else(|| inner.clone(), Value::from),
        "arrayValue" => {
            let values = inner.get("values").and_then(Value::as_array);
            Value::Array(values.into_iter().flatten().map(|value| plain(value, depth + 1)).collect())
        }
        "kvlistValue" => {
            let pairs = inner.get("values").and_then(Value::as_array).into_iter().flatten();
            let pair = |pair: &Value| Some((pair.get("key")?.as_str()?.to_owned(), plain(pair.get("value")?, depth + 1)));
            Value::Object(pairs.filter_map(pair).collect())
        }
        _ => value.clone(),
    }
}
