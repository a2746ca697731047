//! PTX text as tokens. They borrow from the text, and a lexer is a cursor that can be copied, so that the parser looks
//! ahead by cloning it.

use super::error::ParseError;
use std::fmt;

/// The most of a faulty line that an error quotes, in bytes.
const QUOTED: usize = 160;

/// One token; what stands between quotes, dots and the like is without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// `mov`, `%r1`, `$L__BB0_1`, `_`.
    Word(&'a str),
    /// `.global`, `.L2::128B`, `.2d`: the word after the dot.
    Directive(&'a str),
    /// `12`, `0x1fU`, `0f3F800000`, `1.5e-3`: as written.
    Number(&'a str),
    /// `"nounroll"`.
    Text(&'a str),
    /// An operator or bracket, of one character or two.
    Symbol(&'a str),
    /// The end of the text.
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) | Self::Number(word) | Self::Symbol(word) => write!(f, "`{}`", shorten(word)),
            Self::Directive(word) => write!(f, "`.{}`", shorten(word)),
            Self::Text(text) => write!(f, "\"{}\"", shorten(text)),
            Self::End => write!(f, "the end of the text"),
        }
    }
}

/// A place in a text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

const PAIRS: [&str; 8] = ["<<", ">>", "<=", ">=", "==", "!=", "&&", "||"];

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1 }
    }

    /// Length of the whole text in bytes.
    pub(crate) fn text_len(&self) -> usize {
        self.text.len()
    }

    /// Line number `line` of the text, for an error.
    pub(crate) fn quote(&self, line: u32) -> String {
        shorten(self.text.lines().nth(line.saturating_sub(1) as usize).unwrap_or_default().trim()).to_owned()
    }

    /// The next token, and the line on which it stands.
    pub(crate) fn next(&mut self) -> Result<(Token<'a>, u32), ParseError> {
        self.skip_blanks()?;
        let line = self.line;
        let rest = self.rest();
        let Some(&first) = rest.as_bytes().first() else { return Ok((Token::End, line)) };
        let second = rest.as_bytes().get(1).copied().unwrap_or(0);
        let token = match first {
            b'.' if is_word(second) => Token::Directive(&self.take(1 + qualified(&rest[1..]))[1..]),
            b'%' if !is_word(second) => Token::Symbol(self.take(1)),
            b'0'..=b'9' => Token::Number(self.take(number(rest))),
            _ if is_word(first) || first == b'%' => Token::Word(self.take(1 + word(&rest[1..]))),
            b'"' => match rest[1..].find(['"', '\n']) {
                Some(end) if rest.as_bytes()[1 + end] == b'"' => Token::Text(&self.take(end + 2)[1..=end]),
                _ => return Err(self.unexpected("a string without end", "a closing quote")),
            },
            _ if PAIRS.iter().any(|pair| rest.starts_with(pair)) => Token::Symbol(self.take(2)),
            b'(' | b')' | b'[' | b']' | b'{' | b'}' | b'<' | b'>' | b',' | b';' | b':' | b'@' | b'=' | b'|' | b'!'
            | b'+' | b'-' | b'*' | b'/' | b'&' | b'^' | b'~' | b'?' => Token::Symbol(self.take(1)),
            _ => {
                let found = format!("{:?}", rest.chars().next().unwrap_or_default());
                return Err(self.unexpected(found, "PTX"));
            }
        };
        Ok((token, line))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take(&mut self, length: usize) -> &'a str {
        let taken = &self.rest()[..length];
        self.at += length;
        taken
    }

    fn skip_blanks(&mut self) -> Result<(), ParseError> {
        loop {
            let rest = self.rest();
            let blank = rest.bytes().take_while(u8::is_ascii_whitespace).count();
            let skip = if blank > 0 {
                blank
            } else if rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if let Some(comment) = rest.strip_prefix("/*") {
                match comment.find("*/") {
                    Some(end) => end + 4,
                    None => return Err(self.unexpected("a comment without end", "`*/`")),
                }
            } else {
                return Ok(());
            };
            let lines = self.take(skip).bytes().filter(|&byte| byte == b'\n').count();
            self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
        }
    }

    fn unexpected(&self, found: impl Into<String>, expected: &str) -> ParseError {
        ParseError::Unexpected {
            line: self.line,
            found: found.into(),
            expected: expected.to_owned(),
            text: self.quote(self.line),
        }
    }
}

/// Whether a byte may stand inside a word.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

/// Length of the word that the text starts with.
fn word(text: &str) -> usize {
    text.bytes().take_while(|&byte| is_word(byte)).count()
}

/// Length of `word::word` that the text starts with.
fn qualified(text: &str) -> usize {
    let mut length = word(text);
    while text[length..].starts_with("::") {
        match word(&text[length + 2..]) {
            0 => break,
            more => length += 2 + more,
        }
    }
    length
}

/// Length of the number that the text starts with. What is wrong inside it (`12abc`) is left to whoever reads its value.
fn number(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut length = digits(0);
    let fraction = bytes.get(length) == Some(&b'.') && !bytes.get(length + 1).is_some_and(u8::is_ascii_alphabetic);
    if fraction {
        length += 1 + digits(length + 1);
    }
    // An exponent's sign is no word character; `0xe-1` is a subtraction and never gets here, since `x` follows its 0.
    if let [b'e' | b'E', b'+' | b'-', b'0'..=b'9', ..] = bytes[length..] {
        length += 2;
    }
    length + word(&text[length..])
}

/// The beginning of a text that may be too long for a message.
fn shorten(text: &str) -> &str {
    let end = (0..=QUOTED.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        let mut lexer = Lexer::new(text);
        let mut tokens = Vec::new();
        loop {
            match lexer.next().expect("tokens").0 {
                Token::End => return tokens,
                token => tokens.push(token),
            }
        }
    }

    #[test]
    fn words_directives_and_symbols() {
        use Token::{Directive, Number, Symbol, Word};
        assert_eq!(
            tokens("@!%p1 ld.global.L2::128B.v2 {_, $a}, [%rd1+-4];"),
            [
                Symbol("@"),
                Symbol("!"),
                Word("%p1"),
                Word("ld"),
                Directive("global"),
                Directive("L2::128B"),
                Directive("v2"),
                Symbol("{"),
                Word("_"),
                Symbol(","),
                Word("$a"),
                Symbol("}"),
                Symbol(","),
                Symbol("["),
                Word("%rd1"),
                Symbol("+"),
                Symbol("-"),
                Number("4"),
                Symbol("]"),
                Symbol(";"),
            ]
        );
        assert_eq!(tokens("a % 2 << 3"), [Word("a"), Symbol("%"), Number("2"), Symbol("<<"), Number("3")]);
        assert_eq!(
            tokens(".2d :: .a::"),
            [Directive("2d"), Symbol(":"), Symbol(":"), Directive("a"), Symbol(":"), Symbol(":")]
        );
    }

    #[test]
    fn numbers_end_where_they_should() {
        for number in ["0", "12", "0x1fU", "0b101", "0f3F800000", "1.5", "1.", "1.5e-3", "2e+10", "7e3"] {
            assert_eq!(tokens(number), [Token::Number(number)], "{number}");
        }
        assert_eq!(tokens("0xe-4"), [Token::Number("0xe"), Token::Symbol("-"), Token::Number("4")]);
        assert_eq!(tokens("16.b8"), [Token::Number("16"), Token::Directive("b8")]);
    }

    #[test]
    fn lines_are_counted_through_comments() {
        let mut lexer = Lexer::new("a // x\n/* y\n z */ b\r\n\n\"s\"");
        assert_eq!(lexer.next(), Ok((Token::Word("a"), 1)));
        assert_eq!(lexer.next(), Ok((Token::Word("b"), 3)));
        assert_eq!(lexer.next(), Ok((Token::Text("s"), 5)));
        assert_eq!(lexer.next(), Ok((Token::End, 5)));
        assert_eq!(lexer.next(), Ok((Token::End, 5)));
    }

    #[test]
    fn what_is_no_token_is_named() {
        for (text, found) in
            [("a\n  é", "'é'"), ("\n\"x\ny\"", "a string without end"), ("\n/* *", "a comment without")]
        {
            let mut lexer = Lexer::new(text);
            let error = loop {
                match lexer.next() {
                    Ok((Token::End, _)) => panic!("{text:?} was accepted"),
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(error.line(), 2);
            assert!(error.to_string().contains(found), "{error}");
        }
    }
}
