//! Where alerts go: a real HTTP server that fails in ten ways, Kafka, one message per incident, a real Alertmanager.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyfuse::pipeline::Service;
use keyfuse::sink::{Format, Kind, SCHEMA, Settings, WebhookSettings};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;
use serde_json::Value;

use crate::support::{START, brokers, config, get, metric, sender, start, to_file, wait_for};

/// A request as it came: headers in lower case, and the body.
type Request = (BTreeMap<String, String>, String);

/// Answers each request with the next of these, and with 200 once there are no more.
fn server(answers: &[&'static str]) -> (String, Arc<Mutex<Vec<Request>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/hook/secret-path", listener.local_addr().expect("an address"));
    let (seen, mut answers) = (Arc::new(Mutex::new(Vec::new())), answers.to_vec());
    answers.reverse();
    let requests = Arc::clone(&seen);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming().flatten() {
            match answers.pop().unwrap_or("200") {
                "close at once" => drop(stream),
                "never answer" => held.push(stream),
                "reset" => {
                    let _ = stream.peek(&mut [0]);
                    drop(stream);
                }
                answer => drop(respond(stream, answer).map(|request| requests.lock().expect("a lock").push(request))),
            }
        }
    });
    (url, seen)
}

fn respond(mut stream: TcpStream, answer: &str) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut headers, mut line) = (BTreeMap::new(), String::new());
    reader.read_line(&mut line)?;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let answer = match answer {
        "half an answer" => "HTTP/1.1 200".to_owned(),
        "not http" => "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        "redirect" => "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        status => format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"),
    };
    stream.write_all(answer.as_bytes())?;
    Ok((headers, String::from_utf8_lossy(&body).into_owned()))
}

/// Two alerts of one credential: COV-03 and LLM-10.
const DESTROYS: &str = r#"{"eventVersion":"1.11","eventTime":"2026-05-01T10:00:00Z","eventSource":"bedrock.amazonaws.com","eventName":"DeleteModelInvocationLoggingConfiguration","eventID":"d1","sourceIPAddress":"203.0.113.9","userIdentity":{"type":"IAMUser","arn":"arn:aws:iam::111122223333:user/x","accessKeyId":"AKIAIOSFODNN7EXAMPLE"},"additionalEventData":{"callWithBearerToken":true}}"#;

fn run(sinks: Vec<Settings>, folder: &Path, and_then: impl FnOnce(&Service, &str)) {
    let broker = &brokers(1)[0];
    let mut config = config(folder, &broker.address, &[&broker.topic]);
    config.sinks.extend(sinks);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let service = start(&config, &runtime);
    let sender = sender(&broker.address);
    sender.send(&broker.topic, Some(0), None, DESTROYS.as_bytes(), Some(START)).expect("sent");
    sender.flush(Duration::from_secs(30)).expect("taken");
    and_then(&service, &broker.address);
    service.stop().expect("a clean stop");
}

fn webhook(name: &str, url: &str, settings: WebhookSettings) -> Settings {
    Settings { name: name.into(), kind: Kind::Webhook(WebhookSettings { url: url.into(), ..settings }) }
}

#[test]
fn a_webhook_that_fails_in_ten_ways_gets_everything_once_it_works_and_delays_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let ways = ["500", "503", "429", "408", "close at once", "reset", "half an answer", "not http", "redirect", "403"];
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "shared\n").expect("written");
    let servers: Vec<_> = ways.iter().map(|way| server(&[way])).collect();
    let hook = |(way, (url, _)): (&&str, &(String, _))| webhook(way, url, WebhookSettings { secret: Some(secret.clone()), ..Default::default() });
    run(ways.iter().zip(&servers).map(hook).collect(), folder.path(), |service, _| {
        wait_for("both alerts, in the file and at all ten", || metric(service, "keyfuse_deliveries_total") == 22);
        for way in ways {
            assert!(metric(service, &format!("keyfuse_delivery_failures_total{{sink=\"{way}\"}}")) >= 1, "{way}");
        }
        assert_eq!(metric(service, "keyfuse_dead_letters_total"), 0);
    });
    let seen: Vec<Request> = servers.iter().flat_map(|(_, seen)| seen.lock().expect("a lock").clone()).collect();
    let last: Vec<&Request> = seen.iter().rev().take(2).collect();
    for (headers, body) in &last {
        let document: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(headers["idempotency-key"], format!("{}:{}", document["alert_id"].as_str().unwrap(), document["revision"]));
        let (seconds, _) = headers["x-keyfuse-signature"].strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).expect("a signature");
        let openssl = Command::new("openssl").args(["dgst", "-sha256", "-hmac", "shared"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        // openssl's own HMAC, where there is one.
        if let Ok(mut openssl) = openssl {
            openssl.stdin.take().expect("a pipe").write_all(format!("{seconds}.{body}").as_bytes()).expect("written");
            let hex = String::from_utf8(openssl.wait_with_output().expect("output").stdout).expect("text");
            assert!(headers["x-keyfuse-signature"].ends_with(hex.trim().rsplit(' ').next().unwrap()), "{hex}");
        }
        fits_schema(&document);
    }
}

/// Every field of a document is in the published schema, of its type, and none that is required is missing.
fn fits_schema(document: &Value) {
    let schema: Value = serde_json::from_str(SCHEMA).expect("a schema");
    for (name, value) in document.as_object().expect("an object") {
        let of = &schema["properties"][name];
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let allowed = of["type"].as_array().map_or_else(|| of["type"] == kind, |kinds| kinds.iter().any(|of| of == kind));
        assert!(allowed, "{name}: {value} is no {}", of["type"]);
        assert!(of["enum"].as_array().is_none_or(|words| words.contains(value)), "{name}: {value}");
    }
    for name in schema["required"].as_array().expect("a list") {
        assert!(document.get(name.as_str().unwrap()).is_some(), "{name} is missing");
    }
}

#[test]
fn what_is_refused_for_good_is_a_dead_letter_and_a_hanging_server_holds_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let (refusing, _) = server(&["422", "400"]);
    let (hanging, _) = server(&["never answer"; 9]);
    let template = folder.path().join("template");
    std::fs::write(&template, r#"{"text": {{ alert.summary }}, "who": {{ alert.subject.name }}}"#).expect("written");
    let (templated, bodies) = server(&[]);
    let sinks = vec![
        webhook("refusing", &refusing, WebhookSettings::default()),
        webhook("hanging", &hanging, WebhookSettings::default()),
        webhook("templated", &templated, WebhookSettings { template: Some(template), ..Default::default() }),
    ];
    run(sinks, folder.path(), |service, _| {
        wait_for("dead letters", || metric(service, "keyfuse_dead_letters_total") == 2);
        wait_for("the file and the template", || metric(service, "keyfuse_deliveries_total") == 4);
    });
    let letters = std::fs::read_to_string(folder.path().join("data/undelivered.ndjson")).expect("dead letters");
    assert_eq!(letters.lines().count(), 2);
    let letter: Value = serde_json::from_str(letters.lines().next().unwrap()).expect("JSON");
    assert_eq!(letter["sink"], "refusing");
    assert!(letter["error"].as_str().unwrap().contains("422") && !letters.contains("secret-path"), "{letter}");
    let body: Value = serde_json::from_str(&bodies.lock().expect("a lock")[0].1).expect("the template gives JSON");
    assert_eq!(body["who"], "AKIAIOSFODNN7EXAMPLE");
}

#[test]
fn people_get_one_message_per_incident_and_machines_get_each_alert() {
    let folder = tempfile::tempdir().expect("a folder");
    let (slack, messages) = server(&[]);
    let alerts = format!("alerts-{}", rand::random::<u32>());
    let topic = alerts.clone();
    let sinks = vec![
        Settings { name: "slack".into(), kind: Kind::Slack { url: slack } },
        Settings { name: "kafka".into(), kind: Kind::Kafka { topic: alerts, format: Format::Ocsf } },
        to_file(&folder.path().join("more.ndjson")),
    ];
    let mut findings = Vec::new();
    run(sinks, folder.path(), |service, address| {
        wait_for("two files, the topic, and the messages", || metric(service, "keyfuse_deliveries_total") >= 7);
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", address).set("group.id", "reader").set("auto.offset.reset", "earliest");
        let reader: BaseConsumer = settings.create().expect("a consumer");
        reader.subscribe(&[&topic]).expect("subscribed");
        wait_for("two findings", || {
            if let Some(Ok(message)) = reader.poll(Duration::from_millis(100)) {
                findings.push(serde_json::from_slice::<Value>(message.payload().expect("a value")).expect("JSON"));
            }
            findings.len() == 2
        });
    });
    for finding in &findings {
        assert_eq!((finding["class_uid"].as_i64(), finding["type_uid"].as_i64(), finding["activity_id"].as_i64()), (Some(2004), Some(200_401), Some(1)));
        assert_eq!(finding["finding_info"]["analytic"]["type_id"], 1);
        assert!(finding["severity_id"].as_i64().unwrap() >= 3 && finding["message"].as_str().unwrap().contains("AKIAIOSFODNN7EXAMPLE"), "{finding}");
    }
    let messages = messages.lock().expect("a lock");
    assert!(messages.len() <= 2, "one message, and one that it got worse: {}", messages.len());
    let story: Value = serde_json::from_str(&messages[messages.len() - 1].1).expect("JSON");
    let all = messages.iter().map(|(_, body)| body.as_str()).collect::<String>();
    assert!(all.contains("COV-03") && all.contains("LLM-10") && all.contains("Still live?") && all.contains("nothing of this was run"), "{all}");
    assert!(story["blocks"].as_array().unwrap().len() >= 4);
}

#[test]
fn what_is_silenced_is_archived_and_not_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = &brokers(1)[0];
    let text = format!(
        "detections = {:?}\n[kafka]\n\"bootstrap.servers\" = {:?}\n[[topics]]\nname = {:?}\n[archive]\ncommit_every = \"1s\"\n[sinks]\nndjson = [\"alerts.ndjson\"]\n[levels]\n\"COV-03\" = \"low\"\n[[silences]]\ndetection = \"LLM-10\"\ncolumn = \"credential\"\nvalue = \"AKIA*\"\nowner = \"rosa\"\nreason = \"a drill\"\nuntil = \"2100-01-01T00:00:00Z\"\n",
        std::fs::canonicalize("detections").expect("a folder"),
        broker.address,
        broker.topic
    );
    let config = keyfuse::config::Config::parse(&text, &folder.path().join("keyfuse.toml")).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let service = start(&config, &runtime);
    let sender = sender(&broker.address);
    sender.send(&broker.topic, Some(0), None, DESTROYS.as_bytes(), Some(START)).expect("sent");
    sender.flush(Duration::from_secs(30)).expect("taken");
    wait_for("one delivery", || metric(&service, "keyfuse_deliveries_total") == 1);
    // LLM-10 is silenced; for LLM-16 every network is new as long as there is no past.
    wait_for("two held", || metric(&service, "keyfuse_alerts_held_total") == 2);
    service.stop().expect("a clean stop");
    let delivered = crate::support::delivered(&folder.path().join("alerts.ndjson"));
    let alert = delivered.values().next().expect("an alert");
    assert_eq!((&alert["detection"], &alert["level"]), (&"COV-03".into(), &"low".into()), "the config's own level");
}

#[test]
fn a_real_alertmanager_shows_the_alert_and_lets_it_go() {
    if Command::new("prometheus-alertmanager").arg("--version").output().is_err() {
        println!("no prometheus-alertmanager here: not tried against a real one");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let file = folder.path().join("alertmanager.yml");
    std::fs::write(&file, "route:\n  receiver: none\n  group_by: [incident]\nreceivers:\n  - name: none\n").expect("written");
    let mut alertmanager = Command::new("prometheus-alertmanager")
        .args(["--config.file", &file.to_string_lossy(), "--storage.path", &folder.path().join("am").to_string_lossy()])
        .args(["--web.listen-address", &format!("127.0.0.1:{port}"), "--cluster.listen-address", ""])
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    wait_for("Alertmanager", || get(port, "/-/ready").is_some_and(|(status, _)| status == 200));
    let alerts = || -> Vec<Value> { get(port, "/api/v2/alerts").and_then(|(_, body)| serde_json::from_str(&unchunked(&body)).ok()).unwrap_or_default() };
    let kind = Kind::Alertmanager { url: format!("http://127.0.0.1:{port}"), resolve_after: 4_000_000 };
    let mut shown = Vec::new();
    run(vec![Settings { name: "alertmanager".into(), kind }], folder.path(), |service, _| {
        wait_for("two alerts", || {
            shown = alerts();
            shown.len() == 2
        });
        assert_eq!(metric(service, "keyfuse_delivery_failures_total"), 0);
        // Nothing joins them for four seconds: they are resolved, and Alertmanager shows them no more.
        wait_for("both are over", || alerts().is_empty());
    });
    alertmanager.kill().expect("stopped");
    alertmanager.wait().expect("stopped");
    let alert = shown.iter().find(|alert| alert["labels"]["detection"] == "LLM-10").expect("LLM-10");
    assert_eq!(alert["labels"]["credential"], "AKIAIOSFODNN7EXAMPLE");
    assert_eq!(shown[0]["labels"]["incident"], shown[1]["labels"]["incident"], "Alertmanager groups by it");
    assert!(alert["annotations"]["what_to_do"].as_str().unwrap().len() > 50);
}

/// The body of an answer that came in chunks.
fn unchunked(body: &str) -> String {
    match body.split_once("\r\n") {
        Some((size, rest)) if usize::from_str_radix(size, 16).is_ok() => {
            let mut out = String::new();
            let mut rest = format!("{size}\r\n{rest}");
            while let Some((size, more)) = rest.clone().split_once("\r\n") {
                let size = usize::from_str_radix(size, 16).unwrap_or(0);
                if size == 0 || more.len() < size {
                    break;
                }
                out.push_str(&more[..size]);
                rest = more[size..].trim_start_matches("\r\n").to_owned();
            }
            out
        }
        _ => body.to_owned(),
    }
}
