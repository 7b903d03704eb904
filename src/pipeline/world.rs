//! What the operator states about the own world: from files, and from compacted topics that are looked at while running.
//!
//! A statement of a topic counts from when it was made, but never for a row that was already decided without it. The engine's
//! thread sees to that, and archives it: so a backtest knows exactly what the live decision knew, also after Kafka has
//! compacted the message away.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Order;
use crate::alert::AllowList;
use crate::config::Config;
use crate::credential::replace_secrets;
use crate::dimension::{Dimensions, Statement};
use crate::error::{Error, Result};
use crate::network::Networks;
use crate::secret::Fingerprinter;
use crate::source::kafka::{Keyed, client_config, read_all};

/// How often the topics of dimensions are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What is stated now.
pub struct World {
    pub dimensions: Dimensions,
    pub networks: Arc<Networks>,
    pub allow: AllowList,
    /// What files alone allow: an entry there that could never hold is refused.
    pub allow_in_files: AllowList,
}

impl World {
    /// Reads the files again and adds what topics stated. A statement that cannot be read is told and left out; a file that
    /// cannot be read is refused whole.
    ///
    /// # Errors
    /// Everything that is wrong in the files.
    pub fn read(config: &Config, stated: &[Statement]) -> Result<Self, Vec<Error>> {
        let mut dimensions = Dimensions::read(&config.known)?;
        let allow_in_files = AllowList::of(&dimensions);
        let mut networks = Networks::open(&config.networks).map_err(|error| vec![error])?;
        let mut problems = dimensions.add_statements(stated);
        let about_networks = stated.iter().filter(|statement| statement.dimension == "networks");
        let newest: BTreeMap<&str, &Statement> = about_networks.map(|statement| (statement.key.as_str(), statement)).collect();
        for statement in newest.into_values() {
            let outcome = statement.entry.as_deref().map_or(Ok(()), |entry| networks.state(entry));
            problems.extend(outcome.err().map(|message| Error::user(format!("{}: {message}", statement.place))));
        }
        for error in problems {
            tracing::error!(%error, "a statement was left out");
        }
        let allow = AllowList::of(&dimensions);
        Ok(Self { dimensions, networks: Arc::new(networks), allow, allow_in_files })
    }
}

/// Reads the topics of dimensions.
#[derive(Clone)]
pub struct Listener {
    config: Config,
    fingerprinter: Fingerprinter,
    /// Places of the statements that are archived.
    known: Arc<Mutex<HashSet<String>>>,
}

impl Listener {
    pub fn new(config: &Config, fingerprinter: &Fingerprinter, known: &[Statement]) -> Self {
        let listener = Self { config: config.clone(), fingerprinter: fingerprinter.clone(), known: Arc::default() };
        listener.knows(known);
        listener
    }

    /// Notes statements as archived: they are not brought up again.
    pub fn knows(&self, statements: &[Statement]) {
        let places = statements.iter().map(|statement| statement.place.clone());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(places);
    }

    /// What the topics hold and nobody knows yet, in order of time.
    ///
    /// # Errors
    /// The broker cannot be read.
    pub fn listen(&self) -> Result<Vec<Statement>> {
        let mut fresh = Vec::new();
        for (dimension, topic) in &self.config.dimension_topics {
            // Whoever puts a secret into an inventory does not get it archived in clear.
            let text = |bytes: Vec<u8>| replace_secrets(&String::from_utf8_lossy(&bytes), &self.fingerprinter).into_owned();
            let statement = |m: Keyed| Statement {
                dimension: (*dimension).to_owned(),
                key: text(m.key),
                entry: m.value.map(text),
                holds_from: m.at,
                stated_at: m.at,
                place: m.place,
            };
            fresh.extend(read_all(&client_config(&self.config.kafka)?, topic)?.into_iter().map(statement));
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.retain(|statement| !known.contains(&statement.place));
        Ok(fresh)
    }

    /// Listens again and again, and hands on what is new.
    pub fn watch(&self, orders: &Sender<Order>, stopped: &AtomicBool) {
        let mut listened = Instant::now();
        while !stopped.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            if listened.elapsed() < LOOK_EVERY {
                continue;
            }
            listened = Instant::now();
            match self.listen() {
                Ok(fresh) if fresh.is_empty() => {}
                Ok(fresh) => drop(orders.send(Order::State(fresh))),
                Err(error) => tracing::warn!(%error, "the topics of dimensions cannot be read; what is known stays"),
            }
        }
    }
}
