//! All integration tests, one binary: each module tests one promise at the boundary where a user meets it.

mod archive;
mod bad_input;
mod command_line;
mod crash;
mod dashboards;
mod detections;
mod docs;
mod equality;
mod formats;
mod layers;
mod pager;
mod people;
mod secrets;
mod service;
mod stories;
mod support;
mod three_ways;
mod wire;
