//! Audit log of the OpenSearch security plugin. The managed service cuts bodies at 10,000 characters.

use serde_json::Value;

use super::draft::{Draft, first, has, parse, time};
use super::{Format, Out, Reason, Record, Refusal};
use crate::table::{Table, exposure_reports, flag, retrievals};

pub struct OpenSearchAudit;

const TABLES: &[&Table] = &[&retrievals::TABLE, &exposure_reports::TABLE];

impl Format for OpenSearchAudit {
    fn name(&self) -> &str {
        "opensearch_audit"
    }

    fn doc(&self) -> &str {
        "OpenSearch security plugin audit log"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"audit_category\""])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let Some(category) = v.get("audit_category").and_then(Value::as_str) else {
            return Err(Refusal::new(Reason::MissingField, "no audit_category: not an audit record"));
        };
        let mut d = Draft::new(&retrievals::TABLE);
        d.event_time = first(&v, &["/@timestamp", "/audit_utc_timestamp"]).and_then(time);
        // One category for each request that reads; the others tell of the same request once more, or of writing.
        if matches!(category, "AUTHENTICATED" | "INDEX_EVENT" | "COMPLIANCE_DOC_WRITE" | "COMPLIANCE_INTERNAL_CONFIG_READ" | "COMPLIANCE_INTERNAL_CONFIG_WRITE")
        {
            return Err(Refusal::new(Reason::OtherEvent, format!("{category} is no retrieval, or tells of one a second time")));
        }
        let outcome = match category {
            "GRANTED_PRIVILEGES" | "COMPLIANCE_DOC_READ" => "success",
            "FAILED_LOGIN" | "MISSING_PRIVILEGES" | "BAD_HEADERS" | "SSL_EXCEPTION" => "denied",
            _ => "other",
        };
        d.set("store", Some("opensearch")).set("outcome", Some(outcome)).set("error_code", (outcome != "success").then_some(category));
        d.set_json("identity", v.get("audit_request_effective_user"));
        // A user that another one acts for.
        let initiating = v.get("audit_request_initiating_user").filter(|user| Some(*user) != v.get("audit_request_effective_user"));
        d.set_json("user_id", initiating).set_json("tenant", v.get("audit_request_tenant"));
        let address = v.get("audit_request_remote_address").and_then(Value::as_str).map(super::draft::address);
        d.set("source_ip", address);
        let indices = first(&v, &["/audit_trace_resolved_indices", "/audit_trace_indices"]);
        let index = indices.and_then(|indices| indices.as_array().map_or_else(|| indices.as_str(), |list| list.first()?.as_str()));
        let path = v.get("audit_rest_request_path").and_then(Value::as_str).unwrap_or_default();
        let of_path = path.trim_start_matches('/').split('/').next().filter(|part| !part.is_empty() && !part.starts_with('_'));
        d.set("data_source", index.or(of_path));
        let operation = path.rsplit('/').find(|part| part.starts_with('_')).map(|part| part.trim_start_matches('_').split('?').next().unwrap_or(part));
        d.set("operation", operation.or_else(|| v.get("audit_request_privilege").and_then(Value::as_str)));
        if let Some(body) = v.get("audit_request_body").and_then(Value::as_str) {
            if body.chars().count() >= 10_000 {
                flag(&mut d.flags, "body_truncated");
            }
            let seen = d.read("prompt", body);
            d.set("query_hash", seen.hash).set("query_chars", Some(seen.chars)).set("secrets", Some(seen.secrets));
        }
        d.set_json("document_ids", v.get("audit_trace_doc_id"));
        d.finish(record, out)
    }
}
