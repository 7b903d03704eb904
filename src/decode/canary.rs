//! Canaries: records that keyfuse sends through its own topics, to prove that it sees what comes on them.
//!
//! A canary carries a row of a detection's own test. It is signed with the deployment's key: nobody else can pass acts off as
//! a canary, and it never becomes a row of a stream.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Reason, Refusal};
use crate::clock::Micros;
use crate::secret::Fingerprinter;

/// One row of a test on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// When the first record of the test was sent.
    pub sent_at: Micros,
    pub detection: String,
    /// Number of this row in the test, and how many there are.
    pub record: usize,
    pub records: usize,
    pub table: String,
    pub row: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed<'a> {
    #[serde(borrow)]
    keyfuse_canary: &'a RawValue,
    signature: String,
}

/// How the text of a canary begins.
const MARK: &str = "{\"keyfuse_canary\":";

/// Whether a record says that it is one.
pub fn is_canary(text: &str) -> bool {
    text.starts_with(MARK)
}

fn signature(inner: &str, fingerprinter: &Fingerprinter) -> String {
    fingerprinter.sign("keyfuse 2026-11-22 canary", inner)
}

impl Canary {
    /// The signed record.
    pub fn seal(&self, fingerprinter: &Fingerprinter) -> String {
        let inner = serde_json::to_string(self).unwrap_or_default();
        let signature = signature(&inner, fingerprinter);
        format!("{MARK}{inner},\"signature\":\"{signature}\"}}")
    }

    /// Reads a signed record.
    ///
    /// # Errors
    /// It is none, or not signed by this deployment.
    pub fn open(text: &str, fingerprinter: &Fingerprinter) -> Result<Self, Refusal> {
        let refuse = |error: serde_json::Error| Refusal::new(Reason::BadRecord, format!("canary: {error}"));
        let sealed: Sealed<'_> = serde_json::from_str(text).map_err(refuse)?;
        let inner = sealed.keyfuse_canary.get();
        if sealed.signature != signature(inner, fingerprinter) {
            return Err(Refusal::new(Reason::OtherEvent, "a canary that this deployment has not signed: of another keyfuse on this topic, or forged"));
        }
        serde_json::from_str(inner).map_err(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_deployment_s_own_canaries_are_believed() {
        let own = Fingerprinter::public();
        let canary = Canary {
            sent_at: 7,
            detection: "EXP-01".into(),
            record: 0,
            records: 2,
            table: "cloudtrail".into(),
            row: serde_json::json!({"at": "1m", "x": "\"}"}),
        };
        let text = canary.seal(&own);
        assert!(is_canary(&text));
        assert_eq!(Canary::open(&text, &own).unwrap(), canary);
        let forged = text.replace("EXP-01", "EXP-02");
        assert_eq!(Canary::open(&forged, &own).unwrap_err().reason, Reason::OtherEvent);
        assert_eq!(Canary::open("{\"keyfuse_canary\":{}}", &own).unwrap_err().reason, Reason::BadRecord);
    }
}
