//! Bad input: any bytes at all become counted rejects or flagged rows; the records beside them are kept; no secret survives.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::record_batch::RecordBatch;
use keyfuse::clock::MINUTE;
use keyfuse::decode::{Decoder, FORMATS, Message, Reason, Settings};
use keyfuse::generate::llmjacking;
use keyfuse::secret::Fingerprinter;
use keyfuse::table::{cloudtrail as c, exposure_reports as e, rejects};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::START;

/// Rows by table, reject reasons, flags.
#[derive(Debug, Default, PartialEq)]
struct Decoded {
    rows: BTreeMap<&'static str, usize>,
    reasons: Vec<String>,
    flags: Vec<String>,
}

fn words(batch: &RecordBatch, column: usize) -> Vec<String> {
    keyfuse::table::words(batch, column).map(str::to_owned).collect()
}

fn decode_as(format: Option<&str>, bytes: &[u8]) -> (Decoded, Vec<RecordBatch>) {
    let format = format.map(|name| keyfuse::decode::format_by_name(name).expect("a format"));
    let mut decoder = Decoder::new(format, Settings::new(Fingerprinter::public()));
    decoder.decode(Message { bytes, topic: &Arc::from("t"), partition: 1, offset: Some(42), line: 1, append_time: Some(START) });
    let mut decoded = Decoded::default();
    let mut batches = Vec::new();
    for (table, batch) in decoder.finish() {
        decoded.rows.insert(table.name, batch.num_rows());
        if table.name == "rejects" {
            decoded.reasons = words(&batch, rejects::REASON);
        } else {
            decoded.flags.extend(words(&batch, c::FLAGS));
        }
        batches.push(batch);
    }
    (decoded, batches)
}

fn decode(bytes: &[u8]) -> Decoded {
    decode_as(None, bytes).0
}

const GOOD: &str =
    r#"{"eventVersion":"1.10","eventTime":"2026-05-01T09:59:00Z","eventSource":"sts.amazonaws.com","eventName":"GetCallerIdentity","eventID":"good"}"#;

#[test]
fn each_kind_of_damage_is_named_and_the_neighbour_is_kept() {
    let deep = format!("{{\"eventVersion\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let large = format!("{{\"eventVersion\":\"{}\"}}", "x".repeat(2 << 20));
    for (bad, reason) in [
        ("{\"eventVersion\":\"1.1", Reason::Truncated),
        ("nonsense, no", Reason::NotJson),
        ("12345", Reason::NotJson),
        ("{eventVersion: 'unquoted'}", Reason::UnknownFormat),
        ("{\"hello\":\"world\"}", Reason::UnknownFormat),
        ("{\"eventVersion\":\"1.0\"}", Reason::MissingField),
        ("{\"eventVersion\":\"2.1\",\"eventSource\":\"aws:s3\",\"eventName\":\"ObjectCreated:Put\"}", Reason::OtherEvent),
        ("{\"eventVersion\":1e999,\"eventSource\":\"a\",\"eventName\":\"b\",\"eventTime\":1e999}", Reason::BadRecord),
        (deep.as_str(), Reason::TooDeep),
        (large.as_str(), Reason::TooLarge),
    ] {
        for text in [format!("{GOOD}\n{bad}\n{GOOD}"), format!("{bad}\n{GOOD}\n{GOOD}")] {
            let decoded = decode(text.as_bytes());
            assert_eq!(decoded.rows.get("cloudtrail"), Some(&2), "beside {:.60}: {decoded:?}", bad);
            assert_eq!(decoded.reasons, [reason.name()], "{:.60}", bad);
        }
    }
    assert_eq!(decode(b"").reasons, ["empty"]);
    assert_eq!(decode(b" \n ").reasons, ["empty"]);
    assert_eq!(decode(b"{\"Records\":[]}"), Decoded::default(), "valid and holds nothing");
}

#[test]
fn a_wrong_field_is_null_and_flagged_and_the_row_is_kept() {
    for (bad, flag) in [
        (
            r#"{"eventVersion":"1.10","eventTime":"2026-05-01T09:59:00Z","eventSource":"a","eventName":"b","sourceIPAddress":["1.2.3.4"]}"#,
            "bad_type:sourceIPAddress",
        ),
        (r#"{"eventVersion":"1.10","eventTime":"2026-05-01T09:59:00Z","eventSource":"a","eventName":"b","userIdentity":"root"}"#, "bad_type:userIdentity"),
        (
            r#"{"eventVersion":"1.10","eventTime":"2026-05-01T09:59:00Z","eventSource":"a","eventName":"b","requestParameters":{"a":1},"requestParameters":{"a":2}}"#,
            "duplicate_key:requestParameters",
        ),
        (r#"{"eventVersion":"1.10","eventTime":"yesterday","eventSource":"a","eventName":"b"}"#, "bad_time:eventTime"),
        (r#"{"eventVersion":"1.10","eventTime":"2031-01-01T00:00:00Z","eventSource":"a","eventName":"b"}"#, "future_time"),
    ] {
        let decoded = decode(bad.as_bytes());
        assert_eq!(decoded.rows.get("cloudtrail"), Some(&1), "{bad}: {decoded:?}");
        assert_eq!(decoded.flags, [flag], "{bad}");
    }
}

#[test]
fn a_doubled_event_name_reads_the_same_for_detection_and_for_json_functions() {
    let evasion = r#"{"eventVersion":"1.10","eventTime":"2026-05-01T09:59:00Z","eventSource":"bedrock.amazonaws.com","eventName":"InvokeModel","eventName":"GetCallerIdentity"}"#;
    let (decoded, batches) = decode_as(None, evasion.as_bytes());
    assert_eq!(decoded.flags, ["duplicate_key:eventName"]);
    assert_eq!(words(&batches[0], c::EVENT_NAME), ["InvokeModel"]);
    let raw: serde_json::Value = serde_json::from_str(batches[0].column(c::RAW).as_string_view().value(0)).expect("JSON");
    assert_eq!(raw["eventName"], "InvokeModel");
    assert_eq!(raw["eventName (duplicate 2)"], "GetCallerIdentity");
}

#[test]
fn invalid_utf8_nul_and_bombs() {
    let mut bytes = GOOD.as_bytes().to_vec();
    let at = bytes.len() - 3;
    bytes[at] = 0xff;
    assert_eq!(decode(&bytes).flags, ["invalid_utf8"]);
    assert_eq!(decode(b"\0\0\0").reasons, ["not_json"]);
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..260 {
        bomb.write_all(&[b' '; 1 << 20]).expect("memory");
    }
    let bomb = bomb.finish().expect("memory");
    assert!(bomb.len() < 1 << 20);
    assert_eq!(decode(&bomb).reasons, ["too_large"]);
    assert_eq!(decode(&[0x1f, 0x8b, 1, 2, 3]).reasons, ["bad_compression"]);
}

#[test]
fn truncated_anywhere_mutated_anyhow_nothing_panics_and_whole_records_are_kept() {
    let world = llmjacking(3, START - 30 * MINUTE, 20 * MINUTE, 20);
    let records: Vec<&str> = world.cloudtrail.iter().map(|r| r.text.as_str()).take(3).collect();
    let file = format!("{{\"Records\":[{}]}}", records.join(","));
    let ends: Vec<usize> = records.iter().scan(12, |at, record| Some(std::mem::replace(at, *at + record.len() + 1) + record.len())).collect();
    for cut in 0..file.len() {
        let decoded = decode(&file.as_bytes()[..cut]);
        let whole = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(decoded.rows.get("cloudtrail").copied().unwrap_or(0), whole, "cut at {cut}: {decoded:?}");
    }
    let mut rng = StdRng::seed_from_u64(9);
    let report = &world.exposure_reports[0].text;
    for round in 0..3_000 {
        let mut bytes = [records[round % 3], report.as_str(), file.as_str()][round % 3].as_bytes().to_vec();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[at] = rng.random(),
                1 => bytes[at] = [b'{', b'}', b'[', b']', b'"', b'\\', b',', b':', b'\n'][rng.random_range(0..9)],
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b'"'),
            }
        }
        for format in FORMATS.iter().map(|format| Some(format.name())).chain([None]) {
            let (decoded, _) = decode_as(format, &bytes);
            assert!(!decoded.rows.is_empty(), "{format:?} lost a message without a word");
        }
    }
}

#[test]
fn reports_of_every_kind_are_read_and_their_secrets_are_not_kept() {
    let secret = "wJalrXUtnFEMIK7MDENGbPxRfiCYzzzzzzzzzzzz";
    let key = "AKIAQNZGKIQY56JQ7WML";
    let gitleaks = format!(
        r#"[{{"RuleID":"aws-access-token","Secret":"{secret}","Match":"{key} {secret}","File":"a.env","StartLine":3,"Date":"2026-05-01T09:00:00Z","Fingerprint":"f"}}]"#
    );
    let trufflehog = format!(
        r#"{{"SourceMetadata":{{"Data":{{"Git":{{"commit":"c","file":"a","timestamp":"2026-05-01 09:00:00 +0000"}}}}}},"DetectorName":"AWS","Verified":true,"Raw":"{key}","RawV2":"{key}{secret}"}}"#
    );
    let github = r#"{"action":"created","alert":{"number":4,"created_at":"2026-05-01T09:00:00Z","secret_type":"openai_api_key","html_url":"https://github.com/a/b/security/4","validity":"active"},"repository":{"full_name":"a/b"}}"#;
    let health = format!(
        r#"{{"version":"0","detail-type":"AWS Health Event","source":"aws.health","detail":{{"eventTypeCode":"AWS_RISK_CREDENTIALS_EXPOSED","eventArn":"arn:1","startTime":"Fri, 1 May 2026 09:00:00 GMT","affectedEntities":[{{"entityValue":"{key}"}},{{"entityValue":"AKIAQNZGKIQY56JQ7WMM"}}]}}}}"#
    );
    let csv = format!("credential,exposed_at,location\n{key},2026-05-01T09:00:00Z,mail\n{secret},2026-05-01T09:00:00Z,\"a, b\"\n");
    for (text, rows, credential) in [
        (gitleaks.as_str(), 1, Some(key)),
        (trufflehog.as_str(), 1, Some(key)),
        (github, 1, None),
        (health.as_str(), 2, Some(key)),
        (csv.as_str(), 2, Some(key)),
    ] {
        let (decoded, batches) = decode_as(None, text.as_bytes());
        assert_eq!(decoded.rows, BTreeMap::from([("exposure_reports", rows)]), "{text:.50}: {decoded:?}");
        let names = batches[0].column(e::CREDENTIAL).as_string_view();
        assert_eq!((!names.is_null(0)).then(|| names.value(0)), credential, "{text:.50}");
        let shown = arrow::util::pretty::pretty_format_batches(&batches).expect("prints").to_string();
        assert!(!shown.contains(secret), "{text:.50} keeps its secret:\n{shown}");
    }
}
