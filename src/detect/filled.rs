//! Which columns rows have filled of late: a predicate on one that nothing fills lets nothing through, and nobody would know.

use arrow::array::{Array, RecordBatch};
use hashbrown::HashMap;

use crate::clock::{DAY, Micros};
use crate::table::Table;

/// Per stream and column, the append time of the last rows of which one filled it.
#[derive(Clone, Debug, Default)]
pub struct Filled {
    last: HashMap<&'static str, Vec<Micros>>,
}

impl Filled {
    /// Rows have arrived, the latest at that append time.
    pub fn see(&mut self, table: &'static Table, batch: &RecordBatch, at: Micros) {
        if batch.num_rows() == 0 {
            return;
        }
        let last = self.last.entry(table.name).or_insert_with(|| vec![Micros::MIN; table.columns.len()]);
        for (last, column) in last.iter_mut().zip(batch.columns()) {
            if column.null_count() < batch.num_rows() {
                *last = at.max(*last);
            }
        }
    }

    /// Whether rows of that stream have come, and none of the last day filled this column.
    pub fn is_empty(&self, table: &Table, column: usize, now: Micros) -> bool {
        self.last.get(table.name).and_then(|last| last.get(column)).is_some_and(|last| now.saturating_sub(*last) >= DAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Place, Rows, cloudtrail as c};

    #[test]
    fn a_column_is_empty_when_a_day_of_rows_has_not_filled_it() {
        let row = |key: Option<&str>| {
            let mut rows = Rows::new(&c::TABLE);
            rows.stamp(&Place { topic: "t".into(), partition: 0, offset: 0, record: 0 }, Some(1), Some(1), "1", &mut String::new());
            rows.text(c::ACCESS_KEY_ID, key);
            rows.end_row();
            rows.finish()
        };
        let mut filled = Filled::default();
        assert!(!filled.is_empty(&c::TABLE, c::ACCESS_KEY_ID, DAY), "of a stream without rows nothing is known");
        filled.see(&c::TABLE, &row(None), 0);
        assert!(filled.is_empty(&c::TABLE, c::ACCESS_KEY_ID, 1));
        filled.see(&c::TABLE, &row(Some("AKIA")), 5);
        filled.see(&c::TABLE, &row(None), DAY);
        assert!(!filled.is_empty(&c::TABLE, c::ACCESS_KEY_ID, DAY) && filled.is_empty(&c::TABLE, c::ACCESS_KEY_ID, DAY + 5));
        assert!(!filled.is_empty(&c::TABLE, c::EVENT_ID, DAY));
    }
}
