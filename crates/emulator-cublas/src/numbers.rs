//! Matrices of any number type, read from and written to device memory.

use half::{bf16, f16};

/// A cudaDataType that products can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    F16,
    Bf16,
    F32,
    F64,
}

impl Number {
    /// By its number in cudaDataType.
    pub(crate) fn parse(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F64,
            2 => Self::F16,
            14 => Self::Bf16,
            _ => return None,
        })
    }

    /// Bytes.
    pub(crate) fn size(self) -> u64 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Reads one.
    ///
    /// # Safety
    /// There is one at this address.
    pub(crate) unsafe fn read(self, address: u64) -> f64 {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Self::F16 => f16::from_bits((address as *const u16).read_unaligned()).to_f64(),
                Self::Bf16 => bf16::from_bits((address as *const u16).read_unaligned()).to_f64(),
                Self::F32 => f64::from((address as *const f32).read_unaligned()),
                Self::F64 => (address as *const f64).read_unaligned(),
            }
        }
    }
}

/// What is computed with: f32 or f64.
pub(crate) trait Real: Copy + Default + Send + 'static {
    /// Reads `to.len()` consecutive numbers.
    ///
    /// # Safety
    /// They are there.
    unsafe fn read_all(number: Number, address: u64, to: &mut [Self]);

    /// Writes consecutive numbers, rounded to nearest even.
    ///
    /// # Safety
    /// There is room.
    unsafe fn write_all(number: Number, address: u64, from: &[Self]);

    /// `self * factor + addend`, rounded once.
    fn fused(self, factor: Self, addend: Self) -> Self;

    /// Rounds a scalar.
    fn of(value: f64) -> Self;

    /// Whether it is zero.
    fn is_zero(self) -> bool;

    /// The product.
    fn times(self, factor: Self) -> Self;
}

macro_rules! real {
    ($real:ty, $from16:ident, $to16:ident) => {
        impl Real for $real {
            unsafe fn read_all(number: Number, address: u64, to: &mut [Self]) {
                // SAFETY: as the caller promises; elements of device arrays are aligned to their size.
                unsafe {
                    match number {
                        Number::F16 => {
                            let all = std::slice::from_raw_parts(address as *const f16, to.len());
                            to.iter_mut().zip(all).for_each(|(to, from)| *to = from.$to16());
                        }
                        Number::Bf16 => {
                            let all = std::slice::from_raw_parts(address as *const bf16, to.len());
                            to.iter_mut().zip(all).for_each(|(to, from)| *to = from.$to16());
                        }
                        Number::F32 => {
                            let all = std::slice::from_raw_parts(address as *const f32, to.len());
                            to.iter_mut().zip(all).for_each(|(to, from)| *to = *from as $real);
                        }
                        Number::F64 => {
                            let all = std::slice::from_raw_parts(address as *const f64, to.len());
                            to.iter_mut().zip(all).for_each(|(to, from)| *to = *from as $real);
                        }
                    }
                }
            }

            unsafe fn write_all(number: Number, address: u64, from: &[Self]) {
                // SAFETY: as the caller promises; elements of device arrays are aligned to their size.
                unsafe {
                    match number {
                        Number::F16 => {
                            let all = std::slice::from_raw_parts_mut(address as *mut f16, from.len());
                            all.iter_mut().zip(from).for_each(|(to, from)| *to = f16::$from16(*from));
                        }
                        Number::Bf16 => {
                            let all = std::slice::from_raw_parts_mut(address as *mut bf16, from.len());
                            all.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::$from16(*from));
                        }
                        Number::F32 => {
                            let all = std::slice::from_raw_parts_mut(address as *mut f32, from.len());
                            all.iter_mut().zip(from).for_each(|(to, from)| *to = *from as f32);
                        }
                        Number::F64 => {
                            let all = std::slice::from_raw_parts_mut(address as *mut f64, from.len());
                            all.iter_mut().zip(from).for_each(|(to, from)| *to = f64::from(*from));
                        }
                    }
                }
            }

            #[inline(always)]
            fn fused(self, factor: Self, addend: Self) -> Self {
                self.mul_add(factor, addend)
            }

            fn of(value: f64) -> Self {
                value as $real
            }

            fn is_zero(self) -> bool {
                self == 0.0
            }

            #[inline(always)]
            fn times(self, factor: Self) -> Self {
                self * factor
            }
        }
    };
}

real!(f32, from_f32, to_f32);
real!(f64, from_f64, to_f64);
