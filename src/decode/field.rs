//! Values as logs really carry them: a field of any JSON type, and times in every spelling seen.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::clock::Micros;
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

    /// A moment; see [`parse_time`].
    pub fn time(&self) -> Option<Micros> {
        match self {
            Field::Text(text) => parse_time(text),
            Field::Int(value) => epoch(*value),
            Field::Float(value) if value.is_finite() => epoch(*value as i64),
            _ => None,
        }
    }
}

/// Seconds, milliseconds, micro- or nanoseconds since the epoch, told apart by size (1973 to 2286 in each).
fn epoch(value: i64) -> Option<Micros> {
    match value {
        100_000_000..=9_999_999_999 => Some(value * 1_000_000),
        100_000_000_000..=9_999_999_999_999 => Some(value * 1_000),
        100_000_000_000_000..=9_999_999_999_999_999 => Some(value),
        100_000_000_000_000_000..=i64::MAX => Some(value / 1_000),
        _ => None,
    }
}

/// Reads a time as logs spell it: RFC 3339 (any fraction, any offset), with a space and no zone (read as UTC),
/// RFC 1123 as AWS Health writes it, or a number since the epoch.
pub fn parse_time(text: &str) -> Option<Micros> {
    if let Some(micros) = plain_utc(text) {
        return Some(micros);
    }
    let text = text.trim();
    DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_rfc2822(text))
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z"))
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S %z"))
        .map(|time| time.timestamp_micros())
        .ok()
        .or_else(|| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").ok().map(|t| t.and_utc().timestamp_micros()))
        .or_else(|| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").ok().map(|t| t.and_utc().timestamp_micros()))
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0).map(|t| t.and_utc().timestamp_micros()))
        .or_else(|| text.parse().ok().and_then(epoch))
}

/// `2026-05-01T10:00:00Z`: what nearly every record has, read without a general parser.
fn plain_utc(text: &str) -> Option<Micros> {
    let b: &[u8; 20] = text.as_bytes().try_into().ok()?;
    if (b[4], b[7], b[10], b[13], b[16], b[19]) != (b'-', b'-', b'T', b':', b':', b'Z') {
        return None;
    }
    let number =
        |range: std::ops::Range<usize>| b[range].iter().try_fold(0u32, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0')));
    let date = NaiveDate::from_ymd_opt(number(0..4)? as i32, number(5..7)?, number(8..10)?)?;
    let time = date.and_hms_opt(number(11..13)?, number(14..16)?, number(17..19)?)?;
    Some(time.and_utc().timestamp_micros())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_time_is_the_same_moment() {
        let expected = plain_utc("2022-02-07T22:23:37Z");
        assert!(expected.is_some());
        for text in [
            "2022-02-07T22:23:37.000Z",
            "2022-02-07T22:23:37.0000000Z",
            "2022-02-08 09:23:37+11:00",
            "2022-02-07 22:23:37",
            "2022-02-07 22:23:37.000000",
            "Mon, 07 Feb 2022 22:23:37 GMT",
            "1644272617",
            "1644272617000",
        ] {
            assert_eq!(parse_time(text), expected, "{text}");
        }
        assert_eq!(parse_time("soon"), None);
        assert_eq!(parse_time("2022-13-07T22:23:37Z"), None);
    }
}
