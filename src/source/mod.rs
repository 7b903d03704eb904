//! Bytes with positions: files and object stores, Kafka, and the embedded broker for demos and tests.

pub mod broker;
pub mod files;
pub mod kafka;
