//! Every log format goes through this: its samples are recognised and fill the columns that `docs/formats.md` shows; cut,
//! changed, emptied or stuffed with secrets they cost nobody else a record and give no secret away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use keyfuse::decode::{Decoder, FORMATS, Format, Message, Settings};
use keyfuse::secret::Fingerprinter;
use keyfuse::table::{Table, rejects, words};
use serde_json::Value;

use crate::support::START;

fn samples(format: &dyn Format) -> Vec<String> {
    let path = format!("sample-data/formats/{}/sample.jsonl", format.name());
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("every format has samples: {path}: {error}"));
    text.lines().map(str::to_owned).collect()
}

fn decode(bytes: &[u8]) -> Vec<(&'static Table, RecordBatch)> {
    decode_as(None, bytes)
}

fn decode_as(format: Option<&'static dyn Format>, bytes: &[u8]) -> Vec<(&'static Table, RecordBatch)> {
    let mut decoder = Decoder::new(format, Settings::new(Fingerprinter::public()));
    decoder.decode(Message { bytes, topic: &Arc::from("t"), partition: 0, offset: Some(7), line: 1, append_time: Some(START + 60_000_000) });
    decoder.finish()
}

fn rows(decoded: &[(&'static Table, RecordBatch)], name: &str) -> usize {
    decoded.iter().filter(|(table, _)| table.name == name).map(|(_, batch)| batch.num_rows()).sum()
}

fn printed(decoded: &[(&'static Table, RecordBatch)]) -> String {
    let print = |batch: &RecordBatch| arrow::util::pretty::pretty_format_batches(std::slice::from_ref(batch)).expect("prints").to_string();
    decoded.iter().map(|(_, batch)| print(batch)).collect()
}

/// A record of another format, to stand beside.
const NEIGHBOUR: &str =
    r#"{"eventVersion":"1.10","eventTime":"2026-05-01T09:59:00Z","eventSource":"sts.amazonaws.com","eventName":"GetCallerIdentity","eventID":"good"}"#;

#[test]
fn samples_are_recognised_as_their_own_format_alone_and_fill_its_tables() {
    for format in FORMATS {
        let mut filled: BTreeSet<&str> = BTreeSet::new();
        for sample in samples(*format) {
            let decoded = decode(sample.as_bytes());
            assert_eq!(rows(&decoded, "rejects"), 0, "{}: {sample}\n{}", format.name(), printed(&decoded));
            let tables: BTreeSet<&str> = decoded.iter().map(|(table, _)| table.name).collect();
            let declared: BTreeSet<&str> = format.tables().iter().map(|table| table.name).collect();
            assert!(!tables.is_empty() && tables.is_subset(&declared), "{}: {tables:?} of {declared:?}", format.name());
            filled.extend(tables);
            // Bound to it or recognised: the same rows. Twice: the same ids.
            let unwrapped = !sample.contains("\"detail-type\"");
            if unwrapped {
                assert_eq!(printed(&decode_as(Some(*format), sample.as_bytes())), printed(&decoded), "{}", format.name());
            }
            for other in FORMATS.iter().filter(|other| other.name() != format.name()) {
                assert!(!other.recognises(&sample), "{} is also recognised by {}: {sample}", format.name(), other.name());
            }
            for (_, batch) in &decoded {
                assert!(words(batch, keyfuse::table::cloudtrail::FLAGS).all(|flags| !flags.contains("no_time")), "{}", format.name());
            }
        }
        let wanted: BTreeSet<&str> =
            format.tables().iter().map(|table| table.name).filter(|name| *name != "exposure_reports" || format.is_about_secrets()).collect();
        assert_eq!(filled, wanted, "{}: the samples show every table that it fills", format.name());
    }
}

#[test]
fn cut_anywhere_a_sample_is_a_reject_and_its_neighbours_stay() {
    for format in FORMATS {
        for sample in samples(*format) {
            for cut in (1..sample.len()).filter(|cut| sample.is_char_boundary(*cut)) {
                let text = format!("{NEIGHBOUR}\n{}\n{NEIGHBOUR}", &sample[..cut]);
                let decoded = decode(text.as_bytes());
                let beside = decoded.iter().filter(|(table, _)| table.name == "cloudtrail").map(|(_, batch)| batch);
                let good: usize = beside.map(|batch| printed_ids(batch).iter().filter(|id| *id == "good").count()).sum();
                assert_eq!(good, 2, "{} cut at {cut}", format.name());
                assert!(rows(&decoded, "rejects") >= 1, "{} cut at {cut} says nothing", format.name());
            }
        }
    }
}

fn printed_ids(batch: &RecordBatch) -> Vec<String> {
    use arrow::array::AsArray;
    batch.column(keyfuse::table::cloudtrail::EVENT_ID).as_string_view().iter().flatten().map(str::to_owned).collect()
}

/// Every place of a JSON value, as pointers.
fn places(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    match value {
        Value::Object(object) => object.iter().for_each(|(key, inner)| places(inner, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), into)),
        Value::Array(list) => list.iter().enumerate().for_each(|(number, inner)| places(inner, &format!("{at}/{number}"), into)),
        _ => {}
    }
}

#[test]
fn types_swapped_fields_dropped_and_added_every_record_is_a_row_or_a_reject() {
    let swaps = [
        Value::Null,
        true.into(),
        (-7).into(),
        1e300.into(),
        u64::MAX.into(),
        "x".into(),
        serde_json::json!([1, {"a": []}]),
        serde_json::json!({"a": {"b": null}}),
        "\u{0}\u{202e}".into(),
    ];
    for format in FORMATS {
        for sample in samples(*format) {
            let value: Value = serde_json::from_str(&sample).expect("JSON");
            let mut all = Vec::new();
            places(&value, "", &mut all);
            for place in all {
                let mut variants: Vec<Value> = Vec::new();
                for swap in &swaps {
                    let mut changed = value.clone();
                    *changed.pointer_mut(&place).expect("there") = swap.clone();
                    variants.push(changed);
                }
                if let Some((parent, key)) = place.rsplit_once('/') {
                    let mut dropped = value.clone();
                    if let Some(object) = dropped.pointer_mut(parent).and_then(Value::as_object_mut) {
                        object.remove(&key.replace("~1", "/").replace("~0", "~"));
                        object.insert("added".into(), serde_json::json!({"by": ["a", "later", "version"]}));
                        variants.push(dropped);
                    }
                }
                for variant in variants {
                    let text = variant.to_string();
                    let decoded = decode_as(Some(*format), format!("{text}\n").as_bytes());
                    let empty = variant.as_object().is_some_and(|object| object.values().any(|v| v == &serde_json::json!([]))) || variant.is_array();
                    assert!(empty || decoded.iter().any(|(_, batch)| batch.num_rows() > 0) || holds_nothing(&variant), "{} lost {text}", format.name());
                }
            }
        }
    }
}

/// An OTLP request without spans, a wrapper without content: valid, and no record.
fn holds_nothing(value: &Value) -> bool {
    value.get("resourceSpans").or(value.get("resourceLogs")).is_some()
}

/// Secrets of several shapes; none of them opens anything.
fn secrets() -> BTreeMap<&'static str, String> {
    let body = |length: usize| (0..length).map(|at| b"q3Zr8Kd1Lw7Xe5Tn9Vb2"[(at * 7 + at / 11) % 20] as char).collect::<String>();
    BTreeMap::from([
        ("github_token", format!("ghp_{}", body(36))),
        ("anthropic_api_key", format!("sk-ant-api03-{}AA", body(93))),
        ("bedrock_api_key_long", format!("ABSK{}", body(120))),
        ("private_key", format!("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----", body(200))),
        ("jwt", format!("eyJ{}.eyJ{}.{}", body(30), body(60), body(43))),
    ])
}

#[test]
fn a_secret_in_any_text_of_any_sample_is_found_and_not_kept() {
    let mut reported: BTreeSet<String> = BTreeSet::new();
    for format in FORMATS {
        for sample in samples(*format) {
            let value: Value = serde_json::from_str(&sample).expect("JSON");
            let mut all = Vec::new();
            places(&value, "", &mut all);
            for place in all.iter().filter(|place| value.pointer(place).is_some_and(Value::is_string)) {
                for (kind, secret) in secrets() {
                    let mut changed = value.clone();
                    let text = format!("look: {secret}, and go on");
                    // JSON inside JSON, too.
                    let inner = value.pointer(place).and_then(Value::as_str).and_then(|text| serde_json::from_str::<Value>(text).ok()).filter(Value::is_object);
                    *changed.pointer_mut(place).expect("there") = match inner {
                        Some(mut inner) => {
                            inner["note"] = text.into();
                            inner.to_string().into()
                        }
                        None => text.into(),
                    };
                    let decoded = decode(changed.to_string().as_bytes());
                    let shown = printed(&decoded);
                    let core = &secret[secret.len() / 2..secret.len() / 2 + 16];
                    assert!(!shown.contains(core), "{} keeps a {kind} at {place}:\n{shown}", format.name());
                    for (_, batch) in decoded.iter().filter(|(table, _)| table.name == "exposure_reports") {
                        if words(batch, keyfuse::table::exposure_reports::REPORTER).any(|reporter| reporter == "keyfuse") {
                            reported.insert(format.name().to_owned());
                        }
                    }
                }
            }
        }
    }
    for wanted in ["otlp", "bedrock_invocation", "mcp", "agentcore", "opensearch_audit", "langsmith"] {
        assert!(reported.contains(wanted), "{wanted} carries texts: a credential in them is an exposure report, {reported:?}");
    }
}

#[test]
fn escapes_that_need_not_be_there_hide_no_secret() {
    let secret = secrets()["github_token"].clone();
    let escaped: String = secret.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    let half: String = secret.chars().enumerate().map(|(at, c)| if at == 2 { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }).collect();
    let slashed = "AWS_SECRET_ACCESS_KEY=wJalr\\/K7MDENGbPxRfi8CYzq3Zr8Kd1Lw7Xe5Tn9";
    for text in [escaped, half, format!("\\u003e{secret}"), slashed.to_owned()] {
        let record = format!(
            r#"{{"timestamp":"2026-05-01T10:00:00Z","server":"s","request":{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","arguments":{{"q":"{text}"}}}}}}}}"#
        );
        let decoded = decode(record.as_bytes());
        assert_eq!((rows(&decoded, "tool_calls"), rows(&decoded, "exposure_reports")), (1, 1), "{record}");
        let shown = printed(&decoded);
        assert!(!shown.contains(&secret) && !shown.contains("K7MDENG") && !shown.contains("\\u00"), "{shown}");
    }
}

#[test]
fn a_span_too_deep_or_too_large_costs_itself_only() {
    let span = |name: &str, value: &str| {
        format!(
            r#"{{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"{name}","startTimeUnixNano":"1777629600000000000","attributes":[{{"key":"k","value":{value}}}]}}"#
        )
    };
    let deep = format!("{}{}", r#"{"arrayValue":{"values":["#.repeat(100), "]}}".repeat(100));
    let large = format!(r#"{{"stringValue":"{}"}}"#, "x".repeat(2 << 20));
    let good = r#"{"stringValue":"v"}"#;
    let spans = [span("a", good), span("b", &deep), span("c", &large), span("d", good)].join(",");
    let decoded = decode(format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{spans}]}}]}}]}}"#).as_bytes());
    assert_eq!((rows(&decoded, "agent_spans"), rows(&decoded, "rejects")), (2, 2), "{:.2000}", printed(&decoded));
}

#[test]
fn a_request_that_repeats_its_resource_a_thousand_times_stays_small() {
    let resource = "x".repeat(500_000);
    let spans =
        vec![r#"{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"n","startTimeUnixNano":"1777629600000000000"}"#; 2_000]
            .join(",");
    let request = format!(
        r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"{resource}"}}}}]}},"scopeSpans":[{{"spans":[{spans}]}}]}}]}}"#
    );
    let decoded = decode(request.as_bytes());
    assert_eq!(rows(&decoded, "agent_spans"), 2_000);
    let bytes: usize = decoded.iter().map(|(_, batch)| batch.get_array_memory_size()).sum();
    assert!(bytes < 50 << 20, "{bytes}");
}

#[test]
fn a_key_cut_between_two_chunks_of_a_stream_is_found() {
    let secret = secrets()["github_token"].clone();
    for cut in 1..secret.len() {
        let chunk = |text: &str| serde_json::json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}});
        let record = serde_json::json!({"schemaType": "ModelInvocationLog", "timestamp": "2026-05-01T10:00:00Z", "requestId": "r", "operation": "ConverseStream",
            "modelId": "m", "identity": {"arn": "arn:aws:iam::111122223333:user/a"}, "input": {},
            "output": {"outputBodyJson": [chunk(&format!("take {}", &secret[..cut])), chunk(&format!("{} now", &secret[cut..])), "[DONE]"]}});
        let decoded = decode(record.to_string().as_bytes());
        let shown = printed(&decoded);
        assert!(!shown.contains(&secret[cut..]) || secret.len() - cut < 12, "cut at {cut}: {shown}");
        assert!(!shown.contains(&secret[..cut]) || cut < 12, "cut at {cut}: {shown}");
        assert_eq!(rows(&decoded, "exposure_reports"), 1, "cut at {cut}");
    }
}

/// A message in protobuf: tag, length, bytes.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = varint(u64::from(number << 3 | 2));
    out.extend(varint(bytes.len() as u64));
    out.extend_from_slice(bytes);
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(byte);
            return out;
        }
        out.push(byte | 0x80);
    }
}

fn fixed(number: u32, value: u64) -> Vec<u8> {
    let mut out = varint(u64::from(number << 3 | 1));
    out.extend(value.to_le_bytes());
    out
}

fn any(value: &Value) -> Vec<u8> {
    match value {
        Value::Object(object) => {
            let (kind, inner) = object.iter().next().expect("a value");
            match kind.as_str() {
                "stringValue" => field(1, inner.as_str().expect("text").as_bytes()),
                "boolValue" => [varint(2 << 3), varint(u64::from(inner.as_bool().expect("a flag")))].concat(),
                "intValue" => [varint(3 << 3), varint(inner.as_str().expect("digits").parse::<i64>().expect("a number") as u64)].concat(),
                "arrayValue" => field(5, &inner["values"].as_array().expect("a list").iter().flat_map(|value| field(1, &any(value))).collect::<Vec<_>>()),
                other => panic!("{other}"),
            }
        }
        other => panic!("{other}"),
    }
}

fn attributes(number: u32, list: &Value) -> Vec<u8> {
    let pair = |pair: &Value| field(number, &[field(1, pair["key"].as_str().expect("a key").as_bytes()), field(2, &any(&pair["value"]))].concat());
    list.as_array().into_iter().flatten().flat_map(pair).collect()
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap_or_default();
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex")).collect()
}

/// An OTLP JSON sample as the protobuf message that it stands for.
fn protobuf(sample: &Value) -> Vec<u8> {
    let nanos = |value: &Value| value.as_str().expect("digits").parse().expect("a number");
    let mut request = Vec::new();
    let (groups, scopes, items) = match sample.get("resourceSpans") {
        Some(groups) => (groups, "scopeSpans", "spans"),
        None => (&sample["resourceLogs"], "scopeLogs", "logRecords"),
    };
    for group in groups.as_array().expect("a list") {
        let mut inside = field(1, &attributes(1, &group["resource"]["attributes"]));
        for scoped in group[scopes].as_array().expect("a list") {
            let mut scope = field(1, &field(1, scoped["scope"]["name"].as_str().expect("a name").as_bytes()));
            for item in scoped[items].as_array().expect("a list") {
                let bytes = if items == "spans" {
                    let status = item["status"]["code"].as_u64().map(|code| [varint(3 << 3), varint(code)].concat()).unwrap_or_default();
                    [
                        field(1, &hex(&item["traceId"])),
                        field(2, &hex(&item["spanId"])),
                        field(4, &hex(&item["parentSpanId"])),
                        field(5, item["name"].as_str().expect("a name").as_bytes()),
                        [varint(6 << 3), varint(item["kind"].as_u64().expect("a kind"))].concat(),
                        fixed(7, nanos(&item["startTimeUnixNano"])),
                        fixed(8, nanos(&item["endTimeUnixNano"])),
                        attributes(9, &item["attributes"]),
                        field(15, &status),
                    ]
                    .concat()
                } else {
                    [
                        fixed(1, nanos(&item["timeUnixNano"])),
                        field(5, &any(&item["body"])),
                        attributes(6, &item["attributes"]),
                        field(9, &hex(&item["traceId"])),
                        field(10, &hex(&item["spanId"])),
                        field(12, item["eventName"].as_str().expect("a name").as_bytes()),
                    ]
                    .concat()
                };
                scope.extend(field(2, &bytes));
            }
            inside.extend(field(2, &scope));
        }
        request.extend(field(1, &inside));
    }
    request
}

/// The columns of all rows but `raw`, whose spelling differs between the two encodings.
fn without_raw(decoded: &[(&'static Table, RecordBatch)]) -> String {
    let cut = |batch: &RecordBatch| batch.project(&(0..batch.num_columns() - 1).collect::<Vec<_>>()).expect("columns");
    let mut without: Vec<(&'static Table, RecordBatch)> = decoded.iter().map(|(table, batch)| (*table, cut(batch))).collect();
    without.sort_by_key(|(table, _)| table.name);
    // A log record has no id of its own: the hash of its text.
    printed(&without).lines().filter(|line| !line.contains("h:")).collect()
}

#[test]
fn protobuf_and_json_of_otlp_give_the_same_rows_and_a_cut_costs_only_what_it_cuts() {
    let otlp = FORMATS.iter().find(|format| format.name() == "otlp").expect("known");
    for sample in samples(*otlp) {
        let value: Value = serde_json::from_str(&sample).expect("JSON");
        let bytes = protobuf(&value);
        let (a, b) = (decode(&bytes), decode(sample.as_bytes()));
        assert_eq!(without_raw(&a), without_raw(&b));
        assert_eq!(rows(&a, "rejects"), 0);
        let whole: usize = a.iter().map(|(_, batch)| batch.num_rows()).sum();
        for cut in 2..bytes.len() {
            let decoded = decode_as(Some(*otlp), &bytes[..cut]);
            let all: usize = decoded.iter().map(|(_, batch)| batch.num_rows()).sum();
            assert!(rows(&decoded, "rejects") >= 1 && all <= whole + 3, "cut at {cut} of {}", bytes.len());
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x55;
            assert!(decode_as(Some(*otlp), &changed).iter().any(|(_, batch)| batch.num_rows() > 0), "byte {at}");
        }
    }
}

#[test]
fn published_mcp_messages_are_calls_or_say_what_they_are() {
    let Ok(folder) = std::env::var("KEYFUSE_REAL_LOGS") else {
        return println!("KEYFUSE_REAL_LOGS is not set: only our own samples were read");
    };
    let pattern = format!("{folder}/../mcp-messages/*/*.json");
    let mut calls = 0;
    for path in glob::glob(&pattern).expect("a pattern").flatten() {
        let text = std::fs::read(&path).expect("readable");
        let decoded = decode(&text);
        calls += rows(&decoded, "tool_calls");
        for (table, batch) in &decoded {
            if table.name == "rejects" {
                let reasons: Vec<&str> = words(batch, rejects::REASON).collect();
                assert!(reasons.iter().all(|reason| matches!(*reason, "unknown_format" | "other_event")), "{}: {reasons:?}", path.display());
            }
        }
    }
    assert!(Path::new(&folder).exists() && calls >= 3, "{calls}");
}
