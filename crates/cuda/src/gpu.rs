//! A device as the place of a forward pass.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaSlice;
use model::Rotation;
use prune_cuda::{Device, Number};

use crate::products::Cublas;
use crate::{Element, Error, Rows};

/// A device on which models run, their linear layers reading `T`. Clones share the device's stream.
#[derive(Debug)]
pub struct Gpu<T: Element> {
    shared: Arc<Shared>,
    element: PhantomData<T>,
}

#[derive(Debug)]
struct Shared {
    device: Device,
    cublas: Cublas,
    /// All blocks and all chunks of a run ask for the same one.
    last_rotation: Mutex<Option<Arc<Tables>>>,
}

/// A rotation on the device.
#[derive(Debug)]
pub(crate) struct Tables {
    /// Held, so that no other comes to lie at its address.
    of: Arc<Rotation>,
    /// [sequence length, head_dim / 2].
    pub(crate) cosines: CudaSlice<f32>,
    /// Likewise.
    pub(crate) sines: CudaSlice<f32>,
}

impl<T: Element> Clone for Gpu<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), element: PhantomData }
    }
}

impl<T: Element> Gpu<T> {
    /// Prepares a device. All work goes to its stream.
    ///
    /// # Errors
    /// [`Error::NoCublas`], or what cuBLAS says.
    pub fn new(device: Device) -> Result<Self, Error> {
        let cublas = Cublas::open(&device)?;
        Ok(Self { shared: Arc::new(Shared { device, cublas, last_rotation: Mutex::default() }), element: PhantomData })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    pub(crate) fn cublas(&self) -> &Cublas {
        &self.shared.cublas
    }

    /// Activations with whatever was there before: for what is written before anything reads it.
    pub(crate) fn rows<N: Number>(&self, tokens: usize, columns: usize) -> Result<Rows<N>, Error> {
        // No allocation is empty; a length that no memory has is refused as one.
        let length = tokens.saturating_mul(columns).max(1);
        Rows::new(self.device().uninitialized(length)?, tokens, columns)
    }

    /// The cosines and sines of a rotation on the device.
    pub(crate) fn tables(&self, rotation: &Arc<Rotation>) -> Result<Arc<Tables>, Error> {
        let mut last = self.shared.last_rotation.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = last.as_ref().filter(|tables| Arc::ptr_eq(&tables.of, rotation)) {
            return Ok(tables.clone());
        }
        let (cosines, sines) = (self.device().upload(rotation.cosines())?, self.device().upload(rotation.sines())?);
        let tables = Arc::new(Tables { of: rotation.clone(), cosines, sines });
        *last = Some(tables.clone());
        Ok(tables)
    }

    /// A weight on the device, rounded if it is stored in another type.
    pub(crate) fn upload_weight(&self, weight: &model::Weight<'_>) -> Result<CudaSlice<T>, Error> {
        let values = match T::stored(weight) {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(match weight {
                model::Weight::F32(values) => round(values),
                model::Weight::F16(values) => round(values),
                model::Weight::Bf16(values) => round(values),
            }),
        };
        Ok(self.device().upload(&values)?)
    }
}

/// Numbers of one type in another, each rounded to nearest.
fn round<A: linalg::Element, B: Element>(values: &[A]) -> Vec<B> {
    /// So many at a time are widened to f32, which stay in the cache until they are rounded.
    const RUN: usize = 4096;
    let mut wide = [0.0; RUN];
    let mut rounded = vec![B::default(); values.len()];
    for (from, to) in values.chunks(RUN).zip(rounded.chunks_mut(RUN)) {
        let wide = &mut wide[..from.len()];
        A::widen(from, wide);
        B::narrow(wide, to);
    }
    rounded
}
