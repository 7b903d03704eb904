//! The command as its users type it: exit codes, outputs, refusals, and pages that are generated.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn keyfuse(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keyfuse")).args(args).output().expect("keyfuse runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const STORY: [&str; 2] = ["sample-data/llmjacking/cloudtrail.jsonl", "sample-data/llmjacking/exposure_reports.jsonl"];

#[test]
fn replay_finds_the_story_and_says_so_with_its_exit_code() {
    let found = keyfuse(&["replay", STORY[0], STORY[1], "--output", "json"]);
    assert_eq!(found.status.code(), Some(1), "{}", stderr(&found));
    let alerts: Vec<serde_json::Value> = stdout(&found).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let truth = std::fs::read_to_string("sample-data/llmjacking/truth.ndjson").expect("the truth");
    for act in truth.lines() {
        let act: serde_json::Value = serde_json::from_str(act).expect("JSON");
        let of_act = |alert: &&serde_json::Value| alert["detection"] == act["detection"] && alert.to_string().contains(act["subject"].as_str().unwrap_or("?"));
        assert!(alerts.iter().any(|alert| of_act(&alert)), "not found: {act}");
    }
    assert!(alerts.iter().all(|alert| alert["what_to_do"].as_str().is_some_and(|text| !text.is_empty())));
    assert!(stderr(&found).contains("rejects    0"), "{}", stderr(&found));
    assert_eq!(keyfuse(&["replay", STORY[0], STORY[1], "--fail-on", "never"]).status.code(), Some(0));
    assert_eq!(keyfuse(&["replay", "nowhere.json"]).status.code(), Some(2));
    assert_eq!(keyfuse(&["replay", STORY[0], "--format", "syslog"]).status.code(), Some(2));
}

#[test]
fn ordinary_traffic_is_silent_and_gzip_and_stdin_read_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_string_lossy().into_owned();
    assert!(keyfuse(&["generate", "--story", "ordinary", "--events", "3000", "--out", &out]).status.success());
    let plain = folder.path().join("cloudtrail.jsonl");
    let quiet = keyfuse(&["replay", &plain.to_string_lossy()]);
    assert_eq!(quiet.status.code(), Some(0), "{}", stdout(&quiet));
    assert!(stderr(&quiet).contains("held back  7 LLM-15: the past"), "{}", stderr(&quiet));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &std::fs::read(&plain).expect("read")).expect("memory");
    let packed = folder.path().join("cloudtrail.jsonl.gz");
    std::fs::write(&packed, gzip.finish().expect("memory")).expect("written");
    let stdin = std::process::Stdio::from(std::fs::File::open(&packed).expect("open"));
    let piped = Command::new(env!("CARGO_BIN_EXE_keyfuse")).args(["replay", "-"]).stdin(stdin).output().expect("runs");
    let records = format!("{} cloudtrail", std::fs::read_to_string(&plain).expect("read").lines().count());
    for output in [&quiet, &piped, &keyfuse(&["replay", &packed.to_string_lossy()])] {
        assert!(stderr(output).contains(&records), "{}", stderr(output));
    }
}

#[test]
fn who_is_first_seen_in_a_file_is_told_where_the_file_reaches_back_far_enough() {
    let folder = tempfile::tempdir().expect("a folder");
    let call = |time: &str, source: &str, name: &str, id: &str| {
        format!(
            r#"{{"eventVersion":"1.11","eventTime":"{time}","eventSource":"{source}","eventName":"{name}","eventID":"{id}","sourceIPAddress":"203.0.113.9","userIdentity":{{"type":"AssumedRole","arn":"arn:aws:sts::111122223333:assumed-role/reports/x","sessionContext":{{"sessionIssuer":{{"type":"Role","arn":"arn:aws:iam::111122223333:role/reports"}}}}}}}}"#
        )
    };
    let first = call("2026-05-01T10:00:00Z", "bedrock.amazonaws.com", "Converse", "first");
    let replayed = |before: &str| {
        let file = folder.path().join("trail.jsonl");
        // Files come in any order.
        std::fs::write(&file, format!("{first}\n{}\n", call(before, "s3.amazonaws.com", "ListBuckets", "before"))).expect("written");
        keyfuse(&["replay", &file.to_string_lossy()])
    };
    let (long, short) = (replayed("2026-03-01T10:00:00Z"), replayed("2026-03-03T10:00:00Z"));
    assert!(long.status.code() == Some(1) && stdout(&long).contains("LLM-15"), "{}{}", stdout(&long), stderr(&long));
    let held = keyfuse(&["replay", &folder.path().join("trail.jsonl").to_string_lossy(), "--output", "json"]);
    assert!(held.status.code() == Some(0) && stdout(&held).contains(r#""held":"warming""#), "{}", stdout(&held));
    assert!(short.status.code() == Some(0) && stderr(&short).contains("held back  1 LLM-15"), "{}{}", stdout(&short), stderr(&short));
}

#[test]
fn sql_answers_in_every_format_and_refuses_within_a_second() {
    let ask = |format: &str, sql: &str| keyfuse(&["sql", "--from", STORY[0], "--from", STORY[1], "--format", format, sql]);
    let count = "SELECT event_source, count(*) AS calls FROM cloudtrail GROUP BY 1 ORDER BY 2 DESC LIMIT 1";
    assert!(stdout(&ask("table", count)).contains("bedrock.amazonaws.com"));
    assert!(stdout(&ask("csv", count)).starts_with("event_source,calls\nbedrock.amazonaws.com,"));
    assert!(stdout(&ask("json", count)).starts_with("{\"event_source\":\"bedrock.amazonaws.com\",\"calls\":"));
    assert!(ask("parquet", count).stdout.starts_with(b"PAR1"));
    let functions = "SELECT DISTINCT access_key_account(access_key_id) AS a, credential_class(access_key_id) AS c, cidr_contains('198.51.100.0/24', source_ip) AS n, \
                     json_get_str(raw, 'userIdentity', 'userName') AS u FROM cloudtrail WHERE user_name = 'svc-rag-ci' AND source_ip IS NOT NULL";
    assert_eq!(stdout(&ask("csv", functions)), "a,c,n,u\n111122223333,long_lived,true,svc-rag-ci\n");
    assert!(stdout(&ask("csv", "SELECT count(*) > 0 AS l FROM lineage")).contains("true"));
    let chain = format!("SELECT 1 WHERE {}", vec!["1=1"; 20_000].join(" OR "));
    let medium = format!("SELECT count(*) FROM cloudtrail WHERE {}", vec!["event_name = 'a'"; 900].join(" OR "));
    for hostile in [
        "DROP TABLE cloudtrail",
        "COPY cloudtrail TO '/tmp/x.csv'",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "SELECT * FROM '/etc/passwd'",
        chain.as_str(),
    ] {
        let started = Instant::now();
        let output = match hostile.len() {
            0..100_000 => ask("table", hostile),
            _ => ask_by_stdin(hostile),
        };
        assert_eq!(output.status.code(), Some(2), "{hostile:.40}: {}", stderr(&output));
        assert!(started.elapsed() < Duration::from_secs(5), "{hostile:.40}");
    }
    assert_eq!(ask("table", &medium).status.code(), Some(0), "what the guard lets through must not overflow a stack");
}

fn ask_by_stdin(sql: &str) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("query.sql");
    std::fs::write(&path, sql).expect("written");
    let stdin = std::process::Stdio::from(std::fs::File::open(&path).expect("open"));
    Command::new(env!("CARGO_BIN_EXE_keyfuse")).args(["sql", "--from", STORY[0]]).stdin(stdin).output().expect("keyfuse runs")
}

#[test]
fn check_names_what_is_wrong_with_a_detection() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = std::fs::read_to_string("detections/llm-01-enumerate-then-invoke.md").expect("a detection");
    let refuse = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        let path = folder.path().join("bad.md");
        std::fs::write(&path, good.replace(from, to)).expect("written");
        let output = keyfuse(&["check", "--detections", &path.to_string_lossy()]);
        assert_eq!(output.status.code(), Some(2), "{from} → {to} was let through");
        assert!(stderr(&output).contains("bad.md:"), "{}", stderr(&output));
        stderr(&output)
    };
    let unbounded = refuse("\n  AND i.event_time <= p.event_time + INTERVAL '15 minutes'", "");
    assert!(unbounded.contains("no time bound between alert_time and cloudtrail"), "{unbounded}");
    assert!(refuse("AND i.event_time >= p.event_time", "AND i.event_time >= now()").contains("now() depends on the clock"));
    assert!(refuse("ON i.access_key_id = p.access_key_id", "ON i.access_key_id <> p.access_key_id").contains("no key"));
    assert!(refuse("i.event_time AS alert_time", "i.event_time AS at").contains("alert_time"));
    assert!(refuse("alert_key: [credential]", "alert_key: [nobody]").contains("`nobody`"));
    assert!(refuse("INTERVAL '15 minutes'\n```", "INTERVAL '15 minutes' LIMIT 5\n```").contains("LIMIT"));
    assert!(refuse("level: high", "level: terrible").contains("terrible"));
    assert!(refuse("## What to do", "## Advice").contains("What to do"));
}

#[test]
fn the_tests_of_detections_run_and_junit_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("junit.xml");
    let output = keyfuse(&["test", "detections/llm-02-model-entitlement-chain.md", "--junit", &report.to_string_lossy()]);
    assert!(output.status.success(), "{}", stdout(&output));
    assert!(std::fs::read_to_string(report).expect("a report").contains("tests=\"3\""));
    let broken = folder.path().join("broken.md");
    let text = std::fs::read_to_string("detections/llm-02-model-entitlement-chain.md").expect("a detection");
    std::fs::write(&broken, text.replace("\"distinct_calls\": 3, \"calls\": 3", "\"distinct_calls\": 9, \"calls\": 3")).expect("written");
    let output = keyfuse(&["test", &broken.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("`distinct_calls` is 3, expected 9"), "{}", stdout(&output));
}

#[test]
fn generated_pages_and_sample_data_are_fresh() {
    for (args, path) in
        [(&["docs", "detections"][..], "detections/README.md"), (&["docs", "tables"][..], "docs/tables.md"), (&["docs", "formats"][..], "docs/formats.md")]
    {
        let page = stdout(&keyfuse(args));
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == kept, "{path} is stale: run `keyfuse {} > {path}`", args.join(" "));
    }
    let folder = tempfile::tempdir().expect("a folder");
    assert!(keyfuse(&["generate", "--events", "260", "--out", &folder.path().to_string_lossy()]).status.success());
    for name in
        ["cloudtrail.jsonl", "bedrock_invocations.jsonl", "spans.jsonl", "mcp.jsonl", "exposure_reports.jsonl", "truth.ndjson", "agents.toml", "approvals.toml"]
    {
        let kept = std::fs::read(Path::new("sample-data/llmjacking").join(name)).expect("sample data");
        assert!(
            std::fs::read(folder.path().join(name)).expect("generated") == kept,
            "sample-data/llmjacking/{name}: run `keyfuse generate --events 260 --out sample-data/llmjacking`"
        );
    }
    assert!(stdout(&keyfuse(&["docs", "completions", "bash"])).contains("keyfuse"));
    assert!(stdout(&keyfuse(&["docs", "man"])).contains(".TH keyfuse"));
}

#[test]
fn the_demo_tells_its_story_and_ends_cleanly() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().to_string_lossy().into_owned();
    let output = keyfuse(&["run", "--demo", "--once", "--speed", "200", "--demo-data", &data]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}\n{}", stderr(&output));
    for wanted in ["EXP-01", "Exposed credential used", "after exposure", "/metrics", "keyfuse sql", "stopped"] {
        assert!(text.contains(wanted), "{wanted} in\n{text}");
    }
    let archive = folder.path().join("archive").to_string_lossy().into_owned();
    let count = keyfuse(&[
        "sql",
        "--archive",
        &archive,
        "--format",
        "csv",
        "SELECT (SELECT count(*) FROM cloudtrail) >= 206 AND (SELECT count(*) FROM model_invocations) >= 42 AND (SELECT count(*) FROM tool_calls) = 8 AS whole",
    ]);
    assert_eq!(stdout(&count), "whole\ntrue\n", "{}", stderr(&count));
    let again = keyfuse(&["backtest", "EXP-01", "--archive", &archive, "--json"]);
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    let id = serde_json::from_str::<serde_json::Value>(stdout(&again).lines().next().unwrap_or_default()).expect("JSON")["alert_id"].clone();
    let live = keyfuse(&["sql", "--archive", &archive, "--format", "json", "SELECT alert_id FROM alerts WHERE detection = 'EXP-01'"]);
    assert!(stdout(&live).contains(id.as_str().unwrap_or("?")), "{} in {}", id, stdout(&live));
    // What time has not made sure is told as provisional, and is the same alert as the live one, which was held.
    let early = keyfuse(&["backtest", "EXP-02", "--archive", &archive, "--json"]);
    let early: serde_json::Value = serde_json::from_str(stdout(&early).lines().next().unwrap_or_default()).expect("JSON");
    assert_eq!(early["status"], "provisional");
    let live = keyfuse(&["sql", "--archive", &archive, "--format", "csv", "SELECT alert_id, status, held FROM alerts WHERE detection = 'EXP-02'"]);
    assert!(stdout(&live).contains(&format!("{},provisional,warming\n", early["alert_id"].as_str().unwrap_or("?"))), "{early} in {}", stdout(&live));
    let changed = folder.path().join("exp-01.md");
    let text = std::fs::read_to_string("detections/exp-01-exposed-credential-used.md").expect("a detection");
    std::fs::write(&changed, text.replace("  AND u.invoked_by IS NULL\n", "  AND u.invoked_by IS NULL AND u.outcome = 'never'\n")).expect("written");
    let diff = keyfuse(&["diff", "EXP-01", &changed.to_string_lossy(), "--archive", &archive]);
    // A story that goes over midnight has one alert a day.
    let lost = |days: usize| stdout(&diff).contains(&format!("{days} before, 0 after: 0 gained, {days} lost"));
    assert!(lost(1) || lost(2), "{}{}", stdout(&diff), stderr(&diff));
    // An alert that only begins later is the same alert.
    let text = std::fs::read_to_string("detections/llm-01-enumerate-then-invoke.md").expect("a detection");
    std::fs::write(&changed, text.replace("+ INTERVAL '15 minutes'\n", "+ INTERVAL '15 minutes' AND i.outcome = 'success'\n")).expect("written");
    let diff = keyfuse(&["diff", "LLM-01", &changed.to_string_lossy(), "--archive", &archive, "--from", "2026-01-01"]);
    assert!(stdout(&diff).contains(": 0 gained, 0 lost") && !stdout(&diff).contains("0 before"), "{}{}", stdout(&diff), stderr(&diff));
    assert_eq!(keyfuse(&["diff", "EXP-01", "exp-01", "--archive", &archive]).status.code(), Some(0));
    let admitted = keyfuse(&["check", "--against", &archive]);
    assert!(stdout(&admitted).contains("alerts/day") && stdout(&admitted).contains("EXP-01      C1"), "{}{}", stdout(&admitted), stderr(&admitted));
    let why = keyfuse(&["explain", &id.as_str().unwrap_or("?")[..12], "--archive", &archive]);
    for wanted in ["exposed_at", "mean first use = 17 min", "event_name = GetCallerIdentity", "decided, open", " exposure_reports ", "reporter = gitleaks"] {
        assert!(stdout(&why).contains(wanted), "{wanted} in\n{}\n{}", stdout(&why), stderr(&why));
    }
    let event = keyfuse(&[
        "sql",
        "--archive",
        &archive,
        "--format",
        "csv",
        "SELECT event_id FROM cloudtrail WHERE event_name = 'InvokeModel' AND outcome = 'success' LIMIT 1",
    ]);
    let event = stdout(&event).lines().nth(1).unwrap_or_default().to_owned();
    for (detection, wanted) in [
        ("LLM-13", "FAILS  (count(DISTINCT cloudtrail.aws_region) >= 3)"),
        ("LLM-02", "so it is not looked at: event_name IN ('PutUseCaseForModelAccess'"),
        ("EXP-01", "scan 2, exposure_reports: "),
        ("COV-01", ", asked at "),
    ] {
        let why_not = keyfuse(&["explain", "--archive", &archive, "--why-not", detection, &event]);
        assert!(stdout(&why_not).contains(wanted), "{wanted} in\n{}\n{}", stdout(&why_not), stderr(&why_not));
    }
    assert_eq!(keyfuse(&["explain", "zz", "--archive", &archive]).status.code(), Some(2));
    assert_eq!(keyfuse(&["explain", "--archive", &archive, "--why-not", "LLM-13", "no-such-event"]).status.code(), Some(2));
}

/// What the doctor says of these files.
fn doctor(files: &[String], more: &[&str]) -> serde_json::Value {
    let mut args: Vec<&str> =
        vec!["doctor", "--json", "--agents", "sample-data/llmjacking/agents.toml", "--approvals", "sample-data/llmjacking/approvals.toml"];
    files.iter().for_each(|file| args.extend(["--from", file.as_str()]));
    args.extend(more);
    let output = keyfuse(&args);
    serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)))
}

/// The names of the gaps that the doctor finds proven in these files.
fn gaps(files: &[String]) -> std::collections::BTreeSet<String> {
    let report = doctor(files, &[]);
    let proven = report["gaps"].as_array().expect("gaps").iter().filter(|gap| gap["proven"] == true);
    proven.filter_map(|gap| gap["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn the_doctor_names_the_sources_that_were_taken_away_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_string_lossy().into_owned();
    assert!(keyfuse(&["generate", "--story", "insider", "--events", "1500", "--out", &out]).status.success());
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let all = ["cloudtrail.jsonl", "bedrock_invocations.jsonl", "spans.jsonl", "mcp.jsonl", "exposure_reports.jsonl"].map(path);
    let there: Vec<String> = all.into_iter().filter(|file| std::fs::metadata(file).is_ok_and(|data| data.len() > 0)).collect();
    let before = gaps(&there);
    let left: Vec<String> =
        there.iter().filter(|file| !["spans.jsonl", "mcp.jsonl", "bedrock_invocations.jsonl"].iter().any(|gone| file.ends_with(gone))).cloned().collect();
    let after = gaps(&left);
    let new: Vec<&str> = after.difference(&before).map(String::as_str).collect();
    assert_eq!(new, ["agent_spans", "model_invocations", "outbound_calls", "tool_calls"], "before: {before:?}");
    // A rule that leaves out read-only calls, and a trail that does not have the calls of models.
    let call = |number: usize, source: &str, name: &str, read_only: bool| {
        format!(
            r#"{{"eventVersion":"1.11","eventTime":"2026-05-01T10:{:02}:00Z","eventSource":"{source}","eventName":"{name}","eventID":"{name}-{number}","readOnly":{read_only},"eventCategory":"Management","recipientAccountId":"111122223333","awsRegion":"us-east-1","userIdentity":{{"type":"IAMUser","arn":"arn:aws:iam::111122223333:user/x","accountId":"111122223333"}}}}"#,
            number % 60
        )
    };
    for (source, name, read_only, gap) in
        [("ec2.amazonaws.com", "RunInstances", false, "read-only calls"), ("bedrock.amazonaws.com", "ListFoundationModels", true, "calls of models")]
    {
        std::fs::write(path("narrow.jsonl"), (0..30).map(|number| call(number, source, name, read_only) + "\n").collect::<String>()).expect("written");
        let narrow = gaps(&[path("narrow.jsonl")]);
        assert!(narrow.contains(gap), "{gap} in {narrow:?}");
    }
    // A list that is proposed from all of it misses in what is left exactly what was taken away.
    let proposed = [&["learn", "expected-sources"][..], &there.iter().flat_map(|file| ["--from", file.as_str()]).collect::<Vec<_>>()].concat();
    let list = path("expected.toml");
    // The story is over in twenty minutes.
    std::fs::write(&list, stdout(&keyfuse(&proposed)).replace("\"1h\"", "\"15m\"")).expect("written");
    let silent = |files: &[String]| {
        let report = doctor(files, &["--expected-sources", &list]);
        let gap = report["gaps"].as_array().expect("gaps").iter().find(|gap| gap["name"] == "expected logs").cloned();
        gap.map(|gap| gap["places"].as_array().expect("places").iter().map(|place| place.as_str().expect("text").to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(silent(&there), None);
    let silent = silent(&left).expect("a gap");
    assert!(silent.contains(&"model_invocations account 111122223333 us-east-1 aws.bedrock (never came)".to_owned()), "{silent:?}");
    assert!(!silent.iter().any(|place| place.starts_with("cloudtrail") || place.starts_with("exposure_reports")), "{silent:?}");
    if let Some(logs) = std::env::var_os("KEYFUSE_REAL_LOGS") {
        let real = gaps(&[logs.to_string_lossy().into_owned()]);
        let known = ["agent_spans", "exposure_reports", "model_invocations", "networks", "outbound_calls", "provider_activity", "retrievals", "tool_calls"];
        assert_eq!(real.iter().map(String::as_str).collect::<Vec<_>>(), known);
    }
}

#[test]
fn a_bad_config_is_refused_with_every_problem() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keyfuse.toml");
    std::fs::write(&path, "detections = \"gone\"\n[[topics]]\nname = \"a\"\nformat = \"nonsense\"\n").expect("written");
    let output = keyfuse(&["run", "--config", &path.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(2));
    for wanted in ["bootstrap.servers", "nonsense", "gone is no folder"] {
        assert!(stderr(&output).contains(wanted), "{wanted} in {}", stderr(&output));
    }
}

#[test]
fn a_page_about_a_key_says_what_is_to_be_known_and_needs_no_network() {
    let folder = tempfile::tempdir().expect("a folder");
    let (story, page) = ("sample-data/llmjacking/*.jsonl", folder.path().join("page.html"));
    let key = "AKIARTX3GSDSUO2PRDQD";
    let said = stdout(&keyfuse(&["investigate", key, "--from", story]));
    for wanted in [
        "used 66 s later",
        "sessions live on",
        "5 critical alerts",
        "ASIARTX3GSDS4E7QTRY7",
        "aws iam update-access-key --access-key-id AKIARTX3GSDSTFTX2VY5",
        "RevokeOlderSessions",
        "nothing of this was run",
        "gitleaks",
        "ORDER BY event_time\" --from 'sample-data/llmjacking/*.jsonl'",
        "keyfuse doctor --from 'sample-data/llmjacking/*.jsonl'",
    ] {
        assert!(said.contains(wanted), "{wanted} in\n{said}");
    }
    assert_eq!(keyfuse(&["investigate", key, "--from", story, "--html", &page.to_string_lossy()]).status.code(), Some(0));
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(
        html.contains("EXP-01") && html.contains("<svg") && !html.contains("<script") && !html.contains("src=\"http") && !html.contains("url("),
        "one file, no network"
    );
    assert!(!html.contains("Could not be asked"), "every part was asked");
    for name in ["arn:aws:iam::111122223333:user/svc-rag-ci", "support"] {
        let said = keyfuse(&["investigate", name, "--from", story]);
        assert!(said.status.success() || stderr(&said).contains("Names like it"), "{name}: {}", stderr(&said));
        assert!(!stdout(&said).contains("could not be asked"), "{}", stdout(&said));
    }
    // Agents that call each other are drawn from the first to the last.
    let logs = folder.path().join("injection");
    let logs = logs.to_string_lossy();
    assert!(keyfuse(&["generate", "--story", "injection", "--out", &logs]).status.success());
    let html = stdout(&keyfuse(&["investigate", "research", "--from", &format!("{logs}/spans.jsonl"), "--html", "-"]));
    let (_, graph) = html.split_once("aria-label=\"delegation\"").expect("a graph");
    let graph = graph.split_once("</svg>").expect("its end").0;
    let at = ["front-desk", "research", "writer", "billing"].map(|agent| {
        let (_, node) = graph.split_once(&format!("<title>{agent}</title>")).unwrap_or_else(|| panic!("{agent} in {graph}"));
        node.split_once(" x=\"").and_then(|(_, x)| x.split_once('"')?.0.parse::<f64>().ok()).expect("a place")
    });
    assert!(at.is_sorted() && at[0] < at[3] && graph.matches("class=\"link\"").count() == 3, "{at:?}");
    let unknown = keyfuse(&["investigate", "<b>nobody</b>", "--from", story]);
    assert!(unknown.status.code() == Some(2) && stderr(&unknown).contains("no row names"), "{}", stderr(&unknown));
}

#[test]
fn check_opens_what_the_config_names_and_says_what_has_no_effect() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, detections) = (folder.path().join("keyfuse.toml"), std::fs::canonicalize("detections").expect("detections"));
    let head = format!("detections = '{}'\n[kafka]\n\"bootstrap.servers\" = \"127.0.0.1:1\"\n[[topics]]\nname = \"logs\"\n", detections.display());
    let check = |rest: &str| {
        std::fs::write(&config, format!("{head}{rest}")).expect("written");
        let output = keyfuse(&["check", "--config", &config.to_string_lossy()]);
        (output.status.code(), stderr(&output))
    };
    assert_eq!(check(""), (Some(0), String::new()));
    for (rest, word) in [
        ("[levels]\nEXP-99 = \"low\"\n", "EXP-99: no such detection"),
        (
            "[[silences]]\ndetection = \"EXP-O1\"\ncolumn = \"identity\"\nvalue = \"x\"\nowner = \"me\"\nreason = \"y\"\nuntil = \"2030-01-01\"\n",
            "EXP-O1: no such detection",
        ),
        ("[[sinks.webhook]]\nurl = \"http://127.0.0.1:1/x\"\ntemplate = \"nowhere.json\"\n", "nowhere.json"),
        ("[[sinks.kafka]]\ntopic = \"logs\"\n", "name one for alerts alone"),
        ("[sql]\npassword_file = \"nowhere.txt\"\n", "nowhere.txt"),
    ] {
        let (code, said) = check(rest);
        assert!(code == Some(2) && said.contains(word), "{rest}: {code:?} {said}");
    }
}
