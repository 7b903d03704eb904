//! What people read: nothing of a hostile log acts on their terminal, and a page about very much says how things stand at the end.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use keyfuse::alert::Alert;
use keyfuse::clock::rfc3339;
use keyfuse::investigate::{Dossier, investigate, page};
use keyfuse::query::{Doors, Limits, on_deep_stacks};
use keyfuse::replay::replay;
use keyfuse::secret::Fingerprinter;
use keyfuse::source::files;
use keyfuse::table::{Memory, Rows, alerts};

use crate::support::{START, alert_file, brokers, config, delivered, metric, plain_settings, sender, shipped, start, wait_for};

/// Writes the clipboard, then begins a row of its own.
const HOSTILE: &str = r"\u001b]52;c;cm0=\u0007\nforged\u009b2J";
/// The same as a person is to see it.
const SEEN: &str = r"\x1B]52;c;cm0=\x07\x0Aforged";

#[test]
fn what_a_hostile_log_holds_is_seen_on_the_terminal_and_does_nothing_there() {
    let broker = &brokers(1)[0];
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), &broker.address, &[&broker.topic]);
    let record = format!(
        r#"{{"eventVersion":"1.11","eventTime":"2026-05-01T10:00:00Z","eventSource":"bedrock.amazonaws.com","eventName":"DeleteGuardrail","eventID":"d1","sourceIPAddress":"203.0.113.9","userAgent":"agent{HOSTILE}","userIdentity":{{"type":"IAMUser","arn":"arn:aws:iam::111122223333:user/x{HOSTILE}"}},"additionalEventData":{{"callWithBearerToken":true}}}}"#
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let service = start(&config, &runtime);
    let sender = sender(&broker.address);
    sender.send(&broker.topic, Some(0), None, record.as_bytes(), Some(START)).expect("sent");
    sender.flush(Duration::from_secs(30)).expect("taken");
    wait_for("deliveries", || metric(&service, "keyfuse_deliveries_total") == 2);
    service.stop().expect("a clean stop");
    let alerts = delivered(alert_file(&config));
    let id = alerts.iter().find(|(_, alert)| alert["detection"] == "LLM-10").expect("LLM-10").0.as_str();
    let log = folder.path().join("log.jsonl");
    std::fs::write(&log, &record).expect("written");
    let log = log.to_string_lossy();
    let archive = ["--archive", config.archive.as_str()];
    for (args, shows) in [
        // A line of a cell that goes on is marked.
        ([&["sql", "SELECT identity, user_agent FROM cloudtrail"][..], &archive].concat(), r"\x1B]52;c;cm0=\x07↵"),
        ([&["investigate", id][..], &archive].concat(), SEEN),
        ([&["investigate", "arn:aws:iam::nobody"][..], &archive].concat(), SEEN),
        ([&["explain", id][..], &archive].concat(), SEEN),
        ([&["explain", "--why-not", "LLM-13", "d1"][..], &archive].concat(), ""),
        ([&["doctor"][..], &archive].concat(), ""),
        (vec!["replay", &log], SEEN),
        (vec!["explain-format", &log], SEEN),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_keyfuse")).args(&args).output().expect("keyfuse runs");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let bare: Vec<char> = said.chars().filter(|c| c.is_control() && *c != '\n').collect();
        assert!(bare.is_empty(), "{args:?}: {bare:?} in\n{said}");
        assert!(!said.lines().any(|line| line.starts_with("forged")), "{args:?}\n{said}");
        assert!(said.contains(shows), "{shows} in {args:?}\n{said}");
    }
}

/// The page about a name, over these rows.
fn about(name: &str, rows: &Arc<Memory>) -> Dossier {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let doors = Doors::new(None, Arc::clone(rows), Arc::default(), Fingerprinter::public(), Limits::default());
    let name = name.to_owned();
    let dossier = on_deep_stacks(&runtime, async move { investigate(&doors.open().await?, &name).await });
    runtime.shutdown_background();
    dossier.unwrap_or_else(|error| panic!("{error}"))
}

/// The rows of a log, and one alert to make others of.
fn rows_of(log: &Path) -> (Arc<Memory>, Alert) {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let inputs = runtime.block_on(files::resolve(&[log.to_string_lossy().into_owned()], &Default::default())).expect("files");
    let detections: Vec<_> = shipped().into_iter().filter(|detection| detection.name == "LLM-10").collect();
    let replayed = replay(&inputs, plain_settings(&detections), runtime.handle(), |_, _| {}).unwrap_or_else(|errors| panic!("{}", errors[0]));
    runtime.shutdown_background();
    let alert = (*replayed.book.all().first().expect("an alert")).clone();
    (Arc::new(replayed.rows), alert)
}

fn add_alerts(rows: &Memory, all: impl IntoIterator<Item = Alert>) {
    let mut added = Rows::new(&alerts::TABLE);
    all.into_iter().for_each(|alert| alert.append(&mut added));
    rows.add(&alerts::TABLE, &added.finish());
}

/// An act of a user's key; `more` are further members of the record.
fn act(number: i64, name: &str, user: &str, key: &str, more: &str) -> String {
    let time = rfc3339(START + number * 60_000_000);
    format!(
        r#"{{"eventVersion":"1.11","eventTime":"{time}","eventSource":"iam.amazonaws.com","eventName":"{name}","eventID":"{user}-{number}","sourceIPAddress":"203.0.113.9",{more},"userIdentity":{{"type":"IAMUser","arn":"arn:aws:iam::111122223333:user/{user}","accessKeyId":"{key}"}}}}"#
    ) + "\n"
}

#[test]
fn a_page_about_very_much_says_how_it_ends_and_whose_each_key_is() {
    let [carol, alice, bob] = ["AKIARTX3GSDSCAROL001", "AKIARTX3GSDSALICE001", "AKIARTX3GSDSBOB00001"];
    let makes = |key: &str, user: &str| {
        format!(
            r#""requestParameters":{{"userName":"{user}"}},"responseElements":{{"accessKey":{{"accessKeyId":"{key}","userName":"{user}","status":"Active"}}}}"#
        )
    };
    let sets = |status: &str| format!(r#""requestParameters":{{"accessKeyId":"{alice}","status":"{status}","userName":"alice"}}"#);
    let mut log = act(0, "CreateAccessKey", "eng/carol", carol, &makes(alice, "alice"));
    log += &act(1, "CreateAccessKey", "eng/alice", alice, &makes(bob, "bob"));
    log += &act(2, "ListUsers", "eng/bob", bob, r#""requestParameters":null"#);
    (3..450).for_each(|number| log += &act(number, "UpdateAccessKey", "eng/alice", alice, &sets(if number == 449 { "Inactive" } else { "Active" })));
    log += r#"{"eventVersion":"1.11","eventTime":"2026-05-01T10:00:00Z","eventSource":"bedrock.amazonaws.com","eventName":"DeleteGuardrail","eventID":"d1","userIdentity":{"type":"IAMUser","arn":"arn:aws:iam::111122223333:user/other"},"additionalEventData":{"callWithBearerToken":true}}"#;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log.jsonl");
    std::fs::write(&path, log).expect("written");
    let (rows, alert) = rows_of(&path);
    let of_alice = |number: i64| {
        let mut alert = alert.clone();
        (alert.alert_id, alert.first_time) = (format!("{number:032}"), START + number * 60_000_000);
        alert.level = if number == 500 { "critical" } else { "medium" }.into();
        alert.payload = [("credential".to_owned(), alice.into())].into();
        alert
    };
    add_alerts(&rows, (0..=500).map(of_alice));

    let dossier = about(alice, &rows);
    let verdict = dossier.verdict.join("\n");
    assert!(verdict.contains("1 critical alert, 501 in all."), "{verdict}");
    assert!(verdict.contains("inactive since 2026-05-01 17:29:00, and nothing was done with it since"), "{verdict}");
    let timeline = &dossier.timeline.sheet;
    assert_eq!((timeline.rows.len(), timeline.left_out > 0), (400, true));
    assert_eq!(timeline.time(399, "last"), Some(START + 449 * 60_000_000));
    let html = page(&dossier, "now");
    assert!(html.contains("<ul class=\"verdict critical\">") && html.contains("lines between") && html.contains("are not drawn"), "the page");
    let commands = |dossier: &Dossier| dossier.steps.iter().map(|(_, command)| command.as_str()).collect::<Vec<_>>().join("\n");
    // What is cut off is not cut off again; whose the other is, the rows of that key say.
    let said = commands(&dossier);
    assert!(!said.contains(&format!("--access-key-id {alice}")), "{said}");
    assert!(said.contains(&format!("--access-key-id {bob} --status Inactive --user-name bob")), "{said}");
    let said = commands(&about(carol, &rows));
    assert!(said.contains(&format!("--access-key-id {carol} --status Inactive --user-name carol")), "{said}");
}

#[test]
fn alerts_are_found_by_names_of_any_letters_and_only_by_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log.jsonl");
    let record = r#"{"eventVersion":"1.11","eventTime":"2026-05-01T10:00:00Z","eventSource":"bedrock.amazonaws.com","eventName":"DeleteGuardrail","eventID":"d1","userIdentity":{"type":"IAMUser","arn":"arn:aws:iam::111122223333:user/other"},"additionalEventData":{"callWithBearerToken":true}}"#;
    std::fs::write(&path, record).expect("written");
    let (rows, alert) = rows_of(&path);
    let names = [r#"say "hi" \o/"#, "team_a", "teamXa", "100%", "100 or more", "it's", "line\nbreak"];
    let of = |(number, name): (usize, &&str)| {
        let mut alert = alert.clone();
        alert.alert_id = format!("{number:032}");
        (alert.alert_key, alert.payload) = ([("agent_id".to_owned(), (*name).into())].into(), Default::default());
        alert
    };
    add_alerts(&rows, names.iter().enumerate().map(of));
    for (number, name) in names.iter().enumerate() {
        let dossier = about(&format!("{number:032}"), &rows);
        assert_eq!((dossier.name.as_str(), dossier.alerts.sheet.rows.len(), &dossier.alerts.sheet.trouble), (*name, 1, &None));
    }
}
