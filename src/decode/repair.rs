//! A second chance for a record that the strict reader refused.
//!
//! Doubled keys are an evasion: one parser sees the first, another the last. The first counts here, for detections and
//! archive alike; later ones are kept under another name, so that nobody reads them by accident and nothing is lost.

use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::limits;

/// A record that can be read, and what had to be done to it.
pub struct Repaired {
    pub text: String,
    pub flags: Vec<String>,
}

/// What AWS writes where an object is usual: known, and no damage.
const STAND_INS: &[&str] = &["", "HIDDEN_DUE_TO_SECURITY_REASONS"];

/// Renames doubled keys and drops scalars that stand where an object belongs; `None` if it is no JSON object at all.
pub fn repair(text: &str, objects: &[&str]) -> Option<Repaired> {
    let (mut flags, mut changed) = (Vec::new(), false);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = deserializer.deserialize_map(Rebuild { objects, flags: &mut flags, changed: &mut changed }).ok()?;
    deserializer.end().ok()?;
    changed.then(|| Repaired { text: value.to_string(), flags })
}

struct Rebuild<'f> {
    objects: &'f [&'f str],
    flags: &'f mut Vec<String>,
    changed: &'f mut bool,
}

impl<'de> serde::de::DeserializeSeed<'de> for Rebuild<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Rebuild<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let mut doubled = 0;
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Rebuild { objects: self.objects, flags: self.flags, changed: self.changed })?;
            if self.objects.contains(&key.as_str()) && !value.is_object() && !value.is_null() {
                *self.changed = true;
                if !value.as_str().is_some_and(|text| STAND_INS.contains(&text)) {
                    self.flags.push(format!("bad_type:{key}"));
                }
                object.insert(format!("{key} (not an object)"), value);
            } else if object.contains_key(&key) {
                *self.changed = true;
                doubled += 1;
                if doubled > limits::DUPLICATE_KEYS {
                    return Err(serde::de::Error::custom("the same keys over and over"));
                }
                self.flags.push(format!("duplicate_key:{}", key.replace(',', "_").chars().take(40).collect::<String>()));
                let name = (2..).map(|n| format!("{key} (duplicate {n})")).find(|name| !object.contains_key(name));
                object.insert(name.unwrap_or(key), value);
            } else {
                object.insert(key, value);
            }
        }
        Ok(Value::Object(object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = elements.next_element_seed(Rebuild { objects: self.objects, flags: self.flags, changed: self.changed })? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_doubled_keys_counts_and_the_other_is_kept() {
        let repaired = repair(r#"{"eventName":"InvokeModel","a":{"b":1,"b":2},"eventName":"GetCallerIdentity"}"#, &[]).unwrap();
        assert_eq!(repaired.flags, ["duplicate_key:b", "duplicate_key:eventName"]);
        let value: Value = serde_json::from_str(&repaired.text).unwrap();
        assert_eq!(value["eventName"], "InvokeModel");
        assert_eq!(value["eventName (duplicate 2)"], "GetCallerIdentity");
        assert_eq!(value["a"]["b"], 1);
    }

    #[test]
    fn nothing_to_repair_is_no_repair() {
        assert!(repair(r#"{"a":1}"#, &[]).is_none());
        assert!(repair("[1]", &[]).is_none());
    }
}
