//! What is asked of the archive: detections with a schedule, and the late sweep. On a thread of its own: no answer, however slow,
//! holds up what is decided at once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use arrow::record_batch::RecordBatch;

use super::Order;
use crate::alert::AllowList;
use crate::archive::{Archive, ArchiveHistory};
use crate::clock::{DAY, Micros};
use crate::detect::{Detection, Finding, Plans, Scheduled};
use crate::dimension::Dimensions;
use crate::error::{Error, Result};
use crate::late::{Settings, Swept, Window, sweep};
use crate::query::{Door, Limits, Moment, Rows, Seen, on_deep_stacks};
use crate::schedule::{Past, ask};
use crate::secret::Fingerprinter;

/// Something to ask the archive, with what is known of the own world now.
pub struct Question {
    pub what: What,
    pub dimensions: Arc<Dimensions>,
}

pub enum What {
    /// One detection, about one moment.
    Scheduled(Scheduled, Micros),
    /// Which logs have arrived in the day before a moment.
    Sources(Micros),
    /// All of them, about late rows; with a bound for the memory of kept rows (bytes).
    Late(Arc<Plans>, Window, AllowList, usize),
}

/// What came of it.
pub enum Answer {
    Scheduled(Arc<Detection>, Micros, Result<Vec<Finding>>),
    Sources(Result<Vec<RecordBatch>>),
    Late(Window, Result<Swept>),
}

/// Starts the thread; it ends when the sender is dropped.
///
/// # Errors
/// The thread cannot be started.
pub fn start(archive: &Arc<Archive>, fingerprinter: &Fingerprinter, answers: Sender<Order>) -> Result<Sender<Question>> {
    let (questions, asked) = channel();
    let runtime = crate::query::runtime()?;
    let (history, fingerprinter) = (ArchiveHistory { archive: Arc::clone(archive), runtime: runtime.handle().clone() }, fingerprinter.clone());
    std::thread::Builder::new()
        .name("asking".into())
        .stack_size(16 << 20)
        .spawn(move || answer(&asked, &history, &fingerprinter, &runtime, &answers))
        .map_err(|error| Error::environment("starting the thread that asks the archive").because(error))?;
    Ok(questions)
}

/// What the archive has heard of each log.
const HEARD: &str = "SELECT source, account_id, region, kind, min(append_time), max(append_time) FROM arrivals GROUP BY source, account_id, region, kind";

fn answer(questions: &Receiver<Question>, history: &ArchiveHistory, fingerprinter: &Fingerprinter, runtime: &tokio::runtime::Runtime, answers: &Sender<Order>) {
    for Question { what, dimensions } in questions {
        let answer = match what {
            What::Scheduled(asked, at) => {
                let detection = Arc::clone(&asked.detection);
                let (past, fingerprinter) = (Past::Archive(Arc::clone(&history.archive)), fingerprinter.clone());
                let outcome = on_deep_stacks(runtime, async move { ask(&asked, at, &past, &dimensions, &fingerprinter).await });
                Answer::Scheduled(detection, at, outcome)
            }
            What::Sources(at) => {
                let (archive, fingerprinter) = (Arc::clone(&history.archive), fingerprinter.clone());
                let heard = on_deep_stacks(runtime, async move {
                    let moment = Moment { at: at.saturating_add(1), over: DAY, seen: Seen::All };
                    let door = Door::open_at(Rows::Archive(&archive), Some(moment), &dimensions, &fingerprinter, Limits::default()).await?;
                    door.ask(HEARD).await
                });
                Answer::Sources(heard.map(|answer| answer.batches))
            }
            What::Late(plans, window, allow, budget) => {
                let spans = runtime.block_on(history.archive.spans());
                let settings = Settings { dimensions: &dimensions, allow: &allow, budget };
                Answer::Late(window, spans.and_then(|spans| sweep(&plans, window, history, &spans, &settings)))
            }
        };
        if answers.send(Order::Answered(answer)).is_err() {
            return;
        }
    }
}
