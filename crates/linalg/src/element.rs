//! The number types that an operand may be stored in.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A number type that a matrix may be stored in; every value of it is exact in f32.
pub trait Element: Copy + Send + Sync + 'static {
    /// The value as f32.
    fn to_f32(self) -> f32;

    /// Widens a whole slice; `source` and `target` have the same length.
    fn widen(source: &[Self], target: &mut [f32]);

    /// [`Element::widen`] for a few values whose number is known to the compiler, where a call would cost more than the
    /// values.
    #[inline(always)]
    fn widen_array<const N: usize>(source: &[Self; N], target: &mut [f32; N]) {
        Self::widen(source, target);
    }

    /// Rounds a whole slice to nearest, ties to even; `source` and `target` have the same length.
    fn narrow(source: &[f32], target: &mut [Self]);
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    fn widen(source: &[Self], target: &mut [f32]) {
        target.copy_from_slice(source);
    }

    #[inline(always)]
    fn widen_array<const N: usize>(source: &[Self; N], target: &mut [f32; N]) {
        *target = *source;
    }

    fn narrow(source: &[f32], target: &mut [Self]) {
        target.copy_from_slice(source);
    }
}

impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn widen(source: &[Self], target: &mut [f32]) {
        source.convert_to_f32_slice(target);
    }

    fn narrow(source: &[f32], target: &mut [Self]) {
        target.convert_from_f32_slice(source);
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn widen(source: &[Self], target: &mut [f32]) {
        for (to, from) in target.iter_mut().zip(source) {
            *to = Element::to_f32(*from);
        }
    }

    #[inline(always)]
    fn widen_array<const N: usize>(source: &[Self; N], target: &mut [f32; N]) {
        *target = source.map(Element::to_f32);
    }

    fn narrow(source: &[f32], target: &mut [Self]) {
        target.convert_from_f32_slice(source);
    }
}
