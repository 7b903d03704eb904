//! Bytes to typed rows.
//!
//! Every record stands alone: one bad field is nulled and flagged, one bad record becomes a row of `rejects`, and its
//! neighbours are not touched. Envelopes are peeled before formats see a record; secrets are replaced before anything is kept.
//!
//! To add a log format: one file here with a [`Format`] (most build a [`draft::Draft`]), one line in [`FORMATS`], one folder of samples.

mod agentcore;
mod agentgateway;
mod anthropic;
mod azure;
mod bedrock;
mod canary;
mod cloudtrail;
mod content;
mod draft;
mod envelope;
mod exposure;
mod field;
mod langsmith;
mod mapping;
mod mcp;
mod openai;
mod opensearch;
mod otlp;
mod pgaudit;
mod price;
mod repair;
mod vertex;
mod wire;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use aho_corasick::AhoCorasick;
use arrow::record_batch::RecordBatch;

use crate::clock::Micros;
use crate::credential;
use crate::limits;
use crate::network::Networks;
use crate::secret::Fingerprinter;
use crate::table::{self, Place, Rows, Table, rejects};

pub use canary::Canary;

/// Every log format, in the order in which `auto` tries them.
pub static FORMATS: &[&dyn Format] = &[
    &otlp::Otlp,
    &cloudtrail::CloudTrail,
    &bedrock::BedrockInvocation,
    &mcp::Mcp,
    &agentgateway::AgentGateway,
    &agentcore::AgentCore,
    &openai::OpenAiAudit,
    &azure::AzureOpenAi,
    &vertex::VertexAudit,
    &anthropic::AnthropicActivity,
    &opensearch::OpenSearchAudit,
    &pgaudit::PgAudit,
    &langsmith::LangSmith,
    &exposure::Gitleaks,
    &exposure::TruffleHog,
    &exposure::GithubSecretScanning,
    &exposure::AwsHealth,
    &exposure::Operator,
];

/// One log format: turns a record into rows.
pub trait Format: Send + Sync {
    /// Name in configs, in `rejects.format` and of the sample folder.
    fn name(&self) -> &str;
    /// What it reads, in one line.
    fn doc(&self) -> &str;
    /// The tables that it fills.
    fn tables(&self) -> &[&'static Table];
    /// Whether a record of unknown origin is one of this format. Cheap, and never true of two formats.
    fn recognises(&self, text: &str) -> bool;
    /// Whether the record's business is the secret itself (a scanner's report): it gets the text as it came, and sees to it
    /// that nothing of the secret is kept. All other formats get text in which secrets are already replaced.
    fn is_about_secrets(&self) -> bool {
        false
    }
    /// Keys under which only an object makes sense: anything else there is set aside when a record is repaired.
    fn objects(&self) -> &[&str] {
        &[]
    }
    /// Appends the record's rows.
    ///
    /// # Errors
    /// The reason why nothing of it can be a row. A wrong field is no error: it is null and flagged.
    fn decode(&self, record: &Record<'_>, out: &mut Out<'_>) -> Result<(), Refusal>;
}

/// The format of that name.
pub fn format_by_name(name: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

/// Why a record was refused: a fixed list, so that it can label a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    Empty,
    BadCompression,
    NotJson,
    Truncated,
    TooDeep,
    TooLarge,
    UnknownFormat,
    MissingField,
    BadRecord,
    OtherEvent,
}

impl Reason {
    pub const ALL: [Reason; 10] = [
        Reason::Empty,
        Reason::BadCompression,
        Reason::NotJson,
        Reason::Truncated,
        Reason::TooDeep,
        Reason::TooLarge,
        Reason::UnknownFormat,
        Reason::MissingField,
        Reason::BadRecord,
        Reason::OtherEvent,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::BadCompression => "bad_compression",
            Reason::NotJson => "not_json",
            Reason::Truncated => "truncated",
            Reason::TooDeep => "too_deep",
            Reason::TooLarge => "too_large",
            Reason::UnknownFormat => "unknown_format",
            Reason::MissingField => "missing_field",
            Reason::BadRecord => "bad_record",
            Reason::OtherEvent => "other_event",
        }
    }
}

/// A refusal: the reason and the same in words.
#[derive(Debug)]
pub struct Refusal {
    pub reason: Reason,
    pub detail: String,
}

impl Refusal {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// One record, peeled and valid UTF-8.
pub struct Record<'a> {
    pub text: &'a str,
    pub place: Place,
    pub append_time: Option<Micros>,
    /// What had to be repaired so far.
    pub flags: String,
}

/// Where a format puts its rows.
pub struct Out<'a> {
    rows: &'a mut Vec<Rows>,
    pub fingerprinter: &'a Fingerprinter,
    pub networks: &'a Networks,
    keep_raw: bool,
}

impl<'a> Out<'a> {
    fn new(rows: &'a mut Vec<Rows>, settings: &'a Settings) -> Self {
        Self { rows, fingerprinter: &settings.fingerprinter, networks: &settings.networks, keep_raw: settings.keep_raw }
    }

    /// The rows of one table.
    pub fn rows(&mut self, table: &'static Table) -> &mut Rows {
        rows_of(self.rows, table)
    }

    /// The record's text, or nothing where raw text is switched off.
    pub fn raw<'t>(&self, text: &'t str) -> Option<&'t str> {
        self.keep_raw.then_some(text)
    }
}

fn rows_of<'r>(rows: &'r mut Vec<Rows>, table: &'static Table) -> &'r mut Rows {
    let index = rows.iter().position(|r| std::ptr::eq(r.table(), table)).unwrap_or_else(|| {
        rows.push(Rows::new(table));
        rows.len() - 1
    });
    &mut rows[index]
}

/// One message as a source delivers it.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub bytes: &'a [u8],
    pub topic: &'a std::sync::Arc<str>,
    pub partition: i32,
    /// Kafka offset; `None` for files, where each record is placed by its line.
    pub offset: Option<i64>,
    /// Line of the file on which the bytes start; 1 for Kafka messages.
    pub line: i64,
    pub append_time: Option<Micros>,
}

/// Keys under which reports carry secrets in clear.
static SECRET_KEYS: LazyLock<AhoCorasick> =
    LazyLock::new(|| AhoCorasick::new(["\"Secret\"", "\"Raw\"", "\"RawV2\"", "\"secret\"", "\"credential\""]).expect("a fixed list of short marks"));

/// What decoding is told once, for all messages.
#[derive(Clone)]
pub struct Settings {
    pub fingerprinter: Fingerprinter,
    pub networks: Arc<Networks>,
    /// Formats that mapping files describe; asked before the built-in ones.
    pub mappings: Vec<&'static dyn Format>,
    pub keep_raw: bool,
}

impl Settings {
    /// No files of networks, no mappings, raw text kept.
    pub fn new(fingerprinter: Fingerprinter) -> Self {
        Self { fingerprinter, networks: Arc::default(), mappings: Vec::new(), keep_raw: true }
    }
}

/// Reads mapping files. They stay for as long as the program runs, as the built-in formats do.
///
/// # Errors
/// The first file that cannot be read, or two with one name.
pub fn read_mappings(paths: &[PathBuf]) -> crate::error::Result<Vec<&'static dyn Format>> {
    let mut formats: Vec<&'static dyn Format> = Vec::new();
    for path in paths {
        let mapping: &'static mapping::Mapping = Box::leak(Box::new(mapping::Mapping::read(path)?));
        if formats.iter().any(|known| known.name() == mapping.name()) {
            return Err(crate::error::Error::user(format!("mapping {}: another one is also named `{}`", path.display(), mapping.name())));
        }
        formats.push(mapping);
    }
    Ok(formats)
}

/// Turns messages into batches of rows, one per table.
pub struct Decoder {
    /// `None` is `auto`.
    format: Option<&'static dyn Format>,
    settings: Settings,
    rows: Vec<Rows>,
    canaries: Vec<(Canary, Place)>,
    /// Records of the present message that were refused.
    refused: usize,
}

impl Decoder {
    /// A decoder for one format, or for any (`None`).
    pub fn new(format: Option<&'static dyn Format>, settings: Settings) -> Self {
        Self { format, settings, rows: Vec::new(), canaries: Vec::new(), refused: 0 }
    }

    /// Takes over what is now known of networks; rows that are already decoded keep what was.
    pub fn set_networks(&mut self, networks: &Arc<Networks>) {
        self.settings.networks = Arc::clone(networks);
    }

    /// The format that a record of unknown origin is of.
    fn recognise(&self, text: &str) -> Option<&'static dyn Format> {
        self.settings.mappings.iter().chain(FORMATS).copied().find(|format| format.recognises(text))
    }

    /// Rows held so far.
    pub fn rows(&self) -> usize {
        self.rows.iter().map(Rows::len).sum()
    }

    /// The rows so far, as one batch per table that has any.
    pub fn finish(&mut self) -> Vec<(&'static Table, RecordBatch)> {
        self.rows.iter_mut().filter(|rows| !rows.is_empty()).map(|rows| (rows.table(), rows.finish())).collect()
    }

    /// The canaries so far: of them no rows are made.
    pub fn take_canaries(&mut self) -> Vec<(Canary, Place)> {
        std::mem::take(&mut self.canaries)
    }

    /// Decodes one message: every record in it becomes rows or a reject.
    pub fn decode(&mut self, message: Message<'_>) {
        self.refused = 0;
        self.decode_records(message);
        let more = self.refused.saturating_sub(limits::REJECTS_PER_MESSAGE);
        if more > 0 {
            let offset = message.offset.unwrap_or(message.line);
            let place = Place { topic: message.topic.clone(), partition: message.partition, offset, record: i64::MAX };
            self.refused = 0;
            self.reject(b"", &place, message.append_time, &Refusal::new(Reason::BadRecord, format!("and {more} more records of this message were refused")));
        }
    }

    fn decode_records(&mut self, message: Message<'_>) {
        let mut place = Place { topic: message.topic.clone(), partition: message.partition, offset: message.offset.unwrap_or(message.line), record: 0 };
        if message.bytes.is_empty() {
            // An empty file holds no record; an empty message is one that says nothing.
            if message.offset.is_some() {
                self.reject(b"", &place, message.append_time, &Refusal::new(Reason::Empty, "no value (a tombstone or an empty message)"));
            }
            return;
        }
        if message.bytes.len() > limits::MESSAGE_BYTES && message.offset.is_some() {
            let detail = format!("message of {} MiB", message.bytes.len() >> 20);
            return self.reject(message.bytes, &place, message.append_time, &Refusal::new(Reason::TooLarge, detail));
        }
        let unpacked = match envelope::unpack(message.bytes) {
            Ok(unpacked) => unpacked,
            Err((reason, detail)) => return self.reject(message.bytes, &place, message.append_time, &Refusal::new(reason, detail)),
        };
        if let Some(kind) = self.csv_of(&unpacked) {
            return self.csv(kind, &unpacked, &place, &message);
        }
        let bound = self.format.is_some_and(|format| format.name() == otlp::Otlp.name());
        if wire::is_request(&unpacked) || (bound && !matches!(unpacked.trim_ascii_start().first(), Some(b'{' | b'['))) {
            for record in wire::records(&unpacked) {
                match record {
                    Ok(text) => self.record(&text, &place, message.append_time, String::new()),
                    Err(detail) => self.reject(&[], &place, message.append_time, &Refusal::new(Reason::Truncated, detail)),
                }
                place.record += 1;
            }
            return;
        }
        let (mut line, mut counted) = (message.line, 0usize);
        let mut seen = false;
        let mut pieces = |piece: envelope::Piece<'_>| {
            seen = true;
            let (bytes, start) = match &piece {
                envelope::Piece::Object(bytes, start) => (*bytes, *start),
                envelope::Piece::Broken(bytes, _, start) => (*bytes, *start),
            };
            if message.offset.is_none() {
                line += memchr::memchr_iter(b'\n', &unpacked[counted..start]).count() as i64;
                counted = start;
                place.offset = line;
            }
            match piece {
                envelope::Piece::Object(..) => self.object(bytes, &mut place, message.append_time),
                envelope::Piece::Broken(_, reason, _) => {
                    let detail = match reason {
                        Reason::TooDeep => format!("nested deeper than {} levels", limits::NESTING),
                        Reason::TooLarge => format!("record of {} bytes; the limit is {}", bytes.len(), limits::RECORD_BYTES),
                        Reason::Truncated if bytes.is_empty() => "ends inside a list of records: more was to come".to_owned(),
                        Reason::Truncated => "ends inside a value".to_owned(),
                        _ => "expected a JSON object".to_owned(),
                    };
                    self.reject(bytes, &place, message.append_time, &Refusal::new(reason, detail));
                }
            }
            place.record += 1;
        };
        envelope::split(&unpacked, &mut pieces);
        // `{"Records":[]}` and `[]` are valid and hold nothing; only white space is an empty message.
        if !seen && unpacked.trim_ascii().is_empty() {
            self.reject(b"", &place, message.append_time, &Refusal::new(Reason::Empty, "only white space"));
        }
    }

    fn object(&mut self, bytes: &[u8], place: &mut Place, append_time: Option<Micros>) {
        let (text, flags) = match std::str::from_utf8(bytes) {
            Ok(text) => (Cow::Borrowed(text), String::new()),
            Err(_) => (String::from_utf8_lossy(bytes), "invalid_utf8".to_owned()),
        };
        match envelope::peel(&text) {
            envelope::Peeled::Bare => self.record(&text, place, append_time, flags),
            envelope::Peeled::Nothing => {}
            envelope::Peeled::Inside(records) => {
                for (number, inner) in records.iter().enumerate() {
                    if number > 0 {
                        place.record += 1;
                    }
                    // LookupEvents wraps each event twice.
                    match envelope::peel(inner) {
                        envelope::Peeled::Inside(innermost) if innermost.len() == 1 => {
                            self.record(&innermost[0], place, append_time, flags.clone());
                        }
                        _ => self.record(inner, place, append_time, flags.clone()),
                    }
                }
            }
        }
    }

    fn record(&mut self, text: &str, place: &Place, append_time: Option<Micros>, flags: String) {
        if text.len() > limits::RECORD_BYTES {
            let refusal = Refusal::new(Reason::TooLarge, format!("record of {} bytes; the limit is {}", text.len(), limits::RECORD_BYTES));
            return self.reject(text.as_bytes(), place, append_time, &refusal);
        }
        if canary::is_canary(text) {
            return match Canary::open(text, &self.settings.fingerprinter) {
                Ok(canary) => self.canaries.push((canary, place.clone())),
                Err(refusal) => self.reject(text.as_bytes(), place, append_time, &refusal),
            };
        }
        let Some(format) = self.format.or_else(|| self.recognise(text)) else {
            let refusal = Refusal::new(Reason::UnknownFormat, "no known log format recognises this record; bind the topic to one");
            return self.reject(text.as_bytes(), place, append_time, &refusal);
        };
        // Escapes that need not be there would hide a secret from the search and give it back to the parser.
        let unescaped = without_needless_escapes(text);
        let text = unescaped.as_ref();
        let scrubbed = if format.is_about_secrets() { Cow::Borrowed(text) } else { credential::replace_secrets(text, &self.settings.fingerprinter) };
        let text = scrubbed.as_ref();
        let mut record = Record { text, place: place.clone(), append_time, flags };
        let mut out = Out::new(&mut self.rows, &self.settings);
        let refusal = match format.decode(&record, &mut out) {
            Ok(()) => return,
            Err(refusal) => refusal,
        };
        // The strict reading failed: repair what can be repaired (doubled keys, wrong types) and read once more.
        if refusal.reason == Reason::BadRecord
            && let Some(repaired) = repair::repair(text, format.objects())
        {
            for flag in &repaired.flags {
                table::flag(&mut record.flags, flag);
            }
            let record = Record { text: &repaired.text, place: place.clone(), append_time, flags: record.flags };
            match format.decode(&record, &mut out) {
                Ok(()) => return,
                Err(refusal) => return self.reject_as(format.name(), text.as_bytes(), place, append_time, &refusal),
            }
        }
        self.reject_as(format.name(), text.as_bytes(), place, append_time, &refusal);
    }

    fn reject(&mut self, bytes: &[u8], place: &Place, append_time: Option<Micros>, refusal: &Refusal) {
        let format = self.format.map_or("auto", |format| format.name());
        self.reject_as(format, bytes, place, append_time, refusal);
    }

    fn reject_as(&mut self, format: &str, bytes: &[u8], place: &Place, append_time: Option<Micros>, refusal: &Refusal) {
        self.refused += 1;
        if self.refused > limits::REJECTS_PER_MESSAGE {
            return;
        }
        // A secret that lies across the cut is replaced before the cut is made.
        let near = String::from_utf8_lossy(&bytes[..bytes.len().min(limits::REJECT_RAW_BYTES * 2)]).replace('\0', "\u{fffd}");
        let about_secrets = |text: &str| FORMATS.iter().any(|f| f.is_about_secrets() && (f.name() == format || f.recognises(text)));
        let kept = match about_secrets(&near) || SECRET_KEYS.is_match(&near) {
            true => "[withheld: a report that could not be read may hold its secret]".to_owned(),
            false => credential::replace_secrets(&near, &self.settings.fingerprinter).chars().take(limits::REJECT_RAW_BYTES).collect(),
        };
        let detail: String = credential::replace_secrets(&refusal.detail, &self.settings.fingerprinter).chars().take(limits::REJECT_DETAIL_CHARS).collect();
        let id = format!("reject:{place}");
        let rows = rows_of(&mut self.rows, &rejects::TABLE);
        rows.stamp(place, None, append_time, &id, &mut String::new());
        rows.text(rejects::FORMAT, Some(format));
        rows.text(rejects::REASON, Some(refusal.reason.name()));
        rows.text(rejects::DETAIL, Some(&detail));
        rows.int(rejects::BYTES, Some(bytes.len() as i64));
        rows.text(rejects::RAW, Some(&kept));
        rows.end_row();
    }

    /// Whether the bytes are an operator's CSV: the format says so, or `auto` meets its header line.
    fn csv_of(&self, bytes: &[u8]) -> Option<&'static dyn Format> {
        let operator: &'static dyn Format = &exposure::Operator;
        let bound = self.format.is_none_or(|format| format.name() == operator.name());
        (bound && exposure::is_csv_header(bytes)).then_some(operator)
    }

    /// Each CSV line becomes a JSON object of the header's names, and goes the way of all records.
    fn csv(&mut self, format: &'static dyn Format, bytes: &[u8], place: &Place, message: &Message<'_>) {
        let append_time = message.append_time;
        let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(bytes);
        let headers = reader.byte_headers().cloned().unwrap_or_default();
        let names: Vec<String> = headers.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        for (number, row) in reader.byte_records().enumerate() {
            let mut place = Place { record: number as i64, ..place.clone() };
            match row {
                Ok(row) => {
                    if let (Some(at), None) = (row.position(), message.offset) {
                        place.offset = message.line + at.line() as i64 - 1;
                    }
                    let object: serde_json::Map<String, serde_json::Value> =
                        names.iter().cloned().zip(row.iter().map(|v| String::from_utf8_lossy(v).into_owned().into())).collect();
                    let text = serde_json::Value::Object(object).to_string();
                    let record = Record { text: &text, place: place.clone(), append_time, flags: String::new() };
                    let mut out = Out::new(&mut self.rows, &self.settings);
                    if let Err(refusal) = format.decode(&record, &mut out) {
                        self.reject_as(format.name(), text.as_bytes(), &place, append_time, &refusal);
                    }
                }
                Err(error) => {
                    let refusal = Refusal::new(Reason::BadRecord, format!("CSV: {error}"));
                    self.reject_as(format.name(), b"", &place, append_time, &refusal);
                }
            }
        }
    }
}

/// JSON text with `\/` and `\u0041` written as what they stand for, where that is printable ASCII and no quote or backslash.
fn without_needless_escapes(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let plain = |at: usize| match bytes.get(at + 1)? {
        b'/' => Some(('/', 2)),
        b'u' => {
            let code = u8::from_str_radix(text.get(at + 2..at + 6).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?, 16).ok()?;
            (matches!(code, 0x20..=0x7e) && code != b'"' && code != b'\\').then_some((char::from(code), 6))
        }
        _ => None,
    };
    if !memchr::memchr_iter(b'\\', bytes).any(|at| matches!(bytes.get(at + 1), Some(b'/' | b'u'))) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let (mut done, mut at) = (0, 0);
    while let Some(found) = memchr::memchr(b'\\', &bytes[at..]) {
        at += found;
        match plain(at) {
            Some((character, length)) => {
                out.push_str(&text[done..at]);
                out.push(character);
                at += length;
                done = at;
            }
            // A backslash and what it escapes belong together.
            None => at += 2,
        }
        if at >= bytes.len() {
            break;
        }
    }
    out.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(out)
}

/// The id of a record whose log gives none: a hash of its canonical form (keys sorted, no white space).
pub fn hashed_id(text: &str) -> String {
    let canonical = serde_json::from_str::<serde_json::Value>(text).map_or_else(|_| text.to_owned(), |value| value.to_string());
    format!("h:{}", &blake3::hash(canonical.as_bytes()).to_hex()[..32])
}
