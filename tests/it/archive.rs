//! The archive under two owners, under crashes between its steps, and in the hands of strangers.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use keyfuse::archive::{Archive, Positions, Tidied};
use keyfuse::clock::{self, HOUR, MINUTE};
use keyfuse::decode::{Decoder, Message, Settings};
use keyfuse::detect::analyse::Merge;
use keyfuse::detect::{Detection, Scalar, Schedule, Scheduled};
use keyfuse::dimension::Dimensions;
use keyfuse::error::Fault;
use keyfuse::generate::ordinary;
use keyfuse::query::{Door, Limits};
use keyfuse::schedule::{Past, ask};
use keyfuse::secret::Fingerprinter;
use keyfuse::table::{TABLES, Table, cloudtrail as c, rejects};

use crate::support::{START, shipped};

fn rows(seed: u64, count: usize) -> Vec<(&'static Table, RecordBatch)> {
    let mut decoder = Decoder::new(None, Settings::new(Fingerprinter::public()));
    for (offset, record) in ordinary(seed, START, 90 * MINUTE, count).cloudtrail.iter().enumerate() {
        let message = Message {
            bytes: record.text.as_bytes(),
            topic: &Arc::from("t"),
            partition: 0,
            offset: Some(offset as i64),
            line: 1,
            append_time: Some(record.append_time),
        };
        decoder.decode(message);
    }
    decoder.finish()
}

fn upto(offset: i64) -> Positions {
    Positions::from([(("t".to_owned(), 0), offset)])
}

#[tokio::test]
async fn a_second_owner_is_fenced_and_nothing_is_written_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_string_lossy().into_owned();
    let partition = [("t".to_owned(), 0)];
    let first = Archive::open(&place, &Default::default()).await.expect("opens");
    let second = Archive::open(&place, &Default::default()).await.expect("opens");
    // A service asks where each table stands before it writes: a knowledge base's event is a row of two.
    for archive in [&first, &second] {
        for table in TABLES {
            assert!(archive.positions(table, &partition).await.expect("reads").is_empty());
        }
    }
    let batches = rows(1, 200);
    first.flush(&batches, &upto(200), &mut BTreeSet::new(), |_| ()).await.expect("the first owner commits");
    let refused = second.flush(&batches, &upto(200), &mut BTreeSet::new(), |_| ()).await.expect_err("the second does not");
    assert_eq!(refused.fault, Fault::Conflict, "{refused}");
    assert!(refused.to_string().contains("another keyfuse writes here"), "{refused}");
    assert_eq!(first.read(&c::TABLE).await.expect("reads").rows(), 200);

    // Both at the same moment: exactly one wins.
    let third = Archive::open(&place, &Default::default()).await.expect("opens");
    for table in TABLES {
        third.positions(table, &partition).await.expect("reads");
    }
    let (mut done_a, mut done_b) = (BTreeSet::new(), BTreeSet::new());
    let (positions, batches) = (upto(300), rows(2, 100));
    let (a, b) = tokio::join!(first.flush(&batches, &positions, &mut done_a, |_| ()), third.flush(&batches, &positions, &mut done_b, |_| ()));
    assert_eq!(u8::from(a.is_ok()) + u8::from(b.is_ok()), 1, "{:?} {:?}", a.err(), b.err());
    assert_eq!(first.read(&c::TABLE).await.expect("reads").rows(), 300);
}

#[tokio::test]
async fn a_crash_between_two_tables_leaves_positions_that_tell() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_string_lossy().into_owned();
    let partition = [("t".to_owned(), 0)];
    let batches = rows(1, 50);
    {
        let archive = Archive::open(&place, &Default::default()).await.expect("opens");
        archive.positions(&c::TABLE, &partition).await.expect("reads");
        // The process dies after cloudtrail's commit and before that of rejects.
        let mut committed = BTreeSet::from([rejects::TABLE.name]);
        archive.flush(&batches, &upto(50), &mut committed, |_| ()).await.expect("half a flush");
    }
    let archive = Archive::open(&place, &Default::default()).await.expect("opens");
    assert!(archive.positions(&rejects::TABLE, &partition).await.expect("reads").is_empty(), "the range counts as not read");
    assert_eq!(archive.positions(&c::TABLE, &partition).await.expect("reads"), upto(50), "and its rows as already there");
    // A Parquet file whose commit never happened is not part of the table.
    std::fs::write(folder.path().join("cloudtrail/orphan.parquet"), b"half a file").expect("written");
    assert_eq!(archive.read(&c::TABLE).await.expect("reads").rows(), 50);
}

#[tokio::test]
async fn hours_that_have_passed_are_compacted_and_every_row_is_there_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_string_lossy().into_owned();
    let archive = Archive::open(&place, &Default::default()).await.expect("opens");
    let reader = Archive::open(&place, &Default::default()).await.expect("opens");
    archive.positions(&c::TABLE, &[("t".to_owned(), 0)]).await.expect("reads");
    // Twenty flushes of ninety minutes, of which one was delivered again from another offset.
    let mut flushed = 0;
    for seed in (0..20).chain([7]) {
        flushed += 100;
        archive.flush(&moved(rows(seed, 100), flushed), &upto(flushed), &mut BTreeSet::new(), |_| ()).await.expect("commits");
    }
    let asked =
        "SELECT count(*), count(DISTINCT event_id), sum(\"offset\") FROM (SELECT event_id, min(\"offset\") AS \"offset\" FROM cloudtrail GROUP BY event_id)";
    let by_key = "SELECT count(DISTINCT event_id) FROM cloudtrail WHERE access_key_id = (SELECT max(access_key_id) FROM cloudtrail)";
    let before = (answer(&archive, asked).await, answer(&archive, by_key).await, answer(&reader, by_key).await);
    // What is asked on a schedule sees each event once, whether its hour was compacted or not.
    let archive = Arc::new(archive);
    let asked_at = async || {
        let sql = "SELECT account_id, run_at() AS alert_time, count(*) AS calls, count(DISTINCT event_id) AS events FROM cloudtrail GROUP BY account_id";
        let schedule = Some(Schedule { every: 15 * MINUTE, over: HOUR });
        let detection = Detection { sql: sql.into(), alert_key: vec!["account_id".into()], schedule, ..shipped().swap_remove(0) };
        let (asked, past) = (Scheduled { detection: Arc::new(detection), instead: None }, Past::Archive(Arc::clone(&archive)));
        let found = ask(&asked, START + 75 * MINUTE, &past, &Dimensions::default(), &Fingerprinter::public()).await.expect("an answer");
        let counts = |columns: &[(String, Merge, Scalar)]| columns.iter().map(|(name, _, value)| (name.clone(), value.json())).collect::<BTreeMap<_, _>>();
        found.iter().map(|finding| (format!("{:?}", finding.key), counts(&finding.columns))).collect::<BTreeMap<_, _>>()
    };
    let of_a_moment = asked_at().await;
    assert!(!of_a_moment.is_empty() && of_a_moment.values().all(|counts| counts["calls"] == counts["events"]), "{of_a_moment:?}");
    let files = archive.files(&c::TABLE).await.expect("reads");
    assert!(files >= 40, "{files} files");

    let soon = archive.compact(&c::TABLE, clock::now()).await.expect("looks");
    assert_eq!(soon, Tidied::default(), "what was written a moment ago may still grow");
    let later = clock::now() + 24 * HOUR;
    let tidied = archive.compact(&c::TABLE, later).await.expect("compacts");
    assert_eq!((tidied.compacted, tidied.duplicates), (files, 100));
    assert_eq!(archive.files(&c::TABLE).await.expect("reads"), tidied.written);
    assert!(tidied.written <= 3, "one an hour: {tidied:?}");
    assert_eq!(archive.read(&c::TABLE).await.expect("reads").rows(), 2_000);
    let after = (answer(&archive, asked).await, answer(&archive, by_key).await, answer(&reader, by_key).await);
    assert_eq!(after, before, "the same answers, also for whoever had the archive open");
    assert_eq!(asked_at().await, of_a_moment);
    assert_eq!(archive.compact(&c::TABLE, later).await.expect("looks"), Tidied::default(), "once is enough");

    // The service goes on, and a late batch of an hour that was compacted joins it.
    archive.flush(&moved(rows(99, 100), flushed + 100), &upto(flushed + 100), &mut BTreeSet::new(), |_| ()).await.expect("commits");
    archive.compact(&c::TABLE, later).await.expect("compacts");
    assert_eq!((archive.read(&c::TABLE).await.expect("reads").rows(), reader.read(&c::TABLE).await.expect("reads").rows()), (2_100, 2_100));
    assert!(archive.files(&c::TABLE).await.expect("reads") <= 3);

    // Nothing is deleted on the same day: someone may still read it. A second process finds nothing left to do.
    archive.sweep_out(&c::TABLE).await.expect("tidies");
    assert_eq!(reader.compact(&c::TABLE, later).await.expect("looks"), Tidied::default());
    let on_disk = || walk(&folder.path().join("cloudtrail")).iter().filter(|path| path.ends_with(".parquet") && !path.contains("_delta_log")).count();
    assert!(on_disk() > files, "{} files on disk", on_disk());

    // What has had its time is gone for readers at once.
    let expired = archive.expire(&c::TABLE, START + HOUR).await.expect("expires");
    assert!(expired.expired > 0 && archive.read(&c::TABLE).await.expect("reads").rows() < 2_100);
    archive.expire(&c::TABLE, later).await.expect("expires");
    assert_eq!(reader.read(&c::TABLE).await.expect("reads").rows(), 0);
    assert_eq!(archive.positions(&c::TABLE, &[("t".to_owned(), 0)]).await.expect("reads"), upto(flushed + 100), "positions stay");
}

#[tokio::test]
async fn files_whose_times_cannot_match_are_not_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let archive = Archive::open(&folder.path().to_string_lossy(), &Default::default()).await.expect("opens");
    archive.positions(&c::TABLE, &[("t".to_owned(), 0)]).await.expect("reads");
    archive.flush(&moved(rows(1, 200), 200), &upto(200), &mut BTreeSet::new(), |_| ()).await.expect("commits");
    let last = format!("event_time > TIMESTAMPTZ '{}'", clock::rfc3339(START + 70 * MINUTE));
    let asked = answer(&archive, &format!("SELECT count(*) AS calls FROM cloudtrail WHERE {last}")).await;
    assert_eq!(asked, answer(&archive, &format!("SELECT count(*) FILTER (WHERE {last}) AS calls FROM cloudtrail")).await);
    let opened = async |filter: &str| answer(&archive, &format!("EXPLAIN SELECT event_name FROM cloudtrail{filter}")).await.matches(".parquet").count();
    let (all, some) = (opened("").await, opened(&format!(" WHERE {last}")).await);
    assert!(0 < some && some < all, "{some} of {all}");
}

#[tokio::test]
async fn a_reader_that_slept_while_the_log_was_tidied_reads_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().to_string_lossy().into_owned();
    let archive = Archive::open(&place, &Default::default()).await.expect("opens");
    let reader = Archive::open(&place, &Default::default()).await.expect("opens");
    // Two calls at a time: the same once more would be the same file.
    let (_, calls) = rows(1, 62).into_iter().find(|(table, _)| std::ptr::eq(*table, &c::TABLE)).expect("calls");
    for commit in 0..30 {
        archive.append(&c::TABLE, &calls.slice(commit * 2, 2)).await.expect("commits");
    }
    // What tidying does to entries that a checkpoint holds, once they are old enough.
    let log = folder.path().join("cloudtrail/_delta_log");
    let gone = walk(&log).into_iter().filter(|path| path.ends_with(".json") && path.rsplit('/').next() < Some("00000000000000000024.json"));
    assert!(gone.map(|path| std::fs::remove_file(path).expect("deleted")).count() > 20);
    assert_eq!(reader.read(&c::TABLE).await.expect("reads on").rows(), 60);
    archive.append(&c::TABLE, &calls.slice(60, 2)).await.expect("commits on");
    assert_eq!(Archive::open(&place, &Default::default()).await.expect("opens").read(&c::TABLE).await.expect("reads").rows(), 62);
}

/// The rows as delivered from other offsets.
fn moved(batches: Vec<(&'static Table, RecordBatch)>, by: i64) -> Vec<(&'static Table, RecordBatch)> {
    let cloudtrail = batches.into_iter().filter(|(table, _)| std::ptr::eq(*table, &c::TABLE));
    let moved = cloudtrail.map(|(table, batch)| {
        let mut columns = batch.columns().to_vec();
        let offsets = columns[c::OFFSET].as_primitive::<Int64Type>().unary::<_, Int64Type>(|offset| offset + by);
        columns[c::OFFSET] = Arc::new(offsets);
        (table, RecordBatch::try_new(batch.schema(), columns).expect("same schema"))
    });
    moved.collect()
}

async fn answer(archive: &Archive, sql: &str) -> String {
    let door = Door::open(keyfuse::query::Rows::Archive(archive), &Dimensions::default(), &Fingerprinter::public(), Limits::default()).await.expect("opens");
    arrow::util::pretty::pretty_format_batches(&door.ask(sql).await.expect("answers").batches).expect("prints").to_string()
}

fn walk(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("reads").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path.to_string_lossy().into_owned()] }).collect()
}

/// Reads the archive with DuckDB and the `deltalake` package, where a Python with both is at hand (`tests/strangers.sh` makes one).
#[tokio::test]
async fn strangers_read_the_same_counts() {
    let Some(python) = std::env::var_os("KEYFUSE_PYTHON") else {
        println!("KEYFUSE_PYTHON is not set: DuckDB and deltalake were not asked");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let archive = Archive::open(&folder.path().to_string_lossy(), &Default::default()).await.expect("opens");
    archive.positions(&c::TABLE, &[("t".to_owned(), 0)]).await.expect("reads");
    for (number, seed) in [1u64, 2, 3].into_iter().enumerate() {
        archive.flush(&rows(seed, 500), &upto(500 * (number as i64 + 1)), &mut BTreeSet::new(), |_| ()).await.expect("commits");
    }
    let output = Command::new(python).arg("tests/strangers.py").arg(folder.path().join("cloudtrail")).output().expect("python runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(archive.read(&c::TABLE).await.expect("reads").rows(), 1500);
    assert!(text.contains("deltalake 1500 1500") && text.contains("duckdb 1500 1500"), "{text}");
}
