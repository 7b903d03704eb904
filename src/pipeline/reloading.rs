//! Detections that are read again: what the archive holds of their past is read on a thread of its own, while those that run go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use arrow::record_batch::RecordBatch;

use super::{Order, Past, UNARCHIVED_BYTES};
use crate::clock::Micros;
use crate::detect::{Detection, Engine, Plans};
use crate::error::{Error, Result};
use crate::table::{History, LookBack, Table};

/// Detections on their way in.
pub struct Reloading {
    /// Cleared when nobody waits for it any more.
    wanted: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    fresh: Vec<(&'static Table, RecordBatch)>,
    bytes: usize,
}

/// Detections, and the engine that evaluates them.
pub struct Loaded {
    pub detections: Vec<Detection>,
    pub plans: Plans,
    pub engine: Engine,
}

/// What came of reading their past.
pub struct Read {
    wanted: Arc<AtomicBool>,
    loaded: Result<Loaded>,
}

impl Read {
    /// None where it was called off: others have taken its place.
    pub fn wanted(self) -> Option<Result<Loaded>> {
        self.wanted.load(Ordering::Relaxed).then_some(self.loaded)
    }
}

impl Reloading {
    /// Begins to read what rows of the past the engine needs, to decide what comes after `since`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(mut loaded: Loaded, past: Past, since: Micros, orders: Sender<Order>) -> Result<Self> {
        let wanted = Arc::new(AtomicBool::new(true));
        let past = WhileWanted { past, wanted: Arc::clone(&wanted) };
        let thread = std::thread::Builder::new().name("reloading".into()).stack_size(16 << 20).spawn(move || {
            let restored = loaded.engine.restore(&past, Some(since));
            let _ = orders.send(Order::Loaded(Box::new(Read { wanted: past.wanted, loaded: restored.map(|()| loaded) })));
        });
        let thread = thread.map_err(|error| Error::environment("starting the thread that reads the past of detections").because(error))?;
        Ok(Self { wanted, thread, fresh: Vec::new(), bytes: 0 })
    }

    /// Keeps rows that the thread may not have seen.
    pub fn keep(&mut self, table: &'static Table, batch: &RecordBatch) {
        self.bytes += batch.get_array_memory_size();
        self.fresh.push((table, batch.clone()));
    }

    /// So much was kept that what comes next has to wait.
    pub fn is_full(&self) -> bool {
        self.bytes >= UNARCHIVED_BYTES
    }

    /// The rows that were kept.
    pub fn kept(self) -> Vec<(&'static Table, RecordBatch)> {
        self.fresh
    }

    /// Calls it off; gives the thread, which ends when it has heard of it.
    pub fn call_off(self) -> JoinHandle<()> {
        self.wanted.store(false, Ordering::Relaxed);
        self.thread
    }
}

/// A past that says no more once nobody waits for it.
struct WhileWanted {
    past: Past,
    wanted: Arc<AtomicBool>,
}

impl History for WhileWanted {
    fn rows(&self, ask: &LookBack<'_>) -> Result<Vec<RecordBatch>> {
        match self.wanted.load(Ordering::Relaxed) {
            true => self.past.rows(ask),
            false => Err(Error::user("called off")),
        }
    }

    fn is_kept(&self) -> bool {
        self.past.is_kept()
    }
}
