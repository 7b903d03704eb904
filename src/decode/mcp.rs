//! Model Context Protocol messages, JSON-RPC 2.0, as a proxy or server logs them: bare, or wrapped with time, headers and token claims.
//!
//! The tool is what the body names; a header that names another one is kept beside it. A call of several round trips counts
//! once: the retry that carries `inputResponses` is left out. <https://modelcontextprotocol.io/specification/>

use serde_json::Value;

use super::content::short_hash;
use super::draft::{Draft, all_text, first, has, parse, scalar, time};
use super::otlp::outcome;
use super::{Format, Out, Reason, Record, Refusal, hashed_id};
use crate::table::{Table, exposure_reports, tool_calls};

pub struct Mcp;

const TABLES: &[&Table] = &[&tool_calls::TABLE, &exposure_reports::TABLE];

impl Format for Mcp {
    fn name(&self) -> &str {
        "mcp"
    }

    fn doc(&self) -> &str {
        "Model Context Protocol messages (JSON-RPC), bare or wrapped by a proxy with time, headers, claims and agent"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"jsonrpc\""]) && !has(text, &["\"eventVersion\""])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        // Wrapped: request and response of one exchange in one record, or one message.
        let request = first(&v, &["/request", "/message", "/body", "/mcp"]).filter(|inner| inner.get("jsonrpc").is_some()).unwrap_or(&v);
        let response = v.get("response").filter(|inner| inner.is_object()).or_else(|| request.get("result").or(request.get("error")).map(|_| request));
        if request.get("jsonrpc").is_none() {
            return Err(Refusal::new(Reason::MissingField, "no jsonrpc member: not a JSON-RPC message"));
        }
        let method = request.get("method").and_then(Value::as_str);
        let listed = response.and_then(|response| response.pointer("/result/tools")).and_then(Value::as_array);
        if let Some(tools) = listed {
            for tool in tools {
                let mut d = self.common(&v, request, record);
                d.event_id = Some(format!("{}:{}", d.event_id.take().unwrap_or_else(|| hashed_id(record.text)), tool["name"].as_str().unwrap_or_default()));
                d.set("method", Some("tools/list")).set_json("tool", tool.get("name")).set("outcome", Some("success"));
                let definition =
                    [tool.get("name"), tool.get("description"), tool.get("inputSchema")].map(|part| part.map(Value::to_string).unwrap_or_default());
                let definition = short_hash(&definition.join("\n"));
                // One list may name a tool twice: that is how one is shadowed.
                d.event_id = d.event_id.take().map(|id| format!("{id}:{definition:.8}"));
                d.set("definition_hash", Some(definition));
                let mut text = String::new();
                tool.get("description").iter().for_each(|value| all_text(value, &mut text));
                d.read("result", &text);
                d.finish(record, out)?;
            }
            return if tools.is_empty() { Err(Refusal::new(Reason::OtherEvent, "a list of no tools")) } else { Ok(()) };
        }
        let params = request.get("params").unwrap_or(&Value::Null);
        // A further round trip of a call that is already counted: kept and read, under a method of its own.
        let continues = params.get("inputResponses").is_some_and(|answers| answers.is_object() || answers.is_array());
        if response.is_some_and(|response| response.pointer("/result/resultType").and_then(Value::as_str) == Some("input_required")) && method.is_none() {
            return Err(Refusal::new(Reason::OtherEvent, "a server's question in the middle of a call"));
        }
        let error = response.and_then(|response| response.get("error"));
        if method.is_none() && error.is_none() {
            return Err(Refusal::new(Reason::OtherEvent, "a result without its request: pair them in the proxy, or log requests"));
        }
        let mut d = self.common(&v, request, record);
        d.set("method", if continues { Some("tools/continue".to_owned()) } else { method.map(str::to_owned) }).set_json("tool", params.get("name"));
        let header = header(&v, "mcp-name");
        if let (Some(header), Some(tool)) = (header, params.get("name").and_then(Value::as_str))
            && header != tool
        {
            d.set("header_tool", Some(header.to_owned()));
        }
        if let Some(arguments) = params.get("arguments") {
            d.arguments(arguments);
        }
        if let Some(uri) = params.get("uri").and_then(Value::as_str) {
            d.arguments(&Value::from(uri));
            d.set("tool", Some(uri.to_owned()));
        }
        let mut text = String::new();
        for path in ["/result/content", "/result/structuredContent", "/result/contents"] {
            response.and_then(|response| response.pointer(path)).iter().for_each(|value| all_text(value, &mut text));
        }
        d.result(&text);
        let code = error.and_then(|error| error.get("code")).and_then(scalar);
        let message = error.and_then(|error| error.get("message")).and_then(Value::as_str);
        if code.as_deref() == Some("-32020") {
            // The server's own word for header and body naming different tools.
            let mut quoted = message.unwrap_or_default().split('\'').skip(1).step_by(2);
            d.set("header_tool", quoted.next().map(str::to_owned)).set("tool", quoted.next().map(str::to_owned));
        }
        let status = first(&v, &["/status", "/statusCode", "/http/status_code"]).and_then(super::draft::int);
        let failed = response.is_some_and(|response| response.pointer("/result/isError").and_then(Value::as_bool) == Some(true));
        let told = code.as_deref().map(|code| format!("{code} {}", message.unwrap_or_default()));
        d.set("outcome", Some(outcome(told.as_deref(), status, failed)));
        d.set("error_code", code).set("error_message", message);
        d.finish(record, out)
    }
}

impl Mcp {
    /// Who, when and where, from the wrapper and from `_meta`.
    ///
    /// A bare message is the client's own word: of it only `_meta` and the time are taken.
    fn common<'d>(&self, v: &'d Value, request: &'d Value, record: &Record<'_>) -> Draft<'d> {
        let wrapped = !std::ptr::eq(v, request);
        let mut d = Draft::new(&tool_calls::TABLE);
        let meta = request.pointer("/params/_meta").unwrap_or(&Value::Null);
        d.event_time = first(v, &["/timestamp", "/time", "/@timestamp", "/ts"]).and_then(time);
        let trace = header(v, "traceparent").or_else(|| meta.get("traceparent").and_then(Value::as_str)).map(|parent| parent.split('-').collect::<Vec<_>>());
        if let Some([_, trace, span, ..]) = trace.as_deref() {
            d.set("trace_id", Some(*trace)).set("parent_span_id", Some(*span));
        }
        // JSON-RPC ids repeat: one connection's first call is another's first call.
        d.event_id = first(v, &["/event_id", "/log_id"]).filter(|_| wrapped).and_then(scalar).map(Into::into);
        if d.event_id.is_none() && d.event_time.is_none() {
            // Without a time two calls may be the same text: their place tells them apart.
            d.event_id = Some(format!("{}:{}", record.place, hashed_id(record.text)));
        }
        let client =
            meta.get("io.modelcontextprotocol/clientInfo").and_then(|client| client.get("name")).or_else(|| request.pointer("/params/clientInfo/name"));
        d.set_json("client_name", client.or_else(|| first(v, &["/client/name", "/client_name"])));
        d.set_json("call_id", request.get("id"));
        for (column, paths) in [
            ("server", &["/server", "/server_name", "/target"][..]),
            ("agent_id", &["/agent_id", "/agent/id", "/agent"]),
            ("service_name", &["/service", "/service_name"]),
            ("environment", &["/environment", "/env"]),
            ("identity", &["/identity", "/jwt/claims/client_id", "/jwt/claims/sub", "/claims/sub", "/jwt.sub", "/subject"]),
            ("user_id", &["/user_id", "/user", "/jwt/claims/act/sub", "/on_behalf_of"]),
            ("source_ip", &["/client_ip", "/source_ip", "/remote_addr", "/client/ip"]),
            ("conversation_id", &["/conversation_id", "/session_id"]),
            ("account_id", &["/account_id", "/account"]),
            ("request_id", &["/request_id"]),
        ] {
            d.set_json(column, first(v, paths).filter(|value| wrapped && !value.is_object()));
        }
        if d.text("trace_id").is_none() {
            d.set_json("trace_id", first(v, &["/trace_id", "/traceId"]));
        }
        if d.text("conversation_id").is_none() {
            d.set("conversation_id", header(v, "mcp-session-id"));
        }
        d
    }
}

/// A header of the wrapped HTTP request, whatever the case of its name.
fn header<'v>(v: &'v Value, name: &str) -> Option<&'v str> {
    let headers = first(v, &["/headers", "/http/headers", "/request_headers"])?.as_object()?;
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?.1.as_str()
}
