//! The rules of ARCHITECTURE.md that the compiler does not check: nothing imports to its right, and only the leaves touch the
//! clock and the environment.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What each module of the library may import of its siblings, beside the leaves.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("alert", &["detect", "dimension", "function", "table"]),
    ("archive", &["table"]),
    ("config", &["alert", "decode", "detect", "dimension", "network", "query", "sink", "source"]),
    ("coverage", &["decode", "detect", "shipped"]),
    ("credential", &[]),
    ("decode", &["credential", "network", "table"]),
    ("detect", &["dimension", "function", "table"]),
    ("dimension", &["table"]),
    ("doctor", &["detect", "dimension", "query", "table"]),
    ("explain", &["alert", "detect", "dimension", "function", "query", "schedule", "table"]),
    ("function", &["credential"]),
    ("generate", &[]),
    ("investigate", &["detect", "query"]),
    ("late", &["alert", "detect", "dimension", "table"]),
    ("metrics", &["alert", "decode", "detect", "table"]),
    ("network", &[]),
    (
        "pipeline",
        &[
            "alert",
            "archive",
            "config",
            "credential",
            "decode",
            "detect",
            "dimension",
            "late",
            "metrics",
            "network",
            "query",
            "schedule",
            "selftest",
            "sink",
            "source",
            "table",
        ],
    ),
    ("query", &["archive", "credential", "detect", "dimension", "function", "table"]),
    ("replay", &["alert", "decode", "detect", "dimension", "source", "table"]),
    ("schedule", &["archive", "detect", "dimension", "query", "table"]),
    ("selftest", &["alert", "detect", "dimension", "query", "schedule", "table"]),
    ("shipped", &[]),
    ("sink", &["alert", "detect", "metrics", "source"]),
    ("source", &[]),
    ("table", &[]),
    ("top", &["alert"]),
];

const LEAVES: &[&str] = &["clock", "error", "limits", "secret", "text"];

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        match entry.path() {
            path if path.is_dir() => sources(&path, into),
            path if path.extension().is_some_and(|e| e == "rs") => into.push(path),
            _ => {}
        }
    }
}

fn module_of(path: &Path) -> String {
    let below = path.strip_prefix("src").expect("below src");
    below.components().next().expect("a name").as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The code of a file without its tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a source");
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

#[test]
fn nothing_imports_to_its_right() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let mut modules = BTreeSet::new();
    let mut wrong = Vec::new();
    for path in files.iter().filter(|path| !path.starts_with("src/cli") && !path.ends_with("main.rs") && !path.ends_with("lib.rs")) {
        let module = module_of(path);
        let allowed = MAY_KNOW.iter().find(|(name, _)| *name == module).map_or(&[][..], |(_, allowed)| allowed);
        for part in code(path).split("crate::").skip(1) {
            let used: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let known = MAY_KNOW.iter().any(|(name, _)| *name == used) || LEAVES.contains(&used.as_str());
            if known && used != module && !LEAVES.contains(&used.as_str()) && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", path.display()));
            }
        }
        modules.insert(module);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let listed: BTreeSet<String> = MAY_KNOW.iter().map(|(name, _)| *name).chain(LEAVES.iter().copied()).map(str::to_owned).collect();
    assert_eq!(modules, listed, "a module is missing from the list, or gone");
}

#[test]
fn only_the_leaves_touch_the_clock_the_environment_and_the_process() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    for (mark, allowed) in [("SystemTime::now", "src/clock.rs"), ("env::var", "src/cli"), ("process::exit", "src/main.rs"), ("Utc::now", "src/clock.rs")] {
        for path in files.iter().filter(|path| !path.starts_with(allowed)) {
            assert!(!code(path).contains(mark), "{mark} in {}", path.display());
        }
    }
}
