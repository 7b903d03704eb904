//! What several tests need: a service on the embedded broker, and the alerts of an engine that was never interrupted.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keyfuse::alert::{Alert, AlertBook, Status};
use keyfuse::clock::Micros;
use keyfuse::config::{Config, Topic};
use keyfuse::detect::{Detection, read_folder};
use keyfuse::dimension::Dimensions;
use keyfuse::pipeline::Service;
use keyfuse::secret::Fingerprinter;
use keyfuse::sink::{Kind, Settings};
use keyfuse::source::broker::{Broker, Sender};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};

pub fn shipped() -> Vec<Detection> {
    read_folder(Path::new("detections")).expect("the shipped detections parse")
}

/// Alerts by id, and what the equality contract covers of each.
pub fn contents<'a>(alerts: impl IntoIterator<Item = &'a Alert>) -> BTreeMap<String, serde_json::Value> {
    alerts.into_iter().map(|alert| (alert.alert_id.clone(), alert.content())).collect()
}

/// What is settled of a book: not what was told early, nor what was taken back.
pub fn of_book(book: &AlertBook) -> BTreeMap<String, serde_json::Value> {
    contents(book.all().into_iter().filter(|alert| matches!(alert.status, Status::Open | Status::Final)))
}

/// A sink that writes lines of JSON to a file.
pub fn to_file(path: &Path) -> Settings {
    Settings { name: format!("ndjson:{}", path.display()), kind: Kind::Ndjson { path: path.to_owned(), format: Default::default() } }
}

/// The file of a config's first sink.
pub fn alert_file(config: &Config) -> &Path {
    match &config.sinks[0].kind {
        Kind::Ndjson { path, .. } => path,
        other => panic!("{other:?} is no file"),
    }
}

pub fn config(folder: &Path, broker: &str, topics: &[&str]) -> Config {
    Config {
        kafka: [("bootstrap.servers".to_owned(), broker.to_owned()), ("group.id".to_owned(), format!("test-{}", rand::random::<u64>()))].into(),
        topics: topics.iter().map(|name| Topic { name: (*name).to_owned(), format: None }).collect(),
        dead_letter: None,
        detections: PathBuf::from("detections"),
        known: Default::default(),
        dimension_topics: Default::default(),
        networks: Vec::new(),
        mappings: Vec::new(),
        data: folder.join("data"),
        archive: folder.join("archive").to_string_lossy().into_owned(),
        archive_options: HashMap::new(),
        keep: None,
        commit_every: Duration::from_millis(500),
        keep_raw: true,
        listen: ([127, 0, 0, 1], 0).into(),
        sinks: vec![to_file(&folder.join("alerts.ndjson"))],
        silences: Vec::new(),
        levels: Default::default(),
        residue_budget: 1 << 30,
        shadow: None,
        canaries: None,
        sql: None,
    }
}

pub fn sender(broker: &str) -> Sender {
    let mut settings = rdkafka::ClientConfig::new();
    settings.set("bootstrap.servers", broker).set("linger.ms", "1");
    Sender::new(&settings).expect("a producer")
}

/// A broker to test against, with a fresh topic.
pub struct TestBroker {
    pub name: &'static str,
    pub address: String,
    pub topic: String,
    embedded: Option<Broker>,
}

impl TestBroker {
    /// One more topic, with one partition.
    pub fn create_topic(&self, topic: &str) {
        match &self.embedded {
            Some(embedded) => embedded.create_topic(topic, 1).expect("a topic"),
            None => create_on_kafka(&self.address, topic, 1),
        }
    }
}

fn create_on_kafka(address: &str, topic: &str, partitions: i32) {
    let mut settings = rdkafka::ClientConfig::new();
    settings.set("bootstrap.servers", address);
    let admin: AdminClient<_> = settings.create().expect("an admin client");
    let fresh = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let made = futures::executor::block_on(admin.create_topics([&fresh], &AdminOptions::new())).expect("Kafka answers");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

/// The embedded broker, and the real Apache Kafka at `KEYFUSE_KAFKA` where there is one (`tests/kafka.sh start` runs it).
pub fn brokers(partitions: i32) -> Vec<TestBroker> {
    let topic = format!("test-{}", rand::random::<u64>());
    let embedded = Broker::start().expect("a broker");
    embedded.create_topic(&topic, partitions).expect("a topic");
    let mut brokers = vec![TestBroker { name: "embedded", address: embedded.address(), topic: topic.clone(), embedded: Some(embedded) }];
    match std::env::var("KEYFUSE_KAFKA") {
        Ok(address) => {
            create_on_kafka(&address, &topic, partitions);
            brokers.push(TestBroker { name: "Apache Kafka", address, topic, embedded: None });
        }
        Err(_) => println!("KEYFUSE_KAFKA is not set: only the embedded broker was tried"),
    }
    brokers
}

/// A running service.
pub fn start(config: &Config, runtime: &tokio::runtime::Runtime) -> Service {
    Service::start(config, runtime.handle().clone(), None).unwrap_or_else(|errors| panic!("{}", errors[0]))
}

/// The value of a metric, summed over its labels.
pub fn metric(service: &Service, name: &str) -> u64 {
    let page = service.metrics.page();
    let lines = page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

/// Rows of these tables so far: one record may be rows of several.
pub fn rows_of(service: &Service, tables: &[&str]) -> u64 {
    tables.iter().map(|table| metric(service, &format!("keyfuse_rows_total{{table=\"{table}\"}}"))).sum()
}

/// Waits until a condition holds; the limit only ends a test that has already failed.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(300), "waited five minutes for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The last revision of each alert in an NDJSON file: how a reader that honours ids sees it.
pub fn delivered(path: &Path) -> BTreeMap<String, serde_json::Value> {
    let mut last: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
        let Ok(alert) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let id = alert["alert_id"].as_str().unwrap_or_default().to_owned();
        let newer = last.get(&id).is_none_or(|known| known["revision"].as_u64() < alert["revision"].as_u64());
        if newer {
            last.insert(id, alert);
        }
    }
    last
}

/// 2026-05-01T10:00:00Z.
pub const START: Micros = 1_777_629_600_000_000;

/// A replay of files as they are: any format, nothing allowed, nothing known of agents, raw text kept.
pub fn plain_settings(detections: &[Detection]) -> keyfuse::replay::Settings<'_> {
    keyfuse::replay::Settings { format: None, decoding: keyfuse::decode::Settings::new(Fingerprinter::public()), dimensions: Dimensions::default(), detections }
}

/// A page of a service: status and body.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    ask(SocketAddr::from(([127, 0, 0, 1], port)), "GET", path)
}

/// An answer of a service: status and body.
pub fn ask(address: SocketAddr, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}
