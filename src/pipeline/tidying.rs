//! Keeps the archive tidy while the service runs: hours that have passed are compacted, rows that have had their time go. On a thread
//! and a runtime of its own: sorting an hour holds up no flush.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::archive::{Archive, Tidied};
use crate::clock::{self, Micros};
use crate::error::{At, Error, Result};
use crate::metrics::Metrics;
use crate::table::{TABLES, statements};

/// How often it is looked for hours to compact.
const COMPACT_EVERY: Duration = Duration::from_secs(600);
/// How often what nobody reads any more is deleted.
const SWEEP_OUT_EVERY: Duration = Duration::from_secs(3600);

/// Starts the thread; it ends when the sender is dropped. `keep`: how long rows are kept, for ever where it says nothing.
///
/// # Errors
/// The thread cannot be started.
pub fn start(archive: &Arc<Archive>, keep: Option<Micros>, metrics: &Arc<Metrics>) -> Result<Sender<()>> {
    let (alive, until) = channel();
    let (archive, metrics) = (Arc::clone(archive), Arc::clone(metrics));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().at(|| "starting the runtime that tidies the archive".into())?;
    std::thread::Builder::new()
        .name("tidying".into())
        .spawn(move || tidy(&archive, keep, &metrics, &runtime, &until))
        .map_err(|error| Error::environment("starting the thread that tidies the archive").because(error))?;
    Ok(alive)
}

fn tidy(archive: &Archive, keep: Option<Micros>, metrics: &Metrics, runtime: &tokio::runtime::Runtime, until: &Receiver<()>) {
    let mut swept_out: Option<Instant> = None;
    while until.recv_timeout(COMPACT_EVERY) == Err(RecvTimeoutError::Timeout) {
        let sweep_out = swept_out.is_none_or(|at| at.elapsed() >= SWEEP_OUT_EVERY);
        for table in TABLES {
            let tidied = runtime.block_on(async {
                // Expired first: what goes is not sorted before.
                let mut tidied = match keep.filter(|_| !std::ptr::eq(*table, &statements::TABLE)) {
                    Some(keep) => archive.expire(table, clock::now() - keep).await?,
                    // What was stated of agents and approvals holds for as long as any row that it is about.
                    None => Tidied::default(),
                };
                tidied += archive.compact(table, clock::now()).await?;
                if sweep_out {
                    archive.sweep_out(table).await?;
                }
                Ok::<_, Error>((tidied, archive.files(table).await?))
            });
            match tidied {
                Ok((tidied, files)) => {
                    metrics.archive_compacted.inc_by(tidied.compacted as u64);
                    metrics.archive_duplicates.with_label_values(&[table.name]).inc_by(tidied.duplicates);
                    metrics.archive_expired.inc_by(tidied.expired as u64);
                    metrics.archive_files.with_label_values(&[table.name]).set(files as i64);
                    if tidied != Tidied::default() {
                        tracing::info!(table = table.name, ?tidied, "the archive was tidied");
                    }
                }
                Err(error) => {
                    metrics.archive_tidy_failures.inc();
                    tracing::error!(%error, table = table.name, "the archive could not be tidied; nothing is lost, it will be tried again");
                }
            }
        }
        if sweep_out {
            swept_out = Some(Instant::now());
        }
    }
}
