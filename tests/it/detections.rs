//! Every shipped detection proves itself.

use std::path::Path;

use keyfuse::detect::read_folder;
use keyfuse::selftest;

#[test]
fn the_tests_inside_every_detection_file_pass() {
    let detections = read_folder(Path::new("detections")).expect("detections parse");
    let mut failures = Vec::new();
    for detection in &detections {
        match selftest::run(detection) {
            Ok(outcomes) => failures.extend(outcomes.into_iter().filter_map(|o| Some(format!("{} / {}: {}", o.detection, o.title, o.failure?)))),
            Err(errors) => failures.extend(errors.iter().map(ToString::to_string)),
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
