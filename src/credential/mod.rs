//! Knowing credentials: recognise, classify, decode, replace.
//!
//! Recognition is one aho-corasick pass over a handful of marks, then an anchored check at each mark: the mark alone
//! proves nothing, and a check without a mark is never run. The boundaries fit prose and compact JSON alike.

use std::borrow::Cow;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::secret::Fingerprinter;

/// What kind of credential a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredentialKind {
    /// Name used in `credential_kind`.
    pub name: &'static str,
    /// `long_lived`, `session`, `bearer` or `provider`.
    pub class: &'static str,
    mark: &'static str,
    /// Characters after the mark that belong to the secret.
    alphabet: Alphabet,
    /// How many of them there are, at least and at most.
    length: (usize, usize),
    /// The mark itself is part of the secret (a prefix), or a JSON key whose value is the secret.
    place: MarkPlace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alphabet {
    /// A–Z and 2–7, with 0, 1, 8 and 9 let through: anonymised ids carry them.
    KeyId,
    Alphanumeric,
    /// Letters, digits, `-` and `_`.
    Token,
    /// Letters, digits, `+`, `/`, `=`.
    Base64,
    /// A JSON string: everything up to the closing quote.
    JsonString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MarkPlace {
    Prefix,
    JsonKey,
}

const fn prefix(name: &'static str, class: &'static str, mark: &'static str, alphabet: Alphabet, length: (usize, usize)) -> CredentialKind {
    CredentialKind { name, class, mark, alphabet, length, place: MarkPlace::Prefix }
}

const fn value_of(name: &'static str, class: &'static str, mark: &'static str, length: (usize, usize)) -> CredentialKind {
    CredentialKind { name, class, mark, alphabet: Alphabet::JsonString, length, place: MarkPlace::JsonKey }
}

/// The kinds that are recognised, most specific mark first where one contains another. Marks and lengths are the
/// providers' published formats.
static KINDS: &[CredentialKind] = &[
    prefix("bedrock_api_key_long", "bearer", "ABSK", Alphabet::Base64, (100, 300)),
    prefix("bedrock_api_key_short", "bearer", "bedrock-api-key-", Alphabet::Base64, (40, 2000)),
    prefix("anthropic_api_key", "provider", "sk-ant-", Alphabet::Token, (80, 120)),
    prefix("openrouter_api_key", "provider", "sk-or-v1-", Alphabet::Alphanumeric, (64, 64)),
    prefix("openai_api_key", "provider", "sk-proj-", Alphabet::Token, (40, 200)),
    prefix("openai_api_key", "provider", "sk-svcacct-", Alphabet::Token, (40, 200)),
    prefix("openai_api_key", "provider", "sk-admin-", Alphabet::Token, (40, 200)),
    prefix("huggingface_token", "provider", "hf_", Alphabet::Alphanumeric, (34, 40)),
    prefix("google_api_key", "provider", "AIza", Alphabet::Token, (35, 35)),
    prefix("groq_api_key", "provider", "gsk_", Alphabet::Alphanumeric, (52, 52)),
    prefix("xai_api_key", "provider", "xai-", Alphabet::Alphanumeric, (80, 80)),
    prefix("nvidia_api_key", "provider", "nvapi-", Alphabet::Token, (64, 64)),
    prefix("pinecone_api_key", "provider", "pcsk_", Alphabet::Token, (50, 90)),
    prefix("github_token", "provider", "ghp_", Alphabet::Alphanumeric, (36, 36)),
    prefix("github_token", "provider", "gho_", Alphabet::Alphanumeric, (36, 36)),
    prefix("github_token", "provider", "ghs_", Alphabet::Alphanumeric, (36, 36)),
    prefix("github_token", "provider", "github_pat_", Alphabet::Token, (82, 82)),
    prefix("gitlab_token", "provider", "glpat-", Alphabet::Token, (20, 60)),
    value_of("aws_session_token", "session", "sessionToken", (16, 4000)),
    value_of("aws_secret_access_key", "long_lived", "secretAccessKey", (16, 200)),
    value_of("aws_secret_access_key", "long_lived", "SecretAccessKey", (16, 200)),
    value_of("service_password", "bearer", "servicePassword", (8, 400)),
    value_of("service_password", "bearer", "serviceCredentialSecret", (8, 400)),
];

static MARKS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(KINDS.iter().map(|kind| kind.mark)).expect("a fixed list of short marks")
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
        check(text, kind, mark.start(), mark.end()).map(|range| Hit { kind, range })
    })
}

fn check(text: &str, kind: &CredentialKind, start: usize, end: usize) -> Option<std::ops::Range<usize>> {
    let bytes = text.as_bytes();
    let (from, first) = match kind.place {
        MarkPlace::Prefix => {
            let glued = start > 0 && (bytes[start - 1].is_ascii_alphanumeric() || bytes[start - 1] == b'_');
            if glued {
                return None;
            }
            (start, end)
        }
        MarkPlace::JsonKey => {
            // `"key": "value"`, or the same once more inside a JSON string: `\"key\":\"value\"`.
            let glue = bytes[end..].iter().take_while(|b| b.is_ascii_whitespace() || matches!(b, b'"' | b':' | b'\\')).count();
            let between = &bytes[end..end + glue];
            if !between.contains(&b':') || between.last() != Some(&b'"') {
                return None;
            }
            (end + glue, end + glue)
        }
    };
    // One byte past the maximum decides; without a bound a text of marks alone would cost its square.
    let bound = if kind.place == MarkPlace::JsonKey { usize::MAX } else { kind.length.1 + 1 };
    let length = kind.alphabet.run(&bytes[first..], bound);
    (length >= kind.length.0 && length < bound).then_some(from..first + length)
}

impl Alphabet {
    fn holds(self, byte: u8) -> bool {
        match self {
            Alphabet::KeyId => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Alphabet::Alphanumeric => byte.is_ascii_alphanumeric(),
            Alphabet::Token => byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_',
            Alphabet::Base64 => byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='),
            Alphabet::JsonString => byte != b'"',
        }
    }

    /// How many bytes from the start belong to the secret.
    fn run(self, bytes: &[u8], bound: usize) -> usize {
        let length = bytes.iter().take(bound).take_while(|b| self.holds(**b)).count();
        // The backslash of a closing `\"` is not part of the value.
        let escape = self == Alphabet::JsonString && length > 0 && bytes[length - 1] == b'\\';
        length - usize::from(escape)
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
    fn a_mark_inside_a_word_or_too_short_is_nothing() {
        assert_eq!(find("shf_aaaa").count(), 0);
        assert_eq!(find("sk-ant-short").count(), 0);
    }
}
