//! kill -9 at random moments, against a broker that survives: no row lost or doubled, no alert lost, no id delivered twice
//! to a reader that honours ids.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use keyfuse::archive::Archive;
use keyfuse::clock::MINUTE;
use keyfuse::dimension::Dimensions;
use keyfuse::generate::llmjacking;
use keyfuse::query::{Door, Limits, Rows};
use keyfuse::replay::replay;
use keyfuse::secret::Fingerprinter;
use keyfuse::source::broker::Broker;
use keyfuse::source::files;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{START, delivered, of_book, plain_settings, sender, shipped, wait_for};

/// How often the process is killed in one run; `KEYFUSE_KILLS` changes it.
const KILLS: usize = 50;

fn write_config(folder: &Path, broker: &str, round: usize) {
    // A group of its own for each start: the archive says where to go on, and no dead member is waited for.
    let detections = std::fs::canonicalize("detections").expect("the folder");
    let text = format!(
        "detections = {detections:?}\ndata = \"data\"\n[kafka]\n\"bootstrap.servers\" = {broker:?}\n\"group.id\" = \"crash-{round}\"\n\
         [[topics]]\nname = \"cloudtrail\"\nformat = \"cloudtrail\"\n[[topics]]\nname = \"reports\"\n\
         [archive]\npath = \"archive\"\ncommit_every = \"1s\"\n[http]\nlisten = \"127.0.0.1:0\"\n[sinks]\nndjson = [\"alerts.ndjson\"]\n"
    );
    std::fs::write(folder.join("keyfuse.toml"), text).expect("written");
}

fn start(folder: &Path) -> Child {
    let errors = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("stderr.log")).expect("a log");
    Command::new(env!("CARGO_BIN_EXE_keyfuse"))
        .args(["run", "--config"])
        .arg(folder.join("keyfuse.toml"))
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .expect("keyfuse starts")
}

#[test]
fn killed_fifty_times_nothing_is_lost_and_nothing_is_twice() {
    let kills = std::env::var("KEYFUSE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let folder = tempfile::tempdir().expect("a folder");
    let broker = Broker::start().expect("a broker");
    broker.create_topic("cloudtrail", 3).expect("a topic");
    broker.create_topic("reports", 1).expect("a topic");
    let world = llmjacking(11, START, 20 * MINUTE, 2_000);
    let mut rng = StdRng::seed_from_u64(5);

    // Messages trickle in while the process lives and dies.
    let ended = Arc::new(AtomicBool::new(false));
    let producer = {
        let (sender, ended) = (sender(&broker.address()), Arc::clone(&ended));
        let mut all: Vec<(i64, &'static str, String)> = world.cloudtrail.iter().map(|r| (r.append_time, "cloudtrail", r.text.clone())).collect();
        all.extend(world.exposure_reports.iter().map(|r| (r.append_time, "reports", r.text.clone())));
        all.sort();
        let pause = Duration::from_millis(kills as u64 * 1_000 / all.len() as u64);
        std::thread::spawn(move || {
            for (number, (append_time, topic, text)) in all.iter().enumerate() {
                let partition = if *topic == "reports" { 0 } else { (number % 3) as i32 };
                sender.send(topic, Some(partition), None, text.as_bytes(), Some(*append_time)).expect("sent");
                std::thread::sleep(pause);
            }
            sender.flush(Duration::from_secs(30)).expect("taken");
            ended.store(true, Ordering::Relaxed);
        })
    };
    for round in 0..kills {
        write_config(folder.path(), &broker.address(), round);
        let mut child = start(folder.path());
        std::thread::sleep(Duration::from_millis(rng.random_range(300..2_500)));
        child.kill().expect("SIGKILL");
        child.wait().expect("reaped");
    }
    producer.join().expect("all sent");
    assert!(ended.load(Ordering::Relaxed));

    // One last life, until everything is archived; then a clean end.
    write_config(folder.path(), &broker.address(), kills);
    let mut child = start(folder.path());
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let archive = runtime.block_on(Archive::open(&folder.path().join("archive").to_string_lossy(), &Default::default())).expect("the archive");
    let wanted = world.cloudtrail.len() as i64;
    wait_for("all rows in the archive", || {
        assert!(child.try_wait().expect("a state").is_none(), "{}", std::fs::read_to_string(folder.path().join("stderr.log")).unwrap_or_default());
        count(&runtime, &archive, "SELECT count(*) FROM cloudtrail") >= wanted
    });
    // SAFETY: the process is this test's own child and still runs.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    let waiting = Instant::now();
    let status = child.wait().expect("an end");
    assert!(status.success(), "a clean stop: {status}\n{}", std::fs::read_to_string(folder.path().join("stderr.log")).unwrap_or_default());
    println!("{kills} kills; the last stop took {:?}", waiting.elapsed());

    assert_eq!(count(&runtime, &archive, "SELECT count(*) FROM cloudtrail"), wanted, "rows");
    assert_eq!(count(&runtime, &archive, "SELECT count(DISTINCT event_id) FROM cloudtrail"), wanted, "events");
    assert_eq!(count(&runtime, &archive, "SELECT count(*) FROM (SELECT DISTINCT topic, \"partition\", \"offset\", record FROM cloudtrail)"), wanted, "places");
    assert_eq!(count(&runtime, &archive, "SELECT count(*) FROM exposure_reports"), 1);

    // What one undisturbed pass over the same records finds.
    let path = folder.path().join("records.jsonl");
    let lines = world.cloudtrail.iter().chain(&world.exposure_reports).map(|r| format!("{}\n", r.text));
    std::fs::write(&path, lines.collect::<String>()).expect("written");
    let inputs = runtime.block_on(files::resolve(&[path.to_string_lossy().into_owned()], &Default::default())).expect("a file");
    let detections = shipped();
    let settings = plain_settings(&detections);
    let undisturbed = of_book(&replay(&inputs, settings, runtime.handle(), |_, _| {}).unwrap_or_else(|errors| panic!("{}", errors[0])).book);
    let got = delivered(&folder.path().join("alerts.ndjson"));
    assert_eq!(got.keys().collect::<BTreeSet<_>>(), undisturbed.keys().collect::<BTreeSet<_>>(), "alert ids");
    for (id, content) in &undisturbed {
        for (name, value) in content.as_object().expect("an object") {
            assert_eq!(&got[id][name], value, "{name} of {}", got[id]["detection"]);
        }
    }
    let rows = count(&runtime, &archive, "SELECT count(*) FROM alerts WHERE held IS NULL AND status IN ('open', 'final')");
    assert_eq!(rows, undisturbed.len() as i64, "alerts in the archive");
}

fn count(runtime: &tokio::runtime::Runtime, archive: &Archive, sql: &str) -> i64 {
    let answer = runtime.block_on(async {
        let door = Door::open(Rows::Archive(archive), &Dimensions::default(), &Fingerprinter::public(), Limits::default()).await.expect("a door");
        door.ask(sql).await.expect("an answer")
    });
    answer.batches[0].column(0).as_primitive::<Int64Type>().value(0)
}
