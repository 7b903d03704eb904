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

#[test]
fn every_tag_is_in_the_table_and_every_detection_serves_all_eight_frameworks() {
    let frameworks = keyfuse::coverage::frameworks().expect("the table parses");
    assert_eq!(frameworks.len(), 8);
    let detections = crate::support::shipped();
    for detection in &detections {
        assert_eq!(keyfuse::coverage::unknown_tags(detection, &frameworks), Vec::<&str>::new(), "{}", detection.name);
        for framework in &frameworks {
            assert!(detection.tags.iter().any(|tag| tag.starts_with(&framework.tag)), "{} has no tag of {}", detection.name, framework.name);
        }
    }
    assert!(detections.len() >= 60, "{}", detections.len());
}
