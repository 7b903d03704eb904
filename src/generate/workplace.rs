//! Ordinary work of several agents, with everything that their logs say of it: spans, model calls, invocation logs, retrievals,
//! tool calls through a proxy, outbound calls.

use std::fmt::Write as _;

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{ACCOUNT, Caller, Generated, MODELS, Writer, access_key_id};
use crate::clock::{MINUTE, Micros, SECOND, rfc3339};

/// Records that one task leaves, on average.
pub const RECORDS_PER_TASK: usize = 11;

/// One agent of this workplace.
pub struct Agent {
    pub name: &'static str,
    pub role: &'static str,
    pub tools: &'static [&'static str],
    pub data_sources: &'static [&'static str],
    pub hosts: &'static [&'static str],
    pub network: &'static str,
    roles: &'static [&'static str],
}

/// The agents of the tasks.
pub const AGENTS: [Agent; 4] = [
    Agent {
        name: "front-desk",
        role: "agent-front-desk",
        tools: &["search_orders", "create_ticket"],
        data_sources: &["KBSUPPORT1", "kb-support"],
        hosts: &["api.partner.example"],
        network: "10.30.1",
        roles: &["agent", "serving"],
    },
    Agent {
        name: "billing",
        role: "agent-billing",
        tools: &["read_invoice", "create_ticket"],
        data_sources: &["kb-billing"],
        hosts: &["api.partner.example"],
        network: "10.30.2",
        roles: &["agent", "serving"],
    },
    Agent {
        name: "research",
        role: "agent-research",
        tools: &["search_orders", "fetch_page"],
        data_sources: &["kb-support", "kb-market"],
        hosts: &["news.partner.example"],
        network: "10.30.3",
        roles: &["agent", "serving"],
    },
    Agent {
        name: "writer",
        role: "agent-writer",
        tools: &["render_report"],
        data_sources: &["kb-market"],
        hosts: &[],
        network: "10.30.4",
        roles: &["agent", "serving"],
    },
];

const RUNTIME: &str = "Boto3/1.40.21 md/Botocore#1.40.21 ua/2.1 os/linux#6.8 lang/python#3.12 app/workplace";

/// The ARN of a role of this account.
pub fn role_arn(role: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{role}")
}

fn list(items: &[&str]) -> String {
    Value::from(items.to_vec()).to_string()
}

/// The inventory of this world.
pub fn agents() -> String {
    let mut page = String::from("# The agents and services of the generated world.\n");
    for agent in &AGENTS {
        let network = format!("{}.0/24", agent.network);
        let _ = write!(
            page,
            "\n[[agents]]\nagent_id = \"{}\"\nidentity = \"{}\"\nowner = \"workplace team\"\nenvironment = \"production\"\nroles = {}\ntools = {}\ndata_sources = {}\nhosts = {}\nnetworks = {}\nuser_agents = [\"Boto3/*\"]\nregions = [\"us-east-1\"]\nservices = [\"bedrock.amazonaws.com\", \"s3.amazonaws.com\", \"kms.amazonaws.com\", \"sts.amazonaws.com\"]\nmax_token_age_seconds = \"60m\"\n",
            agent.name,
            role_arn(agent.role),
            list(agent.roles),
            list(agent.tools),
            list(agent.data_sources),
            list(agent.hosts),
            list(&[&network])
        );
    }
    for (name, role, roles, region) in [
        ("support", "support-agent", &["agent", "serving"][..], "us-east-1"),
        ("indexer", "rag-indexer", &["batch", "serving"], "us-east-1"),
        ("reports", "report-writer", &["serving"], "eu-west-1"),
        ("nightly", "nightly-batch", &["batch"], "us-east-1"),
        ("deploy", "deploy-pipeline", &["pipeline"], "us-east-1"),
        ("platform", "PlatformAdmin", &["human"], "us-east-1"),
    ] {
        let _ = write!(
            page,
            "\n[[agents]]\nagent_id = \"{name}\"\nidentity = \"{}\"\nowner = \"platform team\"\nroles = {}\nregions = [\"{region}\"]\n",
            role_arn(role),
            list(roles)
        );
        if role == "nightly-batch" {
            page.push_str("data_sources = [\"kb-market\", \"acme-support-corpus\"]\nnetworks = [\"10.40.0.0/24\"]\nuser_agents = [\"Boto3/*\"]\nmax_token_age_seconds = \"12h\"\n");
        }
    }
    page
}

/// The approvals of this world.
pub fn approvals() -> String {
    let entry = |approval: &str, role: &str, sources: &[&str], from: &str, to: &str| {
        format!(
            "[[approvals]]\napproval = \"{approval}\"\nidentity = \"{}\"\ndata_sources = {}\napprover = \"rosa\"\nreason = \"nightly index\"\nvalid_from = \"{from}\"\nvalid_to = \"{to}\"\n\n",
            role_arn(role),
            list(sources)
        )
    };
    let mut page = String::from("# Work approved in advance in the generated world.\n\n");
    page.push_str(&entry("OPS-11", "rag-indexer", &["acme-support-corpus", "KBSUPPORT1"], "2026-01-01", "2027-01-01"));
    page.push_str(&entry("OPS-12", "nightly-batch", &["kb-market"], "2026-01-01", "2027-01-01"));
    page
}

/// A caller with a session of this agent.
pub fn caller(agent: &Agent, rng: &mut StdRng) -> Caller {
    Caller {
        access_key_id: access_key_id("ASIA", ACCOUNT, rng),
        user: None,
        role: Some((agent.role, "task")),
        ip: format!("{}.{}", agent.network, rng.random_range(2..250)),
        agent: RUNTIME,
        region: "us-east-1",
    }
}

/// One trace in the making: a span at a time, sent as one request.
pub struct Trace {
    pub id: String,
    pub root: String,
    service: String,
    spans: Vec<Value>,
}

fn attributes(of: &Value) -> Value {
    let pair = |(key, value): (&String, &Value)| {
        let value = match value {
            Value::Number(number) => json!({"intValue": number.to_string()}),
            Value::Bool(flag) => json!({"boolValue": flag}),
            Value::Array(items) => json!({"arrayValue": {"values": items.iter().map(|item| json!({"stringValue": item})).collect::<Vec<_>>()}}),
            other => json!({"stringValue": other.as_str().unwrap_or_default()}),
        };
        json!({"key": key, "value": value})
    };
    Value::Array(of.as_object().into_iter().flatten().map(pair).collect())
}

impl Trace {
    pub fn new(service: &str, rng: &mut StdRng) -> Self {
        Self { id: format!("{:032x}", rng.random::<u128>()), root: format!("{:016x}", rng.random::<u64>()), service: service.to_owned(), spans: Vec::new() }
    }

    /// Adds a span below `parent`, with its start and length; gives its id.
    pub fn span(&mut self, parent: &str, name: &str, kind: i64, took: (Micros, Micros), of: Value, rng: &mut StdRng) -> String {
        let id = format!("{:016x}", rng.random::<u64>());
        self.push(&id, parent, name, kind, took, &of);
        id
    }

    fn push(&mut self, id: &str, parent: &str, name: &str, kind: i64, (at, length): (Micros, Micros), of: &Value) {
        self.spans.push(json!({"traceId": self.id, "spanId": id, "parentSpanId": parent, "name": name, "kind": kind,
            "startTimeUnixNano": (at * 1000).to_string(), "endTimeUnixNano": ((at + length) * 1000).to_string(), "attributes": attributes(of), "status": {}}));
    }

    /// Ends the trace with its root span, and writes it.
    pub fn finish(mut self, w: &mut Writer, agent: &str, at: Micros, length: Micros, of: Value) {
        let mut all = json!({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.id": agent, "gen_ai.agent.name": agent});
        if let (Some(all), Some(of)) = (all.as_object_mut(), of.as_object()) {
            all.extend(of.clone());
        }
        let root = self.root.clone();
        self.push(&root, "", &format!("invoke_agent {agent}"), 1, (at, length), &all);
        self.write(w, at + length);
    }

    /// Writes what there is, without a root.
    pub fn write(self, w: &mut Writer, at: Micros) {
        let delay = Micros::from(w.rng.random_range(1..8)) * SECOND;
        let request = json!({"resourceSpans": [{"resource": {"attributes": attributes(&json!({"service.name": self.service, "deployment.environment.name": "production", "cloud.account.id": ACCOUNT}))},
            "scopeSpans": [{"scope": {"name": "workplace"}, "spans": self.spans}]}]});
        w.world.spans.push(Generated { event_time: at, append_time: at + delay, text: request.to_string() });
    }
}

/// A model call with its three records: CloudTrail, invocation log, span.
pub fn model_call(w: &mut Writer, trace: &mut Trace, parent: &str, agent: &Agent, who: &Caller, at: Micros, prompt: &str) {
    let (input, output) = (w.rng.random_range(300..3000), w.rng.random_range(40..700));
    let model = MODELS[w.rng.random_range(0..2)];
    let request_id = w.id();
    w.call(
        at,
        who,
        "bedrock.amazonaws.com",
        "Converse",
        json!({"requestID": request_id, "requestParameters": {"modelId": model},
        "additionalEventData": {"inferenceRegion": who.region, "inputTokens": input, "outputTokens": output}}),
    );
    let session = who.role.map_or_else(String::new, |(role, session)| format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}"));
    let log = json!({"schemaType": "ModelInvocationLog", "schemaVersion": "1.0", "timestamp": rfc3339(at / SECOND * SECOND), "accountId": ACCOUNT, "identity": {"arn": session},
        "region": who.region, "requestId": request_id, "operation": "Converse", "modelId": model, "requestMetadata": {"agent": agent.name, "environment": "production"},
        "input": {"inputBodyJson": {"messages": [{"role": "user", "content": [{"text": prompt}]}], "inferenceConfig": {"maxTokens": 1024}}, "inputTokenCount": input},
        "output": {"outputBodyJson": {"output": {"message": {"role": "assistant", "content": [{"text": "Here is what I found."}]}}, "stopReason": "end_turn"}, "outputTokenCount": output}});
    let delay = Micros::from(w.rng.random_range(5..60)) * SECOND;
    w.world.invocations.push(Generated { event_time: at, append_time: at + delay, text: log.to_string() });
    let of = json!({"gen_ai.operation.name": "chat", "gen_ai.provider.name": "aws.bedrock", "gen_ai.request.model": model, "gen_ai.agent.id": agent.name, "aws.request_id": request_id,
        "gen_ai.usage.input_tokens": input, "gen_ai.usage.output_tokens": output, "gen_ai.response.finish_reasons": ["end_turn"]});
    trace.span(parent, "chat", 3, (at, 2 * SECOND), of, &mut w.rng);
}

/// A tool call as the proxy before the tool server logs it.
pub fn tool_call(w: &mut Writer, trace: &Trace, agent: &str, tool: &str, at: Micros, arguments: Value, result: &str) {
    let id = w.rng.random_range(1..100_000);
    let record = json!({"timestamp": rfc3339(at), "server": "workplace-tools", "agent_id": agent, "client_ip": "10.30.0.9", "environment": "production", "trace_id": trace.id,
        "headers": {"Mcp-Method": "tools/call", "Mcp-Name": tool}, "request": {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}},
        "response": {"jsonrpc": "2.0", "id": id, "result": {"resultType": "complete", "content": [{"type": "text", "text": result}], "isError": false}}});
    let delay = Micros::from(w.rng.random_range(200..2000)) * 1000;
    w.world.mcp.push(Generated { event_time: at, append_time: at + delay, text: record.to_string() });
}

/// A retrieval span.
pub fn retrieval(w: &mut Writer, trace: &mut Trace, parent: &str, agent: &str, source: &str, at: Micros, more: Value) {
    let documents: Vec<Value> = (0..w.rng.random_range(1..8)).map(|_| json!({"id": format!("doc-{}", w.rng.random_range(0..5000)), "score": 0.5})).collect();
    let mut of = json!({"gen_ai.operation.name": "retrieval", "gen_ai.data_source.id": source, "gen_ai.agent.id": agent, "gen_ai.retrieval.documents": Value::from(documents).to_string()});
    if let (Some(of), Some(more)) = (of.as_object_mut(), more.as_object()) {
        of.extend(more.clone());
    }
    trace.span(parent, &format!("retrieval {source}"), 3, (at, SECOND / 2), of, &mut w.rng);
}

/// An outbound call.
pub fn outbound(w: &mut Writer, trace: &mut Trace, parent: &str, agent: &str, host: &str, bytes: i64, at: Micros) {
    let of = json!({"http.request.method": "POST", "url.full": format!("https://{host}/v1/messages"), "http.response.status_code": 200, "http.request.body.size": bytes, "agent.id": agent});
    trace.span(parent, "POST", 3, (at, SECOND / 4), of, &mut w.rng);
}

const QUESTIONS: [&str; 5] = [
    "Where is my order?",
    "Please send me the invoice of last month.",
    "What changed in the market this week?",
    "Summarise the tickets of today.",
    "Is the item back in stock?",
];

/// So many tasks, spread over the length.
pub fn work(w: &mut Writer, start: Micros, length: Micros, tasks: usize) {
    // Sessions live for under an hour.
    let mut sessions: Vec<(Micros, Caller)> = AGENTS.iter().map(|agent| (start, caller(agent, &mut w.rng))).collect();
    let mut times: Vec<Micros> = (0..tasks).map(|_| start + (w.rng.random::<f64>() * length as f64) as Micros).collect();
    times.sort_unstable();
    for at in times {
        let number = w.rng.random_range(0..AGENTS.len());
        let agent = &AGENTS[number];
        if at - sessions[number].0 > 50 * MINUTE {
            sessions[number] = (at, caller(agent, &mut w.rng));
        }
        let who = sessions[number].1.clone();
        let mut trace = Trace::new(agent.name, &mut w.rng);
        let root = trace.root.clone();
        let tenant = ["acme", "globex", "initech"][w.rng.random_range(0..3)];
        let mut now = at;
        for _ in 0..w.rng.random_range(1..4) {
            now += Micros::from(w.rng.random_range(1..4)) * SECOND;
            let question = QUESTIONS[w.rng.random_range(0..QUESTIONS.len())];
            model_call(w, &mut trace, &root, agent, &who, now, question);
        }
        for _ in 0..w.rng.random_range(0..3) {
            now += SECOND;
            let source = agent.data_sources[w.rng.random_range(0..agent.data_sources.len())];
            retrieval(w, &mut trace, &root, agent.name, source, now, json!({"tenant.id": tenant}));
        }
        for _ in 0..w.rng.random_range(0..3) {
            now += SECOND;
            let tool = agent.tools[w.rng.random_range(0..agent.tools.len())];
            let order = w.rng.random_range(1000..9999);
            tool_call(w, &trace, agent.name, tool, now, json!({"order": order}), "done");
        }
        if !agent.hosts.is_empty() && w.rng.random_bool(0.3) {
            now += SECOND;
            let bytes = w.rng.random_range(200..30_000);
            outbound(w, &mut trace, &root, agent.name, agent.hosts[0], bytes, now);
        }
        let user = format!("customer-{}", w.rng.random_range(1..400));
        trace.finish(w, agent.name, at, now - at + SECOND, json!({"gen_ai.conversation.id": format!("c-{user}"), "user.id": user, "tenant.id": tenant}));
    }
}
