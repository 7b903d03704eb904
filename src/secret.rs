//! Fingerprints and masking: how a secret is named without being kept.

use std::path::Path;

use crate::error::{At, Result};

/// Turns secrets into fingerprints, keyed by a secret of the deployment: equal secrets give equal fingerprints in every
/// stream, and a fingerprint cannot be searched for by someone who has only the archive.
#[derive(Clone)]
pub struct Fingerprinter {
    key: [u8; 32],
}

impl std::fmt::Debug for Fingerprinter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fingerprinter(…)")
    }
}

impl Fingerprinter {
    /// For tests and for looking at files without a deployment: a key that everyone knows.
    pub fn public() -> Self {
        Self { key: *blake3::hash(b"keyfuse: no deployment key").as_bytes() }
    }

    /// The deployment's key, made on first use with access for its owner only.
    pub fn from_file(path: &Path) -> Result<Self> {
        if !path.exists() {
            let fresh: [u8; 32] = rand::random();
            write_private(path, &fresh).at(|| format!("writing the fingerprint key {}", path.display()))?;
        }
        let bytes = std::fs::read(path).at(|| format!("reading the fingerprint key {}", path.display()))?;
        Ok(Self { key: *blake3::hash(&bytes).as_bytes() })
    }

    /// A signature for one purpose. Its key is not that of fingerprints: whoever may ask for those cannot sign.
    pub fn sign(&self, purpose: &str, text: &str) -> String {
        let key = blake3::derive_key(purpose, &self.key);
        blake3::keyed_hash(&key, text.as_bytes()).to_hex().to_string()
    }

    /// `fp:` and 32 hex digits.
    pub fn fingerprint(&self, secret: &str) -> String {
        let hash = blake3::keyed_hash(&self.key, secret.as_bytes());
        format!("fp:{}", &hash.to_hex()[..32])
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
