//! The generated stories, told in the order in which their records arrive: every planted act is found, how soon, and how many
//! alerts are about nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use keyfuse::alert::{AlertBook, Status};
use keyfuse::clock::{HOUR, Micros, SECOND, spoken};
use keyfuse::decode::{Decoder, Message, Settings};
use keyfuse::detect::Engine;
use keyfuse::dimension::{Dimensions, Files};
use keyfuse::generate::{Story, World, tell};
use keyfuse::secret::Fingerprinter;
use keyfuse::table::Memory;

use crate::support::{START, shipped};

/// What came of a story.
struct Told {
    records: usize,
    /// Planted acts that no alert names.
    missed: Vec<String>,
    /// Detections that fired about the story.
    fired: BTreeSet<String>,
    /// From the first planted act to the moment at which the record that raised the first alert had arrived.
    first_alert_after: Option<Micros>,
    /// Alerts about nobody in the story.
    false_alarms: Vec<String>,
    rejects: usize,
}

fn dimensions(world: &World) -> Dimensions {
    let folder = tempfile::tempdir().expect("a folder");
    let (agents, approvals) = (folder.path().join("agents.toml"), folder.path().join("approvals.toml"));
    std::fs::write(&agents, &world.agents).expect("written");
    std::fs::write(&approvals, &world.approvals).expect("written");
    let files = Files { agents: Some(agents), approvals: Some(approvals), ..Files::default() };
    Dimensions::read(&files).unwrap_or_else(|errors| panic!("{}", errors[0]))
}

fn hear(world: &World) -> Told {
    let mut engine = Engine::new(&shipped(), &Fingerprinter::public(), &dimensions(world)).unwrap_or_else(|errors| panic!("{}", errors[0]));
    let mut decoder = Decoder::new(None, Settings { keep_raw: false, ..Settings::new(Fingerprinter::public()) });
    let mut records: Vec<(Micros, &str, &str)> = Vec::new();
    for (name, log) in world.logs() {
        records.extend(log.iter().map(|record| (record.append_time, name, record.text.as_str())));
    }
    records.sort_unstable();
    let past = Memory::default();
    let (mut book, mut first, mut rejects) = (AlertBook::default(), None, 0);
    let planted: Vec<(String, String)> =
        world.truth.iter().map(|act| (act["detection"].as_str().expect("text").to_owned(), act["subject"].as_str().expect("text").to_owned())).collect();
    let subjects: BTreeSet<&str> = planted.iter().map(|(_, subject)| subject.as_str()).collect();
    let begun = world.truth.iter().filter_map(|act| keyfuse::clock::parse_time(act["event_time"].as_str()?)).min();
    for (number, (append_time, topic, text)) in records.iter().enumerate() {
        decoder.decode(Message {
            bytes: text.as_bytes(),
            topic: &Arc::from(*topic),
            partition: 0,
            offset: Some(number as i64),
            line: 1,
            append_time: Some(*append_time),
        });
        let near = begun.is_some_and(|begun| (begun - HOUR..begun + 2 * HOUR).contains(append_time));
        // Near the story as often as a service would; elsewhere in larger steps.
        if decoder.rows() >= if near { 1 } else { 2_000 } || number + 1 == records.len() {
            for (table, batch) in decoder.finish() {
                if table.name == "rejects" {
                    rejects += batch.num_rows();
                }
                past.add(table, &batch);
                engine.push(table, &batch).expect("pushed");
            }
            engine.advance(*append_time);
            let found = engine.tick(&past).expect("evaluated");
            assert!(engine.take_problems().is_empty());
            if first.is_none()
                && found.iter().any(|finding| subjects.iter().any(|subject| format!("{:?}{:?}", finding.key, finding.columns).contains(*subject)))
            {
                first = Some(*append_time);
            }
            book.merge(&found, 0, None);
            book.settle(*append_time, &Default::default());
            engine.let_go(&past).expect("let go");
        }
    }
    engine.advance(Micros::MAX);
    book.merge(&engine.tick(&past).expect("evaluated"), 0, None);
    book.settle(Micros::MAX, &Default::default());
    let settled = book.all().into_iter().filter(|alert| alert.status != Status::Retracted);
    let alerts: Vec<(String, String)> = settled.map(|alert| (alert.detection.clone(), alert.document(None).to_string())).collect();
    let missed = planted.iter().filter(|(detection, subject)| !alerts.iter().any(|(name, text)| name == detection && text.contains(subject)));
    let about = |text: &str| subjects.iter().any(|subject| text.contains(subject));
    Told {
        records: records.len(),
        missed: missed.map(|(detection, subject)| format!("{detection} {subject}")).collect(),
        fired: alerts.iter().filter(|(_, text)| about(text)).map(|(name, _)| name.clone()).collect(),
        first_alert_after: first.zip(begun).map(|(first, begun)| first - begun),
        false_alarms: alerts.iter().filter(|(_, text)| !about(text)).map(|(name, text)| format!("{name} {text:.300}")).collect(),
        rejects,
    }
}

#[test]
fn every_planted_act_of_the_stories_is_found_and_ordinary_work_is_silent() {
    // KEYFUSE_EVENTS=100000 tells them in the size that the closing figures are about.
    let events: usize = std::env::var("KEYFUSE_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_500);
    for (story, name) in [(Story::Llmjacking, "llmjacking"), (Story::Injection, "injection"), (Story::Insider, "insider"), (Story::Ordinary, "ordinary")] {
        let world = tell(story, 7, START, 24 * HOUR, events);
        let told = hear(&world);
        let per = told.false_alarms.len() as f64 * 100_000.0 / told.records as f64;
        println!(
            "{name}: {} records, {} planted acts, {} missed, {} detections fired ({}), first alert {} after the first act, {} false alarms ({per:.1} per 100,000)",
            told.records,
            world.truth.len(),
            told.missed.len(),
            told.fired.len(),
            told.fired.iter().cloned().collect::<Vec<_>>().join(" "),
            told.first_alert_after.map_or("—".into(), spoken),
            told.false_alarms.len()
        );
        assert_eq!(told.rejects, 0, "{name}");
        assert_eq!(told.missed, Vec::<String>::new(), "{name}");
        assert_eq!(told.false_alarms, Vec::<String>::new(), "{name}");
        assert!(story == Story::Ordinary || told.first_alert_after.is_some_and(|after| after < 120 * SECOND), "{name}");
    }
}
