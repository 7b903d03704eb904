//! OTLP protobuf as the OpenTelemetry Collector's Kafka exporter writes it, turned into the same JSON text as `otlp_json`.
//!
//! Read field by field instead of by generated structs: a span that cannot be read costs itself, not its whole request.
//! Field numbers are those of opentelemetry-proto 1.x.

use serde_json::{Map, Value, json};

use crate::limits;

/// Deepest nesting of attribute values.
const DEPTH: usize = 12;

/// Whether these bytes are an OTLP request in protobuf: no text, and fields as such a request has them.
pub fn is_request(bytes: &[u8]) -> bool {
    if bytes.first() != Some(&0x0a) || (bytes.trim_ascii_start().starts_with(b"{") && std::str::from_utf8(bytes).is_ok()) {
        return false;
    }
    let Some(Ok((1, Wire::Bytes(group) | Wire::Cut(group)))) = fields(bytes).next() else { return false };
    matches!(fields(group).next(), Some(Ok((1 | 2, Wire::Bytes(_) | Wire::Cut(_)))))
}

/// Each span or log record of a request as JSON text, `{"resource":…,"scope":…,"span":…}`, or why it cannot be read.
pub fn records(bytes: &[u8]) -> Vec<Result<String, String>> {
    let (mut out, mut bytes_out) = (Vec::new(), 0);
    for group in groups(bytes, 1, &mut out) {
        let mut resource = Value::Null;
        for part in fields(group).map_while(Result::ok) {
            if let (1, Wire::Bytes(bytes)) = part {
                resource = if bytes.len() > limits::OTLP_SHARED_BYTES { Value::Null } else { json!({"attributes": attributes(bytes, 1)}) };
            }
        }
        let resource = resource.to_string();
        for scoped in groups(group, 2, &mut out) {
            let mut scope = Value::Null;
            for part in fields(scoped).map_while(Result::ok) {
                if let (1, Wire::Bytes(bytes)) = part {
                    scope = json!({"name": text_field(bytes, 1), "version": text_field(bytes, 2)});
                }
            }
            for item in lengths(scoped, 2) {
                bytes_out += resource.len() + item.len();
                if bytes_out > limits::PEELED_BYTES {
                    out.push(Err("the rest of this request is larger than any honest one".to_owned()));
                    return out;
                }
                out.push(record(item).map(|(name, value)| format!("{{\"resource\":{resource},\"scope\":{scope},\"{name}\":{value}}}")));
            }
        }
    }
    if out.is_empty() {
        out.push(Err("an OTLP request without a span or log record that could be read".to_owned()));
    }
    out
}

/// The fields of one number that hold more such fields. Of one that is cut off, what is there counts; the cut is noted.
fn groups<'b>(bytes: &'b [u8], wanted: u32, cuts: &mut Vec<Result<String, String>>) -> Vec<&'b [u8]> {
    let mut found = Vec::new();
    for field in fields(bytes) {
        match field {
            Ok((number, Wire::Bytes(value))) if number == wanted => found.push(value),
            Ok((number, Wire::Cut(value))) => {
                // A cut runs through every level; told once.
                if !cuts.iter().any(Result::is_err) {
                    cuts.push(Err(format!("protobuf ends inside field {number}: {} bytes of it are there", value.len())));
                }
                if number == wanted {
                    found.push(value);
                }
            }
            Ok(_) => {}
            Err(error) => cuts.push(Err(error)),
        }
    }
    found
}

/// The whole length-delimited fields of one number.
fn lengths(bytes: &[u8], wanted: u32) -> Vec<&[u8]> {
    fields(bytes)
        .map_while(Result::ok)
        .filter_map(|field| if let (number, Wire::Bytes(value)) = field { (number == wanted).then_some(value) } else { None })
        .collect()
}

/// One span or log record as OTLP JSON, and which of the two it is.
fn record(bytes: &[u8]) -> Result<(&'static str, Value), String> {
    let mut object = Map::new();
    let (mut list, mut events) = (Vec::new(), Vec::new());
    let mut is_log = None;
    for field in fields(bytes) {
        let (number, value) = field?;
        // A log record may leave out its time: protobuf omits zeros. A span has its trace id first.
        let is_log = *is_log.get_or_insert(!matches!((number, &value), (1, Wire::Bytes(_) | Wire::Cut(_))));
        let name = match (is_log, number) {
            (false, 1) | (true, 9) => "traceId",
            (false, 2) | (true, 10) => "spanId",
            (false, 4) => "parentSpanId",
            (false, 5) => "name",
            (false, 6) => "kind",
            (false, 7) => "startTimeUnixNano",
            (false, 8) => "endTimeUnixNano",
            (false, 9) | (true, 6) => {
                if let Wire::Bytes(bytes) = value {
                    list.extend(key_value(bytes, 0));
                }
                continue;
            }
            (false, 11) => {
                if let Wire::Bytes(bytes) = value {
                    events.push(json!({"name": text_field(bytes, 2), "attributes": attributes(bytes, 3)}));
                }
                continue;
            }
            (false, 15) => {
                if let Wire::Bytes(bytes) = value {
                    let code = fields(bytes).map_while(Result::ok).find_map(|field| if let (3, Wire::Varint(code)) = field { Some(code) } else { None });
                    object.insert("status".into(), json!({"message": text_field(bytes, 2), "code": code}));
                }
                continue;
            }
            (true, 1) => "timeUnixNano",
            (true, 11) => "observedTimeUnixNano",
            (true, 2) => "severityNumber",
            (true, 3) => "severityText",
            (true, 12) => "eventName",
            (true, 5) => {
                if let Wire::Bytes(bytes) = value {
                    object.insert("body".into(), any_value(bytes, 0));
                }
                continue;
            }
            _ => continue,
        };
        let value = match value {
            Wire::Bytes(bytes) if name.ends_with("Id") => Value::from(hex(bytes)),
            Wire::Bytes(bytes) => Value::from(String::from_utf8_lossy(bytes)),
            // 64-bit integers are texts in OTLP JSON.
            Wire::Fixed(number) => Value::from(number.to_string()),
            Wire::Varint(number) => Value::from(number),
            Wire::Small | Wire::Cut(_) => continue,
        };
        object.insert(name.into(), value);
    }
    object.insert("attributes".into(), Value::Array(list));
    if !events.is_empty() {
        object.insert("events".into(), Value::Array(events));
    }
    Ok((if is_log == Some(true) { "logRecord" } else { "span" }, Value::Object(object)))
}

fn attributes(bytes: &[u8], number: u32) -> Vec<Value> {
    let of_number = |field: (u32, Wire<'_>)| match field {
        (found, Wire::Bytes(bytes)) if found == number => key_value(bytes, 0),
        _ => None,
    };
    fields(bytes).map_while(Result::ok).filter_map(of_number).collect()
}

fn key_value(bytes: &[u8], depth: usize) -> Option<Value> {
    let mut value = Value::Null;
    for field in fields(bytes).map_while(Result::ok) {
        if let (2, Wire::Bytes(bytes)) = field {
            value = any_value(bytes, depth);
        }
    }
    Some(json!({"key": text_field(bytes, 1)?, "value": value}))
}

fn any_value(bytes: &[u8], depth: usize) -> Value {
    if depth > DEPTH {
        return Value::Null;
    }
    match fields(bytes).next() {
        Some(Ok((1, Wire::Bytes(text)))) => json!({"stringValue": String::from_utf8_lossy(text)}),
        Some(Ok((2, Wire::Varint(flag)))) => json!({"boolValue": flag != 0}),
        Some(Ok((3, Wire::Varint(number)))) => json!({"intValue": (number as i64).to_string()}),
        Some(Ok((4, Wire::Fixed(bits)))) => json!({"doubleValue": f64::from_bits(bits)}),
        Some(Ok((5, Wire::Bytes(list)))) => {
            let values: Vec<Value> = lengths(list, 1).into_iter().map(|value| any_value(value, depth + 1)).collect();
            json!({"arrayValue": {"values": values}})
        }
        Some(Ok((6, Wire::Bytes(list)))) => {
            let values: Vec<Value> = lengths(list, 1).into_iter().filter_map(|value| key_value(value, depth + 1)).collect();
            json!({"kvlistValue": {"values": values}})
        }
        Some(Ok((7, Wire::Bytes(bytes)))) => json!({"bytesValue": hex(bytes)}),
        _ => Value::Null,
    }
}

fn text_field(bytes: &[u8], number: u32) -> Option<String> {
    fields(bytes).map_while(Result::ok).find_map(|field| match field {
        (found, Wire::Bytes(text)) if found == number => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

enum Wire<'b> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'b [u8]),
    /// Length-delimited, but the message ends inside.
    Cut(&'b [u8]),
    /// 32 bits: nothing here reads them.
    Small,
}

/// The fields of one message, in order; ends at the first that cannot be read.
fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u32, Wire<'_>), String>> {
    let mut rest = bytes;
    let mut failed = false;
    std::iter::from_fn(move || {
        if rest.is_empty() || failed {
            return None;
        }
        let field = next_field(&mut rest);
        failed = field.is_none();
        Some(field.ok_or_else(|| format!("protobuf ends inside a field, {} bytes from its start", bytes.len() - rest.len())))
    })
}

fn next_field<'b>(rest: &mut &'b [u8]) -> Option<(u32, Wire<'b>)> {
    let tag = varint(rest)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
    let value = match tag & 7 {
        0 => Wire::Varint(varint(rest)?),
        1 => Wire::Fixed(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?)),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            match take(rest, length) {
                Some(bytes) => Wire::Bytes(bytes),
                None => Wire::Cut(std::mem::take(rest)),
            }
        }
        5 => {
            take(rest, 4)?;
            Wire::Small
        }
        _ => return None,
    };
    Some((number, value))
}

fn take<'b>(rest: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(rest, 1)?.first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
