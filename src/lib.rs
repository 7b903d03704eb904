//! keyfuse catches the misuse of AI credentials while it happens.
//!
//! Data flows one way: `source` → `decode` → `detect` → `alert` → `sink`, with `archive` and `query` beside the line.
//! `ARCHITECTURE.md` tells the whole story.

pub mod alert;
pub mod archive;
pub mod clock;
pub mod config;
pub mod coverage;
pub mod credential;
pub mod decode;
pub mod detect;
pub mod dimension;
pub mod doctor;
pub mod error;
pub mod explain;
pub mod function;
pub mod generate;
pub mod investigate;
pub mod late;
pub mod limits;
pub mod metrics;
pub mod network;
pub mod pipeline;
pub mod query;
pub mod replay;
pub mod schedule;
pub mod secret;
pub mod selftest;
pub mod shipped;
pub mod sink;
pub mod source;
pub mod table;
pub mod text;
pub mod top;
