//! Every bound on what input may cost, in one place. A bound that is hit is counted, never silent.

use std::time::Duration;

/// Longest silence of a log that can be asked for (hours): what is silent is looked for in a day of rows.
pub const SILENCE_HOURS: i64 = 12;
/// Largest message taken from a source, before decompression (bytes).
pub const MESSAGE_BYTES: usize = 64 << 20;
/// Largest size that one compressed message or file chunk may unfold to (bytes). A gzip bomb stops here.
pub const UNPACKED_BYTES: usize = 256 << 20;
/// Largest single record (bytes). CloudTrail's own cap is 256 kB.
pub const RECORD_BYTES: usize = 1 << 20;
/// Largest resource or scope of an OTLP request that each of its spans is given (bytes).
pub const OTLP_SHARED_BYTES: usize = 64 << 10;
/// Most that the records peeled from one wrapper may come to (bytes).
pub const PEELED_BYTES: usize = 128 << 20;
/// Credentials told of one record.
pub const CREDENTIALS_PER_RECORD: usize = 100;
/// Largest count or size that is believed: sums of such cannot overflow.
pub const NATURAL: i64 = 1_000_000_000_000_000;
/// Deepest nesting of one record. Real CloudTrail records reach 11.
pub const NESTING: usize = 64;
/// Deepest nesting of a wrapper whose records are judged one by one.
pub const WRAPPER_NESTING: usize = 1_000;
/// How much of a refused record is kept in `rejects.raw` (bytes).
pub const REJECT_RAW_BYTES: usize = 4 << 10;
/// Refused records of one message that get a row each; the rest are counted in one.
pub const REJECTS_PER_MESSAGE: usize = 10_000;
/// Copies of one key in an object before the record is refused.
pub const DUPLICATE_KEYS: usize = 100;
/// Longest explanation in `rejects.detail` (characters).
pub const REJECT_DETAIL_CHARS: usize = 200;
/// Evidence ids kept per alert: the smallest ones, so that the choice does not depend on arrival order.
pub const ALERT_EVIDENCE: usize = 10;
/// Distinct findings counted per alert; the number shown at this bound means "at least".
pub const ALERT_FINDINGS: usize = 1000;
/// Longest SQL text taken at the query door (bytes).
pub const SQL_BYTES: usize = 64 << 10;
/// Most statements in one message of the PostgreSQL wire.
pub const SQL_STATEMENTS: usize = 32;
/// Most tokens of one query; a flat chain of some 8,000 ORs overflows the planner's stack.
pub const SQL_TOKENS: usize = 4_000;
/// Deepest bracket nesting of one query.
pub const SQL_NESTING: usize = 48;

/// What a question's sorts and joins may write to the temporary folder (bytes): a pod whose volume there is full is ended.
pub const SPILL_BYTES: u64 = 2 << 30;

/// Late rows that one sweep looks at.
pub const SWEPT_ROWS: usize = 1_000_000;

/// Kept rows that one detection looks at in one tick of the running service: some tenths of a second of work.
pub const TICK_ROWS: usize = 100_000;

/// After this, one tick of the running service begins with no other detection.
pub const TICK_TIME: Duration = Duration::from_millis(250);

/// Largest file that compacting writes (bytes of Parquet).
pub const COMPACTED_FILE: usize = 256 << 20;
/// Memory in which an hour is sorted when it is compacted; the rest goes to temporary files (bytes).
pub const COMPACTING: usize = 512 << 20;

/// Memory for footers of the archive's files that were read (bytes): some tens of kilobytes for each.
pub const FOOTERS: usize = 256 << 20;

/// Most parts of a WITH: each may double what is worked out of the former.
pub const SQL_PARTS: usize = 12;

/// A SQL connection that asks nothing for so long gives up its place.
pub const SQL_IDLE: Duration = Duration::from_secs(3_600);
/// A SQL client that reads nothing of its answer for so long is given up.
pub const SQL_UNREAD: Duration = Duration::from_secs(60);
/// Most that one function of a question makes of the rows that it looks at together (bytes).
pub const SQL_MADE: usize = 256 << 20;
/// Most relations of one question, those of each part of its WITH as often as it is named: the planner makes each of them anew.
pub const SQL_RELATIONS: usize = 500;
/// Most parts of one expression, those of each column that it uses as often as it uses it.
pub const SQL_WRITTEN_OUT: usize = 10_000;
