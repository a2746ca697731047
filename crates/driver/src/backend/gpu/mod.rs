//! A shard on a GPU: the kernels of `prune-cuda` on what `cuda` keeps in the device's memory, or moves out of it.
//!
//! Everything is enqueued on the device's stream. The host waits for the factor, for the losses of a layer, and on the first shard
//! where work is timed. What several devices say to each other goes by NCCL: `statistics` sums H on one of them, which factors it for all,
//! and in `layers` each prunes its rows and gets those of the others.

mod layers;
mod statistics;

use std::ops::Range;

use anyhow::bail;
use checkpoint::Dtype;
use cuda::{Element, Gpu, Nccl, Place, Rows, Store, Stream, View};
use cudarc::driver::CudaSlice;
use half::{bf16, f16};
use model::Block;
use prune::{Collective, Method};
use prune_cuda::{Device, MatrixMut, MatrixRef};
use roofline::room;

use crate::backend::{Backend, Factored, LayerBytes, LayerTask, Pruned, Solver, panels};
pub use statistics::{Prepared, Statistics};

/// Tokens that pass through a stage together, where there is room for so many.
pub const CHUNK: usize = 8192;

/// Chunks are made no smaller than this: products no longer fill a device.
const SMALLEST_CHUNK: usize = 256;

/// A shard that has a device to itself, whose linear layers read `T`.
pub struct GpuShard<'a, T: Element> {
    forward: Gpu<T>,
    /// The devices of all shards.
    nccl: Nccl<'a>,
    chunk: usize,
    place: Place,
}

impl<'a, T: Element> GpuShard<'a, T> {
    /// A shard on `device`, which keeps activations in `place` and takes `chunk` tokens at a time to begin with. All shards of
    /// the `collective` make this call, each for a device of its own.
    ///
    /// # Errors
    /// If cuBLAS or, for several shards, NCCL is missing, the device has no room, or another shard failed.
    pub fn new(
        device: Device,
        collective: &'a dyn Collective,
        place: Place,
        chunk: usize,
    ) -> Result<Self, cuda::Error> {
        let nccl = Nccl::connect(&device, collective)?;
        Ok(Self { forward: Gpu::new(device)?, nccl, chunk, place })
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

impl<T: Element> Backend for GpuShard<'_, T> {
    type Forward = Gpu<T>;
    type Activations = Activations;
    type Kept = Kept<T>;
    type Statistics = Statistics;
    type Prepared = Prepared;

    fn forward(&self) -> &Gpu<T> {
        &self.forward
    }

    fn activations(&mut self, dtype: Dtype, tokens: usize, width: usize) -> anyhow::Result<Activations> {
        // A larger one would be given up without any use.
        self.chunk = self.chunk.min(tokens.max(SMALLEST_CHUNK));
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
        Ok(Statistics::new(self.device(), method, width)?)
    }

    fn accumulate(
        &self,
        statistics: &mut Statistics,
        inputs: &Rows<T>,
        tokens: usize,
        width: usize,
    ) -> anyhow::Result<()> {
        Ok(statistics.accumulate(self.device(), inputs, tokens, width)?)
    }

    fn sum(&self, statistics: &mut Statistics) -> anyhow::Result<()> {
        Ok(statistics.sum(&self.nccl)?)
    }

    fn reserve(&self, rows: usize, columns: usize, solver: &Solver, weights: usize) -> anyhow::Result<()> {
        let panels = panels(solver.pattern, solver.panel_width);
        let layer = LayerBytes::of(solver.method, panels, solver.bits.is_some(), rows, columns);
        // H is there now, and stays but for Wanda.
        let there = if solver.method == Method::Wanda { room::allocated(4 * (columns * columns) as u64) } else { 0 };
        let most = layer.preparing.max(layer.prepared.saturating_add(layer.pruning).saturating_sub(there));
        let coming = weights.saturating_mul(size_of::<T>());
        let bytes = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(coming);
        // Taken and given back: what the stream takes next comes out of it.
        drop(self.device().uninitialized::<f32>(bytes.div_ceil(size_of::<f32>()))?);
        Ok(())
    }

    fn prepare(&self, statistics: Statistics, solver: &Solver) -> anyhow::Result<Prepared> {
        statistics.prepare(self.device(), &self.nccl, solver)
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
        self.prune_layer(block, layer, prepared, solver)
    }

    fn chunk_tokens(&self, _stage: usize) -> usize {
        self.chunk
    }

    fn lacks_room(&self, error: &anyhow::Error) -> bool {
        error.chain().any(lacks_room)
    }

    fn relieve(&mut self, activations: &mut Activations, kept: &mut Kept<T>) -> anyhow::Result<bool> {
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

    fn close(self) -> anyhow::Result<()> {
        Ok(self.nccl.close()?)
    }
}

/// Whether an error says that a device had not enough memory.
fn lacks_room(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(prune_cuda::Error::OutOfMemory { .. }))
        || error.downcast_ref().is_some_and(cuda::Error::lacks_room)
}
