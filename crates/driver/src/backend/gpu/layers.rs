//! A layer on a device: this shard's rows solved in f32, rounded into the block's weight, completed by those of the others, and
//! on their way to the host.

use std::ops::Range;

use anyhow::bail;
use checkpoint::narrow;
use cuda::{Element, Gpu, Nccl, Shards};
use cudarc::driver::CudaSlice;
use model::{Block, Forward};
use prune::{Collective, Pattern};
use prune_cuda::{Device, Factor, MatrixMut, MatrixRef, Selection, Settings};

use crate::backend::gpu::{GpuShard, Prepared};
use crate::backend::{LayerTask, Pruned, Solver, Whole, layer_name};

impl<T: Element> GpuShard<'_, T> {
    /// [`crate::backend::Backend::prune`].
    pub(super) fn prune_layer<'b>(
        &self,
        block: &'b mut Block<'_, Gpu<T>>,
        layer: &LayerTask<'_>,
        prepared: &Prepared,
        solver: &Solver,
    ) -> anyhow::Result<Pruned<'b>> {
        let device = self.device();
        let &LayerTask { ref stored, rows, columns, .. } = layer;
        let Some(values) = block.weight_mut(stored.name).values_mut() else {
            bail!("the weight {} is in use elsewhere", stored.name)
        };
        let obs_loss = self.prune_rows(values, layer, prepared, solver)?;
        self.exchange(values, &layer.parts, columns)?;
        if stored.dtype.size() == size_of::<T>() {
            let whole = layer.writes.then(|| self.fetch(values)).transpose()?;
            return Ok(Pruned { obs_loss, whole });
        }
        // Stored in fewer bits: the block computes with what the checkpoint will hold.
        let bytes = narrow(&floats(device.download(values)?), &stored.dtype)?;
        let mut weight = model::Weight::zeros(rows * columns, stored.dtype)?;
        weight.bytes_mut().copy_from_slice(&bytes);
        *block.weight_mut(stored.name) = self.forward.weight(weight, rows, columns)?;
        let whole = layer.writes.then(|| Whole::Coming(Box::new(move |sink| sink(&bytes))));
        Ok(Pruned { obs_loss, whole })
    }

    /// Prunes this shard's rows of a weight, in place; Σ e²/2, if the method has one.
    fn prune_rows(
        &self,
        values: &mut CudaSlice<T>,
        layer: &LayerTask<'_>,
        prepared: &Prepared,
        solver: &Solver,
    ) -> anyhow::Result<Option<f64>> {
        let device = self.device();
        let &LayerTask { ref stored, ref own, rows, columns, .. } = layer;
        let (count, elements) = (own.len(), own.start * columns..own.end * columns);
        let mut buffer = device.uninitialized::<f32>((count * columns).max(1))?;
        let mut weights = MatrixMut::new(buffer.as_view_mut(), count, columns)?;
        T::widen_on(device, &MatrixRef::new(values.slice(elements.clone()), count, columns)?, &mut weights)?;
        let obs_loss = solve(device, &self.nccl, &mut weights, rows, prepared, solver)?;
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
        Ok(obs_loss)
    }

    /// Completes a weight by the rows of the other shards.
    fn exchange(&self, values: &mut CudaSlice<T>, rows: &[Range<usize>], columns: usize) -> anyhow::Result<()> {
        let (size, length) = (columns * size_of::<T>(), values.num_bytes());
        let parts: Vec<_> = rows.iter().map(|rows| rows.start * size..rows.end * size).collect();
        let mut values = values.as_view_mut();
        // SAFETY: numbers are bytes, and as many; any bytes are numbers of these types.
        let Some(bytes) = (unsafe { values.transmute_mut::<u8>(length) }) else { bail!("a weight of no bytes") };
        Ok(self.nccl.exchange(bytes, &parts)?)
    }

    /// A copy of a weight on its way to the host, beside the work on others.
    fn fetch(&self, values: &CudaSlice<T>) -> anyhow::Result<Whole<'static>> {
        let host = self.forward.fetch(values)?;
        Ok(Whole::Coming(Box::new(move |sink| sink(host.as_slice().map_err(prune_cuda::Error::from)?))))
    }
}

/// Prunes some of the `all_rows` of a layer in place; Σ e²/2, if the method has one.
fn solve(
    device: &Device,
    nccl: &Nccl<'_>,
    weights: &mut MatrixMut<'_, f32>,
    all_rows: usize,
    prepared: &Prepared,
    solver: &Solver,
) -> anyhow::Result<Option<f64>> {
    let columns = weights.columns();
    let pattern = match solver.pattern {
        Pattern::Unstructured { sparsity } => prune_cuda::Pattern::Unstructured { sparsity },
        Pattern::NOfM { keep, group } => prune_cuda::Pattern::Groups { keep, group },
    };
    let others = Shards(nccl);
    let shards: Option<(&dyn prune_cuda::Shards, usize)> = (nccl.size() > 1).then_some((&others, all_rows));
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
            let settings = Settings { selection, bits: solver.bits, shards };
            let outcome = prune_cuda::solve(device, weights, &factor, &settings)?;
            let losses = device.download(&outcome.losses)?;
            Ok(Some(losses[..weights.rows()].iter().sum()))
        }
        Prepared::Norms(norms) => {
            prune_cuda::wanda(device, weights, pattern, &MatrixRef::new(norms.as_view(), columns, 1)?)?;
            Ok(None)
        }
        Prepared::Nothing => {
            prune_cuda::magnitude(device, weights, pattern, shards)?;
            Ok(None)
        }
    }
}

fn floats<T: Element>(values: Vec<T>) -> Vec<f32> {
    let mut wide = vec![0.0; values.len()];
    T::widen(&values, &mut wide);
    wide
}
