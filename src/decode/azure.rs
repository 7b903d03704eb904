//! Azure OpenAI diagnostic logs: `RequestResponse` (model calls) and `Audit` (keys listed, settings read).
//!
//! The last part of the caller's address is masked; with key authentication neither the key nor a principal is named; times
//! in `properties` are .NET ticks; `properties` is an object or a JSON text; a negative duration occurs.

use std::borrow::Cow;

use serde_json::Value;

use super::draft::{Draft, first, has, int, parse, time};
use super::otlp::outcome;
use super::{Format, Out, Reason, Record, Refusal};
use crate::table::{Table, exposure_reports, model_invocations, provider_activity};

pub struct AzureOpenAi;

const TABLES: &[&Table] = &[&model_invocations::TABLE, &provider_activity::TABLE, &exposure_reports::TABLE];

impl Format for AzureOpenAi {
    fn name(&self) -> &str {
        "azure_openai"
    }

    fn doc(&self) -> &str {
        "Azure OpenAI diagnostics (RequestResponse, Audit)"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"operationName\"", "\"category\""])
            && (has(text, &["MICROSOFT.COGNITIVESERVICES"]) || has(text, &["Microsoft.CognitiveServices"]) || has(text, &["\"RequestResponse\""]))
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        let Some(category) = v.get("category").and_then(Value::as_str) else {
            return Err(Refusal::new(Reason::MissingField, "no category: not a diagnostic record"));
        };
        let properties = match v.get("properties") {
            Some(Value::String(text)) => serde_json::from_str(text).map_or(Cow::Owned(Value::Null), Cow::Owned),
            Some(value) => Cow::Borrowed(value),
            None => Cow::Owned(Value::Null),
        };
        let is_call = category == "RequestResponse";
        let mut d = Draft::new(if is_call { &model_invocations::TABLE } else { &provider_activity::TABLE });
        d.event_time = v.get("time").and_then(time).or_else(|| properties.get("requestTime").and_then(int).and_then(ticks));
        d.set("provider", Some("azure.ai.openai"));
        let resource = v.get("resourceId").and_then(Value::as_str).unwrap_or_default();
        let subscription = resource.split('/').skip_while(|part| !part.eq_ignore_ascii_case("subscriptions")).nth(1);
        d.set("account_id", subscription).set_json("source_ip", first(&v, &["/callerIpAddress", "/CallerIPAddress"]));
        d.set("identity", properties.get("objectId").and_then(Value::as_str).map(str::to_owned));
        let status = first(&v, &["/resultSignature", "/statusCode", "/httpStatusCode"]).and_then(int);
        d.set("outcome", Some(outcome(None, status, false)))
            .set_json("error_code", first(&v, &["/resultSignature"]).filter(|_| status.is_some_and(|status| status >= 400)));
        if is_call {
            // The correlation id is shared by the calls of one session.
            d.set_json("operation", v.get("operationName")).set_json("region", v.get("location")).set_json("conversation_id", v.get("correlationId"));
            let model = first(&properties, &["/modelDeploymentName", "/modelName"]).and_then(Value::as_str).map(str::to_owned);
            let version = properties.get("modelVersion").and_then(Value::as_str).unwrap_or_default();
            let name = properties.get("modelName").and_then(Value::as_str);
            d.set("model_id", model).set("response_model", name.map(|name| format!("{name} {version}").trim_end().to_owned()));
            d.set("streamed", properties.get("streamType").and_then(Value::as_str).map(|kind| kind.eq_ignore_ascii_case("streaming")));
            d.set("prompt_chars", properties.get("requestLength").and_then(int)).set("output_chars", properties.get("responseLength").and_then(int));
            d.set("duration_micros", v.get("durationMs").and_then(int).filter(|millis| *millis >= 0).map(|millis| millis.saturating_mul(1000)));
        } else {
            let action = match v.get("operationName").and_then(Value::as_str) {
                Some("ListKey" | "List Keys") => "api_key.listed".to_owned(),
                Some(other) => other.to_owned(),
                None => return Err(Refusal::new(Reason::MissingField, "no operationName")),
            };
            d.set("action", Some(action))
                .set("target", (!resource.is_empty()).then_some(resource))
                .set("detail", properties.is_object().then(|| properties.to_string()));
        }
        d.finish(record, out)
    }
}

/// .NET ticks: hundreds of nanoseconds since the year 1.
fn ticks(ticks: i64) -> Option<i64> {
    const EPOCH: i64 = 621_355_968_000_000_000;
    (ticks > EPOCH).then(|| (ticks - EPOCH) / 10)
}
