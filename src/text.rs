//! Text that strangers wrote, on its way to a person: onto a terminal, or into a command to be pasted.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text with its control characters visible, as psql shows them (`\x1B`): none may colour, move or write the clipboard of the
/// terminal that it is shown on, and no line break may make a row of its own.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 3);
    for c in text.chars() {
        match c.is_control() {
            true => drop(write!(shown, "\\x{:02X}", u32::from(c))),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// The same for a text that has lines of its own, such as an error's.
pub fn visible_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

/// Whether it is no more than a word wherever a command has it: nothing that a shell, SQL or an option's parser takes for its own.
pub fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('-') && text.chars().all(|c| c.is_alphanumeric() || "-_./:@+=".contains(c))
}

/// The text as one word of a shell's line: as it is where it is plain, else in quotes.
pub fn shell_word(text: &str) -> Cow<'_, str> {
    if is_plain(text) { Cow::Borrowed(text) } else { Cow::Owned(format!("'{}'", text.replace('\'', "'\\''"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_seen_and_do_nothing() {
        assert_eq!(visible("user/\u{1b}]52;c;eA==\u{7}\nrow\u{9b}2J\u{7f} é"), "user/\\x1B]52;c;eA==\\x07\\x0Arow\\x9B2J\\x7F é");
        assert!(matches!(visible("arn:aws:iam::1:user/é"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_word_of_a_command_is_one_word() {
        for (text, word) in [("a/b.c", "a/b.c"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("-x", "'-x'"), ("", "''"), ("$(x)", "'$(x)'")] {
            assert_eq!(shell_word(text), word);
        }
        assert!(!is_plain("*") && !is_plain("--profile") && is_plain("AKIA…".trim_end_matches('…')));
    }
}
