//! Every shipped detection proves itself.

use std::path::Path;

use std::sync::Arc;

use keyfuse::clock::{MINUTE, rfc3339};
use keyfuse::detect::read_folder;
use keyfuse::dimension::Dimensions;
use keyfuse::explain::Explainer;
use keyfuse::schedule::Past;
use keyfuse::secret::Fingerprinter;
use keyfuse::selftest;
use keyfuse::table::{Memory, Place, Rows, cloudtrail as c, model_invocations as m};

use crate::support::START;

#[test]
fn the_tests_inside_every_detection_file_pass() {
    let detections = read_folder(Path::new("detections")).expect("detections parse");
    let mut failures = Vec::new();
    for detection in &detections {
        match selftest::run(detection) {
            Ok(outcomes) => failures.extend(outcomes.into_iter().filter_map(|o| Some(format!("{} / {}: {}", o.detection, o.title, o.failure?)))),
            Err(errors) => failures.extend(errors.iter().map(ToString::to_string)),
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn every_tag_is_in_the_table_and_every_detection_serves_all_eight_frameworks() {
    let frameworks = keyfuse::coverage::frameworks().expect("the table parses");
    assert_eq!(frameworks.len(), 8);
    let detections = crate::support::shipped();
    for detection in &detections {
        assert_eq!(keyfuse::coverage::unknown_tags(detection, &frameworks), Vec::<&str>::new(), "{}", detection.name);
        for framework in &frameworks {
            assert!(detection.tags.iter().any(|tag| tag.starts_with(&framework.tag)), "{} has no tag of {}", detection.name, framework.name);
        }
    }
    assert!(detections.len() >= 60, "{}", detections.len());
}

#[test]
fn every_number_that_a_detection_compares_with_is_a_named_threshold_with_a_source() {
    let detections = crate::support::shipped();
    let engine = keyfuse::detect::Engine::new(&detections, &keyfuse::secret::Fingerprinter::public(), &keyfuse::dimension::Dimensions::default());
    let engine = engine.unwrap_or_else(|errors| panic!("{}", errors[0]));
    let thresholds: usize = engine.detections().map(|(_, analysis)| analysis.thresholds.len()).sum();
    assert!(thresholds >= 40, "{thresholds}");
    for detection in &detections {
        // None and one are no thresholds.
        let words: Vec<&str> = detection.sql.split_whitespace().collect();
        let bare = words.windows(2).find(|pair| [">=", ">", "<=", "<"].contains(&pair[0]) && pair[1].trim_end_matches(')').parse::<u64>().is_ok_and(|n| n > 1));
        assert_eq!(bare, None, "{}", detection.name);
    }
    let refused = refusal("SELECT access_key_id AS credential, event_time AS alert_time FROM cloudtrail WHERE bytes_out > threshold(5, 'bytes', '')");
    assert!(refused.contains("where the value comes from"), "{refused}");
}

#[test]
fn a_detection_with_a_schedule_says_why_it_did_not_see_an_event() {
    let past = Arc::new(Memory::default());
    let place = |offset| Place { topic: "t".into(), partition: 0, offset, record: 0 };
    let (mut calls, mut logs) = (Rows::new(&c::TABLE), Rows::new(&m::TABLE));
    for (number, name) in [(1, "InvokeModel"), (2, "ListFoundationModels")] {
        calls.stamp(&place(number), Some(START), Some(START + 5 * MINUTE), &format!("event-{number}"), &mut String::new());
        for (column, value) in [
            (c::ACCOUNT_ID, "1"),
            (c::AWS_REGION, "us-east-1"),
            (c::EVENT_SOURCE, "bedrock.amazonaws.com"),
            (c::EVENT_NAME, name),
            (c::OUTCOME, "success"),
            (c::REQUEST_ID, "r1"),
        ] {
            calls.text(column, Some(value));
        }
        calls.end_row();
    }
    logs.stamp(&place(3), Some(START), Some(START), "event-3", &mut String::new());
    for (column, value) in [(m::ACCOUNT_ID, "1"), (m::REGION, "us-east-1"), (m::PROVIDER, "aws.bedrock"), (m::REQUEST_ID, "another")] {
        logs.text(column, Some(value));
    }
    logs.end_row();
    past.add(&c::TABLE, &calls.finish());
    past.add(&m::TABLE, &logs.finish());
    let detections = crate::support::shipped();
    let detection = detections.iter().find(|detection| detection.name == "COV-01").expect("shipped");
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let (dimensions, fingerprinter, same) = (Dimensions::default(), Fingerprinter::public(), Past::Memory(Arc::clone(&past)));
    let explainer = Explainer { history: &*past, past: &same, dimensions: &dimensions, fingerprinter: &fingerprinter, runtime: &runtime };
    // At eleven it is half an hour old at last; then it is one call without a log where ten are worth an alert.
    let seen = explainer.why_not(detection, "event-1").expect("explained");
    assert_eq!(seen[0].asked_at, Some(rfc3339(START + 60 * MINUTE)));
    assert!(seen[0].clauses.iter().all(|clause| clause.holds == Some(true)), "{seen:?}");
    assert!(seen[0].returned.is_empty() && seen[0].in_the_way.iter().any(|clause| clause.text.contains(">= 10")), "{seen:?}");
    let seen = explainer.why_not(detection, "event-2").expect("explained");
    let failed: Vec<&str> = seen[0].clauses.iter().filter(|clause| clause.holds == Some(false)).map(|clause| clause.text.as_str()).collect();
    assert!(failed.len() == 1 && failed[0].contains("event_name"), "{seen:?}");
    assert!(explainer.why_not(detection, "event-9").is_err());
}

/// The refusal of a detection with this query.
fn refusal(sql: &str) -> String {
    let mut detection = crate::support::shipped().remove(0);
    (detection.sql, detection.schedule) = (sql.to_owned(), None);
    detection.alert_key = vec!["credential".into()];
    let refused = keyfuse::detect::Engine::new(&[detection], &keyfuse::secret::Fingerprinter::public(), &keyfuse::dimension::Dimensions::default());
    refused.err().map(|errors| errors[0].to_string()).unwrap_or_default()
}

const LAG: &str =
    "SELECT access_key_id, event_time, event_id, lag(event_time) OVER (PARTITION BY access_key_id ORDER BY event_time, event_id) AS before FROM cloudtrail";

#[test]
fn what_could_change_last_month_or_has_no_bound_is_refused() {
    let as_of = "u.append_time >= a.valid_from AND u.append_time < a.valid_to";
    let lag = LAG;
    for (sql, word) in [
        (format!("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u JOIN agents a ON a.identity = u.identity AND ({as_of} OR u.read_only)"), "as of which row's arrival"),
        ("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u JOIN agents a ON a.identity = u.identity AND u.append_time <= a.valid_from AND u.append_time > a.valid_to".into(), "as of which row's arrival"),
        ("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u JOIN agents a ON a.identity = u.identity".into(), "as of which row's arrival"),
        ("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u WHERE NOT EXISTS (SELECT 1 FROM cloudtrail v WHERE v.access_key_id = u.access_key_id)".into(), "no time bound between alert_time and cloudtrail"),
        ("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u WHERE u.access_key_id NOT IN (SELECT access_key_id FROM cloudtrail v WHERE v.event_time < u.event_time)".into(), "write NOT EXISTS"),
        ("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u WHERE NOT EXISTS (SELECT 1 FROM cloudtrail v WHERE v.access_key_id = u.access_key_id AND v.event_time BETWEEN u.event_time AND u.event_time + INTERVAL '8 days')".into(), "too long to wait for"),
        ("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u WHERE NOT EXISTS (SELECT 1 FROM cloudtrail v WHERE v.identity <> u.identity AND v.event_time BETWEEN u.event_time - INTERVAL '1 day' AND u.event_time)".into(), "no key"),
        ("SELECT access_key_id AS credential, event_time AS alert_time, lag(event_time) OVER (PARTITION BY access_key_id ORDER BY event_time) AS before FROM cloudtrail".into(), "write NOT EXISTS"),
        // How long ago the earlier row was nobody knows once it was let go of.
        (format!("SELECT access_key_id AS credential, event_time AS alert_time, before FROM ({lag}) WHERE before IS NULL OR before < event_time - INTERVAL '30 days'"), "write NOT EXISTS"),
        (format!("SELECT access_key_id AS credential, event_time AS alert_time FROM ({lag}) WHERE before IS NULL OR event_time - before > INTERVAL '1 month'"), "of months, which has no length"),
        (format!("SELECT access_key_id AS credential, event_time AS alert_time FROM ({lag}) WHERE before IS NULL OR CAST(before AS DATE) <= CAST(event_time AS DATE) - INTERVAL '1 day'"), "write NOT EXISTS"),
        (format!("SELECT access_key_id AS credential, event_time AS alert_time FROM ({lag}) WHERE event_time - before > INTERVAL '30 days'"), "write NOT EXISTS"),
        (format!("SELECT access_key_id AS credential, event_time AS alert_time FROM ({lag}) WHERE before IS NULL OR before < event_time - INTERVAL '30 days'").replace(", event_id)", ")"), "ORDER BY event_time, event_id"),
        ("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u FULL JOIN cloudtrail v ON v.access_key_id = u.access_key_id AND v.event_time = u.event_time".into(), "UNION ALL"),
    ] {
        let refused = refusal(&sql);
        assert!(refused.contains(word), "{word} in `{refused}` of {sql}");
    }
    let good =
        format!("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u LEFT JOIN agents a ON a.identity = u.identity AND {as_of}");
    assert_eq!(refusal(&good), "");
}

#[test]
fn what_more_rows_could_take_back_waits_and_says_how_long() {
    let counted = "SELECT access_key_id AS credential, identity, append_time, date_bin(INTERVAL '1 hour', event_time) AS alert_time,
        count(*) OVER (PARTITION BY access_key_id ORDER BY event_time RANGE BETWEEN INTERVAL '1 hour' PRECEDING AND CURRENT ROW) AS n FROM cloudtrail";
    let as_of = "u.append_time >= a.valid_from AND u.append_time < a.valid_to";
    for (sql, minutes) in [
        (format!("SELECT u.credential, u.alert_time FROM ({counted}) u WHERE NOT EXISTS (SELECT 1 FROM agents a WHERE a.identity = u.identity AND {as_of} AND u.n >= 10)"), 90),
        ("SELECT access_key_id AS credential, date_bin(INTERVAL '1 hour', event_time) AS alert_time FROM cloudtrail GROUP BY 1, 2 HAVING sum(partition) > 5".into(), 90),
        (format!("SELECT access_key_id AS credential, event_time AS alert_time FROM ({LAG}) WHERE before IS NULL OR before <= event_time - INTERVAL '30 days'"), 30),
        ("SELECT credential, date_bin(INTERVAL '1 hour', event_time) AS alert_time FROM model_invocations GROUP BY 1, 2 HAVING sum(max_tokens) > 5".into(), 90),
        ("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u WHERE NOT EXISTS (SELECT 1 FROM cloudtrail v WHERE v.access_key_id = u.access_key_id AND v.event_time BETWEEN u.event_time - INTERVAL '1 day' AND u.event_time - INTERVAL '1 second')".into(), 30),
        ("SELECT u.access_key_id AS credential, u.event_time AS alert_time FROM cloudtrail u WHERE NOT EXISTS (SELECT 1 FROM cloudtrail v WHERE v.access_key_id = u.access_key_id AND v.event_time BETWEEN u.event_time AND u.event_time + INTERVAL '2 hours')".into(), 150),
    ] {
        let mut detection = crate::support::shipped().remove(0);
        (detection.sql, detection.alert_key, detection.schedule) = (sql, vec!["credential".into()], None);
        let engine = keyfuse::detect::Engine::new(&[detection], &keyfuse::secret::Fingerprinter::public(), &keyfuse::dimension::Dimensions::default());
        let engine = engine.unwrap_or_else(|errors| panic!("{}", errors[0]));
        let (_, analysis) = engine.detections().next().expect("one");
        assert_eq!((analysis.class, analysis.wait / keyfuse::clock::MINUTE), (keyfuse::detect::analyse::Class::C3, minutes));
    }
}

/// Calls of one key, a few milliseconds apart, one in ten refused.
fn many_calls(key: &str, count: i64, from: i64) -> arrow::record_batch::RecordBatch {
    let mut rows = keyfuse::table::Rows::new(&c::TABLE);
    let place = keyfuse::table::Place { topic: "t".into(), partition: 0, offset: 0, record: 0 };
    for number in 0..count {
        let at = START + (from + number) * 5_000;
        rows.stamp(&place, Some(at), Some(at), &format!("{key}-{from}-{number}"), &mut String::new());
        rows.text(c::ACCESS_KEY_ID, Some(key));
        rows.text(c::SOURCE_IP, Some("198.51.100.7"));
        rows.text(c::EVENT_SOURCE, Some("bedrock.amazonaws.com"));
        rows.text(c::EVENT_NAME, Some("InvokeModel"));
        rows.end_row();
    }
    rows.finish()
}

#[test]
fn a_key_of_very_many_rows_rests_and_the_others_do_not() {
    let mut detection = crate::support::shipped().remove(0);
    detection.sql = "SELECT access_key_id AS credential, date_bin(INTERVAL '1 hour', event_time) AS alert_time, count(*) AS calls FROM cloudtrail
        WHERE event_name = 'InvokeModel' GROUP BY access_key_id, date_bin(INTERVAL '1 hour', event_time) HAVING count(*) >= 3"
        .into();
    (detection.alert_key, detection.schedule, detection.early) = (vec!["credential".into()], None, false);
    let engine = keyfuse::detect::Engine::new(&[detection.clone()], &keyfuse::secret::Fingerprinter::public(), &keyfuse::dimension::Dimensions::default());
    // No machine looks at so many rows in no time at all.
    let mut engine = engine.unwrap_or_else(|errors| panic!("{}", errors[0])).with_tick_bounds(keyfuse::limits::TICK_ROWS, std::time::Duration::ZERO);
    let past = keyfuse::table::Memory::default();
    let tick = |engine: &mut keyfuse::detect::Engine, batch: arrow::record_batch::RecordBatch| {
        past.add(&c::TABLE, &batch);
        engine.push(&c::TABLE, &batch).expect("pushed");
        engine.advance(engine.newest());
        let found = engine.tick(&past).expect("ticked");
        found.iter().map(|finding| finding.key[0].1.json().as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(tick(&mut engine, many_calls("AKIAHOT", 40_000, 0)), ["AKIAHOT"], "it is looked at once");
    assert_eq!((engine.report()[0].resting, engine.decided()), (1, Some(engine.progress())));
    let decided = engine.decided();
    assert!(tick(&mut engine, many_calls("AKIAHOT", 10, 40_000)).is_empty(), "then it rests");
    assert_eq!((engine.pending(), engine.decided()), (0, decided), "and what it did meanwhile is not called decided");
    assert_eq!(tick(&mut engine, many_calls("AKIAOTHER", 3, 40_100)), ["AKIAOTHER"], "which holds up nobody else");
    assert!(engine.report()[0].behind > 0);
    engine.wake();
    assert_eq!(tick(&mut engine, many_calls("AKIAOTHER", 0, 0)), ["AKIAHOT"], "its turn comes");
    assert_eq!((engine.decided(), engine.report()[0].behind), (Some(engine.progress()), 0));
}
