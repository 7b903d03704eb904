//! Log files: paths, folders, globs, standard input and object stores, plain or gzip, in blocks that fit in memory.

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt as _};
use url::Url;

use crate::clock::Micros;
use crate::clock::parse_time;
use crate::error::{At, Error, Result};
use crate::limits;

/// One input file.
#[derive(Clone, Debug)]
pub struct Input {
    pub name: Arc<str>,
    place: Place,
    /// Size on disk (bytes), where known.
    pub bytes: u64,
    /// When it was delivered, where its name says so.
    pub delivered_at: Option<Micros>,
}

#[derive(Clone, Debug)]
enum Place {
    Stdin,
    File(PathBuf),
    Object(Arc<dyn ObjectStore>, object_store::path::Path),
}

/// Bytes of a file: whole lines where it has lines, else all of it.
pub struct Block {
    pub bytes: Vec<u8>,
    /// Line on which the block starts, from 1.
    pub line: i64,
}

/// Blocks are cut at the first line break after this many bytes.
const BLOCK: usize = 8 << 20;

/// Resolves what a user typed to files, in the order of their delivery where their names tell it, else by name.
///
/// # Errors
/// A path, glob or URL that matches nothing or cannot be read.
pub async fn resolve(paths: &[String], options: &HashMap<String, String>) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for path in paths {
        let before = inputs.len();
        if path == "-" {
            inputs.push(Input { name: "stdin".into(), place: Place::Stdin, bytes: 0, delivered_at: None });
        } else if let Some(url) = Url::parse(path).ok().filter(|url| url.scheme().len() > 1) {
            objects(&url, options, &mut inputs).await?;
        } else if Path::new(path).exists() {
            walk(Path::new(path), &mut inputs)?;
        } else {
            for found in glob::glob(path).user_at(|| format!("glob `{path}`"))? {
                walk(&found.at(|| format!("reading `{path}`"))?, &mut inputs)?;
            }
        }
        if inputs.len() == before {
            return Err(Error::user(format!("`{path}` matches no file")));
        }
    }
    inputs.sort_by(|a, b| (a.delivered_at, &a.name).cmp(&(b.delivered_at, &b.name)));
    Ok(inputs)
}

fn walk(path: &Path, inputs: &mut Vec<Input>) -> Result<()> {
    let place = || format!("reading {}", path.display());
    if path.is_dir() {
        let mut entries = std::fs::read_dir(path).at(place)?.collect::<std::io::Result<Vec<_>>>().at(place)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Settings and inventories may lie beside the logs; they are no logs.
            if !name.starts_with('.') && !name.ends_with(".toml") {
                walk(&entry.path(), inputs)?;
            }
        }
        return Ok(());
    }
    let name = path.to_string_lossy();
    let bytes = std::fs::metadata(path).at(place)?.len();
    inputs.push(Input { delivered_at: delivered_at(&name), name: name.into(), place: Place::File(path.to_owned()), bytes });
    Ok(())
}

async fn objects(url: &Url, options: &HashMap<String, String>, inputs: &mut Vec<Input>) -> Result<()> {
    let (store, prefix) = object_store::parse_url_opts(url, options).user_at(|| format!("{url}"))?;
    let store: Arc<dyn ObjectStore> = Arc::from(store);
    let listed: Vec<_> = store.list(Some(&prefix)).try_collect().await.at(|| format!("listing {url}"))?;
    let found = match listed.is_empty() {
        true => vec![store.head(&prefix).await.at(|| format!("{url}"))?],
        false => listed,
    };
    inputs.extend(found.into_iter().map(|object| {
        let name = format!("{}://{}/{}", url.scheme(), url.host_str().unwrap_or_default(), object.location);
        Input { delivered_at: delivered_at(&name), name: name.into(), bytes: object.size, place: Place::Object(Arc::clone(&store), object.location) }
    }));
    Ok(())
}

/// The minute in the name of a CloudTrail delivery file: `<account>_CloudTrail_<region>_YYYYMMDDTHHmmZ_<id>.json.gz`.
pub fn delivered_at(name: &str) -> Option<Micros> {
    let (_, rest) = name.rsplit_once("_CloudTrail_")?;
    let stamp = rest.split('_').nth(1).filter(|stamp| stamp.len() == 14 && stamp.is_ascii())?;
    parse_time(&format!("{}-{}-{}T{}:{}:00Z", &stamp[0..4], &stamp[4..6], &stamp[6..8], &stamp[9..11], &stamp[11..13]))
}

impl Input {
    /// Reads the file block by block.
    ///
    /// # Errors
    /// The file cannot be read. Damage inside it is the decoder's business.
    pub async fn blocks(&self) -> Result<Blocks> {
        let place = || format!("reading {}", self.name);
        let raw: Box<dyn Read + Send> = match &self.place {
            Place::Stdin => Box::new(std::io::stdin()),
            Place::File(path) => Box::new(std::fs::File::open(path).at(place)?),
            Place::Object(store, path) => Box::new(std::io::Cursor::new(store.get(path).await.at(place)?.bytes().await.at(place)?)),
        };
        let mut reader = BufReader::with_capacity(1 << 20, raw);
        let gzip = std::io::BufRead::fill_buf(&mut reader).at(place)?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn Read + Send> = if gzip { Box::new(flate2::read::MultiGzDecoder::new(reader)) } else { Box::new(reader) };
        Ok(Blocks { name: Arc::clone(&self.name), reader, rest: Vec::new(), line: 1, done: false })
    }
}

/// The blocks of one file.
pub struct Blocks {
    name: Arc<str>,
    reader: Box<dyn Read + Send>,
    rest: Vec<u8>,
    line: i64,
    done: bool,
}

impl Blocks {
    /// The next block; none at the end.
    ///
    /// # Errors
    /// The file cannot be read any further. What was read before is handed out first.
    pub fn next_block(&mut self) -> Result<Option<Block>> {
        if self.done {
            return Ok(None);
        }
        let mut bytes = std::mem::take(&mut self.rest);
        loop {
            let wanted = BLOCK.saturating_sub(bytes.len()).max(1 << 20);
            let before = bytes.len();
            let read = (&mut self.reader).take(wanted as u64).read_to_end(&mut bytes);
            let ended = bytes.len() - before < wanted;
            if let Err(error) = read {
                self.done = true;
                if bytes.is_empty() {
                    return Err(Error::environment(format!("reading {}", self.name)).because(error));
                }
                // A damaged gzip tail: what came out is decoded, and its cut end becomes a reject.
                tracing::warn!(file = %self.name, %error, "the file ends in damage; what could be read is used");
            }
            if ended || self.done {
                self.done = true;
                return Ok((!bytes.is_empty() || self.line == 1).then(|| self.block(bytes)));
            }
            // Only a file of lines can be cut: one whose first line is a whole object.
            let first_line = memchr::memchr(b'\n', &bytes).map(|end| bytes[..end].trim_ascii());
            let of_lines = first_line.is_some_and(|line| line.starts_with(b"{") && line.ends_with(b"}"));
            match memchr::memrchr(b'\n', &bytes) {
                Some(end) if of_lines => {
                    self.rest = bytes.split_off(end + 1);
                    return Ok(Some(self.block(bytes)));
                }
                _ if bytes.len() > limits::UNPACKED_BYTES => {
                    self.done = true;
                    tracing::warn!(file = %self.name, "one JSON document of more than {} MiB; only its start is read", limits::UNPACKED_BYTES >> 20);
                    return Ok(Some(self.block(bytes)));
                }
                _ => {}
            }
        }
    }

    fn block(&mut self, bytes: Vec<u8>) -> Block {
        let line = self.line;
        self.line += memchr::memchr_iter(b'\n', &bytes).count() as i64;
        Block { bytes, line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_file_tells_its_minute() {
        let name = "logs/218007301253_CloudTrail_us-east-1_20230710T1145Z_7xgocspSowgK0Gto.json.gz";
        assert_eq!(delivered_at(name), parse_time("2023-07-10T11:45:00Z"));
        assert_eq!(delivered_at("other.json"), None);
    }
}
