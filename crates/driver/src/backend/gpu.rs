//! A shard on a GPU: the kernels of `prune-cuda` on what `cuda` keeps in the device's memory, or moves out of it.
//!
//! Everything is enqueued on the device's stream. The host waits for the factor, for the losses of a layer, and where work is
//! timed.

use std::ops::Range;

use anyhow::bail;
use checkpoint::{Dtype, narrow};
use cuda::{Element, Gpu, Place, Rows, Store, Stream, View};
use cudarc::driver::{CudaSlice, PinnedHostSlice};
use half::{bf16, f16};
use model::{Block, Forward};
use prune::{Method, Pattern};
use prune_cuda::{Device, Factor, MatrixMut, MatrixRef, Selection, Settings};

use crate::backend::{Backend, Factored, LayerTask, Pruned, Solver, Whole, layer_name};

/// Tokens that pass through a stage together, where there is room for so many.
pub const CHUNK: usize = 8192;

/// Chunks are made no smaller than this: products no longer fill a device.
const SMALLEST_CHUNK: usize = 256;

/// A shard that has a device to itself, whose linear layers read `T`.
pub struct GpuShard<T: Element> {
    forward: Gpu<T>,
    /// Where results leave the device, beside the work.
    copies: Device,
    chunk: usize,
    place: Place,
}

impl<T: Element> GpuShard<T> {
    /// A shard on `device`, which keeps activations in `place` and takes `chunk` tokens at a time to begin with.
    ///
    /// # Errors
    /// If cuBLAS is missing, or the device has no room.
    pub fn new(device: Device, place: Place, chunk: usize) -> Result<Self, cuda::Error> {
        let copies = device.fork()?;
        Ok(Self { forward: Gpu::new(device)?, copies, chunk, place })
    }

    fn device(&self) -> &Device {
        self.forward.device()
    }
}

/// The residual stream, in the type in which activations are kept.
pub struct Activations {
    width: usize,
    values: Typed,
    /// Of what was stored since the last look: its first token, and the first number of it that is not finite.
    flags: Vec<(usize, CudaSlice<u64>)>,
}

enum Typed {
    F32(Store<f32>),
    F16(Store<f16>),
    Bf16(Store<bf16>),
}

/// Does the same with numbers of any type.
macro_rules! each {
    ($values:expr, $store:ident => $work:expr) => {
        match $values {
            Typed::F32($store) => $work,
            Typed::F16($store) => $work,
            Typed::Bf16($store) => $work,
        }
    };
}

/// Inputs of a stage, in the type in which linear layers read them.
pub struct Kept<T: Element> {
    width: usize,
    values: Store<T>,
}

/// What the inputs of a stage are gathered into: H, of which Wanda takes the diagonal.
pub struct Statistics {
    method: Option<Method>,
    width: usize,
    hessian: CudaSlice<f32>,
}

/// What a layer is pruned with.
pub enum Prepared {
    /// V, and what belongs to it.
    Factor {
        /// [columns, columns].
        factor: CudaSlice<f32>,
        /// U_kk of its diagonal blocks.
        inverses: CudaSlice<f32>,
        /// `[columns]`.
        dead: CudaSlice<u8>,
        /// What is known of it.
        known: Factored,
    },
    /// `[columns]`.
    Norms(CudaSlice<f32>),
    /// Magnitudes are enough.
    Nothing,
}

impl<T: Element> Backend for GpuShard<T> {
    type Forward = Gpu<T>;
    type Activations = Activations;
    type Kept = Kept<T>;
    type Statistics = Statistics;
    type Prepared = Prepared;

    fn forward(&self) -> &Gpu<T> {
        &self.forward
    }

    fn activations(&mut self, dtype: Dtype, tokens: usize, width: usize) -> anyhow::Result<Activations> {
        let (device, place, length) = (self.device(), &self.place, tokens * width);
        let values = match dtype {
            Dtype::F32 => Typed::F32(Store::new(device, place, length)?),
            Dtype::BF16 => Typed::Bf16(Store::new(device, place, length)?),
            _ => Typed::F16(Store::new(device, place, length)?),
        };
        Ok(Activations { width, values, flags: Vec::new() })
    }

    fn load(&self, from: &Activations, tokens: Range<usize>) -> anyhow::Result<Stream> {
        let (device, width) = (self.device(), from.width);
        let mut x = device.uninitialized::<f32>((tokens.len() * width).max(1))?;
        let mut to = MatrixMut::new(x.as_view_mut(), tokens.len(), width)?;
        each!(&from.values, store => store.widen(device, tokens.start * width, &mut to))?;
        Ok(Rows::new(x, tokens.len(), width)?)
    }

    fn store(&self, to: &mut Activations, tokens: Range<usize>, x: &Stream) -> anyhow::Result<()> {
        let (device, width) = (self.device(), to.width);
        let from = MatrixRef::new(x.values().as_view(), tokens.len(), width)?;
        let flag = each!(&mut to.values, store => store.narrow(device, tokens.start * width, &from))?;
        to.flags.push((tokens.start, flag));
        Ok(())
    }

    fn settle(&self, activations: &mut Activations) -> anyhow::Result<()> {
        for (first, flag) in activations.flags.drain(..) {
            let at = self.device().download(&flag)?[0] as usize;
            if at < usize::MAX {
                let (token, column) = (first + at / activations.width, at % activations.width);
                bail!(
                    "the residual stream is not a finite number at token {token}, column {column}, in the type it is kept \
                     in; keep activations in another one: --activations bf16, or f32 with twice the memory"
                );
            }
        }
        Ok(())
    }

    fn room(&mut self, dtype: Dtype, tokens: usize, width: usize) -> anyhow::Result<Kept<T>> {
        // As many bytes as the residual stream takes.
        let length = tokens * width * dtype.size() / size_of::<T>();
        Ok(Kept { width, values: Store::new(self.device(), &self.place, length)? })
    }

    fn reshape(&self, kept: &mut Kept<T>, width: usize) -> usize {
        kept.width = width;
        kept.values.len() / width.max(1)
    }

    fn keep(&self, to: &mut Kept<T>, tokens: Range<usize>, inputs: &Rows<T>) -> anyhow::Result<()> {
        let from = inputs.values().slice(..tokens.len() * to.width);
        Ok(to.values.put(self.device(), tokens.start * to.width, &from)?)
    }

    fn absorb_kept(
        &self,
        block: &Block<'_, Gpu<T>>,
        stage: usize,
        x: &mut Stream,
        kept: &Kept<T>,
        tokens: Range<usize>,
    ) -> anyhow::Result<()> {
        let (count, width) = (tokens.len(), kept.width);
        let elements = tokens.start * width..tokens.end * width;
        Ok(kept.values.with(self.device(), elements, |values, first| {
            block.absorb(stage, x, View::new(values, first, count, width)?)
        })?)
    }

    fn statistics(&self, method: Option<Method>, width: usize) -> anyhow::Result<Statistics> {
        let method = method.filter(|&method| method != Method::Magnitude);
        let length = if method.is_some() { width * width } else { 1 };
        Ok(Statistics { method, width, hessian: self.device().zeros(length)? })
    }

    fn accumulate(
        &self,
        statistics: &mut Statistics,
        inputs: &Rows<T>,
        tokens: usize,
        width: usize,
    ) -> anyhow::Result<()> {
        if statistics.method.is_some() {
            let x = MatrixRef::new(inputs.values().as_view(), tokens, width)?;
            let mut hessian = MatrixMut::new(statistics.hessian.as_view_mut(), width, width)?;
            prune_cuda::accumulate(self.device(), &x, &mut hessian, 1.0, 1.0)?;
        }
        Ok(())
    }

    fn sum(&self, _statistics: &mut Statistics) -> anyhow::Result<()> {
        // A GPU works alone: `device::unsuited`.
        Ok(())
    }

    fn prepare(&self, statistics: Statistics, solver: &Solver) -> anyhow::Result<Prepared> {
        let Statistics { method, width: n, mut hessian } = statistics;
        let device = self.device();
        match method {
            Some(Method::Sparsegpt) => {}
            Some(_) => {
                let hessian = MatrixRef::new(hessian.as_view(), n, n)?;
                return Ok(Prepared::Norms(prune_cuda::norms(device, &hessian)?));
            }
            None => return Ok(Prepared::Nothing),
        }
        let mut matrix = MatrixMut::new(hessian.as_view_mut(), n, n)?;
        let mut prepared = prune_cuda::prepare(device, &mut matrix, 1, solver.damping as f32)?;
        let (factored, raises) = prune_cuda::factor_damped(device, &mut matrix, 1, &mut prepared)?;
        let summary = device.download(&prepared.summaries)?[0];
        if let Ok(column) = usize::try_from(summary.not_finite) {
            let at = column * n + column;
            let value = device.download(&hessian.slice(at..at + 1))?[0];
            return Err(prune::Error::NotFinite { column, value }.into());
        }
        let raises = raises[0];
        let damping = solver.damping * 10f64.powi(raises as i32);
        if let Some(failure) = prune_cuda::failures(device, &prepared.failed, &factored)?.first() {
            let (column, pivot) = (failure.column, failure.pivot.into());
            return Err(prune::Error::Pivot { column, pivot, damping, raises }.into());
        }
        let known = Factored { damping, raises, dead: summary.dead_columns as usize };
        Ok(Prepared::Factor { factor: hessian, inverses: factored.inverses, dead: prepared.dead, known })
    }

    fn factored(prepared: &Prepared) -> Option<Factored> {
        match prepared {
            Prepared::Factor { known, .. } => Some(*known),
            _ => None,
        }
    }

    fn prune<'b>(
        &self,
        block: &'b mut Block<'_, Gpu<T>>,
        layer: &LayerTask<'_>,
        prepared: &Prepared,
        solver: &Solver,
    ) -> anyhow::Result<Pruned<'b>> {
        let device = self.device();
        let &LayerTask { ref stored, ref own, rows, columns, .. } = layer;
        let count = own.len();
        let elements = own.start * columns..own.end * columns;
        let Some(values) = block.weight_mut(stored.name).values_mut() else {
            bail!("the weight {} is in use elsewhere", stored.name)
        };
        let mut buffer = device.uninitialized::<f32>((count * columns).max(1))?;
        let mut weights = MatrixMut::new(buffer.as_view_mut(), count, columns)?;
        T::widen_on(device, &MatrixRef::new(values.slice(elements.clone()), count, columns)?, &mut weights)?;
        let obs_loss = solve(device, &mut weights, prepared, solver)?;
        if let Some(loss) = obs_loss.filter(|loss| !loss.is_finite()) {
            bail!(
                "{}: the loss is {loss}: its weights or its Hessian are beyond what f32 holds",
                layer_name(stored.name)
            );
        }
        let kept = MatrixRef::new(buffer.as_view(), count, columns)?;
        let flag = T::narrow_on(device, &kept, &mut MatrixMut::new(values.slice_mut(elements), count, columns)?)?;
        if device.download(&flag)?[0] < u64::MAX {
            bail!("{}: a corrected weight overflows {}", layer_name(stored.name), stored.dtype);
        }
        let wider = stored.dtype.size() < size_of::<T>();
        if wider {
            // The block computes with what the checkpoint will hold.
            let bytes = narrow(&floats(device.download(values)?), &stored.dtype)?;
            let mut weight = model::Weight::zeros(rows * columns, stored.dtype)?;
            weight.bytes_mut().copy_from_slice(&bytes);
            *block.weight_mut(stored.name) = self.forward.weight(weight, rows, columns)?;
            return Ok(Pruned {
                obs_loss,
                whole: layer.writes.then(|| Whole::Coming(Box::new(move |sink| sink(&bytes)))),
            });
        }
        let whole = layer.writes.then(|| self.fetch(values)).transpose()?;
        Ok(Pruned { obs_loss, whole })
    }

    fn chunk_tokens(&self, _stage: usize) -> usize {
        self.chunk
    }

    fn relieve(
        &mut self,
        error: &anyhow::Error,
        activations: &mut Activations,
        kept: &mut Kept<T>,
    ) -> anyhow::Result<bool> {
        if !error.chain().any(lacks_room) {
            return Ok(false);
        }
        let ordinal = self.device().ordinal();
        if self.chunk > SMALLEST_CHUNK {
            self.chunk = (self.chunk / 2).max(SMALLEST_CHUNK);
            tracing::warn!("device {ordinal} is full: {} tokens pass through it at a time from here on", self.chunk);
            return Ok(true);
        }
        if self.place == Place::Device {
            self.place = Place::Host;
            tracing::warn!("device {ordinal} is full: activations move to the host's memory");
            each!(&mut activations.values, store => store.move_out(self.forward.device(), &self.place))?;
            kept.values.move_out(self.forward.device(), &self.place)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn wait(&self) -> anyhow::Result<()> {
        Ok(self.device().synchronize()?)
    }
}

impl<T: Element> GpuShard<T> {
    /// A copy of a weight on its way to the host, beside the work on others.
    fn fetch(&self, values: &CudaSlice<T>) -> anyhow::Result<Whole<'static>> {
        let stream = self.copies.stream();
        // SAFETY: all of it is written by the copy before anything reads it.
        let mut host: PinnedHostSlice<u8> = unsafe { stream.context().alloc_pinned_with_flags(values.num_bytes(), 0) }
            .map_err(prune_cuda::Error::from)?;
        let view = values.as_view();
        // SAFETY: numbers are bytes, and as many.
        let Some(bytes) = (unsafe { view.transmute::<u8>(values.num_bytes()) }) else { bail!("a weight of no bytes") };
        stream.memcpy_dtoh(&bytes, &mut host).map_err(prune_cuda::Error::from)?;
        Ok(Whole::Coming(Box::new(move |sink| sink(host.as_slice().map_err(prune_cuda::Error::from)?))))
    }
}

/// Prunes rows of a layer in place; Σ e²/2, if the method has one.
fn solve(
    device: &Device,
    weights: &mut MatrixMut<'_, f32>,
    prepared: &Prepared,
    solver: &Solver,
) -> anyhow::Result<Option<f64>> {
    let columns = weights.columns();
    let pattern = match solver.pattern {
        Pattern::Unstructured { sparsity } => prune_cuda::Pattern::Unstructured { sparsity },
        Pattern::NOfM { keep, group } => prune_cuda::Pattern::Groups { keep, group },
    };
    match prepared {
        Prepared::Factor { factor, inverses, dead, .. } => {
            let factor = Factor {
                factor: MatrixRef::new(factor.as_view(), columns, columns)?,
                inverses: inverses.as_view(),
                dead: dead.as_view(),
            };
            let selection = match solver.pattern {
                Pattern::Unstructured { sparsity } => {
                    Selection::Unstructured { sparsity, panel_width: solver.panel_width }
                }
                Pattern::NOfM { keep, group } => Selection::Groups { keep, group },
            };
            let settings = Settings { selection, bits: solver.bits, shards: None };
            let outcome = prune_cuda::solve(device, weights, &factor, &settings)?;
            let losses = device.download(&outcome.losses)?;
            Ok(Some(losses[..weights.rows()].iter().sum()))
        }
        Prepared::Norms(norms) => {
            prune_cuda::wanda(device, weights, pattern, &MatrixRef::new(norms.as_view(), columns, 1)?)?;
            Ok(None)
        }
        Prepared::Nothing => {
            prune_cuda::magnitude(device, weights, pattern, None)?;
            Ok(None)
        }
    }
}

fn floats<T: Element>(values: Vec<T>) -> Vec<f32> {
    let mut wide = vec![0.0; values.len()];
    T::widen(&values, &mut wide);
    wide
}

/// Whether an error says that a device had not enough memory.
fn lacks_room(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(prune_cuda::Error::OutOfMemory { .. }))
        || error.downcast_ref().is_some_and(cuda::Error::lacks_room)
}
