//! All integration tests, one binary: each module tests one promise at the boundary where a user meets it.

mod detections;
