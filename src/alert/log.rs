//! The alert log: every alert revision and every delivery, on disk before anything depends on it.
//!
//! One JSON object per line. Alerts are followed by one `fdatasync` per tick; deliveries are not synced, because a sink that
//! honours ids takes a repeat for what it is. A line that a crash cut short is dropped on reading.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Alert;
use crate::clock::Micros;
use crate::error::{At, Result};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Alert(Box<Alert>),
    Delivered {
        alert_id: String,
        revision: u64,
        sink: String,
    },
    Archived {
        alert_id: String,
        revision: u64,
    },
    Decided {
        progress: Micros,
    },
    Asked {
        detection_id: uuid::Uuid,
        at: Micros,
    },
    Swept {
        at: Micros,
    },
    /// What the pipeline notes about the rollout of a detection.
    Rollout(serde_json::Value),
}

/// An open alert log.
pub struct AlertLog {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

/// What the log held when it was opened.
#[derive(Default)]
pub struct Recovered {
    pub alerts: Vec<Alert>,
    /// Highest revision that each sink has acknowledged.
    pub delivered: HashMap<(String, String), u64>,
    /// Highest revision in the archive.
    pub archived: HashMap<String, u64>,
    /// How far append time had come when the last range was committed: every result up to there is in this log.
    pub progress: Option<Micros>,
    /// Up to which moment each detection with a schedule was asked.
    pub asked: HashMap<uuid::Uuid, Micros>,
    /// Up to which append time late rows were swept.
    pub swept: Option<Micros>,
    /// Notes on rollouts, in order.
    pub rollouts: Vec<serde_json::Value>,
}

impl AlertLog {
    /// Opens the log, reads it back and rewrites it without what is superseded.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path) -> Result<(Self, Recovered)> {
        let recovered = read(path)?;
        let place = || format!("writing the alert log {}", path.display());
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh).at(place)?;
        let mut lines = Vec::new();
        for alert in &recovered.alerts {
            push(&mut lines, &Line::Alert(Box::new(alert.clone())));
        }
        for ((alert_id, sink), revision) in &recovered.delivered {
            push(&mut lines, &Line::Delivered { alert_id: alert_id.clone(), revision: *revision, sink: sink.clone() });
        }
        for (alert_id, revision) in &recovered.archived {
            push(&mut lines, &Line::Archived { alert_id: alert_id.clone(), revision: *revision });
        }
        if let Some(progress) = recovered.progress {
            push(&mut lines, &Line::Decided { progress });
        }
        for (detection_id, at) in &recovered.asked {
            push(&mut lines, &Line::Asked { detection_id: *detection_id, at: *at });
        }
        for rollout in &recovered.rollouts {
            push(&mut lines, &Line::Rollout(rollout.clone()));
        }
        if let Some(at) = recovered.swept {
            push(&mut lines, &Line::Swept { at });
        }
        file.write_all(&lines).at(place)?;
        file.sync_all().at(place)?;
        std::fs::rename(&fresh, path).at(place)?;
        sync_folder(path).at(place)?;
        let file = OpenOptions::new().append(true).open(path).at(place)?;
        Ok((Self { path: path.to_owned(), file, buffer: Vec::new() }, recovered))
    }

    /// Adds alert revisions and makes them durable.
    ///
    /// # Errors
    /// The disk: nothing may be delivered or committed then.
    pub fn append<'a>(&mut self, alerts: impl IntoIterator<Item = &'a Alert>) -> Result<()> {
        for alert in alerts {
            push(&mut self.buffer, &Line::Alert(Box::new(alert.clone())));
        }
        self.flush()?;
        self.file.sync_data().at(|| format!("syncing the alert log {}", self.path.display()))
    }

    /// Notes that a sink has taken a revision.
    ///
    /// # Errors
    /// The disk.
    pub fn delivered(&mut self, alert_id: &str, revision: u64, sink: &str) -> Result<()> {
        push(&mut self.buffer, &Line::Delivered { alert_id: alert_id.to_owned(), revision, sink: sink.to_owned() });
        self.flush()
    }

    /// Notes that revisions are in the archive, and how far append time had come when they were decided.
    ///
    /// # Errors
    /// The disk.
    pub fn archived<'a>(&mut self, alerts: impl IntoIterator<Item = &'a Alert>, progress: Option<Micros>) -> Result<()> {
        if let Some(progress) = progress {
            push(&mut self.buffer, &Line::Decided { progress });
        }
        for alert in alerts {
            push(&mut self.buffer, &Line::Archived { alert_id: alert.alert_id.clone(), revision: alert.revision });
        }
        self.flush()
    }

    /// Notes up to which moment a detection with a schedule was asked; its alerts are in the log.
    ///
    /// # Errors
    /// The disk.
    pub fn asked(&mut self, detection_id: uuid::Uuid, at: Micros) -> Result<()> {
        push(&mut self.buffer, &Line::Asked { detection_id, at });
        self.flush()
    }

    /// Notes up to which append time late rows were swept; the alerts that they added are in the log.
    ///
    /// # Errors
    /// The disk.
    pub fn swept(&mut self, at: Micros) -> Result<()> {
        push(&mut self.buffer, &Line::Swept { at });
        self.flush()
    }

    /// Notes something about the rollout of a detection; the last note on one counts.
    ///
    /// # Errors
    /// The disk.
    pub fn rollout(&mut self, note: &impl Serialize) -> Result<()> {
        push(&mut self.buffer, &Line::Rollout(serde_json::to_value(note).at(|| "a rollout".into())?));
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.buffer).at(|| format!("writing the alert log {}", self.path.display()))?;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads the alert log of a running service as it grows.
pub struct Following {
    path: PathBuf,
    /// The open file, and what tells it from the one that takes its place at the next start.
    file: Option<(File, Identity)>,
    /// The beginning of a line that is still being written.
    rest: Vec<u8>,
}

type Identity = (u64, u64);

impl Following {
    /// Follows the log at a path, from its beginning.
    pub fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, rest: Vec::new() }
    }

    /// Alert revisions that were logged since the last call; none where there is no log.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn news(&mut self) -> Result<Option<Vec<Alert>>> {
        let place = || format!("reading the alert log {}", self.path.display());
        let identity = match std::fs::metadata(&self.path) {
            Ok(metadata) => identity(&metadata),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).at(place),
        };
        let mut file = match self.file.take() {
            Some((file, known)) if known == identity => file,
            _ => {
                self.rest.clear();
                File::open(&self.path).at(place)?
            }
        };
        file.read_to_end(&mut self.rest).at(place)?;
        self.file = Some((file, identity));
        let whole = memchr::memrchr(b'\n', &self.rest).map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        let alert = |line: &[u8]| match serde_json::from_slice(line) {
            Ok(Line::Alert(alert)) => Some(*alert),
            _ => None,
        };
        Ok(Some(lines.split(|byte| *byte == b'\n').filter_map(alert).collect()))
    }
}

#[cfg(unix)]
fn identity(metadata: &std::fs::Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// A log is written anew at each start.
#[cfg(not(unix))]
fn identity(metadata: &std::fs::Metadata) -> Identity {
    (metadata.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |at| at.as_secs()), 0)
}

fn push(buffer: &mut Vec<u8>, line: &Line) {
    // Strings, numbers and maps of them: this cannot fail.
    if serde_json::to_writer(&mut *buffer, line).is_ok() {
        buffer.push(b'\n');
    }
}

fn read(path: &Path) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).at(|| format!("creating {}", folder.display()))?;
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(recovered),
        // Taking an unreadable log for an empty one would deliver everything again, and wipe it.
        Err(error) => return Err(error).at(|| format!("reading the alert log {}", path.display())),
    };
    let mut alerts: HashMap<String, Alert> = HashMap::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.at(|| format!("reading the alert log {}", path.display()))?;
        match serde_json::from_slice(&line) {
            Ok(Line::Alert(alert)) => {
                alerts.insert(alert.alert_id.clone(), *alert);
            }
            Ok(Line::Delivered { alert_id, revision, sink }) => {
                let known = recovered.delivered.entry((alert_id, sink)).or_default();
                *known = revision.max(*known);
            }
            Ok(Line::Archived { alert_id, revision }) => {
                let known = recovered.archived.entry(alert_id).or_default();
                *known = revision.max(*known);
            }
            // The last word counts: time goes back where a partition with a backlog joins.
            Ok(Line::Decided { progress }) => recovered.progress = Some(progress),
            Ok(Line::Asked { detection_id, at }) => {
                let known = recovered.asked.entry(detection_id).or_insert(at);
                *known = at.max(*known);
            }
            Ok(Line::Swept { at }) => recovered.swept = recovered.swept.max(Some(at)),
            Ok(Line::Rollout(note)) => {
                recovered.rollouts.retain(|known: &serde_json::Value| known["detection_id"] != note["detection_id"]);
                recovered.rollouts.push(note);
            }
            // The end of a line that a crash cut short: its alert was never delivered, and its rows are replayed.
            Err(_) => {}
        }
    }
    recovered.alerts = alerts.into_values().collect();
    Ok(recovered)
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_line_is_dropped_and_the_rest_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alerts.log");
        let (mut log, _) = AlertLog::open(&path).unwrap();
        log.delivered("a", 2, "ndjson").unwrap();
        log.delivered("a", 1, "ndjson").unwrap();
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"delivered\":{\"alert_id\":\"b\",\"rev");
        std::fs::write(&path, bytes).unwrap();
        let (_, recovered) = AlertLog::open(&path).unwrap();
        assert_eq!(recovered.delivered, HashMap::from([(("a".to_owned(), "ndjson".to_owned()), 2)]));
    }
}
