//! Knowing credentials: recognise, classify, decode, replace.
//!
//! Recognition is one aho-corasick pass over a handful of marks, then an anchored check at each mark: the mark alone
//! proves nothing, and a check without a mark is never run. The boundaries fit prose and compact JSON alike.

mod kinds;

use std::borrow::Cow;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::secret::Fingerprinter;

use kinds::KINDS;

/// What kind of credential a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredentialKind {
    /// Name used in `credential_kind`.
    pub name: &'static str,
    /// `long_lived`, `session`, `bearer` or `provider`.
    pub class: &'static str,
    mark: &'static str,
    /// Characters that belong to the secret.
    alphabet: Alphabet,
    /// How many of them there are after the mark (for values: in all), at least and at most.
    length: (usize, usize),
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alphabet {
    /// A–Z and 2–7, with 0, 1, 8 and 9 let through: anonymised ids carry them.
    KeyId,
    Alphanumeric,
    Hex,
    /// Letters, digits, `-` and `_`.
    Token,
    /// The same with `.` and `~`.
    TokenDot,
    /// Letters, digits, `+`, `/`, `=`.
    Base64,
    /// What stands behind `Bearer`: RFC 6750's characters.
    Bearer,
    /// A value of a URL's query, percent-encoded.
    UrlValue,
    /// The user and password part of a URL.
    UrlUser,
    /// A JSON string: everything up to the closing quote.
    JsonString,
}

/// How the mark lies to the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The mark is the beginning of the secret.
    Prefix,
    /// The mark is a JSON key, the secret its value.
    JsonKey,
    /// The mark is the name of a setting: `NAME=value`, `"NAME": "value"`, `NAME value`. Its value must look random.
    Setting,
    /// The mark stands inside, with so many characters in front of it.
    Inner(usize, usize),
    /// `-----BEGIN … PRIVATE KEY-----` up to its end.
    Pem,
    /// `kind: Secret` of Kubernetes: what follows `data:` up to the end of the document.
    Manifest,
    /// Three base64url parts.
    Jwt,
    /// `://user:password@`.
    UrlPassword,
}

static MARKS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let mut builder = AhoCorasick::builder();
    builder.match_kind(MatchKind::LeftmostFirst).kind(Some(AhoCorasickKind::DFA));
    builder.build(KINDS.iter().map(|kind| kind.mark)).expect("a fixed list of short marks")
});

/// A secret found in a text: its kind and its byte range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    pub kind: &'static CredentialKind,
    pub range: std::ops::Range<usize>,
}

/// Every secret in the text. Access key ids are identifiers, not secrets, and are not reported here.
pub fn find(text: &str) -> impl Iterator<Item = Hit> + '_ {
    MARKS.find_iter(text).filter_map(move |mark| {
        let kind = &KINDS[mark.pattern().as_usize()];
        kind.check(text.as_bytes(), mark.start(), mark.end()).map(|range| Hit { kind, range })
    })
}

impl CredentialKind {
    /// The range of the secret, if the mark at these bytes is one's.
    fn check(&self, bytes: &[u8], start: usize, end: usize) -> Option<std::ops::Range<usize>> {
        // One byte past the maximum decides; without a bound a text of marks alone would cost its square.
        let fits = |from: usize, first: usize| {
            let length = self.alphabet.run(&bytes[first..], self.length.1 + 1);
            (self.length.0..=self.length.1).contains(&length).then_some(from..first + length)
        };
        match self.place {
            Place::Prefix => starts_apart(bytes, start).then(|| fits(start, end)).flatten(),
            Place::JsonKey => {
                // `"key": "value"`, the same once more inside a JSON string (`\"key\":\"value\"`), as Python prints it
                // (`'key': 'value'`), as YAML (`key: value`), as XML (`<key>value`).
                let glue = bytes[end..].iter().take(16).take_while(|b| b.is_ascii_whitespace() || b"\"':=>\\".contains(b)).count();
                let between = &bytes[end..end + glue];
                if !between.iter().any(|b| b":=>".contains(b)) {
                    return None;
                }
                let first = end + glue;
                let length = match between.last() {
                    Some(b'"') => self.alphabet.run(&bytes[first..], usize::MAX),
                    Some(b'\'') => bytes[first..].iter().take_while(|b| !b"'\"\\".contains(b)).count(),
                    _ => bytes[first..].iter().take_while(|b| b.is_ascii_graphic() && !b"\"'\\<,;}".contains(b)).count(),
                };
                (length >= self.length.0).then_some(first..first + length)
            }
            Place::Setting => {
                let glue = bytes[end..].iter().take(8).take_while(|b| b" \t=:\"'\\".contains(b)).count();
                let first = end + glue;
                // A mark that ends in white space brings its own separation.
                let separated = glue > 0 || self.mark.ends_with([' ', '=']);
                let range = separated.then(|| fits(first, first)).flatten()?;
                looks_random(&bytes[range.clone()]).then_some(range)
            }
            Place::Inner(least, most) => {
                let before = bytes[..start].iter().rev().take(most + 1).take_while(|b| self.alphabet.holds(**b) || **b == b'~' || **b == b'.').count();
                let exact = least == most;
                if before < least || (!exact && before > most) {
                    return None;
                }
                fits(start - before.min(most), end)
            }
            Place::Pem => {
                let header = &bytes[end..bytes.len().min(end + 40)];
                memchr::memmem::find(header, b"PRIVATE KEY")?;
                let body = &bytes[end..bytes.len().min(end + self.length.1)];
                // A key that is cut short is a key all the same: everything that could be its body goes.
                let mut length = memchr::memmem::find(body, b"-----END").unwrap_or_else(|| body.iter().take_while(|b| **b != b'"').count());
                // The bound may lie inside a character.
                while length > 0 && bytes.get(end + length).is_some_and(|byte| byte & 0xc0 == 0x80) {
                    length -= 1;
                }
                (length >= self.length.0).then_some(start..end + length)
            }
            Place::Manifest => {
                let window = &bytes[end..bytes.len().min(end + 4_000)];
                if window.first().is_some_and(|byte| byte.is_ascii_alphanumeric()) {
                    return None;
                }
                // `data:` and `stringData:`.
                let first = end + memchr::memmem::find(window, b"ata:")? + 4;
                let body = &bytes[first..bytes.len().min(first + self.length.1)];
                let (mut length, mut in_quotes) = (0, false);
                while length < body.len() {
                    match body[length] {
                        b'-' if body[length..].starts_with(b"---") => break,
                        // A quote of JSON text around the YAML is escaped; one of the YAML itself stands behind a colon.
                        b'"' if length > 0 && body[length - 1] == b'\\' => {}
                        b'"' if in_quotes => in_quotes = false,
                        b'"' if body[..length].trim_ascii_end().ends_with(b":") => in_quotes = true,
                        b'"' => break,
                        _ => {}
                    }
                    length += 1;
                }
                while length > 0 && bytes.get(first + length).is_some_and(|byte| byte & 0xc0 == 0x80) {
                    length -= 1;
                }
                (length >= self.length.0).then_some(first..first + length)
            }
            Place::Jwt => {
                // A header of some length first: a text of marks alone would cost its square.
                let header = bytes[end..].iter().take(16).take_while(|b| Alphabet::Token.holds(**b)).count();
                let range = (header >= 8 && starts_apart(bytes, start)).then(|| fits(start, end)).flatten()?;
                let mut parts = bytes[range.clone()].split(|b| *b == b'.');
                let claims = parts.nth(1).is_some_and(|claims| claims.starts_with(b"eyJ"));
                (claims && parts.next().is_some_and(|signature| signature.len() >= 16)).then_some(range)
            }
            Place::UrlPassword => {
                let user = self.alphabet.run(&bytes[end..], 100);
                let first = end + user + 1;
                if user == 0 || bytes.get(first - 1) != Some(&b':') {
                    return None;
                }
                let range = fits(first, first)?;
                (bytes.get(range.end) == Some(&b'@')).then_some(range)
            }
        }
    }
}

/// Whether what begins here is no continuation of a word. The `n` of an escaped line break in JSON text is none, nor are the
/// digits of `\u003e` and `%3D`.
fn starts_apart(bytes: &[u8], start: usize) -> bool {
    let Some(before) = start.checked_sub(1).map(|at| bytes[at]) else { return true };
    let word = before.is_ascii_alphanumeric() || before == b'_';
    let escape = matches!(before, b'n' | b'r' | b't') && start >= 2 && bytes[start - 2] == b'\\';
    let hex = |from: usize| bytes[from..start].iter().all(u8::is_ascii_hexdigit);
    let unicode = start >= 6 && &bytes[start - 6..start - 4] == b"\\u" && hex(start - 4);
    let percent = start >= 3 && bytes[start - 3] == b'%' && hex(start - 2);
    !word || escape || unicode || percent
}

/// Whether a value is chance rather than a word: no placeholder, no sentence, at least three bits per character.
fn looks_random(value: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    value.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let length = value.len() as f64;
    let entropy: f64 = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / length).map(|share| -share * share.log2()).sum();
    entropy >= 3.0 && value.iter().any(u8::is_ascii_digit)
}

/// Whether a credential is one that documentation prints: it opens nothing, and nobody needs to be told.
pub fn is_example(credential: &str) -> bool {
    let upper = credential.to_ascii_uppercase();
    upper.contains("EXAMPLE") || upper.contains("XXXXXX") || upper.contains("000000000000") || upper.contains("CHANGEME")
}

impl Alphabet {
    fn holds(self, byte: u8) -> bool {
        match self {
            Alphabet::KeyId => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Alphabet::Alphanumeric => byte.is_ascii_alphanumeric(),
            Alphabet::Hex => byte.is_ascii_hexdigit(),
            Alphabet::Token => byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_',
            Alphabet::TokenDot => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~'),
            Alphabet::Base64 => byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='),
            Alphabet::Bearer => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'+' | b'/' | b'='),
            Alphabet::UrlValue => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'%' | b'+' | b'/'),
            Alphabet::UrlUser => byte.is_ascii_graphic() && !matches!(byte, b':' | b'/' | b'@' | b'"' | b'\\' | b'<' | b'>'),
            Alphabet::JsonString => byte != b'"',
        }
    }

    /// How many bytes from the start belong to the secret.
    fn run(self, bytes: &[u8], bound: usize) -> usize {
        let length = bytes.iter().take(bound).take_while(|b| self.holds(**b)).count();
        let last = length.checked_sub(1).map(|at| bytes[at]);
        match (self, last) {
            // The backslash of a closing `\"` is not part of the value.
            (Alphabet::JsonString, Some(b'\\')) => length - 1,
            // A full stop behind a token ends the sentence.
            (Alphabet::TokenDot | Alphabet::Bearer, Some(b'.')) => length - 1,
            _ => length,
        }
    }
}

/// The text with every secret replaced by `[kind fp:…]`. Borrows when there is none, which is nearly always.
pub fn replace_secrets<'a>(text: &'a str, fingerprinter: &Fingerprinter) -> Cow<'a, str> {
    let mut out = String::new();
    let mut done = 0;
    for hit in find(text) {
        // Marks do not overlap, what they mark can: a token inside the value of a JSON key. The first one covers both.
        if hit.range.start < done {
            done = done.max(hit.range.end);
            continue;
        }
        out.push_str(&text[done..hit.range.start]);
        out.push_str(&masked(hit.kind, &text[hit.range.clone()], fingerprinter));
        done = hit.range.end;
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[done..]);
    Cow::Owned(out)
}

fn masked(kind: &CredentialKind, secret: &str, fingerprinter: &Fingerprinter) -> String {
    format!("[{} {}]", kind.name, fingerprinter.fingerprint(secret))
}

/// A credential that a text names: an access key id in clear, or what [`replace_secrets`] left of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    pub kind: &'a str,
    pub class: &'static str,
    /// Access key id, or `fp:…`.
    pub name: &'a str,
}

static NAMES: LazyLock<AhoCorasick> = LazyLock::new(|| AhoCorasick::new([" fp:", "AKIA", "ASIA", "ABIA", "ACCA"]).expect("a fixed list of short marks"));

/// The credentials in a text whose secrets have been replaced. Keys that documentation prints are left out.
pub fn named_in(text: &str) -> Vec<Named<'_>> {
    let bytes = text.as_bytes();
    let named = NAMES.find_iter(text).filter_map(|mark| {
        if mark.pattern().as_usize() == 0 {
            let name = text.get(mark.start() + 1..mark.start() + 36).filter(|_| bytes.get(mark.start() + 36) == Some(&b']'))?;
            if !name[3..].bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            // No kind has a longer name.
            let open = memchr::memrchr(b'[', &bytes[mark.start().saturating_sub(48)..mark.start()])? + mark.start().saturating_sub(48);
            let kind = &text[open + 1..mark.start()];
            let known = KINDS.iter().find(|known| known.name == kind)?;
            return Some(Named { kind, class: known.class, name });
        }
        let name = text.get(mark.start()..mark.start() + 20)?;
        let apart = starts_apart(bytes, mark.start()) && bytes.get(mark.start() + 20).is_none_or(|b| !b.is_ascii_alphanumeric());
        (apart && is_access_key_id(name)).then(|| Named { kind: "aws_access_key_id", class: class(name), name })
    });
    named.filter(|named| !is_example(named.name)).collect()
}

/// Whether this is the shape of an AWS access key id: `AKIA`/`ASIA`/`ABIA`/`ACCA` and 16 capitals or digits.
pub fn is_access_key_id(text: &str) -> bool {
    text.len() == 20 && matches!(&text.as_bytes()[..4], b"AKIA" | b"ASIA" | b"ABIA" | b"ACCA") && text.bytes().all(|b| Alphabet::KeyId.holds(b))
}

/// The first AWS access key id inside a text, with boundaries on both sides.
pub fn access_key_id_in(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    (0..bytes.len().saturating_sub(19)).find_map(|start| {
        let candidate = text.get(start..start + 20)?;
        let left = start == 0 || !bytes[start - 1].is_ascii_alphanumeric();
        let right = bytes.get(start + 20).is_none_or(|b| !b.is_ascii_alphanumeric());
        (left && right && is_access_key_id(candidate)).then_some(candidate)
    })
}

/// `long_lived`, `session`, `bearer`, `provider` or `unknown`: what losing it means.
pub fn class(credential: &str) -> &'static str {
    if is_access_key_id(credential) {
        return if credential.starts_with("ASIA") { "session" } else { "long_lived" };
    }
    find(credential).next().map_or("unknown", |hit| hit.kind.class)
}

/// The 12-digit account that an access key id belongs to, decoded from the id itself with no call to AWS.
///
/// Ids handed out before 2019 (`AKIAI…`, `AKIAJ…`, `ASIAI…`, `ASIAJ…`) carry no account, and neither do ids with
/// letters outside base32 (anonymised samples have them): `None`.
pub fn account_of(access_key_id: &str) -> Option<String> {
    if !is_access_key_id(access_key_id) || matches!(access_key_id.as_bytes()[4], b'I' | b'J') {
        return None;
    }
    let mut bits: u64 = 0;
    for byte in access_key_id.as_bytes()[4..14].iter() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'2'..=b'7' => byte - b'2' + 26,
            _ => return None,
        };
        bits = bits << 5 | u64::from(value);
    }
    // 50 bits read; the account is the 40 bits after the first, in the first 48.
    let account = (bits >> 2 & 0x7fff_ffff_ff80) >> 7;
    Some(format!("{account:012}"))
}

/// How a credential is named in rows and alerts: access key ids in clear, everything else as a fingerprint.
pub fn name_of(credential: &str, fingerprinter: &Fingerprinter) -> String {
    if is_access_key_id(credential) || credential.starts_with("fp:") { credential.to_owned() } else { fingerprinter.fingerprint(credential) }
}

/// The kind of the first secret in a text, if any is recognised.
pub fn kind_of(text: &str) -> Option<&'static CredentialKind> {
    find(text).next().map(|hit| hit.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_key_id_tells_its_account() {
        // Published example of the encoding: the id decodes to this account.
        assert_eq!(account_of("ASIAQNZGKIQY56JQ7WML").as_deref(), Some("029608264753"));
        assert_eq!(account_of("AKIAIOSFODNN7EXAMPLE"), None, "old ids carry no account");
        assert_eq!(account_of("ASIA6FTSFH98XNF7DFZB"), None, "outside base32");
    }

    #[test]
    fn secrets_are_found_in_prose_and_in_compact_json() {
        let key = format!("ghp_{}", "a1B2".repeat(9));
        for text in [format!("use {key}, please"), format!("{{\"t\":\"{key}\"}}"), key.clone(), format!("({key})")] {
            let masked = replace_secrets(&text, &Fingerprinter::public());
            assert!(!masked.contains(&key), "{text}");
            assert!(masked.contains("[github_token fp:"), "{masked}");
        }
    }

    #[test]
    fn a_session_token_in_a_record_is_replaced_and_the_json_stays_json() {
        let record = r#"{"credentials":{"accessKeyId":"ASIAQNZGKIQY56JQ7WML","sessionToken": "FwoGZXIvYXdzEBYaDHh4eHh4eHh4"}}"#;
        let masked = replace_secrets(record, &Fingerprinter::public());
        assert!(masked.contains("ASIAQNZGKIQY56JQ7WML") && !masked.contains("FwoGZXIv"));
        assert!(serde_json::from_str::<serde_json::Value>(&masked).is_ok());
    }

    #[test]
    fn marks_inside_marks_are_one_secret() {
        let token = format!("ghp_{}", "a1B2".repeat(9));
        for text in [
            format!("\"sessionToken\":\"{token}\",\"x\":1"),
            format!("sessionToken\\\":\\\"{token}"),
            format!("bedrock-api-key-{}/ABSK{}", "A".repeat(50), "b".repeat(120)),
            format!("\"secretAccessKey\": \"{}\"", "x".repeat(5000)),
        ] {
            let masked = replace_secrets(&text, &Fingerprinter::public());
            assert!(!masked.contains(&token) && !masked.contains("xxxx") && masked.contains("fp:"), "{text:.60} → {masked:.200}");
        }
        let hostile = "ABSK/".repeat(200_000);
        // Only its last few hundred bytes are short enough to be a key.
        assert!(replace_secrets(&hostile, &Fingerprinter::public()).len() > hostile.len() - 400);
    }

    #[test]
    fn every_kind_is_found_in_prose_json_and_settings_and_nothing_of_it_stays() {
        for kind in KINDS {
            // The shape that the table itself describes, from letters that look random.
            let pool: &[u8] = match kind.alphabet {
                Alphabet::Hex => b"3f9c1e7a5d2b8046",
                _ => b"q3Zr8Kd1Lw7Xe5Tn9Vb2",
            };
            let run = |length: usize| (0..length).map(|at| pool[(at * 7 + at / 11) % pool.len()] as char).collect::<String>();
            let body = run(kind.length.0.max(20).min(kind.length.1));
            let (secret, texts) = match kind.place {
                Place::Prefix => (body.clone(), vec![format!("{}{body}", kind.mark)]),
                Place::JsonKey => (body.clone(), vec![format!("\"{}\": \"{body}\"", kind.mark), format!("\\\"{}\\\":\\\"{body}\\\"", kind.mark)]),
                Place::Setting => (body.clone(), vec![format!("{}={body}", kind.mark), format!("\"{}\": \"{body}\"", kind.mark)]),
                Place::Inner(least, _) => (body.clone(), vec![format!("{}{}{body}", run(least), kind.mark)]),
                Place::Pem => (body.clone(), vec![format!("{}RSA PRIVATE KEY-----\\n{body}{body}{body}\\n-----END RSA PRIVATE KEY-----", kind.mark)]),
                Place::Jwt => (body.clone(), vec![format!("eyJ{body}.eyJ{body}.{body}")]),
                Place::Manifest => (
                    body.clone(),
                    vec![
                        format!("apiVersion: v1\n{}\nmetadata:\n  name: db\ndata:\n  password: {body}\n", kind.mark),
                        format!("{}\nstringData:\n  user: \"app\"\n  password: \"{body}\"\n", kind.mark),
                        format!("{}\\ndata:\\n  password: \\\"{body}\\\"", kind.mark),
                    ],
                ),
                Place::UrlPassword => (body.clone(), vec![format!("postgres://app:{body}@db.internal/x")]),
            };
            for text in texts.iter().flat_map(|t| [t.clone(), format!("use {t}, please."), format!("({t})"), format!("line\\n{t}\\nline"), format!("[{t}]")]) {
                let masked = replace_secrets(&text, &Fingerprinter::public());
                assert!(!masked.contains(&secret), "{}: {text} → {masked}", kind.name);
                assert!(named_in(&masked).iter().any(|named| named.name.starts_with("fp:")), "{}: {masked}", kind.name);
            }
        }
        let names: std::collections::BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
        assert!(names.len() >= 60, "{}", names.len());
    }

    #[test]
    fn other_spellings_of_a_secret_are_found_too() {
        let secret = "q3Zr8Kd1Lw7Xe5Tn9Vb2q3Zr8Kd1Lw7Xe5Tn9Vb2";
        let token = format!("ghp_{}", "a1B2".repeat(9));
        for text in [
            format!("{{'SecretAccessKey': '{secret}', 'x': 1}}"),
            format!("SecretAccessKey: {secret}\\nnext: 1"),
            format!("<SecretAccessKey>{secret}</SecretAccessKey>"),
            format!("authorization: bearer {secret}"),
            format!("Authorization: Bearer {secret}+/="),
            format!("Authorization: Basic {secret}"),
            format!("\"x-api-key\": \"{secret}\""),
            format!("https://s3/x?X-Amz-Security-Token={secret}%2F&a=1"),
            format!("https://blob/x?sv=1&sig={secret}%3D"),
            format!("\\u003e{token}"),
            format!("a%3D{token}"),
        ] {
            let masked = replace_secrets(&text, &Fingerprinter::public());
            assert!(!masked.contains("Zr8Kd1Lw") && !masked.contains("a1B2a1B2"), "{text} → {masked}");
        }
    }

    #[test]
    fn a_key_without_an_end_may_be_cut_inside_a_character() {
        for pad in 0..3 {
            let text = format!("-----BEGIN PRIVATE KEY-----{}{}", "a".repeat(pad), "é€😀".repeat(6_000));
            assert!(replace_secrets(&text, &Fingerprinter::public()).contains("private_key"));
        }
    }

    #[test]
    fn what_documentation_prints_and_ordinary_text_is_left_alone() {
        for text in [
            "https://example.com:8443/path@2",
            "Bearer of good news, everyone",
            "the -----BEGIN CERTIFICATE----- of it",
            "task-proj-alpha",
            "MISTRAL_API_KEY=your-key-here",
            "postgres://db.internal/x",
            "eyJhbGciOiJIUzI1NiJ9",
            "faq~question",
            "COHERE_API_KEY is not set",
            "kind: SecretStore\ndata:\n  a: bbbbbbbbbbbbbbbbbbbbbbbb",
            "kind: Secret\nmetadata: none",
        ] {
            assert_eq!(replace_secrets(text, &Fingerprinter::public()), text);
        }
        assert!(named_in("key AKIAIOSFODNN7EXAMPLE in a manual").is_empty());
        assert_eq!(named_in("see \"AKIAQNZGKIQY56JQ7WML\".")[0].name, "AKIAQNZGKIQY56JQ7WML");
    }

    #[test]
    fn a_mark_inside_a_word_or_too_short_is_nothing() {
        assert_eq!(find("shf_aaaa").count(), 0);
        assert_eq!(find("sk-ant-short").count(), 0);
    }
}
