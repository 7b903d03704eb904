//! What the docs say is run: every command of the README, its detection, the config and the allow-list of docs/running.md, and every link.

use std::path::Path;
use std::process::Command;

use keyfuse::alert::AllowList;
use keyfuse::config::Config;
use keyfuse::dimension::{Dimensions, Files};

/// The fenced blocks of a page whose info string starts with `kind`.
fn blocks(page: &str, kind: &str) -> Vec<String> {
    let text = std::fs::read_to_string(page).expect("a page");
    let mut found: Vec<String> = Vec::new();
    let (mut fence, mut wanted) = (String::new(), false);
    for line in text.lines() {
        let ticks: String = line.chars().take_while(|c| *c == '`').collect();
        if fence.is_empty() && ticks.len() >= 3 {
            wanted = line[ticks.len()..].starts_with(kind);
            if wanted {
                found.push(String::new());
            }
            fence = ticks;
        } else if !fence.is_empty() && line == fence {
            fence.clear();
        } else if let (true, Some(block)) = (wanted && !fence.is_empty(), found.last_mut()) {
            block.push_str(line);
            block.push('\n');
        }
    }
    found
}

#[test]
fn every_command_of_the_readme_works() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut run = 0;
    for command in blocks("README.md", "sh").iter().flat_map(|block| block.lines()).filter(|line| line.starts_with("cargo ")) {
        if command == "cargo test" {
            continue;
        }
        let mut line = command.replace("cargo run --", env!("CARGO_BIN_EXE_keyfuse")).replace("target/story", &folder.path().to_string_lossy());
        if line.ends_with("--demo") {
            // The same command, told to end.
            line.push_str(" --once --speed 200");
        }
        let output = Command::new("sh").args(["-c", &line]).output().expect("a shell");
        assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
        run += 1;
    }
    assert!(run >= 5, "the README has lost its commands");
}

#[test]
fn the_detection_of_the_readme_passes_its_tests() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("my-01.md");
    std::fs::write(&file, &blocks("README.md", "markdown")[0]).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_keyfuse")).arg("test").arg(&file).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("2 passed, 0 failed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_config_and_the_allow_list_of_the_docs_are_good() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("detections")).expect("made");
    let toml = blocks("docs/running.md", "toml");
    std::fs::write(folder.path().join("allow.toml"), &toml[1]).expect("written");
    let config = Config::parse(&toml[0], &folder.path().join("keyfuse.toml")).unwrap_or_else(|errors| panic!("{}", errors[0]));
    assert_eq!(config.topics.len(), 2);
    let known =
        Dimensions::read(&Files { allow_list: Some(folder.path().join("allow.toml")), ..Files::default() }).unwrap_or_else(|errors| panic!("{}", errors[0]));
    assert_eq!(AllowList::of(&known).entries().len(), 1);
}

#[test]
fn the_mapping_and_the_inventory_of_the_docs_are_good() {
    let folder = tempfile::tempdir().expect("a folder");
    let mapping = folder.path().join("acme.toml");
    std::fs::write(&mapping, &blocks("docs/formats.md", "toml")[0]).expect("written");
    let formats = keyfuse::decode::read_mappings(&[mapping]).expect("a good mapping");
    assert_eq!(formats[0].name(), "acme_proxy");
    let toml = blocks("docs/knowing-your-world.md", "toml");
    let written = |number: usize| {
        let file = folder.path().join(format!("{number}.toml"));
        std::fs::write(&file, &toml[number]).expect("written");
        Some(file)
    };
    let files = Files { agents: written(0), approvals: written(1), expected_sources: written(2), allow_list: None };
    let known = Dimensions::read(&files).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let tables = [&keyfuse::table::agents::TABLE, &keyfuse::table::approvals::TABLE, &keyfuse::table::expected_sources::TABLE];
    assert!(tables.into_iter().all(|table| known.knows(table)));
}

#[test]
fn every_relative_link_leads_somewhere() {
    for page in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/running.md",
        "docs/formats.md",
        "docs/themes.md",
        "docs/knowing-your-world.md",
        "detections/README.md",
        "benches/README.md",
    ] {
        let text = std::fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|target| !target.contains("://")) {
            let path = Path::new(page).parent().expect("a folder").join(target.split('#').next().unwrap_or_default());
            assert!(path.exists(), "{page} links to {target}");
        }
    }
    let lines = std::fs::read_to_string("ARCHITECTURE.md").expect("a page").lines().count();
    assert!(lines <= 250, "ARCHITECTURE.md has {lines} lines");
}

#[test]
fn the_hunting_questions_have_the_answers_that_stand_there() {
    let page = std::fs::read_to_string("docs/hunting.md").expect("a page");
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let inputs = runtime.block_on(keyfuse::source::files::resolve(&["sample-data/llmjacking/*.jsonl".to_owned()], &Default::default())).expect("files");
    let replayed =
        keyfuse::replay::replay(&inputs, crate::support::plain_settings(&[]), runtime.handle(), |_, _| {}).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let rows = keyfuse::query::Rows::Memory(&replayed.rows);
    let fingerprinter = keyfuse::secret::Fingerprinter::public();
    let door = runtime.block_on(keyfuse::query::Door::open(rows, &Default::default(), &fingerprinter, Default::default())).expect("a door");
    let mut asked = 0;
    for part in page.split("```sql\n").skip(1) {
        let (sql, rest) = part.split_once("\n```\n").expect("a question ends");
        let answer = rest.trim_start().strip_prefix("```text\n").and_then(|rest| rest.split_once("\n```")).expect("an answer follows").0;
        let (door, question) = (door.clone(), sql.to_owned());
        let said = keyfuse::query::on_deep_stacks(&runtime, async move { door.ask(&question).await }).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let mut text = Vec::new();
        keyfuse::query::output::write(&said, keyfuse::query::output::Format::Table, &mut text).expect("written");
        assert_eq!(String::from_utf8(text).expect("text").trim_end(), answer, "{sql}");
        asked += 1;
    }
    assert_eq!(asked, 25);
    runtime.shutdown_background();
}
