//! What one detection that is evaluated live knows of its keys.

use std::ops::Range;
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use hashbrown::{HashMap, HashSet};

use super::{Feed, GRAIN, Live, Looked, Part, Round, StoreEntry, Waiting};
use crate::clock::Micros;
use crate::detect::analyse::Class;
use crate::detect::finding::{Finding, findings_of};
use crate::detect::residue::{ALL_TIMES, Key};
use crate::error::Result;

/// However long it takes, a detection looks at this part of a tick's rows at least.
const FEWEST: usize = 256;

impl Live {
    /// One that took longer than its share of a tick looks at half as many rows next time.
    pub(super) fn adapt(&mut self, took: Duration, tick_rows: usize, share: Duration) {
        let bound = self.bound.min(tick_rows);
        if took > share {
            self.bound = (bound / 2).max(tick_rows / FEWEST).max(1);
        } else if took < share / 4 {
            self.bound = bound.saturating_mul(2);
        }
    }

    /// Rows of a scan from this number on are new to a family.
    pub(super) fn seen(&self, family: &HashSet<Key>, scan: usize) -> u64 {
        family.iter().filter_map(|key| self.waiting.get(key)).map(|waiting| waiting.seen_to[scan]).min().unwrap_or(self.seen_to[scan])
    }

    /// When all of a family was last looked at.
    pub(super) fn looked_at(&self, family: &HashSet<Key>) -> Looked {
        family.iter().filter_map(|key| self.waiting.get(key)).map(|waiting| waiting.looked).fold(self.looked, Looked::or_earlier)
    }

    /// The round over what has become final that was begun of a family; none where a part of it was not in it.
    pub(super) fn round_of(&self, family: &HashSet<Key>) -> Option<Round> {
        let rounds = family.iter().map(|key| self.waiting.get(key).and_then(|waiting| waiting.round));
        rounds.reduce(|one, other| one.filter(|_| one == other)).flatten()
    }

    /// A family as it waits if it is not looked at now.
    pub(super) fn waits(&self, family: &HashSet<Key>) -> Waiting {
        let seen_to = (0..self.feeds.len()).map(|scan| self.seen(family, scan)).collect();
        Waiting { seen_to, looked: self.looked_at(family), round: self.round_of(family) }
    }

    /// Dirty keys that do not rest.
    pub(super) fn due(&self) -> usize {
        self.dirty.len() - self.resting.keys().filter(|key| self.dirty.contains(*key)).count()
    }

    /// There is something to look at.
    pub(super) fn is_due(&self) -> bool {
        self.suspended.is_none() && self.due() > 0
    }

    pub(super) fn stores(&self) -> impl Iterator<Item = usize> {
        self.feeds.iter().filter_map(|feed| if let Feed::Store { store, .. } = feed { Some(*store) } else { None })
    }

    pub(super) fn note_found(&mut self, found: usize) {
        self.tally.findings += found as u64;
        *(if found == 0 { &mut self.tally.last_near_miss } else { &mut self.tally.last_finding }) = self.tally.last_candidate;
    }

    pub(super) fn note_candidates(&mut self, rows: usize, at: Micros) {
        if rows > 0 {
            self.tally.candidates += rows as u64;
            self.tally.last_candidate = self.tally.last_candidate.max(Some(at));
        }
    }

    /// Notes keys that got a row in a store. Some rows raise nothing: they only take results back, in time. Others are looked at
    /// when their results are final.
    pub(super) fn touch(&mut self, store: usize, rows: &[(Key, Micros)], progress: Micros) {
        for (number, (feed, scan)) in self.feeds.iter().zip(&self.analysis.scans).enumerate() {
            if !matches!(feed, Feed::Store { store: fed, .. } if *fed == store) || scan.silent {
                continue;
            }
            let Some((_, final_after)) = self.anchor.filter(|(anchor, _)| *anchor == number) else {
                self.dirty.extend(rows.iter().map(|(key, _)| *key));
                continue;
            };
            for (key, time) in rows {
                let at = time.saturating_add(final_after).div_euclid(GRAIN).saturating_add(1).saturating_mul(GRAIN);
                if at < progress || self.detection.early {
                    self.dirty.insert(*key);
                }
                if at >= progress {
                    self.timers.entry(at).or_default().insert(*key);
                }
            }
        }
    }

    /// The times of the anchor's rows whose results are final, and were not when the floor was there, or the key was looked at.
    pub(super) fn anchor_times(&self, progress: Micros, looked_at: Micros) -> Range<Micros> {
        let Some((_, final_after)) = self.anchor else { return ALL_TIMES };
        let after = final_after - self.analysis.wait;
        let floor = self.floor.max(looked_at.saturating_sub(self.settles_after));
        floor.saturating_sub(after)..progress.saturating_sub(final_after)
    }

    /// Class C3, by anchor: per key, the earliest `alert_time` that a run over a part of its rows can give. What a presence scan holds
    /// from long enough before it need not be looked at row by row.
    pub(super) fn earliest_alerts(&self, stores: &[StoreEntry], keys: &HashSet<Key>, part: &Part) -> Option<impl Fn(Key) -> Micros + use<>> {
        let (scan, final_after) = self.anchor.filter(|_| self.analysis.scans.iter().any(|scan| scan.latest.is_some()))?;
        let Feed::Store { store, .. } = self.feeds[scan] else { return None };
        let mut earliest = stores[store].store.earliest(keys, &part.numbers[scan], &part.anchors);
        let after = final_after - self.analysis.wait;
        earliest.values_mut().for_each(|time| *time = time.saturating_add(after));
        // A row of one key is a partner of all its family.
        let of_all = self.uses_lineage().then(|| earliest.values().min().copied().unwrap_or(Micros::MIN));
        Some(move |key| of_all.or_else(|| earliest.get(&key).copied()).unwrap_or(Micros::MIN))
    }

    /// Class C3: whether what takes results back is fetched by key, and not kept for a time only.
    pub(super) fn fetches_what_it_waits_for(&self) -> bool {
        let fetched = |feed: &Feed| matches!(feed, Feed::Store { probed: true, .. });
        self.feeds.iter().zip(&self.analysis.scans).all(|(feed, scan)| !scan.waits || fetched(feed))
    }

    /// From when on the past that results are measured against is there whole.
    pub(super) fn begins(&self, begins: &HashMap<&'static str, Micros>) -> Option<Micros> {
        let scans = self.analysis.scans.iter().filter(|scan| scan.waits);
        scans.filter_map(|scan| begins.get(scan.table.as_str()).map(|begin| begin.saturating_add(scan.back))).max()
    }

    pub(super) fn uses_lineage(&self) -> bool {
        self.feeds.iter().any(|feed| matches!(feed, Feed::Lineage))
    }

    /// Class C0: the scan that takes rows straight from the batch, and its number in the table's filter pass.
    pub(super) fn batch_scan(&self) -> Option<(usize, usize)> {
        self.feeds.iter().enumerate().find_map(|(number, feed)| if let Feed::Batch(scan) = feed { Some((number, *scan)) } else { None })
    }

    pub(super) fn decide_rows(
        &mut self,
        scan: usize,
        rows: RecordBatch,
        runtime: &tokio::runtime::Runtime,
        ready: &mut Vec<Finding>,
        problems: &mut Vec<(String, String)>,
    ) {
        for (slot, feed) in self.plan.slots.iter().zip(&self.feeds) {
            if let Feed::Dimension(rows) = feed {
                slot.set(Some(rows.clone()));
            }
        }
        self.plan.slots[scan].set(Some(rows));
        self.run(runtime, ready, problems);
    }

    pub(super) fn run(&mut self, runtime: &tokio::runtime::Runtime, ready: &mut Vec<Finding>, problems: &mut Vec<(String, String)>) {
        let started = Instant::now();
        self.tally.runs += 1;
        let found = runtime.block_on(self.plan.run()).map_err(|error| error.strip_backtrace()).and_then(|batches| {
            let findings = batches.iter().map(|batch| findings_of(&self.detection, &self.analysis.columns, batch)).collect::<Result<Vec<_>, _>>();
            findings.map_err(|error| error.to_string())
        });
        match found {
            Ok(found) => {
                let before = ready.len();
                ready.extend(found.into_iter().flatten());
                if self.analysis.class != Class::C3 {
                    self.note_found(ready.len() - before);
                }
            }
            Err(error) => {
                self.tally.failed = true;
                problems.push((self.detection.name.clone(), error));
            }
        }
        self.tally.busy += started.elapsed();
    }
}
