//! What the inputs of a stage are gathered into, and what becomes of it over all shards: the factor, or norms.
//!
//! ```text
//! H of each shard ─▶ summed on the last, which factors it ─▶ V broadcast ─▶ each inverts its diagonal blocks
//! ```
//! The last shard, since it has the fewest sequences and rows. The matrix goes over each link once on the way there and once on
//! the way back.

use cuda::{Element, Nccl, Rows};
use cudarc::driver::CudaSlice;
use prune::{Collective, Method};
use prune_cuda::{Device, MatrixMut, MatrixRef};

use crate::backend::{Factored, Solver};

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

impl Statistics {
    /// Of no tokens.
    pub fn new(device: &Device, method: Option<Method>, width: usize) -> Result<Self, prune_cuda::Error> {
        let method = method.filter(|&method| method != Method::Magnitude);
        let length = if method.is_some() { width * width } else { 1 };
        Ok(Self { method, width, hessian: device.zeros(length)? })
    }

    /// Adds the inputs [tokens, width] of some tokens.
    pub fn accumulate<T: Element>(
        &mut self,
        device: &Device,
        inputs: &Rows<T>,
        tokens: usize,
        width: usize,
    ) -> Result<(), prune_cuda::Error> {
        if self.method.is_none() {
            return Ok(());
        }
        let x = MatrixRef::new(inputs.values().as_view(), tokens, width)?;
        let mut hessian = MatrixMut::new(self.hessian.as_view_mut(), width, width)?;
        prune_cuda::accumulate(device, &x, &mut hessian, 1.0, 1.0)
    }

    /// H of all shards, on the one that factors it.
    pub fn sum(&mut self, nccl: &Nccl<'_>) -> Result<(), cuda::Error> {
        match self.method {
            Some(Method::Sparsegpt) => nccl.sum_to(factors(nccl), self.hessian.as_view_mut()),
            _ => Ok(()),
        }
    }

    /// What all shards prune with.
    pub fn prepare(self, device: &Device, nccl: &Nccl<'_>, solver: &Solver) -> anyhow::Result<Prepared> {
        match self.method {
            None => Ok(Prepared::Nothing),
            Some(Method::Sparsegpt) if nccl.rank() == factors(nccl) => self.factor(device, nccl, solver),
            Some(Method::Sparsegpt) => self.receive(device, nccl, solver),
            Some(_) => self.norms(device, nccl),
        }
    }

    /// Factors H in its own memory, and sends V to the others.
    fn factor(self, device: &Device, nccl: &Nccl<'_>, solver: &Solver) -> anyhow::Result<Prepared> {
        let Self { width: n, mut hessian, .. } = self;
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
        let damping = damping(solver, raises);
        if let Some(failure) = prune_cuda::failures(device, &prepared.failed, &factored)?.first() {
            let (column, pivot) = (failure.column, failure.pivot.into());
            return Err(prune::Error::Pivot { column, pivot, damping, raises }.into());
        }
        let dead = prepared.dead;
        if nccl.size() > 1 {
            let flags = device.download(&dead)?;
            nccl.gather(&[&flags[..n], &raises.to_le_bytes()].concat())?;
            nccl.broadcast(nccl.rank(), hessian.as_view_mut())?;
        }
        let known = Factored { damping, raises, dead: summary.dead_columns as usize };
        Ok(Prepared::Factor { factor: hessian, inverses: factored.inverses, dead, known })
    }

    /// Takes V from the shard that has it, into the memory of H.
    fn receive(self, device: &Device, nccl: &Nccl<'_>, solver: &Solver) -> anyhow::Result<Prepared> {
        let Self { width: n, hessian: mut factor, .. } = self;
        let root = factors(nccl);
        let said = nccl.gather(&[])?.swap_remove(root);
        let Some((flags, raises)) = said.split_last_chunk() else { return Err(prune::Disconnected.into()) };
        let raises = u32::from_le_bytes(*raises);
        nccl.broadcast(root, factor.as_view_mut())?;
        let matrix = MatrixMut::new(factor.as_view_mut(), n, n)?;
        let inverses = prune_cuda::factor_diagonals(device, &matrix, 1, &device.zeros(1)?)?;
        let dead = flags.iter().filter(|&&dead| dead > 0).count();
        let known = Factored { damping: damping(solver, raises), raises, dead };
        Ok(Prepared::Factor { factor, inverses, dead: device.upload(flags)?, known })
    }

    /// ‖x_j‖ over the tokens of all shards, whose squares are so few that they are summed on the host.
    fn norms(self, device: &Device, nccl: &Nccl<'_>) -> anyhow::Result<Prepared> {
        let norms = prune_cuda::norms(device, &MatrixRef::new(self.hessian.as_view(), self.width, self.width)?)?;
        if nccl.size() == 1 {
            return Ok(Prepared::Norms(norms));
        }
        let mut squares: Vec<f64> =
            device.download(&norms)?.into_iter().map(|norm| f64::from(norm) * f64::from(norm)).collect();
        nccl.host().sum_f64(&mut squares)?;
        let norms: Vec<f32> = squares.into_iter().map(|square| square.sqrt() as f32).collect();
        Ok(Prepared::Norms(device.upload(&norms)?))
    }
}

/// The shard that factors.
fn factors(nccl: &Nccl<'_>) -> usize {
    nccl.size() - 1
}

fn damping(solver: &Solver, raises: u32) -> f64 {
    solver.damping * 10f64.powi(raises as i32)
}
