//! Amazon Bedrock model invocation logs, as written to S3 or CloudWatch Logs.
//!
//! The record has no address, user agent or key: `request_id` is the bridge to CloudTrail.
//! <https://docs.aws.amazon.com/bedrock/latest/userguide/model-invocation-logging.html>

use std::fmt::Write as _;

use serde_json::Value;

use super::draft::{Draft, all_text, first, has, identity_of_arn, int, parse, time};
use super::otlp::outcome;
use super::{Format, Out, Reason, Record, Refusal, price};
use crate::credential;
use crate::table::{Table, exposure_reports, model_invocations};

pub struct BedrockInvocation;

const TABLES: &[&Table] = &[&model_invocations::TABLE, &exposure_reports::TABLE];

impl Format for BedrockInvocation {
    fn name(&self) -> &str {
        "bedrock_invocation"
    }

    fn doc(&self) -> &str {
        "Amazon Bedrock model invocation log"
    }

    fn tables(&self) -> &[&'static Table] {
        TABLES
    }

    fn recognises(&self, text: &str) -> bool {
        has(text, &["\"ModelInvocationLog\""]) || has(text, &["\"modelId\"", "\"operation\"", "\"requestId\"", "\"identity\""])
    }

    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal> {
        let v = parse(record)?;
        if v.get("modelId").is_none() || v.get("operation").is_none() {
            return Err(Refusal::new(Reason::MissingField, "no modelId and operation: not a model invocation"));
        }
        let mut d = Draft::new(&model_invocations::TABLE);
        d.event_time = v.get("timestamp").and_then(time);
        d.event_id = v.get("requestId").and_then(Value::as_str).map(|id| format!("bedrock:{id}"));
        d.set("provider", Some("aws.bedrock"));
        for (column, path) in [
            ("operation", "/operation"),
            ("model_id", "/modelId"),
            ("region", "/region"),
            ("inference_region", "/inferenceRegion"),
            ("account_id", "/accountId"),
            ("request_id", "/requestId"),
            ("error_code", "/errorCode"),
        ] {
            d.set_json(column, v.pointer(path));
        }
        d.set("identity", v.pointer("/identity/arn").and_then(Value::as_str).map(identity_of_arn));
        // Metadata is the caller's own word: good for telling agents apart, no proof of who they are.
        for (column, names) in [
            ("agent_id", &["agent_id", "agentId", "agent", "agent.id"][..]),
            ("service_name", &["service", "service.name", "application", "app"]),
            ("environment", &["environment", "env", "deployment.environment"]),
            ("conversation_id", &["conversation_id", "conversationId", "session_id", "sessionId"]),
            ("user_id", &["user_id", "userId", "user"]),
        ] {
            d.set_json(column, names.iter().find_map(|name| v.get("requestMetadata")?.get(*name)));
        }
        let error = v.get("errorCode").and_then(Value::as_str);
        d.set("outcome", Some(outcome(error, None, false)));
        let input = v.pointer("/input/inputBodyJson").unwrap_or(&Value::Null);
        let output = v.pointer("/output/outputBodyJson").unwrap_or(&Value::Null);
        let stream = output.as_array().map(Vec::as_slice);
        d.set("streamed", Some(stream.is_some() || v["operation"].as_str().is_some_and(|name| name.contains("Stream"))));
        d.set_json("body_location", first(&v, &["/input/inputBodyS3Path", "/output/outputBodyS3Path"]));
        d.set_json(
            "max_tokens",
            first(input, &["/max_tokens", "/inferenceConfig/maxTokens", "/max_tokens_to_sample", "/max_gen_len", "/textGenerationConfig/maxTokenCount"]),
        );

        let mut prompt = String::new();
        for path in ["/messages", "/prompt", "/inputText", "/input", "/texts"] {
            input.pointer(path).iter().for_each(|value| all_text(value, &mut prompt));
        }
        let mut system = String::new();
        input.get("system").iter().for_each(|value| all_text(value, &mut system));
        let mut answer = Answer::default();
        match stream {
            Some(chunks) => chunks.iter().for_each(|chunk| answer.chunk(chunk)),
            None => answer.whole(output),
        }
        // A key cut between two chunks is whole only now.
        let masked = credential::replace_secrets(&answer.text, out.fingerprinter).into_owned();
        if stream.is_some() && masked != answer.text {
            d.raw = Some(without_stream(&v, &masked));
        }
        d.model_texts(&prompt, &masked, &system);
        d.set("stop_reason", answer.stop).set("tools_used", (!answer.tools.is_empty()).then(|| answer.tools.join(",")));
        let blocked = answer.blocked || d.text("stop_reason") == Some("guardrail_intervened");
        let looked_at = blocked || has(record.text, &["uardrail"]);
        d.set("guardrail", looked_at.then_some(if blocked { "intervened" } else { "none" }));
        let tokens = |own: &str, counted: Option<i64>| v.pointer(own).and_then(int).or(counted);
        let (input_tokens, output_tokens) = (tokens("/input/inputTokenCount", answer.input_tokens), tokens("/output/outputTokenCount", answer.output_tokens));
        let (read, written) = (tokens("/input/cacheReadInputTokenCount", answer.cache_read), tokens("/input/cacheWriteInputTokenCount", answer.cache_write));
        d.set("input_tokens", input_tokens).set("output_tokens", output_tokens).set("cache_read_tokens", read).set("cache_write_tokens", written);
        if input_tokens.is_some() || output_tokens.is_some() {
            let model = v["modelId"].as_str().unwrap_or_default();
            d.set(
                "cost_microdollars",
                price::micro_dollars(model, input_tokens.unwrap_or(0), output_tokens.unwrap_or(0), read.unwrap_or(0), written.unwrap_or(0)),
            );
        }
        d.finish(record, out)
    }
}

/// What an answer says, whole or put together from the chunks of a stream.
#[derive(Default)]
struct Answer {
    text: String,
    stop: Option<String>,
    tools: Vec<String>,
    blocked: bool,
    input_tokens: Option<i64>,
    output_tokens: Option<i64>,
    cache_read: Option<i64>,
    cache_write: Option<i64>,
}

impl Answer {
    fn whole(&mut self, body: &Value) {
        for path in ["/output/message/content", "/content", "/completion", "/generation", "/results", "/outputs", "/choices", "/outputText"] {
            body.pointer(path).iter().for_each(|value| all_text(value, &mut self.text));
        }
        self.facts(body);
    }

    /// One event of a stream: a `delta`, a message start or end, Titan's and Llama's own shapes, or the text `[DONE]`.
    fn chunk(&mut self, chunk: &Value) {
        for path in [
            "/delta/text",
            "/contentBlockDelta/delta/text",
            "/delta/partial_json",
            "/contentBlockDelta/delta/toolUse/input",
            "/completion",
            "/generation",
            "/outputText",
            "/choices/0/delta/content",
            "/delta/thinking",
            "/delta/reasoningContent/text",
            "/contentBlockDelta/delta/reasoningContent/text",
            "/outputs/0/text",
            "/text",
        ] {
            if let Some(part) = chunk.pointer(path).and_then(Value::as_str) {
                // No separator: what one chunk begins the next one ends.
                let _ = self.text.write_str(part);
            }
        }
        self.facts(chunk);
    }

    fn facts(&mut self, body: &Value) {
        let stop =
            first(body, &["/stopReason", "/stop_reason", "/messageStop/stopReason", "/delta/stop_reason", "/completionReason", "/choices/0/finish_reason"]);
        if let Some(stop) = stop.and_then(Value::as_str) {
            self.stop = Some(stop.to_owned());
        }
        let mut parts: Vec<&Value> = Vec::new();
        for path in ["/output/message/content", "/content"] {
            parts.extend(body.pointer(path).and_then(Value::as_array).into_iter().flatten());
        }
        parts.extend(first(body, &["/content_block", "/contentBlockStart/start"]));
        for part in parts {
            let named =
                first(part, &["/toolUse/name"]).or_else(|| (part.get("type").and_then(Value::as_str) == Some("tool_use")).then(|| part.get("name")).flatten());
            if let Some(name) = named.and_then(Value::as_str)
                && !self.tools.iter().any(|known| known == name)
            {
                self.tools.push(name.to_owned());
            }
        }
        let action = first(body, &["/amazon-bedrock-guardrailAction", "/trace/guardrail/action", "/metadata/trace/guardrail/action"]);
        self.blocked |= action.and_then(Value::as_str).is_some_and(|action| matches!(action, "INTERVENED" | "GUARDRAIL_INTERVENED"));
        for (into, paths) in [
            (
                &mut self.input_tokens,
                &[
                    "/usage/inputTokens",
                    "/usage/input_tokens",
                    "/metadata/usage/inputTokens",
                    "/message/usage/input_tokens",
                    "/amazon-bedrock-invocationMetrics/inputTokenCount",
                    "/inputTextTokenCount",
                    "/prompt_token_count",
                    "/usage/prompt_tokens",
                ][..],
            ),
            (
                &mut self.output_tokens,
                &[
                    "/usage/outputTokens",
                    "/usage/output_tokens",
                    "/metadata/usage/outputTokens",
                    "/amazon-bedrock-invocationMetrics/outputTokenCount",
                    "/generation_token_count",
                    "/usage/completion_tokens",
                ],
            ),
            (&mut self.cache_read, &["/usage/cacheReadInputTokens", "/usage/cache_read_input_tokens", "/metadata/usage/cacheReadInputTokens"]),
            (&mut self.cache_write, &["/usage/cacheWriteInputTokens", "/usage/cache_creation_input_tokens", "/metadata/usage/cacheWriteInputTokens"]),
        ] {
            if let Some(number) = first(body, paths).and_then(int) {
                *into = Some(number);
            }
        }
    }
}

/// The record with its stream replaced by the text that it adds up to.
fn without_stream(v: &Value, text: &str) -> String {
    let mut clean = v.clone();
    if let Some(body) = clean.pointer_mut("/output/outputBodyJson") {
        *body = Value::from(text);
    }
    clean.to_string()
}
