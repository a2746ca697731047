//! Messages between processes: a header as JSON, and bytes as they are.
//!
//! ```text
//! u32, length of the header │ u64, number of bytes │ header │ bytes          integers little-endian
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read, Write};

/// Longer than any header, the longest of which have a number for each stream of a process in a clock for each of its ranks.
const LONGEST: u32 = 1 << 26;

const PREFIX: usize = 12;

/// Writes a message.
///
/// # Errors
/// If nobody reads any more.
pub(crate) fn write(mut stream: impl Write, header: &impl Serialize, bytes: &[u8]) -> io::Result<()> {
    let mut head = vec![0; PREFIX];
    serde_json::to_writer(&mut head, header)?;
    let length = (head.len() - PREFIX) as u32;
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..PREFIX].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    stream.write_all(&head)?;
    stream.write_all(bytes)
}

/// Reads a message; none if the other side has ended before it.
///
/// # Errors
/// If it has ended within the message, or sent something else.
pub(crate) fn read<T: DeserializeOwned>(mut stream: impl Read) -> io::Result<Option<(T, Vec<u8>)>> {
    let mut prefix = [0; PREFIX];
    match stream.read(&mut prefix)? {
        0 => return Ok(None),
        begun => stream.read_exact(&mut prefix[begun..])?,
    }
    let [a, b, c, d, count @ ..] = prefix;
    let (length, count) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(count));
    if length > LONGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    // Room is made for what comes, not for what was announced.
    let mut exactly = |count: u64| {
        let mut bytes = Vec::new();
        match stream.by_ref().take(count).read_to_end(&mut bytes)? as u64 == count {
            true => Ok(bytes),
            false => Err(io::Error::from(ErrorKind::UnexpectedEof)),
        }
    };
    let header = exactly(length.into())?;
    let bytes = exactly(count)?;
    Ok(Some((serde_json::from_slice(&header)?, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let mut text = Vec::new();
        for (header, bytes) in [("first", &[][..]), ("second", &[1, 2, 3])] {
            write(&mut text, &header, bytes).unwrap();
        }
        let mut stream = &text[..];
        assert_eq!(read::<String>(&mut stream).unwrap(), Some(("first".to_owned(), vec![])));
        let second = stream.len();
        assert_eq!(read::<String>(&mut stream).unwrap(), Some(("second".to_owned(), vec![1, 2, 3])));
        assert_eq!(read::<String>(&mut stream).unwrap(), None);
        for cut in 1..second {
            assert!(read::<String>(&text[text.len() - second..][..cut]).is_err(), "{cut}");
        }
        assert!(read::<u8>(&text[..]).is_err(), "another header");
        // Lengths without end.
        assert!(read::<String>(&[255; 100][..]).is_err());
        text[4..12].fill(255);
        assert!(read::<String>(&text[..]).is_err());
    }
}
