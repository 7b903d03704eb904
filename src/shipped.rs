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

/// The demo's story, `sample-data/llmjacking`: CloudTrail records and exposure reports, one per line.
pub const STORY: (&str, &str) = (include_str!("../sample-data/llmjacking/cloudtrail.jsonl"), include_str!("../sample-data/llmjacking/exposure_reports.jsonl"));
