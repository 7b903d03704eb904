//! keyfuse catches the misuse of AI credentials while it happens.
//!
//! Data flows one way: `source` → `decode` → `detect` → `alert` → `sink`, with `archive` and `query` beside the line.
//! `ARCHITECTURE.md` tells the whole story.

pub mod alert;
pub mod clock;
pub mod credential;
pub mod decode;
pub mod detect;
pub mod error;
pub mod function;
pub mod limits;
pub mod secret;
pub mod table;
