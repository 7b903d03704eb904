//! How long rows are kept: until no row on time can meet them any more.

use super::{GRAIN, StoreEntry, columns_of};
use crate::clock::{DAY, HOUR, Micros};
use crate::detect::analyse::{Analysis, Class, Needs, ScanInfo};
use crate::table::by_name;

/// How long rows of a probed scan stay in memory where an archive can give them again.
const PROBED_STAY: Micros = 6 * HOUR;

/// A row must stay until append time has come this far past its event time.
pub(super) struct Retention {
    pub(super) stay: Micros,
    /// Class C3, where only presence counts: rows that lie so far before the oldest open `alert_time` may be condensed.
    pub(super) condense: Option<Micros>,
    /// The partner is an anchor: when a row of it comes, the past of its key is fetched again.
    anchor: bool,
}

impl StoreEntry {
    pub(super) fn columns(&self) -> Vec<usize> {
        columns_of(self.store.table(), self.store.projection(), &self.filters, Some(self.store.key_column()))
    }

    /// Rows before this are of no more use.
    pub(super) fn horizon(&self, progress: Micros, history_is_kept: bool) -> Micros {
        let until = |r: &Retention| {
            let needed = progress.saturating_sub(r.stay);
            // Waiting months for an anchor is the archive's work.
            if self.probed && r.anchor && history_is_kept { needed.max(progress.saturating_sub(PROBED_STAY)) } else { needed }
        };
        self.retention.iter().map(until).min().unwrap_or(progress)
    }
}

/// Scans that must have rows together with this one for a result to exist.
fn partners(needs: &Needs, scan: usize) -> Vec<usize> {
    fn all_in(needs: &Needs, into: &mut Vec<usize>) {
        match needs {
            Needs::Scan(scan) => into.push(*scan),
            Needs::All(parts) | Needs::Any(parts) => parts.iter().for_each(|part| all_in(part, into)),
        }
    }
    fn holds(needs: &Needs, scan: usize) -> bool {
        let mut all = Vec::new();
        all_in(needs, &mut all);
        all.contains(&scan)
    }
    match needs {
        Needs::Scan(_) => Vec::new(),
        Needs::Any(parts) => parts.iter().find(|part| holds(part, scan)).map(|part| partners(part, scan)).unwrap_or_default(),
        Needs::All(parts) => {
            let mut found = Vec::new();
            for part in parts {
                if holds(part, scan) {
                    found.extend(partners(part, scan));
                } else {
                    all_in(part, &mut found);
                }
            }
            found
        }
    }
}

/// Whether a table's rows may be appended days after their event.
pub(super) fn is_slow(scan: &ScanInfo) -> bool {
    by_name(&scan.table).is_some_and(|table| table.max_delay > DAY)
}

/// Scans that must have rows for a result, seen from an optional scan: all others that have rows of a stream.
fn company(analysis: &Analysis, scan: usize) -> Vec<usize> {
    match analysis.scans[scan].optional {
        false => partners(&analysis.needs, scan),
        true => (0..analysis.scans.len()).filter(|other| *other != scan && !analysis.scans[*other].optional).collect(),
    }
}

/// Which scans are probed: their rows are many, or would have to wait for months for a partner that reports late.
pub(super) fn probed_scans(analysis: &Analysis) -> Vec<bool> {
    let probed: Vec<bool> = (0..analysis.scans.len())
        .map(|number| {
            let scan = &analysis.scans[number];
            let waits = !is_slow(scan) && company(analysis, number).into_iter().any(|other| is_slow(&analysis.scans[other]));
            // Where only presence counts, even broad scans keep few rows.
            let broad = scan.is_broad() && !(analysis.class == Class::C3 && scan.latest.is_some());
            scan.is_stream() && (broad && !is_slow(scan) || waits)
        })
        .collect();
    // Something else must be able to say which keys are of interest.
    if analysis.class == Class::C0 || analysis.needs.met(&|scan| probed[scan] || analysis.scans[scan].is_lineage()) {
        return vec![false; probed.len()];
    }
    probed
}

/// Class C3: how long past `alert_time` rows on time can raise a result or take it back. Reports that come days late are no part
/// of it: for them the past is fetched again.
pub(super) fn settles_after(analysis: &Analysis) -> Micros {
    let arrives = |scan: &ScanInfo| scan.ahead + by_name(&scan.table).map_or(0, |table| table.max_delay);
    let prompt = analysis.scans.iter().filter(|scan| scan.is_stream() && !scan.optional && !is_slow(scan));
    prompt.map(arrives).max().unwrap_or(0).max(analysis.wait) + 2 * GRAIN
}

/// Until when rows of a scan can still meet a new row on time.
pub(super) fn retention_of(analysis: &Analysis, scan: usize, probed: &[bool]) -> Vec<Retention> {
    let own = &analysis.scans[scan];
    if analysis.class == Class::C3 {
        let settles = settles_after(analysis);
        let condense = own.latest.map(|latest| latest - settles);
        // What may be told days late stays for so long, or it could go before it was looked at, and would not come back after a restart.
        let delay = by_name(&own.table).map_or(0, |table| table.max_delay);
        return vec![Retention { stay: own.back + settles.max(delay), condense, anchor: false }];
    }
    let others = partners(&analysis.needs, scan);
    std::iter::once(scan)
        .chain(others)
        .filter_map(|number| {
            let other = &analysis.scans[number];
            let stay = own.back + other.ahead + by_name(&other.table)?.max_delay;
            Some(Retention { stay, condense: None, anchor: number != scan && !probed[number] })
        })
        .collect()
}
