//! The archive under two owners, under crashes between its steps, and in the hands of strangers.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use keyfuse::archive::{Archive, Positions};
use keyfuse::clock::MINUTE;
use keyfuse::decode::{Decoder, Message, Settings};
use keyfuse::error::Fault;
use keyfuse::generate::ordinary;
use keyfuse::secret::Fingerprinter;
use keyfuse::table::{TABLES, Table, cloudtrail as c, rejects};

use crate::support::START;

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
