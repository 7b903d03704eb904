//! What comes with the program itself, so that it works from anywhere: the detections and the demo's story.

use include_dir::{Dir, include_dir};

static DETECTIONS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/detections");

/// The shipped detection files: name and text, by name.
pub fn detections() -> Vec<(&'static str, &'static str)> {
    let mut files: Vec<_> = DETECTIONS
        .files()
        .filter_map(|file| Some((file.path().to_str()?, file.contents_utf8()?)))
        .filter(|(name, _)| name.ends_with(".md") && *name != "README.md")
        .collect();
    files.sort_unstable();
    files
}

/// The table of frameworks, `detections/frameworks.toml`.
pub fn frameworks() -> &'static str {
    DETECTIONS.get_file("frameworks.toml").and_then(|file| file.contents_utf8()).unwrap_or_default()
}

/// The demo's story, `sample-data/llmjacking`: topic, the mark in front of a record's time, and the records, one per line.
pub const STORY: [(&str, &str, &str); 5] = [
    ("cloudtrail", "\"eventTime\":\"", include_str!("../sample-data/llmjacking/cloudtrail.jsonl")),
    ("bedrock-invocations", "\"timestamp\":\"", include_str!("../sample-data/llmjacking/bedrock_invocations.jsonl")),
    ("otlp-spans", "\"endTimeUnixNano\":\"", include_str!("../sample-data/llmjacking/spans.jsonl")),
    ("mcp", "\"timestamp\":\"", include_str!("../sample-data/llmjacking/mcp.jsonl")),
    ("exposure-reports", "\"Date\":\"", include_str!("../sample-data/llmjacking/exposure_reports.jsonl")),
];

/// The inventory of the demo's world: agents, and approvals.
pub const INVENTORY: (&str, &str) = (include_str!("../sample-data/llmjacking/agents.toml"), include_str!("../sample-data/llmjacking/approvals.toml"));

static SAMPLES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/sample-data/formats");

/// Sample records of a log format, one per line.
pub fn samples(format: &str) -> &'static str {
    SAMPLES.get_file(format!("{format}/sample.jsonl")).and_then(|file| file.contents_utf8()).unwrap_or_default()
}
