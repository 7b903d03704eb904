//! Alerts as lines of JSON, in a file or on standard output.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Failure, Format, Message, Sink};
use crate::error::{At, Result};

/// One JSON object per alert revision.
pub struct Ndjson {
    path: PathBuf,
    format: Format,
    /// None is standard output.
    file: Option<File>,
    /// The last write failed and may have left half a line.
    cut: bool,
}

impl Ndjson {
    /// Opens the file for appending; `-` is standard output. A line that a crash cut short is closed first.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, format: Format) -> Result<Self> {
        let file = if path.as_os_str() == "-" { None } else { Some(open(path)?) };
        Ok(Self { path: path.to_owned(), format, file, cut: false })
    }
}

fn open(path: &Path) -> Result<File> {
    let place = || format!("opening the alert file {}", path.display());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).at(place)?;
    }
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path).at(place)?;
    let cut = file.metadata().at(place)?.is_file() && file.seek(SeekFrom::End(-1)).is_ok() && {
        let mut last = [0];
        file.read_exact(&mut last).at(place)?;
        last != *b"\n"
    };
    if cut {
        file.write_all(b"\n").at(place)?;
    }
    Ok(file)
}

/// Whether the path still leads to the open file: log rotation moves it away.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

impl Sink for Ndjson {
    fn deliver(&mut self, message: &Message<'_>) -> std::result::Result<(), Failure> {
        message.parcels.iter().try_for_each(|parcel| Ok(self.write(&self.format.write(parcel))?))
    }
}

impl Ndjson {
    fn write(&mut self, document: &serde_json::Value) -> Result<()> {
        if let Some(file) = &mut self.file
            && !is_at(file, &self.path)
        {
            *file = open(&self.path)?;
            self.cut = false;
        }
        // A line that a full disk cut short is closed before the next try.
        let line = if self.cut { format!("\n{document}\n") } else { format!("{document}\n") };
        let place = || format!("writing the alert file {}", self.path.display());
        let written = match &mut self.file {
            Some(file) => file.write_all(line.as_bytes()).at(place),
            None => std::io::stdout().lock().write_all(line.as_bytes()).at(place),
        };
        self.cut = written.is_err();
        written
    }
}
