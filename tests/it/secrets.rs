//! No secret survives: a run over stories and samples stuffed with secrets, and then every output of it searched for each of them:
//! all columns of the archive, the alert file, the alert log, dead letters, metrics, the program's own log.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use keyfuse::archive::Archive;
use keyfuse::clock::HOUR;
use keyfuse::decode::FORMATS;
use keyfuse::dimension::Dimensions;
use keyfuse::generate::{Story, tell};
use keyfuse::query::{Door, Limits, Rows};
use keyfuse::secret::Fingerprinter;
use keyfuse::source::broker::Broker;
use keyfuse::source::kafka::read_all;
use keyfuse::table::TABLES;

use crate::support::{START, get, sender, wait_for};

/// Twelve secrets of different kinds; none opens anything.
fn secrets() -> Vec<String> {
    let body =
        |length: usize, salt: usize| (0..length).map(|at| b"q3Zr8Kd1Lw7Xe5Tn9Vb2"[(at * 7 + at / 11 + salt * 3 + at * salt) % 20] as char).collect::<String>();
    vec![
        format!("ghp_{}", body(36, 1)),
        format!("sk-ant-api03-{}AA", body(93, 2)),
        format!("sk-proj-{}", body(60, 3)),
        format!("ABSK{}", body(120, 4)),
        format!("hf_{}", body(34, 5)),
        format!("AIza{}", body(35, 6)),
        format!("xoxb-{}", body(40, 7)),
        format!("glpat-{}", body(20, 8)),
        format!("pcsk_{}", body(60, 9)),
        format!("eyJ{}.eyJ{}.{}", body(30, 10), body(60, 11), body(43, 12)),
        format!("-----BEGIN RSA PRIVATE KEY-----\\n{}\\n-----END RSA PRIVATE KEY-----", body(200, 13)),
        format!("AWS_SECRET_ACCESS_KEY={}", body(40, 14)),
    ]
}

/// What must not be found of a secret: a piece long enough to be nothing else.
fn core(secret: &str) -> &str {
    &secret[secret.len() / 2..secret.len() / 2 + 12]
}

#[test]
fn no_planted_secret_is_in_any_output_of_a_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Broker::start().expect("a broker");
    for topic in ["logs", "dead"] {
        broker.create_topic(topic, 1).expect("a topic");
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let config = folder.path().join("keyfuse.toml");
    let detections = std::fs::canonicalize("detections").expect("there");
    std::fs::write(
        &config,
        format!(
            "detections = {detections:?}\ndead_letter = \"dead\"\n[kafka]\n\"bootstrap.servers\" = {:?}\n[[topics]]\nname = \"logs\"\n[http]\nlisten = \"127.0.0.1:{port}\"\n[sinks]\nndjson = [\"alerts.ndjson\"]\n[archive]\ncommit_every = \"1s\"\n",
            broker.address()
        ),
    )
    .expect("written");
    let log = folder.path().join("log.txt");
    let stderr = Stdio::from(std::fs::File::create(&log).expect("a file"));
    let child = Command::new(env!("CARGO_BIN_EXE_keyfuse"))
        .args(["run", "--log", "keyfuse=trace", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn();
    let mut child = child.expect("keyfuse starts");
    wait_for("readiness", || get(port, "/readyz").is_some_and(|(status, _)| status == 200));

    let secrets = secrets();
    let sender = sender(&broker.address());
    let mut sent = 0;
    let mut send = |text: &str| {
        sender.send("logs", Some(0), None, text.as_bytes(), Some(START + 6 * HOUR)).expect("sent");
        sent += 1;
    };
    for story in [Story::Injection, Story::Llmjacking] {
        for (_, records) in tell(story, 3, START, HOUR, 60).logs() {
            records.iter().for_each(|record| send(&record.text));
        }
    }
    for (number, secret) in secrets.iter().enumerate() {
        for format in FORMATS {
            for sample in keyfuse::shipped::samples(format.name()).lines() {
                // Into the first text that is long enough to be one; and into a record that is cut off.
                let at = sample.match_indices(": \"").map(|(at, _)| at + 3).nth(number % 7).unwrap_or(0);
                let stuffed = if at == 0 { sample.to_owned() } else { format!("{}say {secret} now {}", &sample[..at], &sample[at..]) };
                send(&stuffed);
                send(&stuffed[..stuffed.len() - 3]);
            }
        }
        send(&format!("plain text with {secret} in it"));
    }
    sender.flush(std::time::Duration::from_secs(60)).expect("taken");
    let page = || get(port, "/metrics").map(|(_, page)| page).unwrap_or_default();
    let messages = format!("keyfuse_messages_total{{topic=\"logs\"}} {sent}");
    wait_for("all messages", || page().contains(&messages));
    let metrics = page();
    // SAFETY: the process is this test's own child and still runs.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    assert!(child.wait().expect("ends").success());

    let mut outputs: Vec<(String, String)> = vec![("metrics".into(), metrics)];
    let data = folder.path().join("keyfuse-data");
    for (name, path) in [("alerts", folder.path().join("alerts.ndjson")), ("alert log", data.join("alerts.log")), ("program log", log)] {
        outputs.push((name.into(), String::from_utf8_lossy(&std::fs::read(&path).expect("there")).into_owned()));
    }
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let archive = runtime.block_on(Archive::open(&data.join("archive").to_string_lossy(), &Default::default())).expect("the archive");
    let door = runtime.block_on(Door::open(Rows::Archive(&archive), &Dimensions::default(), &Fingerprinter::public(), Limits::default())).expect("a door");
    let mut places: BTreeSet<String> = BTreeSet::new();
    for table in TABLES {
        let (door, question) = (door.clone(), format!("SELECT * FROM {}", table.name));
        let answer = runtime.block_on(async move { tokio::spawn(async move { door.ask(&question).await }).await }).expect("no panic").expect("answers");
        let text = arrow::util::pretty::pretty_format_batches(&answer.batches).expect("prints").to_string();
        if table.name == "exposure_reports" {
            places.extend(["prompt", "argument", "document", "result"].into_iter().filter(|place| text.contains(&format!("| {place}"))).map(str::to_owned));
        }
        outputs.push((table.name.into(), text));
    }
    let mut settings = rdkafka::ClientConfig::new();
    settings.set("bootstrap.servers", broker.address());
    let letters = read_all(&settings, "dead").expect("the topic");
    let letters: String = letters.iter().map(|letter| String::from_utf8_lossy(letter.value.as_deref().unwrap_or_default())).collect();
    assert!(!letters.is_empty(), "the cut records went to the dead letters");
    outputs.push(("dead letters".into(), letters));
    for (name, text) in &outputs {
        for secret in &secrets {
            let found = text.find(core(secret)).map(|at| text[text.floor_char_boundary(at.saturating_sub(300))..].chars().take(500).collect::<String>());
            assert!(found.is_none(), "{:.12}… is in the {name}: {}", secret, found.unwrap_or_default());
        }
    }
    assert!(places.len() >= 3, "and they were found: {places:?}");
}
