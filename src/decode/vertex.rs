//! Google Cloud audit logs of Vertex AI: model calls (Data Access) and administration.

use serde_json::Value;

use super::draft::{Draft, first, has, int, parse, time};
use super::{Format, Out, Reason, Record, Refusal};
use crate::table::{Table, exposure_reports, model_invocations, provider_activity, retrievals};

pub struct VertexAudit;

const TABLES: &[&Table] = &[&model_invocations::TABLE, &provider_activity::TABLE, &retrievals::TABLE, &exposure_reports::TABLE];

impl Format for VertexAudit {
    fn name(&self) -> &str {
        "vertex_audit"
    }

    fn doc(&self) -> &str {
        "Google Cloud audit logs of Vertex AI and the Gemini API"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"protoPayload\""]) && (has(text, &["aiplatform.googleapis.com"]) || has(text, &["generativelanguage.googleapis.com"]))
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let payload = v.get("protoPayload").unwrap_or(&Value::Null);
        let Some(method) = payload.get("methodName").and_then(Value::as_str) else {
            return Err(Refusal::new(Reason::MissingField, "no protoPayload.methodName: not an audit entry"));
        };
        let call = method.rsplit('.').next().unwrap_or(method);
        let is_model = ["Predict", "GenerateContent", "RawPredict", "EmbedContent", "CountTokens", "ChatCompletions"].iter().any(|name| call.contains(name));
        let is_retrieval = call.contains("RetrieveContexts") || call.contains("FindNeighbors") || call.contains("ReadIndexDatapoints");
        let table: &'static Table = match (is_model, is_retrieval) {
            (true, _) => &model_invocations::TABLE,
            (_, true) => &retrievals::TABLE,
            _ => &provider_activity::TABLE,
        };
        let mut d = Draft::new(table);
        d.event_time = first(&v, &["/timestamp", "/receiveTimestamp"]).and_then(time);
        d.event_id = v.get("insertId").and_then(Value::as_str).map(|id| format!("gcp:{id}"));
        d.set_json("account_id", first(&v, &["/resource/labels/project_id"]));
        // A call with an API key may name no principal at all.
        let caller = payload.pointer("/authenticationInfo/principalEmail").or_else(|| payload.pointer("/authenticationInfo/principalSubject"));
        d.set_json("identity", caller).set_json("source_ip", payload.pointer("/requestMetadata/callerIp"));
        let key = payload.pointer("/authenticationInfo/serviceAccountKeyName").and_then(Value::as_str).and_then(|name| name.rsplit('/').next());
        d.set("credential", key);
        let code = payload.pointer("/status/code").and_then(int).unwrap_or(0);
        let outcome = match code {
            0 => "success",
            7 | 16 => "denied",
            8 => "throttled",
            3 | 5 | 9 | 11 => "invalid",
            _ => "other",
        };
        d.set("outcome", Some(outcome)).set("error_code", (code != 0).then(|| code.to_string()));
        let resource = payload.get("resourceName").and_then(Value::as_str).unwrap_or_default();
        if is_model {
            d.set("provider", Some("gcp.vertex_ai")).set("operation", Some(call)).set_json("region", v.pointer("/resource/labels/location"));
            d.set("model_id", resource.rsplit('/').next().filter(|name| !name.is_empty()))
                .set_json("user_agent", payload.pointer("/requestMetadata/callerSuppliedUserAgent"));
            d.set_json("max_tokens", payload.pointer("/request/generationConfig/maxOutputTokens"));
        } else if is_retrieval {
            d.set("store", Some("vertex")).set("operation", Some(call)).set("data_source", (!resource.is_empty()).then_some(resource));
        } else {
            d.set("provider", Some("gcp.vertex_ai")).set("action", Some(method)).set("target", (!resource.is_empty()).then_some(resource));
            d.set_json("user_agent", payload.pointer("/requestMetadata/callerSuppliedUserAgent"));
        }
        d.finish(record, out)
    }
}
