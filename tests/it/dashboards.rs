//! Dashboards and rules name only what exists, and every query of theirs answers on the demo's story.

use std::collections::BTreeSet;
use std::sync::Arc;

use keyfuse::alert::Alert;
use keyfuse::detect::read_folder;
use keyfuse::dimension::{Dimensions, Files};
use keyfuse::metrics::Metrics;
use keyfuse::query::{Doors, Limits};
use keyfuse::replay::replay;
use keyfuse::secret::Fingerprinter;
use keyfuse::source::files;
use keyfuse::table::{Rows, alerts};
use serde_json::Value;

use crate::support::plain_settings;

fn boards() -> Vec<(String, Value)> {
    let files = std::fs::read_dir("dashboards/grafana/dashboards").expect("dashboards").flatten().map(|entry| entry.path());
    let read = |path: std::path::PathBuf| (path.display().to_string(), serde_json::from_str(&std::fs::read_to_string(&path).expect("text")).expect("JSON"));
    let boards: Vec<_> = files.map(read).collect();
    assert_eq!(boards.len(), 5);
    boards
}

/// The words of a text that begin like a metric of ours or of the process.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("keyfuse_") || word.starts_with("process_")).collect()
}

#[test]
fn every_metric_that_a_panel_or_a_rule_names_exists() {
    let names = vec![("EXP-01".to_owned(), "high".to_owned())];
    let page = Metrics::new(&names, &["t".into()], &["s".into()]).expect("metrics");
    page.lag.with_label_values(&["t", "0"]);
    let page = page.page();
    let known = |name: &str| page.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let mut asked = 0;
    for (path, board) in boards() {
        assert!(board["uid"].as_str().unwrap().starts_with("keyfuse-"), "{path}: a stable uid");
        for panel in board["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let uid = target["datasource"]["uid"].as_str().unwrap();
                assert!(["${prometheus}", "${keyfuse}"].contains(&uid), "{path}: {}: {uid} is no variable", panel["title"]);
                for name in metrics_in(target["expr"].as_str().unwrap_or_default()) {
                    assert!(known(name), "{path}: {}: {name}", panel["title"]);
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 30);
    let rules = std::fs::read_to_string("dashboards/prometheus/keyfuse.rules.yml").expect("rules");
    let runbook = std::fs::read_to_string("docs/runbook.md").expect("a runbook").to_lowercase();
    let (mut exprs, mut links) = (0, 0);
    for line in rules.lines() {
        if let Some((_, expr)) = line.split_once("expr: ") {
            metrics_in(expr).into_iter().for_each(|name| assert!(known(name), "rules: {name}"));
            exprs += 1;
        }
        if let Some((_, anchor)) = line.split_once("runbook_url: docs/runbook.md#") {
            assert!(runbook.contains(&format!("## {anchor}\n")), "{anchor}");
            links += 1;
        }
    }
    assert_eq!((exprs, links), (12, 12));
    if let Ok(checked) = std::process::Command::new("promtool").args(["check", "rules", "dashboards/prometheus/keyfuse.rules.yml"]).output() {
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}

/// What only a running service writes, or the story does not have.
const MAY_BE_EMPTY: [&str; 5] =
    ["Refused records", "What each detection sees, the blind first", "Tools: used and allowed", "Tool calls by agent", "Delegation"];

#[test]
fn every_question_of_a_panel_answers_on_the_story() {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let detections = read_folder(std::path::Path::new("detections")).expect("detections");
    let known = Files {
        agents: Some("sample-data/llmjacking/agents.toml".into()),
        approvals: Some("sample-data/llmjacking/approvals.toml".into()),
        ..Files::default()
    };
    let dimensions = Dimensions::read(&known).expect("dimensions");
    let inputs = runtime.block_on(files::resolve(&["sample-data/llmjacking/*.jsonl".to_owned()], &Default::default())).expect("files");
    let replayed = replay(&inputs, plain_settings(&detections), runtime.handle(), |_, _| {}).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let mut rows = Rows::new(&alerts::TABLE);
    for alert in replayed.book.all() {
        let mut alert: Alert = alert.clone();
        alert.decided_at = alert.first_time;
        alert.append(&mut rows);
    }
    replayed.rows.add(&alerts::TABLE, &rows.finish());
    let doors = Doors::new(None, Arc::new(replayed.rows), Arc::new(dimensions), Fingerprinter::public(), Limits::default());
    let (mut asked, mut empty) = (0, Vec::new());
    for (path, board) in boards() {
        let queries = board["panels"]
            .as_array()
            .expect("panels")
            .iter()
            .flat_map(|panel| panel["targets"].as_array().into_iter().flatten().map(move |target| (panel, target)));
        for (panel, sql) in queries.filter_map(|(panel, target)| Some((panel, target["rawSql"].as_str()?))) {
            // As Grafana does it.
            let mut text = sql.replace("${credential}", "AKIARTX3GSDSUO2PRDQD");
            while let Some((before, rest)) = text.split_once("$__timeFilter(") {
                let (column, after) = rest.split_once(')').expect("a bracket");
                text = format!("{before}{column} BETWEEN '2026-05-01T00:00:00Z' AND '2026-05-02T00:00:00Z'{after}");
            }
            let door = runtime.block_on(doors.open()).expect("a door");
            let answer = keyfuse::query::on_deep_stacks(&runtime, async move { door.ask(&text).await });
            let answer = answer.unwrap_or_else(|error| panic!("{path}: {}: {error}", panel["title"]));
            asked += 1;
            if answer.rows() == 0 {
                empty.push(panel["title"].as_str().unwrap().to_owned());
            }
        }
    }
    assert!(asked > 25, "{asked}");
    let unexpected: Vec<&String> = empty.iter().filter(|title| !MAY_BE_EMPTY.contains(&title.as_str())).collect();
    assert!(unexpected.is_empty(), "no data in {unexpected:?}");
    runtime.shutdown_background();
}
