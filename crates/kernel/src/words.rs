//! The words of others in our own sentences.

/// Characters of somebody else's text that go into an error, a report or a log line: more is not read, and a
/// megabyte of it in each of 256 candidates would be an answer that nobody can take.
pub const WORDS_CHARS_MAX: usize = 300;

/// `text` as it may stand in a line of ours: short, and without anything that moves the cursor, ends the line
/// or turns the direction of what follows.
#[must_use]
pub fn words(text: &str) -> String {
    let shown = |c: char| if moves(c) { ' ' } else { c };
    let clean: String = text.chars().take(WORDS_CHARS_MAX).map(shown).collect();
    clean.trim().to_owned()
}

/// Control characters, the line and paragraph separators, and the marks of direction (Unicode TR 36, 2.11).
fn moves(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_short_and_stay_in_their_line() {
        assert_eq!(words(" no\r\nfake log line\u{1b}[2J "), "no  fake log line [2J");
        assert_eq!(words("a\u{202e}b\u{2028}c"), "a b c");
        assert_eq!(words("größer, 大きい"), "größer, 大きい");
        assert_eq!(words(&"é".repeat(10_000)).chars().count(), WORDS_CHARS_MAX);
    }
}
