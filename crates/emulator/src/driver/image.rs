//! What a module is loaded from: PTX text, or a container that nvcc wrote and in which there may be some.

use super::error::{Answer, Code, fail};

/// The first word of a `__fatBinC_Wrapper_t`, of a fat binary, and of an ELF file (a cubin).
const WRAPPER: u32 = 0x466243b1;
const FAT_BINARY: u32 = 0xba55ed50;
const ELF: u32 = 0x464c457f;

/// Flags of an entry of a fat binary whose text is compressed (LZ4, or zstd since CUDA 12.8).
const COMPRESSED: u64 = 0x2000 | 0x8000;

/// The PTX of an image in memory: zero-terminated text or a fat binary.
///
/// # Safety
/// `image` points to one of these, or to at least four readable bytes.
pub(crate) unsafe fn text_at(image: *const u8, architecture: u32) -> Answer<String> {
    if image.is_null() {
        return Err(super::error::invalid("there is no image"));
    }
    // SAFETY: the first byte is readable; a shorter text than a word ends with zero, where reading stops.
    let first: Vec<u8> = unsafe { std::ffi::CStr::from_ptr(image.cast()) }.to_bytes().iter().take(4).copied().collect();
    let word = <[u8; 4]>::try_from(first.as_slice()).map_or(0, u32::from_le_bytes);
    match word {
        ELF => Err(binary()),
        WRAPPER => {
            // SAFETY: a wrapper is two words and the address of the fat binary.
            let inner = unsafe { image.add(8).cast::<*const u8>().read_unaligned() };
            // SAFETY: it holds the address of a fat binary, by its format.
            unsafe { fat_binary_at(inner, architecture) }
        }
        // SAFETY: as the first word says.
        FAT_BINARY => unsafe { fat_binary_at(image, architecture) },
        _ => {
            // SAFETY: everything else is text that ends with zero.
            let text = unsafe { std::ffi::CStr::from_ptr(image.cast()) };
            text_of(text.to_bytes(), architecture)
        }
    }
}

/// # Safety
/// `start` points to a fat binary, whose header tells its size.
unsafe fn fat_binary_at(start: *const u8, architecture: u32) -> Answer<String> {
    // SAFETY: a fat binary begins with 16 bytes of header.
    let header = unsafe { std::slice::from_raw_parts(start, 16) };
    let size = usize::from(half_at(header, 6)).saturating_add(double_at(header, 8) as usize);
    // SAFETY: the header says how far it goes.
    text_of(unsafe { std::slice::from_raw_parts(start, size) }, architecture)
}

/// The PTX of an image whose size is known, of a file for example.
pub(crate) fn text_of(image: &[u8], architecture: u32) -> Answer<String> {
    let word = image.first_chunk().map_or(0, |&word| u32::from_le_bytes(word));
    match word {
        ELF => Err(binary()),
        FAT_BINARY => from_fat_binary(image, architecture),
        _ => {
            let text = image.split(|&byte| byte == 0).next().unwrap_or_default();
            match std::str::from_utf8(text) {
                Ok(text) if text.contains(".version") => Ok(text.to_owned()),
                _ => Err(fail(Code::INVALID_IMAGE, "the image is neither PTX nor a fat binary")),
            }
        }
    }
}

fn binary() -> super::error::Failure {
    fail(
        Code::NO_BINARY_FOR_GPU,
        "the image is a cubin, whose machine code (SASS) cannot be interpreted: load the PTX instead (nvcc -ptx)",
    )
}

/// The PTX for the highest architecture that the device has.
fn from_fat_binary(image: &[u8], architecture: u32) -> Answer<String> {
    let mut best: Option<(u32, &[u8])> = None;
    let mut compressed = false;
    let mut rest = image.get(usize::from(half_at(image, 4 + 2))..).unwrap_or_default();
    // Entries: kind and version (16 bits), sizes of header (32) and payload (64), …, architecture at 28, flags at 40.
    while rest.len() >= 64 {
        let (kind, header, payload) = (half_at(rest, 0), word_at(rest, 4) as usize, double_at(rest, 8) as usize);
        let (own, flags) = (word_at(rest, 28), double_at(rest, 40));
        let end = header.saturating_add(payload);
        let Some(content) = rest.get(header..end).filter(|_| header > 0) else { break };
        if kind == 1 && own <= architecture {
            compressed |= flags & COMPRESSED != 0;
            if flags & COMPRESSED == 0 && best.is_none_or(|(best, _)| best < own) {
                best = Some((own, content));
            }
        }
        rest = &rest[end..];
    }
    match best {
        Some((_, text)) => text_of(text, architecture),
        None if compressed => Err(fail(
            Code::NO_BINARY_FOR_GPU,
            "the PTX in the fat binary is compressed, which cannot be read: compile with nvcc --compress-mode=none",
        )),
        None => Err(fail(
            Code::NO_BINARY_FOR_GPU,
            "there is no PTX for the device in the fat binary, and machine code (SASS) cannot be interpreted",
        )),
    }
}

fn half_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |&half| u16::from_le_bytes(half))
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |&word| u32::from_le_bytes(word))
}

fn double_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |&double| u64::from_le_bytes(double))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fat binary of entries: kind, architecture, flags, content.
    fn fat(entries: &[(u16, u32, u64, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for &(kind, architecture, flags, content) in entries {
            let mut header = [0_u8; 64];
            header[..2].copy_from_slice(&kind.to_le_bytes());
            header[4..8].copy_from_slice(&64_u32.to_le_bytes());
            header[8..16].copy_from_slice(&(content.len() as u64).to_le_bytes());
            header[28..32].copy_from_slice(&architecture.to_le_bytes());
            header[40..48].copy_from_slice(&flags.to_le_bytes());
            body.extend_from_slice(&header);
            body.extend_from_slice(content);
        }
        let mut all = FAT_BINARY.to_le_bytes().to_vec();
        all.extend_from_slice(&[1, 0, 16, 0]);
        all.extend_from_slice(&(body.len() as u64).to_le_bytes());
        all.extend_from_slice(&body);
        all
    }

    #[test]
    fn the_highest_text_that_the_device_has_is_taken() {
        let image = fat(&[
            (2, 80, 0, b"\x7fELF"),
            (1, 75, 0, b".version 8.0 // 75\0\0"),
            (1, 80, 0, b".version 8.0 // 80\0"),
            (1, 90, 0, b".version 8.0 // 90\0"),
        ]);
        assert_eq!(text_of(&image, 86).unwrap(), ".version 8.0 // 80");
        // SAFETY: the image is a fat binary.
        assert_eq!(unsafe { text_at(image.as_ptr(), 90) }.unwrap(), ".version 8.0 // 90");
    }

    #[test]
    fn what_is_no_text_is_refused_with_the_drivers_codes() {
        let code = |image: &[u8]| text_of(image, 80).unwrap_err().code;
        assert_eq!(code(b"\x7fELF\x02\x01"), Code::NO_BINARY_FOR_GPU);
        assert_eq!(code(b"hello"), Code::INVALID_IMAGE);
        assert_eq!(code(b"\xff\xfe.version"), Code::INVALID_IMAGE);
        assert_eq!(code(&fat(&[(2, 80, 0, b"\x7fELF")])), Code::NO_BINARY_FOR_GPU);
        let squeezed = text_of(&fat(&[(1, 80, 0x2000, b"....")]), 80).unwrap_err();
        assert!(squeezed.reason.contains("--compress-mode=none"), "{}", squeezed.reason);
        // Cut anywhere, it is an error and nothing worse.
        let image = fat(&[(1, 80, 0, b".version 8.0\0")]);
        for end in 0..image.len() {
            let _ = text_of(&image[..end], 80);
        }
    }
}
