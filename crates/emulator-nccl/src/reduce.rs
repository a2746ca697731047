//! Reductions of arrays, by number type.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// An ncclDataType_t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Number {
    I8,
    U8,
    I32,
    U32,
    I64,
    U64,
    F16,
    F32,
    F64,
    Bf16,
}

impl Number {
    pub(crate) fn parse(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::I8,
            1 => Self::U8,
            2 => Self::I32,
            3 => Self::U32,
            4 => Self::I64,
            5 => Self::U64,
            6 => Self::F16,
            7 => Self::F32,
            8 => Self::F64,
            9 => Self::Bf16,
            _ => return None,
        })
    }

    /// Bytes.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }
}

/// An ncclRedOp_t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reduction {
    Sum,
    Product,
    Max,
    Min,
    Average,
}

impl Reduction {
    pub(crate) fn parse(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Sum,
            1 => Self::Product,
            2 => Self::Max,
            3 => Self::Min,
            4 => Self::Average,
            _ => return None,
        })
    }
}

/// What a reduction is carried out with.
trait Value: Copy {
    fn combine(self, other: Self, reduction: Reduction) -> Self;
    fn divided(self, count: usize) -> Self;
}

macro_rules! integers {
    ($($type:ty)*) => {
        $(impl Value for $type {
            fn combine(self, other: Self, reduction: Reduction) -> Self {
                match reduction {
                    Reduction::Sum | Reduction::Average => self.wrapping_add(other),
                    Reduction::Product => self.wrapping_mul(other),
                    Reduction::Max => self.max(other),
                    Reduction::Min => self.min(other),
                }
            }

            fn divided(self, count: usize) -> Self {
                Self::try_from(count).ok().and_then(|count| self.checked_div(count)).unwrap_or(0)
            }
        })*
    };
}
integers!(i8 u8 i32 u32 i64 u64);

macro_rules! floats {
    ($($type:ty)*) => {
        $(impl Value for $type {
            fn combine(self, other: Self, reduction: Reduction) -> Self {
                match reduction {
                    Reduction::Sum | Reduction::Average => self + other,
                    Reduction::Product => self * other,
                    Reduction::Max => self.max(other),
                    Reduction::Min => self.min(other),
                }
            }

            fn divided(self, count: usize) -> Self {
                self / count as $type
            }
        })*
    };
}
floats!(f32 f64);

/// Reduces arrays of the same length, given as bytes, element by element in their order.
pub(crate) fn reduce(number: Number, reduction: Reduction, parts: &[&[u8]]) -> Vec<u8> {
    macro_rules! over {
        ($type:ty, $read:expr, $write:expr) => {
            elements::<{ size_of::<$type>() }, _>(parts, reduction, $read, $write)
        };
    }
    match number {
        Number::I8 => over!(i8, i8::from_ne_bytes, i8::to_ne_bytes),
        Number::U8 => over!(u8, u8::from_ne_bytes, u8::to_ne_bytes),
        Number::I32 => over!(i32, i32::from_ne_bytes, i32::to_ne_bytes),
        Number::U32 => over!(u32, u32::from_ne_bytes, u32::to_ne_bytes),
        Number::I64 => over!(i64, i64::from_ne_bytes, i64::to_ne_bytes),
        Number::U64 => over!(u64, u64::from_ne_bytes, u64::to_ne_bytes),
        Number::F32 => over!(f32, f32::from_ne_bytes, f32::to_ne_bytes),
        Number::F64 => over!(f64, f64::from_ne_bytes, f64::to_ne_bytes),
        Number::F16 => over!(f16, |bits| f16::from_ne_bytes(bits).to_f32(), |value| f16::from_f32(value).to_ne_bytes()),
        Number::Bf16 => {
            over!(bf16, |bits| bf16::from_ne_bytes(bits).to_f32(), |value| bf16::from_f32(value).to_ne_bytes())
        }
    }
}

fn elements<const SIZE: usize, T: Value>(
    parts: &[&[u8]],
    reduction: Reduction,
    read: impl Fn([u8; SIZE]) -> T,
    write: impl Fn(T) -> [u8; SIZE],
) -> Vec<u8> {
    let mut parts = parts.iter().map(|part| part.as_chunks::<SIZE>().0);
    let Some(first) = parts.next() else { return Vec::new() };
    let mut all: Vec<T> = first.iter().map(|&bytes| read(bytes)).collect();
    let mut count = 1;
    for part in parts {
        count += 1;
        for (value, &bytes) in all.iter_mut().zip(part) {
            *value = value.combine(read(bytes), reduction);
        }
    }
    let divide = reduction == Reduction::Average;
    all.into_iter().flat_map(|value| write(if divide { value.divided(count) } else { value })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const SIZE: usize, T: Copy>(values: &[T], write: impl Fn(T) -> [u8; SIZE]) -> Vec<u8> {
        values.iter().flat_map(|&value| write(value)).collect()
    }

    #[test]
    fn every_reduction_of_every_kind_of_number() {
        let of = |values: [f32; 2]| bytes(&values, f32::to_ne_bytes);
        let parts = [of([1.0, -2.0]), of([3.0, 4.0])];
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let all = |reduction| reduce(Number::F32, reduction, &parts);
        assert_eq!(all(Reduction::Sum), of([4.0, 2.0]));
        assert_eq!(all(Reduction::Product), of([3.0, -8.0]));
        assert_eq!(all(Reduction::Max), of([3.0, 4.0]));
        assert_eq!(all(Reduction::Min), of([1.0, -2.0]));
        assert_eq!(all(Reduction::Average), of([2.0, 1.0]));
        // Integers wrap, and an average is cut off.
        assert_eq!(reduce(Number::I8, Reduction::Sum, &[&[127], &[1]]), [128]);
        assert_eq!(reduce(Number::U8, Reduction::Average, &[&[3], &[4]]), [3]);
        let of = |value: i64| value.to_ne_bytes().to_vec();
        assert_eq!(reduce(Number::I64, Reduction::Min, &[&of(-5), &of(7)]), of(-5));
    }

    #[test]
    fn sixteen_bits_are_rounded_once() {
        // 1 + 2^-11 twice: each step alone would round back to 1 in f16, the sum is 1 + 2^-10, the next number.
        let of = |value: f32| f16::from_f32(value).to_ne_bytes().to_vec();
        let tiny = 2_f32.powi(-11);
        assert_eq!(reduce(Number::F16, Reduction::Sum, &[&of(1.0), &of(tiny), &of(tiny)]), of(1.0 + 2.0 * tiny));
        let of = |value: f32| bf16::from_f32(value).to_ne_bytes().to_vec();
        assert_eq!(reduce(Number::Bf16, Reduction::Max, &[&of(-1.5), &of(2.5)]), of(2.5));
    }
}
