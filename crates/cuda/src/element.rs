//! The number types that weights lie in on the device and that linear layers read.

use std::fmt::Debug;

use cudarc::driver::{CudaSlice, ValidAsZeroBits};
use half::{bf16, f16};
use prune_cuda::{Activation, Device, Error, Input, MatrixMut, MatrixRef, Number};

/// What linear layers read, and how their weights lie on the device: f16, bf16, or f32 for checkpoints that hold f32.
///
/// Attention multiplies 16-bit numbers on tensor cores: those of the same type, and f16 where this is f32.
pub trait Element: Input + Number + linalg::Element + ValidAsZeroBits + Default + Debug + sealed::Kernels {
    /// Y ← X in f32, both [rows, columns].
    ///
    /// # Errors
    /// If shapes differ, or what the driver says.
    fn widen_on(device: &Device, from: &MatrixRef<'_, Self>, to: &mut MatrixMut<'_, f32>) -> Result<(), Error>;

    /// [`prune_cuda::convert`] from f32: what is returned holds the number of the first element that is not finite, or
    /// `u64::MAX`.
    ///
    /// # Errors
    /// As [`Element::widen_on`].
    fn narrow_on(
        device: &Device,
        from: &MatrixRef<'_, f32>,
        to: &mut MatrixMut<'_, Self>,
    ) -> Result<CudaSlice<u64>, Error>;
}

macro_rules! element {
    ($type:ty) => {
        impl Element for $type {
            fn widen_on(device: &Device, from: &MatrixRef<'_, Self>, to: &mut MatrixMut<'_, f32>) -> Result<(), Error> {
                prune_cuda::activate(device, Activation::Identity, (from, None), None, to)
            }

            fn narrow_on(
                device: &Device,
                from: &MatrixRef<'_, f32>,
                to: &mut MatrixMut<'_, Self>,
            ) -> Result<CudaSlice<u64>, Error> {
                prune_cuda::convert(device, from, to)
            }
        }
    };
}

element!(f16);
element!(bf16);
element!(f32);

pub(crate) mod sealed {
    use super::*;
    use cudarc::cublas::sys::cudaDataType;
    use cudarc::driver::CudaView;
    use prune_cuda::{Norm, Stored};

    /// f32 [tokens, columns], and what is to be added to its columns.
    pub(crate) type Biased<'a> = (&'a MatrixRef<'a, f32>, Option<&'a CudaView<'a, f32>>);

    /// The functions of `prune_cuda` that round from f32 to this type. Bounds such as `f32: Rounds<T>` would do, but a trait does
    /// not hand those on to whoever is generic over it.
    pub trait Kernels: Sized {
        /// What attention reads and writes.
        type Attention: Stored + Element;
        /// As cuBLAS names this type.
        const DATA: cudaDataType;

        /// The numbers of a weight where they lie, if they are of this type.
        fn stored<'w>(weight: &'w model::Weight<'_>) -> Option<&'w [Self]>;

        /// [`prune_cuda::normalize`].
        fn normalize(
            device: &Device,
            inputs: &MatrixRef<'_, f32>,
            outputs: &mut MatrixMut<'_, Self>,
            norm: &Norm<'_>,
        ) -> Result<(), Error>;

        /// [`prune_cuda::activate`].
        fn activate(
            device: &Device,
            activation: Activation,
            inputs: Biased<'_>,
            up: Option<Biased<'_>>,
            outputs: &mut MatrixMut<'_, Self>,
        ) -> Result<(), Error>;

        /// What attention has written [tokens, columns], in this type.
        fn of_attention(
            device: &Device,
            context: CudaSlice<Self::Attention>,
            tokens: usize,
            columns: usize,
        ) -> Result<CudaSlice<Self>, Error>;
    }

    macro_rules! kernels {
        ($type:ty, $attention:ty, $data:ident, $variant:ident, $of_attention:expr) => {
            impl Kernels for $type {
                type Attention = $attention;
                const DATA: cudaDataType = cudaDataType::$data;

                fn stored<'w>(weight: &'w model::Weight<'_>) -> Option<&'w [Self]> {
                    match weight {
                        model::Weight::$variant(values) => Some(values),
                        _ => None,
                    }
                }

                fn normalize(
                    device: &Device,
                    inputs: &MatrixRef<'_, f32>,
                    outputs: &mut MatrixMut<'_, Self>,
                    norm: &Norm<'_>,
                ) -> Result<(), Error> {
                    prune_cuda::normalize(device, inputs, outputs, norm)
                }

                fn activate(
                    device: &Device,
                    activation: Activation,
                    inputs: Biased<'_>,
                    up: Option<Biased<'_>>,
                    outputs: &mut MatrixMut<'_, Self>,
                ) -> Result<(), Error> {
                    prune_cuda::activate(device, activation, inputs, up, outputs)
                }

                fn of_attention(
                    device: &Device,
                    context: CudaSlice<$attention>,
                    tokens: usize,
                    columns: usize,
                ) -> Result<CudaSlice<Self>, Error> {
                    $of_attention(device, context, tokens, columns)
                }
            }
        };
    }

    kernels!(f16, f16, CUDA_R_16F, F16, |_, context, _, _| Ok(context));
    kernels!(bf16, bf16, CUDA_R_16BF, Bf16, |_, context, _, _| Ok(context));
    kernels!(f32, f16, CUDA_R_32F, F32, widen);

    fn widen(device: &Device, context: CudaSlice<f16>, tokens: usize, columns: usize) -> Result<CudaSlice<f32>, Error> {
        let mut wide = device.uninitialized(context.len())?;
        let from = MatrixRef::new(context.as_view(), tokens, columns)?;
        let mut to = MatrixMut::new(wide.as_view_mut(), tokens, columns)?;
        prune_cuda::activate(device, Activation::Identity, (&from, None), None, &mut to)?;
        Ok(wide)
    }
}
