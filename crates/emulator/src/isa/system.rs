//! The two functions that device code calls and the driver provides: `vprintf` and `__assertfail`.

use super::control::Op;
use crate::machine::Fault;
use crate::machine::context::{Context, Where};
use crate::machine::registers::{LANES, lanes};
use crate::ptx::ast::Space;
use crate::report::Kind;
use std::io::Write;

/// The longest string that is read.
const LONGEST: usize = 1 << 12;

/// Carries out a call of the system for the lanes in `mask`.
///
/// # Errors
/// If a pointer is bad, or the call is a failed assertion.
pub fn execute(op: &Op, context: &mut Context<'_>, mask: u32) -> Result<(), Fault> {
    match op {
        Op::Print(format, values, result) => {
            for lane in lanes(mask) {
                let format = pointer(context, lane, *format)?;
                let format = string(context, lane, format)?;
                let values = pointer(context, lane, *values)?;
                let text = render(context, lane, &format, values)?;
                // Whether anybody reads what is printed is not the kernel's concern.
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                if let Some(result) = *result {
                    let mut bytes = [[0; crate::machine::context::WIDEST]; LANES];
                    bytes[lane][..4].copy_from_slice(&(text.len() as i32).to_le_bytes());
                    context.store(1 << lane, Where::In(Space::Local), &[result; LANES], 4, &bytes)?;
                }
            }
            Ok(())
        }
        Op::AssertFail([condition, file, line]) => {
            let lane = mask.trailing_zeros() as usize % LANES;
            let condition = pointer(context, lane, *condition)?;
            let file = pointer(context, lane, *file)?;
            let line = context.load(1 << lane, Where::In(Space::Local), &[*line; LANES], 4)?[lane];
            let line = u32::from_le_bytes([line[0], line[1], line[2], line[3]]);
            let (condition, file) = (string(context, lane, condition)?, string(context, lane, file)?);
            Err(Fault::lane(Kind::Assertion, lane, format!("assertion `{condition}` failed at {file}:{line}")))
        }
        _ => Ok(()),
    }
}

/// The 8 bytes of local memory at `offset`.
fn pointer(context: &mut Context<'_>, lane: usize, offset: u64) -> Result<u64, Fault> {
    let bytes = context.load(1 << lane, Where::In(Space::Local), &[offset; LANES], 8)?[lane];
    Ok(u64::from_le_bytes(std::array::from_fn(|i| bytes[i])))
}

fn load(context: &mut Context<'_>, lane: usize, address: u64, size: usize) -> Result<u64, Fault> {
    let bytes = context.load(1 << lane, Where::Generic, &[address; LANES], size)?[lane];
    Ok(u64::from_le_bytes(std::array::from_fn(|i| if i < size { bytes[i] } else { 0 })))
}

fn string(context: &mut Context<'_>, lane: usize, address: u64) -> Result<String, Fault> {
    let mut bytes = Vec::new();
    while bytes.len() < LONGEST {
        match load(context, lane, address.wrapping_add(bytes.len() as u64), 1)? {
            0 => break,
            byte => bytes.push(byte as u8),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What `printf` prints: arguments lie one after another, each aligned to its size (CUDA C++ Programming Guide, formatted
/// output; `float` comes as `double`).
fn render(context: &mut Context<'_>, lane: usize, format: &str, values: u64) -> Result<String, Fault> {
    let mut text = String::new();
    let mut rest = format;
    let mut offset = 0u64;
    while let Some(start) = rest.find('%') {
        text.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        let Some(end) =
            rest.find(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'l' | 'h' | 'z' | 'j' | 't') || c == '%')
        else {
            text.push('%');
            break;
        };
        let (flags, conversion) = (rest[..end].trim_end_matches(['l', 'h', 'z', 'j', 't']), &rest[end..=end]);
        let is_long = rest[..end].contains(['l', 'z', 'j', 't']);
        let mut flags = flags.to_owned();
        rest = &rest[end + 1..];
        let mut next = |context: &mut Context<'_>, size: usize| {
            offset = offset.next_multiple_of(size as u64);
            let value = load(context, lane, values.wrapping_add(offset), size);
            offset += size as u64;
            value
        };
        // A width or precision that is an argument.
        while flags.contains('*') {
            let number = next(context, 4)? as i32;
            flags = flags.replacen('*', &number.to_string(), 1);
        }
        let flags = flags.as_str();
        match conversion {
            "%" => text.push('%'),
            "d" | "i" | "u" | "x" | "X" | "o" | "c" => {
                let bits = next(context, if is_long { 8 } else { 4 })?;
                text.push_str(&number(flags, conversion, bits, is_long));
            }
            "f" | "F" | "e" | "E" | "g" | "G" | "a" | "A" => {
                text.push_str(&real(flags, conversion, f64::from_bits(next(context, 8)?)));
            }
            "p" => text.push_str(&format!("{:#x}", next(context, 8)?)),
            "s" => {
                let address = next(context, 8)?;
                text.push_str(&padded(flags, &string(context, lane, address)?));
            }
            other => text.push_str(other),
        }
    }
    text.push_str(rest);
    Ok(text)
}

/// An integer as the C library formats it.
fn number(flags: &str, conversion: &str, bits: u64, is_long: bool) -> String {
    let length = if is_long { "ll" } else { "" };
    with_c_format(&format!("%{flags}{length}{conversion}"), |buffer, size, format| {
        // SAFETY: the format has one conversion, of an integer of this length, and the buffer `size` bytes.
        unsafe {
            match is_long {
                true => libc::snprintf(buffer, size, format, bits),
                false => libc::snprintf(buffer, size, format, bits as u32),
            }
        }
    })
}

/// A string as the C library formats it.
fn padded(flags: &str, value: &str) -> String {
    if flags.is_empty() {
        return value.to_owned();
    }
    let Ok(c_value) = std::ffi::CString::new(value) else { return value.to_owned() };
    with_c_format(&format!("%{flags}s"), |buffer, size, format| {
        // SAFETY: the format has one conversion, of a string that ends with zero, and the buffer `size` bytes.
        unsafe { libc::snprintf(buffer, size, format, c_value.as_ptr()) }
    })
}

/// A floating-point number as the C library formats it.
fn real(flags: &str, conversion: &str, value: f64) -> String {
    with_c_format(&format!("%{flags}{conversion}"), |buffer, size, format| {
        // SAFETY: the format has one conversion, of a double, and the buffer `size` bytes.
        unsafe { libc::snprintf(buffer, size, format, value) }
    })
}

/// What `print` writes into a buffer with a format; the format itself where it takes what is not given (`*`).
fn with_c_format(format: &str, print: impl Fn(*mut libc::c_char, usize, *const libc::c_char) -> libc::c_int) -> String {
    let plain = format[1..format.len() - 1].chars().all(|c| c.is_ascii_digit() || "-+ #.l".contains(c));
    let digits = format.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    let Ok(c_format) = std::ffi::CString::new(format) else { return format.to_owned() };
    if !plain || digits > 3 {
        return format.to_owned();
    }
    let mut buffer = vec![0u8; 2 * LONGEST];
    let length = print(buffer.as_mut_ptr().cast(), buffer.len(), c_format.as_ptr());
    buffer.truncate(usize::try_from(length).unwrap_or(0).min(2 * LONGEST - 1));
    String::from_utf8_lossy(&buffer).into_owned()
}

#[cfg(test)]
mod tests;
