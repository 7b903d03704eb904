//! Live = replay = backtest, through real parts: the embedded broker, a running service, its archive on disk.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use keyfuse::alert::{AlertLog, AllowList, Status, alerts_of};
use keyfuse::archive::{Archive, ArchiveHistory};
use keyfuse::clock::parse_time;
use keyfuse::clock::{MINUTE, Micros};
use keyfuse::detect::Engine;
use keyfuse::detect::analyse::Class;
use keyfuse::dimension::Dimensions;
use keyfuse::generate::llmjacking;
use keyfuse::replay::replay;
use keyfuse::secret::Fingerprinter;
use keyfuse::source::files;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{START, TestBroker, brokers, config, contents, delivered, metric, of_book, plain_settings, rows_of, sender, shipped, start, wait_for};

/// One record and when it happened.
struct Record {
    event_time: Micros,
    text: String,
}

#[test]
fn the_story_gives_the_same_alerts_on_all_ways() {
    let world = llmjacking(7, START, 20 * MINUTE, 250);
    let records: Vec<Record> =
        world.cloudtrail.iter().chain(&world.exposure_reports).map(|r| Record { event_time: r.event_time, text: r.text.clone() }).collect();
    let alerts = on_every_broker(&records);
    let expected: Vec<&str> = world.truth.iter().filter_map(|act| act["detection"].as_str()).collect();
    for detection in expected {
        assert!(alerts.iter().any(|name| name == detection), "{detection} was planted and not found");
    }
}

/// Real CloudTrail files, where the caller has some: `KEYFUSE_REAL_LOGS=folder cargo test real_logs`.
#[test]
fn real_logs_give_the_same_alerts_on_all_ways() {
    let Some(folder) = std::env::var_os("KEYFUSE_REAL_LOGS").map(PathBuf::from) else {
        println!("KEYFUSE_REAL_LOGS is not set: only the generated story was tried");
        return;
    };
    let mut records = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder").flatten() {
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(entry.path()).expect("a file")).expect("JSON");
        for record in file["Records"].as_array().into_iter().flatten() {
            let event_time = record["eventTime"].as_str().and_then(parse_time).expect("a time");
            records.push(Record { event_time, text: record.to_string() });
        }
    }
    println!("{} real records", records.len());
    // One key of the real logs is called exposed, so that joins and lineage have work too.
    let busiest = "AKIATFQR7NSC8Q4X20BJ";
    let first = records.iter().map(|r| r.event_time).min().unwrap_or(0);
    let report = serde_json::json!({"credential": busiest, "exposed_at": keyfuse::clock::rfc3339(first)});
    records.push(Record { event_time: first, text: report.to_string() });
    println!("alerts: {:?}", on_every_broker(&records));
}

fn on_every_broker(records: &[Record]) -> Vec<String> {
    let mut alerts = Vec::new();
    for broker in brokers(3) {
        println!("on the {} broker", broker.name);
        alerts = three_ways(records, &broker);
    }
    alerts
}

/// Runs the records through service, replay and backtest; gives the detections that alerted.
fn three_ways(records: &[Record], broker: &TestBroker) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut rng = StdRng::seed_from_u64(3);
    // Shuffled within the tables' maximum delay, by a producer whose clock is trusted.
    let mut sent: Vec<(Micros, &Record)> = records.iter().map(|r| (r.event_time + rng.random_range(0..25) * MINUTE, r)).collect();
    sent.sort_by_key(|(append_time, _)| *append_time);

    let config = config(folder.path(), &broker.address, &[&broker.topic]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let service = start(&config, &runtime);
    let sender = sender(&broker.address);
    let mut at = 0;
    while at < sent.len() {
        // One message holds one record, a handful as JSON lines, or a delivery file; it is appended when its last record is.
        let until = (at + rng.random_range(1..12)).min(sent.len());
        // Detections that are read again while rows come miss none of them.
        if [sent.len() / 3, sent.len() / 2].iter().any(|turn| (at..until).contains(turn)) {
            wait_for("rows", || rows_of(&service, &["cloudtrail", "exposure_reports"]) > 0);
            service.reload();
        }
        let texts: Vec<&str> = sent[at..until].iter().map(|(_, record)| record.text.as_str()).collect();
        let value = match rng.random_range(0..3) {
            0 => texts.join("\n"),
            1 => format!("[{}]", texts.join(",")),
            _ => format!("{{\"Records\":[{}]}}", texts.join(",")),
        };
        sender.send(&broker.topic, Some(rng.random_range(0..3)), None, value.as_bytes(), Some(sent[until - 1].0)).expect("sent");
        at = until;
    }
    sender.flush(std::time::Duration::from_secs(30)).expect("taken");
    wait_for("all rows", || rows_of(&service, &["cloudtrail", "exposure_reports"]) == records.len() as u64);
    wait_for("detections that were read again", || metric(&service, "keyfuse_reloads_total") >= 1);
    service.stop().expect("a clean stop");
    let (_, log) = AlertLog::open(&config.data.join("alerts.log")).expect("the alert log");
    let settled = log.alerts.iter().filter(|alert| matches!(alert.status, Status::Open | Status::Final));
    let live = contents(settled);
    let sent_to_file = delivered(&folder.path().join("alerts.ndjson"));
    let held: HashSet<&str> = log.alerts.iter().filter(|alert| alert.held.is_some()).map(|alert| alert.alert_id.as_str()).collect();
    assert!(live.keys().all(|id| sent_to_file.contains_key(id) != held.contains(id.as_str())), "what is not held is delivered");

    let path = folder.path().join("records.jsonl");
    std::fs::write(&path, records.iter().map(|r| format!("{}\n", r.text)).collect::<String>()).expect("written");
    let inputs = runtime.block_on(files::resolve(&[path.to_string_lossy().into_owned()], &Default::default())).expect("a file");
    let detections = shipped();
    let settings = plain_settings(&detections);
    let replayed = replay(&inputs, settings, runtime.handle(), |_, _| {}).unwrap_or_else(|errors| panic!("{}", errors[0]));
    assert!(replayed.summary.rejects.is_empty(), "{:?}", replayed.summary.rejects);
    let replayed = of_book(&replayed.book);

    let archive = Arc::new(runtime.block_on(Archive::open(&config.archive, &Default::default())).expect("the archive"));
    let history = ArchiveHistory { archive, runtime: runtime.handle().clone() };
    let mut engine = Engine::new(&detections, &Fingerprinter::public(), &Dimensions::default()).unwrap_or_else(|errors| panic!("{}", errors[0]));
    engine.advance(sent.last().expect("records").0);
    engine.backtest(&history, Micros::MIN).expect("reads");
    let findings = engine.tick(&history).expect("runs");
    let backtested = of_book(&alerts_of(&findings, AllowList::default()));

    // How far time has come at the end is not the same three ways: what needs time is compared where all had enough.
    let patient: HashSet<&str> =
        engine.detections().filter(|(_, analysis)| analysis.class == Class::C3).map(|(detection, _)| detection.name.as_str()).collect();
    let enough = records.iter().map(|record| record.event_time).max().expect("records") - 4 * 60 * MINUTE;
    let sure = |alerts: BTreeMap<String, serde_json::Value>| -> BTreeMap<String, serde_json::Value> {
        let is_sure = |alert: &serde_json::Value| {
            let at = alert["last_time"].as_str().and_then(keyfuse::clock::parse_time);
            !patient.contains(alert["detection"].as_str().unwrap_or_default()) || at.is_some_and(|at| at < enough)
        };
        alerts.into_iter().filter(|(_, alert)| is_sure(alert)).collect()
    };
    let (live, replayed, backtested) = (sure(live), sure(replayed), sure(backtested));
    assert_eq!(replayed, backtested, "replay and backtest");
    assert_eq!(live.keys().collect::<Vec<_>>(), replayed.keys().collect::<Vec<_>>(), "ids, live and replayed");
    for (id, content) in &replayed {
        for (name, value) in content.as_object().expect("an object") {
            assert_eq!(&live[id][name], value, "{name} of {id}, live and replayed");
        }
    }
    let mut names: Vec<String> = replayed.values().filter_map(|alert| Some(alert["detection"].as_str()?.to_owned())).collect();
    names.sort();
    names
}
