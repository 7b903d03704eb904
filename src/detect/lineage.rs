//! Which credential made which: links arrive in any order, chains are resolved as they do.
//!
//! Links come from SQL (`lineage_links`); only the closure is computed here, because recursion has no place in a kept plan.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Builder, StringViewBuilder, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use hashbrown::{HashMap, HashSet};

use super::catalog::LINEAGE;
use super::residue::{Key, KeyHasher};
use crate::clock::Micros;

/// Longest chain that is followed; a cycle in forged logs ends here too.
const DEPTH: i64 = 64;

#[derive(Default)]
struct Credential {
    name: Arc<str>,
    key: Key,
    /// Who made it, and when. A credential has one maker; should logs disagree, the earliest statement counts.
    made_by: Option<(Micros, usize)>,
    family: usize,
}

/// All links seen, and the families that they tie together.
#[derive(Default)]
pub struct Lineage {
    ids: HashMap<Arc<str>, usize>,
    credentials: Vec<Credential>,
    /// Members by family; the smaller family is merged into the larger.
    families: HashMap<usize, Vec<usize>>,
    by_key: HashMap<Key, usize>,
}

impl Lineage {
    fn intern(&mut self, name: &str, hasher: &KeyHasher) -> usize {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.credentials.len();
        let name: Arc<str> = name.into();
        let key = hasher.key(&name);
        self.by_key.insert(key, id);
        self.ids.insert(Arc::clone(&name), id);
        self.credentials.push(Credential { name, key, made_by: None, family: id });
        self.families.insert(id, vec![id]);
        id
    }

    /// Adds one link; true if it told something new.
    pub fn link(&mut self, child: &str, parent: &str, minted_at: Micros, hasher: &KeyHasher) -> bool {
        if child == parent {
            return false;
        }
        let (child, parent) = (self.intern(child, hasher), self.intern(parent, hasher));
        let made_by = &mut self.credentials[child].made_by;
        if made_by.is_some_and(|known| known <= (minted_at, parent)) {
            return false;
        }
        *made_by = Some((minted_at, parent));
        let (mut a, mut b) = (self.credentials[child].family, self.credentials[parent].family);
        if a != b {
            if self.families[&a].len() > self.families[&b].len() {
                std::mem::swap(&mut a, &mut b);
            }
            let moving = self.families.remove(&a).unwrap_or_default();
            for member in &moving {
                self.credentials[*member].family = b;
            }
            self.families.entry(b).or_default().extend(moving);
        }
        true
    }

    /// Takes every link from a result of `lineage_links`; gives the keys of the families that changed.
    ///
    /// # Errors
    /// Arrow's, if the view's columns are not what this expects: a bug.
    pub fn absorb(&mut self, links: &RecordBatch, hasher: &KeyHasher) -> Result<HashSet<Key>, ArrowError> {
        let text = |name: &str| arrow::compute::cast(links.column_by_name(name).unwrap_or(links.column(0)), &DataType::Utf8View);
        let (children, parents) = (text("child")?, text("parent")?);
        let times = links.column_by_name("minted_at").unwrap_or(links.column(2)).as_primitive::<TimestampMicrosecondType>();
        let mut touched: HashSet<Key> = HashSet::new();
        for row in 0..links.num_rows() {
            let (child, parent) = (children.as_string_view().value(row), parents.as_string_view().value(row));
            if self.link(child, parent, times.value(row), hasher) {
                touched.insert(hasher.key(child));
            }
        }
        // Each family once, however many of its links are new.
        let families: HashSet<usize> = touched.iter().filter_map(|key| self.by_key.get(key)).map(|id| self.credentials[*id].family).collect();
        Ok(families.iter().flat_map(|family| &self.families[family]).map(|member| self.credentials[*member].key).collect())
    }

    /// The keys of everything tied to this one by links, itself included.
    pub fn family(&self, key: Key) -> Vec<Key> {
        match self.by_key.get(&key) {
            Some(id) => self.families[&self.credentials[*id].family].iter().map(|member| self.credentials[*member].key).collect(),
            None => vec![key],
        }
    }

    /// The names of the members of these families.
    pub fn names(&self, keys: &HashSet<Key>) -> Vec<String> {
        keys.iter().filter_map(|key| self.by_key.get(key)).map(|id| self.credentials[*id].name.to_string()).collect()
    }

    /// The rows of `lineage` for these keys; for all with `None`.
    pub fn rows(&self, keys: Option<&HashSet<Key>>) -> Result<RecordBatch, ArrowError> {
        let mut ids: Vec<usize> = match keys {
            Some(keys) => keys.iter().filter_map(|key| self.by_key.get(key)).copied().collect(),
            None => (0..self.credentials.len()).collect(),
        };
        ids.sort_unstable();
        let mut names = StringViewBuilder::new();
        let mut ancestors = StringViewBuilder::new();
        let mut depths = Int64Builder::new();
        let mut minted = TimestampMicrosecondBuilder::new().with_timezone("UTC");
        let mut left = TimestampMicrosecondBuilder::new().with_timezone("UTC");
        for id in ids {
            let Some((minted_at, _)) = self.credentials[id].made_by else { continue };
            let mut at = id;
            for depth in 1..=DEPTH {
                let Some((left_at, parent)) = self.credentials[at].made_by else { break };
                if parent == id {
                    break;
                }
                names.append_value(&self.credentials[id].name);
                ancestors.append_value(&self.credentials[parent].name);
                depths.append_value(depth);
                minted.append_value(minted_at);
                left.append_value(left_at);
                at = parent;
            }
        }
        let columns: Vec<ArrayRef> =
            vec![Arc::new(names.finish()), Arc::new(ancestors.finish()), Arc::new(depths.finish()), Arc::new(minted.finish()), Arc::new(left.finish())];
        RecordBatch::try_new(Arc::clone(&LINEAGE), columns)
    }

    pub fn len(&self) -> usize {
        self.credentials.len()
    }

    pub fn is_empty(&self) -> bool {
        self.credentials.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_resolve_in_any_order() {
        let links = [("b", "a", 10), ("c", "b", 20), ("d", "c", 30), ("x", "y", 5)];
        let mut expected = None;
        for shift in 0..links.len() {
            let hasher = KeyHasher::default();
            let mut lineage = Lineage::default();
            for index in 0..links.len() {
                let (child, parent, at) = links[(index + shift) % links.len()];
                assert!(lineage.link(child, parent, at, &hasher));
                assert!(!lineage.link(child, parent, at, &hasher), "the same link twice tells nothing");
            }
            assert_eq!(lineage.family(hasher.key("a")).len(), 4);
            let keys: HashSet<Key> = lineage.family(hasher.key("d")).into_iter().collect();
            let rows = lineage.rows(Some(&keys)).unwrap();
            let mut seen: Vec<(String, String, i64, i64)> = (0..rows.num_rows())
                .map(|row| {
                    let text = |column: usize| rows.column(column).as_string_view().value(row).to_owned();
                    let time = rows.column(4).as_primitive::<TimestampMicrosecondType>().value(row);
                    (text(0), text(1), rows.column(2).as_primitive::<arrow::datatypes::Int64Type>().value(row), time)
                })
                .collect();
            seen.sort();
            assert_eq!(seen.len(), 6);
            assert_eq!(seen[3], ("d".into(), "a".into(), 3, 10), "the chain left a when b was made");
            assert_eq!(expected.get_or_insert_with(|| seen.clone()), &seen);
        }
    }

    #[test]
    fn a_cycle_ends() {
        let hasher = KeyHasher::default();
        let mut lineage = Lineage::default();
        lineage.link("a", "b", 1, &hasher);
        lineage.link("b", "a", 2, &hasher);
        assert_eq!(lineage.rows(None).unwrap().num_rows(), 2);
    }
}
