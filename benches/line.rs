//! All benches, one binary: `cargo bench` runs them all, `cargo bench -- decode` those whose name holds the word.
//!
//! Every table states its data and prints ratios inside the same run beside absolute figures; CPU seconds are this process's
//! own (`getrusage`), the broker runs in a child. The embedded broker forgets all but 5 MiB a partition, so it gets many.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Schema};
use keyfuse::archive::{Archive, Positions, to_parquet};
use keyfuse::clock::{self, MINUTE};
use keyfuse::config::{Config, Topic};
use keyfuse::decode::{Decoder, FORMATS, Format, Message, Settings, format_by_name};
use keyfuse::detect::{Detection, Engine};
use keyfuse::dimension::Dimensions;
use keyfuse::generate::ordinary;
use keyfuse::pipeline::{Service, Show};
use keyfuse::secret::Fingerprinter;
use keyfuse::source::broker::{Broker, Sender};
use keyfuse::source::kafka::{Event, KafkaSource, client_config};
use keyfuse::table::{Memory, cloudtrail, rejects};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const START: i64 = 1_777_629_600_000_000;
const PARTITIONS: i32 = 40;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == "broker") {
        return broker(&args[1..]);
    }
    let wanted = |name: &str| args.is_empty() || args.iter().any(|arg| name.contains(arg.as_str()));
    let benches: [(&str, fn()); 10] = [
        ("decode", decode),
        ("formats", formats),
        ("ingest", ingest),
        ("size", size),
        ("filter", filter),
        ("whole line", whole_line),
        ("residue", residue),
        ("flood", flood),
        ("lookups", lookups),
        ("latency", latency),
    ];
    for (name, bench) in benches {
        if wanted(name) {
            println!("\n## {name}\n");
            bench();
        }
    }
}

fn cpu_seconds() -> f64 {
    // SAFETY: getrusage fills the struct it is given.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// The median CPU seconds of five runs.
fn median_cpu(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let before = cpu_seconds();
            work();
            cpu_seconds() - before
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[2]
}

/// Records of about this many bytes: generated ones, with the optional objects taken out or text put in.
fn records(count: usize, bytes: usize) -> Vec<String> {
    let world = ordinary(1, START, 60 * MINUTE, count);
    let fit = |text: &str| {
        let mut record: serde_json::Value = serde_json::from_str(text).expect("generated JSON");
        let object = record.as_object_mut().expect("an object");
        if bytes < 800 {
            for name in
                ["tlsDetails", "sessionContext", "managementEvent", "resources", "additionalEventData", "recipientAccountId", "eventCategory", "readOnly"]
            {
                object.remove(name);
            }
            if let Some(identity) = object.get_mut("userIdentity").and_then(|identity| identity.as_object_mut()) {
                identity.remove("sessionContext");
            }
            object.insert("userAgent".into(), "Boto3/1.40".into());
        }
        let missing = bytes.saturating_sub(record.to_string().len() + 30);
        if missing > 0 {
            // Hex of a counter hash: compresses like ids do, not like spaces.
            let mut filler = String::new();
            while filler.len() < missing {
                filler.push_str(&blake3::hash(format!("{}{}", filler.len(), text.len()).as_bytes()).to_hex());
            }
            filler.truncate(missing);
            record["requestParameters"]["encryptionContext"] = filler.into();
        }
        record.to_string()
    };
    world.cloudtrail.iter().map(|record| fit(&record.text)).collect()
}

fn mean(records: &[String]) -> usize {
    records.iter().map(String::len).sum::<usize>() / records.len().max(1)
}

fn decode_all(records: &[String], keep_raw: bool) -> usize {
    let topic: Arc<str> = Arc::from("t");
    let mut decoder = Decoder::new(format_by_name("cloudtrail"), Settings { keep_raw, ..Settings::new(Fingerprinter::public()) });
    // A knowledge base's data event is also a retrieval; records are counted once.
    let count =
        |decoder: &mut Decoder| decoder.finish().iter().filter(|(table, _)| table.name == "cloudtrail").map(|(_, batch)| batch.num_rows()).sum::<usize>();
    let mut rows = 0;
    for (offset, record) in records.iter().enumerate() {
        decoder.decode(Message { bytes: record.as_bytes(), topic: &topic, partition: 0, offset: Some(offset as i64), line: 1, append_time: Some(START) });
        if decoder.rows() >= 8192 {
            rows += count(&mut decoder);
        }
    }
    rows + count(&mut decoder)
}

/// Every log format over its own samples, bound to it and recognised (`auto`), beside CloudTrail's.
fn formats() {
    println!("Each format's samples, repeated to some 20 MB; one thread, messages in memory to Arrow batches, raw kept; median of five.\n");
    println!("| format | records | bytes each | rows/CPU-s | MB/CPU-s | auto ÷ bound | MB/s ÷ cloudtrail |\n|---|---|---|---|---|---|---|");
    let mut yardstick = None;
    let first = format_by_name("cloudtrail").into_iter();
    for format in first.chain(FORMATS.iter().copied().filter(|format| format.name() != "cloudtrail")) {
        let samples: Vec<&str> = keyfuse::shipped::samples(format.name()).lines().collect();
        let bytes: usize = samples.iter().map(|sample| sample.len()).sum();
        let rounds = 20_000_000 / bytes.max(1);
        let run = |bound: Option<&'static dyn Format>| {
            let topic: Arc<str> = Arc::from("t");
            let mut decoder = Decoder::new(bound, Settings::new(Fingerprinter::public()));
            let mut rows = 0;
            let mut offset = 0;
            for _ in 0..rounds {
                for sample in &samples {
                    offset += 1;
                    decoder.decode(Message { bytes: sample.as_bytes(), topic: &topic, partition: 0, offset: Some(offset), line: 1, append_time: Some(START) });
                }
                if decoder.rows() >= 8192 {
                    rows += decoder.finish().iter().map(|(_, batch)| batch.num_rows()).sum::<usize>();
                }
            }
            rows + decoder.finish().iter().map(|(_, batch)| batch.num_rows()).sum::<usize>()
        };
        let rows = run(Some(format));
        let (bound, auto) = (median_cpu(|| _ = run(Some(format))), median_cpu(|| _ = run(None)));
        let rate = (bytes * rounds) as f64 / 1e6 / bound;
        let yardstick = *yardstick.get_or_insert(rate);
        println!(
            "| {} | {} | {} | {:.0} | {rate:.0} | {:.2} | {:.2} |",
            format.name(),
            samples.len() * rounds,
            bytes / samples.len().max(1),
            rows as f64 / bound,
            bound / auto,
            rate / yardstick
        );
    }
}

/// The yardstick: arrow-json over the same leaves, nested as they come.
fn arrow_json(records: &[String]) -> usize {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let nested = |name: &str, fields: Vec<Field>| Field::new(name, DataType::Struct(fields.into()), true);
    let names = [
        "eventTime",
        "eventSource",
        "eventName",
        "awsRegion",
        "sourceIPAddress",
        "userAgent",
        "errorCode",
        "errorMessage",
        "requestID",
        "eventID",
        "sharedEventID",
        "eventType",
        "eventCategory",
        "recipientAccountId",
        "vpcEndpointId",
    ];
    let mut fields: Vec<Field> = names.iter().map(|name| text(name)).collect();
    fields.push(Field::new("readOnly", DataType::Boolean, true));
    fields.push(nested(
        "userIdentity",
        vec![
            text("type"),
            text("principalId"),
            text("arn"),
            text("accountId"),
            text("accessKeyId"),
            text("userName"),
            text("invokedBy"),
            nested(
                "sessionContext",
                vec![nested("sessionIssuer", vec![text("arn"), text("userName")]), nested("attributes", vec![text("creationDate"), text("mfaAuthenticated")])],
            ),
        ],
    ));
    fields.push(nested("tlsDetails", vec![text("tlsVersion")]));
    fields.push(nested(
        "requestParameters",
        vec![
            text("modelId"),
            text("userName"),
            text("roleArn"),
            text("policyArn"),
            text("policyName"),
            text("accessKeyId"),
            text("bucketName"),
            text("knowledgeBaseId"),
        ],
    ));
    fields.push(nested(
        "additionalEventData",
        vec![
            text("inferenceRegion"),
            Field::new("inputTokens", DataType::Int64, true),
            Field::new("outputTokens", DataType::Int64, true),
            Field::new("bytesTransferredIn", DataType::Float64, true),
            Field::new("bytesTransferredOut", DataType::Float64, true),
        ],
    ));
    let mut decoder = arrow::json::ReaderBuilder::new(Arc::new(Schema::new(fields))).with_batch_size(8192).build_decoder().expect("a decoder");
    let mut rows = 0;
    for record in records {
        let mut bytes = record.as_bytes();
        while !bytes.is_empty() {
            let read = decoder.decode(bytes).expect("well-formed");
            bytes = &bytes[read..];
            if read == 0 || decoder.len() >= 8192 {
                rows += decoder.flush().expect("a batch").map_or(0, |batch| batch.num_rows());
            }
        }
    }
    rows + decoder.flush().expect("a batch").map_or(0, |batch| batch.num_rows())
}

fn decode() {
    println!("One thread, JSON in memory to Arrow batches, all {} columns; median of five.\n", cloudtrail::COLUMNS.len());
    println!(
        "| records | bytes each | with raw, rows/CPU-s | MB/CPU-s | without raw | arrow-json, 38 leaves | with raw ÷ arrow-json | without raw ÷ arrow-json |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut sets: Vec<(String, Vec<String>)> = [600, 1250, 1670].iter().map(|bytes| ("generated".to_owned(), records(60_000, *bytes))).collect();
    if let Some(folder) = std::env::var_os("KEYFUSE_REAL_LOGS") {
        let mut real = Vec::new();
        for entry in std::fs::read_dir(folder).expect("the folder").flatten() {
            let file: serde_json::Value = serde_json::from_slice(&std::fs::read(entry.path()).expect("a file")).expect("JSON");
            real.extend(file["Records"].as_array().into_iter().flatten().map(ToString::to_string));
        }
        sets.push(("real, 2,900 of them 20 times".to_owned(), std::iter::repeat_n(real, 20).flatten().collect()));
    }
    for (name, records) in &sets {
        let count = records.len();
        assert_eq!(decode_all(records, true), count);
        let raw = median_cpu(|| assert_eq!(decode_all(records, true), count));
        let bare = median_cpu(|| assert_eq!(decode_all(records, false), count));
        // arrow-json fails a whole batch for one wrongly typed field, which real records have.
        let yardstick = name.starts_with("generated").then(|| median_cpu(|| assert_eq!(arrow_json(records), count)));
        let rate = |seconds: f64| count as f64 / seconds;
        let ratio = |seconds: f64| yardstick.map_or("–".into(), |y| format!("{:.2}", y / seconds));
        println!(
            "| {name} | {} | {:.0} | {:.0} | {:.0} | {} | {} | {} |",
            mean(records),
            rate(raw),
            rate(raw) * mean(records) as f64 / 1e6,
            rate(bare),
            yardstick.map_or("–".into(), |y| format!("{:.0}", rate(y))),
            ratio(raw),
            ratio(bare)
        );
    }
}

/// A broker in a child process, filled with `count` records of `bytes`, at `rate` a second (0: as fast as it takes them).
struct Filled {
    child: Child,
    address: String,
}

impl Filled {
    fn start(count: usize, bytes: usize, rate: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["broker", &count.to_string(), &bytes.to_string(), &rate.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut address = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut address).expect("an address");
        Self { child, address: address.trim().to_owned() }
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn broker(args: &[String]) {
    let number = |index: usize| args[index].parse::<usize>().expect("a number");
    let (count, bytes, rate) = (number(0), number(1), number(2));
    let records = records(count.min(60_000), bytes);
    // A real Kafka, where there is one, for the paced bench: its topic makes itself.
    let real = std::env::var("KEYFUSE_KAFKA").ok().filter(|_| rate > 0);
    let embedded = real.is_none().then(|| Broker::start().expect("a broker"));
    if let Some(broker) = &embedded {
        broker.create_topic("cloudtrail", PARTITIONS).expect("a topic");
    }
    let address = real.unwrap_or_else(|| embedded.as_ref().map(Broker::address).unwrap_or_default());
    let place = |number: usize| embedded.is_some().then_some(number as i32 % PARTITIONS);
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", &address).set("linger.ms", "2").set("compression.type", "lz4");
    let sender = Sender::new(&settings).expect("a producer");
    let mut out = std::io::stdout();
    if rate == 0 {
        for number in 0..count {
            sender.send("cloudtrail", place(number), None, records[number % records.len()].as_bytes(), Some(START)).expect("sent");
        }
        sender.flush(Duration::from_secs(120)).expect("taken");
        writeln!(out, "{address}").expect("told");
        out.flush().expect("told");
    } else {
        writeln!(out, "{address}").expect("told");
        out.flush().expect("told");
        // Wait until the consumer is there.
        std::thread::sleep(Duration::from_secs(4));
        let started = Instant::now();
        for number in 0..count {
            while started.elapsed().as_secs_f64() < number as f64 / rate as f64 {
                std::thread::sleep(Duration::from_micros(500));
            }
            let now = clock::now();
            let marker = serde_json::json!({"eventVersion": "1.11", "eventTime": clock::rfc3339(now), "eventSource": "bedrock.amazonaws.com", "eventName": "DeleteGuardrail",
                "eventID": format!("m{number}"), "userIdentity": {"type": "IAMUser", "arn": format!("arn:aws:iam::111122223333:user/u{number}")},
                "additionalEventData": {"callWithBearerToken": true}})
            .to_string();
            let text = if number % 200 == 0 { &marker } else { &records[number % records.len()] };
            sender.send("cloudtrail", place(number), None, text.as_bytes(), Some(now)).expect("sent");
        }
        sender.flush(Duration::from_secs(120)).expect("taken");
    }
    // Lives until its parent ends it.
    let _ = std::io::stdin().lines().next();
    std::thread::sleep(Duration::from_secs(600));
}

/// CPU seconds of a bare consumer that counts bytes.
fn bare_consumer(address: &str, count: usize) -> f64 {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", address)
        .set("group.id", format!("bare-{}", clock::now()))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false");
    let consumer: BaseConsumer = settings.create().expect("a consumer");
    consumer.subscribe(&["cloudtrail"]).expect("subscribed");
    let before = cpu_seconds();
    let (mut messages, mut bytes) = (0, 0);
    while messages < count {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            messages += 1;
            bytes += message.payload_len();
        }
    }
    assert!(bytes > 0);
    cpu_seconds() - before
}

/// CPU seconds of the line: consume and decode, and then detections and the archive, where asked for.
fn line(address: &str, count: usize, detections: &[Detection], archive: Option<bool>) -> f64 {
    let mut user = std::collections::BTreeMap::from([("bootstrap.servers".to_owned(), address.to_owned())]);
    user.insert("group.id".into(), format!("line-{}", clock::now()));
    let (events_in, events) = sync_channel(8);
    let config = client_config(&user).expect("settings");
    let mut engine = (!detections.is_empty())
        .then(|| Engine::new(detections, &Fingerprinter::public(), &Dimensions::default()).unwrap_or_else(|errors| panic!("{}", errors[0])));
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let store = archive.map(|_| Arc::new(runtime.block_on(Archive::open(&folder.path().to_string_lossy(), &HashMap::new())).expect("an archive")));
    let before = cpu_seconds();
    let source = KafkaSource::start(&config, &["cloudtrail".to_owned()], Box::new(|_| Ok(Default::default())), events_in).expect("a source");
    let mut decoder = Decoder::new(format_by_name("cloudtrail"), Settings { keep_raw: archive.unwrap_or(true), ..Settings::new(Fingerprinter::public()) });
    let past = Memory::default();
    let (mut messages, mut unflushed, mut positions) = (0, 0, Positions::new());
    while messages < count {
        let Ok(Event::Poll(poll)) = events.recv() else { continue };
        for m in &poll.messages {
            decoder.decode(Message { bytes: &m.value, topic: &m.topic, partition: m.partition, offset: Some(m.offset), line: 1, append_time: m.append_time });
            positions.insert((m.topic.to_string(), m.partition), m.offset + 1);
            unflushed += m.value.len();
        }
        messages += poll.messages.len();
        for (table, batch) in decoder.finish() {
            if let Some(engine) = &mut engine {
                engine.push(table, &batch).expect("pushed");
            }
            if store.is_some() {
                past.add(table, &batch);
            }
        }
        if let Some(engine) = &mut engine {
            engine.tick(&past).expect("ticked");
        }
        if let Some(store) = &store
            && (unflushed > 32 << 20 || messages >= count)
        {
            runtime.block_on(store.flush(&past.flush(), &positions, &mut BTreeSet::new(), |table| past.archived(table))).expect("flushed");
            unflushed = 0;
        }
    }
    let seconds = cpu_seconds() - before;
    if let Some(store) = &store {
        assert_eq!(runtime.block_on(store.read(&keyfuse::table::cloudtrail::TABLE)).expect("read").rows(), count as u64);
        assert_eq!(runtime.block_on(store.read(&rejects::TABLE)).expect("read").rows(), 0);
    }
    source.join();
    seconds
}

const MESSAGES: usize = 100_000;

fn ingest() {
    println!("Broker → decode → archive, no detections: {MESSAGES} messages, lz4, {PARTITIONS} partitions; CPU of this process.\n");
    println!("| bytes each | bare consumer, msg/CPU-s | decode, no archive | archive without raw | archive with raw | with raw ÷ bare consumer |");
    println!("|---|---|---|---|---|---|");
    for bytes in [600, 1250, 1670] {
        let filled = Filled::start(MESSAGES, bytes, 0);
        let rate = |seconds: f64| MESSAGES as f64 / seconds;
        let bare = rate(bare_consumer(&filled.address, MESSAGES));
        let decoded = rate(line(&filled.address, MESSAGES, &[], None));
        let columns = rate(line(&filled.address, MESSAGES, &[], Some(false)));
        let raw = rate(line(&filled.address, MESSAGES, &[], Some(true)));
        println!("| {bytes} | {bare:.0} | {decoded:.0} | {columns:.0} | {raw:.0} | {:.2} |", raw / bare);
    }
}

fn size() {
    println!("100,000 rows in one file as the service writes it, against `zstd -3` over the raw lines.\n");
    println!("| bytes each | Parquet without raw | Parquet with raw | zstd -3 of the raw lines | with raw ÷ zstd -3 |");
    println!("|---|---|---|---|---|");
    for bytes in [600, 1250, 1670] {
        let texts = records(100_000, bytes);
        let parquet = |keep_raw: bool| {
            let topic: Arc<str> = Arc::from("t");
            let mut decoder = Decoder::new(format_by_name("cloudtrail"), Settings { keep_raw, ..Settings::new(Fingerprinter::public()) });
            for (offset, text) in texts.iter().enumerate() {
                decoder.decode(Message { bytes: text.as_bytes(), topic: &topic, partition: 0, offset: Some(offset as i64), line: 1, append_time: Some(START) });
            }
            let (table, batch) = decoder.finish().remove(0);
            to_parquet(table, &[batch]).expect("encoded").len() as f64 / 1e5
        };
        let (bare, raw) = (parquet(false), parquet(true));
        let yardstick = zstd::bulk::compress(texts.join("\n").as_bytes(), 3).expect("compressed").len() as f64 / 1e5;
        println!("| {} | {bare:.0} | {raw:.0} | {yardstick:.0} | {:.2} |", mean(&texts), raw / yardstick);
    }
}

/// Detections of the three shapes that public rule sets are made of, over different services and calls.
fn many(count: usize) -> Vec<Detection> {
    let services = ["iam", "sts", "s3", "kms", "ec2", "lambda", "bedrock", "secretsmanager", "ssm", "rds"];
    let template = std::fs::read_to_string("detections/llm-03-console-only-api-by-program.md").expect("a detection");
    let head = Detection::parse(&template, Path::new("template.md")).unwrap_or_else(|error| panic!("{error}"));
    (0..count)
        .map(|n| {
            let source = format!("{}.amazonaws.com", services[n % services.len()]);
            let (call, other) = (["Delete", "Create", "Put", "Update", "Attach"][n % 5], n / 3);
            let sql = match n % 3 {
                0 => format!("SELECT access_key_id AS credential, event_time AS alert_time, event_id FROM cloudtrail WHERE event_source = '{source}' AND event_name = '{call}Thing{other}' AND user_agent LIKE '%tool{other}%'"),
                1 => format!("SELECT b.access_key_id AS credential, b.event_time AS alert_time, b.event_id FROM cloudtrail a JOIN cloudtrail b ON a.access_key_id = b.access_key_id WHERE a.event_source = '{source}' AND a.event_name = 'List{other}' AND b.event_name = '{call}{other}' AND b.event_time BETWEEN a.event_time AND a.event_time + INTERVAL '17 minutes'"),
                _ => format!("SELECT access_key_id AS credential, date_bin(INTERVAL '10 minutes', event_time) AS alert_time, count(*) AS n FROM cloudtrail WHERE event_source = '{source}' AND error_code = 'Denied{other}' GROUP BY access_key_id, date_bin(INTERVAL '10 minutes', event_time) HAVING count(*) >= 5"),
            };
            Detection { name: format!("D{n}"), id: uuid::Uuid::from_u128(n as u128), sql, ..head.clone() }
        })
        .collect()
}

fn filter() {
    println!("Engine only: 200,000 decoded rows in batches of 8,192, detections of three shapes (one row, sequence, threshold); median of five.\n");
    println!("| detections | distinct predicates | ns/row | rows/CPU-s |");
    println!("|---|---|---|---|");
    let texts = records(200_000, 1250);
    let topic: Arc<str> = Arc::from("t");
    let mut decoder = Decoder::new(format_by_name("cloudtrail"), Settings { keep_raw: false, ..Settings::new(Fingerprinter::public()) });
    let mut batches = Vec::new();
    for (offset, text) in texts.iter().enumerate() {
        decoder.decode(Message {
            bytes: text.as_bytes(),
            topic: &topic,
            partition: 0,
            offset: Some(offset as i64),
            line: 1,
            append_time: Some(START + 60 * MINUTE),
        });
        if decoder.rows() == 8192 {
            batches.extend(decoder.finish());
        }
    }
    for (name, detections) in [("1", many(1)), ("30", many(30)), ("300", many(300)), ("the shipped ones", shipped())] {
        let mut engine = Engine::new(&detections, &Fingerprinter::public(), &Dimensions::default()).unwrap_or_else(|errors| panic!("{}", errors[0]));
        let rows: usize = batches.iter().map(|(_, batch)| batch.num_rows()).sum();
        let past = Memory::default();
        let seconds = median_cpu(|| {
            for (table, batch) in &batches {
                engine.push(table, batch).expect("pushed");
                engine.tick(&past).expect("ticked");
            }
        });
        println!("| {name} | {} | {:.0} | {:.0} |", engine.filter_size().0, seconds / rows as f64 * 1e9, rows as f64 / seconds);
    }
}

fn shipped() -> Vec<Detection> {
    keyfuse::detect::read_folder(Path::new("detections")).unwrap_or_else(|errors| panic!("{}", errors[0]))
}

fn whole_line() {
    println!("Broker → decode → detections → archive with raw: {MESSAGES} messages of 1,250 bytes, lz4; CPU of this process.\n");
    println!("| what | msg/CPU-s | ÷ bare consumer |");
    println!("|---|---|---|");
    let filled = Filled::start(MESSAGES, 1250, 0);
    let bare = MESSAGES as f64 / bare_consumer(&filled.address, MESSAGES);
    println!("| bare consumer | {bare:.0} | 1.00 |");
    let mut rates = HashMap::new();
    for (name, detections, archive) in [
        ("1 detection, no archive", many(1), None),
        ("300 detections, no archive", many(300), None),
        ("1 detection, archive", many(1), Some(true)),
        ("300 detections, archive", many(300), Some(true)),
        ("the shipped ones, archive", shipped(), Some(true)),
    ] {
        let rate = MESSAGES as f64 / line(&filled.address, MESSAGES, &detections, archive);
        println!("| {name} | {rate:.0} | {:.2} |", rate / bare);
        rates.insert(name, rate);
    }
    println!(
        "\n300 detections ÷ 1: {:.2} without archive, {:.2} with",
        rates["300 detections, no archive"] / rates["1 detection, no archive"],
        rates["300 detections, archive"] / rates["1 detection, archive"]
    );
}

fn residue() {
    let detections: Vec<Detection> = shipped().into_iter().filter(|d| d.name == "LLM-01").collect();
    let mut engine = Engine::new(&detections, &Fingerprinter::public(), &Dimensions::default()).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let topic: Arc<str> = Arc::from("t");
    let mut kept = 0;
    let mut seed = 0;
    let before = resident() as f64;
    while kept < 500_000 {
        seed += 1;
        let mut decoder = Decoder::new(format_by_name("cloudtrail"), Settings { keep_raw: false, ..Settings::new(Fingerprinter::public()) });
        for (offset, record) in ordinary(seed, START, 60 * MINUTE, 100_000).cloudtrail.iter().enumerate() {
            decoder.decode(Message {
                bytes: record.text.as_bytes(),
                topic: &topic,
                partition: 0,
                offset: Some(offset as i64),
                line: 1,
                append_time: Some(record.append_time),
            });
            if decoder.rows() == 8192 {
                for (table, batch) in decoder.finish() {
                    engine.push(table, &batch).expect("pushed");
                }
                engine.tick(&Memory::default()).expect("ticked");
            }
        }
        kept = engine.residue_rows();
    }
    let million = 1e6 / kept as f64 / (1 << 20) as f64;
    println!(
        "LLM-01 over inference traffic: {kept} rows kept; per million rows {:.0} MiB by the engine's own count, {:.0} MiB of resident memory.",
        engine.residue_bytes() as f64 * million,
        (resident() as f64 - before) * million
    );
}

/// An act that other detections must see at once, whatever floods in: who stops logging (COV-03, one row), uses a key of which a
/// report is there (EXP-01, a join), is refused five models (LLM-05, a count). It is the identity that tells whose it is.
fn probe(tick: usize) -> Vec<(&'static keyfuse::table::Table, arrow::array::RecordBatch)> {
    use keyfuse::table::{Place, Rows, cloudtrail as c, exposure_reports as e};
    let place = Place { topic: Arc::from("t"), partition: 0, offset: 0, record: 0 };
    let (at, key) = (START + tick as i64 * 1_000_000, format!("AKIAPROBE{tick:011}"));
    let mut calls = Rows::new(&c::TABLE);
    let mut call = |number: usize, source: &str, name: &str, outcome: &str, model: Option<&str>| {
        calls.stamp(&place, Some(at), Some(at), &format!("probe-{tick}-{number}"), &mut String::new());
        calls.text(c::EVENT_SOURCE, Some(source));
        calls.text(c::EVENT_NAME, Some(name));
        calls.text(c::OUTCOME, Some(outcome));
        calls.text(c::MODEL_ID, model);
        calls.text(c::ACCESS_KEY_ID, Some(&key));
        calls.text(c::IDENTITY, Some(&format!("arn:aws:iam::111122223333:user/{key}")));
        calls.text(c::AWS_REGION, Some("us-east-1"));
        calls.end_row();
    };
    match tick % 3 {
        0 => call(0, "cloudtrail.amazonaws.com", "StopLogging", "success", None),
        1 => call(0, "bedrock.amazonaws.com", "InvokeModel", "success", Some("m")),
        _ => (0..8).for_each(|number| call(number, "bedrock.amazonaws.com", "InvokeModel", "denied", Some(&format!("model-{number}")))),
    }
    let mut batches = vec![(&c::TABLE, calls.finish())];
    if tick % 3 == 1 {
        let mut reports = Rows::new(&e::TABLE);
        reports.stamp(&place, Some(at), Some(at), &format!("report-{tick}"), &mut String::new());
        reports.text(e::CREDENTIAL, Some(&key));
        reports.text(e::REPORTER, Some("gitleaks"));
        reports.text(e::CREDENTIAL_KIND, Some("aws_access_key_id"));
        reports.end_row();
        batches.push((&e::TABLE, reports.finish()));
    }
    batches
}

/// Rows of model calls: by a million keys, by one key, or by a few, one second of append time to each 2,000.
fn calls(count: usize, key_of: impl Fn(usize) -> String) -> Vec<arrow::array::RecordBatch> {
    use keyfuse::table::{Place, Rows, cloudtrail as c};
    let place = Place { topic: Arc::from("t"), partition: 0, offset: 0, record: 0 };
    let mut batches = Vec::new();
    let mut rows = Rows::new(&c::TABLE);
    for number in 0..count {
        let at = START + number as i64 * 500;
        rows.stamp(&place, Some(at), Some(at), &format!("e{number}"), &mut String::new());
        let key = key_of(number);
        rows.text(c::EVENT_SOURCE, Some("bedrock.amazonaws.com"));
        rows.text(c::EVENT_NAME, Some(["InvokeModel", "Converse", "ListFoundationModels"][number % 3]));
        rows.text(c::OUTCOME, Some("success"));
        rows.text(c::ACCESS_KEY_ID, Some(&key));
        rows.text(c::IDENTITY, Some(&format!("arn:aws:iam::111122223333:user/{key}")));
        rows.text(c::SOURCE_IP, Some("198.51.100.7"));
        rows.text(c::SOURCE_NETWORK, Some("198.51.100.0/24"));
        rows.text(c::AWS_REGION, Some("us-east-1"));
        rows.text(c::MODEL_ID, Some("m"));
        rows.end_row();
        if rows.len() == 2_000 {
            batches.push(rows.finish());
        }
    }
    batches
}

fn flood() {
    const ROWS: usize = 1_000_000;
    const BUDGET: usize = 512 << 20;
    println!(
        "{ROWS} model calls, 2,000 per second of append time, through all shipped detections and one without any predicate; budget {} MiB; one thread.\n\
        Into each tick goes one act that another detection must see: the time from its row to its finding, by class of that detection.\n",
        BUDGET >> 20
    );
    println!(
        "| what arrives | tick p50 ms | p99 ms | most ms | finding p99 ms: C0 | C1 | C2 | not found | kept rows | kept MiB | keys still to look at | switched off |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut broad = shipped().into_iter().find(|detection| detection.schedule.is_none()).unwrap_or_else(|| panic!("a live detection"));
    (broad.name, broad.id, broad.alert_key) = ("BROAD".into(), uuid::Uuid::from_u128(1), vec!["credential".into()]);
    broad.sql =
        "SELECT u.access_key_id AS credential, u.event_time AS alert_time, u.event_id FROM cloudtrail u JOIN cloudtrail v ON v.access_key_id = u.access_key_id
        AND v.event_time BETWEEN u.event_time - INTERVAL '1 hour' AND u.event_time WHERE v.user_agent <> u.user_agent"
            .into();
    let detections: Vec<Detection> = shipped().into_iter().chain([broad]).collect();
    let flooded = |number: usize| format!("AKIA{number:016}");
    let hot = |number: usize| if number.is_multiple_of(10) { "AKIAHOT0000000000001".to_owned() } else { format!("AKIA{:016}", number % 5_000) };
    let few = |number: usize| format!("AKIA{:016}", number % 5_000);
    let all: [(&str, &dyn Fn(usize) -> String); 3] =
        [("5,000 keys", &few), ("5,000 keys, and one with a tenth of it all", &hot), ("1,000,000 keys, once each", &flooded)];
    let mut longest_of_all = Vec::new();
    for (name, key_of) in all {
        let mut engine = Engine::new(&detections, &Fingerprinter::public(), &Dimensions::default())
            .unwrap_or_else(|errors| panic!("{}", errors[0]))
            .with_residue_budget(BUDGET)
            .with_tick_bounds(keyfuse::limits::TICK_ROWS, keyfuse::limits::TICK_TIME);
        let past = Memory::default();
        let mut ticks = Vec::new();
        // Of the longest tick: what it did, and for how long.
        let (mut longest, mut busy_before) = ((0.0, String::new()), HashMap::new());
        // When each probe went in, and how long after that its finding came.
        let (mut asked, mut found) = (HashMap::new(), [Vec::new(), Vec::new(), Vec::new()]);
        for batch in calls(ROWS, key_of) {
            let started = Instant::now();
            let tick = ticks.len();
            engine.push(&keyfuse::table::cloudtrail::TABLE, &batch).expect("pushed");
            for (table, batch) in probe(tick) {
                past.add(table, &batch);
                engine.push(table, &batch).expect("pushed");
            }
            asked.insert(tick, started);
            engine.advance(START + tick as i64 * 1_000_000);
            let pushed = started.elapsed();
            let findings = engine.tick(&past).expect("ticked");
            let ticked = started.elapsed();
            for finding in findings {
                let of_probe = finding.key.iter().find_map(|(_, value)| value.text().rsplit_once("AKIAPROBE")?.1.parse::<usize>().ok());
                let wanted = |tick: &usize| finding.detection.name == ["COV-03", "EXP-01", "LLM-05"][tick % 3];
                if let Some(tick) = of_probe.filter(wanted)
                    && let Some(asked) = asked.remove(&tick)
                {
                    found[tick % 3].push(asked.elapsed().as_secs_f64() * 1e3);
                }
            }
            engine.let_go(&past).expect("let go");
            let took = started.elapsed();
            ticks.push(took.as_secs_f64() * 1e3);
            let busy: HashMap<String, Duration> = engine.report().into_iter().map(|report| (report.detection, report.tally.busy)).collect();
            if took.as_secs_f64() * 1e3 > longest.0 {
                let own = |(name, busy): (&String, &Duration)| (*busy - busy_before.get(name).copied().unwrap_or_default(), name.clone());
                let (most, of) = busy.iter().map(own).max().unwrap_or_default();
                let parts = format!(
                    "{name}, tick {}: {pushed:.1?} taking rows, {:.1?} deciding (most of it, {most:.1?}, the plan of {of}), {:.1?} letting go",
                    ticks.len(),
                    ticked - pushed,
                    took - ticked
                );
                longest = (took.as_secs_f64() * 1e3, parts);
            }
            busy_before = busy;
        }
        longest_of_all.push(longest.1);
        let at = |times: &mut Vec<f64>, share: f64| {
            times.sort_by(f64::total_cmp);
            times.get((times.len().saturating_sub(1) as f64 * share) as usize).copied().unwrap_or(f64::NAN)
        };
        let off: Vec<String> = engine.report().into_iter().filter(|report| report.suspended.is_some()).map(|report| report.detection).collect();
        let off = if off.is_empty() { "none".to_owned() } else { off.join(" ") };
        println!(
            "| {name} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {} | {} | {} | {off} |",
            at(&mut ticks, 0.5),
            at(&mut ticks, 0.99),
            at(&mut ticks, 1.0),
            at(&mut found[0], 0.99),
            at(&mut found[1], 0.99),
            at(&mut found[2], 0.99),
            asked.len(),
            engine.residue_rows(),
            engine.residue_bytes() >> 20,
            engine.pending()
        );
    }
    println!("\nThe longest ticks:\n");
    longest_of_all.iter().for_each(|longest| println!("- {longest}"));
}

/// Ninety days of calls in an archive, and five questions of it: ours and DuckDB's time, and what was read. Once as flushes leave it
/// (two an hour here), once compacted.
fn lookups() {
    use keyfuse::table::{Place, Rows as Columns, cloudtrail as c};
    const DAYS: usize = 90;
    const A_DAY: usize = 48_000;
    const KEYS: usize = 20_000;
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_string_lossy().into_owned();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let archive = runtime.block_on(Archive::open(&place, &HashMap::new())).expect("an archive");
    let kafka = Place { topic: Arc::from("t"), partition: 0, offset: 0, record: 0 };
    for (day, flush) in (0..DAYS).flat_map(|day| (0..2).map(move |flush| (day, flush))) {
        let mut rows = Columns::new(&c::TABLE);
        for number in (day * A_DAY..(day + 1) * A_DAY).filter(|number| number % 2 == flush) {
            let at = START + number as i64 * (86_400_000_000 / A_DAY as i64);
            // Most keys work every day, one in ten on few of them: those are the ones that people look for.
            let key = number.wrapping_mul(7_919) % KEYS;
            let key = if key.is_multiple_of(10) { key + day / 9 * KEYS } else { key };
            rows.stamp(&kafka, Some(at), Some(at), &blake3::hash(&number.to_le_bytes()).to_hex()[..32], &mut String::new());
            rows.text(c::EVENT_SOURCE, Some("bedrock.amazonaws.com"));
            rows.text(c::EVENT_NAME, Some(["InvokeModel", "Converse", "ListFoundationModels"][number % 3]));
            rows.text(c::OUTCOME, Some(if number.is_multiple_of(50) { "denied" } else { "success" }));
            rows.text(c::ACCESS_KEY_ID, Some(&format!("AKIA{key:016}")));
            rows.text(c::IDENTITY, Some(&format!("arn:aws:iam::111122223333:user/u{}", key % 2_000)));
            rows.text(c::SOURCE_IP, Some(&format!("198.51.{}.{}", key % 100, number % 250)));
            rows.text(c::SOURCE_NETWORK, Some(&format!("198.51.{}.0/24", key % 100)));
            rows.text(c::AWS_REGION, Some("us-east-1"));
            rows.text(c::MODEL_ID, Some(["m1", "m2", "m3", "m4"][number % 4]));
            rows.end_row();
        }
        runtime.block_on(archive.append(&c::TABLE, &rows.finish())).expect("archived");
    }
    let (rare, event) = (format!("AKIA{:016}", 4_010 + 5 * KEYS), blake3::hash(&1_234_567usize.to_le_bytes()).to_hex()[..32].to_owned());
    let questions = [
        ("what a rare key did", format!("SELECT event_name, source_ip, count(*), min(event_time), max(event_time) FROM cloudtrail WHERE access_key_id = '{rare}' GROUP BY 1, 2")),
        ("what a busy key did", "SELECT event_name, count(*), min(event_time), max(event_time) FROM cloudtrail WHERE access_key_id = 'AKIA0000000000004011' GROUP BY 1".to_owned()),
        ("one event", format!("SELECT event_time, event_name, access_key_id FROM cloudtrail WHERE event_id = '{event}'")),
        ("one key, one day", "SELECT event_time, event_name, source_ip FROM cloudtrail WHERE access_key_id = 'AKIA0000000000004011' AND event_time >= TIMESTAMPTZ '2026-06-20 00:00:00Z' AND event_time < TIMESTAMPTZ '2026-06-21 00:00:00Z'".to_owned()),
        ("refused calls by identity, all days", "SELECT identity, count(*) AS n FROM cloudtrail WHERE outcome = 'denied' GROUP BY 1 ORDER BY n DESC LIMIT 10".to_owned()),
    ];
    look_up(&runtime, &archive, &questions);
    let begun = Instant::now();
    let tidied = runtime.block_on(archive.compact(&c::TABLE, clock::now() + clock::DAY)).expect("compacted");
    println!("\nCompacted in {:.0} s: {} files became {}.\n", begun.elapsed().as_secs_f64(), tidied.compacted, tidied.written);
    look_up(&runtime, &archive, &questions);
}

fn look_up(runtime: &tokio::runtime::Runtime, archive: &Archive, questions: &[(&str, String)]) {
    use keyfuse::query::{Door, Limits, Rows};
    let table = &keyfuse::table::cloudtrail::TABLE;
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let (rows, files) = runtime.block_on(async { (archive.read(table).await.expect("reads").rows(), archive.files(table).await.expect("reads")) });
    println!("{rows} rows of ninety days in {files} files; {threads} threads; median of five, files in the system's cache.\n");
    let (known, fingerprinter) = (Dimensions::default(), Fingerprinter::public());
    let door = runtime.block_on(Door::open(Rows::Archive(archive), &known, &fingerprinter, Limits::default())).expect("a door");
    let ask = |sql: &str| runtime.block_on(door.ask(sql)).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let ours: Vec<(f64, usize)> = questions
        .iter()
        .map(|(_, sql)| {
            ask(sql);
            let mut times: Vec<f64> = (0..5)
                .map(|_| {
                    let begun = Instant::now();
                    ask(sql);
                    begun.elapsed().as_secs_f64()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            (times[2], ask(sql).rows())
        })
        .collect();
    let theirs: Vec<Option<(f64, usize)>> = match std::env::var("KEYFUSE_PYTHON") {
        Ok(python) => {
            let mut asking = Command::new(python)
                .args(["benches/lookups.py", &format!("{}cloudtrail", archive.location().url.path()), &threads.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("KEYFUSE_PYTHON runs");
            let lines: String = questions.iter().map(|(_, sql)| format!("{sql}\n")).collect();
            asking.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("asked");
            let answer = asking.wait_with_output().expect("answered").stdout;
            let numbers = |line: &str| line.split_once(' ').and_then(|(seconds, rows)| Some((seconds.parse().ok()?, rows.parse().ok()?)));
            String::from_utf8_lossy(&answer).lines().map(numbers).collect()
        }
        Err(_) => {
            println!("(DuckDB was not asked: KEYFUSE_PYTHON names no Python that has it, see tests/strangers.sh)\n");
            vec![None; questions.len()]
        }
    };
    assert_eq!(theirs.len(), questions.len(), "DuckDB answered every question");
    println!("| question | answer, rows | row groups read | rows of them read | keyfuse ms | DuckDB ms | keyfuse ÷ DuckDB |\n|---|---|---|---|---|---|---|");
    for ((name, sql), ((seconds, rows), theirs)) in questions.iter().zip(ours.iter().zip(theirs)) {
        let plan = ask(&format!("EXPLAIN ANALYZE {sql}"));
        let plan = arrow::util::pretty::pretty_format_batches(&plan.batches).expect("a plan").to_string();
        // Metrics stand as `name=value`, summed over threads.
        let metric = |name: &str| plan.split_once(&format!("{name}=")).map_or("?", |(_, rest)| rest.split([',', ']']).next().unwrap_or("?")).trim().to_owned();
        let theirs_ms = theirs.map_or_else(|| "-".into(), |(seconds, _)| format!("{:.1}", seconds * 1e3));
        let ratio = theirs.map_or_else(|| "-".into(), |(other, _)| format!("{:.2}", seconds / other));
        assert!(theirs.is_none_or(|(_, other)| other == *rows), "{name}: {rows} rows, and {theirs:?}");
        println!(
            "| {name} | {rows} | {} | {} | {:.1} | {theirs_ms} | {ratio} |",
            metric("row_groups_pruned_bloom_filter"),
            metric("output_rows"),
            seconds * 1e3
        );
        if std::env::var("KEYFUSE_EXPLAIN").is_ok() {
            println!("{plan}");
        }
    }
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap_or(0) << 10
}

fn latency() {
    const RATE: usize = 40_000;
    const COUNT: usize = RATE * 10;
    let filled = Filled::start(COUNT, 1250, RATE);
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config {
        kafka: [("bootstrap.servers".to_owned(), filled.address.clone())].into(),
        topics: vec![Topic { name: "cloudtrail".into(), format: format_by_name("cloudtrail") }],
        dead_letter: None,
        detections: "detections".into(),
        known: Default::default(),
        dimension_topics: Default::default(),
        networks: Vec::new(),
        mappings: Vec::new(),
        data: folder.path().join("data"),
        archive: folder.path().join("archive").to_string_lossy().into_owned(),
        archive_options: HashMap::new(),
        keep: None,
        commit_every: Duration::from_secs(2),
        keep_raw: true,
        listen: ([127, 0, 0, 1], 0).into(),
        sinks: vec![keyfuse::sink::Settings {
            name: "file".into(),
            kind: keyfuse::sink::Kind::Ndjson { path: folder.path().join("alerts.ndjson"), format: Default::default() },
        }],
        silences: Vec::new(),
        levels: Default::default(),
        residue_budget: 1 << 30,
        shadow: None,
        canaries: None,
        sql: None,
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (show_in, show) = sync_channel(1 << 16);
    let service = Service::start(&config, runtime.handle().clone(), Some(show_in)).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let mut delays = Vec::new();
    let before = cpu_seconds();
    let started = Instant::now();
    while delays.len() < COUNT / 200 && started.elapsed() < Duration::from_secs(60) {
        if let Ok(Show::Alert(alert, _)) = show.recv_timeout(Duration::from_millis(100))
            && alert.detection == "LLM-10"
            && alert.revision == 1
        {
            delays.push(alert.decided_at - alert.first_time);
        }
    }
    let cpu = (cpu_seconds() - before) / started.elapsed().as_secs_f64();
    service.stop().expect("a clean stop");
    delays.sort_unstable();
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    println!(
        "{RATE} messages of 1,250 bytes a second for ten seconds, the shipped detections, archive with raw, the broker and its producer on the same two cores: \
         from the producer's clock to the alert p50 {:.0} ms, p99 {:.0} ms, worst {:.0} ms ({} alerts, {:.2} cores).",
        at(0.5),
        at(0.99),
        at(1.0),
        delays.len(),
        cpu
    );
}
