//! The one way to declare a table.

/// Declares one table as a module: an index constant per column, `COLUMNS` and `TABLE`.
macro_rules! table {
    ($module:ident, $doc:literal, max_delay: $delay:expr, looked_up_by: $looked_up:expr,
     { $($index:ident $name:ident: $kind:ident $meaning:literal,)* }) => {
        #[doc = $doc]
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        pub mod $module {
            use super::*;
            enum Index { $($index),* }
            $(#[doc = $meaning] pub const $index: usize = Index::$index as usize;)*
            pub static COLUMNS: &[Column] = &[
                $(Column { name: stringify!($name), kind: Kind::$kind, doc: $meaning }),*
            ];
            pub static TABLE: Table = Table {
                name: stringify!($module),
                doc: $doc,
                columns: COLUMNS,
                max_delay: $delay,
                looked_up_by: $looked_up,
                schema: LazyLock::new(|| schema_of(COLUMNS)),
            };
        }
    };
    // The same with the system columns that every stream row carries in front.
    (stream $module:ident, $doc:literal, max_delay: $delay:expr, looked_up_by: $looked_up:expr,
     { $($index:ident $name:ident: $kind:ident $meaning:literal,)* }) => {
        table!($module, $doc, max_delay: $delay, looked_up_by: $looked_up, {
            EVENT_TIME event_time: Time "When it happened, as the log says. A time in the future of `append_time` is replaced by it and flagged.",
            APPEND_TIME append_time: Time "When the row became readable: Kafka's append time, a delivery file's minute, else the event time.",
            EVENT_ID event_id: Text "The log's own id of the event, else a hash of the record. Two rows with one id are one event.",
            TOPIC topic: Word "Kafka topic or file that the row came from.",
            PARTITION partition: Int "Kafka partition; 0 for files.",
            OFFSET offset: Int "Kafka offset; for files the line on which the record starts.",
            RECORD record: Int "Number of the record inside its message, from 0.",
            LATE late: Bool "Appended later after the event than the table's maximum delay. Late rows never take part in joins and counts live.",
            FLAGS flags: Word "What had to be repaired, comma-separated: `future_time`, `bad_type:FIELD`, `duplicate_key:FIELD`, `invalid_utf8`, …",
            $($index $name: $kind $meaning,)*
            RAW raw: Text "The record as text, secrets replaced by fingerprints.",
        });
    };
}
