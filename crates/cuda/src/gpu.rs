//! A device as the place of a forward pass.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaSlice, PinnedHostSlice};
use model::Rotation;
use prune_cuda::{Device, Number};

use crate::error::{driver, shape};
use crate::products::Cublas;
use crate::staging::{PIECE, Staging};
use crate::{Element, Error, Rows};

/// Logits held at a time: 64 MiB.
const LOGITS: usize = (64 << 20) / size_of::<f32>();

/// A device on which models run, their linear layers reading `T`. Clones share the device's streams.
#[derive(Debug)]
pub struct Gpu<T: Element> {
    shared: Arc<Shared<T>>,
    /// As many as exist at a time.
    logits: usize,
    /// Numbers of a weight that travel together, at most.
    piece: usize,
}

#[derive(Debug)]
struct Shared<T> {
    device: Device,
    /// See [`Gpu::travel`].
    travel: Device,
    staging: Mutex<Staging<T>>,
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
        Self { shared: self.shared.clone(), ..*self }
    }
}

impl<T: Element> Gpu<T> {
    /// Prepares a device. All work goes to its stream, and weights come on another one, beside it.
    ///
    /// # Errors
    /// [`Error::NoCublas`], or what cuBLAS or the driver says.
    pub fn new(device: Device) -> Result<Self, Error> {
        let (travel, cublas) = (device.fork()?, Cublas::open(&device)?);
        let (staging, last_rotation) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { device, travel, staging, cublas, last_rotation });
        Ok(Self { shared, logits: LOGITS, piece: PIECE / size_of::<T>() })
    }

    /// The same device, of whose memory no more than so many f32 logits take a part at a time, but one of each token. They are
    /// 64 MiB unless told otherwise; the losses are the same up to rounding.
    #[must_use]
    pub fn holding_logits(&self, logits: usize) -> Self {
        Self { logits, ..self.clone() }
    }

    /// The same device, to which weights travel in pieces of so many numbers at most: 128 MiB unless told otherwise.
    #[must_use]
    pub fn with_pieces_of(&self, piece: usize) -> Self {
        Self { piece, ..self.clone() }
    }

    pub(crate) fn logits(&self) -> usize {
        self.logits
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// The same device with the stream of what travels, beside the work and from whichever thread: weights and parameters come
    /// on it, and weights leave on it again. Their memory is of this stream, which frees it, too. The work waits for what it
    /// reads to have come; the free waits for the last work that read it.
    pub(crate) fn travel(&self) -> &Device {
        &self.shared.travel
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

    /// A weight that comes to the device on the stream of what travels, rounded if it is stored in another type.
    pub(crate) fn upload_weight(&self, weight: &model::Weight<'_>) -> Result<CudaSlice<T>, Error> {
        let stored = T::stored(weight);
        let fill = |range: Range<usize>, to: &mut [T]| match (stored, weight) {
            (Some(values), _) => to.copy_from_slice(&values[range]),
            (None, model::Weight::F32(values)) => round(&values[range], to),
            (None, model::Weight::F16(values)) => round(&values[range], to),
            (None, model::Weight::Bf16(values)) => round(&values[range], to),
        };
        let mut staging = self.shared.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.upload(&self.shared.travel, weight.values().len(), self.piece, fill)
    }

    /// The bytes of a weight on their way to the host: there when they are looked at. A weight of [`model::Forward::weight`] may
    /// be dropped meanwhile.
    ///
    /// # Errors
    /// What the driver says.
    pub fn fetch(&self, values: &CudaSlice<T>) -> Result<PinnedHostSlice<u8>, Error> {
        let stream = self.travel().stream();
        // A buffer remembers only the last that read it, and would forget the work for this copy. So the copy waits for the
        // work, and the free, which is of the same stream, comes behind both, and behind what reads the weight later.
        stream.join(self.device().stream()).map_err(driver)?;
        // SAFETY: all of it is written by the copy before anything reads it.
        let host = unsafe { stream.context().alloc_pinned_with_flags(values.num_bytes(), 0) };
        let mut host = host.map_err(driver)?;
        let view = values.as_view();
        // SAFETY: numbers are bytes, and as many.
        let Some(bytes) = (unsafe { view.transmute::<u8>(values.num_bytes()) }) else {
            return Err(shape("a weight", "fewer bytes", "as many as its numbers have"));
        };
        stream.memcpy_dtoh(&bytes, &mut host).map_err(driver)?;
        Ok(host)
    }
}

/// Numbers of one type in another, each rounded to nearest.
fn round<A: linalg::Element, B: Element>(values: &[A], rounded: &mut [B]) {
    /// So many at a time are widened to f32, which stay in the cache until they are rounded.
    const RUN: usize = 4096;
    let mut wide = [0.0; RUN];
    for (from, to) in values.chunks(RUN).zip(rounded.chunks_mut(RUN)) {
        let wide = &mut wide[..from.len()];
        A::widen(from, wide);
        B::narrow(wide, to);
    }
}
