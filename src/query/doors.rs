//! Doors for many questions: each is answered over rows that are at most half a second old.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use datafusion::execution::memory_pool::MemoryPool;

use super::{Door, Limits, Rows, pool};
use crate::archive::Archive;
use crate::dimension::Dimensions;
use crate::error::Result;
use crate::secret::Fingerprinter;
use crate::table::Memory;

/// For so long a door is used again.
const FRESH: Duration = Duration::from_millis(500);

/// Opens doors on the archive and on what is not in it yet.
pub struct Doors {
    archive: Option<Arc<Archive>>,
    hot: Arc<Memory>,
    dimensions: RwLock<Arc<Dimensions>>,
    fingerprinter: Fingerprinter,
    limits: Limits,
    /// One for all questions: many that are modest each must not be too much together.
    pool: Arc<dyn MemoryPool>,
    open: tokio::sync::Mutex<Option<(Instant, Door)>>,
}

impl Doors {
    /// `dimensions` are as they stand, statements of topics included.
    pub fn new(archive: Option<Arc<Archive>>, hot: Arc<Memory>, dimensions: Arc<Dimensions>, fingerprinter: Fingerprinter, limits: Limits) -> Self {
        Self { archive, hot, dimensions: RwLock::new(dimensions), fingerprinter, limits, pool: pool(limits.memory), open: tokio::sync::Mutex::default() }
    }

    /// What is known of the own world from now on.
    pub fn set_dimensions(&self, dimensions: &Arc<Dimensions>) {
        *self.dimensions.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(dimensions);
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// A door on the rows as they are now.
    ///
    /// # Errors
    /// The archive cannot be read.
    pub async fn open(&self) -> Result<Door> {
        let mut open = self.open.lock().await;
        if let Some((since, door)) = &*open
            && since.elapsed() < FRESH
        {
            return Ok(door.clone());
        }
        let now = Instant::now();
        let rows = self.archive.as_ref().map_or(Rows::Memory(&self.hot), |archive| Rows::Both(archive, &self.hot));
        let dimensions = Arc::clone(&self.dimensions.read().unwrap_or_else(PoisonError::into_inner));
        let door = Door::open_in(&self.pool, rows, None, &dimensions, &self.fingerprinter, self.limits).await?;
        *open = Some((now, door.clone()));
        Ok(door)
    }
}
