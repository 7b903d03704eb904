//! Asks detections with a schedule, on a thread of its own: no answer, however slow, holds up what is decided at once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Order;
use crate::archive::Archive;
use crate::clock::Micros;
use crate::detect::{Detection, Finding};
use crate::dimension::Dimensions;
use crate::error::{Error, Result};
use crate::schedule::{Past, ask};
use crate::secret::Fingerprinter;

/// One detection, asked about one moment.
pub struct Question {
    pub detection: Arc<Detection>,
    pub at: Micros,
    pub dimensions: Arc<Dimensions>,
}

/// What came of it.
pub struct Asked {
    pub detection: Arc<Detection>,
    pub at: Micros,
    pub outcome: Result<Vec<Finding>>,
}

/// Starts the thread; it ends when the sender is dropped.
///
/// # Errors
/// The thread cannot be started.
pub fn start(archive: &Arc<Archive>, fingerprinter: &Fingerprinter, answers: Sender<Order>) -> Result<Sender<Question>> {
    let (questions, asked) = channel();
    let (past, fingerprinter) = (Past::Archive(Arc::clone(archive)), fingerprinter.clone());
    let runtime = crate::query::runtime()?;
    std::thread::Builder::new()
        .name("schedule".into())
        .spawn(move || answer(&asked, &past, &fingerprinter, &runtime, &answers))
        .map_err(|error| Error::environment("starting the thread of scheduled detections").because(error))?;
    Ok(questions)
}

fn answer(questions: &Receiver<Question>, past: &Past, fingerprinter: &Fingerprinter, runtime: &tokio::runtime::Runtime, answers: &Sender<Order>) {
    for Question { detection, at, dimensions } in questions {
        let (asked, past, fingerprinter) = (Arc::clone(&detection), past.clone(), fingerprinter.clone());
        // On the runtime's own threads: their stacks are deep enough for any plan.
        let work = async move { tokio::spawn(async move { ask(&asked, at, &past, &dimensions, &fingerprinter).await }).await };
        let outcome = runtime.block_on(work).unwrap_or_else(|_| Err(Error::bug("a scheduled detection panicked")));
        if answers.send(Order::Asked(Asked { detection, at, outcome })).is_err() {
            return;
        }
    }
}
