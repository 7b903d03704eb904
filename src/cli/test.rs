//! `keyfuse test`: the tests inside detection files.

use std::path::PathBuf;

use keyfuse::detect::{read_files, read_folder};
use keyfuse::error::Error;
use keyfuse::selftest;

use super::terminal::{Style, coloured};
use super::{Outcome, shipped};

/// Run the tests inside detection files; exit 1 if one fails.
#[derive(clap::Args)]
pub struct Args {
    /// Detection files or one folder. None: the detections that came with this program.
    paths: Vec<PathBuf>,
    /// Also write the results as JUnit XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<Outcome, Vec<Error>> {
    let detections = match &args.paths[..] {
        [] => shipped()?,
        [folder] if folder.is_dir() => read_folder(folder)?,
        files => read_files(files)?,
    };
    let style = Style { colour: coloured() };
    let mut report = quick_junit::Report::new("keyfuse detections");
    let (mut passed, mut failed) = (0, 0);
    for detection in &detections {
        let mut suite = quick_junit::TestSuite::new(format!("{} {}", detection.name, detection.title));
        println!("{} {}", style.bold(&detection.name), detection.title);
        for outcome in selftest::run(detection)? {
            let status = match &outcome.failure {
                None => {
                    passed += 1;
                    println!("  ok      {}", outcome.title);
                    quick_junit::TestCaseStatus::success()
                }
                Some(failure) => {
                    failed += 1;
                    println!("  FAILED  {}\n          {}", outcome.title, failure.replace('\n', "\n          "));
                    let mut status = quick_junit::TestCaseStatus::non_success(quick_junit::NonSuccessKind::Failure);
                    status.set_message(failure.clone());
                    status
                }
            };
            let mut case = quick_junit::TestCase::new(outcome.title, status);
            case.set_time(std::time::Duration::from_secs_f64(outcome.seconds));
            suite.add_test_case(case);
        }
        report.add_test_suite(suite);
    }
    println!("{passed} passed, {failed} failed");
    if let Some(path) = &args.junit {
        let place = || vec![Error::environment(format!("writing {}", path.display()))];
        let xml = report.to_string().map_err(|_| place())?;
        std::fs::write(path, xml).map_err(|_| place())?;
    }
    Ok(if failed == 0 { Outcome::Clean } else { Outcome::Found })
}
