//! Constants: literals, and the expressions over them that PTX evaluates while it translates (ISA, "Constants").

use super::{Parser, Result};
use crate::ptx::ast::Operand;
use crate::ptx::lexer::Token;

/// A constant. Integers are `.s64`, or `.u64` by suffix, size or what they came from; both are kept as 64 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Constant {
    Signed(i64),
    Unsigned(u64),
    /// The bits of `0f…`.
    Single(u32),
    /// The bits of `0d…` or of a decimal fraction.
    Double(u64),
}

impl Constant {
    /// Its value, if it is an integer and not negative.
    pub(super) fn unsigned(self) -> Option<u64> {
        match self {
            Self::Signed(value) => u64::try_from(value).ok(),
            Self::Unsigned(value) => Some(value),
            Self::Single(_) | Self::Double(_) => None,
        }
    }

    /// Its 64 bits, if it is an integer.
    pub(super) fn bits(self) -> Option<u64> {
        match self {
            Self::Signed(value) => Some(value as u64),
            Self::Unsigned(value) => Some(value),
            Self::Single(_) | Self::Double(_) => None,
        }
    }

    /// Its value as a real number.
    pub(super) fn real(self) -> f64 {
        match self {
            Self::Signed(value) => value as f64,
            Self::Unsigned(value) => value as f64,
            Self::Single(bits) => f64::from(f32::from_bits(bits)),
            Self::Double(bits) => f64::from_bits(bits),
        }
    }

    pub(super) fn operand(self) -> Operand {
        match self {
            Self::Signed(value) => Operand::Integer(value as u64),
            Self::Unsigned(value) => Operand::Integer(value),
            Self::Single(bits) => Operand::Single(bits),
            Self::Double(bits) => Operand::Double(bits),
        }
    }

    fn truth(value: bool) -> Self {
        Self::Signed(i64::from(value))
    }

    fn is_true(self) -> bool {
        self.bits() != Some(0)
    }
}

/// The value of a literal as the lexer cut it.
pub(super) fn literal(text: &str) -> Option<Constant> {
    let lower = text.to_ascii_lowercase();
    let bits = |digits: &str, count: usize| match digits.len() == count && !digits.starts_with('+') {
        true => u64::from_str_radix(digits, 16).ok(),
        false => None,
    };
    if let Some(digits) = lower.strip_prefix("0f") {
        return Some(Constant::Single(bits(digits, 8)? as u32));
    }
    if let Some(digits) = lower.strip_prefix("0d") {
        return Some(Constant::Double(bits(digits, 16)?));
    }
    let (digits, unsigned) = match lower.strip_suffix('u') {
        Some(digits) => (digits, true),
        None => (lower.as_str(), false),
    };
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x', ..] => (&digits[2..], 16),
        [b'0', b'b', ..] => (&digits[2..], 2),
        [b'0', _, ..] if digits.bytes().all(|digit| digit.is_ascii_digit()) => (&digits[1..], 8),
        _ => (digits, 10),
    };
    if radix == 10 && digits.contains(['.', 'e']) {
        let value: f64 = if unsigned { return None } else { digits.parse().ok()? };
        return Some(Constant::Double(value.to_bits()));
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    Some(match i64::try_from(value) {
        Ok(value) if !unsigned => Constant::Signed(value),
        _ => Constant::Unsigned(value),
    })
}

/// How tightly a binary operator binds, as in C.
fn precedence(symbol: &str) -> Option<u8> {
    Some(match symbol {
        "||" => 1,
        "&&" => 2,
        "|" => 3,
        "^" => 4,
        "&" => 5,
        "==" | "!=" => 6,
        "<" | "<=" | ">" | ">=" => 7,
        "<<" | ">>" => 8,
        "+" | "-" => 9,
        "*" | "/" | "%" => 10,
        _ => return None,
    })
}

/// What binds as tightly as sums and tighter: offsets of addresses, in which `|` would be something else.
pub(super) const SUM: u8 = 9;

impl Parser<'_> {
    /// A constant expression, `? :` included.
    pub(super) fn constant(&mut self) -> Result<Constant> {
        let condition = self.binary(1)?;
        if !self.take("?")? {
            return Ok(condition);
        }
        let (yes, no) = self.nested(|parser| {
            let yes = parser.constant()?;
            parser.expect(":")?;
            Ok((yes, parser.constant()?))
        })?;
        Ok(if condition.is_true() { yes } else { no })
    }

    /// What follows a name: `+ 4`, `- 4`, `+ -4`, `+ 4 * 2 - 1`; nothing is 0.
    pub(super) fn offset(&mut self) -> Result<i64> {
        let mut offset = 0_i64;
        loop {
            let negative = match self.token {
                Token::Symbol("+") => false,
                Token::Symbol("-") => true,
                _ => return Ok(offset),
            };
            self.advance()?;
            let Some(bits) = self.binary(SUM + 1)?.bits() else { return Err(self.unexpected("an integer before it")) };
            let term = bits as i64;
            offset = if negative { offset.wrapping_sub(term) } else { offset.wrapping_add(term) };
        }
    }

    /// Operands joined by operators that bind at least as tightly as `least`.
    fn binary(&mut self, least: u8) -> Result<Constant> {
        let mut left = self.unary()?;
        while let Token::Symbol(symbol) = self.token
            && let Some(binding) = precedence(symbol).filter(|&binding| binding >= least)
        {
            self.advance()?;
            let right = self.nested(|parser| parser.binary(binding + 1))?;
            let Some(value) = apply(symbol, left, right) else {
                return Err(self.unexpected(&format!("a constant for which `{symbol}` is defined before it")));
            };
            left = value;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Constant> {
        if let Token::Symbol(symbol @ ("-" | "+" | "!" | "~")) = self.token {
            self.advance()?;
            let value = self.nested(Self::unary)?;
            return negate(symbol, value)
                .ok_or_else(|| self.unexpected(&format!("an integer, for which `{symbol}` is defined, before it")));
        }
        if self.take("(")? {
            // `(.u64) x` and `(.s64) x` are the only casts.
            if let Token::Directive(ty @ ("u64" | "s64")) = self.token {
                self.advance()?;
                self.expect(")")?;
                let value = self.nested(Self::unary)?;
                let Some(bits) = value.bits() else { return Err(self.unexpected("an integer before it")) };
                return Ok(if ty == "u64" { Constant::Unsigned(bits) } else { Constant::Signed(bits as i64) });
            }
            let value = self.nested(Self::constant)?;
            self.expect(")")?;
            return Ok(value);
        }
        let value = match self.token {
            Token::Number(text) => literal(text),
            Token::Word("WARP_SZ") => Some(Constant::Signed(32)),
            _ => None,
        };
        let value = value.ok_or_else(|| self.unexpected("a constant"))?;
        self.advance()?;
        Ok(value)
    }
}

fn negate(symbol: &str, value: Constant) -> Option<Constant> {
    use Constant::{Double, Signed, Single, Unsigned};
    Some(match (symbol, value) {
        ("+", value) => value,
        ("-", Signed(value)) => Signed(value.wrapping_neg()),
        // 2⁶³ only fits into `.u64`, and its negative only into `.s64`.
        ("-", Unsigned(value)) if value == 1 << 63 => Signed(i64::MIN),
        ("-", Unsigned(value)) => Unsigned(value.wrapping_neg()),
        ("-", Single(bits)) => Single(bits ^ 1 << 31),
        ("-", Double(bits)) => Double(bits ^ 1 << 63),
        ("!", Signed(_) | Unsigned(_)) => Constant::truth(!value.is_true()),
        ("~", Signed(value)) => Signed(!value),
        ("~", Unsigned(value)) => Unsigned(!value),
        _ => return None,
    })
}

/// `None` where there is no such operation, among others for a division by zero.
fn apply(symbol: &str, left: Constant, right: Constant) -> Option<Constant> {
    let (Some(a), Some(b)) = (left.bits(), right.bits()) else {
        let (a, b) = (left.real(), right.real());
        let value = match symbol {
            "+" => a + b,
            "-" => a - b,
            "*" => a * b,
            "/" => a / b,
            "<" => return Some(Constant::truth(a < b)),
            "<=" => return Some(Constant::truth(a <= b)),
            ">" => return Some(Constant::truth(a > b)),
            ">=" => return Some(Constant::truth(a >= b)),
            "==" => return Some(Constant::truth(a == b)),
            "!=" => return Some(Constant::truth(a != b)),
            _ => return None,
        };
        return Some(Constant::Double(value.to_bits()));
    };
    // Shifts have the type of what is shifted; for the rest one unsigned side makes both unsigned.
    let signed =
        matches!(left, Constant::Signed(_)) && (matches!(right, Constant::Signed(_)) || matches!(symbol, "<<" | ">>"));
    let (x, y) = (a as i64, b as i64);
    // The ISA leaves shifts by 64 and more open; ptxas takes the count modulo 64.
    let shift = b as u32;
    let bits = match symbol {
        "||" => return Some(Constant::truth(a != 0 || b != 0)),
        "&&" => return Some(Constant::truth(a != 0 && b != 0)),
        "==" => return Some(Constant::truth(a == b)),
        "!=" => return Some(Constant::truth(a != b)),
        "<" => return Some(Constant::truth(if signed { x < y } else { a < b })),
        "<=" => return Some(Constant::truth(if signed { x <= y } else { a <= b })),
        ">" => return Some(Constant::truth(if signed { x > y } else { a > b })),
        ">=" => return Some(Constant::truth(if signed { x >= y } else { a >= b })),
        "|" => a | b,
        "^" => a ^ b,
        "&" => a & b,
        "+" => a.wrapping_add(b),
        "-" => a.wrapping_sub(b),
        "*" => a.wrapping_mul(b),
        "<<" => a.wrapping_shl(shift),
        ">>" if signed => x.wrapping_shr(shift) as u64,
        ">>" => a.wrapping_shr(shift),
        "/" if signed => x.checked_div(y)? as u64,
        "/" => a.checked_div(b)?,
        "%" if signed => x.checked_rem(y)? as u64,
        "%" => a.checked_rem(b)?,
        _ => return None,
    };
    Some(if signed { Constant::Signed(bits as i64) } else { Constant::Unsigned(bits) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Constant::{Double, Signed, Single, Unsigned};

    #[test]
    fn literals() {
        let cases = [
            ("0", Signed(0)),
            ("42", Signed(42)),
            ("42U", Unsigned(42)),
            ("0x1F", Signed(31)),
            ("0X1fu", Unsigned(31)),
            ("017", Signed(15)),
            ("0b101", Signed(5)),
            ("0xffffffffffffffff", Unsigned(u64::MAX)),
            ("0x7fffffffffffffff", Signed(i64::MAX)),
            ("0f3F800000", Single(0x3F80_0000)),
            ("0d3FF0000000000000", Double(1.0_f64.to_bits())),
            ("1.5", Double(1.5_f64.to_bits())),
            ("1.", Double(1.0_f64.to_bits())),
            ("1.5e-3", Double(1.5e-3_f64.to_bits())),
            ("2e3", Double(2e3_f64.to_bits())),
        ];
        for (text, value) in cases {
            assert_eq!(literal(text), Some(value), "{text}");
        }
        let wrong =
            ["", "08", "0x", "0xg", "0f3F80000", "0f3F8000000", "0d3FF", "12ab", "1.5U", "18446744073709551616"];
        for text in wrong {
            assert_eq!(literal(text), None, "{text}");
        }
    }

    fn evaluate(text: &str) -> Result<Constant> {
        Parser::new(text)?.constant()
    }

    #[test]
    fn expressions() {
        let cases = [
            ("1 + 2 * 3", Signed(7)),
            ("(1 + 2) * 3", Signed(9)),
            ("10 - 3 - 2", Signed(5)),
            ("-5 / 2", Signed(-2)),
            ("-5 % 3", Signed(-2)),
            ("7 % 4 << 2 | 1", Signed(13)),
            ("-1 >> 1", Signed(-1)),
            ("0xffffffffffffffff >> 63", Unsigned(1)),
            // As ptxas evaluates them.
            ("1 << 77", Signed(1 << 13)),
            ("1 << -1", Signed(i64::MIN)),
            ("8U >> 65", Unsigned(4)),
            ("-8 >> 65", Signed(-4)),
            ("-1 < 1", Signed(1)),
            // One unsigned side makes both unsigned.
            ("-1 < 1U", Signed(0)),
            ("~0", Signed(-1)),
            ("!3 + !0", Signed(1)),
            ("(.u64) -1 > 0", Signed(1)),
            ("2 > 1 ? 5 : 6", Signed(5)),
            ("0 ? 5 : 1 ? 6 : 7", Signed(6)),
            ("1 && 0 || 1", Signed(1)),
            ("WARP_SZ * 2", Signed(64)),
            ("-9223372036854775808", Signed(i64::MIN)),
            ("-0f3F800000", Single(0xBF80_0000)),
            ("1.5 + 1", Double(2.5_f64.to_bits())),
        ];
        for (text, value) in cases {
            assert_eq!(evaluate(text), Ok(value), "{text}");
        }
        for text in ["1 / 0", "1 % 0", "1 +", "(1", "~1.0", "1.0 << 2", "1 ? 2", "%r1", "(.u32) 1"] {
            assert!(evaluate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        for text in ["(".repeat(100_000), "-".repeat(100_000), "1?".repeat(100_000), "1-(".repeat(100_000)] {
            assert!(evaluate(&text).is_err());
        }
        assert_eq!(evaluate(&format!("{}1{}", "(".repeat(30), ")".repeat(30))), Ok(Signed(1)));
    }
}
