//! Detections: from a Markdown file to findings.
//!
//! `file` reads it, `as_of` binds what is known of one's own world to the row's time, `analyse` infers what its plan needs, `filter` picks rows in one pass shared by all detections,
//! `residue` keeps what may still join, `engine` runs kept plans over the keys that changed.

pub mod analyse;
mod as_of;
pub mod catalog;
mod engine;
mod expected;
mod file;
mod filled;
mod filter;
mod finding;
mod lag;
mod lineage;
mod plan;
mod residue;

pub use engine::{Engine, EngineReport, Scheduled, Tally};
pub use file::{Detection, Level, SECTIONS, Schedule, Status, Test, read_files, read_folder};
pub use finding::{Finding, Scalar, Standing, findings_of, is_event_id};
pub use lineage::Lineage;
pub use plan::{Compiled, Plans, compile, planner};
pub use residue::KeyHasher;
