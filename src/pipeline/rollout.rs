//! New and changed detections run in shadow first: counted and archived, not delivered, until somebody promotes them or they
//! have been quiet for long enough.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Micros;
use crate::detect::Detection;

/// What is known of one detection's rollout; a line of the alert log.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Rollout {
    pub detection_id: Uuid,
    /// Hash of everything that decides what it finds.
    pub version: String,
    /// Since when this version has been quiet in shadow; none once it is promoted.
    pub quiet_since: Option<Micros>,
}

/// The rollouts of all detections.
#[derive(Default)]
pub struct Rollouts {
    known: HashMap<Uuid, Rollout>,
    /// How long a detection must be quiet in shadow; none where there is no shadow.
    quiet_for: Option<Micros>,
}

impl Rollouts {
    pub fn new(known: Vec<Rollout>, quiet_for: Option<Micros>) -> Self {
        Self { known: known.into_iter().map(|rollout| (rollout.detection_id, rollout)).collect(), quiet_for }
    }

    /// Takes the detections as they are loaded; gives what is new to be noted. Those that a service starts with for the first time
    /// are at work at once: there is nothing yet that they could disturb.
    pub fn load<'d>(&mut self, detections: impl Iterator<Item = &'d Detection>, now: Micros) -> Vec<Rollout> {
        let is_first = self.known.is_empty();
        let mut fresh = Vec::new();
        for detection in detections {
            let version = version(detection);
            if self.known.get(&detection.id).is_some_and(|known| known.version == version) {
                continue;
            }
            let rollout = Rollout { detection_id: detection.id, version, quiet_since: (!is_first && self.quiet_for.is_some()).then_some(now) };
            self.known.insert(detection.id, rollout.clone());
            fresh.push(rollout);
        }
        fresh
    }

    /// Whether alerts of a detection are held back.
    pub fn is_shadow(&self, detection_id: Uuid) -> bool {
        self.quiet_for.is_some() && self.known.get(&detection_id).is_some_and(|known| known.quiet_since.is_some())
    }

    /// Notes that a detection in shadow has alerted: it is quiet only from now on.
    pub fn disturbed(&mut self, detection_id: Uuid, now: Micros) -> Option<Rollout> {
        let known = self.known.get_mut(&detection_id).filter(|known| known.quiet_since.is_some())?;
        known.quiet_since = Some(now);
        Some(known.clone())
    }

    /// Ends the shadow of a detection.
    pub fn promote(&mut self, detection_id: Uuid) -> Option<Rollout> {
        let known = self.known.get_mut(&detection_id).filter(|known| known.quiet_since.is_some())?;
        known.quiet_since = None;
        Some(known.clone())
    }

    /// Promotes those that have been quiet for long enough.
    pub fn promote_quiet(&mut self, now: Micros) -> Vec<Rollout> {
        let Some(quiet_for) = self.quiet_for else { return Vec::new() };
        let due: Vec<Uuid> =
            self.known.values().filter(|known| known.quiet_since.is_some_and(|since| now - since >= quiet_for)).map(|known| known.detection_id).collect();
        due.into_iter().filter_map(|id| self.promote(id)).collect()
    }
}

fn version(detection: &Detection) -> String {
    let said = format!(
        "{}\u{1f}{:?}\u{1f}{}\u{1f}{}\u{1f}{:?}\u{1f}{}",
        // Not as it is asked: what an update of keyfuse adds to it is no change of the detection.
        detection.written,
        detection.alert_key,
        detection.dedup,
        detection.early,
        detection.schedule,
        detection.level.name()
    );
    blake3::hash(said.as_bytes()).to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::DAY;

    #[test]
    fn what_changes_runs_in_shadow_until_it_was_quiet_or_is_promoted() {
        let one = Detection::parse(include_str!("../../detections/llm-01-enumerate-then-invoke.md"), std::path::Path::new("one.md")).unwrap();
        let mut rollouts = Rollouts::new(Vec::new(), Some(7 * DAY));
        let first = rollouts.load([&one].into_iter(), 0);
        assert!(!rollouts.is_shadow(one.id), "what a service starts with is at work");
        let mut rollouts = Rollouts::new(first, Some(7 * DAY));
        assert!(rollouts.load([&one].into_iter(), DAY).is_empty());
        let changed = Detection { written: one.written.replace("15 minutes", "5 minutes"), ..one.clone() };
        assert_eq!(rollouts.load([&changed].into_iter(), DAY).len(), 1);
        assert!(rollouts.is_shadow(one.id));
        assert!(rollouts.promote_quiet(7 * DAY).is_empty());
        rollouts.disturbed(one.id, 5 * DAY);
        assert!(rollouts.promote_quiet(8 * DAY).is_empty(), "it alerted meanwhile");
        assert_eq!(rollouts.promote_quiet(12 * DAY).len(), 1);
        assert!(!rollouts.is_shadow(one.id));
        assert!(rollouts.promote(one.id).is_none(), "once");
        let mut off = Rollouts::new(Vec::new(), None);
        off.load([&one].into_iter(), 0);
        off.load([&changed].into_iter(), 0);
        assert!(!off.is_shadow(one.id));
    }
}
