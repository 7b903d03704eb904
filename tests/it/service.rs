//! The running service: dead letters, reload, HTTP, metrics, and a sink that is dead for a while.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keyfuse::alert::Following;
use keyfuse::archive::Archive;
use keyfuse::clock::{HOUR, MINUTE};
use keyfuse::config::Canaries;
use keyfuse::detect::read_folder;
use keyfuse::dimension::{Dimensions, Statement};
use keyfuse::pipeline::{Order, Promotion, Service};
use keyfuse::query::{Door, Limits, Rows};
use keyfuse::secret::Fingerprinter;
use keyfuse::source::broker::Broker;
use keyfuse::table::CANARY_OUTCOMES;
use keyfuse::top::Top;
use ratatui::crossterm::event::KeyCode;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;

use crate::support::{START, alert_file, ask, brokers, config, delivered, get, metric, sender, shipped, start, to_file, wait_for};

const DESTROYS: &str = r#"{"eventVersion":"1.11","eventTime":"2026-05-01T10:00:00Z","eventSource":"bedrock.amazonaws.com","eventName":"DeleteGuardrail","eventID":"d1","userIdentity":{"type":"IAMUser","arn":"arn:aws:iam::111122223333:user/x"},"additionalEventData":{"callWithBearerToken":true}}"#;

#[test]
fn refused_records_go_to_the_dead_letter_topic_and_to_the_table() {
    for broker in brokers(1) {
        let folder = tempfile::tempdir().expect("a folder");
        let dead = format!("{}-dead", broker.topic);
        let mut config = config(folder.path(), &broker.address, &[&broker.topic]);
        config.dead_letter = Some(dead.clone());
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let service = start(&config, &runtime);
        let sender = sender(&broker.address);
        for value in ["{\"cut\":", DESTROYS, ""] {
            sender.send(&broker.topic, Some(0), None, value.as_bytes(), Some(START)).expect("sent");
        }
        wait_for("two rejects", || metric(&service, "keyfuse_rejects_total") == 2);
        wait_for("one row", || metric(&service, "keyfuse_rows_total") == 1);
        service.stop().expect("a clean stop");
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", &broker.address).set("group.id", "reader").set("auto.offset.reset", "earliest");
        let reader: BaseConsumer = settings.create().expect("a consumer");
        reader.subscribe(&[&dead]).expect("subscribed");
        let mut letters = Vec::new();
        wait_for("two dead letters", || {
            if let Some(Ok(message)) = reader.poll(Duration::from_millis(100)) {
                letters.push(serde_json::from_slice::<serde_json::Value>(message.payload().expect("a value")).expect("JSON"));
            }
            letters.len() == 2
        });
        // Their topic may have several partitions: no order between them.
        letters.sort_by_key(|letter| letter["offset"].as_i64());
        assert_eq!((letters[0]["reason"].as_str(), letters[0]["offset"].as_i64()), (Some("truncated"), Some(0)), "{}", broker.name);
        assert_eq!((letters[1]["reason"].as_str(), letters[1]["offset"].as_i64()), (Some("empty"), Some(2)), "{}", broker.name);
    }
}

#[test]
fn a_sink_that_was_dead_gets_its_alerts_at_the_next_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = &brokers(1)[0];
    let mut dead = config(folder.path(), &broker.address, &[&broker.topic]);
    let alerts = folder.path().join("dead");
    dead.sinks = vec![to_file(&alerts.join("alerts.ndjson"))];
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let service = start(&dead, &runtime);
    // The folder of the alert file is rotated away, and a file stands in its place.
    std::fs::rename(&alerts, folder.path().join("rotated")).expect("moved");
    std::fs::write(&alerts, "").expect("written");
    // A producer that is dropped takes with it what it has not sent yet.
    let sender = sender(&broker.address);
    sender.send(&broker.topic, Some(0), None, DESTROYS.as_bytes(), Some(START)).expect("sent");
    sender.flush(Duration::from_secs(30)).expect("taken");
    wait_for("a refused delivery", || metric(&service, "keyfuse_delivery_failures_total") > 0);
    assert_eq!(metric(&service, "keyfuse_deliveries_total"), 0);
    service.stop().expect("a clean stop");
    let alive = config(folder.path(), &broker.address, &[&broker.topic]);
    let service = start(&alive, &runtime);
    wait_for("the deliveries", || metric(&service, "keyfuse_deliveries_total") == 2);
    service.stop().expect("a clean stop");
    let names: Vec<_> = delivered(alert_file(&alive)).values().map(|alert| alert["detection"].clone()).collect();
    assert_eq!(names.len(), 2, "COV-03 and LLM-10: {names:?}");
}

fn inference(id: &str, who: &str, minute: i64) -> String {
    let time = keyfuse::clock::rfc3339(START + minute * 60_000_000);
    format!(
        r#"{{"eventVersion":"1.11","eventTime":"{time}","eventSource":"bedrock.amazonaws.com","eventName":"InvokeModel","eventID":"{id}","sourceIPAddress":"198.51.100.7","userIdentity":{{"type":"IAMUser","arn":"arn:aws:iam::111122223333:user/{who}"}}}}"#
    )
}

#[test]
fn the_own_world_is_known_from_files_and_compacted_topics_and_learnt_while_it_runs() {
    for broker in brokers(1) {
        let folder = tempfile::tempdir().expect("a folder");
        let [topic, allowed, networks] = ["agents", "allowed", "networks"].map(|name| format!("{}-{name}", broker.topic));
        [&topic, &allowed, &networks].into_iter().for_each(|topic| broker.create_topic(topic));
        let mut config = config(folder.path(), &broker.address, &[&broker.topic]);
        let file = folder.path().join("agents.toml");
        std::fs::write(&file, "[[agents]]\nagent_id = \"a\"\nidentity = \"arn:aws:iam::111122223333:user/in-file\"\n").expect("written");
        config.known.agents = Some(file);
        config.dimension_topics.extend([("agents", topic.clone()), ("allow_list", allowed.clone()), ("networks", networks.clone())]);
        let sender = sender(&broker.address);
        let state = |name: &str, minute: i64| {
            let entry = format!(r#"{{"agent_id":"{name}","identity":"arn:aws:iam::111122223333:user/{name}"}}"#);
            sender.send(&topic, Some(0), Some(name), entry.as_bytes(), Some(START + minute * 60_000_000)).expect("sent");
        };
        state("in-topic", 0);
        sender.send(&topic, Some(0), Some("broken"), b"no json", Some(START)).expect("sent");
        let pardon = r#"{"detection":"LLM-07","column":"identity","value":"arn:aws:iam::111122223333:user/pardoned","owner":"rosa","reason":"a test","valid_to":"2030-01-01"}"#;
        sender.send(&allowed, Some(0), Some("1"), pardon.as_bytes(), Some(START)).expect("sent");
        let endless = pardon.replace("pardoned", "second-stranger").replace(r#","valid_to":"2030-01-01""#, "");
        sender.send(&allowed, Some(0), Some("2"), endless.as_bytes(), Some(START)).expect("sent");
        sender.flush(Duration::from_secs(10)).expect("taken");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let service = start(&config, &runtime);
        let call = |id: &str, who: &str, minute: i64| {
            let at = Some(START + minute * 60_000_000);
            sender.send(&broker.topic, Some(0), None, inference(id, who, minute).as_bytes(), at).expect("sent");
        };
        call("1", "in-file", 1);
        call("2", "in-topic", 2);
        call("3", "stranger", 3);
        wait_for("three rows", || metric(&service, "keyfuse_rows_total") == 3);
        sender.send(&networks, Some(0), Some("office"), br#"{"network":"198.51.100.0/24","asn":"64500","country":"NL"}"#, Some(START)).expect("sent");
        sender.flush(Duration::from_secs(10)).expect("taken");
        state("hired", 4);
        wait_for("the statement", || metric(&service, "keyfuse_reloads_total") >= 1);
        call("4", "hired", 5);
        call("5", "second-stranger", 6);
        call("6", "pardoned", 7);
        wait_for("six rows", || metric(&service, "keyfuse_rows_total") == 6);
        service.stop().expect("a clean stop");
        // The archive alone knows what was stated, as a backtest of next year will have to.
        let archive = runtime.block_on(Archive::open(&config.archive, &config.archive_options)).expect("opens");
        let ask = |sql: &str| {
            let (none, fingerprinter) = (Dimensions::default(), Fingerprinter::public());
            let door = Door::open(Rows::Archive(&archive), &none, &fingerprinter, Limits::default());
            let answer = runtime.block_on(async { door.await.expect("opens").ask(sql).await }).expect("an answer");
            arrow::util::pretty::pretty_format_batches(&answer.batches).expect("prints").to_string()
        };
        let agents = ask("SELECT agent_id FROM agents ORDER BY 1");
        assert!(agents.contains("hired") && agents.contains("in-topic"), "{agents}");
        let seen = ask("SELECT event_id, source_network FROM cloudtrail ORDER BY 1");
        assert!(seen.contains("| 1        | 198.51.100.0/24 |") && seen.contains("| 5        | AS64500         |"), "{seen}");
        let health = ask(
            "SELECT detection, class, state, note, candidates > 0 AS looked FROM detection_health WHERE detection IN ('LLM-07', 'COT-01', 'COV-04', 'EXP-01') ORDER BY 1",
        );
        for wanted in [
            "| COT-01    | C3    | blind   | nothing arrives of tool_calls                             | false",
            "| COV-04    | C4    | seeing  |",
            "| EXP-01    | C1    | partial | nothing ever came of exposure_reports, which it reads too | ",
            "| LLM-07    | C0    | seeing  |                                                           | true",
        ] {
            assert!(health.contains(wanted), "{wanted} in\n{health}");
        }
        let mut known = Dimensions::default();
        let problems = known.add_statements(&Statement::of_rows(&runtime.block_on(archive.all(&keyfuse::table::statements::TABLE)).expect("reads")));
        assert_eq!(problems.len(), 2, "no JSON, and an allowance without an end");
        let unknown: Vec<String> = delivered(alert_file(&config))
            .values()
            .filter(|alert| alert["detection"] == "LLM-07")
            .map(|alert| alert["alert_key"]["identity"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned())
            .collect();
        let mut unknown = unknown;
        unknown.sort();
        assert_eq!(unknown, ["second-stranger", "stranger"], "on the {} broker", broker.name);
    }
}

#[test]
fn a_log_that_ought_to_arrive_is_missed_across_a_restart() {
    for broker in brokers(1) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config(folder.path(), &broker.address, &[&broker.topic]);
        let file = folder.path().join("expected.csv");
        let list =
            "source,account_id,region,silence_seconds\ncloudtrail,111122223333,us-east-1,10m\ncloudtrail,111122223333,eu-west-1,10m\nexposure_reports,,,12h\n";
        std::fs::write(&file, list).expect("written");
        config.known.expected_sources = Some(file);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let sender = sender(&broker.address);
        let call = |region: &str, minute: i64| {
            let record = inference(&format!("{region}-{minute}"), "x", minute);
            let record = record.replace("{\"eventVersion\"", &format!(r#"{{"awsRegion":"{region}","recipientAccountId":"111122223333","eventVersion""#));
            sender.send(&broker.topic, Some(0), None, record.as_bytes(), Some(START + minute * MINUTE)).expect("sent");
            sender.flush(Duration::from_secs(10)).expect("taken");
        };
        let service = start(&config, &runtime);
        call("us-east-1", 1);
        call("eu-west-1", 2);
        call("us-east-1", 9);
        wait_for("three rows", || metric(&service, "keyfuse_rows_total") == 3 && metric(&service, "keyfuse_expected_sources") == 3);
        assert_eq!(metric(&service, "keyfuse_silent_sources"), 0);
        service.stop().expect("a clean stop");
        // Another process: what it has not seen itself, the archive knows.
        let service = start(&config, &runtime);
        call("us-east-1", 14);
        wait_for("a silent log", || metric(&service, "keyfuse_silent_sources") == 1);
        [23, 31].into_iter().for_each(|minute| call("us-east-1", minute));
        let told = || delivered(alert_file(&config)).into_values().filter(|alert| alert["detection"] == "COV-04").map(|alert| alert["alert_key"].clone());
        wait_for("its alert", || told().count() == 1);
        assert_eq!(told().next(), Some(serde_json::json!({"source": "cloudtrail", "account_id": "111122223333", "region": "eu-west-1", "kind": null})));
        service.stop().expect("a clean stop");
        let archive = runtime.block_on(Archive::open(&config.archive, &config.archive_options)).expect("opens");
        let health = runtime.block_on(async {
            let door = Door::open(Rows::Archive(&archive), &Dimensions::default(), &Fingerprinter::public(), Limits::default()).await.expect("opens");
            door.ask("SELECT DISTINCT state, note FROM detection_health WHERE detection IN ('LLM-07', 'SHR-07')").await.expect("an answer")
        });
        let health = arrow::util::pretty::pretty_format_batches(&health.batches).expect("prints").to_string();
        assert!(health.contains("| partial | silent: cloudtrail 111122223333 eu-west-1 |") && !health.contains("seeing"), "{health}");
    }
}

#[test]
fn what_late_rows_add_is_told_in_time_and_on_demand_and_by_a_backtest() {
    for broker in brokers(1) {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(folder.path(), &broker.address, &[&broker.topic]);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let sender = sender(&broker.address);
        let call = |key: &str, name: &str, minute: i64, appended: i64| {
            let record = inference(&format!("{key}-{name}"), "x", minute).replace("InvokeModel", name);
            let record = record.replace("\"userIdentity\":{", &format!(r#""userIdentity":{{"accessKeyId":"{key}","#));
            sender.send(&broker.topic, Some(0), None, record.as_bytes(), Some(START + appended * MINUTE)).expect("sent");
            sender.flush(Duration::from_secs(10)).expect("taken");
        };
        let told = || -> Vec<String> {
            let late = delivered(alert_file(&config)).into_values().filter(|alert| alert["detection"] == "LLM-01");
            late.map(|alert| format!("{} {}", alert["alert_key"]["credential"].as_str().unwrap_or("?"), alert["late"])).collect()
        };
        let service = start(&config, &runtime);
        ["AKIAONE0000000000001", "AKIATWO0000000000001"].into_iter().for_each(|key| call(key, "ListFoundationModels", 1, 2));
        // Nearly an hour late: a join does not see it when it comes, a sweep does, for a quarter of an hour of append time has passed.
        call("AKIAONE0000000000001", "InvokeModel", 5, 60);
        wait_for("what the sweep adds", || told() == ["AKIAONE0000000000001 true"]);
        // Within that quarter only who asks for it gets another.
        call("AKIATWO0000000000001", "InvokeModel", 6, 62);
        wait_for("what a sweep on demand adds", || {
            service.orders().send(Order::Sweep).expect("it runs");
            let mut told = told();
            told.sort();
            told == ["AKIAONE0000000000001 true", "AKIATWO0000000000001 true"]
        });
        service.stop().expect("a clean stop");
        let backtest = |more: &[&str]| {
            let archive = config.archive.as_str();
            let output = Command::new(env!("CARGO_BIN_EXE_keyfuse")).args(["backtest", "LLM-01", "--archive", archive, "--json"]).args(more).output();
            String::from_utf8_lossy(&output.expect("runs").stdout).lines().count()
        };
        assert_eq!((backtest(&[]), backtest(&["--late"])), (0, 2));
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The detection of a file, in a folder of its own; with another title it is the same, with other SQL it is changed.
fn write_detection(folder: &std::path::Path, from: &str, to: &str) {
    let text = std::fs::read_to_string("detections/llm-10-bearer-key-destroys.md").expect("a detection");
    assert!(text.contains(from), "{from}");
    std::fs::write(folder.join("llm-10.md"), text.replace(from, to)).expect("written");
}

#[test]
fn a_changed_detection_runs_in_shadow_until_it_is_promoted() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Broker::start().expect("a broker");
    broker.create_topic("t", 1).expect("a topic");
    let mut config = config(folder.path(), &broker.address(), &["t"]);
    config.shadow = Some(keyfuse::clock::DAY);
    config.detections = folder.path().join("detections");
    std::fs::create_dir(&config.detections).expect("made");
    let sender = sender(&broker.address());
    let destroy = |id: &str, hour: i64| {
        let text = DESTROYS.replace("\"d1\"", &format!("\"{id}\"")).replace("T10:", &format!("T{hour}:")).replace("user/x", &format!("user/{id}"));
        sender.send("t", Some(0), None, text.as_bytes(), Some(START + (hour - 10) * 3_600_000_000)).expect("sent");
        sender.flush(Duration::from_secs(10)).expect("taken");
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    write_detection(&config.detections, "title:", "title:");
    let service = start(&config, &runtime);
    destroy("first", 10);
    wait_for("an alert", || metric(&service, "keyfuse_deliveries_total") == 1);
    write_detection(&config.detections, "```sql\n", "```sql\n-- changed\n");
    service.reload();
    wait_for("the reload", || metric(&service, "keyfuse_detections_in_shadow") == 1);
    destroy("second", 11);
    wait_for("a held alert", || metric(&service, "keyfuse_alerts_held_total") == 1);
    let promote = |name: &str| {
        let (answer, answered) = tokio::sync::oneshot::channel();
        service.orders().send(Order::Promote(name.into(), answer)).expect("it runs");
        answered.blocking_recv().expect("an answer")
    };
    assert_eq!(promote("LLM-1O"), Promotion::Unknown);
    assert_eq!(promote("llm-10"), Promotion::Done);
    assert_eq!(metric(&service, "keyfuse_detections_in_shadow"), 0);
    assert_eq!(promote("LLM-10"), Promotion::NotInShadow);
    destroy("third", 12);
    wait_for("another alert", || metric(&service, "keyfuse_deliveries_total") == 2);
    service.stop().expect("a clean stop");
    let mut who: Vec<String> =
        delivered(alert_file(&config)).values().map(|alert| alert["alert_key"]["identity"].as_str().unwrap_or_default().to_owned()).collect();
    who.sort();
    assert!(who.len() == 2 && who[0].ends_with("/first") && who[1].ends_with("/third"), "{who:?}");
    // It stays promoted.
    let service = start(&config, &runtime);
    destroy("fourth", 13);
    wait_for("one more", || metric(&service, "keyfuse_deliveries_total") == 1);
    service.stop().expect("a clean stop");
}

#[test]
fn http_tells_health_and_metrics_and_a_changed_folder_is_reloaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Broker::start().expect("a broker");
    broker.create_topic("t", 1).expect("a topic");
    let detections = folder.path().join("detections");
    std::fs::create_dir(&detections).expect("made");
    std::fs::copy("detections/llm-10-bearer-key-destroys.md", detections.join("llm-10.md")).expect("copied");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let path = folder.path().join("keyfuse.toml");
    let text = format!(
        "[kafka]\n\"bootstrap.servers\" = {:?}\n[[topics]]\nname = \"t\"\n[http]\nlisten = \"0.0.0.0:{port}\"\n[rollout]\nshadow = \"7d\"\n",
        broker.address()
    );
    std::fs::write(&path, text).expect("written");
    let child = Command::new(env!("CARGO_BIN_EXE_keyfuse")).args(["run", "--config"]).arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let here = SocketAddr::from(([127, 0, 0, 1], port));
    let running = Running(child.expect("keyfuse starts"));
    wait_for("readiness", || get(port, "/readyz").is_some_and(|(status, _)| status == 200));
    assert_eq!(get(port, "/healthz"), Some((200, "ok\n".into())));
    let page = || get(port, "/metrics").map(|(_, page)| page).unwrap_or_default();
    // Every series is there at zero before anything happened.
    for series in
        ["keyfuse_alerts_total{detection=\"LLM-10\",level=\"critical\"} 0", "keyfuse_rejects_total{reason=\"truncated\"} 0", "keyfuse_detections_loaded 1"]
    {
        assert!(page().contains(series), "{series}");
    }
    std::fs::copy("detections/llm-03-console-only-api-by-program.md", detections.join("llm-03.md")).expect("copied");
    wait_for("the second detection", || page().contains("keyfuse_detections_loaded 2"));
    for (name, status) in [("LLM-O3", 404), ("LLM-10", 409), ("llm-03", 200), ("LLM-03", 409)] {
        let (answered, said) = ask(here, "POST", &format!("/promote/{name}")).expect("an answer");
        assert!(answered == status && said.starts_with(name), "{name}: {answered} {said}");
    }
    assert_eq!(ask(here, "POST", "/sweep").map(|(status, _)| status), Some(202));
    // Whoever comes by another way than loopback may read, and order nothing. Nothing is sent to this address: it tells what one's own is.
    let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()));
    match own {
        Ok(own) if !own.ip().is_loopback() => {
            let from_outside = SocketAddr::new(own.ip(), port);
            for order in ["/sweep", "/promote/LLM-10"] {
                let (status, said) = ask(from_outside, "POST", order).expect("an answer");
                assert!(status == 403 && said.contains(&own.ip().to_string()), "{order}: {status} {said}");
            }
            assert_eq!(ask(from_outside, "GET", "/healthz").map(|(status, _)| status), Some(200));
        }
        _ => println!("no address but loopback here: orders from outside were not tried"),
    }
    std::fs::write(detections.join("bad.md"), "---\nno\n---\n").expect("written");
    wait_for("a refused reload", || page().contains("keyfuse_reload_failures_total 1"));
    assert!(page().contains("keyfuse_detections_loaded 2"), "the old ones go on");
    std::fs::remove_file(detections.join("bad.md")).expect("removed");
    std::fs::remove_file(detections.join("llm-03.md")).expect("removed");
    // SAFETY: the process is this test's own child and still runs.
    assert_eq!(unsafe { libc::kill(running.0.id() as i32, libc::SIGHUP) }, 0);
    wait_for("one detection again", || page().contains("keyfuse_detections_loaded 1"));
}

/// Canaries so far with this outcome.
fn canaries(service: &Service, outcome: &str) -> usize {
    let wanted = format!("outcome=\"{outcome}\"");
    let page = service.metrics.page();
    let lines = page.lines().filter(|line| line.starts_with("keyfuse_canaries_total{") && line.contains(&wanted));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum()
}

#[test]
fn every_detection_sees_its_canary_and_nobody_else_does() {
    for broker in brokers(2) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config(folder.path(), &broker.address, &[&broker.topic]);
        config.canaries = Some(Canaries { every: HOUR, within: 10 * MINUTE });
        let detections = read_folder(&config.detections).expect("detections").len();
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let service = start(&config, &runtime);
        wait_for("all canaries", || CANARY_OUTCOMES.map(|outcome| canaries(&service, outcome)).iter().sum::<usize>() == detections);
        // One of another deployment, or forged, is refused, and its row is nobody's.
        let forged = r#"{"keyfuse_canary":{"sent_at":1,"detection":"LLM-10","record":0,"records":1,"table":"cloudtrail","row":{}},"signature":"fp:0"}"#;
        let sender = sender(&broker.address);
        sender.send(&broker.topic, Some(0), None, forged.as_bytes(), Some(START)).expect("sent");
        wait_for("a reject", || metric(&service, "keyfuse_rejects_total") == 1);
        service.stop().expect("a clean stop");
        let ask = |sql: &str| {
            runtime.block_on(async {
                let archive = Archive::open(&config.archive, &Default::default()).await.expect("an archive");
                let door = Door::open(Rows::Archive(&archive), &Dimensions::default(), &Fingerprinter::public(), Limits::default()).await.expect("a door");
                arrow::util::pretty::pretty_format_batches(&door.ask(sql).await.expect("an answer").batches).expect("a table").to_string()
            })
        };
        let unseen = ask("SELECT detection, outcome, note FROM canaries WHERE outcome <> 'seen'");
        assert!(!unseen.contains("detection"), "{}: {unseen}", broker.name);
        // Its alert came back, marked, and is nobody's either.
        assert!(ask(r#"SELECT count(*) AS n FROM canaries WHERE alerts LIKE '[{%"held":"canary"%'"#).contains(&format!("| {detections} |")));
        assert!(ask("SELECT count(*) AS n FROM alert_revisions").contains("| 0 |"));
        assert!(ask("SELECT count(*) AS n FROM activity").contains("| 0 |"));
        assert!(ask("SELECT count(*) AS n FROM detection_health WHERE canary = 'seen' AND last_canary_at IS NOT NULL").contains(&format!("| {detections} |")));
        assert!(ask("SELECT reason FROM rejects").contains("other_event"));
    }
}

#[test]
fn a_canary_that_is_not_seen_is_an_alert_about_keyfuse() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = &brokers(1)[0];
    let mut config = config(folder.path(), &broker.address, &[&broker.topic]);
    config.detections = folder.path().join("detections");
    std::fs::create_dir(&config.detections).expect("a folder");
    for name in ["llm-10-bearer-key-destroys.md", "cov-09-canary-not-seen.md"] {
        let text = std::fs::read_to_string(format!("detections/{name}")).expect("a detection");
        // A detection that has come to look for something else.
        let text = if name.starts_with("llm") {
            text.replace("event_name IN ('DeleteGuardrail'", "event_name IN ('No'").replace("WHERE", "WHERE event_name = 'No' AND")
        } else {
            text
        };
        std::fs::write(config.detections.join(name), text).expect("written");
    }
    config.canaries = Some(Canaries { every: HOUR, within: 10 * MINUTE });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let service = start(&config, &runtime);
    wait_for("an alert", || metric(&service, "keyfuse_deliveries_total") == 1);
    service.stop().expect("a clean stop");
    let alerts = delivered(alert_file(&config));
    let alert = alerts.values().next().expect("an alert");
    assert_eq!((&alert["detection"], &alert["alert_key"]["unproven"]), (&"COV-09".into(), &"LLM-10".into()), "{alert}");

    // Nothing comes back within a microsecond.
    config.canaries = Some(Canaries { every: HOUR, within: 1 });
    let service = start(&config, &runtime);
    wait_for("missing canaries", || canaries(&service, "missing") == 2);
    wait_for("an alert", || metric(&service, "keyfuse_deliveries_total") >= 1);
    service.stop().expect("a clean stop");
    let topic = serde_json::Value::from(format!("topic {}", broker.topic));
    assert!(delivered(alert_file(&config)).values().any(|alert| alert["alert_key"]["unproven"] == topic && alert["payload"]["outcome"] == "missing"));
}

/// What a terminal of this size shows.
fn screen(top: &mut Top, width: u16, height: u16) -> String {
    let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| top.draw(frame, keyfuse::clock::now())).expect("drawn");
    terminal.backend().to_string()
}

fn log_of(config: &keyfuse::config::Config) -> Vec<keyfuse::alert::Alert> {
    Following::of(&config.data.join("alerts.log")).news().expect("a log").expect("alerts")
}

#[test]
fn top_shows_rates_sight_and_alerts_and_says_when_nobody_answers() {
    let broker = &brokers(1)[0];
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), &broker.address, &[&broker.topic]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut log = Following::of(&config.data.join("alerts.log"));
    assert!(log.news().expect("nothing to read").is_none());
    let service = start(&config, &runtime);
    let mut top = Top::new("127.0.0.1:9187", "data/alerts.log", "data/archive");
    let shown = screen(&mut top, 100, 30);
    assert!(shown.contains("not reached: not asked yet") && shown.contains("There is no alert log data/alerts.log"), "{shown}");
    let begun = Instant::now();
    top.take(Ok((service.metrics.page(), "ok\n".into())), begun);
    let sender = sender(&broker.address);
    for value in ["{\"cut\":", DESTROYS] {
        sender.send(&broker.topic, Some(0), None, value.as_bytes(), Some(START)).expect("sent");
    }
    sender.flush(Duration::from_secs(10)).expect("taken");
    wait_for("deliveries", || metric(&service, "keyfuse_deliveries_total") == 2);
    top.take(Ok((service.metrics.page(), "ok\n".into())), begun + Duration::from_secs(2));
    top.take_alerts(log.news().expect("a log"));
    let shown = screen(&mut top, 120, 30);
    let blind = format!("{} blind:", shipped().len());
    for part in
        ["working", "0.5/s", "1 rows", "1 records refused (truncated)", "Alerts: 2", "high", "LLM-10", "alerts.ndjson took 2", &blind, "identity user/x"]
    {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    assert!(top.key(KeyCode::Down) && top.key(KeyCode::Enter));
    let opened = screen(&mut top, 120, 30);
    assert!(opened.contains("keyfuse investigate") && opened.contains("since"), "{opened}");
    assert!(opened.contains("--archive data/archive"), "{opened}");
    // One that comes meanwhile does not take the place of the one that is read.
    let title = |screen: &str| screen.lines().find(|line| line.contains("┌ LLM-10") || line.contains("┌ COV-03")).map(str::to_owned).expect("a title");
    let read = title(&opened);
    let mut newer = log_of(&config).into_iter().next().expect("an alert");
    (newer.alert_id, newer.decided_at) = ("another".into(), newer.decided_at + 1_000_000);
    top.take_alerts(Some(vec![newer.clone()]));
    let shown = screen(&mut top, 120, 30);
    assert_eq!(title(&shown), read, "{shown}");
    // What cannot be seen is said first, however small the terminal is.
    assert!(top.key(KeyCode::Esc));
    let shown = screen(&mut top, 60, 15);
    assert!(shown.contains(&blind) && shown.contains("Alerts: 3"), "{shown}");
    for (width, height) in [(1, 1), (20, 5), (40, 12)] {
        screen(&mut top, width, height);
    }
    assert!(!top.key(KeyCode::Esc));
    // A failure is said while it is new, however many there were before.
    let page = service.metrics.page();
    let failures = |count: u64| {
        let wanted = "keyfuse_detection_errors_total{detection=\"LLM-10\"} ";
        let lines = page.lines().map(|line| if line.starts_with(wanted) { format!("{wanted}{count}\n") } else { format!("{line}\n") });
        (lines.collect::<String>(), "ok\n".to_owned())
    };
    let mut later = Top::new("127.0.0.1:9187", "data/alerts.log", "data/archive");
    for (second, count, is_said) in [(0, 7, false), (1, 7, false), (2, 8, true), (60, 8, true), (130, 8, false)] {
        later.take(Ok(failures(count)), begun + Duration::from_secs(second));
        assert_eq!(screen(&mut later, 120, 30).contains("1 failed just now: LLM-10"), is_said, "second {second}");
    }
    // Another's page is not taken for a keyfuse with nothing to say.
    later.take(Ok(("go_goroutines 7\n".into(), "ok\n".into())), begun + Duration::from_secs(131));
    let shown = screen(&mut later, 120, 30);
    assert!(shown.contains("what answers there is no keyfuse") && !shown.contains("every detection sees"), "{shown}");
    // Of very many alerts the chosen one is on the screen.
    let many = (0..5_000).map(|number| {
        let mut alert = newer.clone();
        (alert.alert_id, alert.decided_at, alert.title) = (format!("{number:032}"), number, format!("number {number:04}"));
        alert
    });
    later.take_alerts(Some(many.collect()));
    let shows = |top: &mut Top, number: u32| screen(top, 120, 30).contains(&format!("number {number:04}"));
    assert!(shows(&mut later, 4_999) && !shows(&mut later, 0));
    assert!(later.key(KeyCode::End) && shows(&mut later, 0) && !shows(&mut later, 4_999));
    assert!(later.key(KeyCode::Up) && later.key(KeyCode::Enter) && shows(&mut later, 1) && later.key(KeyCode::Esc));
    assert!(later.key(KeyCode::Home) && shows(&mut later, 4_999) && !shows(&mut later, 0));
    service.stop().expect("a clean stop");
    top.take(Err("nobody answers there".into()), begun + Duration::from_secs(4));
    let shown = screen(&mut top, 120, 30);
    assert!(shown.contains("not reached: nobody answers there") && !shown.contains("working") && shown.contains("Alerts: 3"), "{shown}");

    // The next start writes the log anew; it is followed from its beginning.
    let service = start(&config, &runtime);
    assert_eq!(log.news().expect("a log").map(|alerts| alerts.len()), Some(2));
    service.stop().expect("a clean stop");
}
