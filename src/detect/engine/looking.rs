//! What a tick looks at: of each detection its dirty keys, as far as there is room, in runs of its plan over parts of their rows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashSet;

use super::{Engine, Feed, Live, Looked, Part, Round, Waiting, key_name};
use crate::clock::Micros;
use crate::detect::analyse::Class;
use crate::detect::finding::{Finding, Standing};
use crate::detect::residue::{ALL_TIMES, Key, NULL_KEY, Store, texts_of};
use crate::error::Result;
use crate::table::{History, LookBack};

/// Pairs of rows that a join compares in the time in which a row is gathered and counted, about.
const PAIRS_PER_ROW: usize = 40;
/// Of the rows that a tick looks at, one key must have this share at least to count as one of very many rows.
const MANY: usize = 50;
/// Rows of an anchor that are looked at together, of one family: what a presence scan holds from between the first and the last of them
/// is compared with each.
const ANCHORS: usize = 512;

/// What one tick looks at of a detection's keys.
struct Work {
    /// Each over a part of the rows of some keys.
    runs: Vec<(HashSet<Key>, Part)>,
    /// Families with new rows that have to wait.
    left: Vec<(HashSet<Key>, Waiting)>,
}

impl Engine {
    /// Looks at dirty keys, as many as the bounds of a tick let it, but at one at least. Gives those of the family that most of the
    /// work was about, if it has very many rows, and the time that the work took.
    pub(super) fn evaluate(&mut self, number: usize, history: &dyn History) -> Result<(Option<HashSet<Key>>, Duration)> {
        let dirty = std::mem::take(&mut self.live[number].dirty);
        let mut whole = std::mem::take(&mut self.live[number].whole);
        let mut families = self.families(number, &dirty);
        let resting = &self.live[number].resting;
        let mut later: HashSet<Key> = families.extract_if(.., |family| family.iter().any(|key| resting.contains_key(key))).flatten().collect();
        let class = self.live[number].analysis.class;
        // New rows of a join are bounded by themselves.
        if self.tick_rows < usize::MAX && class > Class::C1 {
            later.extend(self.postpone(number, &mut families));
        }
        let later_whole: HashSet<Key> = whole.extract_if(|key| later.contains(key)).collect();
        let loaded = self.load(number, &families, &whole, history)?;
        let begun = Instant::now();
        let live = &self.live[number];
        let mut keys: HashSet<Key> = HashSet::new();
        for family in &families {
            if live.analysis.needs.met(&|scan| self.has_rows(&live.feeds[scan], family, false)) {
                keys.extend(family);
            }
        }
        let everything = vec![0..u64::MAX; live.feeds.len()];
        // Where a link has joined a family, any row of it may have a result that it had not.
        let joined: HashSet<Key> = families.iter().filter(|family| family.iter().any(|key| whole.contains(key))).flatten().copied().collect();
        // Some of a family's new rows may be left for the next tick.
        let mut partly: Vec<(HashSet<Key>, Waiting)> = Vec::new();
        if class == Class::C1 && live.feeds.len() > 1 {
            let (entire, others): (HashSet<Key>, HashSet<Key>) = keys.iter().partition(|key| joined.contains(*key));
            self.run_apart_if_it_fails(number, &entire, &Part { numbers: everything.clone(), anchors: ALL_TIMES })?;
            let work = self.deltas(number, &families, &others, &everything);
            for (keys, part) in work.runs {
                self.run_apart_if_it_fails(number, &keys, &part)?;
            }
            partly = work.left;
        } else if class == Class::C3 {
            let (fresh, others): (HashSet<Key>, HashSet<Key>) = keys.iter().partition(|key| loaded.contains(*key));
            for (keys, just_loaded) in [(fresh, true), (others, false)] {
                let (entire, keys) = keys.into_iter().partition(|key| just_loaded || joined.contains(key));
                let Work { mut runs, left } = self.finals(number, keys, &families, &everything);
                runs.push((entire, Part { numbers: everything.clone(), anchors: ALL_TIMES }));
                for (keys, part) in runs.into_iter().filter(|(keys, _)| !keys.is_empty()) {
                    self.run_apart_if_it_fails(number, &keys, &part)?;
                    self.settle(number, &keys, just_loaded);
                }
                partly.extend(left);
            }
        } else {
            self.run_apart_if_it_fails(number, &keys, &Part { numbers: everything, anchors: ALL_TIMES })?;
        }
        let took = begun.elapsed();
        let largest = if self.tick_time < Duration::MAX { self.largest(number, &families, &keys) } else { None };
        let seen_to = self.seen_by_now(number);
        let live = &mut self.live[number];
        let before = Arc::new(Waiting { seen_to: std::mem::replace(&mut live.seen_to, seen_to), looked: live.looked, round: None });
        live.looked = Looked { progress: self.progress, newest: self.newest };
        families.iter().flatten().for_each(|key| drop(live.waiting.remove(key)));
        for key in &later {
            live.waiting.entry(*key).or_insert_with(|| Arc::clone(&before));
        }
        for (family, waiting) in partly {
            let waiting = Arc::new(waiting);
            live.waiting.extend(family.iter().map(|key| (*key, Arc::clone(&waiting))));
            later.extend(family);
        }
        // Loading past rows marked their keys dirty; they have just been evaluated.
        (live.dirty, live.whole) = (later, later_whole);
        Ok((largest, took))
    }

    /// The family whose rows were most of what was looked at, if they are very many.
    fn largest(&self, number: usize, families: &[HashSet<Key>], keys: &HashSet<Key>) -> Option<HashSet<Key>> {
        let looked_at = families.iter().filter(|family| family.iter().any(|key| keys.contains(key)));
        let rows: Vec<(usize, &HashSet<Key>)> = looked_at.map(|family| (self.rows_of(number, family), family)).collect();
        let all: usize = rows.iter().map(|(rows, _)| rows).sum();
        let (most, family) = rows.into_iter().max_by_key(|(rows, _)| *rows)?;
        (most >= self.tick_rows / MANY && most >= all / 2).then(|| family.clone())
    }

    fn rows_of(&self, number: usize, family: &HashSet<Key>) -> usize {
        self.live[number].stores().map(|store| self.stores[store].store.count(family)).sum()
    }

    /// Class C3: what is looked at of these keys. Where rows of an anchor have results of their own, those rows only that are new
    /// (where results are told early), and those whose results have become final. Of very many, as many as there is room for.
    fn finals(&self, number: usize, keys: HashSet<Key>, families: &[HashSet<Key>], everything: &[Range<u64>]) -> Work {
        let live = &self.live[number];
        let whole = || Part { numbers: everything.to_vec(), anchors: ALL_TIMES };
        let anchor = live.anchor.and_then(|(scan, _)| match live.feeds[scan] {
            Feed::Store { store, .. } => Some((scan, &self.stores[store].store)),
            _ => None,
        });
        let Some((scan, store)) = anchor else { return Work { runs: vec![(keys, whole())], left: Vec::new() } };
        let rows = self.tick_rows.min(live.bound);
        let together = rows.clamp(1, ANCHORS);
        // What is new, and what has become final since, differs by when a key was last looked at. Runs over the same of the anchor's
        // rows are one.
        let mut runs: BTreeMap<(u64, u64, Micros, Micros), HashSet<Key>> = BTreeMap::new();
        let mut left = Vec::new();
        for family in families {
            let members: Vec<Key> = family.iter().copied().filter(|key| keys.contains(key)).collect();
            if members.is_empty() {
                continue;
            }
            let mut add = |numbers: Range<u64>, times: Range<Micros>| {
                runs.entry((numbers.start, numbers.end, times.start, times.end)).or_default().extend(&members);
            };
            let looked = live.looked_at(family);
            // One round over what has become final goes to where time stood when it began, however many ticks it takes.
            let round = live.round_of(family);
            let to = round.map_or(self.progress, |round| round.to);
            let mut times = live.anchor_times(to, looked.progress);
            times.start = round.map_or(times.start, |round| round.from);
            let mut room = rows.saturating_mul(PAIRS_PER_ROW);
            let mut rest = None;
            for times in store.slices(family, times, together) {
                if room == 0 {
                    rest = Some(Round { from: times.start, to });
                    break;
                }
                room = room.saturating_sub(self.partners_of(number, scan, family, together).saturating_mul(together));
                add(0..u64::MAX, times);
            }
            let looked = if rest.is_some() { looked } else { Looked { progress: to, ..looked } };
            let mut seen_to = self.seen_by_now(number);
            let from = live.seen(family, scan);
            let mut fresh: Vec<u64> = if live.detection.early { store.ids_from(family, from).collect() } else { Vec::new() };
            let mut all_taken = rest.is_none() && to == self.progress;
            if fresh.len() <= together {
                if !fresh.is_empty() {
                    add(from..u64::MAX, ALL_TIMES);
                }
            } else {
                fresh.sort_unstable();
                let mut room = rows.saturating_mul(PAIRS_PER_ROW);
                for slice in fresh.chunks(together) {
                    if room == 0 {
                        (seen_to[scan], all_taken) = (slice[0], false);
                        break;
                    }
                    add(slice[0]..slice[slice.len() - 1] + 1, ALL_TIMES);
                    room = room.saturating_sub(self.partners_of(number, scan, family, slice.len()).saturating_mul(slice.len()));
                }
            }
            if !all_taken {
                left.push((family.clone(), Waiting { seen_to, looked, round: rest }));
            }
        }
        let part = |(from, to, start, end): (u64, u64, Micros, Micros)| {
            let mut part = Part { anchors: start..end, ..whole() };
            part.numbers[scan] = from..to;
            part
        };
        Work { runs: runs.into_iter().map(|(of, keys)| (keys, part(of))).collect(), left }
    }

    /// Rows that each row of an anchor is compared with, about, where so many of its rows are looked at together.
    fn partners_of(&self, number: usize, anchor: usize, family: &HashSet<Key>, together: usize) -> usize {
        let live = &self.live[number];
        let scans = live.feeds.iter().zip(&live.analysis.scans).enumerate().filter(|(scan, _)| *scan != anchor);
        let partners = scans.map(|(_, (feed, scan))| match feed {
            Feed::Store { store, .. } if scan.latest.is_some() => self.stores[*store].store.count(family).min(together),
            Feed::Store { store, .. } => self.stores[*store].store.count(family),
            _ => 0,
        });
        partners.sum::<usize>().max(1)
    }

    /// Per scan, the number from which on rows are yet to come.
    fn seen_by_now(&self, number: usize) -> Vec<u64> {
        self.live[number].feeds.iter().map(|feed| if let Feed::Store { store, .. } = feed { self.stores[*store].store.next() } else { 0 }).collect()
    }

    /// Class C1, semi-naively: one run for the new rows of each scan, against all rows of the others. Each new row meets the rows of the
    /// other scans; a tick has room for [`PAIRS_PER_ROW`] such pairs for each row that it may look at. Families that need little of it
    /// come first, so that one of very many rows holds up none of them; of those, the one that waits longest gets half of the room.
    fn deltas(&self, number: usize, families: &[HashSet<Key>], keys: &HashSet<Key>, everything: &[Range<u64>]) -> Work {
        let live = &self.live[number];
        let stores: Vec<(usize, &Store)> = (live.feeds.iter().enumerate())
            .filter_map(|(scan, feed)| if let Feed::Store { store, .. } = feed { Some((scan, &self.stores[*store].store)) } else { None })
            .collect();
        let room = self.tick_rows.min(live.bound).saturating_mul(PAIRS_PER_ROW);
        let (mut light, mut heavy) = (Vec::new(), Vec::new());
        for family in families.iter().filter(|family| family.iter().any(|key| keys.contains(key))) {
            let counts: Vec<usize> = stores.iter().map(|(_, store)| store.count(family)).collect();
            let all: usize = counts.iter().sum();
            let fresh = |(scan, store): &(usize, &Store)| store.ids_from(family, live.seen(family, *scan)).count();
            let pairs = stores.iter().zip(&counts).map(|(store, own)| fresh(store).saturating_mul(all - own + 1)).fold(0usize, usize::saturating_add);
            if pairs <= room / 4 { light.push((pairs, family)) } else { heavy.push((live.looked_at(family).newest, family)) }
        }
        // In another order each time, or the same keys would always wait.
        let salt = live.tally.runs.wrapping_mul(2) | 1;
        light.sort_unstable_by_key(|(_, family)| family.iter().min().map_or(0, |key| key.wrapping_mul(salt)));
        heavy.sort_unstable_by_key(|(newest, _)| *newest);
        // Runs that take the same rows of the same scan are one.
        let mut runs: BTreeMap<(usize, u64, u64), HashSet<Key>> = BTreeMap::new();
        let mut left = Vec::new();
        let mut used = 0usize;
        for (pairs, family) in light {
            let fits = used < room;
            used = used.saturating_add(pairs);
            for (scan, store) in stores.iter().filter(|_| fits) {
                let from = live.seen(family, *scan);
                if store.ids_from(family, from).next().is_some() {
                    runs.entry((*scan, from, store.next())).or_default().extend(family);
                }
            }
            if !fits {
                left.push((family.clone(), live.waits(family)));
            }
        }
        for (turn, (_, family)) in heavy.into_iter().enumerate() {
            let mut waits = live.waits(family);
            let mut room = if turn == 0 { room / 2 } else { 0 };
            let mut all_taken = true;
            for (scan, store) in &stores {
                let mut fresh: Vec<u64> = store.ids_from(family, waits.seen_to[*scan]).collect();
                fresh.sort_unstable();
                let partners: usize = 1 + stores.iter().filter(|(other, _)| other != scan).map(|(_, store)| store.count(family)).sum::<usize>();
                let fits = (room / partners).max(usize::from(turn == 0)).min(fresh.len());
                room = room.saturating_sub(fits.saturating_mul(partners));
                let end = fresh.get(fits).copied().unwrap_or(store.next());
                if fits > 0 {
                    runs.entry((*scan, waits.seen_to[*scan], end)).or_default().extend(family);
                }
                waits.seen_to[*scan] = if turn == 0 { end } else { waits.seen_to[*scan] };
                all_taken &= fits == fresh.len();
            }
            if !all_taken {
                left.push((family.clone(), waits));
            }
        }
        let part = |(scan, from, end): (usize, u64, u64)| {
            let mut part = Part { numbers: everything.to_vec(), anchors: ALL_TIMES };
            part.numbers[scan] = from..end;
            part
        };
        Work { runs: runs.into_iter().map(|(of, keys)| (keys, part(of))).collect(), left }
    }

    /// Takes families out until the rest has no more rows than one tick looks at; gives the keys that were taken out.
    fn postpone(&mut self, number: usize, families: &mut Vec<HashSet<Key>>) -> HashSet<Key> {
        let live = &self.live[number];
        // In another order each time, or the same keys would always wait.
        let salt = live.tally.runs.wrapping_mul(2) | 1;
        families.sort_unstable_by_key(|family| family.iter().min().map_or(0, |key| key.wrapping_mul(salt)));
        let mut used = 0;
        let fits = families.iter().take_while(|family| {
            let before = used;
            used += self.rows_of(number, family);
            before < self.tick_rows.min(live.bound)
        });
        let fits = fits.count().max(1).min(families.len());
        families.split_off(fits).into_iter().flatten().collect()
    }

    fn run_apart_if_it_fails(&mut self, number: usize, keys: &HashSet<Key>, rows: &Part) -> Result<()> {
        if !keys.is_empty() && !self.run(number, keys, rows, self.apart(number, keys).is_empty())? {
            // A row that the query fails on costs its own key, not the others.
            for key in self.apart(number, keys) {
                self.run(number, &key, rows, true)?;
            }
        }
        Ok(())
    }

    /// Class C3: of the results that a run has just added for these keys, leaves those that may be told, and sees to it that the
    /// keys are looked at again when the others are final. What lies before the floor counts only if the past was `just_loaded`.
    fn settle(&mut self, number: usize, keys: &HashSet<Key>, just_loaded: bool) {
        let live = &mut self.live[number];
        let is_new = |finding: &Finding| finding.standing == Standing::Open && Arc::ptr_eq(&finding.detection, &live.detection);
        let found = self.ready.split_off(self.ready.iter().position(is_new).unwrap_or(self.ready.len()));
        // What was fetched is whole until something of it is let go of.
        let is_whole = just_loaded || (!live.stale && live.fetches_what_it_waits_for());
        let begins = live.begins(&self.begins);
        let mut look_again: Option<Micros> = None;
        for mut finding in found {
            if finding.alert_time < live.floor && !is_whole {
                continue;
            }
            let final_at = finding.alert_time.saturating_add(live.analysis.wait);
            let is_final = final_at < self.progress;
            // Early is when the moment has come that the alert is about, not when it lies ahead.
            let is_early = live.detection.early && finding.alert_time <= self.newest.max(self.progress);
            if !is_final {
                let next = if live.detection.early && !is_early { finding.alert_time } else { final_at };
                look_again = Some(look_again.map_or(next, |known| known.min(next)));
            }
            finding.standing = if is_final { Standing::Final } else { Standing::Provisional(final_at) };
            finding.warming = begins.is_some_and(|begins| finding.alert_time < begins);
            if is_final || is_early {
                self.ready.push(finding);
            }
        }
        let told = self.ready.iter().rev().take_while(|finding| Arc::ptr_eq(&finding.detection, &live.detection)).count();
        live.note_found(told);
        if let Some(at) = look_again {
            live.timers.entry(at).or_default().extend(keys);
        }
    }

    /// The key groups that must be evaluated together.
    pub(super) fn families(&self, number: usize, dirty: &HashSet<Key>) -> Vec<HashSet<Key>> {
        if !self.live[number].uses_lineage() {
            return dirty.iter().map(|key| HashSet::from_iter([*key])).collect();
        }
        let mut done: HashSet<Key> = HashSet::new();
        let mut families = Vec::new();
        for key in dirty {
            if !done.contains(key) {
                let family: HashSet<Key> = self.lineage.family(*key).into_iter().collect();
                done.extend(&family);
                families.push(family);
            }
        }
        families
    }

    fn has_rows(&self, feed: &Feed, family: &HashSet<Key>, believe_probed: bool) -> bool {
        match feed {
            Feed::Lineage | Feed::Dimension(_) => true,
            Feed::Store { probed: true, .. } if believe_probed => true,
            Feed::Store { store, .. } => self.stores[*store].store.has(family),
            Feed::Batch(_) => false,
        }
    }

    /// Fetches the past of families that have just become interesting into the probed stores; gives their keys.
    fn load(&mut self, number: usize, families: &[HashSet<Key>], whole: &HashSet<Key>, history: &dyn History) -> Result<HashSet<Key>> {
        let live = &self.live[number];
        if !live.feeds.iter().any(|feed| matches!(feed, Feed::Store { probed: true, .. })) {
            return Ok(HashSet::new());
        }
        let mut wanted: HashSet<Key> = HashSet::new();
        for family in families {
            if live.analysis.needs.met(&|scan| self.has_rows(&live.feeds[scan], family, true)) {
                // A new row of an anchor may reach further back than what is still in memory, and so may those of a family that was joined.
                let again = live.stale && (family.iter().any(|key| whole.contains(key)) || self.has_fresh_anchor(live, family));
                let mut keys = family.iter().copied().filter(|key| *key != NULL_KEY);
                // A family is looked at as one: when one joins it, the past of all is there whole again.
                if again || keys.clone().any(|key| !live.loaded.contains(&key)) {
                    wanted.extend(&mut keys);
                }
            }
        }
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let mut names = self.lineage.names(&wanted);
        for (scan, feed) in live.feeds.iter().enumerate() {
            if let (Feed::Store { store, probed: false }, Some(key)) = (feed, &live.analysis.scans[scan].key)
                && let Some(rows) = self.stores[*store].store.gather(&wanted, 0..u64::MAX, &ALL_TIMES)?
                && let Some(column) = rows.column_by_name(key)
            {
                names.extend(texts_of(column, &wanted, &self.hasher)?);
            }
        }
        names.sort_unstable();
        names.dedup();
        let probed: Vec<(usize, &'static str)> = live
            .feeds
            .iter()
            .zip(&live.analysis.scans)
            .filter_map(|(feed, scan)| match feed {
                Feed::Store { store, probed: true } => Some((*store, key_name(self.stores[*store].store.table(), scan.key.as_deref())?)),
                _ => None,
            })
            .collect();
        self.live[number].loaded.extend(&wanted);
        for (store, key) in probed {
            let entry = &self.stores[store];
            let columns = entry.columns();
            let ask = LookBack {
                table: entry.store.table(),
                keys: Some((key, &names)),
                filters: &entry.filters.clone(),
                since: Micros::MIN,
                columns: Some(&columns),
            };
            for batch in history.rows(&ask)? {
                self.fill(store, &batch, Some(&wanted))?;
            }
        }
        Ok(wanted)
    }

    fn has_fresh_anchor(&self, live: &Live, family: &HashSet<Key>) -> bool {
        live.feeds.iter().enumerate().any(|(scan, feed)| match feed {
            Feed::Store { store, probed: false } => self.stores[*store].store.ids_from(family, live.seen(family, scan)).next().is_some(),
            _ => false,
        })
    }

    /// The keys in the smallest groups that can be evaluated alone.
    fn apart(&self, number: usize, keys: &HashSet<Key>) -> Vec<HashSet<Key>> {
        let groups = self.families(number, keys);
        if groups.len() > 1 { groups } else { Vec::new() }
    }

    /// Runs the plan over these keys; false if it failed. The failure is only told where the caller cannot try smaller groups.
    fn run(&mut self, number: usize, keys: &HashSet<Key>, rows: &Part, last: bool) -> Result<bool> {
        let Self { live, stores, lineage, runtime, ready, problems, .. } = self;
        let live = &mut live[number];
        let earliest = live.earliest_alerts(stores, keys, rows);
        for (scan, feed) in live.feeds.iter().enumerate() {
            let rows = match feed {
                Feed::Lineage => Some(lineage.rows(Some(keys))?.project(&live.analysis.scans[scan].projection)?),
                Feed::Dimension(rows) => Some(rows.clone()),
                Feed::Store { store, .. } => {
                    let store = &stores[*store].store;
                    match (&earliest, live.analysis.scans[scan].latest) {
                        _ if live.anchor.is_some_and(|(anchor, _)| anchor == scan) => store.gather(keys, rows.numbers[scan].clone(), &rows.anchors)?,
                        (Some(earliest), Some(latest)) => store.gather_latest(keys, &|key| earliest(key).saturating_add(latest))?,
                        _ => store.gather(keys, rows.numbers[scan].clone(), &ALL_TIMES)?,
                    }
                }
                Feed::Batch(_) => None,
            };
            live.plan.slots[scan].set(rows);
        }
        let failed = problems.len();
        live.run(runtime, ready, problems);
        let failed = problems.len() > failed;
        if failed && !last && keys.len() > 1 {
            problems.pop();
        }
        Ok(!failed)
    }
}
