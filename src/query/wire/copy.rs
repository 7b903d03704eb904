//! `COPY (question) TO STDOUT`: how ADBC fetches answers, and psql's `\copy` writes files.

use bytes::{Buf, BytesMut};
use datafusion::sql::sqlparser::ast::{CopyLegacyCsvOption, CopyLegacyOption, CopyOption, CopySource, CopyTarget, Statement as Ast};
use futures::{Sink, SinkExt};
use pgwire::api::portal::Format as Sent;
use pgwire::api::results::{Response, Tag};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyOutResponse};
use pgwire::messages::data::DataRow;

use super::rows::Encoded;

/// Signature, flags and the length of an extension: what a binary copy begins with.
const BINARY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// A row of minus one values: the end of a binary copy.
const BINARY_END: &[u8] = &[0xff, 0xff];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Csv,
    Binary,
}

/// A question whose answer is copied out.
#[derive(Clone, Debug)]
pub struct Copy {
    pub sql: String,
    format: Format,
    has_header: bool,
    delimiter: char,
    null: String,
}

impl Copy {
    /// Reads the statement; none where it is no `COPY` that only reads.
    ///
    /// # Errors
    /// It asks for what is not done here.
    pub fn of(ast: &Ast) -> Option<Result<Self, String>> {
        let Ast::Copy { source, to, target, options, legacy_options, .. } = ast else { return None };
        if !to || !matches!(target, CopyTarget::Stdout) {
            return None;
        }
        let sql = match source {
            CopySource::Query(query) => query.to_string(),
            CopySource::Table { table_name, columns } if columns.is_empty() => format!("SELECT * FROM {table_name}"),
            CopySource::Table { table_name, columns } => {
                format!("SELECT {} FROM {table_name}", columns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
        };
        Some(Self::with(sql, options, legacy_options))
    }

    fn with(sql: String, options: &[CopyOption], legacy: &[CopyLegacyOption]) -> Result<Self, String> {
        let (mut format, mut has_header, mut delimiter, mut null) = (Format::Text, false, None, None);
        for option in options {
            match option {
                CopyOption::Format(name) => {
                    format = match name.value.to_lowercase().as_str() {
                        "text" => Format::Text,
                        "csv" => Format::Csv,
                        "binary" => Format::Binary,
                        other => return Err(format!("COPY: `{other}` is no format: text, csv or binary")),
                    }
                }
                CopyOption::Header(header) => has_header = *header,
                CopyOption::Delimiter(own) => delimiter = Some(*own),
                CopyOption::Null(own) => null = Some(own.clone()),
                CopyOption::Encoding(name) if name.eq_ignore_ascii_case("utf8") || name.eq_ignore_ascii_case("utf-8") => {}
                CopyOption::Quote('"') | CopyOption::Escape('"') => {}
                other => return Err(format!("COPY: {other} is not done here")),
            }
        }
        for option in legacy {
            match option {
                CopyLegacyOption::Binary => format = Format::Binary,
                CopyLegacyOption::Header => has_header = true,
                CopyLegacyOption::Delimiter(own) => delimiter = Some(*own),
                CopyLegacyOption::Null(own) => null = Some(own.clone()),
                CopyLegacyOption::Csv(own) => {
                    format = Format::Csv;
                    for option in own {
                        match option {
                            CopyLegacyCsvOption::Header => has_header = true,
                            CopyLegacyCsvOption::Quote('"') | CopyLegacyCsvOption::Escape('"') => {}
                            other => return Err(format!("COPY: {other} is not done here")),
                        }
                    }
                }
                other => return Err(format!("COPY: {other} is not done here")),
            }
        }
        let delimiter = delimiter.unwrap_or(if format == Format::Csv { ',' } else { '\t' });
        if ['\n', '\r', '"', '\\'].contains(&delimiter) {
            return Err("COPY: a delimiter is one character, and no quote, backslash or line end".into());
        }
        let null = null.unwrap_or_else(|| if format == Format::Csv { String::new() } else { "\\N".into() });
        Ok(Self { sql, format, has_header, delimiter, null })
    }

    /// In which format values are to be encoded.
    pub fn sent(&self) -> Sent {
        if self.format == Format::Binary { Sent::UnifiedBinary } else { Sent::UnifiedText }
    }

    /// Sends an answer, and says how many rows it has. pgwire would count messages, and give an error of ours the client's message for giving up.
    ///
    /// # Errors
    /// The client has gone, or is slow beyond patience.
    pub async fn send<C>(&self, client: &mut C, answer: Encoded) -> PgWireResult<Response>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send,
        PgWireError: From<C::Error>,
    {
        let is_binary = self.format == Format::Binary;
        let columns = answer.fields.len();
        let begin = CopyOutResponse::new(i8::from(is_binary), columns.try_into().unwrap_or(i16::MAX), vec![i16::from(is_binary); columns]);
        client.feed(PgWireBackendMessage::CopyOutResponse(begin)).await?;
        if self.has_header && !is_binary {
            let header = self.line(answer.fields.iter().map(|field| Some(field.name().as_bytes())));
            client.feed(PgWireBackendMessage::CopyData(header)).await?;
        }
        let count = answer.rows.len();
        let _until_sent = answer.held();
        // As PostgreSQL does, the head of a binary copy comes with its first row: ADBC expects them together.
        let mut head = BINARY_HEAD;
        for row in answer.rows {
            let data = if is_binary { binary(std::mem::take(&mut head), &row) } else { self.line(values(&row)?.into_iter()) };
            client.feed(PgWireBackendMessage::CopyData(data)).await?;
        }
        if is_binary {
            client.feed(PgWireBackendMessage::CopyData(CopyData::new([head, BINARY_END].concat().into()))).await?;
        }
        client.feed(PgWireBackendMessage::CopyDone(CopyDone::new())).await?;
        Ok(Response::Execution(Tag::new("COPY").with_rows(count)))
    }

    fn line<'v>(&self, values: impl Iterator<Item = Option<&'v [u8]>>) -> CopyData {
        let mut line = BytesMut::new();
        let mut delimiter = [0; 4];
        let delimiter = self.delimiter.encode_utf8(&mut delimiter).as_bytes();
        for (number, value) in values.enumerate() {
            if number > 0 {
                line.extend_from_slice(delimiter);
            }
            match value {
                None => line.extend_from_slice(self.null.as_bytes()),
                Some(value) if self.format == Format::Csv => self.quoted(value, delimiter, &mut line),
                Some(value) => escaped(value, delimiter, &mut line),
            }
        }
        line.extend_from_slice(b"\n");
        CopyData::new(line.freeze())
    }

    /// A value of CSV: in quotes where it could be taken for something else, a null included.
    fn quoted(&self, value: &[u8], delimiter: &[u8], line: &mut BytesMut) {
        let special = |byte: &u8| [b'"', b'\n', b'\r'].contains(byte);
        if !value.iter().any(special) && memchr::memmem::find(value, delimiter).is_none() && value != self.null.as_bytes() && value != b"\\." {
            line.extend_from_slice(value);
            return;
        }
        line.extend_from_slice(b"\"");
        for byte in value {
            if *byte == b'"' {
                line.extend_from_slice(b"\"");
            }
            line.extend_from_slice(&[*byte]);
        }
        line.extend_from_slice(b"\"");
    }
}

/// A value of the text format.
fn escaped(value: &[u8], delimiter: &[u8], line: &mut BytesMut) {
    let mut rest = value;
    while let Some(byte) = rest.first() {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            _ if rest.starts_with(delimiter) => {
                line.extend_from_slice(b"\\");
                line.extend_from_slice(delimiter);
                rest = &rest[delimiter.len()..];
                continue;
            }
            other => line.extend_from_slice(&[*other]),
        }
        rest = &rest[1..];
    }
}

fn binary(head: &[u8], row: &DataRow) -> CopyData {
    let mut tuple = BytesMut::with_capacity(head.len() + row.data.len() + 2);
    tuple.extend_from_slice(head);
    tuple.extend_from_slice(&row.field_count.to_be_bytes());
    tuple.extend_from_slice(&row.data);
    CopyData::new(tuple.freeze())
}

/// The values of a row as the wire has them: a length and so many bytes, or minus one for a null.
fn values(row: &DataRow) -> PgWireResult<Vec<Option<&[u8]>>> {
    let cut = || PgWireError::ApiError("a row ends within a value".into());
    let mut rest: &[u8] = &row.data;
    let mut values = Vec::with_capacity(usize::from(row.field_count.unsigned_abs()));
    while !rest.is_empty() {
        let length = rest.try_get_i32().map_err(|_| cut())?;
        let Ok(length) = usize::try_from(length) else {
            values.push(None);
            continue;
        };
        let (value, after) = rest.split_at_checked(length).ok_or_else(cut)?;
        values.push(Some(value));
        rest = after;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    fn read(sql: &str) -> Option<Result<Copy, String>> {
        Copy::of(&Parser::parse_sql(&PostgreSqlDialect {}, sql).expect("parses").remove(0))
    }

    fn copy(sql: &str) -> Result<Copy, String> {
        read(sql).expect("a copy")
    }

    fn line(copy: &Copy, values: &[Option<&str>]) -> String {
        String::from_utf8(copy.line(values.iter().map(|value| value.map(str::as_bytes))).data.to_vec()).expect("text")
    }

    #[test]
    fn values_are_told_from_nulls_and_delimiters() {
        let text = copy("COPY (SELECT 1) TO STDOUT").expect("good");
        assert_eq!(line(&text, &[Some("a\tb\\N\n"), None, Some("")]), "a\\tb\\\\N\\n\t\\N\t\n");
        let csv = copy("COPY (SELECT a FROM b) TO STDOUT CSV HEADER").expect("good");
        assert!(csv.has_header && csv.sql == "SELECT a FROM b");
        assert_eq!(line(&csv, &[Some("a,b"), None, Some(""), Some("say \"so\"\r"), Some("ü")]), "\"a,b\",,\"\",\"say \"\"so\"\"\r\",ü\n");
        let own = copy("COPY (SELECT 1) TO STDOUT WITH (FORMAT text, DELIMITER '|', NULL '-')").expect("good");
        assert_eq!(line(&own, &[Some("a|b"), None]), "a\\|b|-\n");
    }

    #[test]
    fn what_writes_or_is_not_done_is_refused() {
        for sql in ["COPY cloudtrail FROM STDIN", "COPY (SELECT 1) TO '/etc/passwd'", "COPY (SELECT 1) TO PROGRAM 'sh'", "SELECT 1"] {
            assert!(read(sql).is_none(), "{sql}");
        }
        for (sql, word) in [("COPY (SELECT 1) TO STDOUT (FORMAT parquet)", "no format"), ("COPY (SELECT 1) TO STDOUT (FORMAT csv, QUOTE '''')", "not done")] {
            let refused = copy(sql).expect_err(sql);
            assert!(refused.contains(word), "{sql}: {refused}");
        }
    }
}
