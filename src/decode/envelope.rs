//! From bytes to single records: unpack, split, peel.
//!
//! Everything here works on structure alone and knows no log format. A record that is cut short, too deep or too large
//! is handed out as a [`Piece::Broken`] and the scan goes on behind it: nothing good beside it is lost.

use std::borrow::Cow;
use std::io::Read;
use std::sync::LazyLock;

use memchr::memchr2;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Reason;
use crate::limits;

/// A part of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// One JSON object, brackets balanced, and the byte at which it starts.
    Object(&'a [u8], usize),
    /// Bytes that are no record, why, and where they start.
    Broken(&'a [u8], Reason, usize),
}

/// Unpacks gzip (any number of members) and strips a byte-order mark. Plain bytes are borrowed.
pub fn unpack(bytes: &[u8]) -> Result<Cow<'_, [u8]>, (Reason, String)> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(Cow::Borrowed(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)));
    }
    let mut unpacked = Vec::new();
    let mut reader = flate2::read::MultiGzDecoder::new(bytes).take(limits::UNPACKED_BYTES as u64 + 1);
    let result = reader.read_to_end(&mut unpacked);
    if unpacked.len() > limits::UNPACKED_BYTES {
        return Err((Reason::TooLarge, format!("unpacks to more than {} MiB", limits::UNPACKED_BYTES >> 20)));
    }
    match result {
        // What came out before the damage is still good: it is decoded, and its cut end becomes a reject.
        Err(error) if unpacked.is_empty() => Err((Reason::BadCompression, error.to_string())),
        _ => Ok(Cow::Owned(match unpacked.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) => rest.to_vec(),
            None => unpacked,
        })),
    }
}

/// Splits a message into objects: JSON lines, arrays, pretty-printed or concatenated values, and the
/// `{"Records":[…]}` of CloudTrail delivery files, whose elements come out one by one.
pub fn split<'a>(bytes: &'a [u8], mut each: impl FnMut(Piece<'a>)) {
    let mut scan = Scan { bytes, at: 0, failures: 0, open: 0 };
    scan.elements(&mut each);
}

/// After this many broken values in one message, values may no longer span lines: bounds the work on garbage.
const PATIENCE: usize = 1_000;

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    failures: usize,
    /// Arrays opened and not closed between records.
    open: i64,
}

enum End {
    At(usize),
    TooDeep(usize),
    TooLarge(usize),
    Cut(usize),
}

impl<'a> Scan<'a> {
    fn elements(&mut self, each: &mut impl FnMut(Piece<'a>)) {
        while self.skip_glue() {
            let start = self.at;
            match self.bytes[start] {
                b'{' => match self.records_array(start) {
                    Some(inside) => {
                        self.open += 1;
                        self.at = inside;
                    }
                    None => self.object(start, each),
                },
                _ => {
                    let mut end = self.end_of_garbage(start);
                    self.failures += 1;
                    // Garbage without end is one reject, not millions: up to the next line that could be a record.
                    while self.failures > PATIENCE && end < self.bytes.len() && !matches!(self.bytes.get(end + 1), Some(b'{' | b'[')) {
                        end = self.line_end(end + 1);
                    }
                    each(Piece::Broken(&self.bytes[start..end], Reason::NotJson, start));
                    self.at = end;
                }
            }
        }
        // Cut between two records: nothing of a record is lost that is here, but more was to come.
        if self.open > 0 {
            each(Piece::Broken(&[], Reason::Truncated, self.bytes.len()));
        }
    }

    /// Moves past white space, commas and the brackets of arrays; false at the end.
    fn skip_glue(&mut self) -> bool {
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b',' | b'}' => {}
                b'[' => self.open += 1,
                b']' => self.open -= 1,
                _ => return true,
            }
            self.at += 1;
        }
        false
    }

    /// Where something that is no object ends: before the next object of the same line (a `null` among records), else with the line.
    fn end_of_garbage(&self, start: usize) -> usize {
        let end = self.line_end(start);
        let line = &self.bytes[start..end];
        let before_object = |at: &usize| line[..*at].trim_ascii_end().ends_with(b",");
        memchr::memchr_iter(b'{', line).take(64).find(before_object).map_or(end, |at| start + at)
    }

    /// Where the first element of `{"Records":[` stands, if this is one.
    fn records_array(&self, start: usize) -> Option<usize> {
        let mut rest = &self.bytes[start + 1..];
        for token in [&b"\"Records\""[..], b":", b"["] {
            rest = rest.trim_ascii_start().strip_prefix(token)?;
        }
        Some(self.bytes.len() - rest.len())
    }

    fn object(&mut self, start: usize, each: &mut impl FnMut(Piece<'a>)) {
        let (end, reason) = match self.end_of(start) {
            End::At(end) => {
                each(Piece::Object(&self.bytes[start..end], start));
                self.at = end;
                return;
            }
            End::TooDeep(end) => (end, Reason::TooDeep),
            End::TooLarge(end) => (end, Reason::TooLarge),
            End::Cut(end) => (end, Reason::Truncated),
        };
        self.failures += 1;
        each(Piece::Broken(&self.bytes[start..end], reason, start));
        self.at = end;
    }

    /// Finds the bracket that closes the one at `start`, minding strings. Iterative: no nesting can overflow a stack.
    fn end_of(&self, start: usize) -> End {
        let bytes = self.bytes;
        // An OTLP request is a wrapper: its spans are judged one by one, so that one of them costs itself only.
        let wrapper = [&b"\"resourceSpans\""[..], b"\"resourceLogs\""].iter().any(|mark| bytes[start + 1..].trim_ascii_start().starts_with(mark));
        let (most_bytes, most_depth) = if wrapper { (limits::MESSAGE_BYTES, limits::WRAPPER_NESTING) } else { (limits::RECORD_BYTES, limits::NESTING) };
        let (mut depth, mut deepest, mut at) = (0usize, 0usize, start);
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'{' | b'[' => {
                    depth += 1;
                    deepest = deepest.max(depth);
                }
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        return match at + 1 {
                            end if end - start > most_bytes => End::TooLarge(end),
                            end if deepest > most_depth => End::TooDeep(end),
                            end => End::At(end),
                        };
                    }
                }
                b'"' => match string_end(bytes, at + 1) {
                    Ok(end) => at = end - 1,
                    Err(newline_or_end) => return End::Cut(newline_or_end),
                },
                b'\n' if self.cut_before(start, at) => return End::Cut(at),
                _ => {}
            }
            at += 1;
        }
        End::Cut(if self.failures >= PATIENCE { self.line_end(start) } else { self.resync(start) })
    }

    /// Whether the line break at `at`, inside a value, is where a cut-off line meets the next record.
    fn cut_before(&self, start: usize, at: usize) -> bool {
        if self.failures >= PATIENCE {
            return true;
        }
        // Only where a record could start is the text before it looked at, and of that only its last line.
        if self.bytes.get(at + 1) != Some(&b'{') {
            return false;
        }
        let before = self.bytes[start.max(at.saturating_sub(64))..at].trim_ascii_end().last();
        !matches!(before, Some(b'[' | b',' | b':' | b'{'))
    }

    /// Where to go on after a value that never ends: at the next thing that looks like a record of its own.
    fn resync(&self, start: usize) -> usize {
        let rest = &self.bytes[start + 1..];
        let next = [&b"\n{"[..], b"{\"eventVersion\""].iter().filter_map(|mark| memchr::memmem::find(rest, mark)).min();
        next.map_or(self.bytes.len(), |found| start + 1 + found)
    }

    fn line_end(&self, start: usize) -> usize {
        memchr::memchr(b'\n', &self.bytes[start..]).map_or(self.bytes.len(), |length| start + length)
    }
}

/// The byte behind the closing quote; or, for a string that a line break or the end cuts off, that place.
fn string_end(bytes: &[u8], mut at: usize) -> Result<usize, usize> {
    let from = at;
    while let Some(found) = memchr2(b'"', b'\\', &bytes[at..]) {
        at += found;
        if bytes[at] == b'"' {
            // A raw line break is not allowed inside a JSON string: the string was cut there.
            return match memchr::memchr(b'\n', &bytes[from..at]) {
                Some(newline) => Err(from + newline),
                None => Ok(at + 1),
            };
        }
        at += 2;
        if at > bytes.len() {
            break;
        }
    }
    Err(memchr::memchr(b'\n', &bytes[from.min(bytes.len())..]).map_or(bytes.len(), |newline| from + newline))
}

/// The parts of the known wrappers; the format's own fields are not looked at.
#[derive(Deserialize)]
struct Wrapper<'a> {
    #[serde(borrow, default, rename = "Records")]
    records: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "detail-type")]
    detail_type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    detail: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "messageType")]
    message_type: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "logEvents")]
    log_events: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "Events")]
    events: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "CloudTrailEvent")]
    cloudtrail_event: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "resourceSpans")]
    resource_spans: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "resourceLogs")]
    resource_logs: Option<&'a RawValue>,
}

/// One resource of an OTLP request, then one scope of it.
#[derive(Deserialize)]
struct OtlpGroup<'a> {
    #[serde(borrow, default)]
    resource: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "scopeSpans", alias = "instrumentationLibrarySpans", alias = "scopeLogs")]
    scopes: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OtlpScope<'a> {
    #[serde(borrow, default, alias = "instrumentationLibrary")]
    scope: Option<&'a RawValue>,
    #[serde(borrow, default, alias = "logRecords")]
    spans: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct LogEvent<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
}

/// One search each: all of them hold a quote, and an automaton over them would stop at every quote of the record.
static WRAPPER_MARKS: LazyLock<[Finder<'static>; 7]> = LazyLock::new(|| {
    ["\"detail\"", "\"logEvents\"", "\"CloudTrailEvent\"", "\"Records\"", "\"Events\"", "\"resourceSpans\"", "\"resourceLogs\""].map(Finder::new)
});

/// What a wrapper held.
pub enum Peeled<'a> {
    /// No wrapper: the record itself.
    Bare,
    /// JSON text inside: borrowed when it stood there as JSON, owned when it was a string.
    Inside(Vec<Cow<'a, str>>),
    /// A wrapper with nothing in it that could be a row, such as CloudWatch's control message.
    Nothing,
}

/// Takes one wrapper off: EventBridge `detail`, CloudWatch Logs `logEvents`, `LookupEvents` results, a nested `Records`.
pub fn peel<'a>(text: &'a str) -> Peeled<'a> {
    // Cheaper than a parse, and true of nearly every bare CloudTrail record.
    if text.starts_with("{\"eventVersion\"") || !WRAPPER_MARKS.iter().any(|mark| mark.find(text.as_bytes()).is_some()) {
        return Peeled::Bare;
    }
    let Ok(wrapper) = serde_json::from_str::<Wrapper>(text) else { return Peeled::Bare };
    if let (Some(_), Some(detail)) = (wrapper.detail_type, wrapper.detail) {
        return Peeled::Inside(vec![json_or_string(detail)]);
    }
    if let (Some(_), Some(events)) = (wrapper.message_type, wrapper.log_events) {
        // Each event alone: one that cannot be read is handed on as it is, to be refused by name.
        let Ok(events) = serde_json::from_str::<Vec<&RawValue>>(events.get()) else { return Peeled::Bare };
        let message = |event: &'a RawValue| serde_json::from_str::<LogEvent>(event.get()).map_or(Cow::Borrowed(event.get()), |event| event.message);
        return if events.is_empty() { Peeled::Nothing } else { Peeled::Inside(events.into_iter().map(message).collect()) };
    }
    for (groups, name) in [(wrapper.resource_spans, "span"), (wrapper.resource_logs, "logRecord")] {
        if let Some(groups) = groups {
            let records = otlp(groups, name);
            return if records.is_empty() { Peeled::Nothing } else { Peeled::Inside(records) };
        }
    }
    if let Some(event) = wrapper.cloudtrail_event {
        return Peeled::Inside(vec![json_or_string(event)]);
    }
    match wrapper.records.or(wrapper.events).and_then(|list| serde_json::from_str::<Vec<&RawValue>>(list.get()).ok()) {
        Some(list) if list.is_empty() => Peeled::Nothing,
        Some(list) => Peeled::Inside(list.into_iter().map(json_or_string).collect()),
        None => Peeled::Bare,
    }
}

/// Each span or log record of an OTLP request with its resource and scope. What cannot be read is handed on as it is, to be refused by name.
fn otlp<'a>(groups: &'a RawValue, name: &str) -> Vec<Cow<'a, str>> {
    fn list(value: &RawValue) -> Option<Vec<&RawValue>> {
        serde_json::from_str(value.get()).ok()
    }
    let (mut records, mut bytes) = (Vec::new(), 0);
    let Some(parts) = list(groups) else { return vec![Cow::Borrowed(groups.get())] };
    for part in parts {
        let group = serde_json::from_str::<OtlpGroup>(part.get()).ok();
        let Some((scopes, group)) = group.and_then(|group| Some((group.scopes.map_or(Some(Vec::new()), list)?, group))) else {
            records.push(Cow::Borrowed(part.get()));
            continue;
        };
        let shared = |value: Option<&'a RawValue>| value.map(RawValue::get).filter(|text| text.len() <= limits::OTLP_SHARED_BYTES).unwrap_or("null");
        let resource = shared(group.resource);
        for scoped in scopes {
            let scope = serde_json::from_str::<OtlpScope>(scoped.get()).ok();
            let Some((items, scope)) = scope.and_then(|scope| Some((scope.spans.map_or(Some(Vec::new()), list)?, scope))) else {
                records.push(Cow::Borrowed(scoped.get()));
                continue;
            };
            let scope = scope.scope.map(RawValue::get).filter(|text| text.len() <= limits::OTLP_SHARED_BYTES).unwrap_or("null");
            for item in items {
                bytes += resource.len() + scope.len() + item.get().len();
                if bytes > limits::PEELED_BYTES {
                    // Told as one reject; what was peeled so far is kept.
                    records.push(Cow::Borrowed("{\"the rest of this request\":\"is larger than any honest one\"}"));
                    return records;
                }
                records.push(Cow::Owned(format!("{{\"resource\":{resource},\"scope\":{scope},\"{name}\":{}}}", item.get())));
            }
        }
    }
    records
}

fn json_or_string(value: &RawValue) -> Cow<'_, str> {
    let text = value.get();
    if !text.starts_with('"') {
        return Cow::Borrowed(text);
    }
    serde_json::from_str::<Cow<str>>(text).unwrap_or(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(text: &str) -> (Vec<String>, Vec<Reason>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        split(text.as_bytes(), |piece| match piece {
            Piece::Object(bytes, _) => good.push(String::from_utf8_lossy(bytes).into_owned()),
            Piece::Broken(_, reason, _) => bad.push(reason),
        });
        (good, bad)
    }

    #[test]
    fn every_layout_gives_the_same_records() {
        for text in [
            "{\"a\":1}\n{\"b\":[2]}\n",
            "[{\"a\":1},{\"b\":[2]}]",
            "{\"a\":1}{\"b\":[2]}",
            "{ \"Records\" : [ {\"a\":1},\n {\"b\":[2]} ] }",
            "[\n{\"a\":1},\n{\"b\":[2]}\n]",
        ] {
            assert_eq!(objects(text), (vec!["{\"a\":1}".into(), "{\"b\":[2]}".into()], vec![]), "{text}");
        }
    }

    #[test]
    fn a_broken_neighbour_costs_nothing_else() {
        let (good, bad) = objects("{\"a\":1}\n{\"cut\":\"off\n{\"b\":2}\n{\"cut\":3\n{\"c\":3}\nnonsense\n{\"d\":4}");
        assert_eq!(good, ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}", "{\"d\":4}"]);
        assert_eq!(bad, [Reason::Truncated, Reason::Truncated, Reason::NotJson]);
    }

    #[test]
    fn a_truncated_delivery_file_keeps_its_whole_records() {
        let (good, bad) = objects("{\"Records\":[{\"a\":1},{\"b\":2},{\"c\":");
        assert_eq!(good.len(), 2);
        assert_eq!(bad, [Reason::Truncated, Reason::Truncated]);
        let (good, bad) = objects("{\"Records\":[{\"a\":1},");
        assert_eq!((good.len(), bad), (1, vec![Reason::Truncated]), "cut between two records");
    }

    #[test]
    fn what_is_no_object_costs_itself_only() {
        let (good, bad) = objects("{\"Records\":[{\"a\":1},null,{\"b\":2},5,\"x\", {\"c\":3}]}");
        assert_eq!((good.len(), bad.len()), (3, 2));
    }

    #[test]
    fn a_hundred_thousand_brackets_are_one_reject() {
        let deep = format!("{{\"a\":{}{}}}\n{{\"b\":1}}", "[".repeat(100_000), "]".repeat(100_000));
        let (good, bad) = objects(&deep);
        assert_eq!((good.len(), bad), (1, vec![Reason::TooDeep]));
    }
}
