//! Values as logs really carry them: a field of any JSON type.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::clock::{Micros, epoch, parse_time};
use crate::table::flag;

/// A field that should be a scalar. It borrows from the input where it can, and a wrong type is not an error.
///
/// (`Option<Cow<str>>` would own every string even with `#[serde(borrow)]`.)
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Field<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Bool(bool),
    Int(i64),
    Float(f64),
    /// An object or array where a scalar belongs.
    Nested,
}

impl<'a> Field<'a> {
    /// The text, where there is some: empty strings count as absent, as they do in the logs.
    pub fn text(&self) -> Option<&str> {
        match self {
            Field::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// The text; a number or boolean is spelt out; a nested value is flagged as `bad_type:NAME`.
    pub fn scalar(&self, name: &str, flags: &mut String) -> Option<Cow<'_, str>> {
        match self {
            Field::Text(text) => (!text.is_empty()).then(|| Cow::Borrowed(text.as_ref())),
            Field::Absent => None,
            Field::Bool(value) => Some(Cow::Owned(value.to_string())),
            Field::Int(value) => Some(Cow::Owned(value.to_string())),
            Field::Float(value) => Some(Cow::Owned(value.to_string())),
            Field::Nested => {
                flag(flags, &format!("bad_type:{name}"));
                None
            }
        }
    }

    /// A boolean, also one spelt as the string "true".
    pub fn bool(&self) -> Option<bool> {
        match self {
            Field::Bool(value) => Some(*value),
            Field::Text(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Field::Text(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        }
    }

    /// A whole number, also from a float (`bytesTransferredOut` is one) or a string.
    pub fn int(&self) -> Option<i64> {
        match self {
            Field::Int(value) => Some(*value),
            Field::Float(value) if value.is_finite() && value.abs() < 9e15 => Some(*value as i64),
            Field::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// A moment; see [`crate::clock::parse_time`].
    pub fn time(&self) -> Option<Micros> {
        match self {
            Field::Text(text) => parse_time(text),
            Field::Int(value) => epoch(*value),
            Field::Float(value) if value.is_finite() => epoch(*value as i64),
            _ => None,
        }
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Field<'de>, E> {
        Ok(Field::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Field<'de>, E> {
        Ok(Field::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Field<'de>, E> {
        Ok(i64::try_from(value).map_or(Field::Float(value as f64), Field::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Field<'de>, E> {
        Ok(Field::Float(value))
    }

    fn visit_unit<E>(self) -> Result<Field<'de>, E> {
        Ok(Field::Absent)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field<'de>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Nested)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Nested)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

/// An object or nothing. Derived structs would also take a list, field by field: an evasion, not an object.
#[derive(Clone, Debug)]
pub struct Object<T>(pub Option<T>);

impl<T> Default for Object<T> {
    fn default() -> Self {
        Self(None)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object or null")
    }

    fn visit_unit<E>(self) -> Result<Object<T>, E> {
        Ok(Object(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(|object| Object(Some(object)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor(PhantomData))
    }
}
