//! The header of a safetensors file: where its tensors lie, checked against the file before anything is read.
//!
//! The file is an 8-byte little-endian length, a JSON object of that many bytes which maps each tensor to its dtype,
//! shape and offsets, and the data, which the tensors fill without gaps
//! (<https://github.com/huggingface/safetensors#format>). The types are those of the `safetensors` crate. Its own
//! check says only that something is wrong with a tensor, and adds unchecked offsets to the header's length.

use std::fmt;
use std::ops::Range;

use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::{Dtype, Fault};

/// The bytes of the header's length.
const PREFIX: usize = 8;

/// The largest header that the format allows, in bytes.
const LARGEST_HEADER: usize = 100_000_000;

/// Where one tensor lies.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Its bytes, counted from the start of the file.
    pub(crate) range: Range<usize>,
}

/// The tensors of a file in the order of their bytes. Their ranges begin where the header ends, follow one another
/// without gaps and end with the file.
pub(crate) fn parse(file: &[u8]) -> Result<Vec<Entry>, Fault> {
    let (&length, rest) = file.split_first_chunk::<PREFIX>().ok_or(Fault::TooShort { found: file.len() })?;
    let length = u64::from_le_bytes(length);
    let header = usize::try_from(length)
        .ok()
        .and_then(|length| rest.get(..length))
        .ok_or(Fault::HeaderBeyondFile { header: length, file: file.len() })?;
    if header.len() > LARGEST_HEADER {
        return Err(Fault::HeaderTooLarge { found: header.len(), limit: LARGEST_HEADER });
    }
    let Header(mut tensors) = serde_json::from_slice(header).map_err(Fault::Header)?;
    check_names(&mut tensors)?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let data = check_offsets(&tensors)?;

    let start = PREFIX + header.len();
    let expected = start.saturating_add(data);
    if expected != file.len() {
        return Err(Fault::FileSize { found: file.len(), expected });
    }
    tensors.into_iter().map(|tensor| entry(tensor, start)).collect()
}

/// A tensor's place in the file, whose data begins at `start`. Its offsets are known to lie inside the file.
fn entry((name, info): (String, TensorInfo), start: usize) -> Result<Entry, Fault> {
    let dtype = Dtype::from(info.dtype);
    let (begin, end) = info.data_offsets;
    let range = start + begin..start + end;
    if !range.start.is_multiple_of(dtype.size()) {
        return Err(Fault::Misaligned { tensor: name, dtype, position: range.start, expected: dtype.size() });
    }
    Ok(Entry { name, dtype, shape: info.shape, range })
}

/// Each tensor is described once.
fn check_names(tensors: &mut [(String, TensorInfo)]) -> Result<(), Fault> {
    tensors.sort_by(|(left, _), (right, _)| left.cmp(right));
    match tensors.iter().zip(tensors.iter().skip(1)).find(|((left, _), (right, _))| left == right) {
        Some(((tensor, _), _)) => Err(Fault::Duplicate { tensor: tensor.clone() }),
        None => Ok(()),
    }
}

/// Tensors in the order of their offsets span what their shapes take, without overlaps and holes. Returns the bytes of
/// all of them.
fn check_offsets(tensors: &[(String, TensorInfo)]) -> Result<usize, Fault> {
    let (mut filled, mut previous) = (0, "");
    for (name, info) in tensors {
        let tensor = || name.clone();
        let dtype = Dtype::from(info.dtype);
        let (begin, end) = info.data_offsets;
        let expected = size(&info.shape, dtype).ok_or_else(|| Fault::Uncountable {
            tensor: tensor(),
            dtype,
            shape: info.shape.clone(),
        })?;
        if end.checked_sub(begin) != Some(expected) {
            return Err(Fault::Span { tensor: tensor(), dtype, shape: info.shape.clone(), begin, end, expected });
        }
        if begin < filled {
            return Err(Fault::Overlap { tensor: tensor(), begin, previous: previous.to_owned(), end: filled });
        }
        if begin > filled {
            return Err(Fault::Hole { tensor: tensor(), begin: filled, end: begin });
        }
        (filled, previous) = (end, name);
    }
    Ok(filled)
}

/// The bytes of a tensor, unless they overflow or are no whole number.
fn size(shape: &[usize], dtype: Dtype) -> Option<usize> {
    let elements = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent))?;
    let bits = elements.checked_mul(dtype.bits())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The tensors in the order of the header, duplicates included; `__metadata__` is skipped.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;

        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that maps tensors to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Header(tensors))
            }
        }

        deserializer.deserialize_map(Tensors)
    }
}
